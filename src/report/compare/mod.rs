//! Several finished runs → the paper's Table 2 (models × what they were trained on) with intervals,
//! and the differences on the questions that they share.
//!
//! Runs that differ in nothing but the seed make one row: the accuracy over the answers of all ± the
//! standard deviation over the runs. Runs that were not tested on the same questions are refused,
//! unless each seed drew its own split.

mod questions;
mod settings;
mod write;

pub use self::write::{common_folder, compare};

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use self::settings::{label, of_evaluation};
use super::accuracy;
use super::finished::Finished;
use super::published::{self, Published};
use super::split;
use crate::data::vlm4d::Format;
use crate::error::{Error, Result, more};
use crate::eval::metrics::{outcome, pairs};
use crate::eval::predict::Prediction;
use crate::eval::stats::{self, Metric, Outcome, Pair, Paired};
use crate::number::thousands;
use crate::recipe::{Values, differing};

/// Name of the row that holds the model before training.
pub const ORIGINAL: &str = "original";

/// Values of a setting that a note names.
const VALUES: usize = 6;

/// Columns in the paper's order.
const FORMATS: [Format; 2] = [Format::Ff, Format::Mc];

/// Runs side by side.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Models × what they were trained on.
    pub rows: Vec<Row>,
    /// Differences between rows, on the same questions.
    pub differences: Vec<Difference>,
    /// What they were tested on, in one sentence.
    pub tested_on: String,
    /// Accuracy of guessing in multiple choice, as a share.
    pub chance: Option<f64>,
    /// Whether the questions are VLM4D's own.
    pub is_vlm4d: bool,
    /// What a reader has to know.
    pub notes: Vec<String>,
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Name of the checkpoint.
    pub model: String,
    /// [`ORIGINAL`], `R`, `S`, `R+S`, or names of data sets; `R (400)` where questions were left out.
    pub trained_on: String,
    /// Settings by which this row differs from its neighbours.
    pub settings: String,
    /// The runs' folders.
    pub runs: Vec<PathBuf>,
    /// Accuracy per format.
    pub scores: BTreeMap<Format, Score>,
    /// What the paper has for this row.
    pub published: Option<Published>,
}

/// The accuracy of a row in one format.
#[derive(Clone, Debug)]
pub struct Score {
    /// Over the answers of all runs, with the interval over videos.
    pub overall: Metric,
    /// Standard deviation over the runs, where there are several.
    pub deviation: Option<f64>,
    /// Responses without an answer, over all runs.
    pub unanswered: usize,
    /// The same as `overall` for each group.
    pub groups: BTreeMap<String, Metric>,
}

/// What lies between two rows, on the same questions.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The model, or both.
    pub model: String,
    /// `R − original`.
    pub what: String,
    /// The change per format.
    pub changes: BTreeMap<Format, Change>,
}

/// A difference in one format.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Difference and interval; with several runs over all pairs of them.
    pub paired: Paired,
    /// Whether one run stands on each side, so that `paired.p` holds.
    pub single: bool,
}

/// One evaluation of one run.
struct Stage<'a> {
    run: &'a Finished,
    predictions: &'a [Prediction],
    /// Keys of its questions, which are compared for every two.
    asked: BTreeMap<Format, u64>,
}

impl<'a> Stage<'a> {
    fn new(run: &'a Finished, predictions: &'a [Prediction]) -> Self {
        Self { run, predictions, asked: questions::keys(predictions) }
    }
}

/// The evaluations that make a row.
struct RowRuns<'a> {
    model: String,
    trained_on: String,
    settings: Values,
    stages: Vec<Stage<'a>>,
}

impl<'a> RowRuns<'a> {
    fn has(&self, format: Format) -> bool {
        self.stages.iter().any(|s| s.predictions.iter().any(|p| p.format == format))
    }

    fn is_original(&self) -> bool {
        self.trained_on.starts_with(ORIGINAL)
    }

    /// Every two of its evaluations.
    fn pairs(&self) -> impl Iterator<Item = (&Stage<'a>, &Stage<'a>)> {
        let stages = self.stages.iter().enumerate();
        stages.flat_map(|(i, a)| self.stages[i + 1..].iter().map(move |b| (a, b)))
    }

    /// Models stay in the order of the command line, what they were trained on in the paper's.
    fn order(&self) -> usize {
        let known = ["R", "S", "R+S"];
        let subsets = self.trained_on.split(" (").next();
        match self.is_original() {
            true => 0,
            false => 1 + known.iter().position(|k| Some(*k) == subsets).unwrap_or(known.len()),
        }
    }
}

/// Finds the runs that `paths` name: each a run's folder, or a folder above some. Returns them with
/// what was left out.
///
/// # Errors
/// Where a path names no run.
pub fn find(paths: &[PathBuf]) -> Result<(Vec<Finished>, Vec<String>)> {
    let (mut dirs, mut notes) = (Vec::new(), Vec::new());
    for path in paths {
        if write::is_output(path) {
            continue;
        }
        if Finished::is_run(path) || !path.is_dir() {
            dirs.push((path.clone(), true));
            continue;
        }
        let mut below = Vec::new();
        runs_below(path, &mut below);
        if below.is_empty() {
            Finished::open(path)?;
        }
        dirs.extend(below.into_iter().map(|dir| (dir, false)));
    }
    let mut seen = BTreeSet::new();
    dirs.retain(|(dir, _)| seen.insert(dir.canonicalize().unwrap_or_else(|_| dir.clone())));
    let mut runs = Vec::new();
    for (dir, named) in dirs {
        match Finished::open(&dir) {
            Ok(run) => runs.push(run),
            Err(error) if named => return Err(error),
            Err(error) => {
                let text = error.to_string();
                notes.push(format!("{}; left out", text.lines().next().unwrap_or_default()));
            }
        }
    }
    match runs.is_empty() {
        true => Err(Error::input("there is no finished run to compare")
            .help("give the folders of finished runs, for example runs/quickstart/*")),
        false => Ok((runs, notes)),
    }
}

fn runs_below(dir: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut below: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.is_dir()).collect();
    below.sort();
    for path in below {
        match Finished::is_run(&path) {
            true => found.push(path),
            false => runs_below(&path, found),
        }
    }
}

/// Checks that `runs`, finished or not begun yet, can be compared in the end.
///
/// # Errors
/// Where they are not tested on the same questions.
pub fn check(runs: &[Finished]) -> Result<()> {
    questions::check(&rows(runs)?).map_err(|e| {
        let fix = e.fix().unwrap_or_default().to_owned();
        e.help(format!("{fix}; or start the recipes one by one, which compares nothing"))
    })
}

impl Comparison {
    /// Compares `runs`.
    ///
    /// # Errors
    /// Where they were not tested on the same questions.
    pub fn new(runs: &[Finished]) -> Result<Self> {
        let grouped = rows(runs)?;
        questions::check(&grouped)?;
        let labels = labels(&grouped);
        let rows: Vec<Row> =
            grouped.iter().zip(&labels).map(|(row, settings)| score(row, settings)).collect();
        let differences = differences(&grouped, &labels);
        let mc = rows.first().and_then(|row| row.scores.get(&Format::Mc));
        Ok(Self {
            tested_on: tested_on(&grouped)?,
            chance: mc.and_then(|mc| mc.overall.chance),
            is_vlm4d: runs.iter().all(|run| published::is_vlm4d(&run.dir)),
            notes: notes(runs, &grouped, &rows, &differences),
            rows,
            differences,
        })
    }
}

/// Groups the runs' evaluations into rows.
fn rows<'a>(runs: &'a [Finished]) -> Result<Vec<RowRuns<'a>>> {
    let names = model_names(runs);
    let mut rows: Vec<RowRuns> = Vec::new();
    let mut add = |model: &str, trained_on: String, settings: Values, stage: Stage<'a>| {
        let same = |row: &&mut RowRuns| {
            (&*row.model, &row.trained_on, &row.settings) == (model, &trained_on, &settings)
        };
        match rows.iter_mut().find(same) {
            // The same model asked the same questions answers the same: that is no second run. Nor
            // is a copy of one, or the same recipe run twice.
            Some(row)
                if row.stages.iter().any(|s| {
                    let same_seed = s.run.recipe.seed == stage.run.recipe.seed;
                    (row.is_original() || same_seed) && answers_alike(s, &stage)
                }) => {}
            Some(row) => row.stages.push(stage),
            None => {
                let model = model.to_owned();
                rows.push(RowRuns { model, trained_on, settings, stages: vec![stage] });
            }
        }
    };
    let all = runs.iter().zip(&names).zip(settings::settings(runs)?);
    for ((run, model), settings) in all.filter(|((run, _), _)| !run.after.is_empty()) {
        let from = run.recipe.lora.as_ref().and_then(|lora| lora.from.as_ref());
        let start = match from {
            Some(dir) => format!("{ORIGINAL} + {}", dir.display()),
            None => ORIGINAL.to_owned(),
        };
        let before = Stage::new(run, &run.before);
        add(model, start, of_evaluation(&settings), before);
        add(model, run.trained_on(runs), settings, Stage::new(run, &run.after));
    }
    let place = |model: &str| names.iter().position(|name| name == model);
    rows.sort_by_key(|row| (place(&row.model), row.order()));
    Ok(rows)
}

fn answers_alike(a: &Stage, b: &Stage) -> bool {
    let answers = |stage: &Stage| -> BTreeMap<(String, Format), (String, bool)> {
        let of = stage.predictions.iter();
        of.map(|p| ((p.id.clone(), p.format), (p.response.clone(), p.correct))).collect()
    };
    questions::same_in_all(a, b) && answers(a) == answers(b)
}

/// The checkpoints' names; with their paths where two of one name differ.
fn model_names(runs: &[Finished]) -> Vec<String> {
    // Of a run that has not begun it is not known.
    let hash = |run: &Finished| run.recipe.provenance.as_ref().map(|p| p.model_sha256.clone());
    let differ =
        |a: &Finished, b: &Finished| matches!((hash(a), hash(b)), (Some(a), Some(b)) if a != b);
    let name = |run: &Finished| {
        let own = run.recipe.model.name();
        let clash = runs.iter().any(|other| other.recipe.model.name() == own && differ(run, other));
        if clash { run.recipe.model.path.clone() } else { own }
    };
    runs.iter().map(name).collect()
}

/// What sets each row apart from those with the same model and training.
fn labels(rows: &[RowRuns]) -> Vec<String> {
    let of = |row: &RowRuns| {
        let alike: Vec<&Values> = rows
            .iter()
            .filter(|r| (&r.model, &r.trained_on) == (&row.model, &row.trained_on))
            .map(|r| &r.settings)
            .collect();
        label(&row.settings, &differing(&alike))
    };
    rows.iter().map(of).collect()
}

fn score(row: &RowRuns, settings: &str) -> Row {
    let scores = FORMATS.into_iter().filter(|f| row.has(*f)).map(|f| (f, score_in(row, f)));
    let tested_alike = row.stages.iter().all(|stage| published::is_tested_alike(stage.run));
    let published = published::table_2(&row.model, &row.trained_on);
    Row {
        model: row.model.clone(),
        trained_on: row.trained_on.clone(),
        settings: settings.to_owned(),
        runs: row.stages.iter().map(|stage| stage.run.dir.clone()).collect(),
        scores: scores.collect(),
        published: published.filter(|_| tested_alike),
    }
}

fn score_in(row: &RowRuns, format: Format) -> Score {
    let seed = row.stages.first().map_or(0, |stage| stage.run.recipe.seed);
    let stages: Vec<Vec<&Prediction>> = row
        .stages
        .iter()
        .map(|stage| stage.predictions.iter().filter(|p| p.format == format).collect())
        .filter(|predictions: &Vec<_>| !predictions.is_empty())
        .collect();
    let accuracies: Vec<f64> = stages
        .iter()
        .map(|p| stats::share(p.iter().filter(|p| p.correct).count(), p.len()))
        .collect();
    let all: Vec<&Prediction> = stages.iter().flatten().copied().collect();
    let outcomes: Vec<Outcome> = all.iter().map(|p| outcome(p)).collect();
    Score {
        overall: stats::metric(&outcomes, seed),
        deviation: deviation(&accuracies),
        unanswered: all.iter().filter(|p| p.extracted.is_none()).count(),
        groups: stats::by(&outcomes, |o| o.group, seed),
    }
}

/// Sample standard deviation; none of a single value.
fn deviation(values: &[f64]) -> Option<f64> {
    let n = values.len();
    let mean = values.iter().sum::<f64>() / n as f64;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (n > 1).then(|| (squares / (n - 1) as f64).sqrt())
}

/// Every pair of rows of one model, and rows of one training between models.
fn differences(rows: &[RowRuns], labels: &[String]) -> Vec<Difference> {
    let name = |i: usize| match labels[i].as_str() {
        "" => rows[i].trained_on.clone(),
        label => format!("{} ({label})", rows[i].trained_on),
    };
    let mut found = Vec::new();
    let pairs = (0..rows.len()).flat_map(|a| (a + 1..rows.len()).map(move |b| (a, b)));
    for (a, b) in pairs {
        let (one, other) = (&rows[a], &rows[b]);
        let (model, what) = if one.model == other.model {
            (one.model.clone(), format!("{} − {}", name(b), name(a)))
        } else if one.trained_on == other.trained_on {
            // What the models have in common is named once.
            let (from, to) = (name(a), name(b));
            let what = if from == to { to } else { format!("{to} − {from}") };
            (format!("{} − {}", other.model, one.model), what)
        } else {
            continue;
        };
        let changes = FORMATS
            .into_iter()
            .filter_map(|format| Some((format, change(one, other, format)?)))
            .collect();
        found.push(Difference { model, what, changes });
    }
    found
}

/// `to` minus `from` over every pair of runs that were asked the same questions.
fn change(from: &RowRuns, to: &RowRuns, format: Format) -> Option<Change> {
    let mut all: Vec<Pair> = Vec::new();
    let mut sets = 0;
    for late in &to.stages {
        for early in &from.stages {
            if questions::same(early, late, format) {
                all.extend(pairs(early.predictions, late.predictions, format));
                sets += 1;
            }
        }
    }
    let seed = to.stages.first()?.run.recipe.seed;
    (!all.is_empty()).then(|| Change { paired: stats::paired(&all, seed), single: sets == 1 })
}

fn tested_on(rows: &[RowRuns]) -> Result<String> {
    let stages: Vec<&Stage> = rows.iter().flat_map(|row| &row.stages).collect();
    let Some(Stage { run, .. }) = stages.first() else {
        return Ok(String::new());
    };
    let asked = || stages.iter().flat_map(|stage| stage.predictions);
    let ids: BTreeSet<&str> = asked().map(|p| &*p.id).collect();
    let videos: BTreeSet<&str> = asked().map(|p| &*p.video).collect();
    let sets = match test_sets(rows) {
        ..2 => String::new(),
        n => format!(" in {n} test sets"),
    };
    let (split, _) = split::told(&run.dir, &run.recipe)?;
    Ok(format!(
        "{} questions on {} videos of {}{sets}, {split}",
        thousands(ids.len()),
        thousands(videos.len()),
        run.recipe.data.test_subsets().join(" + "),
    ))
}

fn notes(
    runs: &[Finished],
    grouped: &[RowRuns],
    rows: &[Row],
    differences: &[Difference],
) -> Vec<String> {
    let mut notes = vec![accuracy::reading()];
    if rows.iter().any(|row| row.runs.len() > 1) {
        notes.push(
            "An accuracy of several runs is that of all their answers; ± is the standard deviation over the runs, which differ in the seed only and whose number stands under runs.".into(),
        );
    }
    if grouped.iter().flat_map(|row| &row.stages).any(|stage| !stage.run.limited.is_empty()) {
        notes.push(
            "Behind what a row was trained on stands how many questions of each subset, where some were left out.".into(),
        );
    }
    let sets = test_sets(grouped);
    if sets > 1 {
        notes.push(format!(
            "The seeds drew {sets} different test sets; every row rests on all of them. Set data.split.seed to keep the questions while the seed changes."
        ));
    }
    if rows.iter().flat_map(|row| row.scores.values()).any(|score| score.overall.small) {
        notes.push(format!("{}.", accuracy::small()));
    }
    let tests = differences.iter().flat_map(|d| d.changes.values()).filter(|c| c.single).count();
    if tests > 0 {
        notes.push(format!(
            "Differences are taken on the same questions; {}. No p is corrected for the {tests} comparisons made here.",
            accuracy::P
        ));
    }
    if rows.iter().any(|row| row.published.is_some()) {
        notes.push(format!(
            "Paper: {}. Two MC numbers are the first and the revised version.",
            published::SOURCE
        ));
    }
    notes.extend(grouped.iter().filter_map(answers_differ));
    notes.extend(unequal(grouped));
    let untested = runs.iter().filter(|run| run.after.is_empty());
    notes
        .extend(untested.map(|run| format!("{}: tested on nothing; left out.", run.dir.display())));
    notes
}

/// Most test sets that a row rests on.
fn test_sets(rows: &[RowRuns]) -> usize {
    let of = |row: &RowRuns| {
        let mut seen: Vec<&Stage> = Vec::new();
        for stage in &row.stages {
            if !seen.iter().any(|s| questions::same_in_all(s, stage)) {
                seen.push(stage);
            }
        }
        seen.len()
    };
    rows.iter().map(of).max().unwrap_or(0)
}

/// Settings in which the trained rows differ although the table's columns do not show it.
fn unequal(rows: &[RowRuns]) -> Vec<String> {
    let trained: Vec<&RowRuns> = rows.iter().filter(|row| !row.is_original()).collect();
    let all: Vec<&Values> = trained.iter().map(|row| &row.settings).collect();
    let note = |key: String| {
        let mut values: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        // A hash stands only where it is another one than that of a run that should have the same.
        let told =
            |row: &&&RowRuns| !key.starts_with("provenance.") || row.settings.contains_key(&key);
        for row in trained.iter().filter(told) {
            let value = row.settings.get(&key).map_or("not set", String::as_str);
            let name = format!("{} {}", row.model, row.trained_on);
            let names = values.entry(value).or_default();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let parts: Vec<String> =
            values.iter().map(|(value, names)| format!("{value} ({})", names.join(", "))).collect();
        let (first, others) = parts.split_at(parts.len().min(VALUES));
        format!("The runs differ in `{key}`: {}{}.", first.join("; "), more(others.len()))
    };
    differing(&all).into_iter().map(note).collect()
}

/// Two runs of a row that should have answered alike: the model before training, or runs of one seed.
fn answers_differ(row: &RowRuns) -> Option<String> {
    let seeds = |stage: &Stage| (stage.run.recipe.seed, stage.run.recipe.split_seed());
    // What answers alike is one stage.
    let (a, b) = row.pairs().find(|(a, b)| match row.is_original() {
        true => questions::same_in_all(a, b),
        false => seeds(a) == seeds(b),
    })?;
    let [here, there] = [a, b].map(|stage| stage.run.dir.display());
    let reason = match row.is_original() {
        true => "as other videos or another device give; the row is of both".to_owned(),
        false => format!(
            "as another device or order of data.train gives, from the same seed {}; ± is not the seed's alone",
            a.run.recipe.seed
        ),
    };
    Some(format!(
        "{} {}: {here} and {there} have other answers to the same questions, {reason}.",
        row.model, row.trained_on
    ))
}
