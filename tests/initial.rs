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
use vlm4d_train::model::tensor_files::TensorFiles;
use vlm4d_train::model::weights::{self, shapes};

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
fn random_weights_are_drawn_as_transformers_draws_them_but_for_queries() {
    let (_folder, out) = drawn(1);
    let files = TensorFiles::from_dir(&out).unwrap();
    let config = Config::from_dir(&out).unwrap();
    weights::load(&config, &files, DType::F32, None, &Device::flex()).unwrap();
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
            _ if name.ends_with("q_proj.weight") => true,
            _ => mean.abs() < 5.0 * range / n.sqrt() && (std / range - 1.0).abs() < 5.0 / n.sqrt(),
        };
        assert!(holds, "{name}: mean {mean} std {std}");
        seen.insert(kind);
    }
    assert_eq!(seen.len(), 3);
}

/// 0.7 of each key head in its query heads, and 0.3 of their own: correlated by 0.7 / √(0.7² + 0.3²).
#[test]
fn queries_lean_on_their_keys() {
    let (_folder, out) = drawn(1);
    let files = TensorFiles::from_dir(&out).unwrap();
    let text = Config::from_dir(&out).unwrap().text;
    let head = text.head_dim * text.hidden_size;
    for layer in 0..text.num_hidden_layers {
        let weight = |which: &str| {
            let name = format!("model.layers.{layer}.self_attn.{which}_proj.weight");
            files.f32(&name).unwrap().0
        };
        let (queries, keys) = (weight("q"), weight("k"));
        let squares = |x: &[f32]| x.iter().map(|v| f64::from(v * v)).sum::<f64>();
        for (i, query) in queries.chunks(head).enumerate() {
            let like = |key: &[f32]| {
                let dot: f64 = query.iter().zip(key).map(|(q, k)| f64::from(q * k)).sum();
                dot / (squares(query) * squares(key)).sqrt()
            };
            let own = i / (text.num_attention_heads / text.num_key_value_heads);
            for (j, key) in keys.chunks(head).enumerate() {
                let want = if j == own { 0.919 } else { 0.0 };
                assert!((like(key) - want).abs() < 0.1, "head {i}, key {j}: {}", like(key));
            }
        }
    }
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
    let error = write_random(&out.join("missing"), &nowhere, 1).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.fix().unwrap().starts_with("give a folder in hub layout: "), "{error}");
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
        for format in Format::ALL {
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
