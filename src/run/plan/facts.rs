//! What an estimate is made from: sizes of the model, of the questions and of what they show.

use std::collections::BTreeMap;

use crate::device;
use crate::error::Result;
use crate::eval::judge;
use crate::eval::predict::batches;
use crate::eval::rounds::Round;
use crate::model::config::Config;
use crate::model::parameters::PartCount;
use crate::model::rope::MediaGrid;
use crate::model::weights;
use crate::number::thousands;
use crate::places;
use crate::recipe::{Part, Recipe};
use crate::report::terminal::{self, Terminal};
use crate::run::check::{check_weights, counts};
use crate::run::encoder::{Encoder, Examples, held_back, outlines, smaller};
use crate::run::prepare::read_checkpoint;
use crate::run::questions::Questions;
use crate::train::gradients::Sample;
use crate::train::loss::label_tokens;
use crate::train::schedule::Course;

/// Prompts on the same videos and images, or without any.
pub struct Together {
    /// First tokens that all share, those of what is shown among them; they are read once.
    pub common: usize,
    /// Tokens of each behind them.
    pub rest: Vec<usize>,
}

impl Together {
    pub fn new(prompts: &[Vec<u32>]) -> Self {
        let first = prompts.first().map_or(&[][..], |ids| ids);
        let shared = |ids: &Vec<u32>| ids.iter().zip(first).take_while(|(a, b)| a == b).count();
        let common = prompts.iter().map(shared).min().unwrap_or_default();
        Self { common, rest: prompts.iter().map(|ids| ids.len() - common).collect() }
    }

    /// Tokens of the longest behind the common ones.
    pub fn longest(&self) -> usize {
        self.rest.iter().copied().max().unwrap_or(0)
    }
}

/// Prompts that are answered at once.
pub struct Batch(pub Vec<Together>);

impl Batch {
    /// How many there are.
    pub fn prompts(&self) -> usize {
        self.0.iter().map(|group| group.rest.len()).sum()
    }

    /// Common tokens of all groups.
    pub fn common(&self) -> usize {
        self.0.iter().map(|group| group.common).sum()
    }

    /// Those of the group that has most.
    pub fn most_common(&self) -> usize {
        self.0.iter().map(|group| group.common).max().unwrap_or(0)
    }

    /// Those of the prompts of a group, at most `size` of them, each with the common ones.
    pub fn with_trunks(&self, size: usize) -> usize {
        let of = |group: &Together| group.rest.len().min(size) * (group.common + group.longest());
        self.0.iter().map(of).max().unwrap_or(0)
    }

    /// Tokens of the longest prompt behind the common ones.
    pub fn longest(&self) -> usize {
        self.0.iter().map(Together::longest).max().unwrap_or(0)
    }
}

/// One training sample: its tokens, those with a label, and those of what it shows.
pub struct Sequence {
    pub tokens: usize,
    pub labels: usize,
    pub media_tokens: usize,
}

/// Everything that the estimate is made from.
pub struct Facts {
    pub recipe: Recipe,
    pub config: Config,
    pub counts: BTreeMap<Part, PartCount>,
    /// Numbers of each layer whose weights are quantised.
    pub quantised: BTreeMap<String, usize>,
    pub on_cpu: bool,
    /// How many share the work.
    pub devices: usize,
    /// Bytes of one weight and of one number of an activation.
    pub width: usize,
    pub tokenizer_bytes: usize,
    /// What makes the media take fewer tokens.
    pub smaller: &'static str,
    /// What each file is that is shown: `video`, `image` or `file`.
    pub medium: &'static str,
    /// Of every video and image, once for each way in which it is shown.
    pub grids: Vec<MediaGrid>,
    /// Bytes of the largest file's sampled frames, as decoded and as resized.
    pub frames: [usize; 2],
    pub course: Course,
    /// Bytes of all encoded samples, those held back too.
    pub sample_bytes: usize,
    /// How many questions all lists of them hold together.
    pub listed: usize,
    pub training: Vec<Sequence>,
    pub validation: Vec<Batch>,
    /// What is asked before and after, in all rounds: batch by batch.
    pub asked: Vec<Batch>,
}

pub fn gather(mut recipe: Recipe, terminal: &Terminal) -> Result<Facts> {
    let (on_cpu, dtype) = device::planned(&recipe.model)?;
    judge::check(&recipe.eval.judge)?;
    let place = places::checkpoint_without_weights(&recipe.model.path, terminal)?;
    recipe.model.path = place.path;
    let (config, chat, reader) = read_checkpoint(&place.dir, &recipe)?;
    let counts = counts(&recipe, &config)?;
    let questions = Questions::read(&recipe, true, terminal)?;
    let devices = recipe.model.device.number();
    let device = match devices {
        _ if on_cpu => "cpu".to_owned(),
        1 => "a GPU".into(),
        n => format!("{n} GPUs"),
    };
    let device = recipe.model.held(&device);
    terminal::model(&places::name(&recipe.model.path), &counts, &device, terminal);
    let parts = &questions.parts;
    terminal::data(&recipe, &questions.entries, &parts.split, parts.all(), terminal);
    terminal::mirrored(&recipe, questions.learned(), terminal);
    let Questions { dir, rounds, samples, shown, .. } = &questions;
    let (grids, frames) = outlines(&reader, dir, shown, terminal)?;
    let encoder =
        Encoder { recipe: &recipe, config: &config, chat: &chat, grids: &grids, terminal };
    let together = |round: &Round| -> Result<Vec<Batch>> {
        let together = |group: &Vec<usize>| {
            let prompts = group.iter().map(|i| encoder.prompt(round, &round.asks[*i]));
            Ok(Together::new(&prompts.collect::<Result<Vec<_>>>()?))
        };
        let batches = batches(&round.asks, &round.view, recipe.eval.batch_size);
        let batch = |groups: &Vec<Vec<usize>>| {
            Ok(Batch(groups.iter().map(together).collect::<Result<_>>()?))
        };
        batches.iter().map(batch).collect()
    };
    let asked: Vec<Vec<Batch>> = rounds.iter().map(together).collect::<Result<_>>()?;
    let validation = together(&Round::plain(questions.validating(), &recipe.eval.formats))?;
    let examples = encoder.samples(&samples.distinct)?;
    let held_back = encoder.samples(&held_back(&recipe, questions.validating()))?;
    let encoded = examples.samples.iter().chain(&held_back.samples);
    let sample_bytes = encoded.map(Sample::bytes).sum();
    let training = sequences(&encoder, &examples);
    check_weights(&recipe, &place.dir, &config)?;
    let quantised = recipe.model.quantize.map(|_| weights::quantisable(&config)).transpose()?;
    let file = std::fs::metadata(place.dir.join("tokenizer.json"));
    Ok(Facts {
        tokenizer_bytes: file.map_or(0, |file| file.len() as usize),
        width: dtype.size(),
        config,
        counts,
        quantised: quantised.unwrap_or_default(),
        on_cpu,
        devices,
        frames,
        course: Course::new(&recipe.train, samples.epochs[0].len()),
        sample_bytes,
        listed: questions.listed(),
        training,
        validation,
        asked: asked.into_iter().flatten().collect(),
        smaller: smaller(shown.iter().map(|shown| &shown.medium)).unwrap_or_default(),
        medium: questions.medium(),
        grids: shown.iter().map(|shown| grids[&shown.medium]).collect(),
        recipe,
    })
}

/// The sizes of training samples.
fn sequences(encoder: &Encoder, examples: &Examples) -> Vec<Sequence> {
    let both = examples.samples.iter().zip(&examples.shown);
    let sequences = both.map(|(sample, shown)| Sequence {
        tokens: sample.input_ids.len(),
        labels: label_tokens(&sample.labels),
        media_tokens: encoder.tokens(shown).iter().sum(),
    });
    sequences.collect()
}

impl Facts {
    /// Prints them.
    pub fn print_sizes(&self, terminal: &Terminal) {
        let n = self.training.len();
        let mean = |of: fn(&Sequence) -> usize| {
            self.training.iter().map(of).sum::<usize>() as f64 / n as f64
        };
        let longest = self.training.iter().map(|s| s.tokens).max().unwrap_or(0);
        terminal.line(&format!(
            "tokens {:.0} a training sample, {} the longest; {:.0} of them visual, {:.1} learned",
            mean(|s| s.tokens),
            thousands(longest),
            mean(|s| s.media_tokens),
            mean(|s| s.labels)
        ));
        let course = self.course;
        terminal.line(&format!(
            "steps  {} of {} samples, {} an epoch, {} of warm-up",
            thousands(course.steps),
            self.recipe.train.samples_per_step(),
            thousands(course.steps_per_epoch),
            course.warmup
        ));
    }
}
