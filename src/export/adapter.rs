//! An adapter in the spelling of keys that another program wants.

use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files;
use crate::model::host::{HostTensors, write_tensors};
use crate::model::peft::{AdapterConfig, PREFIX};
use crate::model::weights::{TensorFiles, hub_name, module_name};
use crate::recipe::Recipe;
use crate::run::places;

/// How transformers names the modules that an adapter belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum KeySpelling {
    /// transformers 4.52 and later: `model.language_model.layers.0…`, `model.visual.…`
    #[default]
    New,
    /// transformers up to 4.51: `model.layers.0…`, `visual.…`
    Old,
}

impl KeySpelling {
    fn spell(self, module: &str) -> String {
        let hub = hub_name(module);
        match self {
            Self::New => module_name(&hub),
            Self::Old => hub,
        }
    }
}

/// Writes the adapter in `from` into the folder `to`, its keys spelled anew.
pub fn write(from: &Path, to: &Path, recipe: &Recipe, spelling: KeySpelling) -> Result<()> {
    AdapterConfig::from_dir(from)?;
    files::create_dir(to)?;
    let tensors = TensorFiles::open([from.join("adapter_model.safetensors")])?;
    let mut modules = Vec::new();
    let mut spelled = HostTensors::new();
    for key in tensors.names() {
        let Some((module, part)) = split(key) else {
            return Err(Error::input(format!("{}: `{key}` is no adapter's key", from.display())));
        };
        let module = spelling.spell(module);
        spelled.insert(format!("{PREFIX}{module}.{part}"), tensors.f32(key)?);
        modules.push(module);
    }
    modules.dedup();
    write_tensors(&to.join("adapter_model.safetensors"), &spelled)?;
    let path = from.join("adapter_config.json");
    let wrong = |e: String| Error::run(format!("{}: {e}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|e| wrong(e.to_string()))?;
    let mut config: Map<String, Value> =
        serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    if !config.get("target_modules").is_some_and(|targets| match_both(targets, &modules)) {
        config.insert("target_modules".into(), modules.into());
    }
    for key in ["rank_pattern", "alpha_pattern"] {
        if let Some(Value::Object(patterns)) = config.get_mut(key) {
            *patterns = std::mem::take(patterns)
                .into_iter()
                .map(|(pattern, value)| (spell_pattern(&pattern, spelling), value))
                .collect();
        }
    }
    let base = places::name(&recipe.model.path);
    config.insert("base_model_name_or_path".into(), base.into());
    let json = serde_json::to_string_pretty(&config).map_err(|e| wrong(e.to_string()))?;
    files::write(&to.join("adapter_config.json"), json + "\n")
}

/// `base_model.model.MODULE.lora_A.weight` → module and the rest.
fn split(key: &str) -> Option<(&str, &str)> {
    let rest = key.strip_prefix(PREFIX)?;
    let at = rest.find(".lora_")?;
    Some((&rest[..at], &rest[at + 1..]))
}

/// Whether a regular expression names all of `modules` in both spellings. PEFT's lists of names
/// match ends of names, which both spellings share, but the vision tower's too.
fn match_both(targets: &Value, modules: &[String]) -> bool {
    let Some(pattern) = targets.as_str() else { return false };
    let Ok(pattern) = Regex::new(&format!("^(?:{pattern})$")) else { return false };
    modules.iter().all(|module| {
        [KeySpelling::New, KeySpelling::Old].iter().all(|s| pattern.is_match(&s.spell(module)))
    })
}

/// A pattern on module names, with the levels that only the new spelling has put in or left out.
fn spell_pattern(pattern: &str, spelling: KeySpelling) -> String {
    match spelling {
        KeySpelling::New => KeySpelling::New.spell(pattern),
        KeySpelling::Old => pattern
            .replace("language_model.", "")
            .replace(r"language_model\.", "")
            .replace("model.visual", "visual")
            .replace(r"model\.visual", "visual"),
    }
}
