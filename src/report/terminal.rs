//! A run on the terminal: plain lines on standard output, progress bars on standard error where
//! that is a terminal.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::accuracy::{percent, points};
use super::finished::Finished;
use super::split::limited_in;
use crate::data::augment::mirrorable;
use crate::data::entry::Entry;
use crate::data::medium::{self, Kind, Medium};
use crate::data::split::Split;
use crate::data::vlm4d::Format;
use crate::error::{Error, Result, more};
use crate::eval::judge::Cost;
use crate::eval::metrics::{Metrics, overall, paired};
use crate::eval::predict::Prediction;
use crate::features::{Summary, Videos, readers};
use crate::model::parameters::PartCount;
use crate::number::{clock, gibibytes, seconds, short, size, thousands};
use crate::recipe::{Best, Part, Recipe};
use crate::train::log::Record;
use crate::train::schedule::Course;
use crate::train::trainer::Trained;
use crate::train::validation::{Scores, Validation};

/// All bars on standard error, so that each knows of the lines above it.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Why a line could not be written, where that is not that nobody reads any more.
static LOST: OnceLock<String> = OnceLock::new();

/// Lines of training progress; more where a step takes long.
const LINES: usize = 20;

/// The longest time without a line of progress: of the training, and where bars are not seen.
const SILENCE: [Duration; 2] = [Duration::from_mins(10), Duration::from_mins(1)];

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

    /// Prints a line that is not about what was asked for, but worth knowing.
    pub fn note(&self, text: &str) {
        self.line(&format!("note   {text}"));
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
            self.line("  step    loss      lr  grad norm  tokens/s  memory       left");
        }
        let bar = Bar { told: None, ..self.bar("training", course.steps) };
        bar.set(done);
        Steps {
            bar,
            terminal: self.clone(),
            started: Instant::now(),
            first: done,
            total: course.steps,
            every: course.steps.div_ceil(LINES).max(1),
            work: Mutex::new(Work { tokens: 0, seconds: 0.0, told: Instant::now() }),
        }
    }
}

/// A progress bar; where it is not seen, a line from time to time.
pub struct Bar {
    bar: ProgressBar,
    /// When the last line was written; none where others tell the progress.
    told: Option<Mutex<Instant>>,
}

impl Bar {
    fn new(label: &str, length: u64, template: &str) -> Self {
        let style = ProgressStyle::with_template(template);
        let bar = BARS.add(ProgressBar::new(length));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(label.to_owned());
        Self { bar, told: Some(Mutex::new(Instant::now())) }
    }

    /// So many are done.
    pub fn set(&self, done: usize) {
        self.bar.set_position(done as u64);
        self.tell();
    }

    /// One more is done.
    pub fn one_more(&self) {
        self.bar.inc(1);
        self.tell();
    }

    fn tell(&self) {
        let Some(told) = self.told.as_ref().filter(|_| BARS.is_hidden()) else { return };
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() < SILENCE[1] {
            return;
        }
        *told = Instant::now();
        let bar = &self.bar;
        Terminal.line(&format!(
            "       {} {} of {}, {} left",
            bar.message(),
            thousands(bar.position() as usize),
            thousands(bar.length().unwrap_or(0) as usize),
            clock(bar.eta())
        ));
    }

    /// So many there are.
    pub fn set_length(&self, all: usize) {
        self.bar.set_length(all as u64);
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
        BARS.remove(&self.bar);
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
    work: Mutex<Work>,
}

/// What the steps did so far.
struct Work {
    tokens: usize,
    seconds: f64,
    /// When the last line was written.
    told: Instant,
}

impl Steps {
    /// One more step is done.
    pub fn step(&self, record: &Record) {
        self.bar.set(record.step);
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.tokens += record.tokens;
        work.seconds += record.seconds;
        let is_due = record.step.is_multiple_of(self.every) || work.told.elapsed() >= SILENCE[0];
        if !is_due && record.step != self.total {
            return;
        }
        work.told = Instant::now();
        let elapsed = self.started.elapsed();
        let left =
            elapsed / (record.step - self.first).max(1) as u32 * (self.total - record.step) as u32;
        let rate = work.tokens as f64 / work.seconds.max(1e-9);
        self.terminal.line(&format!(
            "{:6}  {:6.3}  {:6.1e}  {:9.2}  {:>8}  {:>6}  {:>9}",
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
        .map(|(format, share)| format!("   {} {:.1}", format.name(), 100.0 * share));
    format!("loss {:.3}{}", scores.loss, accuracies.collect::<String>())
}

/// Prints how the training ended and which of its checkpoints is the result, where it was
/// validated.
pub fn trained(trained: &Trained, course: &Course, by: Best, terminal: &Terminal) {
    let Some((step, best)) = &trained.best else { return };
    if trained.step < course.steps {
        terminal.note(&format!(
            "stopped early, after step {} of {}: no validation was better than that of step {step}",
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

/// Prints what the data is, and how it is divided.
pub fn data(
    recipe: &Recipe,
    all: &[Entry],
    split: &BTreeMap<String, Split>,
    parts: [&[Entry]; 3],
    terminal: &Terminal,
) {
    let limited = limited_in(split, &recipe.data.train);
    for subset in recipe.data.subsets() {
        let of = |entries: &[Entry]| entries.iter().filter(|e| e.subset == subset).count();
        let media = all.iter().filter(|e| e.subset == subset).flat_map(|e| &e.media);
        let among = |name: &str| match limited.get(&subset) {
            Some([_, all]) if name == "train" => format!(" of {}", thousands(*all)),
            _ => String::new(),
        };
        let sizes = ["train", "val", "test"].into_iter().zip(parts);
        let sizes = sizes
            .filter(|(name, part)| *name != "val" || of(part) > 0)
            .map(|(name, part)| format!("{name} {}{}", thousands(of(part)), among(name)));
        terminal.line(&format!(
            "data   {subset} {} questions on {}: {}, {}",
            thousands(of(all)),
            medium::count(media),
            sizes.collect::<Vec<_>>().join("  "),
            recipe.data.split.told()
        ));
    }
}

/// Prints where the videos and images, each a `medium`, came from, and what keeping them saves a
/// run that uses them `uses` times.
pub fn videos(videos: &Videos, medium: &str, uses: usize, terminal: &Terminal) {
    let s = &videos.summary;
    let media = format!("{medium}s");
    let place = videos.cache_dir().map(|dir| dir.display().to_string());
    let made = s.shown - s.from_cache;
    let found = match &place {
        Some(dir) => format!("{} from {dir}, {} made", thousands(s.from_cache), thousands(made)),
        None => format!("{} made", thousands(made)),
    };
    terminal.line(&format!(
        "{media:<6} {found} in {}; each is used {:.0} times: about {} saved",
        seconds(s.elapsed_s),
        (uses as f64 / s.shown.max(1) as f64).max(1.0),
        seconds(saved(s, uses))
    ));
    for kind in [Kind::Video, Kind::Image] {
        let mut sideways = s.sideways.iter().filter(|medium| medium.kind() == kind);
        let Some(first) = sideways.next() else { continue };
        let more = more(sideways.count());
        let (by, as_in) = match first {
            Medium::Video(_) => ("a player", "PyAV"),
            Medium::Image(_) | Medium::Frames(_) => ("a viewer", "Pillow"),
        };
        terminal.note(&format!(
            "{first}{more} would be turned by {by} and are used as coded, as {as_in} and \
             LLaMA-Factory do; {}.upright = true turns them",
            kind.name()
        ));
    }
    if s.damaged > 0 {
        let n = thousands(s.damaged);
        terminal.note(&format!("{n} damaged entries of the cache were made anew"));
    }
    if let (Some(why), Some(dir)) = (&s.trouble, &place) {
        terminal.note(&format!("{dir} cannot be written ({why}): {media} are read again"));
    }
    if s.again {
        terminal.note(&format!(
            "the {media}' {} fit neither in memory nor in the cache: some are read for each \
             use. Raise data.cache_gib",
            size(s.bytes as u64)
        ));
    }
}

/// Seconds that a run saves that does not read its videos anew for each of so many `uses`.
pub fn saved(s: &Summary, uses: usize) -> f64 {
    // Readers work at once and ahead of the tower: the slower of the two sets the pace.
    let all = s.tower_s.max(s.decoding_s / readers() as f64);
    (all / s.shown.max(1) as f64 * uses as f64 - s.elapsed_s).max(0.0)
}

/// Prints how many of `learned` can be mirrored, where that is asked for, and why the others are left
/// alone.
pub fn mirrored(recipe: &Recipe, learned: &[Entry], terminal: &Terminal) {
    if recipe.data.mirror == 0.0 || learned.is_empty() {
        return;
    }
    let (can, left_alone) = mirrorable(learned);
    let reasons: Vec<String> =
        left_alone.iter().map(|(why, n)| format!("{why} {}", thousands(*n))).collect();
    terminal.note(&match reasons.is_empty() {
        true => format!("all {} training questions can be mirrored", thousands(can)),
        false => format!(
            "{} of {} training questions can be mirrored; left alone: {}",
            thousands(can),
            thousands(learned.len()),
            reasons.join(", ")
        ),
    });
}

/// Prints the accuracies of one evaluation.
pub fn accuracy(name: &str, predictions: &[Prediction], seed: u64, terminal: &Terminal) {
    let parts: Vec<String> = overall(predictions, seed)
        .iter()
        .map(|(format, metric)| format!("{} {}", format.name(), percent(metric)))
        .collect();
    terminal.line(&match parts.is_empty() {
        true => format!("{name:<6} nothing to test (data.split.test is 0)"),
        false => format!("{name:<6} {}", parts.join("   ")),
    });
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
            let gain =
                of.gain.map_or_else(String::new, |gain| format!(", true video {}", points(&gain)));
            format!("{} {}{gain}", format.name(), percent(&of.breakdown.overall))
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

/// Prints the results of a finished run.
pub fn results(run: &Finished, terminal: &Terminal) {
    let Finished { dir, recipe, before, after, .. } = run;
    accuracy("before", before, recipe.seed, terminal);
    accuracy("after", after, recipe.seed, terminal);
    change(before, after, recipe.seed, terminal);
    terminal.line(&format!("report {}", dir.join("report.html").display()));
}

/// Prints what changed from before to after.
pub fn change(before: &[Prediction], after: &[Prediction], seed: u64, terminal: &Terminal) {
    let changes = Format::ALL.map(|format| (format, paired(before, after, format, seed)));
    let parts: Vec<String> = changes
        .iter()
        .filter(|(_, paired)| paired.n > 0)
        .map(|(format, paired)| format!("{} {}", format.name(), points(paired)))
        .collect();
    if !parts.is_empty() {
        terminal.line(&format!("change {}   (paired, 95 %)", parts.join("   ")));
    }
}
