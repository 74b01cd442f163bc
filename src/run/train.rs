//! Training from wherever the last checkpoint stands.

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::Tensor;

use super::encoder::Examples;
use super::prepare::Prepared;
use crate::error::Result;
use crate::eval::predict::{Ask, Prediction, batches};
use crate::eval::stats::share;
use crate::eval::view::View;
use crate::features::Videos;
use crate::model::qwen_vl::QwenVl;
use crate::recipe::{Best, JudgeKind};
use crate::report::terminal::{self, Terminal};
use crate::train::checkpoint::{self, TrainerState};
use crate::train::log::Log;
use crate::train::optimiser::AdamW;
use crate::train::trainer::{Event, Media, Setup, Trained};
use crate::train::validation::{Scores, Track, Validator, held_out_loss};

/// The training samples' vision features.
struct SampleMedia<'a> {
    videos: &'a Videos,
    examples: &'a Examples,
}

impl Media for SampleMedia<'_> {
    fn features(&self, model: &QwenVl, i: usize) -> Result<Vec<Tensor<2>>> {
        self.videos.features(model, &self.examples.shown[i])
    }
}

/// The questions that are held back to validate.
struct HeldBack<'a> {
    prepared: &'a Prepared,
    terminal: &'a Terminal,
}

impl Validator for HeldBack<'_> {
    fn validate(&self, model: &QwenVl) -> Result<Scores> {
        let prepared = self.prepared;
        let media = SampleMedia { videos: &prepared.videos, examples: &prepared.held_back };
        let train = &prepared.recipe.train;
        let samples = &prepared.held_back.samples;
        let loss = held_out_loss(model, &prepared.lanes, samples, train.loss, &media)?;
        let mut scores = Scores { loss, accuracy: [].into() };
        if train.best() == Best::Accuracy {
            let predictions = self.ask(model)?;
            // Those that were asked: conversations are freeform, whatever the recipe says.
            for format in predictions.iter().map(|p| p.format).collect::<BTreeSet<_>>() {
                let of = predictions.iter().filter(|p| p.format == format);
                let (n, right) = (of.clone().count(), of.filter(|p| p.correct).count());
                scores.accuracy.insert(format, share(right, n));
            }
        }
        Ok(scores)
    }
}

impl HeldBack<'_> {
    fn ask(&self, model: &QwenVl) -> Result<Vec<Prediction>> {
        let prepared = self.prepared;
        let eval = &prepared.recipe.eval;
        let asks = Ask::all(&prepared.val, &eval.formats);
        let batches = batches(&asks, &View::PLAIN, eval.batch_size);
        let bar = self.terminal.bar("validation", asks.len());
        let mut all = Vec::with_capacity(asks.len());
        let answered = prepared.answer(model, &asks, &batches, &View::PLAIN, |_, predictions| {
            all.extend(predictions);
            bar.set(all.len());
            Ok(())
        });
        bar.finish();
        answered.map(|()| all)
    }
}

pub fn train(
    prepared: &Prepared,
    model: QwenVl,
    dir: &Path,
    terminal: &Terminal,
) -> Result<Trained> {
    let recipe = &prepared.recipe;
    let checkpoints = dir.join("checkpoints");
    let weight_decay = recipe.train.weight_decay;
    let (model, start) = if let Some((step, at)) = checkpoint::newest(&checkpoints)? {
        terminal.note(&format!("goes on from {} (step {step})", at.display()));
        checkpoint::load(&at, model, weight_decay)?
    } else {
        (model, TrainerState { optimiser: AdamW::new(weight_decay), track: Track::default() })
    };
    if !prepared.val.is_empty()
        && recipe.train.best() == Best::Accuracy
        && recipe.eval.judge.kind != JudgeKind::Rules
    {
        terminal.note("validations are graded by the rules alone, without eval.judge");
    }
    let held_back = HeldBack { prepared, terminal };
    let setup = Setup {
        train: &recipe.train,
        seed: recipe.seed,
        lora: recipe.lora.as_ref(),
        samples: &prepared.training.samples,
        epochs: prepared.epochs.clone(),
        media: &SampleMedia { videos: &prepared.videos, examples: &prepared.training },
        lanes: &prepared.lanes,
        checkpoints,
        validator: (!prepared.val.is_empty()).then_some(&held_back),
    };
    let mut log = Log::open(dir, start.optimiser.step, start.track.last)?;
    if start.optimiser.step == 0 {
        log.recipe(&recipe.to_toml()?)?;
    }
    let course = setup.course();
    let progress = terminal.steps(&course, start.optimiser.step);
    let trained = setup.run(model, start, &mut log, |event| match event {
        Event::Step(record) => progress.step(record),
        Event::Validation(validation) => progress.validation(validation),
    });
    progress.finish();
    let trained = trained?;
    terminal::trained(&trained, &course, recipe.train.best(), terminal);
    Ok(trained)
}
