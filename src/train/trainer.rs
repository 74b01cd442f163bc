//! The training loop: samples → optimiser steps, from wherever the last checkpoint stands.

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Tensor;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::checkpoint;
use super::gradients::{LOGITS_AT_ONCE, Method, Sample, add_sample};
use super::log::{Log, Record, memory_bytes};
use super::loss::{label_tokens, token_weights};
use super::optimiser::{AdamW, clip};
use super::schedule::Course;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::parameters::{self, Named};
use crate::model::qwen_vl::QwenVl;
use crate::recipe::Train;

/// Where the vision features of a sample come from.
pub trait Media {
    /// Features of each image and video of sample `i`, `[v, hidden]`; with a tape where `model`'s
    /// vision tower is trained.
    ///
    /// # Errors
    /// Where they cannot be had.
    fn features(&self, model: &QwenVl, i: usize) -> Result<Vec<Tensor<2>>>;
}

/// What a training run needs beside the model.
pub struct Setup<'a> {
    /// The recipe's `[train]`.
    pub train: &'a Train,
    /// Seed of the order of samples and of dropout.
    pub seed: u64,
    /// Whether the adapters drop inputs.
    pub dropout: bool,
    /// All training samples.
    pub samples: &'a [Sample],
    /// Their vision features.
    pub media: &'a dyn Media,
    /// Where checkpoints go.
    pub checkpoints: PathBuf,
}

/// Order in which the samples of one epoch are seen.
pub fn order(seed: u64, epoch: usize, samples: usize, shuffle: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..samples).collect();
    if shuffle {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(epoch as u64);
        order.shuffle(&mut rng);
    }
    order
}

impl Setup<'_> {
    /// Steps and learning rates of the run.
    pub fn course(&self) -> Course {
        Course::new(self.train, self.samples.len())
    }

    /// The micro-batches of optimiser step `step` (from 0): indices of samples.
    fn micro_batches(&self, step: usize) -> Vec<Vec<usize>> {
        let per_epoch = self.course().steps_per_epoch;
        let (epoch, step) = (step / per_epoch, step % per_epoch);
        let order = order(self.seed, epoch, self.samples.len(), self.train.shuffle);
        let size = self.train.batch_size * self.train.grad_accum;
        let of_step = order.chunks(size).nth(step).unwrap_or_default();
        of_step.chunks(self.train.batch_size).map(<[usize]>::to_vec).collect()
    }

    /// Loss and summed gradients of optimiser step `step`.
    ///
    /// # Errors
    /// Where a sample cannot be run.
    pub fn gradients(&self, model: &QwenVl, step: usize) -> Result<(f64, Named)> {
        let micro_batches = self.micro_batches(step);
        let tokens = |batch: &Vec<usize>| {
            batch.iter().map(|i| label_tokens(&self.samples[*i].labels)).collect()
        };
        let weights =
            token_weights(self.train.loss, &micro_batches.iter().map(tokens).collect::<Vec<_>>());
        let (mut loss, mut sums) = (0.0, Named::new());
        for (i, weight) in micro_batches.iter().flatten().zip(weights.iter().flatten()) {
            let method = Method {
                recompute: self.train.recompute,
                dropout_seed: self.dropout.then(|| dropout_seed(self.seed, step, *i)),
                logits_at_once: LOGITS_AT_ONCE,
            };
            let features = self.media.features(model, *i)?;
            let sample = &self.samples[*i];
            loss += weight * add_sample(model, sample, &features, *weight, method, &mut sums)?;
        }
        Ok((loss, sums))
    }

    /// Trains `model` (in training form) to the end of the course; `optimiser` says where it
    /// stands. `seen` is told of each step.
    ///
    /// # Errors
    /// A loss or gradient that is no number, a full disk, or Ctrl-C (after a checkpoint).
    pub fn run(
        &self,
        mut model: QwenVl,
        mut optimiser: AdamW,
        log: &mut Log,
        mut seen: impl FnMut(&Record),
    ) -> Result<QwenVl> {
        let course = self.course();
        let save_steps = self.train.save_steps.unwrap_or(course.steps_per_epoch);
        while optimiser.step < course.steps {
            let (start, step) = (Instant::now(), optimiser.step);
            let (loss, mut gradients) = self.gradients(&model, step)?;
            let grad_norm = clip(&mut gradients, self.train.max_grad_norm)?;
            self.check_finite(step, loss, grad_norm)?;
            let lr = course.lr(step);
            model = optimiser.update(model, lr, &gradients);
            let ids: Vec<usize> = self.micro_batches(step).concat();
            let record = Record {
                step: step + 1,
                epoch: (step + 1) as f64 / course.steps_per_epoch as f64,
                loss,
                lr,
                grad_norm,
                samples: ids.len(),
                tokens: ids.iter().map(|i| self.samples[*i].input_ids.len()).sum(),
                seconds: start.elapsed().as_secs_f64(),
                memory_bytes: memory_bytes(),
            };
            log.step(&record)?;
            seen(&record);
            let stop = interrupt::requested();
            if stop || optimiser.step.is_multiple_of(save_steps) || optimiser.step == course.steps {
                checkpoint::save(&self.checkpoints, &model, &optimiser)?;
            }
            if stop {
                return Err(interrupt::stopped(&format!(
                    "after step {} of {}; its checkpoint is saved",
                    optimiser.step, course.steps
                )));
            }
        }
        Ok(model)
    }

    fn check_finite(&self, step: usize, loss: f64, grad_norm: f64) -> Result<()> {
        if loss.is_finite() && grad_norm.is_finite() {
            return Ok(());
        }
        let samples = self.micro_batches(step).concat();
        let ids: Vec<&str> = samples.iter().map(|i| &*self.samples[*i].id).collect();
        Err(Error::run(format!(
            "step {}: the loss is {loss} and the gradient's norm {grad_norm}; samples {}",
            step + 1,
            ids.join(", ")
        ))
        .help(match checkpoint::newest(&self.checkpoints)? {
            Some((at, dir)) => format!(
                "the last good checkpoint is {} (step {at}); lower train.lr or use dtype = \"f32\"",
                dir.display()
            ),
            None => "lower train.lr or use dtype = \"f32\"".into(),
        }))
    }
}

/// A seed of its own for each sample and step, far from its neighbours'.
fn dropout_seed(seed: u64, step: usize, sample: usize) -> u64 {
    let mixed = seed ^ (step as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((sample as u64) << 20);
    mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// How many numbers a model has and how many of them are trained.
pub fn counts(model: &QwenVl) -> (usize, usize) {
    let all = parameters::list(model, "");
    let sum = |trained: bool| -> usize {
        all.iter().filter(|p| p.trained || !trained).map(parameters::Parameter::count).sum()
    };
    (sum(false), sum(true))
}
