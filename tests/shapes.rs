//! Shapes beyond the tiny checkpoints: other head counts and windows, one frame, images and videos
//! in one prompt, tied and untied, bf16 and f32, flat and nested configuration; and the names and
//! shapes of real checkpoints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use serde_json::Value;
use vlm4d_train::data::chat::{Chat, ChatTemplate, Content, Message};
use vlm4d_train::data::medium::Kind;
use vlm4d_train::data::preprocessor::PreprocessorConfig;
use vlm4d_train::model::config::Config;
use vlm4d_train::model::rope::{MediaGrid, Positions};
use vlm4d_train::model::tensor_files::TensorFiles;
use vlm4d_train::model::weights;

use crate::support::model::values;
use crate::support::{Golden, golden, max_difference, skipped};

/// Grids and pixels of the case's images or videos, in order.
fn media(case: &Golden, pixels: &str, grids: &str, seconds: bool) -> Vec<(Vec<f32>, MediaGrid)> {
    if !case.has(pixels) {
        return vec![];
    }
    let (pixels, shape) = case.f32(pixels);
    let mut start = 0;
    let grids = case.i64(grids).0.chunks(3).enumerate();
    let media = grids.map(|(i, thw)| {
        let grid_thw = [thw[0] as usize, thw[1] as usize, thw[2] as usize];
        let end = start + grid_thw.iter().product::<usize>() * shape[1];
        let own = pixels[start..end].to_vec();
        start = end;
        let second_per_grid = seconds.then(|| match case.has("second_per_grid_ts") {
            true => f64::from(case.f32("second_per_grid_ts").0[i]),
            false => 1.0,
        });
        (own, MediaGrid { grid_thw, second_per_grid })
    });
    media.collect()
}

fn check(dir: &Path) {
    let config = Config::from_dir(dir).unwrap();
    let files = TensorFiles::from_dir(dir).unwrap();
    let model = weights::load(&config, &files, DType::F32, None, &Device::flex()).unwrap();
    let case = Golden::open(&dir.join("case.safetensors"));
    let ids: Vec<u32> = case.i64("input_ids").0.iter().map(|id| *id as u32).collect();
    let mut images = media(&case, "pixel_values", "image_grid_thw", false).into_iter();
    let mut videos = media(&case, "pixel_values_videos", "video_grid_thw", true).into_iter();
    let (mut features, mut grids, mut at) = (vec![], vec![], 0);
    while at < ids.len() {
        let next = match ids[at] {
            id if id == config.image_token_id => images.next(),
            id if id == config.video_token_id => videos.next(),
            _ => {
                at += 1;
                continue;
            }
        };
        let (pixels, grid) = next.unwrap();
        features.push(model.features(&pixels, grid.grid_thw));
        at += grid.tokens(&config.vision);
        grids.push(grid);
    }
    let positions = Positions::new(&config, &ids, &grids).unwrap();
    assert_eq!(positions.rows.concat(), case.i64("position_ids").0, "{}", dir.display());
    let (hidden, _) = model.forward(&ids, &grids, &features, None).unwrap();
    let logits = values(model.logits(hidden.squeeze_dim::<2>(0)));
    let difference = max_difference(&logits, case.f32("logits").0);
    assert!(difference < 2e-4, "{}: {difference:e}", dir.display());
}

#[test]
fn other_shapes_equal_the_reference() {
    let mut seen = 0;
    for entry in std::fs::read_dir(golden("shapes")).unwrap() {
        check(&entry.unwrap().path());
        seen += 1;
    }
    assert!(seen >= 5, "only {seen} shapes");
}

/// Parameters of published checkpoints: their index's `total_size` in bytes is twice that in bf16.
#[test]
fn published_shapes_have_the_published_size() {
    let text = |hidden, inner, layers, heads, kv, tie: bool, vocab| {
        serde_json::json!({
            "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocab,
            "tie_word_embeddings": tie, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        })
    };
    let two = serde_json::json!({"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16});
    let two5 = serde_json::json!({"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16});
    for (family, text, vision, parameters) in [
        ("qwen2_vl", text(1536, 8960, 28, 12, 2, true, 151_936), &two, 2_208_985_600_usize),
        ("qwen2_vl", text(3584, 18_944, 28, 28, 4, false, 152_064), &two, 8_291_375_616),
        ("qwen2_5_vl", text(2048, 11_008, 36, 16, 2, true, 151_936), &two5, 3_754_622_976),
        ("qwen2_5_vl", text(3584, 18_944, 28, 28, 4, false, 152_064), &two5, 8_292_166_656),
    ] {
        let mut json = text;
        json["model_type"] = family.into();
        json["vision_config"] = vision.clone();
        let shapes = weights::shapes(&Config::from_json(&json).unwrap()).unwrap();
        let count: usize = shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
        assert_eq!(count, parameters, "{family}");
    }
}

/// Real `model.safetensors.index.json` files, where the folder named by `QWEN_VL_HUB` holds some.
#[test]
fn every_name_of_a_real_index_has_one_place() {
    let Ok(hub) = std::env::var("QWEN_VL_HUB") else {
        skipped("QWEN_VL_HUB names no folder with real checkpoints' metadata");
        return;
    };
    let mut seen = 0;
    for folder in folders(&hub) {
        let Ok(index) = std::fs::read_to_string(folder.join("model.safetensors.index.json")) else {
            continue;
        };
        let Ok(config) = Config::from_dir(&folder) else {
            println!("{}: another architecture or quantised", folder.display());
            continue;
        };
        let index: Value = serde_json::from_str(&index).unwrap();
        let names = index["weight_map"].as_object().unwrap().keys();
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        names.for_each(|name| *found.entry(weights::hub_name(name)).or_default() += 1);
        if config.tie_word_embeddings {
            found.remove("lm_head.weight");
        }
        let shapes = weights::shapes(&config).unwrap();
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            shapes.keys().collect::<Vec<_>>(),
            "{}",
            folder.display()
        );
        assert!(found.values().all(|n| *n == 1), "{}", folder.display());
        println!("{}: {} tensors", folder.display(), shapes.len());
        seen += 1;
    }
    assert!(seen > 0, "{hub} holds no index");
}

/// Configuration, tokenizer, chat template and processor of each real checkpoint load, where the
/// folder has them.
#[test]
fn real_metadata_loads() {
    let Ok(hub) = std::env::var("QWEN_VL_HUB") else {
        skipped("QWEN_VL_HUB names no folder with real checkpoints' metadata");
        return;
    };
    let question = [Message::new("user", [Content::Video, Content::Text("Which way?".into())])];
    let (mut templates, mut tokenizers) = (0, 0);
    for folder in folders(&hub) {
        let Ok(config) = Config::from_dir(&folder) else { continue };
        assert_eq!(config.video_token_id, 151_656, "{}", folder.display());
        let processor = PreprocessorConfig::from_dir(&folder, Kind::Video).unwrap();
        assert_eq!((processor.patch_size, processor.merge_size), (14, 2), "{}", folder.display());
        let template = ChatTemplate::load(&folder).unwrap();
        let text = template.render(&question, true).unwrap();
        let wanted = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Which way?<|im_end|>\n\
            <|im_start|>assistant\n";
        assert!(text.ends_with(wanted), "{}: {text}", folder.display());
        templates += 1;
        if folder.join("vocab.json").is_file() {
            let chat = Chat::load(&folder).unwrap();
            assert_eq!(chat.tokenizer.token_id("<|video_pad|>").unwrap(), 151_656);
            let ids = chat.encode_prompt(&question, &[3]).unwrap();
            assert_eq!(ids.iter().filter(|id| **id == 151_656).count(), 3);
            tokenizers += 1;
        }
    }
    assert!(templates >= 4 && tokenizers >= 1, "{templates} templates, {tokenizers} tokenizers");
}

/// The checkpoints' folders in `hub` and in its `variants`.
fn folders(hub: &str) -> Vec<PathBuf> {
    let inside =
        |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().path());
    let hub = Path::new(hub);
    inside(hub).chain(inside(&hub.join("variants"))).filter(|path| path.is_dir()).collect()
}
