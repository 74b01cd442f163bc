//! Adapters: which layers get one, and PEFT's files (`adapter_config.json`,
//! `adapter_model.safetensors`) in and out.
//!
//! Keys are written as transformers ≥ 4.52 names modules
//! (`base_model.model.model.language_model.layers.0…`); the older spelling is read too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::{DType, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::host::{host, write_tensors};
use super::lora::Lora;
use super::parameters::{self, Named};
use super::qwen_vl::QwenVl;
use super::weights::{TensorFiles, module_name, transposed};
use crate::error::{Error, Result};
use crate::files::{self, io_reason};
use crate::recipe::{self, TargetModules};

/// The linear layers of the language model, in both of the spellings that transformers has had.
const ALL_LINEAR: &str = r".*\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)";
const PREFIX: &str = "base_model.model.";

/// The part of PEFT's `LoraConfig` that an adapter needs to load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the fields are PEFT's")]
pub struct AdapterConfig {
    /// `LORA`.
    pub peft_type: String,
    /// `CAUSAL_LM`.
    #[serde(default)]
    pub task_type: Option<String>,
    /// The checkpoint that it was trained on.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Dropout in training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// A list of names or a regular expression.
    #[serde(default)]
    pub target_modules: Value,
    /// `none`.
    #[serde(default = "none")]
    pub bias: String,
    /// Whether the scale is `alpha / √r`.
    #[serde(default)]
    pub use_rslora: bool,
    /// Whether the adapter has magnitudes too.
    #[serde(default)]
    pub use_dora: bool,
    /// Whole layers kept beside the adapter.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// Ranks of single layers.
    #[serde(default)]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Scales of single layers.
    #[serde(default)]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Whether weights are `[in, out]`; never here.
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// Whether it was saved for use rather than for training.
    #[serde(default)]
    pub inference_mode: bool,
    /// How it was initialised.
    #[serde(default)]
    pub init_lora_weights: Value,
}

fn none() -> String {
    "none".into()
}

impl AdapterConfig {
    /// The configuration of an adapter made by `recipe` on the checkpoint `base`.
    pub fn new(recipe: &recipe::Lora, base: &str) -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(base.into()),
            r: recipe.r,
            lora_alpha: recipe.alpha(),
            lora_dropout: recipe.dropout,
            target_modules: Value::String(pattern(&recipe.target_modules)),
            bias: none(),
            use_rslora: false,
            use_dora: false,
            modules_to_save: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            fan_in_fan_out: false,
            inference_mode: true,
            init_lora_weights: Value::Bool(true),
        }
    }

    /// Reads `adapter_config.json` of a folder.
    ///
    /// # Errors
    /// Where it is missing, malformed, or of a kind that cannot be loaded yet.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("adapter_config.json");
        let shown = path.display();
        let text = std::fs::read_to_string(&path).map_err(|e| {
            Error::input(format!("{shown}: {}", io_reason(&e))).help(
                "an adapter is a folder with adapter_config.json and adapter_model.safetensors",
            )
        })?;
        let config: Self = serde_json::from_str(&text).map_err(|e| {
            Error::input(format!(
                "{shown}:{}:{}: not a LoRA configuration: {e}",
                e.line(),
                e.column()
            ))
        })?;
        let unsupported = [
            (config.peft_type != "LORA", "`peft_type` is not LORA"),
            (config.use_dora, "`use_dora` is true"),
            (config.bias != "none", "`bias` is not none"),
            (
                config.modules_to_save.as_ref().is_some_and(|m| !m.is_empty()),
                "`modules_to_save` is set",
            ),
            (!config.rank_pattern.is_empty(), "`rank_pattern` is set"),
            (!config.alpha_pattern.is_empty(), "`alpha_pattern` is set"),
            (config.r == 0, "`r` is 0"),
        ];
        match unsupported.iter().find(|(found, _)| *found) {
            Some((_, what)) => {
                Err(Error::input(format!("{shown}: {what}, which cannot be loaded"))
                    .help("plain LoRA adapters can be loaded"))
            }
            None => Ok(config),
        }
    }

    fn scaling(&self) -> f64 {
        let r = self.r as f64;
        self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }
    }
}

/// `target_modules` as a regular expression over whole module names.
pub fn pattern(targets: &TargetModules) -> String {
    match targets {
        TargetModules::Pattern(p) if p == "all-linear" => ALL_LINEAR.into(),
        TargetModules::Pattern(p) => p.clone(),
        TargetModules::Names(names) => {
            let names: Vec<String> = names.iter().map(|name| regex::escape(name)).collect();
            format!(r".*\.layers\.\d+\.(.*\.)?({})", names.join("|"))
        }
    }
}

/// Attaches new adapters to the layers that `recipe` names; returns how many.
///
/// # Errors
/// Where the pattern is malformed or matches nothing.
pub fn attach(model: &mut QwenVl, recipe: &recipe::Lora, seed: u64) -> Result<usize> {
    let pattern = pattern(&recipe.target_modules);
    let matches = Regex::new(&format!("^(?:{pattern})$")).map_err(|e| {
        let reason = e.to_string().lines().last().unwrap_or_default().to_owned();
        Error::input(format!("`lora.target_modules`: not a regular expression: {reason}"))
    })?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let scaling = recipe.alpha() / recipe.r as f64;
    let mut attached = 0;
    for (name, layer) in model.linear_layers_mut() {
        if matches.is_match(&module_name(&name)) {
            layer.lora = Some(Lora::new(layer, recipe.r, scaling, recipe.dropout, &mut rng));
            attached += 1;
        }
    }
    match attached {
        0 => {
            Err(Error::input(format!("`lora.target_modules`: `{pattern}` matches no linear layer"))
                .help("\"all-linear\", or names such as [\"q_proj\", \"v_proj\"]"))
        }
        n => Ok(n),
    }
}

/// Attaches an adapter that PEFT (or this program) wrote; returns its configuration.
///
/// # Errors
/// Where a file is missing or malformed, or does not fit the model.
pub fn load(model: &mut QwenVl, dir: &Path, dropout: f64) -> Result<AdapterConfig> {
    let config = AdapterConfig::from_dir(dir)?;
    let path = dir.join("adapter_model.safetensors");
    let files = TensorFiles::open([path.clone()])?;
    let device = model.device();
    let wrong = |what: String| {
        Error::input(format!("{}: {what}", path.display()))
            .help("the adapter was made for another model")
    };
    let mut left: BTreeSet<String> = files.names().map(str::to_owned).collect();
    for (name, layer) in model.linear_layers_mut() {
        let mut matrix = |part: &str, rows: usize, columns: usize| -> Result<Option<Tensor<2>>> {
            let spelling = |module: &str| format!("{PREFIX}{module}.{part}.weight");
            let keys = [spelling(&module_name(&name)), spelling(&name)];
            let Some(key) = keys.iter().find(|key| left.remove(*key)) else { return Ok(None) };
            let (values, shape) = files.f32(key)?;
            if shape != [rows, columns] {
                return Err(wrong(format!(
                    "`{key}` is {shape:?}, the model wants [{rows}, {columns}]"
                )));
            }
            let data = TensorData::new(transposed(&values, rows, columns), [columns, rows]);
            Ok(Some(Tensor::from_data(data, (&device, DType::F32))))
        };
        let [i, o] = layer.shape();
        match (matrix("lora_A", config.r, i)?, matrix("lora_B", o, config.r)?) {
            (Some(a), Some(b)) => {
                layer.lora = Some(Lora::from_tensors(a, b, config.scaling(), dropout));
            }
            (None, None) => {}
            _ => return Err(wrong(format!("`{name}` has only one of lora_A and lora_B"))),
        }
    }
    match left.first() {
        Some(name) => Err(wrong(format!("`{name}` has no place in the model"))),
        None if files.names().next().is_none() => Err(wrong("the adapter is empty".into())),
        None => Ok(config),
    }
}

/// Writes the adapter of `model` into the folder `dir`.
///
/// # Errors
/// Where the disk refuses.
pub fn save(model: &QwenVl, config: &AdapterConfig, dir: &Path) -> Result<()> {
    files::create_dir(dir)?;
    let shapes: BTreeMap<String, Vec<usize>> =
        parameters::list(model, "").into_iter().map(|p| (p.name, p.shape)).collect();
    let adapter: Named = parameters::trained_values(model, "")
        .into_iter()
        .filter(|(name, _)| name.contains(".lora_"))
        .collect();
    let tensors = adapter.into_iter().map(|(name, value)| {
        let [rows, columns] = [shapes[&name][0], shapes[&name][1]];
        let values = transposed(&host(value)?, rows, columns);
        Ok((format!("{PREFIX}{}", module_name(&name)), (values, vec![columns, rows])))
    });
    write_tensors(&dir.join("adapter_model.safetensors"), tensors.collect::<Result<_>>()?)?;
    let json = serde_json::to_string_pretty(config).map_err(|e| Error::run(e.to_string()))?;
    files::write(&dir.join("adapter_config.json"), json + "\n")
}
