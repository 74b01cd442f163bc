//! A run on the terminal: plain lines on standard output, progress bars on standard error where
//! that is a terminal.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::data::augment::mirrorable;
use crate::data::entry::Entry;
use crate::data::vlm4d::Format;
use crate::error::{Error, Result};
use crate::eval::judge::Cost;
use crate::eval::metrics::{Metrics, metrics, paired};
use crate::eval::predict::{self, Prediction};
use crate::eval::stats::Metric;
use crate::features::Videos;
use crate::model::parameters::PartCount;
use crate::recipe::{Best, Part, Recipe};
use crate::train::log::Record;
use crate::train::schedule::Course;
use crate::train::trainer::Trained;
use crate::train::validation::{Scores, Validation};

/// All bars on standard error, so that each knows of the lines above it.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Why a line could not be written, where that is not that nobody reads any more.
static LOST: OnceLock<String> = OnceLock::new();

/// Lines of training progress where standard error is no terminal.
const LINES: usize = 20;

/// Where a run's lines go.
#[derive(Clone, Debug, Default)]
pub struct Terminal;

/// Whether all lines were written.
///
/// # Errors
/// Why one was not, as on a full disk.
pub fn written() -> Result<()> {
    match LOST.get() {
        None => Ok(()),
        Some(why) => Err(Error::run(format!("standard output cannot be written: {why}"))),
    }
}

impl Terminal {
    /// Prints one line; a reader that has gone away is no error.
    pub fn line(&self, text: &str) {
        // Where the terminal has gone away `suspend` would panic.
        if BARS.clear().is_err() {
            BARS.set_draw_target(ProgressDrawTarget::hidden());
        }
        let written = BARS.suspend(|| writeln!(std::io::stdout(), "{text}"));
        if let Err(e) = written
            && e.kind() != std::io::ErrorKind::BrokenPipe
        {
            LOST.get_or_init(|| e.to_string());
        }
    }

    /// A progress bar over `n` things.
    pub fn bar(&self, label: &str, n: usize) -> Bar {
        Bar::new(label, n as u64, "{msg:>16} {bar:30} {pos}/{len}  {eta} left")
    }

    /// A progress bar over so many bytes.
    pub fn bytes_bar(&self, label: &str, bytes: u64) -> Bar {
        let template = "{msg:>16} {bar:30} {binary_bytes}/{binary_total_bytes}  \
                        {binary_bytes_per_sec}  {eta} left";
        Bar::new(label, bytes, template)
    }

    /// Progress of the training, from step `done` on.
    pub fn steps(&self, course: &Course, done: usize) -> Steps {
        if done < course.steps {
            self.line("  step    loss      lr  grad norm  tokens/s  memory    left");
        }
        let bar = self.bar("training", course.steps);
        bar.set(done);
        Steps {
            bar,
            terminal: self.clone(),
            started: Instant::now(),
            first: done,
            total: course.steps,
            every: course.steps.div_ceil(LINES).max(1),
            work: Mutex::default(),
        }
    }
}

/// A progress bar.
pub struct Bar(ProgressBar);

impl Bar {
    fn new(label: &str, length: u64, template: &str) -> Self {
        let style = ProgressStyle::with_template(template);
        let bar = BARS.add(ProgressBar::new(length));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(label.to_owned());
        Self(bar)
    }

    /// So many are done.
    pub fn set(&self, done: usize) {
        self.0.set_position(done as u64);
    }

    /// So many there are.
    pub fn set_length(&self, all: usize) {
        self.0.set_length(all as u64);
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.0.finish_and_clear();
        BARS.remove(&self.0);
    }
}

/// Progress of the training.
pub struct Steps {
    bar: Bar,
    terminal: Terminal,
    started: Instant,
    first: usize,
    total: usize,
    every: usize,
    /// Tokens of the steps, and the seconds that these took.
    work: Mutex<(usize, f64)>,
}

impl Steps {
    /// One more step is done.
    pub fn step(&self, record: &Record) {
        self.bar.set(record.step);
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        *work = (work.0 + record.tokens, work.1 + record.seconds);
        if !record.step.is_multiple_of(self.every) && record.step != self.total {
            return;
        }
        let elapsed = self.started.elapsed();
        let left =
            elapsed / (record.step - self.first).max(1) as u32 * (self.total - record.step) as u32;
        let rate = work.0 as f64 / work.1.max(1e-9);
        self.terminal.line(&format!(
            "{:6}  {:6.3}  {:6.1e}  {:9.2}  {:>8}  {:>6}  {:>6}",
            record.step,
            record.loss,
            record.lr,
            record.grad_norm,
            thousands(rate as usize),
            gibibytes(record.memory_bytes),
            clock(left)
        ));
    }

    /// A validation is done.
    pub fn validation(&self, validation: &Validation) {
        let best = if validation.best { "   best so far" } else { "" };
        let scores = scores(&validation.scores);
        self.terminal.line(&format!("{:6}  validation {scores}{best}", validation.step));
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish();
    }
}

/// `loss 1.234   mc 53.5   ff 50.7`
fn scores(scores: &Scores) -> String {
    let accuracies = scores
        .accuracy
        .iter()
        .map(|(format, share)| format!("   {} {:.1}", format_name(*format), 100.0 * share));
    format!("loss {:.3}{}", scores.loss, accuracies.collect::<String>())
}

/// Prints how the training ended and which of its checkpoints is the result, where it was
/// validated.
pub fn trained(trained: &Trained, course: &Course, by: Best, terminal: &Terminal) {
    let Some((step, best)) = &trained.best else { return };
    if trained.step < course.steps {
        terminal.line(&format!(
            "note   stopped early, after step {} of {}: no validation was better than that of step {step}",
            trained.step, course.steps
        ));
    }
    let by = match by {
        Best::Accuracy => "accuracy",
        Best::Loss => "loss",
    };
    terminal.line(&format!(
        "best   step {step} of {} by validation {by}: {}; it is the result",
        trained.step,
        scores(best)
    ));
}

/// Prints what the model is, and which of its parts are trained; `path` is a folder or `ORG/NAME`.
pub fn model(path: &str, counts: &BTreeMap<Part, PartCount>, device: &str, terminal: &Terminal) {
    let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
    let all: usize = counts.values().map(|count| count.all).sum();
    let trained: usize = counts.values().map(|count| count.trained).sum();
    terminal.line(&format!(
        "model  {name}  {} parameters, {} trained ({:.2} %), on {device}",
        short(all),
        short(trained),
        100.0 * trained as f64 / all.max(1) as f64
    ));
    let parts = counts.iter().map(|(part, count)| {
        let name = match part {
            Part::Language => "language",
            Part::Vision => "vision",
            Part::Merger => "merger",
        };
        match (count.trained, count.all - count.trained) {
            (0, frozen) => format!("{name} {} frozen", short(frozen)),
            (trained, 0) => format!("{name} {} trained", short(trained)),
            (trained, frozen) => {
                format!("{name} {} frozen + {} trained", short(frozen), short(trained))
            }
        }
    });
    terminal.line(&format!("       {}", parts.collect::<Vec<_>>().join("   ")));
}

/// Prints what the data is.
pub fn data(recipe: &Recipe, all: &[Entry], parts: [&[Entry]; 3], terminal: &Terminal) {
    for subset in recipe.data.subsets() {
        let of = |entries: &[Entry]| entries.iter().filter(|e| e.subset == subset).count();
        let videos: BTreeSet<_> =
            all.iter().filter(|e| e.subset == subset).flat_map(|e| &e.videos).collect();
        let sizes = ["train", "val", "test"].into_iter().zip(parts);
        let sizes = sizes
            .filter(|(name, part)| *name != "val" || of(part) > 0)
            .map(|(name, part)| format!("{name} {}", thousands(of(part))));
        terminal.line(&format!(
            "data   {subset} {} questions on {} videos: {}, {}",
            thousands(of(all)),
            thousands(videos.len()),
            sizes.collect::<Vec<_>>().join("  "),
            recipe.data.split.told()
        ));
    }
}

/// Prints where the videos came from, and what keeping them saves a run that uses them `uses`
/// times.
pub fn videos(videos: &Videos, uses: usize, terminal: &Terminal) {
    let s = &videos.summary;
    let place = videos.cache_dir().map(|dir| dir.display().to_string());
    let made = s.videos - s.from_cache;
    let found = match &place {
        Some(dir) => format!("{} from {dir}, {} made", thousands(s.from_cache), thousands(made)),
        None => format!("{} made", thousands(made)),
    };
    // What the run would spend, did each use decode its video and run the vision tower.
    let each = s.cost_s / s.videos.max(1) as f64;
    let saved = (each * uses as f64 - s.elapsed_s).max(0.0);
    terminal.line(&format!(
        "videos {found} in {}; each is used {:.0} times: about {} saved",
        seconds(s.elapsed_s),
        (uses as f64 / s.videos.max(1) as f64).max(1.0),
        seconds(saved)
    ));
    if let Some(first) = s.sideways.first() {
        let more = match s.sideways.len() - 1 {
            0 => String::new(),
            n => format!(" (and {} more)", thousands(n)),
        };
        terminal.line(&format!(
            "note   {}{more} would be turned by a player and are used as coded, as PyAV and \
             LLaMA-Factory do; video.upright = true turns them",
            first.display()
        ));
    }
    if s.damaged > 0 {
        let n = thousands(s.damaged);
        terminal.line(&format!("note   {n} damaged entries of the cache were made anew"));
    }
    if let (Some(why), Some(dir)) = (&s.trouble, &place) {
        terminal.line(&format!("note   {dir} cannot be written ({why}): videos are read again"));
    }
    if s.again {
        terminal.line(&format!(
            "note   the videos' {} fit neither in memory nor in the cache: some are read for each \
             use. Raise data.cache_gib",
            size(s.bytes as u64)
        ));
    }
}

/// Prints how many training questions can be mirrored, and why the others are left alone.
pub fn mirrored(entries: &[Entry], terminal: &Terminal) {
    let (can, left_alone) = mirrorable(entries);
    let reasons: Vec<String> =
        left_alone.iter().map(|(why, n)| format!("{why} {}", thousands(*n))).collect();
    terminal.line(&match reasons.is_empty() {
        true => format!("note   all {} training questions can be mirrored", thousands(can)),
        false => format!(
            "note   {} of {} training questions can be mirrored; left alone: {}",
            thousands(can),
            thousands(entries.len()),
            reasons.join(", ")
        ),
    });
}

/// Prints the accuracies of one evaluation.
pub fn accuracy(name: &str, predictions: &[Prediction], seed: u64, terminal: &Terminal) {
    terminal.line(&accuracy_line(name, predictions, seed));
}

/// Prints circular accuracy and the controls, with what the questions as they are get more.
pub fn controls(metrics: &Metrics, terminal: &Terminal) {
    if let Some(circular) = metrics.formats.get(&Format::Mc).and_then(|mc| mc.circular.as_ref()) {
        let n = circular.rotations.len();
        let overall = percent(&circular.overall);
        terminal
            .line(&format!("         mc {overall}, right under all {n} rotations of the choices"));
    }
    for (name, formats) in &metrics.controls {
        let parts = formats.iter().map(|(format, of)| {
            let gain = of.gain.map_or_else(String::new, |gain| {
                let [low, high] = gain.ci95.map(|share| 100.0 * share);
                format!(", true video {:+.1} [{low:+.1}, {high:+.1}]", 100.0 * gain.difference)
            });
            format!("{} {}{gain}", format_name(*format), percent(&of.breakdown.overall))
        });
        let parts: Vec<String> = parts.collect();
        terminal.line(&format!("         {:<12} {}", name.replace('_', " "), parts.join("   ")));
    }
}

/// Prints what judging took.
pub fn judged(judge: &str, label: &str, cost: &Cost, terminal: &Terminal) {
    let price = cost.price.map_or_else(String::new, |price| format!(", cost {price:.4}"));
    let retries = match cost.retries {
        0 => String::new(),
        n => format!(", {n} sent again"),
    };
    terminal.line(&format!(
        "judge  {label}: {judge} on {} freeform responses that the rules do not accept, {} more from its cache{retries}; {} + {} tokens{price}",
        cost.asked,
        cost.cached,
        thousands(cost.prompt_tokens as usize),
        thousands(cost.completion_tokens as usize)
    ));
}

fn accuracy_line(name: &str, predictions: &[Prediction], seed: u64) -> String {
    let formats = metrics(predictions, &BTreeMap::new(), seed).formats;
    let parts = formats
        .iter()
        .map(|(f, m)| format!("{} {}", format_name(*f), percent(&m.breakdown.overall)));
    let parts: Vec<String> = parts.collect();
    match parts.is_empty() {
        true => format!("{name:<6} nothing to test (data.split.test is 0)"),
        false => format!("{name:<6} {}", parts.join("   ")),
    }
}

/// Prints the results of a finished run from its files.
///
/// # Errors
/// Where they cannot be read.
pub fn results(dir: &Path, terminal: &Terminal) -> Result<()> {
    let recipe = Recipe::of_run(dir)?;
    let read = |stage: &str| predict::read(&dir.join(stage).join("predictions.jsonl"));
    let (before, after) = (read("before")?, read("after")?);
    accuracy("before", &before, recipe.seed, terminal);
    accuracy("after", &after, recipe.seed, terminal);
    change(&before, &after, recipe.seed, terminal);
    terminal.line(&format!("report {}", dir.join("report.html").display()));
    Ok(())
}

/// Prints what changed from before to after.
pub fn change(before: &[Prediction], after: &[Prediction], seed: u64, terminal: &Terminal) {
    let changes =
        [Format::Mc, Format::Ff].map(|format| (format, paired(before, after, format, seed)));
    let parts: Vec<String> = changes
        .iter()
        .filter(|(_, paired)| paired.n > 0)
        .map(|(format, p)| {
            let [low, high] = p.ci95.map(|share| 100.0 * share);
            let change = 100.0 * p.difference;
            format!("{} {change:+.1} [{low:+.1}, {high:+.1}]", format_name(*format))
        })
        .collect();
    if !parts.is_empty() {
        terminal.line(&format!("change {}   (paired, 95 %)", parts.join("   ")));
    }
}

/// `mc` or `ff`.
pub fn format_name(format: Format) -> &'static str {
    match format {
        Format::Mc => "mc",
        Format::Ff => "ff",
    }
}

/// `38.2 ±5.6 (n 275)`: percent and half the interval's width; `0.0 [0.0, 70.8] (n 6)` where the
/// interval reaches more than twice as far to one side, and ± would mislead.
pub fn percent(metric: &Metric) -> String {
    let [value, low, high] =
        [metric.accuracy, metric.ci95[0], metric.ci95[1]].map(|share| 100.0 * share);
    let (below, above) = (value - low, high - value);
    let interval = match 2.0 * below.min(above) < below.max(above) {
        true => format!("[{low:.1}, {high:.1}]"),
        false => format!("±{:.1}", (high - low) / 2.0),
    };
    format!("{value:.1} {interval} (n {})", metric.n)
}

/// `1,371`.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let grouped: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|chunk| std::str::from_utf8(chunk).unwrap_or_default())
        .collect();
    grouped.join(",")
}

/// `8.29 B`, `20.2 M`, `472.6 k`.
fn short(n: usize) -> String {
    let x = n as f64;
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", x / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", x / 1e6),
        _ => format!("{:.2} B", x / 1e9),
    }
}

/// `21 GiB` or `0.3 GiB`.
fn gibibytes(bytes: u64) -> String {
    let gib = bytes as f64 / f64::from(1 << 30);
    if gib < 10.0 { format!("{gib:.1}G") } else { format!("{gib:.0}G") }
}

/// `15.4 GiB`, `3.1 MiB`.
pub fn size(bytes: u64) -> String {
    let (gib, mib) = (f64::from(1 << 30), f64::from(1 << 20));
    match bytes as f64 {
        b if b >= gib => format!("{:.1} GiB", b / gib),
        b => format!("{:.1} MiB", b / mib),
    }
}

/// `0.4 s`, `12 s` or `2:03`.
fn seconds(s: f64) -> String {
    match s {
        ..10.0 => format!("{s:.1} s"),
        ..60.0 => format!("{s:.0} s"),
        _ => clock(Duration::from_secs_f64(s)),
    }
}

/// `11:40` or `2:03:10`.
pub fn clock(left: Duration) -> String {
    let s = left.as_secs();
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        hours => format!("{hours}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}
