//! A recipe as flat keys and values: in what two of them differ.

use std::collections::{BTreeMap, BTreeSet};

use super::Recipe;
use crate::error::{Error, Result};

/// A resolved recipe's values by their whole key, as `train.lr`.
pub type Values = BTreeMap<String, String>;

/// Keys that change no result: where things are kept and how often, and how a judge is reached.
const NO_RESULT: [&str; 11] = [
    "data.cache",
    "data.cache_gib",
    "train.save_steps",
    "train.keep_last",
    "eval.judge.key_env",
    "eval.judge.concurrency",
    "eval.judge.max_retries",
    "eval.judge.timeout_s",
    "eval.judge.input_price",
    "eval.judge.output_price",
    "eval.judge.cache",
];

/// Keys that change a result by rounding, or where a judge of the same name rules otherwise: a run
/// that was stopped may go on with another value.
pub const MAY_CHANGE: [&str; 3] = ["train.recompute", "eval.batch_size", "eval.judge.url"];

/// Whether `key` matters in training alone: what a model answers does not depend on it.
pub fn is_of_training(key: &str) -> bool {
    let tables = ["lora.", "train."];
    let of_samples = ["data.formats", "data.mirror", "data.shuffle_choices"];
    tables.iter().any(|table| key.starts_with(table)) || of_samples.contains(&key)
}

/// Keys that follow from others where they are not set.
pub const FOLLOWS: [&str; 7] = [
    "data.split.seed",
    "data.test",
    "eval.max_new_tokens",
    "lora.alpha",
    "lora.scope",
    "train.best",
    "train.freeze",
];

impl Recipe {
    /// The values that a result depends on; what the run was made from is not among them.
    ///
    /// # Errors
    /// Never on a recipe that was read.
    pub fn values(&self) -> Result<Values> {
        let text = self.to_toml()?;
        let table: toml::Table = toml::from_str(&text).map_err(|e| Error::run(e.to_string()))?;
        let mut values = Values::new();
        flatten("", &toml::Value::Table(table), &mut values);
        values.retain(|key, _| !NO_RESULT.contains(&&**key) && !key.starts_with("provenance."));
        Ok(values)
    }
}

fn flatten(key: &str, value: &toml::Value, into: &mut Values) {
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

/// The keys in which any two of `all` differ.
pub fn differing(all: &[&Values]) -> BTreeSet<String> {
    let keys: BTreeSet<&String> = all.iter().flat_map(|values| values.keys()).collect();
    let differs = |key: &&String| all.iter().any(|values| values.get(*key) != all[0].get(*key));
    keys.into_iter().filter(differs).cloned().collect()
}
