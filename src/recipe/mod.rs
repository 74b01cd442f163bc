//! The recipe: a TOML file → [`Recipe`], checked before any work starts.
//!
//! Only `model.path` and `data.path` are required. Defaults are LLaMA-Factory's where the paper
//! is silent; each says its source. An error names file, line and column, and a fix.

mod check;
mod data;
mod eval;
mod image;
mod lora;
mod model;
mod source;
mod train;
mod values;
mod video;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::data::{Data, MaxQuestions, Split};
pub use self::eval::{Control, Eval, Judge, JudgeKind, Scoring};
pub use self::image::Image;
pub use self::lora::{Lora, TargetModules};
pub use self::model::{Devices, Dtype, Model, Part, Quantize};
use self::source::Source;
pub use self::train::{Best, Loss, Schedule, Train};
pub use self::values::{FOLLOWS, MAY_CHANGE, Values, differing, is_of_training};
pub use self::video::Video;
use crate::error::{Error, Result};
use crate::files::read_text;

/// A whole experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Seed of the split, of the order of samples, of new adapters and of dropout.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// The checkpoint.
    pub model: Model,
    /// The questions and what they show.
    pub data: Data,
    /// How frames are taken from a video.
    #[serde(default)]
    pub video: Video,
    /// How images are read.
    #[serde(default)]
    pub image: Image,
    /// The adapter; full fine-tuning where left out.
    pub lora: Option<Lora>,
    /// The training loop.
    #[serde(default)]
    pub train: Train,
    /// The evaluation.
    #[serde(default)]
    pub eval: Eval,
    /// Written into a run's `recipe.toml`: what it was made from. Ignored when read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// What a run was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of this program.
    pub version: String,
    /// [Rules](crate::data::reader::RULES) by which videos and images become numbers; 0 in runs from
    /// before they were kept.
    #[serde(default)]
    pub rules: u32,
    /// Device that ran it.
    pub device: String,
    /// SHA-256 over the checkpoint's files, names and contents.
    pub model_sha256: String,
    /// SHA-256 over the question files of the subsets that are used.
    pub data_sha256: String,
    /// SHA-256 over the videos and images that are used; empty in runs from before it was kept.
    #[serde(default)]
    pub videos_sha256: String,
    /// SHA-256 over the files of the adapter that was started from, or asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_sha256: Option<String>,
}

impl Provenance {
    /// What differs between this and `other`, in words.
    pub fn differing(&self, other: &Self) -> Vec<&'static str> {
        let videos = [&*self.videos_sha256, &*other.videos_sha256];
        let differs = [
            (self.version != other.version, "version of this program"),
            (self.rules != other.rules, "rules by which videos and images are prepared"),
            (self.device != other.device, "device"),
            (self.model_sha256 != other.model_sha256, "model"),
            (self.data_sha256 != other.data_sha256, "data"),
            (!videos.contains(&"") && videos[0] != videos[1], "set of videos or images"),
            (self.adapter_sha256 != other.adapter_sha256, "adapter"),
        ];
        differs.into_iter().filter_map(|(differs, what)| differs.then_some(what)).collect()
    }
}

fn default_seed() -> u64 {
    42 // LLaMA-Factory's (and transformers') default
}

impl Recipe {
    /// Reads and checks a recipe; paths in it are relative to the working directory.
    ///
    /// # Errors
    /// `path:line:col: what` for anything that is not as it should be.
    pub fn from_file(path: &Path) -> Result<Self> {
        let (text, name) = (read(path)?, path.display().to_string());
        Self::from_text(&text, &name)
    }

    /// `error` of the recipe at `path`, with the line of its key where it is known; else, where it is
    /// one of `several` recipes, with its path.
    pub fn told_of(path: &Path, error: Error, several: bool) -> Error {
        let name = path.display().to_string();
        match (error.key(), read_text(path)) {
            (Some(key), Ok(text)) => {
                let place = Source { text: &text, name: &name }.place_of_key(key.split('.'));
                error.at(&place)
            }
            _ if several && !error.what().starts_with(&name) => error.at(&name),
            _ => error,
        }
    }

    /// Reads the recipe that a run in `dir` keeps: its values were checked when it began.
    ///
    /// # Errors
    /// Where it is missing or no recipe.
    pub fn of_run(dir: &Path) -> Result<Self> {
        let path = dir.join("recipe.toml");
        let parse =
            |text: String| Source { text: &text, name: &path.display().to_string() }.parse();
        read_text(&path).and_then(parse).map_err(|e| {
            e.help("a run keeps its recipe there: put it back, or move that folder away")
        })
    }

    /// Reads and checks a recipe's text; `name` stands before every error.
    ///
    /// # Errors
    /// As [`Recipe::from_file`].
    pub fn from_text(text: &str, name: &str) -> Result<Self> {
        let source = Source { text, name };
        let recipe = source.parse()?;
        source.check_whole_numbers()?;
        source.check(&recipe)?;
        Ok(recipe)
    }

    /// Seed of the split: its own, else the recipe's.
    pub fn split_seed(&self) -> u64 {
        self.data.split.seed.unwrap_or(self.seed)
    }

    /// The recipe as TOML with every default written out that is a value of its own, not another
    /// key's or the sampling rule's.
    ///
    /// # Errors
    /// Never on a recipe that was read.
    pub fn to_toml(&self) -> Result<String> {
        let mut resolved = self.clone();
        if let Some(lora) = &mut resolved.lora {
            lora.alpha = Some(lora.alpha());
            // An adapter to start from has its own layers.
            if !lora.target_modules.is_regex() && lora.from.is_none() {
                lora.scope = Some(lora.scope());
            }
        }
        if self.lora.is_none() {
            resolved.train.freeze = Some(self.train.frozen());
        }
        if self.data.split.val > 0.0 {
            resolved.train.best = Some(self.train.best());
        }
        resolved.data.test = self.data.test_subsets();
        if resolved.data.split.file.is_none() {
            resolved.data.split.seed = Some(self.split_seed());
        }
        resolved.eval.max_new_tokens = Some(self.eval.max_new_tokens());
        toml::to_string(&resolved).map_err(|e| Error::run(format!("cannot write the recipe: {e}")))
    }
}

fn read(path: &Path) -> Result<String> {
    read_text(path).map_err(|e| {
        e.help("the first argument is a recipe, for example recipes/quickstart/real.toml")
    })
}
