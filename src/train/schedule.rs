//! Learning rate by step, and how many steps there are.
//!
//! Source: transformers' `get_{cosine,linear,constant}_schedule_with_warmup` and `Trainer`.

use std::f64::consts::PI;

use crate::recipe::{Lora, Part, Schedule, Train};

/// The course of a run: how many optimiser steps, and each one's share of the learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Course {
    /// Optimiser steps in all.
    pub steps: usize,
    /// Steps in one epoch.
    pub steps_per_epoch: usize,
    /// Steps in which the rate rises.
    pub warmup: usize,
    /// Samples in one epoch.
    samples: usize,
    /// Samples in one step; the last of an epoch may have fewer.
    samples_per_step: usize,
    schedule: Schedule,
}

impl Course {
    /// The course over `samples` training samples.
    pub fn new(train: &Train, samples: usize) -> Self {
        let steps_per_epoch = samples.div_ceil(train.batch_size).div_ceil(train.grad_accum);
        let steps = (train.epochs * steps_per_epoch as f64).ceil() as usize;
        let steps = train.max_steps.unwrap_or(steps);
        let warmup = (steps as f64 * train.warmup_ratio).ceil() as usize;
        Self {
            steps,
            steps_per_epoch,
            warmup: train.warmup_steps.unwrap_or(warmup),
            samples,
            samples_per_step: train.samples_per_step(),
            schedule: train.schedule,
        }
    }

    /// Passes over the samples after `steps` optimiser steps.
    pub fn epoch(&self, steps: usize) -> f64 {
        let (whole, begun) = (steps / self.steps_per_epoch, steps % self.steps_per_epoch);
        whole as f64 + (begun * self.samples_per_step) as f64 / self.samples as f64
    }

    /// Share of the highest learning rate at optimiser step `step`, counted from 0; the first is 0
    /// with a warm-up.
    pub fn factor(&self, step: usize) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let left = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let progress = (step - self.warmup) as f64 / left;
        match self.schedule {
            Schedule::Cosine => (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
            Schedule::Linear => (1.0 - progress).max(0.0),
            Schedule::Constant => 1.0,
        }
    }
}

/// The highest learning rate of each parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    lr: f64,
    vision: f64,
    merger: f64,
    plus_ratio: f64,
}

impl Rates {
    /// What a recipe says.
    pub fn new(train: &Train, lora: Option<&Lora>) -> Self {
        Self {
            lr: train.lr,
            vision: train.vision_lr.unwrap_or(train.lr),
            merger: train.merger_lr.unwrap_or(train.lr),
            plus_ratio: lora.and_then(|lora| lora.plus_ratio).unwrap_or(1.0),
        }
    }

    /// The highest rate of `part`.
    pub fn of_part(&self, part: Part) -> f64 {
        match part {
            Part::Language => self.lr,
            Part::Vision => self.vision,
            Part::Merger => self.merger,
        }
    }

    /// The highest rate of the parameter `name`. `plus_ratio` raises that of B and, as
    /// PEFT's `create_loraplus_optimizer`, of DoRA's lengths.
    pub fn of(&self, name: &str) -> f64 {
        let lr = self.of_part(Part::of(name));
        let raised = name.ends_with(".lora_B.weight") || name.ends_with(".lora_magnitude_vector");
        if raised { lr * self.plus_ratio } else { lr }
    }
}
