//! `[data]`: the questions and what they show, and how they are divided.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::entry::is_sharegpt;
use crate::data::split::By;
use crate::data::vlm4d::Format;

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// A folder in VLM4D's layout, or one with a `dataset_info.json`; or `hf://datasets/ORG/NAME` on
    /// the hub.
    pub path: String,
    /// What to train on: `["real"]` is R, `["synthetic"]` S, both R+S; data set names of a
    /// `dataset_info.json`.
    #[serde(default = "default_subsets")]
    pub train: Vec<String>,
    /// What to test on. Left out: `["real"]` for VLM4D's subsets, as the paper does, so that R, S
    /// and R+S share their test questions; else, and in a folder with a `dataset_info.json`, what
    /// is trained on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Most training questions, drawn from the split's seed where there are more; test and validation
    /// stay as they are without it. Left out: no limit. (LLaMA-Factory's `max_samples` takes the first
    /// rows of each data set.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_questions: Option<MaxQuestions>,
    /// Formats of the training samples.
    #[serde(default = "default_formats")]
    pub formats: Vec<Format>,
    /// Whether each epoch has its own order of a training question's choices (LLaMA-Factory and
    /// the paper: no).
    #[serde(default)]
    pub shuffle_choices: bool,
    /// Probability with which a training question is mirrored in an epoch, where it can be: frames
    /// flipped, left and right exchanged in its texts (LLaMA-Factory and the paper: 0).
    #[serde(default)]
    pub mirror: f64,
    /// Train, validation and test shares.
    #[serde(default)]
    pub split: Split,
    /// Folder in which sampled frames and vision features are kept for this run and others.
    #[serde(default = "default_cache")]
    pub cache: PathBuf,
    /// Most GiB that it may hold: what was not used for the longest time goes; 0 keeps nothing on
    /// disk.
    #[serde(default = "default_cache_gib")]
    pub cache_gib: f64,
}

impl Data {
    /// `cache_gib` in bytes.
    pub fn cache_bytes(&self) -> u64 {
        (self.cache_gib * f64::from(1 << 30)) as u64
    }

    /// Whether it is trained on VLM4D's subsets, in its layout.
    pub fn is_vlm4d(&self) -> bool {
        self.train.iter().all(|s| s == "real" || s == "synthetic")
            && !is_sharegpt(Path::new(&self.path))
    }

    /// What is tested on: `test`, or its default.
    pub fn test_subsets(&self) -> Vec<String> {
        match (self.test.is_empty(), self.is_vlm4d()) {
            (false, _) => self.test.clone(),
            (true, true) => vec!["real".into()],
            (true, false) => self.train.clone(),
        }
    }

    /// Every subset that the run touches, trained ones first.
    pub fn subsets(&self) -> Vec<String> {
        let mut all = self.train.clone();
        all.extend(self.test_subsets().into_iter().filter(|s| !self.train.contains(s)));
        all
    }
}

/// `data.max_questions`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MaxQuestions {
    /// Of each subset: `400`.
    Each(usize),
    /// By subset: `{ real = 400, synthetic = 200 }`; one that is left out has no limit.
    Of(BTreeMap<String, usize>),
}

impl MaxQuestions {
    /// The limit of `subset`, where it has one.
    pub fn of(&self, subset: &str) -> Option<usize> {
        match self {
            Self::Each(most) => Some(*most),
            Self::Of(limits) => limits.get(subset).copied(),
        }
    }
}

fn default_subsets() -> Vec<String> {
    vec!["real".into()]
}

fn default_formats() -> Vec<Format> {
    Format::ALL.into()
}

fn default_cache() -> PathBuf {
    "data/cache".into()
}

/// VLM4D's 1,000 videos at 2 fps and 200,704 pixels come to about 15 GiB for a 7B model.
fn default_cache_gib() -> f64 {
    20.0
}

/// `data.split`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Split {
    /// `video`: no video crosses; `question`: as the paper.
    pub by: By,
    /// Share of the questions that is tested (paper: 0.2).
    pub test: f64,
    /// Share of the questions that validates, taken from training.
    pub val: f64,
    /// Seed of the split; the recipe's `seed` where left out. Given, it lets several seeds of the
    /// training be tested on the same questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// A `split.json` to use in place of a drawn one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

impl Default for Split {
    fn default() -> Self {
        Self { by: By::Video, test: 0.2, val: 0.0, seed: None, file: None }
    }
}

impl Split {
    /// How the split was made: `split by video`.
    pub fn told(&self) -> String {
        match (&self.file, self.by) {
            (Some(file), _) => format!("split of {}", file.display()),
            (None, by) => format!("split by {}", by.name()),
        }
    }
}
