//! How a run's questions were split, and how many of them it was trained on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::data::split::Split;
use crate::error::Result;
use crate::files;
use crate::number::thousands;
use crate::recipe::Recipe;

/// `split by video` and the seed of that, for the run in `dir`. Beside a given split its recipe
/// knows neither; the run's own `split.json` does.
///
/// # Errors
/// Where a split was given and that file cannot be read.
pub fn told(dir: &Path, recipe: &Recipe) -> Result<(String, String)> {
    let told = recipe.data.split.told();
    if recipe.data.split.file.is_none() {
        return Ok((told, recipe.split_seed().to_string()));
    }
    let subsets = of_run(dir)?;
    let by = distinct(subsets.values().map(|made| made.by.name().to_owned()));
    Ok((format!("{told} by {by}"), distinct(subsets.values().map(|made| made.seed.to_string()))))
}

/// How many questions the run in `dir` was trained on, and among how many they were drawn, of each
/// subset that has others.
///
/// # Errors
/// Where there may be such a subset and the run's `split.json` cannot be read.
pub fn limited(dir: &Path, recipe: &Recipe) -> Result<BTreeMap<String, [usize; 2]>> {
    let data = &recipe.data;
    if data.max_questions.is_none() && data.split.file.is_none() {
        return Ok(BTreeMap::new());
    }
    Ok(limited_in(&of_run(dir)?, &data.train))
}

/// The same where `train` is trained on, divided as `split` says.
pub fn limited_in(
    split: &BTreeMap<String, Split>,
    train: &[String],
) -> BTreeMap<String, [usize; 2]> {
    let sizes = |parts: &Split| [parts.train.len(), parts.trainable()];
    let limited =
        split.iter().filter(|(subset, parts)| train.contains(subset) && !parts.left_out.is_empty());
    limited.map(|(subset, parts)| (subset.clone(), sizes(parts))).collect()
}

/// `real (400 of 3,184 questions) + synthetic`: what a run of the subsets `train` was trained on, of
/// which some are [`limited`].
pub fn trained_on(limited: &BTreeMap<String, [usize; 2]>, train: &[String]) -> String {
    let told = |subset: &String| match limited.get(subset).map(|sizes| sizes.map(thousands)) {
        Some([n, all]) => format!("{subset} ({n} of {all} questions)"),
        None => subset.clone(),
    };
    train.iter().map(told).collect::<Vec<_>>().join(" + ")
}

/// The parts of each subset of the run in `dir`.
fn of_run(dir: &Path) -> Result<BTreeMap<String, Split>> {
    files::read_json(&dir.join("split.json"))
        .map_err(|e| e.help("a run keeps its split there: put it back, or move that folder away"))
}

/// What the subsets of a split have; mostly it is one.
fn distinct(values: impl Iterator<Item = String>) -> String {
    values.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" and ")
}
