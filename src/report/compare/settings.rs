//! The settings of runs, so that it can be said in what they differ.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::recipe::{Recipe, Values};
use crate::report::finished::Finished;

/// What does not make two runs differ: where things lie, what ran them, what they were trained on
/// (that is the table's own column), the seeds, and what is asked beside the test questions.
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

/// What the question files held, as a run's recipe keeps it. Of other subsets that is always another.
pub const DATA: &str = "provenance.data_sha256";
/// What the videos held.
const VIDEOS: &str = "provenance.videos_sha256";

/// The settings of `runs`. Those with other videos differ in these, if they have the same split:
/// another split leaves out other videos.
///
/// # Errors
/// Never on recipes that were read.
pub fn settings(runs: &[Finished]) -> Result<Vec<Values>> {
    let mut all: Vec<Values> =
        runs.iter().map(|run| of_recipe(&run.recipe)).collect::<Result<_>>()?;
    let differs = |(run, own): (&Finished, &Values)| {
        runs.iter().zip(&all).any(|(other, values)| values == own && videos_differ(run, other))
    };
    let told: Vec<bool> = runs.iter().zip(&all).map(differs).collect();
    for ((run, own), _) in runs.iter().zip(&mut all).zip(told).filter(|(_, told)| *told) {
        own.extend(run.recipe.provenance.iter().map(|p| (VIDEOS.into(), short(&p.videos_sha256))));
    }
    Ok(all)
}

/// Whether two runs of one training and one split had other videos.
fn videos_differ(a: &Finished, b: &Finished) -> bool {
    let split = |run: &Finished| (run.trained_on(), run.recipe.split_seed());
    let videos = |run: &Finished| {
        run.recipe.provenance.as_ref().map(|p| p.videos_sha256.clone()).unwrap_or_default()
    };
    let (one, other) = (videos(a), videos(b));
    split(a) == split(b) && one != other && !one.is_empty() && !other.is_empty()
}

/// A hash as people tell it from others.
fn short(hash: &str) -> String {
    hash.chars().take(8).collect()
}

fn of_recipe(recipe: &Recipe) -> Result<Values> {
    let mut settings = recipe.values()?;
    settings.retain(|key, _| !NO_SETTING.contains(&key.as_str()));
    settings.extend(recipe.provenance.iter().map(|p| (DATA.into(), short(&p.data_sha256))));
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
            || ["lora.from", VIDEOS].contains(&key)
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
