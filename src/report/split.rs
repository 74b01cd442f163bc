//! How a run's questions were split.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::data::split::By;
use crate::error::{Error, Result};
use crate::files::read_text;
use crate::recipe::Recipe;

/// `split by video` and the seed of that, for the run in `dir`. Beside a given split its recipe
/// knows neither; the run's own `split.json` does.
///
/// # Errors
/// Where a split was given and that file cannot be read.
pub fn told(dir: &Path, recipe: &Recipe) -> Result<(String, String)> {
    #[derive(Deserialize)]
    struct Made {
        by: By,
        seed: u64,
    }
    let told = recipe.data.split.told();
    if recipe.data.split.file.is_none() {
        return Ok((told, recipe.split_seed().to_string()));
    }
    let path = dir.join("split.json");
    let subsets: BTreeMap<String, Made> = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| Error::input(format!("{}: not a split: {e}", path.display())))?;
    let by = distinct(subsets.values().map(|made| made.by.name().to_owned()));
    Ok((format!("{told} by {by}"), distinct(subsets.values().map(|made| made.seed.to_string()))))
}

/// What the subsets of a split have; mostly it is one.
fn distinct(values: impl Iterator<Item = String>) -> String {
    values.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" and ")
}
