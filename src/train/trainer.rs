//! The training loop: samples → optimiser steps, from wherever the last checkpoint stands.

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Tensor;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::batches::{batches, deal, tokens_at_once};
use super::checkpoint::{self, TrainerState};
use super::gradients::{
    GPU_MULTIPLE, LOGITS_AT_ONCE, Method, Sample, Weighted, add_samples, padded_length,
};
use super::log::{Log, Record};
use super::loss::{label_tokens, token_weights};
use super::optimiser::{AdamW, clip_factor, global_norm};
use super::schedule::{Course, Rates};
use super::validation::{Scores, Track, Validation, Validator};
use crate::error::{Error, Kind, Result};
use crate::interrupt;
use crate::lanes::{Lanes, Others};
use crate::model::cpu;
use crate::model::dropout::{self, Row};
use crate::model::host::{host, on_host};
use crate::model::parameters::{self, Named, any_trained};
use crate::model::qwen_vl::QwenVl;
use crate::recipe::{Lora, Part, Train};

/// Where the vision features of a sample come from.
pub trait Media: Sync {
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
    /// The recipe's `[lora]`; none in full fine-tuning.
    pub lora: Option<&'a Lora>,
    /// Each distinct training sample once.
    pub samples: &'a [Sample],
    /// By epoch, which of `samples` it is made of, always as many; epochs begin anew where there
    /// are more than lists.
    pub epochs: Vec<Vec<usize>>,
    /// Their vision features.
    pub media: &'a dyn Media,
    /// What works on a step at once.
    pub lanes: &'a Lanes,
    /// Where checkpoints go.
    pub checkpoints: PathBuf,
    /// Measures the model on held-out questions, where there are some.
    pub validator: Option<&'a dyn Validator>,
}

/// What a run tells of while it trains.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// An optimiser step.
    Step(&'a Record),
    /// A validation.
    Validation(&'a Validation),
}

/// A finished training.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The model: that of the best validation, where there was one.
    pub model: QwenVl,
    /// Optimiser steps that were taken.
    pub step: usize,
    /// Step and scores of the best validation.
    pub best: Option<(usize, Scores)>,
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
        Course::new(self.train, self.epochs[0].len())
    }

    /// The micro-batches of optimiser step `step` (from 0): indices of samples.
    fn micro_batches(&self, step: usize) -> Vec<Vec<usize>> {
        let per_epoch = self.course().steps_per_epoch;
        let (epoch, step) = (step / per_epoch, step % per_epoch);
        let samples = &self.epochs[epoch % self.epochs.len()];
        let order = order(self.seed, epoch, samples.len(), self.train.shuffle);
        let of_step = order.chunks(self.train.samples_per_step()).nth(step).unwrap_or_default();
        let of_samples = |batch: &[usize]| batch.iter().map(|i| samples[*i]).collect();
        of_step.chunks(self.train.batch_size).map(of_samples).collect()
    }

    /// Loss and summed gradients of optimiser step `step`.
    ///
    /// # Errors
    /// Where a sample cannot be run.
    pub fn gradients(&self, model: &QwenVl, step: usize) -> Result<(f64, Named)> {
        let batches = self.batches(model, step);
        let mut sums = self.lanes.run(model, batches.len(), |model, lane, others| {
            let (loss, sums) = self.sum(model, step, &batches[lane], others)?;
            Ok((loss, if lane == 0 { sums } else { on_host(sums)? }))
        })?;
        let (mut loss, mut total) = sums.remove(0);
        for (of_lane, gradients) in sums {
            loss += of_lane;
            for (name, gradient) in gradients {
                parameters::add(&mut total, name, gradient.to_device(&model.device()));
            }
        }
        Ok((loss, total))
    }

    /// By lane, the samples of optimiser step `step`, with the weights of their token losses, as they
    /// go through the model: on the CPU, and where the vision tower has a tape of its own for each,
    /// one by one.
    pub fn batches(&self, model: &QwenVl, step: usize) -> Vec<Vec<Vec<(usize, f64)>>> {
        let weighted = self.weighted(step);
        let lanes = self.lanes.number(runs_cpu_passes(model), weighted.len());
        let tokens = |(i, _): &(usize, f64)| self.samples[*i].input_ids.len();
        let dealt = deal(&weighted.iter().map(tokens).collect::<Vec<_>>(), lanes).into_iter();
        let own = dealt.map(|own| own.into_iter().map(|i| weighted[i]).collect());
        own.map(|own| self.joined(model, own)).collect()
    }

    /// The samples of optimiser step `step`, with the weights of their token losses.
    fn weighted(&self, step: usize) -> Vec<(usize, f64)> {
        let micro_batches = self.micro_batches(step);
        let tokens = |batch: &Vec<usize>| {
            batch.iter().map(|i| label_tokens(&self.samples[*i].labels)).collect()
        };
        let weights =
            token_weights(self.train.loss, &micro_batches.iter().map(tokens).collect::<Vec<_>>());
        micro_batches.into_iter().flatten().zip(weights.into_iter().flatten()).collect()
    }

    /// Those of the samples `weighted` together that go through `model` together.
    fn joined(&self, model: &QwenVl, weighted: Vec<(usize, f64)>) -> Vec<Vec<(usize, f64)>> {
        if runs_cpu_passes(model) || any_trained(&model.visual) {
            return weighted.into_iter().map(|one| vec![one]).collect();
        }
        let padded = |i: usize| padded_length(self.samples[i].input_ids.len(), GPU_MULTIPLE);
        let lengths: Vec<usize> = weighted.iter().map(|(i, _)| padded(*i)).collect();
        let width = model.model.norm.weight.val().dtype().size();
        let tokens = tokens_at_once(&model.config.text, self.train.recompute, width);
        let batches = batches(&lengths, self.train.batch_size, tokens).into_iter();
        batches.map(|batch| batch.into_iter().map(|i| weighted[i]).collect()).collect()
    }

    fn has_dropout(&self) -> bool {
        self.lora.is_some_and(|lora| lora.dropout > 0.0)
    }

    /// Loss and summed gradients of some of the batches of optimiser step `step`.
    fn sum(
        &self,
        model: &QwenVl,
        step: usize,
        batches: &[Vec<(usize, f64)>],
        others: &Others,
    ) -> Result<(f64, Named)> {
        #[cfg(feature = "cuda")]
        let model = &model.for_step();
        let method = self.method(model);
        let (mut sums, mut pending) = (Named::new(), Vec::new());
        for batch in batches {
            others.check()?;
            let weighted = batch.iter().map(|&(i, weight)| {
                let dropout_seed = self.has_dropout().then(|| dropout_seed(self.seed, step, i));
                // For the vision tower; each decoder layer begins elsewhere.
                dropout::begin(dropout_seed.map(|seed| Row { seed, tokens: 0 }));
                let features = self.media.features(model, i)?;
                Ok(Weighted { sample: &self.samples[i], features, weight, dropout_seed })
            });
            let weighted = weighted.collect::<Result<Vec<_>>>()?;
            pending.push((batch, add_samples(model, &weighted, method, &mut sums)?));
        }
        // Read when all is launched: a GPU that is waited for in between has nothing to do next.
        let mut loss = 0.0;
        for (batch, losses) in pending {
            for ((i, weight), total) in batch.iter().zip(losses.read()?) {
                if !total.is_finite() {
                    let what = format!("the loss of `{}` is {total}", self.samples[*i].id);
                    return Err(self.broken(step, &what));
                }
                loss += weight * total;
            }
        }
        Ok((loss, sums))
    }

    /// How the gradients of a batch are computed.
    fn method(&self, model: &QwenVl) -> Method {
        Method {
            recompute: self.train.recompute,
            logits_at_once: LOGITS_AT_ONCE,
            multiple: if runs_cpu_passes(model) { 1 } else { GPU_MULTIPLE },
        }
    }

    /// Trains `model` (in training form) to the end of the course, or until no validation gets
    /// better; `state` says where it stands. `seen` is told of each step and validation.
    ///
    /// # Errors
    /// A loss or gradient that is no number, a full disk, or Ctrl-C (after a checkpoint).
    pub fn run(
        &self,
        mut model: QwenVl,
        mut state: TrainerState,
        log: &mut Log,
        mut seen: impl FnMut(Event),
    ) -> Result<Trained> {
        let course = self.course();
        let save_steps = self.train.save_steps.unwrap_or(course.steps_per_epoch);
        // Never twice: while the second replaced it, there would be no checkpoint.
        let mut saved = state.optimiser.step;
        loop {
            let step = state.optimiser.step;
            let mut save = step == course.steps || step.is_multiple_of(save_steps);
            if self.validates_after(step) && state.track.last != step {
                match self.validate(&model, step, &mut state.track, log) {
                    Ok(validation) => {
                        save |= validation.best;
                        seen(Event::Validation(&validation));
                    }
                    Err(e) if e.kind() == Kind::Interrupted => {
                        return Err(self.stop(&model, &state, saved));
                    }
                    Err(e) => return Err(e),
                }
            }
            let over = state.track.is_over(self.train.patience);
            if (save || over) && saved != step {
                self.save(&model, &state)?;
                saved = step;
            }
            if over || step == course.steps {
                break;
            }
            if interrupt::requested() {
                return Err(self.stop(&model, &state, saved));
            }
            model = self.step(model, &mut state.optimiser, log, &mut seen)?;
        }
        let model = match &state.track.best {
            Some((best, _)) if *best != state.optimiser.step => {
                checkpoint::load_weights(&checkpoint::path(&self.checkpoints, *best), model)?.0
            }
            _ => model,
        };
        Ok(Trained { model, step: state.optimiser.step, best: state.track.best })
    }

    /// One optimiser step, logged.
    fn step(
        &self,
        model: QwenVl,
        optimiser: &mut AdamW,
        log: &mut Log,
        seen: &mut impl FnMut(Event),
    ) -> Result<QwenVl> {
        let (course, rates) = (self.course(), Rates::new(self.train, self.lora));
        let (start, step) = (Instant::now(), optimiser.step);
        let (loss, gradients) = self.gradients(&model, step)?;
        let grad_norm = global_norm(&gradients)?;
        if !grad_norm.is_finite() {
            return Err(self.broken(step, &self.not_finite(step, grad_norm, &gradients)?));
        }
        let factor = course.factor(step);
        let lr = rates.of_part(first_trained(&model)) * factor;
        let clipped = clip_factor(grad_norm, self.train.max_grad_norm);
        let model = optimiser.update(model, |name| rates.of(name) * factor, &gradients, clipped);
        let ids: Vec<usize> = self.micro_batches(step).concat();
        let record = Record {
            step: step + 1,
            epoch: course.epoch(step + 1),
            loss,
            lr,
            grad_norm,
            samples: ids.len(),
            tokens: ids.iter().map(|i| self.samples[*i].input_ids.len()).sum(),
            seconds: start.elapsed().as_secs_f64(),
            memory_bytes: self.lanes.memory_bytes(),
        };
        log.step(&record)?;
        seen(Event::Step(&record));
        Ok(model)
    }

    /// Whether the model is validated after optimiser step `step`.
    fn validates_after(&self, step: usize) -> bool {
        let course = self.course();
        let every = self.train.eval_steps.unwrap_or(course.steps_per_epoch);
        self.validator.is_some() && step > 0 && (step.is_multiple_of(every) || step == course.steps)
    }

    fn validate(
        &self,
        model: &QwenVl,
        step: usize,
        track: &mut Track,
        log: &mut Log,
    ) -> Result<Validation> {
        let validator = self.validator.ok_or_else(|| Error::run("nothing to validate on"))?;
        let scores = validator.validate(model)?;
        let best = track.see(step, scores.clone(), self.train.best());
        let validation = Validation { step, epoch: self.course().epoch(step), scores, best };
        log.validation(&validation)?;
        Ok(validation)
    }

    fn save(&self, model: &QwenVl, state: &TrainerState) -> Result<()> {
        checkpoint::save(&self.checkpoints, model, state, self.train.keep_last)
    }

    /// Saves where the run stands, after Ctrl-C, if that is not where it was `saved`; the error that
    /// says so, or why it cannot be saved.
    fn stop(&self, model: &QwenVl, state: &TrainerState, saved: usize) -> Error {
        let (step, steps) = (state.optimiser.step, self.course().steps);
        if saved != step
            && let Err(e) = self.save(model, state)
        {
            return e;
        }
        interrupt::stopped(&match step {
            0 => "before the first step".to_owned(),
            step => format!("after step {step} of {steps}; its checkpoint is saved"),
        })
    }

    /// Which gradients are no numbers, and what samples they are of.
    fn not_finite(&self, step: usize, norm: f64, gradients: &Named) -> Result<String> {
        let mut broken = Vec::new();
        for (name, gradient) in gradients {
            if !host(gradient.clone().square().sum())?[0].is_finite() {
                broken.push(format!("`{name}`"));
            }
        }
        let first = broken.first().map_or_else(String::new, |name| {
            format!(" ({} of {} tensors, {name} first)", broken.len(), gradients.len())
        });
        let samples = self.micro_batches(step).concat();
        let ids: Vec<String> =
            samples.iter().map(|i| format!("`{}`", self.samples[*i].id)).collect();
        Ok(format!("the gradient's norm is {norm}{first}; samples {}", ids.join(", ")))
    }

    /// The error of a run whose numbers are none; `step` counts from 0.
    fn broken(&self, step: usize, what: &str) -> Error {
        let advice = "lower train.lr, or use dtype = \"f32\", in a recipe of another name";
        let last = checkpoint::newest(&self.checkpoints).ok().flatten();
        Error::run(format!("step {}: {what}", step + 1)).help(match last {
            Some((at, dir)) => {
                let whose = if at == step { ", whose weights gave this" } else { "" };
                format!("the last checkpoint is {} (step {at}){whose}; {advice}", dir.display())
            }
            None => format!("no checkpoint was saved yet; {advice}"),
        })
    }
}

/// Whether `model` takes the passes of [`cpu`].
fn runs_cpu_passes(model: &QwenVl) -> bool {
    cpu::runs(&model.model.norm.weight.val())
}

/// The first part that is trained: as transformers, logs tell its rate.
fn first_trained(model: &QwenVl) -> Part {
    if any_trained(&model.model) || any_trained(&model.lm_head) {
        Part::Language
    } else if any_trained(&model.visual.patch_embed) || any_trained(&model.visual.blocks) {
        Part::Vision
    } else {
        Part::Merger
    }
}

/// A seed of its own for each sample and step, far from its neighbours'.
fn dropout_seed(seed: u64, step: usize, sample: usize) -> u64 {
    let mixed = seed ^ (step as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((sample as u64) << 20);
    mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9)
}
