//! Samples for a benchmark: token ids, and videos whose pixels are made from a seed.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Tensor;
use clap::ValueEnum;
use rand::RngExt as Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::model::rope::{MediaGrid, Positions};
use vlm4d_train::train::gradients::Sample;
use vlm4d_train::train::trainer::Media;

use super::Failure;
use super::checkpoint::uniform;

/// Ids of `<|vision_start|>`, `<|vision_end|>` and `<|video_pad|>`: the built-in tokenizer's.
pub const VISION: [u32; 3] = [649, 650, 653];

#[derive(Serialize, Deserialize)]
pub struct Batches {
    pub samples: Vec<Entry>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Entry {
    pub pixel_seed: u64,
    pub video_grid_thw: [usize; 3],
    pub second_per_grid_ts: f64,
    pub prompt_len: usize,
    pub input_ids: Vec<u32>,
    pub labels: Vec<i64>,
}

/// Which samples to make.
#[derive(clap::Args, Clone)]
pub struct Wanted {
    #[arg(long, value_enum, default_value = "vlm4d")]
    pub profile: Profile,
    /// Temporal patches of a video; the profile's where left out.
    #[arg(long)]
    pub frames: Option<usize>,
    #[arg(long, default_value_t = 12)]
    pub samples: usize,
    /// How many of the samples ask about the same video.
    #[arg(long, default_value_t = 1)]
    pub questions: usize,
    /// Draw the lengths of questions and answers, in place of one for all.
    #[arg(long)]
    pub vary: bool,
}

/// Videos and questions.
#[derive(Clone, Copy, ValueEnum)]
pub enum Profile {
    /// 4 temporal patches of 150 tokens, and a question: about 710 tokens.
    Vlm4d,
    /// 2 temporal patches of 60 tokens (with a ragged edge of windows), and a short question.
    Short,
}

impl Batches {
    pub fn read(path: &Path) -> Result<Self, Failure> {
        Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
    }

    pub fn make(wanted: &Wanted) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let ([frames, h, w], question, answer) = match wanted.profile {
            Profile::Vlm4d => ([4, 20, 30], 55..=105, 3..=12),
            Profile::Short => ([2, 12, 20], 15..=40, 3..=12),
        };
        let frames = wanted.frames.unwrap_or(frames);
        let samples = (0..wanted.samples).map(|i| {
            let (question, answer) = match wanted.vary {
                true => (rng.random_range(question.clone()), rng.random_range(answer.clone())),
                false => ((question.start() + question.end()) / 2 + 5, 8),
            };
            let mut text =
                |n: usize| (0..n).map(|_| rng.random_range(100..600)).collect::<Vec<u32>>();
            let [start, end, pad] = VISION;
            let video = [vec![start], vec![pad; frames * h * w / 4], vec![end]].concat();
            let prompt = [text(15), video, text(question)].concat();
            let answer = text(answer);
            Entry {
                pixel_seed: 1000 + (i / wanted.questions.max(1)) as u64,
                video_grid_thw: [frames, h, w],
                second_per_grid_ts: 1.0,
                prompt_len: prompt.len(),
                labels: [
                    vec![-100; prompt.len()],
                    answer.iter().map(|id| i64::from(*id)).collect(),
                ]
                .concat(),
                input_ids: [prompt, answer].concat(),
            }
        });
        Self { samples: samples.collect() }
    }
}

impl Entry {
    pub fn grid(&self) -> MediaGrid {
        MediaGrid { grid_thw: self.video_grid_thw, second_per_grid: Some(self.second_per_grid_ts) }
    }

    pub fn sample(&self, model: &QwenVl) -> Result<Sample, Failure> {
        Ok(Sample {
            id: self.pixel_seed.to_string(),
            input_ids: self.input_ids.clone(),
            labels: self.labels.clone(),
            positions: Positions::new(&model.config, &self.input_ids, &[self.grid()])?,
        })
    }

    /// `[patches, patch_dim]`, row by row.
    pub fn pixels(&self, patch_dim: usize) -> Vec<f32> {
        let n = self.video_grid_thw.iter().product::<usize>() * patch_dim;
        (0..n as u64).map(|i| uniform(self.pixel_seed, i) * 1.7).collect()
    }
}

/// The videos of all samples: their pixels, or the features that were made of them before.
#[derive(Clone)]
pub struct Videos {
    frozen: QwenVl,
    pixels: BTreeMap<u64, Vec<f32>>,
    kept: BTreeMap<u64, Tensor<2>>,
    of_sample: Vec<(u64, [usize; 3])>,
}

impl Videos {
    pub fn new(model: &QwenVl, entries: &[Entry], fresh: bool) -> Self {
        let frozen = model.clone();
        let (mut pixels, mut kept) = (BTreeMap::new(), BTreeMap::new());
        for entry in entries {
            let values = || entry.pixels(model.config.vision.patch_dim());
            if fresh {
                pixels.entry(entry.pixel_seed).or_insert_with(values);
            } else {
                kept.entry(entry.pixel_seed)
                    .or_insert_with(|| frozen.features(&values(), entry.video_grid_thw));
            }
        }
        Self { frozen, pixels, kept, of_sample: vec![] }.of_samples(entries)
    }

    /// The same videos for other samples on them.
    pub fn of_samples(&self, entries: &[Entry]) -> Self {
        let of_sample = entries.iter().map(|e| (e.pixel_seed, e.video_grid_thw)).collect();
        Self { of_sample, ..self.clone() }
    }
}

impl Media for Videos {
    fn features(&self, _: &QwenVl, i: usize) -> vlm4d_train::error::Result<Vec<Tensor<2>>> {
        let (seed, grid_thw) = self.of_sample[i];
        Ok(vec![match self.kept.get(&seed) {
            Some(features) => features.clone(),
            None => self.frozen.features(&self.pixels[&seed], grid_thw),
        }])
    }
}
