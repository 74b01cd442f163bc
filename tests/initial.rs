//! Random weights for a configuration, and the configuration that comes with the repository.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use vlm4d_train::data::chat::{Chat, Content};
use vlm4d_train::data::demo::{DemoOptions, render};
use vlm4d_train::data::entry;
use vlm4d_train::data::vlm4d::{Format, PromptStyle};
use vlm4d_train::model::config::Config;
use vlm4d_train::model::initial::write_random;
use vlm4d_train::model::weights::{self, TensorFiles, shapes};

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/nano")
}

fn drawn(seed: u64) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("models/nano");
    let parameters = write_random(&nano(), &out, seed).unwrap();
    let config = Config::from_dir(&out).unwrap();
    let counted: usize =
        shapes(&config).unwrap().values().map(|s| s.iter().product::<usize>()).sum();
    assert_eq!(parameters, counted);
    (folder, out)
}

#[test]
fn random_weights_are_drawn_as_transformers_draws_them() {
    let (_folder, out) = drawn(1);
    let files = TensorFiles::from_dir(&out).unwrap();
    let config = Config::from_dir(&out).unwrap();
    weights::load(&config, &files, DType::F32, &Device::flex()).unwrap();
    let mut seen = BTreeSet::new();
    for name in files.names() {
        let (values, _) = files.f32(name).unwrap();
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let std = (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
        let range = config.text.initializer_range;
        let kind = match name {
            _ if name.contains(".bias") => "bias",
            _ if name.contains("norm") || name.contains("ln_q") => "norm",
            _ => "matrix",
        };
        let holds = match kind {
            "bias" => values.iter().all(|v| *v == 0.0),
            "norm" => values.iter().all(|v| *v == 1.0),
            _ => mean.abs() < 5.0 * range / n.sqrt() && (std / range - 1.0).abs() < 5.0 / n.sqrt(),
        };
        assert!(holds, "{name}: mean {mean} std {std}");
        seen.insert(kind);
    }
    assert_eq!(seen.len(), 3);
}

#[test]
fn random_weights_follow_from_the_seed() {
    let bytes = |(_folder, out): (_, PathBuf)| fs::read(out.join("model.safetensors")).unwrap();
    let first = bytes(drawn(1));
    assert!(first == bytes(drawn(1)), "the same seed, other weights");
    assert!(first != bytes(drawn(2)), "another seed, the same weights");
}

#[test]
fn random_weights_never_replace_a_checkpoint() {
    let (_folder, out) = drawn(1);
    let before = fs::read(out.join("model.safetensors")).unwrap();
    let error = write_random(&nano(), &out, 2).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("the folder is not empty"), "{error}");
    assert!(before == fs::read(out.join("model.safetensors")).unwrap());
    let nowhere = out.join("none");
    assert_eq!(write_random(&out.join("missing"), &nowhere, 1).unwrap_err().exit_code(), 2);
    assert!(!nowhere.exists());
}

/// The tokenizer was trained on the demo set: each of its words is one token.
#[test]
fn nano_reads_the_demo_set_word_by_word() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("demo");
    let options = DemoOptions {
        real_videos: 100,
        synthetic_videos: 60,
        size: (56, 56),
        seconds: 0.5,
        ..DemoOptions::default()
    };
    render(&data, &options, |_, _| ()).unwrap();
    let chat = Chat::load(&nano()).unwrap();
    let vocabulary = Config::from_dir(&nano()).unwrap().text.vocab_size as u32;
    let subsets = ["real", "synthetic"].map(String::from);
    for entry in entry::read(&data, &subsets).unwrap().0 {
        for format in [Format::Mc, Format::Ff] {
            let messages = entry.prompt(format, PromptStyle::Do, true);
            let ids = chat.encode_prompt(&messages, &[1]).unwrap();
            assert!(ids.iter().all(|id| *id < vocabulary));
            let words: usize = messages.iter().flat_map(|m| &m.content).map(words).sum();
            assert!(ids.len() < words + 40, "{} tokens for {words} words: {messages:?}", ids.len());
        }
    }
}

/// Words and punctuation of a part.
fn words(part: &Content) -> usize {
    let Content::Text(text) = part else { return 0 };
    let ends = |c: char| c.is_ascii_punctuation() || c == '\n';
    text.split_whitespace().count() + text.chars().filter(|c| ends(*c)).count()
}
