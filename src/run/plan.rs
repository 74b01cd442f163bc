//! `plan`: what a run would need, from headers alone: parameters, tokens, steps, memory and time.
//!
//! Neither weights nor frames are read, and no accelerator is touched.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor};

use super::encoder::{Encoder, Examples, held_back, outlines, smaller};
use super::folder;
use super::prepare::{Divided, adopt_adapter, all_shown, divide, plan_samples, read_checkpoint};
use crate::data::entry;
use crate::device;
use crate::error::{Error, Result};
use crate::eval::predict::groups;
use crate::eval::rounds::{Round, rounds};
use crate::features::{AHEAD, IN_MEMORY, readers};
use crate::model::config::Config;
use crate::model::parameters::PartCount;
use crate::model::peft;
use crate::model::rope::MediaGrid;
use crate::model::weights;
use crate::number::{clock, size, thousands};
use crate::places;
use crate::recipe::{Best, Part, Recipe};
use crate::report::terminal::{self, Terminal};
use crate::train::batches::tokens_at_once;
use crate::train::gradients::{GPU_MULTIPLE, LOGITS_AT_ONCE, padded_length};
use crate::train::lanes;
use crate::train::loss::label_tokens;
use crate::train::schedule::Course;

/// What the program holds beside all that is counted: code, libraries, question files, and what the
/// allocator keeps of what was freed.
const BASE_BYTES: usize = 115 << 20;
/// What the allocator keeps of what one more thread frees.
const LANE_BYTES: usize = 40 << 20;
/// Bytes in memory of one byte of `tokenizer.json`.
const TOKENIZER: usize = 8;
/// Share of the speed of one large matrix product that a whole pass reaches on the CPU.
const CPU_SHARE: f64 = 0.5;
/// What is assumed of a GPU: an H100's 989 TFLOP/s in bf16, and 40 % of them.
const GPU_FLOPS: f64 = 0.4 * 989e12;

/// One part of a phase's memory.
struct Term {
    what: &'static str,
    bytes: usize,
    /// What makes it smaller.
    lower: &'static str,
}

/// A phase of a run.
struct Phase {
    name: &'static str,
    terms: Vec<Term>,
    /// Arithmetic, and how often.
    flops: f64,
    times: String,
}

impl Phase {
    fn bytes(&self) -> usize {
        self.terms.iter().map(|term| term.bytes).sum()
    }

    /// Its terms, the largest first.
    fn by_size(&self) -> Vec<&Term> {
        let mut terms: Vec<&Term> = self.terms.iter().collect();
        terms.sort_by_key(|term| std::cmp::Reverse(term.bytes));
        terms
    }

    /// How much it needs, and most of it for what.
    fn describe(&self) -> String {
        let part = |term: &&Term| format!("{} {}", term.what, size(term.bytes as u64));
        let parts: Vec<String> = self.by_size().iter().take(4).map(part).collect();
        format!("{} in `{}`: {}", size(self.bytes() as u64), self.name, parts.join(", "))
    }

    /// What makes it smaller, what helps most first.
    fn lower(&self) -> String {
        let mut lower: Vec<&str> = Vec::new();
        for term in self.by_size() {
            if !term.lower.is_empty() && !lower.contains(&term.lower) {
                lower.push(term.lower);
            }
        }
        lower.join("; or ")
    }
}

/// Prompts that are answered together: on the same videos, or without any.
struct Together {
    /// First tokens that all share, those of the videos among them; they are read once.
    common: usize,
    /// Tokens of each behind them.
    rest: Vec<usize>,
}

impl Together {
    fn new(prompts: &[Vec<u32>]) -> Self {
        let first = prompts.first().map_or(&[][..], |ids| ids);
        let shared = |ids: &Vec<u32>| ids.iter().zip(first).take_while(|(a, b)| a == b).count();
        let common = prompts.iter().map(shared).min().unwrap_or_default();
        Self { common, rest: prompts.iter().map(|ids| ids.len() - common).collect() }
    }

    /// Tokens of the longest behind the common ones.
    fn longest(&self) -> usize {
        self.rest.iter().copied().max().unwrap_or(0)
    }
}

/// One training sample: its tokens, those with a label, and those of its videos.
struct Sequence {
    tokens: usize,
    labels: usize,
    video_tokens: usize,
}

/// Everything that the estimate is made from.
struct Facts {
    recipe: Recipe,
    config: Config,
    counts: BTreeMap<Part, PartCount>,
    on_cpu: bool,
    /// Bytes of one weight and of one number of an activation.
    width: usize,
    tokenizer_bytes: usize,
    /// What makes the media take fewer tokens.
    smaller: &'static str,
    /// Of every video and image, once for each way in which it is shown.
    grids: Vec<MediaGrid>,
    /// Bytes of the largest video's sampled frames, as decoded and as resized.
    frames: [usize; 2],
    course: Course,
    training: Vec<Sequence>,
    validation: Vec<Together>,
    /// What is asked before and after, in all rounds.
    asked: Vec<Together>,
}

/// Prints what the recipe at `path` would need. `memory` is what there is, in bytes; on the CPU
/// that of this machine where left out.
///
/// # Errors
/// Wrong input, or a run that does not fit.
pub fn plan(path: &Path, runs: &Path, memory: Option<usize>, terminal: &Terminal) -> Result<()> {
    let mut recipe = Recipe::from_file(path)?;
    let note = adopt_adapter(&mut recipe)?;
    terminal.line(&format!(
        "{} → {} (a plan: nothing is run)",
        path.display(),
        folder(runs, path).display()
    ));
    note.iter().for_each(|note| terminal.note(note));
    let facts = gather(recipe, terminal)?;
    let phases = facts.phases();
    facts.print_sizes(terminal);
    let speed = if facts.on_cpu { CPU_SHARE * matrix_speed(&facts.config)? } else { GPU_FLOPS };
    terminal.line("phase        memory      time");
    for phase in &phases {
        let time = clock(Duration::from_secs_f64(phase.flops / speed));
        let memory = size(phase.bytes() as u64);
        terminal.line(&format!("{:<10} {memory:>8} {time:>9}   {}", phase.name, phase.times));
    }
    let assumed = match facts.on_cpu {
        true => format!("{:.0} GFLOP/s, half of what a matrix product reaches here", speed / 1e9),
        false => "40 % of an H100's 989 TFLOP/s".into(),
    };
    terminal.note(&format!("times are of arithmetic at {assumed}; reading videos adds to them"));
    let Some(peak) = phases.iter().max_by_key(|phase| phase.bytes()) else { return Ok(()) };
    let memory = memory.or_else(|| if facts.on_cpu { available_bytes() } else { None });
    verdict(peak, memory, terminal)
}

/// Says whether the largest phase fits, and what to lower where it does not.
fn verdict(peak: &Phase, memory: Option<usize>, terminal: &Terminal) -> Result<()> {
    terminal.line(&format!("peak   {}", peak.describe()));
    let need = size(peak.bytes() as u64);
    let Some(memory) = memory else {
        terminal.note("how much memory the device has is not known here; --memory GIB says");
        return Ok(());
    };
    let have = size(memory as u64);
    if peak.bytes() <= memory {
        terminal.line(&format!("fits   {need} of {have}"));
        return Ok(());
    }
    let what =
        format!("the run needs about {need} of memory in `{}`, and there are {have}", peak.name);
    Err(Error::input(what).help(peak.lower()))
}

/// What to lower where the recipe at `path` did not fit: what its largest phase was expected to
/// need, and what makes that smaller. `trains` says whether training was part of it.
///
/// # Errors
/// As [`plan`].
pub fn relief(path: &Path, trains: bool, terminal: &Terminal) -> Result<String> {
    let mut recipe = Recipe::from_file(path)?;
    adopt_adapter(&mut recipe)?;
    terminal.note("the memory is full; what the recipe was expected to need:");
    let phases = gather(recipe, terminal)?.phases();
    let asked = |phase: &&Phase| trains || !["training", "validation"].contains(&phase.name);
    let peak = phases.iter().filter(asked).max_by_key(|phase| phase.bytes());
    let peak = peak.ok_or_else(|| Error::run("a run without phases"))?;
    Ok(format!("`plan` expects {}; {}", peak.describe(), peak.lower()))
}

fn gather(mut recipe: Recipe, terminal: &Terminal) -> Result<Facts> {
    let (on_cpu, dtype) = device::planned(&recipe.model)?;
    let place = places::checkpoint_without_weights(&recipe.model.path, terminal)?;
    recipe.model.path = place.path;
    let checkpoint = place.dir;
    let (config, chat, reader) = read_checkpoint(&checkpoint, &recipe)?;
    let place = places::questions(&recipe.data.path, terminal)?;
    let data = place.dir.clone();
    let (entries, _) = entry::read(&data, &recipe.data.subsets())?;
    let Divided { train, val, test, .. } = divide(&recipe, &entries)?;
    let used = || train.iter().chain(&val).chain(&test);
    place.videos(used(), terminal)?;
    entry::check_media(&data, used())?;
    let counts = counts(&recipe, &config)?;
    let device = if on_cpu { "cpu" } else { "a GPU" };
    terminal::model(&places::name(&recipe.model.path), &counts, device, terminal);
    terminal::data(&recipe, &entries, [&train, &val, &test], terminal);
    terminal::mirrored(&recipe, &train, terminal);
    let rounds = rounds(&recipe, &test, &train)?;
    let planned = plan_samples(&recipe, &train)?;
    let shown = all_shown(&planned, &rounds, &val);
    let (grids, frames) = outlines(&reader, &data, &shown, terminal)?;
    let encoder =
        Encoder { recipe: &recipe, config: &config, chat: &chat, grids: &grids, terminal };
    let together = |round: &Round| -> Result<Vec<Together>> {
        let groups = groups(&round.asks, &round.view, recipe.eval.batch_size).into_iter();
        let together = |group: Vec<usize>| {
            let prompts = group.iter().map(|i| encoder.prompt(round, &round.asks[*i]));
            Ok(Together::new(&prompts.collect::<Result<Vec<_>>>()?))
        };
        groups.map(together).collect()
    };
    let asked: Vec<Vec<Together>> = rounds.iter().map(together).collect::<Result<_>>()?;
    let validation = together(&Round::plain(&val, &recipe.eval.formats))?;
    let training = sequences(&encoder, &encoder.samples(&planned.distinct)?);
    encoder.samples(&held_back(&recipe, &val))?;
    let file = std::fs::metadata(checkpoint.join("tokenizer.json"));
    Ok(Facts {
        tokenizer_bytes: file.map_or(0, |file| file.len() as usize),
        width: dtype.size(),
        config,
        counts,
        on_cpu,
        frames,
        course: Course::new(&recipe.train, planned.epochs[0].len()),
        training,
        validation,
        asked: asked.into_iter().flatten().collect(),
        smaller: smaller(used().flat_map(|entry| &entry.media)),
        grids: shown.iter().map(|shown| grids[&shown.medium]).collect(),
        recipe,
    })
}

/// The sizes of training samples.
fn sequences(encoder: &Encoder, examples: &Examples) -> Vec<Sequence> {
    let both = examples.samples.iter().zip(&examples.videos);
    let sequences = both.map(|(sample, shown)| Sequence {
        tokens: sample.input_ids.len(),
        labels: label_tokens(&sample.labels),
        video_tokens: encoder.tokens(shown).iter().sum(),
    });
    sequences.collect()
}

/// Parameters of each part, an adapter's too, from shapes alone.
fn counts(recipe: &Recipe, config: &Config) -> Result<BTreeMap<Part, PartCount>> {
    let mut counts = BTreeMap::<Part, PartCount>::new();
    let frozen = recipe.train.frozen();
    for (name, shape) in weights::shapes(config)? {
        let (part, n) = (Part::of(&name), shape.iter().product::<usize>());
        let count = counts.entry(part).or_default();
        count.all += n;
        let trained = recipe.lora.is_none() && !frozen.contains(&part);
        count.trained += if trained { n } else { 0 };
    }
    let adapter = recipe.lora.as_ref().map(|lora| peft::sizes(lora, config)).transpose()?;
    for (name, n) in adapter.into_iter().flatten() {
        let count = counts.entry(Part::of(&name)).or_default();
        count.all += n;
        count.trained += n;
    }
    Ok(counts)
}

impl Facts {
    fn tower_is_trained(&self) -> bool {
        [Part::Vision, Part::Merger].iter().any(|part| self.counts[part].trained > 0)
    }

    /// Bytes of what is kept of all videos: their features, or their frames where the tower is
    /// trained.
    fn kept(&self) -> usize {
        let of = |grid: &MediaGrid| match self.tower_is_trained() {
            true => grid.grid_thw.iter().product::<usize>() * self.config.vision.patch_dim(),
            false => grid.tokens(&self.config.vision) * self.config.text.hidden_size * self.width,
        };
        self.grids.iter().map(of).sum::<usize>().min(IN_MEMORY)
    }

    /// What every phase holds.
    fn held(&self) -> Vec<Term> {
        let trained: usize = self.counts.values().map(|count| count.trained).sum();
        let all: usize = self.counts.values().map(|count| count.all).sum();
        let adapter = if self.recipe.lora.is_some() { trained } else { 0 };
        let base = BASE_BYTES + TOKENIZER * self.tokenizer_bytes;
        vec![
            Term { what: "program", bytes: base, lower: "" },
            Term {
                what: "weights",
                bytes: (all - adapter) * self.width + 4 * adapter,
                lower: if self.width == 4 && !self.on_cpu {
                    "set model.dtype = \"bf16\""
                } else {
                    "take a smaller model"
                },
            },
        ]
    }

    fn phases(&self) -> Vec<Phase> {
        let (train, eval) = (&self.recipe.train, &self.recipe.eval);
        let new = eval.max_new_tokens();
        let mut phases = vec![self.reading()];
        if !self.asked.is_empty() {
            phases.push(self.asking("before", &self.asked, 1, new));
        }
        phases.push(self.training());
        if !self.validation.is_empty() {
            let course = self.course;
            let every = train.eval_steps.unwrap_or(course.steps_per_epoch);
            let times = course.steps.div_ceil(every);
            // The loss alone is measured without answers.
            let new = if train.best() == Best::Loss { 0 } else { new };
            phases.push(self.asking("validation", &self.validation, times, new));
        }
        if !self.asked.is_empty() {
            phases.push(self.asking("after", &self.asked, 1, new));
        }
        phases
    }

    /// Decoding and the vision tower; frames wait in memory for it.
    fn reading(&self) -> Phase {
        let vision = &self.config.vision;
        let patches = |grid: &MediaGrid| grid.grid_thw.iter().product::<usize>();
        let largest = self.grids.iter().map(patches).max().unwrap_or(0);
        let workers = readers();
        let waiting =
            workers * self.frames[0] + (workers + AHEAD).min(self.grids.len()) * self.frames[1];
        let tower = match self.tower_is_trained() {
            true => 0,
            false => largest * (2 * 4 * vision.patch_dim() + self.width * vision.block()),
        };
        let mut terms = self.held();
        terms.push(Term { what: "frames", bytes: waiting, lower: self.smaller });
        terms.push(Term { what: "vision tower", bytes: tower, lower: self.smaller });
        terms.push(Term { what: "features", bytes: self.kept(), lower: self.smaller });
        let flops = match self.tower_is_trained() {
            true => 0.0,
            false => self.grids.iter().map(|grid| self.config.tower_flops(grid.grid_thw)).sum(),
        };
        let times = format!(
            "{} videos of at most {} patches",
            thousands(self.grids.len()),
            thousands(largest)
        );
        Phase { name: "videos", terms, flops, times }
    }

    /// Answers of at most `new` tokens to all of `asked`, `times` times.
    fn asking(&self, name: &'static str, asked: &[Together], times: usize, new: usize) -> Phase {
        let config = &self.config.text;
        let rows = |group: &Together| group.rest.len().min(self.recipe.eval.batch_size);
        let most = |of: &dyn Fn(&Together) -> usize| asked.iter().map(of).max().unwrap_or(0);
        let at_once = most(&|group| group.common.max(rows(group) * group.longest()));
        let cached = most(&|group| group.common + rows(group) * (group.longest() + new));
        let mut terms = self.held();
        let bytes = self.width * cached * config.cache();
        terms.push(Term { what: "keys and values", bytes, lower: self.smaller });
        let bytes = self.width * at_once * config.tape();
        terms.push(Term { what: "activations", bytes, lower: "lower eval.batch_size" });
        let bytes = 3 * 4 * most(&rows) * config.vocab_size;
        terms.push(Term { what: "logits", bytes, lower: "lower eval.batch_size" });
        terms.push(Term { what: "features", bytes: self.kept(), lower: self.smaller });
        let answer = new as f64 * (config.forward_flops(1) + config.logits_flops());
        let group = |group: &Together| {
            let rest: f64 = group.rest.iter().map(|t| config.forward_flops(*t) + answer).sum();
            config.forward_flops(group.common) + rest
        };
        let flops = times as f64 * asked.iter().map(group).sum::<f64>();
        let prompts = thousands(asked.iter().map(|group| group.rest.len()).sum());
        let again = if times > 1 { format!("{times} × ") } else { String::new() };
        let times = format!("{again}{prompts} prompts, {new} new tokens at most");
        Phase { name, terms, flops, times }
    }

    fn training(&self) -> Phase {
        let train = &self.recipe.train;
        let dropout = self.recipe.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0);
        let lanes = lanes::number(self.in_f32_on_cpu(), dropout, train.samples_per_step());
        let mut terms = self.held();
        let kept = (lanes - 1) * LANE_BYTES;
        terms.push(Term { what: "the second sample's thread", bytes: kept, lower: "" });
        terms.extend(self.learned_terms(lanes));
        terms.push(Term { what: "features", bytes: self.kept(), lower: self.smaller });
        terms.extend(self.pass_terms(lanes));
        terms.extend(self.tower_term(lanes));
        let (steps, samples) = (thousands(self.course.steps), train.samples_per_step());
        let times = format!("{steps} steps of {samples} samples");
        Phase { name: "training", terms, flops: self.training_flops(), times }
    }

    fn in_f32_on_cpu(&self) -> bool {
        self.on_cpu && self.width == 4
    }

    /// What is held for each number that is trained.
    fn learned_terms(&self, lanes: usize) -> Vec<Term> {
        const ADAPTER: &str = "train an adapter: add [lora]";
        let (text, full) = (&self.config.text, self.recipe.lora.is_none());
        let trained: usize = self.counts.values().map(|count| count.trained).sum();
        let master = if self.width < 4 && full { 4 } else { 0 };
        let mut terms = vec![Term {
            what: "gradients and moments",
            bytes: trained * (2 * 4 + lanes * 4 + master),
            lower: if full { ADAPTER } else { "lower lora.r" },
        }];
        if full && self.counts[&Part::Language].trained > 0 {
            let bytes = lanes * 2 * 4 * text.vocab_size * text.hidden_size;
            terms.push(Term { what: "the embedding's gradient", bytes, lower: ADAPTER });
        }
        terms
    }

    /// What the passes through the language model hold.
    fn pass_terms(&self, lanes: usize) -> Vec<Term> {
        let (text, train) = (&self.config.text, &self.recipe.train);
        let multiple = if self.in_f32_on_cpu() { 1 } else { GPU_MULTIPLE };
        let padded = |s: &Sequence| padded_length(s.tokens, multiple);
        let longest = self.training.iter().map(padded).max().unwrap_or(0);
        let labels = self.training.iter().map(|s| s.labels).max().unwrap_or(0);
        let layers = text.num_hidden_layers;
        // Of what goes through the model together: samples, and tokens of all.
        let (joined, tokens) = if self.in_f32_on_cpu() || self.tower_is_trained() {
            (1, longest)
        } else {
            let step = train.samples_per_step();
            let free = tokens_at_once(text, train.recompute, self.width).min(longest * step);
            (step, free.max(longest * train.batch_size))
        };
        let mut terms = Vec::new();
        let tape = lanes * self.width * tokens * text.tape();
        if train.recompute {
            let lower = match joined > 1 && train.batch_size > 1 {
                true => "lower train.batch_size, and raise train.grad_accum by as much",
                false => self.smaller,
            };
            let inputs = lanes * self.width * tokens * layers * text.hidden_size;
            terms.push(Term { what: "layer inputs", bytes: inputs, lower });
            let layer = "one layer and its gradients";
            terms.push(Term { what: layer, bytes: 2 * tape, lower });
        } else {
            let lower = "set train.recompute = true";
            terms.push(Term { what: "activations", bytes: (layers + 1) * tape, lower });
        }
        if self.on_cpu != (self.width == 4) {
            // In f32: scores, weights, and the gradients of both; weights once more for the product.
            let at_once = if train.recompute { 1 } else { layers };
            let scores = text.scores(longest) * tokens.div_ceil(longest.max(1));
            let bytes = at_once * 4 * (4 + usize::from(self.width < 4)) * scores;
            terms.push(Term { what: "attention's scores", bytes, lower: self.smaller });
        }
        let logits = (joined * labels * text.vocab_size).min(LOGITS_AT_ONCE.max(text.vocab_size));
        terms.push(Term { what: "logits", bytes: lanes * 3 * 4 * logits, lower: self.smaller });
        terms
    }

    /// What a pass through the vision tower holds, where it is trained.
    fn tower_term(&self, lanes: usize) -> Option<Term> {
        let vision = &self.config.vision;
        let tokens = self.training.iter().map(|s| s.video_tokens).max().unwrap_or(0);
        let of_patch =
            2 * 4 * vision.patch_dim() + self.width * (self.config.tower_tape() + vision.block());
        self.tower_is_trained().then(|| Term {
            what: "vision tower",
            bytes: lanes * tokens * vision.merge_unit() * of_patch,
            lower: "freeze the vision tower, or lower video.max_pixels or video.max_frames",
        })
    }

    fn training_flops(&self) -> f64 {
        let (text, train) = (&self.config.text, &self.recipe.train);
        let samples = self.course.steps * train.samples_per_step();
        // Gradients with respect to inputs, and where weights are trained to them too.
        let backward = if self.recipe.lora.is_some() { 1.0 } else { 2.0 };
        let passes = 1.0 + backward + f64::from(u8::from(train.recompute));
        let of = |s: &Sequence| {
            passes * text.forward_flops(s.tokens)
                + (1.0 + backward) * s.labels as f64 * text.logits_flops()
        };
        let mean = self.training.iter().map(of).sum::<f64>() / self.training.len() as f64;
        let tower = if self.tower_is_trained() {
            let all: f64 =
                self.grids.iter().map(|grid| self.config.tower_flops(grid.grid_thw)).sum();
            (1.0 + 2.0 * backward) * all / self.grids.len().max(1) as f64
        } else {
            0.0
        };
        samples as f64 * (mean + tower)
    }

    fn print_sizes(&self, terminal: &Terminal) {
        let n = self.training.len();
        let mean = |of: fn(&Sequence) -> usize| {
            self.training.iter().map(of).sum::<usize>() as f64 / n as f64
        };
        let longest = self.training.iter().map(|s| s.tokens).max().unwrap_or(0);
        terminal.line(&format!(
            "tokens {:.0} a training sample, {} the longest; {:.0} of them video, {:.1} learned",
            mean(|s| s.tokens),
            thousands(longest),
            mean(|s| s.video_tokens),
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

/// Floating-point operations a second of a product of the model's own size on this CPU.
fn matrix_speed(config: &Config) -> Result<f64> {
    let device = Device::flex();
    let (t, i, o) = (512, config.text.hidden_size, config.text.intermediate_size);
    let ones = |shape: [usize; 2]| Tensor::<2>::ones(shape, (&device, DType::F32));
    let (x, w) = (ones([t, i]), ones([i, o]));
    let product =
        || crate::model::host::host(x.clone().matmul(w.clone()).narrow(0, 0, 1)).map(drop);
    product()?;
    let (start, mut n) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_millis(200) {
        product()?;
        n += 1;
    }
    Ok(2.0 * (n * t * i * o) as f64 / start.elapsed().as_secs_f64())
}

/// Bytes that a new process can have on this machine.
fn available_bytes() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.split_whitespace().next()?.parse().ok()?;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|limit| limit.trim().parse().ok()).unwrap_or(usize::MAX);
    Some(limit.min(1024 * kib))
}
