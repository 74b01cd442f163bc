//! Training from wherever the last checkpoint stands.

use std::path::Path;

use burn::tensor::Tensor;

use super::prepare::Prepared;
use crate::error::Result;
use crate::model::qwen_vl::QwenVl;
use crate::report::terminal::Terminal;
use crate::train::checkpoint;
use crate::train::log::Log;
use crate::train::optimiser::AdamW;
use crate::train::trainer::{Media, Setup};

/// The training samples' vision features.
struct SampleMedia<'a>(&'a Prepared);

impl Media for SampleMedia<'_> {
    fn features(&self, model: &QwenVl, i: usize) -> Result<Vec<Tensor<2>>> {
        self.0.videos.features(model, &self.0.sample_videos[i])
    }
}

pub fn train(prepared: &Prepared, dir: &Path, terminal: &Terminal) -> Result<QwenVl> {
    let recipe = &prepared.recipe;
    let checkpoints = dir.join("checkpoints");
    let weight_decay = recipe.train.weight_decay;
    let (model, optimiser) = match checkpoint::newest(&checkpoints)? {
        Some((step, at)) => {
            terminal.line(&format!("note   goes on from {} (step {step})", at.display()));
            checkpoint::load(&at, prepared.model.clone(), weight_decay)?
        }
        None => (prepared.model.clone(), AdamW::new(weight_decay)),
    };
    let setup = Setup {
        train: &recipe.train,
        seed: recipe.seed,
        dropout: recipe.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0),
        samples: &prepared.samples,
        media: &SampleMedia(prepared),
        checkpoints,
    };
    let mut log = Log::open(dir, optimiser.step)?;
    let course = setup.course();
    let progress = terminal.steps(&course, optimiser.step);
    let trained = setup.run(model, optimiser, &mut log, |record| progress.step(record));
    progress.finish();
    trained
}
