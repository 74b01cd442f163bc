//! Evaluation alone: a checkpoint, with an adapter or without.

use std::path::{Component, Path, PathBuf};

use burn::module::Module;

use super::prepare::{Purpose, prepare};
use super::stage::evaluate;
use super::{adopt_pins, check_same_inputs, folder, is_finished, write_inputs};
use crate::error::{Error, Result};
use crate::eval::judge::Judge;
use crate::files;
use crate::hash;
use crate::recipe::Recipe;
use crate::report::evaluation as report;
use crate::report::terminal::Terminal;

/// Asks the test questions of the recipe at `path` and writes predictions, metrics and a report
/// into `out`, or `eval/` of the recipe's folder under `runs`. Returns the folder.
///
/// With `adapter`, or the recipe's `lora.from`, the checkpoint is asked with that adapter; else by
/// itself. Nothing is trained.
///
/// # Errors
/// Wrong input, before anything is written; or what broke on the way.
pub fn evaluation(
    path: &Path,
    adapter: Option<&Path>,
    out: Option<&Path>,
    runs: &Path,
    terminal: &Terminal,
) -> Result<PathBuf> {
    let mut recipe = Recipe::from_file(path)?;
    let from = recipe.lora.as_ref().and_then(|lora| lora.from.clone());
    let adapter = adapter.map(Path::to_owned).or(from);
    let dir = out.map_or_else(
        || folder(runs, path).join("eval").join(name(adapter.as_deref())),
        Path::to_owned,
    );
    terminal.line(&format!("{} → {}", path.display(), dir.display()));
    if dir.join("before").exists() || dir.join("checkpoints").exists() {
        return Err(Error::input(format!("{}: holds a run", dir.display()))
            .help("give an evaluation a folder of its own with --out"));
    }
    adopt_pins(&mut recipe, &dir)?;
    let purpose = Purpose::Evaluation(adapter.as_deref());
    let finished = is_finished(&dir, &recipe, purpose)?;
    files::check_writable(&dir)?;
    let early = dir.exists().then(|| files::lock(&dir)).transpose()?;
    let (model, prepared) = prepare(recipe, purpose, terminal)?;
    if prepared.rounds.iter().all(|round| round.asks.is_empty()) {
        return Err(Error::input("there is nothing to ask: the test set is empty")
            .help("raise data.split.test, or check data.test and eval.formats"));
    }
    let judge = Judge::of(&prepared.recipe, &model.valid(), &prepared.chat)?;
    check_same_inputs(&dir, &prepared)?;
    files::create_dir(&dir)?;
    let _lock = early.map_or_else(|| files::lock(&dir), Ok)?;
    if finished {
        terminal.line("done before; its results:");
    } else {
        write_inputs(&dir, &prepared)?;
    }
    evaluate(&prepared, &model, judge.as_ref(), None, &dir, terminal)?;
    let title = adapter.map_or_else(
        || prepared.recipe.model.path.clone(),
        |adapter| format!("{} with {}", prepared.recipe.model.path, adapter.display()),
    );
    let text = report::write(&dir, &title, &prepared.recipe)?;
    terminal.line(&text);
    terminal.line(&format!("report {}", dir.join("report.md").display()));
    Ok(dir)
}

/// Longest folder name that is taken from a path; file systems take 255 bytes.
const LONGEST: usize = 128;

/// `base`, or the adapter's path with its parts joined. Where another path has these parts too, or
/// they are too long, digits of the path's hash stand behind them: two adapters never share a folder.
fn name(adapter: Option<&Path>) -> String {
    let Some(adapter) = adapter else { return "base".into() };
    let path: PathBuf = adapter.components().filter(|part| *part != Component::CurDir).collect();
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
        Component::ParentDir => Some("up".into()),
        _ => None,
    });
    let joined = parts.collect::<Vec<_>>().join("-");
    let is_plain = path.components().all(|part| match part {
        Component::Normal(part) => part.to_str().is_some_and(|part| !part.contains('-')),
        _ => false,
    });
    if is_plain && !["", "base"].contains(&&*joined) && joined.len() <= LONGEST {
        return joined;
    }
    let hash = hash::text(&hash::hex(path.as_os_str().as_encoded_bytes()));
    let start = if joined.is_empty() { "adapter" } else { &joined };
    format!("{}-{}", &start[..start.floor_char_boundary(LONGEST)], &hash[..8])
}
