//! Full fine-tuning: which parts are trained, f32 steps under bf16 weights, and the checkpoint out.

use std::collections::BTreeSet;
use std::path::Path;

use burn::module::Module;
use burn::tensor::DType;
use vlm4d_train::model::hub;
use vlm4d_train::model::parameters;
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::model::tensor_files::TensorFiles;
use vlm4d_train::recipe::Part;
use vlm4d_train::train::checkpoint::{self, TrainerState};
use vlm4d_train::train::optimiser::AdamW;
use vlm4d_train::train::validation::Track;

use crate::support::model::{load, load_as, values};
use crate::support::{CHECKPOINTS, golden};

/// Names of what `model` trains.
fn trained(model: &QwenVl) -> BTreeSet<String> {
    parameters::trained_values(model).into_keys().collect()
}

#[test]
fn parts_are_frozen_by_name() {
    for name in CHECKPOINTS {
        let everything = trained(&load(name).train_all_but(&[]).train());
        assert_eq!(everything.len(), parameters::list(&load(name)).len());
        for part in [Part::Language, Part::Vision, Part::Merger] {
            let left = trained(&load(name).train_all_but(&[part]).train());
            let missing: Vec<_> = everything.difference(&left).collect();
            assert!(!missing.is_empty() && missing.iter().all(|name| Part::of(name) == part));
        }
    }
}

#[test]
fn a_saved_model_is_the_trained_model() {
    for (name, dtype) in [("tiny-qwen2-vl", DType::F32), ("tiny-qwen2.5-vl", DType::BF16)] {
        let source = golden(&format!("ckpt/{name}"));
        let model = load_as(&source, dtype).train_all_but(&[Part::Vision]).train();
        let ones = parameters::trained_values(&model).into_iter();
        let gradients = ones.map(|(name, value)| (name, value.ones_like().cast(DType::F32)));
        let model = AdamW::new(0.0).update(model, |_| 0.01, &gradients.collect(), 1.0);
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("model");
        hub::save(&model, &source, &to).unwrap();
        for file in ["tokenizer.json", "preprocessor_config.json", "generation_config.json"] {
            assert_eq!(
                std::fs::read(to.join(file)).unwrap(),
                std::fs::read(source.join(file)).unwrap()
            );
        }
        let original = load(name);
        let [got, want, old] = [&load_as(&to, dtype), &model, &original].map(parameters::values);
        assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
        for (tensor, (_, value)) in got {
            assert_eq!(value.dtype(), dtype);
            let [got, want, old] = [value, want[&tensor].1.clone(), old[&tensor].1.clone()]
                .map(|tensor| values(tensor.cast(DType::F32)));
            assert!(got == want, "{tensor}");
            assert_eq!(got == old, Part::of(&tensor) == Part::Vision, "{tensor} moved");
        }
        let spelled = |dir: &Path| {
            let files = TensorFiles::from_dir(dir).unwrap();
            files.names().map(|n| files.original(n).unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(spelled(&to), spelled(&source));
        let config = std::fs::read_to_string(to.join("config.json")).unwrap();
        let dtype_name = if dtype == DType::BF16 { "bfloat16" } else { "float32" };
        assert!(config.contains(&format!("\"torch_dtype\": \"{dtype_name}\"")), "{config}");
    }
}

#[test]
fn shards_hold_each_tensor_once() {
    let source = golden("ckpt/tiny-qwen2.5-vl");
    let files = TensorFiles::from_dir(&source).unwrap();
    let outlines: Vec<_> = files
        .names()
        .map(|name| vlm4d_train::model::tensor_files::Outline {
            name: name.to_owned(),
            dtype: safetensors::Dtype::F32,
            shape: files.shape(name).unwrap().to_vec(),
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("model");
    hub::write(&to, &source, &outlines, 200_000, Some(safetensors::Dtype::F32), |outline| {
        Ok(vlm4d_train::model::tensor_files::f32_bytes(&files.f32(&outline.name)?.0))
    })
    .unwrap();
    let again = TensorFiles::from_dir(&to).unwrap();
    assert!(again.names().eq(files.names()));
    for name in files.names() {
        assert_eq!(again.f32(name).unwrap(), files.f32(name).unwrap(), "{name}");
    }
    let shards = std::fs::read_dir(&to).unwrap().filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        path.extension().is_some_and(|e| e == "safetensors")
    });
    let shards: Vec<_> = shards.map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
    assert!(shards.len() > 3, "{shards:?}");
    load_as(&to, DType::F32);
}

#[test]
fn small_steps_are_not_lost_in_bf16() {
    let source = golden("ckpt/tiny-qwen2.5-vl");
    let mut model = load_as(&source, DType::BF16).train_all_but(&[Part::Vision]).train();
    let ones = parameters::trained_values(&model).into_iter();
    let gradients = ones.map(|(name, value)| (name, value.ones_like().cast(DType::F32))).collect();
    let mut optimiser = AdamW::new(0.0);
    let name = "model.norm.weight";
    let first = values(parameters::trained_values(&model)[name].clone().cast(DType::F32));
    // bf16 has steps of 2^-8 around 1: each of these alone would vanish.
    for _ in 0..100 {
        model = optimiser.update(model, |_| 2e-4, &gradients, 1.0);
    }
    let last = values(parameters::trained_values(&model)[name].clone().cast(DType::F32));
    for (first, last) in first.iter().zip(&last) {
        assert!((first - last - 0.02).abs() < 0.005, "{first} {last}");
    }
    // A checkpoint keeps what bf16 cannot.
    let dir = tempfile::tempdir().unwrap();
    let state = TrainerState { optimiser, track: Track::default() };
    checkpoint::save(dir.path(), &model, &state, 1).unwrap();
    let at = checkpoint::newest(dir.path()).unwrap().unwrap().1;
    let fresh = load_as(&source, DType::BF16).train_all_but(&[Part::Vision]).train();
    let (again, restored) = checkpoint::load(&at, fresh, 0.0).unwrap();
    let next = |model: QwenVl, mut optimiser: AdamW| {
        let model = optimiser.update(model, |_| 2e-4, &gradients, 1.0);
        let master = values(optimiser.masters[name].clone());
        (values(parameters::trained_values(&model)[name].clone().cast(DType::F32)), master)
    };
    assert_eq!(next(again, restored.optimiser), next(model, state.optimiser));
}
