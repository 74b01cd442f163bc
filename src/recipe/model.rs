//! `[model]`: the checkpoint, and where it is computed.

use serde::{Deserialize, Serialize};

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// A checkpoint folder in hub layout, or `hf://ORG/NAME` on the hub.
    pub path: String,
    /// Type of weights and activations.
    #[serde(default)]
    pub dtype: Dtype,
    /// In how many bits frozen linear layers are held, all but `lm_head` (LLaMA-Factory:
    /// `quantization_bit`); as `dtype` says where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
    /// `auto`, `cpu`, `cuda:N`, or several GPUs of one kind, `["cuda:0", "cuda:1"]`: each has a
    /// copy of the model and works on its share of a step's samples and of the questions. The sums
    /// of another number of GPUs round otherwise, and a run that was begun goes on with those that it
    /// was begun with.
    #[serde(default)]
    pub device: Devices,
}

/// What a run works on, by name: the first has the model that is trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "DeviceNames", into = "DeviceNames")]
pub struct Devices(Vec<String>);

/// As a recipe has them: a list of one is that one.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum DeviceNames {
    One(String),
    Several(Vec<String>),
}

impl Devices {
    /// Their names.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// How many there are.
    pub fn number(&self) -> usize {
        self.0.len()
    }
}

impl Default for Devices {
    fn default() -> Self {
        Self::from("auto".to_owned())
    }
}

impl From<String> for Devices {
    fn from(name: String) -> Self {
        Self(vec![name])
    }
}

impl From<DeviceNames> for Devices {
    fn from(names: DeviceNames) -> Self {
        match names {
            DeviceNames::One(name) => name.into(),
            DeviceNames::Several(names) => Self(names),
        }
    }
}

impl From<Devices> for DeviceNames {
    fn from(Devices(mut names): Devices) -> Self {
        match names.len() {
            1 => Self::One(names.remove(0)),
            _ => Self::Several(names),
        }
    }
}

impl Model {
    /// `what`, the model or where it is, with how its weights are held, where that is not as they are
    /// computed with.
    pub fn held(&self, what: &str) -> String {
        match self.quantize {
            None => what.to_owned(),
            Some(Quantize::Nf4) => format!("{what} with linear layers in NF4"),
        }
    }

    /// The checkpoint's name: the last part of its path, or of the hub's repository.
    pub fn name(&self) -> String {
        let hub = self.path.strip_prefix("hf://").map(|id| id.split('@').next().unwrap_or(id));
        let path = hub.unwrap_or(&self.path);
        // The hub's cache: `models--ORG--NAME/snapshots/REVISION`.
        let cached = path.split('/').find_map(|part| part.strip_prefix("models--"));
        let name = match cached {
            Some(id) => id.rsplit("--").next(),
            None => path.trim_end_matches('/').rsplit('/').next(),
        };
        name.unwrap_or(path).to_owned()
    }
}

/// Type of the frozen weights and of activations; an adapter's weights are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bf16 on a GPU, f32 on the CPU.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits with f32's range.
    Bf16,
}

/// A form with fewer bits, for QLoRA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantize {
    /// bitsandbytes' NF4 with double quantisation: 4.13 bits a number (LLaMA-Factory:
    /// `quantization_bit: 4`).
    Nf4,
}

/// A part of the model that can be frozen or trained by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Embedding, decoder layers, final norm and `lm_head`.
    Language,
    /// Patch embedding and blocks of the vision tower.
    Vision,
    /// The layers that turn vision features into the language model's tokens.
    Merger,
}
