//! The settings of runs, so that it can be said in what they differ.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::recipe::{Provenance, Recipe, Values};
use crate::report::finished::Finished;

/// What does not make two runs differ: where things lie, what ran them, what they were trained on
/// and how much of it (that is the table's own column), the seeds, and what is asked beside the test
/// questions.
const NO_SETTING: [&str; 9] = [
    "model.path",
    "model.device",
    "data.path",
    "data.train",
    "seed",
    "data.split.seed",
    "eval.controls",
    "eval.circular",
    "eval.train_share",
];

/// How much they were trained on: one number, or a key for each subset.
const LIMIT: &str = "data.max_questions";
/// What the question files held, as a run's recipe keeps it.
const DATA: &str = "provenance.data_sha256";
/// What the videos held.
const VIDEOS: &str = "provenance.videos_sha256";

/// The settings of `runs`. Those with other question files or videos differ in these, if that is a
/// difference: of other subsets, or in another order, files are always others, and another split
/// leaves out other videos.
///
/// # Errors
/// Never on recipes that were read.
pub fn settings(runs: &[Finished]) -> Result<Vec<Values>> {
    let mut all: Vec<Values> =
        runs.iter().map(|run| of_recipe(&run.recipe)).collect::<Result<_>>()?;
    let files = |run: &Finished| (run.recipe.data.train.clone(), run.recipe.data.subsets());
    name(&mut all, runs, DATA, |p| &p.data_sha256, |(a, _), (b, _)| files(a) == files(b));
    let split = |run: &Finished| (run.trained_on(runs), run.recipe.split_seed());
    let alike = |(a, own): (&Finished, &Values), (b, values): (&Finished, &Values)| {
        own == values && split(a) == split(b)
    };
    name(&mut all, runs, VIDEOS, |p| &p.videos_sha256, alike);
    Ok(all)
}

/// Adds the hash `of` a run to its settings where a run that is `alike` has another one.
fn name(
    all: &mut [Values],
    runs: &[Finished],
    key: &str,
    of: impl Fn(&Provenance) -> &String,
    alike: impl Fn((&Finished, &Values), (&Finished, &Values)) -> bool,
) {
    let hash =
        |run: &Finished| run.recipe.provenance.as_ref().map(&of).cloned().unwrap_or_default();
    let differ = |a: &Finished, b: &Finished| {
        let (a, b) = (hash(a), hash(b));
        a != b && !a.is_empty() && !b.is_empty()
    };
    let each = || runs.iter().zip(all.iter());
    let differs =
        |own: (&Finished, &Values)| each().any(|other| alike(own, other) && differ(own.0, other.0));
    let told: Vec<bool> = each().map(differs).collect();
    for ((run, own), _) in runs.iter().zip(all).zip(told).filter(|(_, told)| *told) {
        own.insert(key.into(), short(&hash(run)));
    }
}

/// A hash as people tell it from others.
fn short(hash: &str) -> String {
    hash.chars().take(8).collect()
}

fn of_recipe(recipe: &Recipe) -> Result<Values> {
    let mut settings = recipe.values()?;
    settings.retain(|key, _| !NO_SETTING.contains(&key.as_str()) && !key.starts_with(LIMIT));
    if settings.contains_key("lora.from") {
        // They are that adapter's.
        settings.retain(|key, _| !["lora.scope", "lora.target_modules"].contains(&key.as_str()));
    }
    Ok(settings)
}

/// The part of `all` that an evaluation of the untrained model depends on.
pub fn of_evaluation(all: &Values) -> Values {
    let matters = |key: &str| {
        ["model.", "video.", "image.", "eval."].iter().any(|part| key.starts_with(part))
            || key == "lora.from"
    };
    all.iter().filter(|(key, _)| matters(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// `lr 0.0002, r 16`: the values that `settings` has under `keys`.
pub fn label(settings: &Values, keys: &BTreeSet<String>) -> String {
    let value = |key: &String| {
        let name = key.rsplit('.').next().unwrap_or(key);
        match settings.get(key) {
            Some(value) => format!("{name} {value}"),
            None => format!("no {name}"),
        }
    };
    keys.iter().map(value).collect::<Vec<_>>().join(", ")
}
