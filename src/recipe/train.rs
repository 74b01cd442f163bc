//! `[train]`: the training loop.

use serde::{Deserialize, Serialize};

use super::Part;

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Passes over the training samples (LLaMA-Factory: 3).
    pub epochs: f64,
    /// Stops after this many optimiser steps, whatever `epochs` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<usize>,
    /// Samples per micro-batch (LLaMA-Factory's example: 1). On a GPU, this many samples of a step go
    /// through the model together; more where that takes little memory.
    pub batch_size: usize,
    /// Micro-batches per optimiser step (LLaMA-Factory's example: 8).
    pub grad_accum: usize,
    /// Highest learning rate (LLaMA-Factory's example: 1e-4).
    pub lr: f64,
    /// The same for what is trained in the vision tower; `lr` where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vision_lr: Option<f64>,
    /// The same for what is trained in the merger; `lr` where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merger_lr: Option<f64>,
    /// Its course after the warm-up (LLaMA-Factory's example: cosine).
    pub schedule: Schedule,
    /// Share of the steps in which the rate rises from 0 (LLaMA-Factory's example: 0.1).
    pub warmup_ratio: f64,
    /// The same as a number of steps; wins over `warmup_ratio`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<usize>,
    /// AdamW's decoupled weight decay (LLaMA-Factory: 0).
    pub weight_decay: f64,
    /// Largest global norm of the gradient (LLaMA-Factory: 1); 0 is none, as transformers'.
    pub max_grad_norm: f64,
    /// How tokens weigh in the loss.
    pub loss: Loss,
    /// Whether each epoch has its own order of samples.
    pub shuffle: bool,
    /// Recomputes each block in the backward pass instead of keeping its activations.
    pub recompute: bool,
    /// Full fine-tuning: the parts that stay as they are; `["vision", "merger"]` where left out
    /// (LLaMA-Factory: `freeze_vision_tower` and `freeze_multi_modal_projector`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Vec<Part>>,
    /// Steps between checkpoints; one per epoch where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_steps: Option<usize>,
    /// Newest checkpoints that are kept, beside the best (LLaMA-Factory: `save_total_limit`).
    pub keep_last: usize,
    /// Steps between validations, where `data.split.val` holds questions back; one per epoch where
    /// left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_steps: Option<usize>,
    /// What makes a validated checkpoint the best, which is the run's result; `accuracy` where left
    /// out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// Stops after so many validations in a row that are no better; never where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            epochs: 3.0,
            max_steps: None,
            batch_size: 1,
            grad_accum: 8,
            lr: 1e-4,
            vision_lr: None,
            merger_lr: None,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.1,
            warmup_steps: None,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            loss: Loss::Sample,
            shuffle: true,
            recompute: true,
            freeze: None,
            save_steps: None,
            keep_last: 1,
            eval_steps: None,
            best: None,
            patience: None,
        }
    }
}

impl Train {
    /// What full fine-tuning leaves as it is: `freeze`, or its default.
    pub fn frozen(&self) -> Vec<Part> {
        self.freeze.clone().unwrap_or_else(|| vec![Part::Vision, Part::Merger])
    }

    /// Samples of one optimiser step; the last of an epoch may have fewer.
    pub fn samples_per_step(&self) -> usize {
        self.batch_size * self.grad_accum
    }

    /// Whether anything is set that has a meaning only with validation.
    pub fn is_validated(&self) -> bool {
        self.best.is_some() || self.patience.is_some() || self.eval_steps.is_some()
    }

    /// What makes a checkpoint the best: `best`, or its default.
    pub fn best(&self) -> Best {
        self.best.unwrap_or(Best::Accuracy)
    }
}

/// What makes a checkpoint the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Best {
    /// The highest mean of the formats' accuracies, graded by the rules, whatever `eval.judge` says;
    /// of equal ones the smallest loss.
    Accuracy,
    /// The smallest loss.
    Loss,
}

/// Course of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine, down to 0.
    Cosine,
    /// A line, down to 0.
    Linear,
    /// Stays.
    Constant,
}

/// How tokens weigh in the loss of one optimiser step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Every sample alike: mean over its tokens, then over the step's samples.
    Sample,
    /// Every token of the step alike.
    Token,
    /// As LLaMA-Factory: mean over the tokens of a micro-batch, then over the micro-batches. With
    /// transformers up to 4.51 it has fewer steps where the last of an epoch is incomplete.
    MicroBatch,
}
