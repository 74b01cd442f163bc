//! Exports: what they hold, that they are whole or absent, and that transformers and PEFT load them.
//!
//! That they do is tested where a Python with transformers and peft is at hand: `VLM4D_PYTHON`
//! (several, separated by `:`, try several versions), else `python3`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;
use vlm4d_train::cli::{dtype, size};
use vlm4d_train::data::split::By;
use vlm4d_train::data::vlm4d::Format;
use vlm4d_train::error::Error;
use vlm4d_train::eval::predict;
use vlm4d_train::export::{KeySpelling, Options, export};
use vlm4d_train::files::{remove_dir, write_dir};
use vlm4d_train::hash;
use vlm4d_train::model::hub;
use vlm4d_train::model::linear::cast;
use vlm4d_train::model::parameters;
use vlm4d_train::model::peft::{self, AdapterConfig};
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::model::tensor_files::write_tensors;
use vlm4d_train::recipe::{Lora, Recipe};
use vlm4d_train::report::terminal::Terminal;

use crate::support::model::{Batch, load_as, media, values};
use crate::support::run::{RunFolder, copy_dir};
use crate::support::{Golden, golden, max_difference, pythons, skipped};

/// Kinds of adapters: name and `[lora]`.
const KINDS: [(&str, &str); 6] = [
    ("lora", ""),
    ("everywhere", "scope = [\"language\", \"vision\", \"merger\"]"),
    ("vision", "scope = [\"vision\"]"),
    ("rslora", "use_rslora = true\ntarget_modules = [\"q_proj\", \"down_proj\"]"),
    // Matches modules that are no linear layers, and where embeddings are tied a head that has no
    // adapter.
    ("regex", r"target_modules = '.*visual\..*|.*\.mlp\..*|.*(lm_head|q_proj)'"),
    ("dora", "use_dora = true\nscope = [\"language\", \"vision\", \"merger\"]"),
];

/// A finished run with an adapter whose matrices are both random.
struct Trained {
    root: TempDir,
    dir: PathBuf,
    checkpoint: PathBuf,
    model: QwenVl,
}

fn trained(checkpoint: &str, lora: &str) -> Trained {
    let root = TempDir::new().unwrap();
    let checkpoint = golden(&format!("ckpt/{checkpoint}"));
    let shown = checkpoint.display().to_string();
    let dir = RunFolder { model: &shown, ..RunFolder::default() }.write(root.path(), "run");
    let lora: Lora = toml::from_str(lora).unwrap();
    let path = dir.join("recipe.toml");
    let mut recipe = Recipe::from_file(&path).unwrap();
    recipe.provenance.as_mut().unwrap().model_sha256 =
        hash::files(&checkpoint, hash::CHECKPOINT).unwrap();
    recipe.lora = Some(lora.clone());
    recipe.data.path = "hf://datasets/shijiezhou/VLM4D".into();
    std::fs::write(&path, recipe.to_toml().unwrap()).unwrap();
    let mut model = load_as(&checkpoint, DType::F32);
    peft::attach(&mut model, &lora, 7).unwrap();
    // B is zero at the start: such an adapter would show nothing.
    let mut turn = 0.0f32;
    let model = parameters::replace(model.train(), |name, value| {
        if !name.contains("lora_B") {
            return value;
        }
        let n = value.dims()[0];
        let noise = (0..n).map(|_| {
            turn += 1.0;
            0.05 * (turn * 12.9898).sin()
        });
        Tensor::from_data(TensorData::new(noise.collect::<Vec<f32>>(), [n]), &value.device())
    });
    let config = AdapterConfig::new(&lora, &shown);
    peft::save(&model, &config, &dir.join("adapter")).unwrap();
    Trained { root, dir, checkpoint, model: model.valid() }
}

/// Logits of the golden video prompt.
fn logits(model: &QwenVl, name: &str) -> Vec<f32> {
    let file = format!("{name}/forward_video.safetensors");
    let batch = Batch::read(model, &file, &[], &["vid_exact".into()]);
    let (ids, grids, _) = batch.prompt(model, 0);
    let features = [model.features(&media("vid_exact").pixel_values, grids[0].grid_thw)];
    let (hidden, _) = model.forward(&ids, &grids, &features, None).unwrap();
    values(model.logits(hidden.squeeze_dim::<2>(0)))
}

fn options(to: &Path) -> Options {
    Options {
        to: to.to_owned(),
        merge: false,
        key_spelling: None,
        shard_bytes: None,
        dtype: None,
        force: false,
    }
}

fn written(run: &Trained, to: &str, change: impl FnOnce(&mut Options)) -> PathBuf {
    let to = run.root.path().join(to);
    let mut options = options(&to);
    change(&mut options);
    if options.merge {
        options.shard_bytes.get_or_insert(100_000);
    }
    export(&run.dir, &options, &Terminal).unwrap_or_else(|e| panic!("{e}"));
    to
}

/// Names, types and shapes in a folder's safetensors files.
fn tensors(dir: &Path) -> BTreeMap<String, (Dtype, Vec<usize>)> {
    let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut found = BTreeMap::new();
    for path in files.filter(|path| path.extension().is_some_and(|end| end == "safetensors")) {
        let bytes = std::fs::read(path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            found.insert(name, (view.dtype(), view.shape().to_vec()));
        }
    }
    found
}

#[test]
fn merged_checkpoints_are_the_same_function() {
    for name in ["tiny-qwen2-vl", "tiny-qwen2.5-vl"] {
        for (kind, lora) in KINDS {
            let run = trained(name, lora);
            let merged = written(&run, "out/merged", |o| o.merge = true);
            assert_eq!(tensors(&merged), tensors(&run.checkpoint), "{name} {kind}");
            // Merged in memory and, where the checkpoint is bf16, rounded to it.
            let stored = if name == "tiny-qwen2-vl" { DType::F32 } else { DType::BF16 };
            let mut model = run.model.clone();
            for (_, layer) in model.linear_layers_mut() {
                if layer.lora.is_some() {
                    *layer = layer.clone().merge();
                    let rounded = cast(layer.weight.val(), stored);
                    layer.weight = cast(rounded, DType::F32).into();
                }
            }
            let got = logits(&load_as(&merged, DType::F32), name);
            let difference = max_difference(&got, &logits(&model, name));
            assert!(difference < 2e-4, "{name} {kind}: {difference:e}");
            let unmerged = logits(&run.model, name);
            if stored == DType::F32 {
                let difference = max_difference(&got, &unmerged);
                assert!(difference < 2e-4, "{name} {kind}: {difference:e}");
            }
            let plain =
                max_difference(&logits(&load_as(&run.checkpoint, DType::F32), name), &unmerged);
            assert!(plain > 2e-3, "{name} {kind}: the adapter changes nothing ({plain:e})");
        }
    }
}

#[test]
fn merged_checkpoints_are_laid_out_as_on_the_hub() {
    let run = trained("tiny-qwen2.5-vl", "");
    let merged = written(&run, "merged", |o| o.merge = true);
    let index = std::fs::read_to_string(merged.join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.keys().collect::<Vec<_>>(), tensors(&merged).keys().collect::<Vec<_>>());
    let shards: std::collections::BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    assert!(shards.len() > 3);
    let mut total = 0;
    for shard in shards {
        let bytes = std::fs::read(merged.join(shard)).unwrap();
        let sizes = SafeTensors::deserialize(&bytes).unwrap();
        let size: usize = sizes.tensors().iter().map(|(_, view)| view.data().len()).sum();
        assert!(size <= 100_000 || sizes.len() == 1, "{shard}: {size}");
        total += size;
    }
    assert_eq!(index["metadata"]["total_size"], total);
    for file in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "vocab.json",
        "merges.txt",
    ] {
        let read = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
        assert!(read(&merged) == read(&run.checkpoint), "{file}");
    }
    let one = written(&run, "one", |o| (o.merge, o.shard_bytes) = (true, Some(5_000_000_000)));
    assert!(one.join("model.safetensors").is_file());
    assert!(!one.join("model.safetensors.index.json").exists());
}

#[test]
fn a_whole_checkpoint_comes_in_the_type_asked_for() {
    let run = trained("tiny-qwen2-vl", "");
    // This checkpoint is in f32.
    let kept =
        logits(&load_as(&written(&run, "kept", |o| o.merge = true), DType::F32), "tiny-qwen2-vl");
    for (dtype, name, least, most) in [
        (Dtype::F32, "float32", 0.0, 0.0),
        (Dtype::BF16, "bfloat16", 1e-4, 0.2),
        (Dtype::F16, "float16", 1e-6, 0.03),
    ] {
        let cast = written(&run, name, |o| (o.merge, o.dtype) = (true, Some(dtype)));
        assert!(tensors(&cast).values().all(|(found, _)| *found == dtype), "{name}");
        let config = std::fs::read_to_string(cast.join("config.json")).unwrap();
        assert!(config.contains(&format!("\"torch_dtype\": \"{name}\"")), "{config}");
        let difference =
            max_difference(&logits(&load_as(&cast, DType::F32), "tiny-qwen2-vl"), &kept);
        assert!((least..=most).contains(&difference), "{name}: {difference:e}");
    }
    let mut of_adapter = options(&run.root.path().join("adapter"));
    of_adapter.dtype = Some(Dtype::BF16);
    let error = export(&run.dir, &of_adapter, &Terminal).unwrap_err();
    assert!(error.to_string().contains("--dtype is for whole checkpoints"), "{error}");
    (of_adapter.dtype, of_adapter.shard_bytes) = (None, Some(100_000));
    let error = export(&run.dir, &of_adapter, &Terminal).unwrap_err();
    assert!(error.to_string().contains("--shard-size is for whole checkpoints"), "{error}");
}

#[test]
fn adapters_are_spelled_both_ways() {
    let run = trained("tiny-qwen2-vl", "scope = [\"language\", \"vision\"]");
    let new = written(&run, "new", |_| ());
    let old = written(&run, "old", |o| o.key_spelling = Some(KeySpelling::Old));
    let starts = |dir: &Path| -> Vec<bool> {
        let names = tensors(dir);
        [
            "model.language_model.layers.0.",
            "model.layers.0.",
            "model.visual.blocks.0.",
            "visual.blocks.0.",
        ]
        .map(|start| names.keys().any(|n| n.starts_with(&format!("base_model.model.{start}"))))
        .into()
    };
    assert_eq!(starts(&new), [true, false, true, false]);
    assert_eq!(starts(&old), [false, true, false, true]);
    // Either is read here: an adapter that was trained elsewhere goes on.
    for dir in [&new, &old] {
        let mut model = load_as(&run.checkpoint, DType::F32);
        peft::load(&mut model, dir, 0.0).unwrap();
        let difference =
            max_difference(&logits(&model, "tiny-qwen2-vl"), &logits(&run.model, "tiny-qwen2-vl"));
        assert_eq!(difference, 0.0);
    }
}

#[test]
fn the_card_tells_data_recipe_and_numbers() {
    let run = trained("tiny-qwen2-vl", "");
    for (merge, library) in [(false, "library_name: peft"), (true, "library_name: transformers")] {
        let dir = written(&run, &format!("card_{merge}"), |o| o.merge = merge);
        let card = std::fs::read_to_string(dir.join("README.md")).unwrap();
        for part in [
            library,
            "- shijiezhou/VLM4D",
            "| MC | 80 | 30.0 [",
            "| 60.0 [",
            "| +30.0 [",
            "[lora]",
            "alpha = 16.0",
            "Guessing would get 25.0",
        ] {
            assert!(card.contains(part), "no `{part}` in\n{card}");
        }
        assert_eq!(card.contains("PeftModel"), !merge);
        assert_eq!(card.contains("here it is added to the weights"), merge);
        assert!(!card.contains("base_model:"), "a path on this machine is no model on the hub");
    }
}

#[test]
fn the_card_claims_what_the_run_did() {
    let run = trained("tiny-qwen2-vl", "");
    let card = |to: &str| {
        let dir = written(&run, to, |_| ());
        std::fs::read_to_string(dir.join("README.md")).unwrap()
    };
    let by_rules = card("rules");
    for part in [
        "pipeline_tag: video-text-to-text",
        "questions about motion in video, those of real, and tested on questions of real that",
        "trained on, split by video.",
        "questions as VLM4D's evaluation puts them",
        "Graded: MC by rules; FF by rules.",
        "✻ marks fewer than 30 videos",
        "it takes questions as independent",
    ] {
        assert!(by_rules.contains(part), "no `{part}` in\n{by_rules}");
    }
    let path = run.dir.join("recipe.toml");
    let mut recipe = Recipe::from_file(&path).unwrap();
    recipe.data.split.by = By::Question;
    recipe.data.train = vec!["bears".into()];
    std::fs::write(&path, recipe.to_toml().unwrap()).unwrap();
    let path = run.dir.join("after/predictions.jsonl");
    let mut after = predict::read(&path).unwrap();
    for p in after.iter_mut().filter(|p| p.format == Format::Mc) {
        p.grader = "logprob".into();
    }
    predict::write(&path, &after).unwrap();
    let by_letters = card("letters");
    for part in [
        "pipeline_tag: image-text-to-text",
        "conversations, those of bears, and tested on questions of real that it was not",
        "trained on, split by question.",
        "Graded: MC by logprob; FF by rules.",
        "conversations as they stand in the data",
    ] {
        assert!(by_letters.contains(part), "no `{part}` in\n{by_letters}");
    }
}

#[test]
fn an_export_is_whole_or_absent() {
    let run = trained("tiny-qwen2-vl", "");
    let to = run.root.path().join("out");
    let refused = |options: &Options, wanted: &str| {
        let error = export(&run.dir, options, &Terminal).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(wanted), "no `{wanted}` in\n{error}");
    };
    let forced = |to: &Path| Options { force: true, ..options(to) };
    written(&run, "out", |_| ());
    refused(&options(&to), "out: is there already");
    export(&run.dir, &forced(&to), &Terminal).unwrap();
    // Never what is read or was trained from, nor what is no export.
    let checkpoint = &run.checkpoint;
    for taken in [run.root.path(), &run.dir, &run.dir.join("adapter"), &run.dir.join("model/new")] {
        refused(&forced(taken), "which must stay");
    }
    for merge in [false, true] {
        for taken in [checkpoint.as_path(), &checkpoint.join("new"), checkpoint.parent().unwrap()] {
            refused(&Options { merge, ..forced(taken) }, "which must stay");
        }
    }
    let foreign = run.root.path().join("foreign");
    std::fs::create_dir_all(&foreign).unwrap();
    for (file, content) in [("config.json", "{}"), ("README.md", "# Qwen2.5-VL\n")] {
        std::fs::write(foreign.join(file), content).unwrap();
        refused(&forced(&foreign), "holds other things than an export");
    }
    // Nor what lies beside one: files of a checkpoint's kinds neither.
    for own in ["notes.txt", "results.json", "model-mine-of-all.safetensors"] {
        std::fs::write(to.join(own), "").unwrap();
        for merge in [false, true] {
            let wanted = format!("holds other things than an export: `{own}`");
            refused(&Options { merge, ..forced(&to) }, &wanted);
        }
        std::fs::remove_file(to.join(own)).unwrap();
    }
    // A merged export has small files of the checkpoint's own, and an adapter may take its place.
    let mut recipe = Recipe::from_file(&run.dir.join("recipe.toml")).unwrap();
    let own = run.root.path().join("own");
    copy_dir(checkpoint, &own);
    std::fs::write(own.join("NOTICE.txt"), "").unwrap();
    std::fs::write(to.join("NOTICE.txt"), "").unwrap();
    refused(&forced(&to), &format!("remove {}", to.join("NOTICE.txt").display()));
    let recorded = recipe.model.path.clone();
    let with_model = |recipe: &mut Recipe, path: &str| {
        recipe.model.path = path.to_owned();
        std::fs::write(run.dir.join("recipe.toml"), recipe.to_toml().unwrap()).unwrap();
    };
    with_model(&mut recipe, &own.display().to_string());
    export(&run.dir, &forced(&to), &Terminal).unwrap();
    // Told before the checkpoint is looked for.
    with_model(&mut recipe, "nowhere");
    let merged = Options { merge: true, ..forced(&foreign) };
    refused(&merged, "holds other things than an export");
    with_model(&mut recipe, &recorded);
    // A link stays, and what it leads to is replaced.
    let link = run.root.path().join("link");
    std::os::unix::fs::symlink("out", &link).unwrap();
    std::fs::remove_file(to.join("adapter_config.json")).unwrap();
    export(&run.dir, &forced(&link), &Terminal).unwrap();
    assert!(link.is_symlink() && to.join("adapter_config.json").is_file());
    std::fs::create_dir_all(to.join("papers")).unwrap();
    refused(&forced(&to), "holds other things than an export: `papers`");
    assert!(to.join("papers").is_dir() && foreign.join("config.json").is_file());
    for nameless in [Path::new("."), &run.root.path().join("free/..")] {
        refused(&forced(nameless), "has no name");
    }
    // A damaged adapter is found before anything has the target's name.
    let adapter = run.dir.join("adapter/adapter_model.safetensors");
    let bytes = std::fs::read(&adapter).unwrap();
    std::fs::write(&adapter, &bytes[..bytes.len() - 4]).unwrap();
    let fresh = run.root.path().join("fresh");
    let mut whole = options(&fresh);
    whole.merge = true;
    refused(&whole, "not a complete safetensors file");
    let left = std::fs::read_dir(run.root.path()).unwrap().map(|e| e.unwrap().file_name());
    let left: Vec<String> = left.map(|name| name.to_string_lossy().into_owned()).collect();
    assert!(!left.iter().any(|name| name.starts_with("fresh")), "{left:?}");
    std::fs::write(&adapter, &bytes).unwrap();
    // Another checkpoint under the same path is not the one that was trained.
    let path = run.dir.join("recipe.toml");
    let mut recipe = Recipe::from_file(&path).unwrap();
    recipe.provenance.as_mut().unwrap().model_sha256 = "0".into();
    std::fs::write(&path, recipe.to_toml().unwrap()).unwrap();
    refused(&whole, "not the checkpoint that the run was trained on");
}

#[test]
fn what_a_killed_export_left_is_not_published() {
    let run = trained("tiny-qwen2-vl", "");
    let left = [(".out.partial", false), (".out.partial", true), ("out.old.partial", false)];
    for (left, merge) in left {
        let left = run.root.path().join(left);
        std::fs::create_dir_all(&left).unwrap();
        std::fs::write(left.join("model-00001-of-99999.safetensors"), "half").unwrap();
        let to = written(&run, "out", |o| (o.merge, o.force) = (merge, true));
        assert!(!to.join("model-00001-of-99999.safetensors").exists(), "merge {merge}");
        assert!(!left.exists());
    }
}

#[test]
fn a_folder_goes_only_when_another_has_its_place() {
    let root = TempDir::new().unwrap();
    let to = root.path().join("to");
    std::fs::create_dir(&to).unwrap();
    std::fs::write(to.join("old"), "").unwrap();
    let broken = write_dir(&to, |dir| {
        std::fs::write(dir.join("half"), "").unwrap();
        Err::<(), _>(Error::run("broken"))
    });
    assert_eq!(broken.unwrap_err().to_string(), Error::run("broken").to_string());
    let replaced = write_dir(&to, |_| {
        assert!(to.join("old").is_file());
        let refused = write_dir(&to, |_| Ok(())).unwrap_err().to_string();
        assert!(refused.contains("another process is at work in it"), "{refused}");
        Ok(())
    });
    replaced.unwrap();
    assert!(!to.join("old").exists());
    // A process that was killed between the two left the earlier one beside its place.
    let left = root.path().join("to.old.partial");
    std::fs::rename(&to, &left).unwrap();
    write_dir(&to, remove_dir).unwrap_err();
    assert!(to.is_dir() && !left.exists());
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    // A name that leaves no room for what is appended to it is refused before anything is written.
    let long = root.path().join("n".repeat(244));
    let refused = write_dir(&long, |_| -> Result<(), _> { panic!("something was written") });
    assert!(refused.unwrap_err().to_string().contains("help: give a shorter name"));
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn sizes_are_read() {
    assert_eq!(size("5GB"), Ok(5_000_000_000));
    assert_eq!(size("1.5 MiB"), Ok(1_572_864));
    assert_eq!(size("200"), Ok(200));
    let types = ["bf16", "f16", "f32"].map(dtype);
    assert_eq!(types, [Ok(Dtype::BF16), Ok(Dtype::F16), Ok(Dtype::F32)]);
    for wrong in ["", "GB", "-1GB", "5 potatoes", "0"] {
        assert!(size(wrong).is_err(), "{wrong}");
    }
}

/// Writes a case for the script: exports, inputs and our logits.
fn case(root: &Path, name: &str, kind: &str, lora: &str) -> PathBuf {
    let run = trained(name, lora);
    let dir = root.join(format!("{name}-{kind}"));
    for (to, merge, key_spelling) in [
        ("new", false, Some(KeySpelling::New)),
        ("old", false, Some(KeySpelling::Old)),
        ("merged", true, None),
    ] {
        let shard_bytes = merge.then_some(100_000);
        let options = Options { merge, key_spelling, shard_bytes, ..options(&dir.join(to)) };
        export(&run.dir, &options, &Terminal).unwrap();
    }
    let inputs = golden(&format!("{name}/forward_video.safetensors"));
    let about = json!({
        "base": run.checkpoint,
        "inputs": inputs,
        "pixels": golden("processor/vid_exact.safetensors"),
    });
    std::fs::write(dir.join("case.json"), about.to_string()).unwrap();
    let width = Golden::read(&format!("{name}/forward_video.safetensors")).f32("logits").1[2];
    let named = [("adapter", &run.model), ("merged", &load_as(&dir.join("merged"), DType::F32))];
    let tensors = named.map(|(key, model)| {
        let logits = logits(model, name);
        let shape = vec![logits.len() / width, width];
        (key.to_owned(), (logits, shape))
    });
    write_tensors(&dir.join("logits.safetensors"), &tensors.into()).unwrap();
    dir
}

#[test]
fn transformers_and_peft_load_the_exports() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/check_export.py");
    let root = TempDir::new().unwrap();
    let mut cases: Vec<PathBuf> = Vec::new();
    for python in &pythons() {
        let command = |cases: &[PathBuf]| {
            let mut command = Command::new(python);
            command.env("HF_HUB_OFFLINE", "1").arg(&script).args(cases).output()
        };
        let missing = match command(&[]) {
            Err(e) => Some(e.to_string()),
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        };
        if let Some(missing) = missing {
            skipped(&format!(
                "{python}: {missing}; VLM4D_PYTHON may name one with transformers and peft"
            ));
            continue;
        }
        if cases.is_empty() {
            let all = ["tiny-qwen2-vl", "tiny-qwen2.5-vl"].into_iter();
            let all = all.flat_map(|name| KINDS.map(|(kind, lora)| (name, kind, lora)));
            cases = all.map(|(name, kind, lora)| case(root.path(), name, kind, lora)).collect();
        }
        let output = command(&cases).unwrap();
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|o| String::from_utf8_lossy(&o).into_owned());
        assert!(output.status.success(), "{python}\n{stdout}\n{stderr}");
        println!("{stdout}");
    }
}

#[test]
fn a_fully_fine_tuned_run_exports_what_it_trained() {
    let (name, run) = ("tiny-qwen2-vl", trained("tiny-qwen2-vl", ""));
    let mut model = run.model.clone();
    for (_, layer) in model.linear_layers_mut() {
        *layer = layer.clone().merge();
    }
    hub::save(&model, &run.checkpoint, &run.dir.join("model")).unwrap();
    std::fs::remove_dir_all(run.dir.join("adapter")).unwrap();
    let path = run.dir.join("recipe.toml");
    let mut recipe = Recipe::from_file(&path).unwrap();
    recipe.lora = None;
    std::fs::write(&path, recipe.to_toml().unwrap()).unwrap();
    let spelled = Options { key_spelling: Some(KeySpelling::Old), ..options(&run.dir.join("no")) };
    let error = export(&run.dir, &spelled, &Terminal).unwrap_err();
    assert!(error.to_string().contains("--key-spelling is for adapters"), "{error}");
    let merged = Options { merge: true, ..options(&run.dir.join("no")) };
    let error = export(&run.dir, &merged, &Terminal).unwrap_err();
    assert!(error.to_string().contains("--merge is for adapters"), "{error}");
    let to = written(&run, "full", |_| ());
    assert_eq!(logits(&load_as(&to, DType::F32), name), logits(&model, name));
    let card = std::fs::read_to_string(to.join("README.md")).unwrap();
    assert!(card.contains("A fully fine-tuned checkpoint"), "{card}");
    assert!(!card.contains("PeftModel") && !card.contains("\n- lora\n"), "{card}");
}
