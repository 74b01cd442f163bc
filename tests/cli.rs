//! The program as its users meet it: the whole job, and errors.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use vlm4d_train::files;
use vlm4d_train::model::tensor_files::TensorFiles;
use vlm4d_train::recipe::Recipe;
use vlm4d_train::run;

use crate::support::run::{Workplace, copy_dir, demo_data, program, recipe, text, tiny};
use crate::support::{Golden, golden};

#[test]
fn every_shipped_recipe_parses() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut seen = 0;
    for folder in std::fs::read_dir(root).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let recipe = Recipe::from_file(&path).unwrap_or_else(|e| panic!("{e}"));
            let resolved = recipe.to_toml().unwrap();
            let again = Recipe::from_text(&resolved, "resolved").unwrap();
            assert_eq!(again.to_toml().unwrap(), resolved, "{}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 9, "only {seen} recipes");
}

#[test]
fn a_run_has_the_name_of_its_recipe() {
    let of = |path: &str| run::folder(Path::new("runs"), Path::new(path));
    assert_eq!(of("recipes/quickstart/real.toml"), Path::new("runs/quickstart/real"));
    assert_eq!(of("/home/a/recipes/b/c.toml"), Path::new("runs/b/c"));
    assert_eq!(of("../mine.v2.toml"), Path::new("runs/mine.v2"));
}

#[test]
fn the_whole_job_writes_what_the_contract_names() {
    for model in ["tiny-qwen2-vl", "tiny-qwen2.5-vl"] {
        let model = golden(&format!("ckpt/{model}"));
        let place = Workplace::new(&recipe(&model, demo_data(), "max_steps = 2\ngrad_accum = 2"));
        let output = place.run();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let stdout = text(&output.stdout);
        for word in ["model  ", "data   real", "before mc", "after  mc", "change mc", "report"] {
            assert!(stdout.contains(word), "no `{word}` in\n{stdout}");
        }
        for file in [
            "recipe.toml",
            "split.json",
            "data.svg",
            "report.md",
            "report.html",
            "before/metrics.json",
            "after/metrics.json",
        ] {
            assert!(place.path(file).is_file(), "{file}");
        }
        let events = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().contains("tfevents");
        let found =
            std::fs::read_dir(place.path("")).unwrap().filter(|e| events(e.as_ref().unwrap()));
        assert!(found.count() > 0, "no TensorBoard events");
        assert_eq!(place.losses().len(), 2);
        check_predictions(&place.path("after/predictions.jsonl"));
        let adapter = Golden::open(&place.path("adapter/adapter_model.safetensors"));
        assert!(
            adapter.names().all(|name| name.starts_with("base_model.model.model.language_model."))
        );
        let again = place.run();
        assert!(again.status.success() && text(&again.stdout).contains("done before"));
    }
}

#[test]
fn without_an_adapter_the_whole_model_is_trained() {
    let model = golden("ckpt/tiny-qwen2-vl");
    let full = recipe(&model, demo_data(), "max_steps = 2").replace("[lora]\n", "");
    let place = Workplace::new(&full);
    let output = place.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    for word in ["language 210.8 k trained", "vision 75.7 k frozen", "model runs/r/model"] {
        assert!(stdout.contains(word), "no `{word}` in\n{stdout}");
    }
    assert!(!place.path("adapter").exists());
    let resolved = std::fs::read_to_string(place.path("recipe.toml")).unwrap();
    assert!(resolved.contains("freeze = [\"vision\", \"merger\"]"), "{resolved}");
    // What was written answers as the trained model did.
    let trained = place.path("model").display().to_string();
    let again =
        full.replace(&model.display().to_string(), &trained).replace("lr = 1e-3", "lr = 0.0");
    let second = Workplace::new(&again);
    let output = second.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answers = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    assert_eq!(
        answers(second.path("before/predictions.jsonl")),
        answers(place.path("after/predictions.jsonl"))
    );
}

#[test]
fn a_run_that_diverges_says_where() {
    let train = "max_steps = 9\ngrad_accum = 2\nsave_steps = 1\nwarmup_ratio = 0.0";
    let wild = recipe(&tiny(), demo_data(), train).replace("lr = 1e-3", "lr = 1e30");
    let place = Workplace::new(&wild);
    let output = place.run();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: step ") && stderr.contains("`real/validation_"), "{stderr}");
    let help = "checkpoints/step-1 (step 1), whose weights gave this; lower train.lr";
    assert!(stderr.contains(help), "{stderr}");
}

#[test]
fn a_run_is_validated_while_it_trains() {
    let held_back = recipe(&tiny(), demo_data(), "max_steps = 4\neval_steps = 2\npatience = 3")
        .replace("[video]", "split = { val = 0.2 }\n[video]");
    let place = Workplace::new(&(held_back + "judge = { kind = \"base\" }\n"));
    let output = place.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    let by_rules = "note   validations are graded by the rules alone, without eval.judge";
    for word in [
        "  val ",
        by_rules,
        "validation loss",
        "best so far",
        "best   step ",
        "by validation accuracy",
    ] {
        assert!(stdout.contains(word), "no `{word}` in\n{stdout}");
    }
    let lines = std::fs::read_to_string(place.path("validation.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|l| l["loss"].is_f64() && l["accuracy"]["mc"].is_number()));
    let best = lines.iter().rfind(|l| l["best"] == true).unwrap()["step"].as_u64().unwrap();
    let report = std::fs::read_to_string(place.path("report.md")).unwrap();
    assert!(report.contains(&format!("chose the checkpoint of step {best} ")), "{report}");
    assert!(place.path(&format!("checkpoints/step-{best}")).exists());
}

fn check_predictions(path: &Path) {
    let lines = std::fs::read_to_string(path).unwrap();
    let mut formats = std::collections::BTreeSet::new();
    for line in lines.lines() {
        let prediction: Value = serde_json::from_str(line).unwrap();
        for key in [
            "id",
            "subset",
            "source",
            "group",
            "format",
            "prompt",
            "question",
            "choices",
            "gold",
            "response",
            "extracted",
            "correct",
            "grader",
            "n_video_tokens",
        ] {
            assert!(prediction.get(key).is_some(), "no `{key}` in {line}");
        }
        let format = prediction["format"].as_str().unwrap().to_owned();
        let letters = prediction.get("letter_logprobs").map_or(0, |l| l.as_object().unwrap().len());
        assert_eq!(letters, if format == "mc" { 4 } else { 0 }, "{line}");
        formats.insert(format);
    }
    assert_eq!(formats.len(), 2);
}

/// Runs `recipe` and expects exit 2, one error with `wanted` in it, and nothing written.
fn refused(recipe: &str, wanted: &str) {
    let place = Workplace::new(recipe);
    let output = place.run();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(wanted), "no `{wanted}` in\n{stderr}");
    assert_eq!(stderr.matches("error:").count(), 1, "{stderr}");
    for word in ["panicked", "f64", "usize", "struct ", "Option", "Error {"] {
        assert!(!stderr.contains(word), "`{word}` in\n{stderr}");
    }
    assert!(!place.0.path().join("runs").exists(), "something was written");
}

#[test]
fn wrong_recipes_are_refused() {
    let good = recipe(&tiny(), demo_data(), "");
    for (from, to, wanted) in [
        (
            "lr = 1e-3",
            "lrr = 1e-3",
            "recipes/r.toml:10:1: unknown field `lrr`\n  help: did you mean `lr`?",
        ),
        (
            "lr = 1e-3",
            "lr = \"high\"",
            "recipes/r.toml:10:6: not the text \"high\", a number was expected",
        ),
        ("lr = 1e-3", "lr = \"a map\"", "not the text \"a map\", a number was expected"),
        ("lr = 1e-3", "lr = -1.0", "recipes/r.toml:10:1: `lr` is -1"),
        (
            "[video]",
            "split = { seed = 9223372036854775808 }\n[video]",
            "recipes/r.toml:5:18: the whole number is more than 9223372036854775807, TOML's",
        ),
        ("[model]", "seed = 18446744073709551615\n[model]", "r.toml:1:8: the whole number is"),
        ("max_frames = 4", "max_frames = 9223372036854775808", "r.toml:6:14: the whole number is"),
        ("lr = 1e-3", "lr = ", "recipes/r.toml:10:"),
        ("lr = 1e-3", "schedule = \"cosin\"", "did you mean `cosine`?"),
        ("[lora]", "[lora]\nr = 0", "recipes/r.toml:9:1: `r` is 0"),
        ("[lora]", "[lora]\ntarget_modules = [\"nothing\"]", "matches no linear layer"),
        (
            "[lora]",
            "[lora]\nfrom = \"nowhere\"",
            "recipes/r.toml:9:1: nowhere/adapter_config.json: no such file",
        ),
        ("[model]", "[modle]", "did you mean `model`?"),
        ("max_new_tokens = 4", "prompt = \"CoT\"", "help: did you mean `cot`?"),
        ("max_frames = 4", "max_frames = 0", "`max_frames` is 0"),
        ("[video]", "mirror = 1.5\n[video]", "recipes/r.toml:5:1: `mirror` is 1.5"),
        ("[video]", "mirror = \"yes\"\n[video]", "not the text \"yes\", a number was expected"),
        ("[video]", "shuffle_choice = true\n[video]", "did you mean `shuffle_choices`?"),
        ("tiny-qwen2.5-vl", "tiny-qwen9-vl", "tiny-qwen9-vl: no such folder"),
        ("max_frames = 4", "fps = 0.0", "`fps` is 0"),
        ("lr = 1e-3", "freeze = [\"vision\"]", "`freeze` is set, and so is [lora]"),
        (
            "[lora]\n[train]",
            "[train]\nfreeze = [\"vision\", \"language\", \"merger\"]",
            "nothing would be trained",
        ),
        ("[lora]\n[train]", "[train]\nfreeze = [\"tower\"]", "unknown value `tower`"),
        ("[lora]", "[lora]\nscope = []", "`scope` is empty"),
        (
            "[lora]",
            "[lora]\nscope = [\"vision\", \"vision\"]",
            "`scope` is a list that names something twice\n  help: name each once",
        ),
        (
            "[lora]\n[train]",
            "[train]\nfreeze = [\"vision\", \"vision\"]",
            "`freeze` is a list that names something twice",
        ),
        ("lr = 1e-3", "patience = 2", "`patience` is set, and nothing is held back to validate"),
        ("lr = 1e-3", "best = \"luck\"", "unknown value `luck`"),
        (
            "[lora]",
            "[lora]\nscope = [\"vision\"]\ntarget_modules = \".*q_proj\"",
            "`scope` is set, and `target_modules` is a regular expression",
        ),
        ("[lora]", "[lora]\nplus_ratio = 0.0", "`plus_ratio` is 0"),
        ("lr = 1e-3", "vision_lr = -1.0", "`vision_lr` is -1"),
        ("lr = 1e-3", "vision_lr = 1e-4", "`vision_lr` is set, and the part is not trained"),
        (
            "[lora]\n[train]",
            "[train]\nmerger_lr = 1e-4",
            "`merger_lr` is set, and the part is not trained",
        ),
        (
            "[video]",
            "test = [\"real\", \"real\"]\n[video]",
            "`test` is a list that names something twice",
        ),
        ("lr = 1e-3", "max_grad_norm = -1.0", "`max_grad_norm` is -1"),
        ("lr = 1e-3", "batch_size = 9223372036854775807", "a million at most"),
        ("lr = 1e-3", "epochs = 1e300", "a million at most"),
        (
            "max_new_tokens = 4",
            "circular = true\nformats = [\"ff\"]",
            "recipes/r.toml:13:1: `circular` is set, and `formats` has no \"mc\"",
        ),
    ] {
        assert!(good.contains(from));
        refused(&good.replacen(from, to, 1), wanted);
    }
}

#[test]
fn wrong_devices_are_refused() {
    let good = recipe(&tiny(), demo_data(), "");
    let refused = |device: &str, wanted: &str| {
        refused(&good.replacen("[model]", &format!("[model]\ndevice = {device}"), 1), wanted);
    };
    refused("[]", "recipes/r.toml:2:1: `device` is empty");
    refused("0", "recipes/r.toml:2:10: `device` must be \"auto\", \"cpu\"");
    let several = "recipes/r.toml:2:1: `device` is a list ";
    refused("[\"cuda:0\", \"cuda:0\"]", &format!("{several}that names something twice"));
    refused("[\"cuda:0\", \"cuda:00\"]", &format!("{several}with `cuda:00`"));
    refused("[\"cuda:0\", \"auto\"]", &format!("{several}with `auto`"));
    let gpus = "\n  help: several devices are GPUs";
    refused("[\"cpu\", \"cuda:0\"]", &format!("{several}with `cpu`{gpus}"));
    #[cfg(not(feature = "cuda"))]
    for device in ["\"cuda:0\"", "[\"cuda:0\"]", "[\"cuda:0\", \"cuda:1\"]"] {
        let wanted = "2:1: `model.device` is `cuda:0`, and there is no such GPU here";
        refused(device, wanted);
    }
}

#[test]
fn wrong_limits_are_refused() {
    let good = recipe(&tiny(), demo_data(), "");
    for (limit, wanted) in [
        ("max_questions = 0", "recipes/r.toml:5:1: `max_questions` is 0"),
        ("max_questions = { real = 0 }", "`max_questions` is 0"),
        (
            "max_questions = { reel = 4 }",
            "recipes/r.toml:5:1: `max_questions` is given for `reel`, and `train` is [\"real\"]",
        ),
        ("max_questions = { synthetic = 4 }", "given for `synthetic`, and"),
        ("max_questions = \"half\"", "5:17: `max_questions` must be a number"),
        ("max_questions = -4", "`max_questions` must be a number"),
    ] {
        let limited = format!("{limit}\n[video]");
        refused(&good.replacen("[video]", &limited, 1), wanted);
    }
}

#[test]
fn damaged_checkpoints_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_dir(&golden("ckpt/tiny-qwen2-vl"), &model);
    let recipe = recipe(&model, demo_data(), "");
    let weights = model.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 1000]).unwrap();
    refused(&recipe, "model.safetensors: not a complete safetensors file");
    std::fs::write(&weights, &bytes).unwrap();
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    std::fs::write(
        model.join("config.json"),
        config.replace("\"intermediate_size\": 144", "\"intermediate_size\": 160"),
    )
    .unwrap();
    refused(
        &recipe,
        "`model.layers.0.mlp.down_proj.weight` is [64, 144], the model wants [64, 160]",
    );
    std::fs::write(
        model.join("config.json"),
        config.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2"),
    )
    .unwrap();
    let left_over =
        "model.safetensors: `model.layers.2.input_layernorm.weight` is [64], and config.json";
    refused(&recipe, left_over);
    let other = |from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        std::fs::write(model.join("config.json"), config.replacen(from, to, 1)).unwrap();
    };
    other("\"model_type\": \"qwen2_vl\"", "\"model_type\": \"llama\"");
    refused(&recipe, "`model_type` is `llama`; only `qwen2_vl` and `qwen2_5_vl`");
    other("\"num_attention_heads\": 4", "\"num_attention_heads\": 5");
    refused(&recipe, "`num_attention_heads` (5) does not divide hidden_size (64)");
    other("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3");
    refused(&recipe, "`num_key_value_heads` (3) does not divide num_attention_heads (4)");
    other("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
    refused(&recipe, "the checkpoint has no `model.layers.3.");
    std::fs::write(model.join("config.json"), "{").unwrap();
    refused(&recipe, "config.json:1:");
    std::fs::remove_file(&weights).unwrap();
    std::fs::write(model.join("config.json"), &config).unwrap();
    refused(&recipe, "no model.safetensors");
    let index = "model.safetensors.index.json";
    std::fs::write(model.join(index), "{\"weight_map\": {\"a\": \"model-1-of-2.safetensors\"}}")
        .unwrap();
    refused(&recipe, "model-1-of-2.safetensors: no such file, named by");
    // Beside a single file an index is what was left there.
    std::fs::write(&weights, &bytes).unwrap();
    TensorFiles::from_dir(&model).unwrap();
}

#[test]
fn files_of_different_models_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_dir(&golden("ckpt/tiny-qwen2-vl"), &model);
    let recipe = recipe(&model, demo_data(), "");
    // Returns what the file held.
    let change = |file: &str, pointer: &str, key: &str, value: u32| {
        let own = std::fs::read_to_string(model.join(file)).unwrap();
        let mut json: Value = serde_json::from_str(&own).unwrap();
        json.pointer_mut(pointer).unwrap()[key] = value.into();
        std::fs::write(model.join(file), json.to_string()).unwrap();
        own
    };
    for (file, key, value, wanted) in [
        ("config.json", "video_token_id", 10, "config.json: `video_token_id` is 10, and the"),
        ("preprocessor_config.json", "merge_size", 1, "`merge_size` is 1, and the vision tower's"),
        ("preprocessor_config.json", "patch_size", 16, "`patch_size` is 16, and the vision"),
        ("preprocessor_config.json", "temporal_patch_size", 1, "`temporal_patch_size` is 1, and"),
    ] {
        let own = change(file, "", key, value);
        refused(&recipe, wanted);
        std::fs::write(model.join(file), own).unwrap();
    }
    // `hf` would take another number of frames.
    change("config.json", "/vision_config", "temporal_patch_size", 1);
    change("preprocessor_config.json", "", "temporal_patch_size", 1);
    let hf = recipe.replacen("[video]", "[video]\nsampling = \"hf\"", 1);
    refused(&hf, "`temporal_patch_size` is 1, and sampling `hf` takes multiples of 2 frames");
}

#[test]
fn a_question_that_does_not_fit_is_named_before_weights_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_dir(&golden("ckpt/tiny-qwen2-vl"), &model);
    std::fs::remove_file(model.join("model.safetensors")).unwrap();
    let recipe = recipe(&model, demo_data(), "");
    let refused = |recipe: &str, wanted: &str| {
        refused(recipe, wanted);
        let planned = Workplace::new(recipe).with(&["plan", "recipes/r.toml"]);
        assert!(text(&planned.stderr).contains(wanted), "{}", text(&planned.stderr));
    };
    let lower = "lower video.max_pixels or video.max_frames; or leave the question out";
    let long = recipe.replace("max_new_tokens = 4", "max_new_tokens = 40_000");
    refused(
        &long,
        &format!("the model takes 32768\n  help: lower eval.max_new_tokens; or {lower}"),
    );
    let config = model.join("config.json");
    let own = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        own.replace("\"max_position_embeddings\": 32768", "\"max_position_embeddings\": 9"),
    )
    .unwrap();
    refused(&recipe, &format!("tokens, the model takes 9\n  help: {lower}"));
    std::fs::write(&config, own).unwrap();
    let path = model.join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    let last = added.last().unwrap().clone();
    for id in 654..=704 {
        let mut token = last.clone();
        token["id"] = id.into();
        token["content"] = if id == 704 { "Question:".into() } else { json!(format!("<|{id}|>")) };
        added.push(token);
    }
    std::fs::write(&path, json.to_string()).unwrap();
    let wanted = "the token `Question:` has the id 704, and the model's embedding 704 rows";
    refused(&recipe, wanted);
}

#[test]
fn damaged_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    copy_dir(demo_data(), &data);
    let recipe = recipe(&tiny(), &data, "");
    let davis = data.join("videos_real/davis");
    let video = std::fs::read_dir(&davis).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&video).unwrap();
    let name = video.file_name().unwrap().to_string_lossy().into_owned();
    std::fs::write(&video, &bytes[..bytes.len() / 2]).unwrap();
    refused(&recipe, &name);
    refused(&recipe, "names all such videos");
    std::fs::write(&video, "no video at all").unwrap();
    refused(&recipe, &name);
    std::fs::remove_file(&video).unwrap();
    refused(&recipe, &format!("{name}: no such file, used by `real/validation_"));
    std::fs::write(&video, &bytes).unwrap();
    std::fs::write(data.join("QA/real_mc.json"), "[{\"id\": 1,").unwrap();
    refused(&recipe, "real_mc.json:1:");
    std::fs::remove_file(data.join("QA/real_mc.json")).unwrap();
    refused(&recipe, "real_mc.json");
}

#[test]
fn a_video_whose_header_counts_hidden_frames_is_taken_as_read() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    copy_dir(demo_data(), &data);
    let video = std::fs::read_dir(data.join("videos_real/davis")).unwrap().next().unwrap().unwrap();
    let mut bytes = std::fs::read(golden("llamafactory/data/a.mp4")).unwrap();
    let duration = bytes.windows(4).position(|w| w == b"elst").unwrap() + 12;
    bytes[duration..duration + 4].copy_from_slice(&2000_u32.to_be_bytes());
    std::fs::write(video.path(), bytes).unwrap();
    let recipe = recipe(&tiny(), &data, "max_steps = 1");
    let output = Workplace::new(&recipe.replace("max_frames = 4", "max_frames = 8")).run();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn the_cache_changes_no_number() {
    let cache = tempfile::tempdir().unwrap();
    let recipe = |gib: f64| {
        let keys = format!("cache = {:?}\ncache_gib = {gib}\n[video]", cache.path());
        recipe(&tiny(), demo_data(), "max_steps = 2").replacen("[video]", &keys, 1)
    };
    let outcome = |gib: f64| {
        let place = Workplace::new(&recipe(gib));
        let output = place.run();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let read = |path: &str| std::fs::read(place.path(path)).unwrap();
        let files = ["after/predictions.jsonl", "adapter/adapter_model.safetensors"].map(read);
        (files, place.losses(), text(&output.stdout))
    };
    let (files, losses, stdout) = outcome(1.0);
    assert!(stdout.contains("\nvideos 0 from "), "{stdout}");
    let (warm, warm_losses, stdout) = outcome(1.0);
    assert!(stdout.contains(", 0 made in "), "{stdout}");
    assert!(warm == files && warm_losses == losses, "a warm cache changed the run");
    for entry in std::fs::read_dir(cache.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    }
    let (mended, mended_losses, stdout) = outcome(1.0);
    assert!(stdout.contains("damaged entries of the cache were made anew"), "{stdout}");
    assert!(mended == files && mended_losses == losses, "a damaged cache changed the run");
    let (off, off_losses, stdout) = outcome(0.0);
    assert!(stdout.contains("\nvideos ") && !stdout.contains(" from /"), "{stdout}");
    assert!(off == files && off_losses == losses, "the cache changed the run");
}

#[test]
fn links_and_pipes_stay_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let split = |out: &Path| {
        let mut command = program(dir.path());
        command.args(["data", "split"]).arg(demo_data()).arg("--out").arg(out);
        assert!(command.output().unwrap().status.success());
    };
    let [file, link, pipe] = ["file", "link", "pipe"].map(|name| dir.path().join(name));
    std::fs::write(&file, "old").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    split(&link);
    assert!(link.is_symlink());
    let wanted = std::fs::read_to_string(&file).unwrap();
    assert!(wanted.contains("real/validation_1"), "{wanted}");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let read = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read_to_string(pipe).unwrap()
    });
    split(&pipe);
    assert_eq!(read.join().unwrap(), wanted);
    assert!(!pipe.is_file());
    let [log, pending] = ["log", "pending"].map(|name| dir.path().join(name));
    std::fs::write(&log, "kept\n").unwrap();
    let out = std::fs::File::options().append(true).open(&log).unwrap();
    let mut command = program(dir.path());
    command.args(["data", "split"]).arg(demo_data()).args(["--out", "/dev/stdout"]);
    assert!(command.stdout(out).status().unwrap().success());
    assert!(std::fs::read_to_string(&log).unwrap().starts_with(&format!("kept\n{wanted}")));
    std::os::unix::fs::symlink("not yet", &pending).unwrap();
    split(&pending);
    assert!(pending.is_symlink() && dir.path().join("not yet").is_file());
}

#[test]
fn several_may_write_one_file_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let texts: Vec<String> = (0..8).map(|i| i.to_string().repeat(100_000 + i)).collect();
    for _ in 0..10 {
        std::thread::scope(|scope| {
            for text in &texts {
                let path = &path;
                scope.spawn(move || files::write(path, text).unwrap());
            }
        });
        assert!(texts.contains(&std::fs::read_to_string(&path).unwrap()));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_command_behind_an_option_is_told() {
    let place = Workplace::new("");
    let output = place.with(&["--runs", "runs", "eval", "recipes/r.toml"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("error: `eval` is a command and no recipe\n  help: "), "{stderr}");
}

/// Earlier versions took what is refused now.
#[test]
fn what_a_run_keeps_of_its_recipe_can_always_be_read() {
    let place = Workplace::new("");
    let kept = recipe(&tiny(), demo_data(), "vision_lr = 1e-4");
    let path = place.0.path().join("recipe.toml");
    std::fs::write(&path, kept).unwrap();
    let refused = Recipe::from_file(&path).unwrap_err().to_string();
    assert!(refused.contains("`vision_lr` is set"), "{refused}");
    let kept = Recipe::of_run(place.0.path()).unwrap();
    assert_eq!(kept.train.vision_lr, Some(1e-4));
}

#[test]
fn several_recipes_end_in_the_comparison() {
    let short = recipe(&tiny(), demo_data(), "max_steps = 1\ngrad_accum = 2");
    let place = Workplace::new(&short);
    let other = |text: &str| std::fs::write(place.0.path().join("recipes/s.toml"), text).unwrap();
    let run = || place.command().arg("recipes/s.toml").output().unwrap();
    // A slip in the second recipe is told before the first one starts.
    other(&short.replacen("lr = 1e-3", "lrr = 1e-3", 1));
    let output = run();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("recipes/s.toml:10:1: unknown field `lrr`"));
    assert!(!place.0.path().join("runs").exists(), "something was written");
    other(&short.replacen("[video]", "train = [\"sinthetic\"]\n[video]", 1));
    let output = run();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("sinthetic"), "{}", text(&output.stderr));
    assert!(!place.0.path().join("runs").exists(), "something was written");
    other(&short.replacen("max_new_tokens = 4", "max_new_tokens = 400_000", 1));
    let output = run();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("the model takes 128000"), "{}", text(&output.stderr));
    assert!(!place.0.path().join("runs").exists(), "something was written");
    let model = place.0.path().join("model");
    copy_dir(&tiny(), &model);
    let processor = model.join("preprocessor_config.json");
    let settings = std::fs::read_to_string(&processor).unwrap();
    let settings = settings.replace("\"patch_size\": 14", "\"patch_size\": 16");
    std::fs::write(&processor, settings).unwrap();
    other(&recipe(&model, demo_data(), "max_steps = 1\ngrad_accum = 2"));
    let output = run();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("`patch_size` is 16"), "{}", text(&output.stderr));
    assert!(!place.0.path().join("runs").exists(), "something was written");
    other(&short.replacen("[video]", "train = [\"synthetic\"]\n[video]", 1));
    let output = run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    for word in ["R − original", "S − R", "runs/compare.html"] {
        assert!(stdout.contains(word), "no `{word}` in\n{stdout}");
    }
    for file in ["compare.md", "compare.csv", "compare_differences.csv", "compare.html"] {
        assert!(place.0.path().join("runs").join(file).is_file(), "{file}");
    }
}

/// Runs a sound recipe and behind it `second`, and expects exit 2, one error that has `told` and
/// names the second, and nothing written; and that `plan` says the same.
fn refused_behind_another(second: &str, told: &str) {
    let place = Workplace::new(&recipe(&tiny(), demo_data(), "max_steps = 1"));
    std::fs::write(place.0.path().join("recipes/s.toml"), second).unwrap();
    let output = place.command().arg("recipes/s.toml").output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("error: recipes/s.toml:") && stderr.contains(told), "{stderr}");
    assert!(!place.0.path().join("runs").exists(), "something was written");
    let planned = text(&place.with(&["plan", "recipes/s.toml"]).stderr);
    assert!(planned.contains(told), "no `{told}` in\n{planned}");
}

#[test]
fn slips_of_later_recipes_are_told_before_the_first_one_starts() {
    let good = recipe(&tiny(), demo_data(), "max_steps = 1");
    let language = golden("tiny-qwen2.5-vl/adapter_step_5").display().to_string();
    let foreign = golden("tiny-qwen2-vl/adapter_step_5").display().to_string();
    let dir = tempfile::tempdir().unwrap();
    let ranked = dir.path().join("adapter");
    copy_dir(Path::new(&language), &ranked);
    let config = std::fs::read_to_string(ranked.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["r"] = 3.into();
    std::fs::write(ranked.join("adapter_config.json"), config.to_string()).unwrap();
    let idle = "`train.vision_lr` is set, and no layer of the part has an adapter\n  help: ";
    for (from, to, told) in [
        (
            "[lora]",
            "[lora]\ntarget_modules = [\"nope\"]".to_owned(),
            "recipes/s.toml:9:1: `lora.target_modules`: `nope` matches no linear layer",
        ),
        (
            "[lora]",
            "[lora]\ntarget_modules = \"q_proj\"".to_owned(),
            "`q_proj` matches no linear layer\n  help: \"all-linear\", or names such as [\"q_proj\", \
             \"v_proj\"]; a regular expression matches a whole name, such as \
             `model.layers.0.self_attn.q_proj`\n",
        ),
        (
            "[lora]",
            "[lora]\ntarget_modules = \"(?!.*visual).*\"".to_owned(),
            "recipes/s.toml:9:1: `lora.target_modules`: no regular expression known here: \
             look-around, including look-ahead and look-behind, is not supported\n  help: ",
        ),
        ("[lora]", format!("[lora]\nfrom = {ranked:?}"), "the model wants [3, "),
        ("[lora]", format!("[lora]\nfrom = {foreign:?}"), "was made for another model"),
        (
            "[lora]\n[train]",
            "[lora]\ntarget_modules = \".*layers.0.*q_proj\"\n[train]\nvision_lr = 1e-4".into(),
            &format!("recipes/s.toml:11:1: {idle}name one in lora.target_modules"),
        ),
        (
            "[lora]\n[train]",
            format!("[lora]\nfrom = {language:?}\n[train]\nvision_lr = 1e-4"),
            &format!("recipes/s.toml:11:1: {idle}the layers are those of lora.from"),
        ),
        (
            "[eval]",
            "[eval]\njudge = { kind = \"openai\", model = \"m\", key_env = \"NO_SUCH_KEY\" }"
                .into(),
            "recipes/s.toml:13:1: eval.judge: NO_SUCH_KEY is not set",
        ),
        (
            "[model]",
            "[model]\ndevice = \"gpu\"".into(),
            "recipes/s.toml:2:1: `model.device` is `gpu`",
        ),
        ("[data]\npath = \"", "[data]\npath = \"/nope".into(), "s.toml:4:1: /nope"),
    ] {
        assert!(good.contains(from), "{from}");
        refused_behind_another(&good.replacen(from, &to, 1), told);
    }
}

#[test]
fn damaged_weights_of_later_recipes_are_told_before_the_first_one_starts() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_dir(&golden("ckpt/tiny-qwen2-vl"), &model);
    let other = recipe(&model, demo_data(), "max_steps = 1");
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let deeper = config.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
    std::fs::write(model.join("config.json"), deeper).unwrap();
    refused_behind_another(&other, "model.safetensors: the checkpoint has no `model.layers.3.");
    std::fs::write(model.join("config.json"), config).unwrap();
    let weights = model.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 1000]).unwrap();
    refused_behind_another(&other, "model.safetensors: not a complete safetensors file");
    std::fs::remove_file(&weights).unwrap();
    refused_behind_another(&other, "no model.safetensors and no ");
}

#[test]
fn recipes_that_could_not_be_compared_are_refused_before_the_first_one_starts() {
    let good = recipe(&tiny(), demo_data(), "max_steps = 1");
    let place = Workplace::new(&good);
    // the same ids with other questions
    let reworded = place.0.path().join("reworded");
    copy_dir(demo_data(), &reworded);
    let path = reworded.join("QA/real_mc.json");
    let questions = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, questions.replace(" does the ", " did the ")).unwrap();
    let with = |key: &str| good.replacen("[video]", &format!("{key}\n[video]"), 1);
    for (other, why) in [
        (
            with("test = [\"synthetic\"]"),
            "one was tested on real, the other on synthetic: give both",
        ),
        (with("split = { test = 0.4 }"), "their data.split differs"),
        (recipe(&tiny(), &reworded, "max_steps = 1"), "their question files differ"),
    ] {
        std::fs::write(place.0.path().join("recipes/s.toml"), other).unwrap();
        let output = place.command().arg("recipes/s.toml").output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        let told = "runs/r and runs/s: not tested on the same questions: ";
        assert!(stderr.contains(told) && stderr.contains(why), "{stderr}");
        assert!(stderr.contains("or start the recipes one by one"), "{stderr}");
        assert!(!place.0.path().join("runs").exists(), "something was written");
    }
}

#[test]
fn a_recipe_may_go_on_from_what_an_earlier_one_trains() {
    let first = recipe(&tiny(), demo_data(), "max_steps = 1\ngrad_accum = 1");
    let place = Workplace::new(&first);
    let second = first.replacen("[lora]", "[lora]\nfrom = \"runs/r/adapter\"", 1);
    std::fs::write(place.0.path().join("recipes/s.toml"), second).unwrap();
    let run = || {
        let output = place.command().arg("recipes/s.toml").output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("original + runs/r/adapter"));
    };
    run();
    // Nor does one wait for what is lost there and made anew.
    std::fs::remove_dir_all(place.0.path().join("runs/s")).unwrap();
    std::fs::remove_file(place.path("adapter/adapter_model.safetensors")).unwrap();
    run();
}

#[test]
fn a_run_trains_on_what_its_recipe_names_alone() {
    let keys = "train = [\"synthetic\"]\nformats = [\"mc\"]\n[video]";
    let recipe = recipe(&tiny(), demo_data(), "epochs = 1.0\ngrad_accum = 1");
    let place = Workplace::new(&recipe.replacen("[video]", keys, 1));
    let output = place.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let split = std::fs::read(place.path("split.json")).unwrap();
    let split: Value = serde_json::from_slice(&split).unwrap();
    let n = |subset: &str, part: &str| split[subset][part].as_array().unwrap().len();
    assert_eq!(place.losses().len(), n("synthetic", "train"));
    let answers = std::fs::read_to_string(place.path("after/predictions.jsonl")).unwrap();
    assert_eq!(answers.lines().count(), 2 * n("real", "test"));
}

/// What one run trains on another validates on: the loss of the one is the other's.
#[test]
fn a_run_trains_and_validates_on_its_own_parts() {
    let file = std::fs::read_to_string(demo_data().join("QA/real_mc.json")).unwrap();
    let asked: Vec<Value> = serde_json::from_str(&file).unwrap();
    let ids: Vec<String> =
        asked.iter().map(|q| format!("real/{}", q["id"].as_str().unwrap())).collect();
    let dir = tempfile::tempdir().unwrap();
    let losses = |train: &[String], val: &[String]| {
        let file = dir.path().join("split.json");
        let split = json!({"real": {"seed": 0, "by": "question", "train": train, "val": val,
            "test": &ids[5..6]}});
        std::fs::write(&file, split.to_string()).unwrap();
        // One step over all, each question in both formats; its rate is 0.
        let steps = format!("max_steps = 1\ngrad_accum = {}\nbest = \"loss\"", 2 * train.len());
        let given = format!("split = {{ file = {file:?} }}\n[video]");
        let recipe = recipe(&tiny(), demo_data(), &steps).replacen("[video]", &given, 1);
        let place = Workplace::new(&recipe);
        let output = place.run();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let line = std::fs::read_to_string(place.path("validation.jsonl")).unwrap();
        let line: Value = serde_json::from_str(line.trim()).unwrap();
        (place.losses()[0].1, line["loss"].as_f64().unwrap())
    };
    let (a, b) = (losses(&ids[..3], &ids[3..5]), losses(&ids[3..5], &ids[..3]));
    assert!((a.0 / b.1 - 1.0).abs() < 1e-5 && (b.0 / a.1 - 1.0).abs() < 1e-5, "{a:?} {b:?}");
    assert!((a.0 / b.0 - 1.0).abs() > 1e-4, "{a:?}");
}

#[test]
fn a_change_is_after_minus_before_wherever_it_is_told() {
    let place = Workplace::new(&recipe(&tiny(), demo_data(), "max_steps = 1\ngrad_accum = 1"));
    assert!(place.run().status.success());
    for (stage, correct) in [("before", false), ("after", true)] {
        let path = place.path(&format!("{stage}/predictions.jsonl"));
        let lines = std::fs::read_to_string(&path).unwrap();
        let marked = lines.lines().map(|line| {
            let mut prediction: Value = serde_json::from_str(line).unwrap();
            prediction["correct"] = correct.into();
            format!("{prediction}\n")
        });
        std::fs::write(&path, marked.collect::<String>()).unwrap();
    }
    // As if killed in its report: the answers are read.
    std::fs::remove_file(place.path("report.md")).unwrap();
    let output = place.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    for word in ["before mc 0.0 ", "after  mc 100.0 ", "change mc +100.0 ["] {
        assert!(stdout.contains(word), "no `{word}` in\n{stdout}");
    }
    let read = |file: &str| std::fs::read_to_string(place.path(file)).unwrap();
    let metrics: Value = serde_json::from_str(&read("after/metrics.json")).unwrap();
    assert_eq!(metrics["mc"]["change"]["difference"], 1.0);
    let (report, html) = (read("report.md"), read("report.html"));
    let row = report.lines().find(|line| line.starts_with("| all |")).unwrap();
    assert!(row.ends_with("| +100.0 |") && row.find(" 0.0 [") < row.find(" 100.0 ["), "{row}");
    assert!(report.contains("Change +100.0 points") && html.contains("Change +100.0 points"));
    assert!(html.contains("0.0 → 100.0"));
}

#[test]
fn defaults_are_those_that_are_told() {
    let text = "[model]\npath = \"m\"\n[data]\npath = \"d\"\n[lora]\n";
    let values = Recipe::from_text(text, "r.toml").unwrap().values().unwrap();
    for (key, want) in [
        ("seed", "42"),
        ("data.split.by", "video"),
        ("data.split.test", "0.2"),
        ("data.mirror", "0.0"),
        ("video.sampling", "qwen"),
        ("video.fps", "2.0"),
        ("video.max_frames", "64"),
        ("video.max_pixels", "200704"),
        ("video.upright", "false"),
        ("lora.r", "8"),
        ("lora.alpha", "16.0"),
        ("lora.dropout", "0.0"),
        ("train.epochs", "3.0"),
        ("train.batch_size", "1"),
        ("train.grad_accum", "8"),
        ("train.lr", "0.0001"),
        ("train.schedule", "cosine"),
        ("train.warmup_ratio", "0.1"),
        ("train.weight_decay", "0.0"),
        ("train.max_grad_norm", "1.0"),
        ("train.loss", "sample"),
        ("train.shuffle", "true"),
        ("eval.prompt", "do"),
        ("eval.scoring", "text"),
        ("eval.max_new_tokens", "32"),
        ("eval.judge.kind", "rules"),
    ] {
        assert_eq!(values[key], want, "{key}");
    }
}
