//! One run from recipe to report: before → train → after.
//!
//! All input is read and checked before the run's folder is made. What a run has already written
//! is not done again: started once more, it goes on from its last checkpoint.

mod check;
mod encoder;
mod evaluation;
mod out_of_memory;
pub mod plan;
mod prepare;
mod questions;
mod report;
mod stage;
mod train;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;

pub use self::check::check;
pub use self::evaluation::evaluation;
pub use self::out_of_memory::explained;
use self::prepare::{Prepared, Purpose, adopt_adapter, prepare};
use self::stage::evaluate;
use self::train::train;
use crate::data::entry;
use crate::data::hub::Repo;
use crate::data::split::Split;
use crate::error::{Error, Result};
use crate::eval::judge::Judge;
use crate::eval::metrics::overall;
use crate::eval::predict::Prediction;
use crate::files;
use crate::model::qwen_vl::QwenVl;
use crate::model::{hub, peft};
use crate::recipe::{FOLLOWS, MAY_CHANGE, Recipe, Values, differing};
use crate::report::data;
use crate::report::finished::Finished;
use crate::report::terminal::{self, Terminal};
use crate::train::board::Board;
use crate::train::trainer::Trained;

/// Folder of a run: `runs/` and the recipe's path without `recipes/` and `.toml`; of a recipe that
/// lies in no `recipes/`, its file's name alone.
pub fn folder(runs: &Path, recipe: &Path) -> PathBuf {
    let stem = recipe.with_extension("");
    let parts: Vec<_> = stem.components().map(|c| c.as_os_str().to_owned()).collect();
    let start = parts.iter().rposition(|part| part == "recipes").map(|at| at + 1);
    let relative: PathBuf = match start {
        Some(start) if start < parts.len() => parts[start..].iter().collect(),
        _ => stem.file_name().map_or_else(|| "run".into(), PathBuf::from),
    };
    runs.join(relative)
}

/// Runs the recipe at `path`; its folder goes under `runs`. Returns the folder.
///
/// # Errors
/// Wrong input, before anything is written; or what broke on the way.
pub fn run(path: &Path, runs: &Path, terminal: &Terminal) -> Result<PathBuf> {
    let mut recipe = Recipe::from_file(path)?;
    let note = adopt_adapter(&mut recipe)?;
    let dir = folder(runs, path);
    adopt_pins(&mut recipe, &dir)?;
    terminal.line(&format!("{} → {}", path.display(), dir.display()));
    note.iter().for_each(|note| terminal.note(note));
    if is_finished(&dir, &recipe, Purpose::Run)? {
        if let Some(finished) = whole(&dir) {
            terminal.line("done before; its results:");
            terminal::results(&finished, terminal);
            note_other_questions(&finished, &recipe, terminal);
            return Ok(dir);
        }
        terminal.note("done before, but not whole any more: what is missing is made again");
    }
    files::check_writable(&dir)?;
    let early = dir.exists().then(|| files::lock(&dir)).transpose()?;
    let (model, prepared) = prepare(recipe, Purpose::Run, terminal)?;
    let judge = Judge::of(&prepared.recipe, &model.valid(), &prepared.chat)?;
    check_same_inputs(&dir, &prepared)?;
    files::create_dir(&dir)?;
    let _lock = early.map_or_else(|| files::lock(&dir), Ok)?;
    write_inputs(&dir, &prepared)?;
    let ask = |model: &QwenVl, earlier: Option<&[Prediction]>, stage: &str| {
        let judge = judge.as_ref();
        evaluate(&prepared, model, judge, earlier, &dir.join(stage), terminal)
    };
    let before = ask(&model, None, "before")?;
    let trained = train(&prepared, model, &dir, terminal)?;
    let saved = save(&prepared, &trained.model, &dir)?;
    let after = ask(&trained.model, Some(&before), "after")?;
    terminal::change(&before, &after, prepared.recipe.seed, terminal);
    log_accuracies(&prepared, &dir, &trained, [&before, &after])?;
    report::report(&prepared, &dir, [&before, &after], terminal)?;
    terminal.line(&format!("{saved}   report {}", dir.join("report.html").display()));
    Ok(dir)
}

/// A run that was begun keeps the commits that it began with, whatever the hub has now.
fn adopt_pins(recipe: &mut Recipe, dir: &Path) -> Result<()> {
    if !dir.join("recipe.toml").exists() {
        return Ok(());
    }
    let earlier = Recipe::of_run(dir)?;
    let pin = |now: &mut String, then: String| {
        if let (Some(Ok(repo)), Some(Ok(pinned))) = (Repo::parse(now), Repo::parse(&then))
            && repo.admits(&pinned)
        {
            *now = then;
        }
    };
    pin(&mut recipe.model.path, earlier.model.path);
    pin(&mut recipe.data.path, earlier.data.path);
    Ok(())
}

/// Writes what was trained: the adapter, or the whole model as a checkpoint in hub layout. Says
/// what and where.
fn save(prepared: &Prepared, trained: &QwenVl, dir: &Path) -> Result<String> {
    let (name, to) = if let Some(config) = &prepared.adapter {
        let to = dir.join("adapter");
        peft::save(trained, config, &to)?;
        ("adapter", to)
    } else {
        let to = dir.join("model");
        hub::save(trained, &prepared.checkpoint, &to)?;
        ("model", to)
    };
    Ok(format!("{name} {}", to.display()))
}

/// Whether `dir` holds what `purpose` has made of just this recipe, finished.
fn is_finished(dir: &Path, recipe: &Recipe, purpose: Purpose) -> Result<bool> {
    let (kind, help) = match purpose {
        Purpose::Run => ("a run", "move that folder away, or give another root with --runs"),
        Purpose::Evaluation(_) => {
            ("an evaluation", "give another folder with --out, or move that one away")
        }
    };
    let holds = format!("{}: holds {kind}", dir.display());
    if !dir.join("recipe.toml").exists() {
        let begun = ["before", "checkpoints", "predictions.jsonl"];
        if begun.iter().any(|part| dir.join(part).exists()) {
            return Err(Error::input(format!("{holds} without recipe.toml"))
                .help("put that back, or move the folder away to start anew"));
        }
        return Ok(false);
    }
    let (then, now) = (Recipe::of_run(dir)?.values()?, recipe.values()?);
    let mut differing: Vec<String> = differing(&[&then, &now]).into_iter().collect();
    differing.retain(|key| purpose.depends_on(key) && !MAY_CHANGE.contains(&&**key));
    if !differing.is_empty() {
        // What was written comes before what follows from it.
        differing.sort_by_key(|key| FOLLOWS.contains(&&**key));
        let told = |key: &String| {
            let [then, now] = [&then, &now].map(|of| of.get(key).map_or("not set", String::as_str));
            format!("`{key}` is {then} there and {now} here")
        };
        let told: Vec<String> = differing.iter().map(told).collect();
        let what = format!("{holds} of another recipe: {}", told.join(", "));
        let moved = |key: &String| {
            let on_hub = |of: &Values| of.get(key).is_some_and(|path| path.contains("hf://"));
            ["model.path", "data.path"].contains(&&**key) && ![&then, &now].into_iter().any(on_hub)
        };
        let help = match differing.iter().all(moved) {
            true => format!("if it was only moved, make a link to it at the old path; or {help}"),
            false => help.into(),
        };
        return Err(Error::input(what).help(help));
    }
    Ok(dir.join("report.md").exists())
}

/// The finished run in `dir`, where it still has its reports, its answers and what was trained.
fn whole(dir: &Path) -> Option<Finished> {
    Finished::open(dir).ok().filter(Finished::is_whole)
}

/// Says so where the questions of a finished run are others by now. Those of the hub are pinned.
fn note_other_questions(finished: &Finished, recipe: &Recipe, terminal: &Terminal) {
    let now = entry::sha256(Path::new(&recipe.data.path), &recipe.data.subsets());
    if let (Ok(now), Some(then)) = (now, &finished.recipe.provenance)
        && now != then.data_sha256
    {
        let path = &recipe.data.path;
        terminal.note(&format!("the questions in {path} have changed since"));
    }
}

/// A run that goes on must have the model and data that it began with.
fn check_same_inputs(dir: &Path, prepared: &Prepared) -> Result<()> {
    const ADVICE: &str = "put back what it was begun with, or move that folder away to start anew";
    let path = dir.join("recipe.toml");
    if !path.exists() {
        return Ok(());
    }
    let split: BTreeMap<String, Split> =
        files::read_json(&dir.join("split.json")).map_err(|e| e.help(ADVICE))?;
    let earlier = Recipe::from_file(&path)?.provenance;
    let mut other = match (&earlier, &prepared.recipe.provenance) {
        (Some(then), Some(now)) => then.differing(now),
        _ => vec!["model or data"],
    };
    if split != prepared.split {
        other.push("split");
    }
    match &other[..] {
        [] => Ok(()),
        other => {
            let what = other.join(", another ");
            Err(Error::input(format!("{}: was begun with another {what}", dir.display()))
                .help(ADVICE))
        }
    }
}

fn write_inputs(dir: &Path, prepared: &Prepared) -> Result<()> {
    files::create_dir(dir)?;
    files::write_json(&dir.join("split.json"), &prepared.split)?;
    files::write(&dir.join(data::PICTURE), data::picture(&prepared.stats))?;
    files::write(&dir.join("recipe.toml"), prepared.recipe.to_toml()?)
}

/// Adds the accuracies of both `stages` to the TensorBoard events, each at the step of its weights.
fn log_accuracies(
    prepared: &Prepared,
    dir: &Path,
    trained: &Trained,
    stages: [&[Prediction]; 2],
) -> Result<()> {
    let last = trained.best.as_ref().map_or(trained.step, |(best, _)| *best);
    let mut board = Board::of_accuracies(dir)?;
    for (predictions, step) in stages.into_iter().zip([0, last]) {
        for (format, metric) in overall(predictions, prepared.recipe.seed) {
            board.scalar(&format!("accuracy/{}", format.name()), metric.accuracy, step)?;
        }
    }
    Ok(())
}
