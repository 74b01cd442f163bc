//! The settings of runs, so that it can be said in what they differ.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::recipe::{Recipe, Values};

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

/// The settings of a recipe.
///
/// # Errors
/// Never on a recipe that was read.
pub fn settings(recipe: &Recipe) -> Result<Values> {
    let mut settings = recipe.values()?;
    settings.retain(|key, _| !NO_SETTING.contains(&key.as_str()));
    if settings.contains_key("lora.from") {
        // They are that adapter's.
        settings.retain(|key, _| !["lora.scope", "lora.target_modules"].contains(&key.as_str()));
    }
    Ok(settings)
}

/// The part of `all` that an evaluation of the untrained model depends on.
pub fn of_evaluation(all: &Values) -> Values {
    let matters = |key: &str| {
        ["model.", "video.", "eval."].iter().any(|part| key.starts_with(part)) || key == "lora.from"
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
