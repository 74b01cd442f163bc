//! Held-out questions while a run trains: which checkpoint is the best, and when to stop early.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};

use super::gradients::{LOGITS_AT_ONCE, Sample};
use super::loss::{cross_entropy, label_tokens, predictions, total};
use super::trainer::Media;
use crate::data::vlm4d::Format;
use crate::error::Result;
use crate::lanes::Lanes;
use crate::model::host::host;
use crate::model::qwen_vl::QwenVl;
use crate::recipe::{Best, Loss};

/// What one validation measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Loss on the held-out samples, weighted as in training.
    pub loss: f64,
    /// Share of right answers per format; empty where the best checkpoint is chosen by loss.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub accuracy: BTreeMap<Format, f64>,
}

/// A line of `validation.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Optimiser steps taken.
    pub step: usize,
    /// Passes over the samples.
    pub epoch: f64,
    /// What was measured.
    #[serde(flatten)]
    pub scores: Scores,
    /// Whether no earlier validation was as good.
    pub best: bool,
}

/// Measures a model on held-out questions.
pub trait Validator: Sync {
    /// Scores of `model`, which is in training form.
    ///
    /// # Errors
    /// Where a question cannot be asked, or Ctrl-C.
    fn validate(&self, model: &QwenVl) -> Result<Scores>;
}

/// How the validations of a run have gone so far; part of its checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Track {
    /// Step of the last validation.
    pub last: usize,
    /// Step and scores of the best one.
    pub best: Option<(usize, Scores)>,
    /// Validations since then.
    pub waited: usize,
}

impl Scores {
    /// Mean of the formats' accuracies.
    fn mean_accuracy(&self) -> f64 {
        self.accuracy.values().sum::<f64>() / self.accuracy.len().max(1) as f64
    }

    /// Whether these are better than `other`; of equal accuracies the smaller loss is better.
    fn better_than(&self, other: &Self, by: Best) -> bool {
        let (mine, theirs) = (self.mean_accuracy(), other.mean_accuracy());
        match by {
            Best::Accuracy if mine != theirs => mine > theirs,
            _ => self.loss < other.loss,
        }
    }
}

impl Track {
    /// Takes in the validation after `step`; returns whether it is the best so far.
    pub fn see(&mut self, step: usize, scores: Scores, by: Best) -> bool {
        self.last = step;
        let best = self.best.as_ref().is_none_or(|(_, best)| scores.better_than(best, by));
        self.waited = if best { 0 } else { self.waited + 1 };
        if best {
            self.best = Some((step, scores));
        }
        best
    }

    /// Whether `patience` validations in a row were no better.
    pub fn is_over(&self, patience: Option<usize>) -> bool {
        patience.is_some_and(|patience| self.waited >= patience)
    }
}

/// Loss of held-out samples, weighted as `loss` says: every sample alike, or every token. `model` is in
/// training form, and `lanes` share the work; `media` has the samples' vision features.
///
/// # Errors
/// Where a sample cannot be run.
pub fn held_out_loss(
    model: &QwenVl,
    lanes: &Lanes,
    samples: &[Sample],
    loss: Loss,
    media: &dyn Media,
) -> Result<f64> {
    let numbers: Vec<usize> = (0..samples.len()).collect();
    let total =
        |model: &QwenVl, i: &usize| token_losses(model, &samples[*i], &media.features(model, *i)?);
    let (mut sum, mut weights) = (0.0, 0.0);
    lanes.deal(model, &numbers, QwenVl::valid, total, |i, total| {
        let tokens = label_tokens(&samples[i].labels) as f64;
        let weight = if loss == Loss::Token { tokens } else { 1.0 };
        sum += weight * total / tokens;
        weights += weight;
        Ok(())
    })?;
    Ok(sum / weights)
}

/// Sum of the token losses of one sample, without a tape.
fn token_losses(model: &QwenVl, sample: &Sample, features: &[Tensor<2>]) -> Result<f64> {
    let embedded = model.embed(&sample.input_ids, features)?;
    let context = model.context(std::slice::from_ref(&sample.positions), false);
    let hidden = model.model.forward(embedded, &context, None);
    let (rows, targets) = predictions(&sample.labels);
    let at_once = (LOGITS_AT_ONCE / model.config.text.vocab_size).max(1);
    let mut sum = 0.0;
    for (rows, targets) in rows.chunks(at_once).zip(targets.chunks(at_once)) {
        let rows = Tensor::<1, Int>::from_data(rows, &hidden.device());
        let logits = model.logits(hidden.clone().select(1, rows).squeeze_dim(0));
        sum += total(&host(cross_entropy(logits, targets))?);
    }
    Ok(sum)
}
