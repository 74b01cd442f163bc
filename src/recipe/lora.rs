//! `[lora]`: the adapter, by the names of PEFT's `LoraConfig`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Part;

/// `[lora]`: as PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank (LLaMA-Factory: 8).
    pub r: usize,
    /// Numerator of the scale `alpha / r` (LLaMA-Factory: 2r); `2 r` where left out.
    pub alpha: Option<f64>,
    /// Share of the adapter's inputs dropped while training (LLaMA-Factory: 0).
    pub dropout: f64,
    /// Scale `alpha / √r` in place of `alpha / r` (PEFT: false).
    pub use_rslora: bool,
    /// DoRA: a trained length for each output of the updated weights (PEFT: false).
    pub use_dora: bool,
    /// `all-linear` of the parts in `scope`, a list of names in them, or a regular expression over
    /// whole names, as the checkpoint or as transformers ≥ 4.52 spells them.
    pub target_modules: TargetModules,
    /// Parts of the model that get adapters; `["language"]` where left out (LLaMA-Factory: with the
    /// vision tower and the merger frozen).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Vec<Part>>,
    /// LoRA+: learning rate of B (and of DoRA's lengths) over that of A
    /// (PEFT: `loraplus_lr_ratio`); 1 where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plus_ratio: Option<f64>,
    /// An adapter in PEFT's format to start from: its rank, scale, kind and layers hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            r: 8,
            alpha: None,
            dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            target_modules: TargetModules::Pattern("all-linear".into()),
            scope: None,
            plus_ratio: None,
            from: None,
        }
    }
}

impl Lora {
    /// `alpha`, or its default 2r.
    pub fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(2.0 * self.r as f64)
    }

    /// `scope`, or its default, the language model.
    pub fn scope(&self) -> Vec<Part> {
        self.scope.clone().unwrap_or_else(|| vec![Part::Language])
    }
}

/// Which layers get an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// `all-linear`, or a regular expression that matches a layer's whole name.
    Pattern(String),
    /// Last parts of names.
    Names(Vec<String>),
}

impl TargetModules {
    /// Whether it is a regular expression, which names whole layers by itself.
    pub fn is_regex(&self) -> bool {
        matches!(self, Self::Pattern(pattern) if pattern != "all-linear")
    }
}
