//! An adapter in the spelling of keys that another program wants.

use std::path::Path;

use crate::error::{Error, Result};
use crate::model::peft::{self, AdapterConfig, PREFIX};
use crate::model::tensor_files::TensorFiles;
use crate::model::weights::{hub_name, module_name};
use crate::places;
use crate::recipe::Recipe;

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
    fn spell(self, hub: &str) -> String {
        match self {
            Self::New => module_name(hub),
            Self::Old => hub.to_owned(),
        }
    }
}

/// Writes the adapter in `from` into the folder `to`, its keys spelled anew.
pub fn write(from: &Path, to: &Path, recipe: &Recipe, spelling: KeySpelling) -> Result<()> {
    let mut config = AdapterConfig::from_dir(from)?;
    config.base_model_name_or_path = Some(places::name(&recipe.model.path));
    let files = TensorFiles::open([from.join("adapter_model.safetensors")])?;
    let tensors = files.names().map(|key| {
        let name = key.strip_prefix(PREFIX).filter(|name| name.contains(".lora_"));
        let name = name.ok_or_else(|| {
            Error::input(format!("{}: `{key}` is no adapter's key", from.display()))
        })?;
        Ok((hub_name(name), files.f32(key)?))
    });
    peft::write(tensors.collect::<Result<_>>()?, &config, to, |name| spelling.spell(name))
}
