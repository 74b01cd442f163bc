//! Every kind of training against PEFT and PyTorch: rsLoRA, DoRA, adapters of the vision tower and
//! of the merger, ranks by pattern, a rate of its own for B, and full fine-tuning with weight decay.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::{Value, json};
use vlm4d_train::model::config::Config;
use vlm4d_train::model::lora::Lora as Adapter;
use vlm4d_train::model::nf4::{NESTED_CODE, Nf4};
use vlm4d_train::model::parameters::{self, Named};
use vlm4d_train::model::peft::{self, AdapterConfig};
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::model::tensor_files::{HostTensors, TensorFiles, write_tensors};
use vlm4d_train::model::weights::module_name;
use vlm4d_train::recipe::{Lora, Part, Quantize, TargetModules, Train};
use vlm4d_train::train::optimiser::{AdamW, clip_factor, global_norm};
use vlm4d_train::train::schedule::Rates;

use crate::support::model::{
    Batch, beside, load, load_as, load_quantised, one_batch, setup, values,
};
use crate::support::run::{Workplace, copy_dir, demo_data, recipe, text, tiny};
use crate::support::{
    CHECKPOINTS, Golden, alone, golden, json, max_difference, relative_difference,
};

const KINDS: [&str; 7] =
    ["rslora", "dora", "vision", "all_dora", "patterns", "nf4", "nf4_all_dora"];

fn kind_dir(checkpoint: &str, kind: &str) -> PathBuf {
    golden(&format!("kinds/{checkpoint}/{kind}"))
}

/// The checkpoint as the adapters of `kind` have it under them.
fn base(checkpoint: &str, kind: &str) -> QwenVl {
    let quantize = kind.starts_with("nf4").then_some(Quantize::Nf4);
    load_quantised(&golden(&format!("ckpt/{checkpoint}")), DType::F32, quantize)
}

fn steps(checkpoint: &str, kind: &str) -> Value {
    json(&format!("kinds/{checkpoint}/{kind}/steps.json"))
}

fn video(model: &QwenVl, checkpoint: &str) -> Batch {
    let file = format!("{checkpoint}/forward_video.safetensors");
    Batch::read(model, &file, &[], &["vid_exact".into()])
}

/// The logits at the last 8 positions.
fn last_logits(model: &QwenVl, batch: &Batch) -> Vec<f32> {
    let (ids, grids, features) = batch.prompt(model, 0);
    let (hidden, _) = model.forward(&ids, &grids, &features, None).unwrap();
    values(model.logits(hidden.narrow(1, ids.len() - 8, 8).squeeze_dim::<2>(0)))
}

/// Checks `got` against the tensors of `want` whose names start with `prefix`.
fn check(what: &str, model: &QwenVl, got: &Named, want: &Golden, prefix: &str, tolerance: f64) {
    for (name, got, want) in beside(model, got, want, prefix) {
        let difference = relative_difference(&got, &want);
        // Softmax does not see what all keys share: this gradient is mostly rounding error, and
        // Adam's first steps are as long for it as for any other.
        let blind = name.ends_with("k_proj.bias");
        let tolerance = if blind { 100.0 * tolerance } else { tolerance };
        assert!(difference < tolerance, "{what} {name}: {difference:e}");
    }
}

/// Steps on one batch as the golden took them; checks loss and gradient norm of each.
fn train(
    what: &str,
    mut model: QwenVl,
    batch: &Batch,
    golden: &Value,
    rates: Rates,
    tolerance: f64,
) -> QwenVl {
    let number = |key: &str| golden[key].as_f64().unwrap();
    let mut optimiser = AdamW::new(number("weight_decay"));
    for (i, step) in golden["steps"].as_array().unwrap().iter().enumerate() {
        let train = one_batch(1, i % 2 == 0);
        let (loss, gradients) = setup(&train, &batch.samples, batch).gradients(&model, 0).unwrap();
        let norm = global_norm(&gradients).unwrap();
        for (name, got, want) in [("loss", loss, "loss"), ("norm", norm, "grad_norm")] {
            let want = step[want].as_f64().unwrap();
            assert!((got / want - 1.0).abs() < tolerance, "{what} step {i} {name}: {got} {want}");
        }
        model = optimiser.update(
            model,
            |name| rates.of(name),
            &gradients,
            clip_factor(norm, number("max_grad_norm")),
        );
    }
    model
}

#[test]
fn every_kind_of_adapter_equals_peft() {
    for checkpoint in CHECKPOINTS {
        for kind in KINDS {
            let (dir, what) = (kind_dir(checkpoint, kind), format!("{checkpoint} {kind}"));
            let mut model = base(checkpoint, kind);
            let config = peft::load(&mut model, &dir, 0.0).unwrap();
            let want = Golden::open(&dir.join("case.safetensors"));
            let batch = video(&model, checkpoint);
            let difference = max_difference(&last_logits(&model, &batch), want.f32("logits").0);
            assert!(difference < 2e-4, "{what} logits: {difference:e}");
            let model = model.train();
            for recompute in [true, false] {
                let train = one_batch(1, recompute);
                let (loss, gradients) =
                    setup(&train, &batch.samples, &batch).gradients(&model, 0).unwrap();
                let expected = f64::from(want.f32("loss").0[0]);
                assert!((loss / expected - 1.0).abs() < 1e-5, "{what}: {loss} {expected}");
                check(&what, &model, &gradients, &want, "grad.", 1e-4);
            }
            let log = steps(checkpoint, kind);
            let lora = Lora { plus_ratio: log["plus_ratio"].as_f64(), ..Lora::default() };
            let recipe = Train { lr: log["lr"].as_f64().unwrap(), ..Train::default() };
            let model = train(&what, model, &batch, &log, Rates::new(&recipe, Some(&lora)), 2e-5);
            let trained = parameters::trained_values(&model);
            check(&what, &model, &trained, &want, "after.", 1e-4);
            // Out and in again: the same function; and merged.
            let out = tempfile::tempdir().unwrap();
            peft::save(&model, &config, out.path()).unwrap();
            let mut again = base(checkpoint, kind);
            assert_eq!(peft::load(&mut again, out.path(), 0.0).unwrap(), config);
            let logits = last_logits(&again, &batch);
            assert_eq!(logits, last_logits(&model.valid(), &batch), "{what}");
            assert_eq!(
                logits,
                last_logits(&again.for_inference(), &batch),
                "{what} for answers alone"
            );
            if !want.has("merged_logits") {
                continue;
            }
            for (_, layer) in again.linear_layers_mut() {
                *layer = layer.clone().merge();
            }
            let merged = max_difference(&last_logits(&again, &batch), want.f32("merged_logits").0);
            assert!(merged < 3e-4, "{what} merged: {merged:e}");
        }
    }
}

#[test]
fn nf4_equals_bitsandbytes() {
    for checkpoint in CHECKPOINTS {
        let want = Golden::open(&kind_dir(checkpoint, "nf4").join("weights.safetensors"));
        let layers = parameters::quantised(&base(checkpoint, "nf4"));
        let mut made: BTreeMap<String, Nf4> =
            layers.into_iter().map(|(name, weight)| (module_name(&name), weight)).collect();
        assert!(!made.keys().any(|name| name.contains("lm_head") || name.contains("patch_embed")));
        let odd = want.f32("odd").0.to_vec();
        let odd = Nf4::new(odd, [5, 30], DType::F32, &Device::flex());
        made.insert("odd.values".into(), odd);
        assert_eq!(want.f32("nested_code").0, *NESTED_CODE);
        let is_made = |name: &&String| !["odd", "nested_code"].contains(&&***name);
        let names: Vec<&String> = want.names().filter(is_made).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        for name in names {
            let (want, got) = (want.f32(name).0, made[name].values().transpose());
            let difference = max_difference(&values(got), want);
            assert!(difference < 2e-7, "{checkpoint} {name}: {difference:e}");
        }
    }
}

#[test]
fn full_steps_equal_pytorch() {
    for checkpoint in CHECKPOINTS {
        let model = load(checkpoint).train_all_but(&[]).train();
        let (batch, log) = (video(&model, checkpoint), steps(checkpoint, "full"));
        let recipe = Train {
            lr: log["lr"].as_f64().unwrap(),
            vision_lr: log["vision_lr"].as_f64(),
            ..Train::default()
        };
        // Adam's first steps are as long for the smallest gradient as for the largest: where one is
        // all rounding error, so is its step.
        let model = train(checkpoint, model, &batch, &log, Rates::new(&recipe, None), 2e-4);
        let want = Golden::open(&kind_dir(checkpoint, "full").join("after.safetensors"));
        let trained = parameters::trained_values(&model);
        check(checkpoint, &model, &trained, &want, "", 1e-3);
    }
}

#[test]
fn adapters_are_written_as_peft_writes_them() {
    for checkpoint in CHECKPOINTS {
        let plain = golden(&format!("{checkpoint}/adapter_step_5"));
        for from in KINDS.map(|kind| kind_dir(checkpoint, kind)).into_iter().chain([plain]) {
            let mut model = load(checkpoint);
            let config = peft::load(&mut model, &from, 0.0).unwrap();
            let dir = tempfile::tempdir().unwrap();
            peft::save(&model.train(), &config, dir.path()).unwrap();
            let [got, want] =
                [dir.path(), &from].map(|d| Golden::open(&d.join("adapter_model.safetensors")));
            assert!(got.names().eq(want.names()), "{}", from.display());
            for key in want.names() {
                assert_eq!(got.f32(key), want.f32(key), "{key}");
            }
        }
    }
}

/// PEFT's rsLoRA adapter with the `keys` of its configuration set anew.
fn with_keys(checkpoint: &str, keys: &Value) -> tempfile::TempDir {
    let (from, to) = (kind_dir(checkpoint, "rslora"), tempfile::tempdir().unwrap());
    copy_dir(&from, to.path());
    let path = to.path().join("adapter_config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    std::fs::write(path, config.to_string()).unwrap();
    to
}

#[test]
fn adapters_that_cannot_be_read_as_they_are_meant_are_refused() {
    let read = |key: &str, value: Value| {
        let dir = with_keys(CHECKPOINTS[0], &json!({(key): value}));
        AdapterConfig::from_dir(dir.path()).map_err(|e| e.to_string())
    };
    for initial in ["pissa", "pissa_niter_16", "OLoRA", "corda", "loftq", "lora_ga"] {
        let error = read("init_lora_weights", initial.into()).unwrap_err();
        assert!(error.contains(&format!("`init_lora_weights` is {initial}")), "{error}");
    }
    for initial in [json!(false), json!("gaussian"), json!("eva"), json!("orthogonal")] {
        assert!(read("init_lora_weights", initial.clone()).is_ok(), "{initial}");
    }
    for (key, value) in [
        ("alora_invocation_tokens", json!([1, 2])),
        ("use_qalora", json!(true)),
        ("kasa_config", json!({"beta": 1e-4})),
        ("layer_replication", json!([[0, 2], [1, 3]])),
        ("modules_to_save", json!(["lm_head"])),
    ] {
        let error = read(key, value).unwrap_err();
        assert!(error.contains(&format!("`{key}` is set")), "{error}");
        assert!(read(key, Value::Null).is_ok(), "{key}");
    }
    for key in ["rank_pattern", "alpha_pattern"] {
        let error = read(key, json!({"q_proj": 2, "(?!.*v)k_proj": 3})).unwrap_err();
        assert!(error.contains(&format!("`(?!.*v)k_proj` in `{key}`")), "{error}");
    }
}

#[test]
fn an_adapter_is_told_of_by_the_names_that_it_is_written_with() {
    for checkpoint in CHECKPOINTS {
        let dir = with_keys(
            checkpoint,
            &json!({
                "target_modules": ["q_proj", "v_proj", "down_proj"],
                "alpha_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 3.0},
                "rank_pattern": {"lm_head": 2},
            }),
        );
        let mut model = load(checkpoint);
        let config = peft::load(&mut model, dir.path(), 0.0).unwrap();
        peft::save(&model.clone().train(), &config, dir.path()).unwrap();
        let mut again = load(checkpoint);
        let written = peft::load(&mut again, dir.path(), 0.0).unwrap();
        let name = "model.language_model.layers.0.self_attn.q_proj";
        assert_eq!(json!(written.alpha_pattern), json!({(name): 3.0}));
        assert_eq!(written.rank_pattern, config.rank_pattern);
        let targets = written.target_modules.as_array().unwrap();
        let mut scaled = 0;
        for ((hub, layer), (_, again)) in
            model.linear_layers_mut().into_iter().zip(again.linear_layers_mut())
        {
            let scaling = layer.lora.as_ref().map(|lora| lora.scaling);
            assert_eq!(scaling, again.lora.as_ref().map(|lora| lora.scaling), "{hub}");
            assert_eq!(scaling.is_some(), targets.contains(&module_name(&hub).into()), "{hub}");
            scaled += usize::from(scaling.is_some());
        }
        assert_eq!(scaled, targets.len());
    }
}

/// The folder of a new adapter, and its configuration as it is read again.
fn saved(checkpoint: &str, recipe: &Lora) -> (tempfile::TempDir, AdapterConfig) {
    let (mut model, dir) = (load(checkpoint), tempfile::tempdir().unwrap());
    peft::attach(&mut model, recipe, 0).unwrap();
    peft::save(&model.train(), &AdapterConfig::new(recipe, "base"), dir.path()).unwrap();
    let config = AdapterConfig::from_dir(dir.path()).unwrap();
    (dir, config)
}

/// Hub names of the layers to which `recipe` gives an adapter.
fn attached(checkpoint: &str, recipe: &Lora) -> Vec<String> {
    let mut model = load(checkpoint);
    peft::attach(&mut model, recipe, 0).unwrap();
    let layers = model.linear_layers_mut();
    layers.into_iter().filter(|(_, layer)| layer.lora.is_some()).map(|(name, _)| name).collect()
}

#[test]
fn a_run_that_goes_on_from_an_adapter_tells_its_own_base_and_dropout() {
    let from = kind_dir("tiny-qwen2.5-vl", "rslora");
    let plain = recipe(&tiny(), demo_data(), "max_steps = 1\ngrad_accum = 1");
    let lora = format!("[lora]\nfrom = {:?}\ndropout = 0.25", from.display().to_string());
    let place = Workplace::new(&plain.replacen("[lora]", &lora, 1));
    let output = place.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let config = AdapterConfig::from_dir(&place.path("adapter")).unwrap();
    assert_eq!(config.base_model_name_or_path, Some(tiny().display().to_string()));
    assert_eq!((config.lora_dropout, config.r, config.use_rslora), (0.25, 4, true));
}

fn names(names: &[&str]) -> TargetModules {
    TargetModules::Names(names.iter().map(|name| (*name).to_owned()).collect())
}

#[test]
fn every_name_of_a_list_is_that_of_a_layer() {
    let everywhere = Some(vec![Part::Language, Part::Vision, Part::Merger]);
    for checkpoint in CHECKPOINTS {
        for (list, what, fix) in [
            (["q_proj", "v_porj"], "`v_porj` matches no linear layer", "or names such as"),
            (["q_proj", "qkv"], "`qkv` matches no linear layer", "add that to `lora.scope`"),
            (["q_proj", "layers.99.self_attn.q_proj"], "`layers.99.", "or names such as"),
        ] {
            let recipe = Lora { target_modules: names(&list), ..Lora::default() };
            let error = peft::attach(&mut load(checkpoint), &recipe, 0).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains(fix), "{error}");
            let config = Config::from_dir(&golden(&format!("ckpt/{checkpoint}"))).unwrap();
            assert_eq!(peft::sizes(&recipe, &config).unwrap_err().to_string(), error);
        }
        // The name of a whole layer, in any spelling and cut off at any point.
        for (name, want) in [
            ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
            ("model.language_model.layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj"),
            ("layers.1.self_attn.k_proj", "model.layers.1.self_attn.k_proj"),
            ("visual.blocks.0.attn.qkv", "visual.blocks.0.attn.qkv"),
            ("model.visual.blocks.1.attn.proj", "visual.blocks.1.attn.proj"),
            ("merger.mlp.0", "visual.merger.mlp.0"),
        ] {
            let (target_modules, scope) = (names(&[name]), everywhere.clone());
            let recipe = Lora { target_modules, scope, ..Lora::default() };
            assert_eq!(attached(checkpoint, &recipe), [want], "{checkpoint}");
        }
    }
}

#[test]
fn scope_and_targets_say_which_layers_adapt() {
    for checkpoint in CHECKPOINTS {
        let all: Vec<String> =
            load(checkpoint).linear_layers_mut().into_iter().map(|(name, _)| name).collect();
        for part in [Part::Language, Part::Vision, Part::Merger] {
            let recipe = Lora { scope: Some(vec![part]), ..Lora::default() };
            // As PEFT's all-linear: every linear layer but the output head.
            let want = all.iter().filter(|name| Part::of(name) == part && *name != "lm_head");
            assert!(attached(checkpoint, &recipe).iter().eq(want), "{checkpoint} {part:?}");
        }
        if all.iter().any(|name| name == "lm_head") {
            let recipe = Lora { target_modules: names(&["q_proj", "lm_head"]), ..Lora::default() };
            assert!(attached(checkpoint, &recipe).contains(&"lm_head".to_owned()));
        }
        let scope = Some(vec![Part::Language, Part::Vision]);
        let recipe = Lora { target_modules: names(&["q_proj", "qkv"]), ..Lora::default() };
        let both = attached(checkpoint, &Lora { scope: scope.clone(), ..recipe });
        for end in ["q_proj", "attn.qkv"] {
            assert!(both.iter().any(|name| name.ends_with(end)), "no {end} in {both:?}");
        }
        assert!(both.iter().all(|name| name.ends_with("q_proj") || name.ends_with("qkv")));
        let regex = TargetModules::Pattern(r".*visual\.blocks\.0\..*|.*layers\.1\..*q_proj".into());
        let found = attached(checkpoint, &Lora { target_modules: regex, ..Lora::default() });
        assert!(found.contains(&"model.layers.1.self_attn.q_proj".to_owned()), "{found:?}");
        assert!(found.iter().all(|n| n.contains("layers.1.") || n.contains("blocks.0.")));
    }
}

#[test]
fn a_regular_expression_is_written_as_the_layers_that_it_finds() {
    for checkpoint in CHECKPOINTS {
        let mut model = load(checkpoint);
        let all: Vec<String> =
            model.linear_layers_mut().iter().map(|(name, _)| module_name(name)).collect();
        let written = |pattern: &str| {
            let target_modules = TargetModules::Pattern(pattern.into());
            let recipe = Lora { target_modules, ..Lora::default() };
            let mut want = attached(checkpoint, &recipe);
            want.iter_mut().for_each(|name| *name = module_name(name));
            want.sort();
            let list = saved(checkpoint, &recipe).1.target_modules;
            assert_eq!(list, json!(want));
            // PEFT's rule for a list: whole names, or what ends them behind a dot.
            let named = |name: &&String| {
                want.iter().any(|end| *name == end || name.ends_with(&format!(".{end}")))
            };
            let mut found: Vec<String> = all.iter().filter(named).cloned().collect();
            found.sort();
            assert_eq!(list, json!(found));
            want
        };
        assert!(written(r".*visual\..*|.*(lm_head|q_proj)").len() > 4);
        // In either spelling of names.
        let want = ["model.language_model.layers.1.mlp.up_proj", "model.visual.merger.mlp.0"];
        assert_eq!(written(r"model\.layers\.1\.mlp\.up_proj|visual\.merger\.mlp\.0"), want);
        assert_eq!(written(&want.join("|")), want);
    }
}

/// PEFT saves the weight of a head beside its adapter.
#[test]
fn an_adapter_of_the_head_comes_with_the_checkpoints_own_weight() {
    let [untied, tied] = CHECKPOINTS;
    let recipe = Lora { target_modules: names(&["lm_head"]), ..Lora::default() };
    let (dir, _) = saved(untied, &recipe);
    let path = dir.path().join("adapter_model.safetensors");
    let adapter = TensorFiles::open([path.clone()]).unwrap();
    let tensors = adapter.names().map(|name| (name.to_owned(), adapter.f32(name).unwrap()));
    let mut tensors: HostTensors = tensors.collect();
    let source = golden(&format!("ckpt/{untied}"));
    let weight = TensorFiles::from_dir(&source).unwrap().f32("lm_head.weight").unwrap();
    let key = "base_model.model.lm_head.base_layer.weight";
    tensors.insert(key.to_owned(), weight);
    write_tensors(&path, &tensors).unwrap();
    let read = |mut model: QwenVl| {
        peft::load(&mut model, dir.path(), 0.0).map(drop).map_err(|e| e.to_string())
    };
    for dtype in [DType::F32, DType::BF16] {
        assert_eq!(read(load_as(&source, dtype)), Ok(()));
    }
    let sizes = peft::sizes(
        &Lora { from: Some(dir.path().to_owned()), ..recipe },
        &Config::from_dir(&source).unwrap(),
    );
    assert_eq!(sizes.unwrap().len(), 2);
    let error = read(load(tied)).unwrap_err();
    assert!(error.contains("has no place in the model"), "{error}");
    assert!(error.contains("embeddings are tied"), "{error}");
    tensors.get_mut(key).unwrap().0[7] += 0.5;
    write_tensors(&path, &tensors).unwrap();
    let error = read(load(untied)).unwrap_err();
    assert!(error.contains(&format!("`{key}` is not the checkpoint's weight")), "{error}");
}

#[test]
fn where_embeddings_are_tied_the_head_can_have_no_adapter() {
    let everywhere = vec![Part::Language, Part::Vision, Part::Merger];
    for target_modules in
        [names(&["q_proj", "lm_head"]), TargetModules::Pattern("(.*\\.)?lm_head".into())]
    {
        for scope in [None, Some(everywhere.clone())] {
            let recipe = Lora { target_modules: target_modules.clone(), scope, ..Lora::default() };
            let error = peft::attach(&mut load("tiny-qwen2.5-vl"), &recipe, 0).unwrap_err();
            assert!(error.to_string().contains("embeddings are tied"), "{error}");
        }
    }
}

#[test]
fn a_new_adapter_changes_nothing_yet() {
    let checkpoint = "tiny-qwen2-vl";
    let plain = load(checkpoint);
    let batch = video(&plain, checkpoint);
    let scope = Some(vec![Part::Language, Part::Vision, Part::Merger]);
    for (use_dora, use_rslora) in [(false, true), (true, false), (true, true)] {
        let recipe = Lora { use_dora, use_rslora, scope: scope.clone(), ..Lora::default() };
        let mut model = load(checkpoint);
        peft::attach(&mut model, &recipe, 0).unwrap();
        let difference = max_difference(&last_logits(&model, &batch), &last_logits(&plain, &batch));
        assert!(difference < 2e-5, "{difference:e}");
        let config = AdapterConfig::new(&recipe, "base");
        assert_eq!((config.use_dora, config.use_rslora), (use_dora, use_rslora));
        let lora = model.linear_layers_mut().remove(0).1.lora.clone().unwrap();
        assert_eq!(lora.scaling, if use_rslora { 16.0 / 8f64.sqrt() } else { 2.0 });
        assert_eq!(lora.magnitude.is_some(), use_dora);
    }
}

/// As `torch.nn.Dropout`: each input is dropped with the share's probability, the rest grows so
/// that the mean stays.
#[test]
fn dropout_keeps_the_mean() {
    let _alone = alone();
    let (n, share) = (100_000, 0.3);
    let device = Device::flex();
    device.seed(7);
    let one = || Tensor::<2>::ones([1, 1], (&device, DType::F32));
    let lora = Adapter::from_tensors(one(), one(), 1.0, share);
    let layer = vlm4d_train::model::linear::Linear {
        weight: Tensor::<2>::zeros([1, 1], (&device, DType::F32)).into(),
        bias: None,
        lora: Some(lora),
    };
    let x = Tensor::<2>::from_data(TensorData::new(vec![1f32; n], [n, 1]), &device);
    assert!(values(layer.forward(x.clone(), false)).iter().all(|y| *y == 1.0));
    let y = values(layer.forward(x, true));
    let dropped = y.iter().filter(|y| **y == 0.0).count() as f64 / n as f64;
    // Five standard deviations of a share of 100,000 draws.
    assert!((dropped - share).abs() < 5.0 * (share * (1.0 - share) / n as f64).sqrt(), "{dropped}");
    let kept = (1.0 / (1.0 - share)) as f32;
    assert!(y.iter().all(|y| *y == 0.0 || (y - kept).abs() < 1e-6));
}

#[test]
fn vision_adapters_drop_inputs_in_training_alone() {
    let recipe = Lora { dropout: 0.5, scope: Some(vec![Part::Vision]), ..Lora::default() };
    drops_inputs_in_training_alone("tiny-qwen2.5-vl", &recipe);
}

#[test]
fn an_adapter_of_the_head_drops_inputs_in_training_alone() {
    let target_modules = TargetModules::Pattern("lm_head".into());
    let recipe = Lora { dropout: 0.5, target_modules, ..Lora::default() };
    drops_inputs_in_training_alone("tiny-qwen2-vl", &recipe);
}

fn drops_inputs_in_training_alone(checkpoint: &str, recipe: &Lora) {
    let _alone = alone();
    let mut model = load(checkpoint);
    peft::attach(&mut model, recipe, 0).unwrap();
    // B is zero at first: move it, so that the adapter is seen.
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (_, layer) in model.linear_layers_mut() {
        let [i, o] = layer.shape();
        let Some(lora) = layer.lora.take() else { continue };
        let b = Adapter::new(layer, o, 1.0, 0.0, &mut rng).lora_a.val();
        let b = b.narrow(0, 0, lora.lora_b.dims()[0].min(i));
        layer.lora = Some(Adapter::from_tensors(lora.lora_a.val(), b, lora.scaling, lora.dropout));
    }
    let model = model.train();
    let batch = video(&model, checkpoint);
    let gradients = |step: usize| {
        let train = one_batch(1, true);
        let mut setup = setup(&train, &batch.samples, &batch);
        setup.lora = Some(recipe);
        let (loss, gradients) = setup.gradients(&model, step).unwrap();
        (loss, gradients.into_values().flat_map(values).collect::<Vec<f32>>())
    };
    assert_eq!(gradients(0), gradients(0), "the same step draws the same");
    assert_ne!(gradients(0).0, gradients(1).0, "each step draws anew");
    let frozen = model.valid();
    assert_eq!(last_logits(&frozen, &batch), last_logits(&frozen, &batch));
}

#[test]
fn a_new_adapter_is_drawn_as_peft_draws_it() {
    let drawn = |seed: u64| -> Vec<(usize, Vec<f32>)> {
        let mut model = load("tiny-qwen2-vl");
        peft::attach(&mut model, &Lora::default(), seed).unwrap();
        let layers = model.linear_layers_mut().into_iter();
        layers
            .filter_map(|(_, l)| Some((l.shape()[0], values(l.lora.as_ref()?.lora_a.val()))))
            .collect()
    };
    let first = drawn(1);
    for (i, a) in &first {
        let bound = 1.0 / (*i as f32).sqrt();
        let low = a.iter().copied().fold(f32::INFINITY, f32::min) / bound;
        let high = a.iter().copied().fold(f32::NEG_INFINITY, f32::max) / bound;
        assert!((-1.0..-0.95).contains(&low) && (0.95..1.0).contains(&high), "{low} {high}");
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        assert!(mean.abs() < 5.0 * bound / (3.0 * a.len() as f32).sqrt(), "{mean}");
    }
    assert_eq!(drawn(1), first);
    assert_ne!(drawn(2), first);
    assert_ne!(first[0].1, first[1].1, "each layer its own");
}

#[test]
fn an_adapter_for_more_layers_than_there_are_is_refused() {
    let mut model = load("tiny-qwen2-vl");
    model.model.layers.pop();
    let error = peft::load(&mut model, &kind_dir("tiny-qwen2-vl", "rslora"), 0.0).unwrap_err();
    assert!(error.to_string().contains("has no place in the model"), "{error}");
}

/// As `DoraLinearLayer`: x·W whole, the rest of what dropout leaves.
#[test]
fn dropout_under_dora_spares_the_base() {
    let _alone = alone();
    let device = Device::flex();
    let full = |n: usize| Tensor::<2>::ones([n, 1], (&device, DType::F32));
    let weight = full(1).into();
    let mut layer = vlm4d_train::model::linear::Linear { weight, bias: None, lora: None };
    let four = Tensor::<1>::ones([1], (&device, DType::F32)).mul_scalar(4.0);
    let lora = Adapter::from_tensors(full(1), full(1), 1.0, 0.3);
    layer.lora = Some(lora.with_magnitude(&layer, Some(four)));
    assert!(values(layer.forward(full(9), false)).iter().all(|y| (y - 4.0).abs() < 1e-5));
    let y = values(layer.forward(full(1000), true));
    let is = |want: f32| move |y: &f32| (y - want).abs() < 1e-5;
    let (dropped, kept) = (is(1.0), is(1.0 + 3.0 / 0.7));
    assert!(y.iter().any(&dropped) && y.iter().any(&kept));
    assert!(y.iter().all(|y| dropped(y) || kept(y)));
}
