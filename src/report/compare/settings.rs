//! The settings of runs, flat, so that it can be said in what they differ.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::recipe::Recipe;

/// A resolved recipe's values by their whole key, as `train.lr`.
pub type Settings = BTreeMap<String, String>;

/// What does not make two runs differ: where things lie, what ran them, what they were trained on
/// (that is the table's own column), and the seeds.
const NO_SETTING: [&str; 6] =
    ["model.path", "model.device", "data.path", "data.train", "seed", "data.split.seed"];

/// The settings of a recipe.
///
/// # Errors
/// Never on a recipe that was read.
pub fn settings(recipe: &Recipe) -> Result<Settings> {
    let text = recipe.to_toml()?;
    let table: toml::Table = toml::from_str(&text).map_err(|e| Error::run(e.to_string()))?;
    let mut settings = Settings::new();
    flatten("", &toml::Value::Table(table), &mut settings);
    settings.retain(|key, _| {
        !NO_SETTING.contains(&key.as_str())
            && !["provenance.", "data.cache"].iter().any(|part| key.starts_with(part))
    });
    Ok(settings)
}

fn flatten(key: &str, value: &toml::Value, into: &mut Settings) {
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(&key, value, into);
            }
        }
        toml::Value::String(text) => {
            into.insert(key.to_owned(), text.clone());
        }
        other => {
            into.insert(key.to_owned(), other.to_string());
        }
    }
}

/// The part of `all` that an evaluation of the untrained model depends on.
pub fn of_evaluation(all: &Settings) -> Settings {
    let matters = |key: &str| {
        ["model.", "video.", "eval."].iter().any(|part| key.starts_with(part)) || key == "lora.from"
    };
    all.iter().filter(|(key, _)| matters(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// The keys in which any two of `all` differ.
pub fn differing(all: &[&Settings]) -> BTreeSet<String> {
    let keys: BTreeSet<&String> = all.iter().flat_map(|settings| settings.keys()).collect();
    let differs = |key: &&String| all.iter().any(|s| s.get(*key) != all[0].get(*key));
    keys.into_iter().filter(differs).cloned().collect()
}

/// `lr 0.0002, r 16`: the values that `settings` has under `keys`.
pub fn label(settings: &Settings, keys: &BTreeSet<String>) -> String {
    let value = |key: &String| {
        let name = key.rsplit('.').next().unwrap_or(key);
        match settings.get(key) {
            Some(value) => format!("{name} {value}"),
            None => format!("no {name}"),
        }
    };
    keys.iter().map(value).collect::<Vec<_>>().join(", ")
}
