//! The whole way of a recorded LLaMA-Factory run: frames, ids, labels, ten losses and gradient
//! norms, and the final adapter.

use std::path::Path;

use burn::tensor::Tensor;
use safetensors::SafeTensors;
use vlm4d_train::data::chat::Chat;
use vlm4d_train::data::entry;
use vlm4d_train::data::medium::Kind;
use vlm4d_train::data::preprocessor::PreprocessorConfig;
use vlm4d_train::error::Result;
use vlm4d_train::model::parameters;
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::model::rope::Positions;
use vlm4d_train::recipe::{Loss, Schedule, Train};
use vlm4d_train::train::checkpoint::TrainerState;
use vlm4d_train::train::gradients::Sample;
use vlm4d_train::train::log::{self, Log};
use vlm4d_train::train::trainer::{Media, Setup};

use crate::support::model::{ONE_DEVICE, beside, with_adapter};
use crate::support::{Golden, golden, json, max_difference};

/// Vision features of each sample's video, from the recorded pixels.
struct Recorded(Vec<(Vec<f32>, [usize; 3])>);

impl Media for Recorded {
    fn features(&self, model: &QwenVl, i: usize) -> Result<Vec<Tensor<2>>> {
        Ok(vec![model.features(&self.0[i].0, self.0[i].1)])
    }
}

/// Recorded pixels of a video, kept as levels: `(level − 255·mean) / (255·std)` gives them back.
fn recorded_pixels(
    family: &str,
    video: &str,
    config: &PreprocessorConfig,
) -> (Vec<f32>, [usize; 3]) {
    let path = format!("llamafactory/frames_{family}_{video}.safetensors");
    let bytes = std::fs::read(golden(&path)).unwrap();
    let levels = SafeTensors::deserialize(&bytes).unwrap();
    let levels = levels.tensor("pixel_levels").unwrap();
    let width = levels.shape()[1];
    let pixels = levels.data().iter().enumerate().map(|(i, level)| {
        let channel = i % width / (width / 3);
        let (mean, std) = (config.image_mean[channel], config.image_std[channel]);
        (f32::from(*level) - 255.0 * mean) / (255.0 * std)
    });
    let grid = Golden::read(&path);
    let grid: Vec<usize> = grid.i64("video_grid_thw").0.iter().map(|n| *n as usize).collect();
    (pixels.collect(), grid.try_into().unwrap())
}

/// Positions of sample `i` as recorded. LLaMA-Factory takes them from its transformers (4.57),
/// which rounds the seconds of Qwen2.5-VL's temporal patches down to 0; ours does not, so that a
/// replay has to be given them.
fn recorded_positions(family: &str, i: usize, tokens: usize) -> Positions {
    let batch = Golden::read(&format!("llamafactory/{family}/batch_{}.safetensors", i / 2 + 1));
    let (ids, shape) = batch.i64("position_ids");
    // Row 0 of the four counts text alone.
    let row = |axis: usize| {
        let start = ((axis + 1) * shape[1] + i % 2) * shape[2];
        ids[start..start + tokens].to_vec()
    };
    Positions { rows: [row(0), row(1), row(2)] }
}

/// The recorded samples, made by our reader of the sharegpt format, chat template and tokenizer.
fn samples(family: &str, checkpoint: &str) -> (Vec<Sample>, Recorded) {
    let dir = golden(&format!("ckpt/{checkpoint}"));
    let chat = Chat::load(&dir).unwrap();
    let config = PreprocessorConfig::from_dir(&dir, Kind::Video).unwrap();
    let recorded = json("llamafactory/lf_samples.json");
    let (conversations, _) =
        entry::read(&golden("llamafactory/data"), &["tinyvid".into()]).unwrap();
    let pairs = conversations.iter().zip(recorded[family]["samples"].as_array().unwrap());
    let pairs = pairs.enumerate().map(|(i, (conversation, recorded))| {
        let video = conversation.media[0].files()[0].file_stem().unwrap().to_str().unwrap();
        let pixels = recorded_pixels(family, video, &config);
        let tokens = pixels.1.iter().product::<usize>() / 4;
        let encoded = chat.encode_sft(&conversation.messages, &[tokens]).unwrap();
        assert_eq!(serde_json::to_value(&encoded.input_ids).unwrap(), recorded["input_ids"]);
        assert_eq!(serde_json::to_value(&encoded.labels).unwrap(), recorded["labels"]);
        let sample = Sample {
            id: conversation.id.clone(),
            positions: recorded_positions(family, i, encoded.input_ids.len()),
            input_ids: encoded.input_ids,
            labels: encoded.labels,
        };
        (sample, pixels)
    });
    let (samples, pixels) = pairs.unzip();
    (samples, Recorded(pixels))
}

/// Replays one recorded run; returns the largest relative difference of losses and gradient norms
/// and the largest difference of the final adapter.
fn replay(family: &str, checkpoint: &str, grad_accum: usize) -> (f64, f32) {
    let (samples, media) = samples(family, checkpoint);
    let train = Train {
        max_steps: Some(10),
        batch_size: 2,
        grad_accum,
        lr: 1e-3,
        schedule: Schedule::Cosine,
        warmup_steps: Some(2),
        loss: Loss::MicroBatch,
        shuffle: false,
        ..Train::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup {
        train: &train,
        seed: 42,
        lora: None,
        samples: &samples,
        epochs: vec![(0..samples.len()).collect()],
        media: &media,
        lanes: &ONE_DEVICE,
        checkpoints: dir.path().join("checkpoints"),
        validator: None,
    };
    let model = with_adapter(checkpoint, &format!("llamafactory/{family}/lora_before.safetensors"));
    let mut writer = Log::open(dir.path(), 0, 0).unwrap();
    let model = setup.run(model, TrainerState::default(), &mut writer, |_| ()).unwrap().model;
    let records = log::read(&dir.path().join("log.jsonl")).unwrap();
    let recorded = json(&format!("llamafactory/{family}/steps.json"));
    let recorded = recorded.as_array().unwrap();
    assert_eq!(records.len(), 10);
    assert_eq!(recorded.len(), 10 * grad_accum);
    let mut worst: f64 = 0.0;
    for (record, micro) in records.iter().zip(recorded.chunks(grad_accum)) {
        let mean =
            micro.iter().map(|m| m["loss"].as_f64().unwrap()).sum::<f64>() / grad_accum as f64;
        let norm = micro[grad_accum - 1]["grad_norm"].as_f64().unwrap();
        worst =
            worst.max((record.loss / mean - 1.0).abs()).max((record.grad_norm / norm - 1.0).abs());
    }
    (
        worst,
        adapter_difference(
            &model,
            &golden(&format!("llamafactory/{family}/lora_after.safetensors")),
        ),
    )
}

fn adapter_difference(model: &QwenVl, want: &Path) -> f32 {
    let trained = parameters::trained_values(model);
    let both = beside(model, &trained, &Golden::open(want), "").into_iter();
    both.map(|(_, got, want)| max_difference(&got, &want)).fold(0.0, f32::max)
}

#[test]
fn a_recorded_run_is_replayed() {
    for (family, checkpoint, grad_accum) in
        [("qwen2_vl", "tiny-qwen2-vl", 1), ("qwen2.5_vl", "tiny-qwen2.5-vl", 2)]
    {
        let (relative, adapter) = replay(family, checkpoint, grad_accum);
        println!("{family}: losses and norms {relative:e}, adapter {adapter:e}");
        assert!(relative < 2e-5, "{family}: losses and norms differ by {relative:e}");
        assert!(adapter < 1e-4, "{family}: adapter differs by {adapter:e}");
    }
}
