//! Adapters: new ones, and PEFT's files (`adapter_config.json`, `adapter_model.safetensors`) in and
//! out.
//!
//! Keys are written as transformers ≥ 4.52 names modules
//! (`base_model.model.model.language_model.layers.0…`); the older spelling is read too.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use regex::Regex;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::adapter_files::AdapterFiles;
use super::config::Config;
use super::host::host;
use super::linear::{Linear, Weight};
use super::lora::Lora;
use super::nf4::Nf4;
use super::parameters::{self, Named};
use super::qwen_vl::QwenVl;
use super::targets::{pattern, targets, whole};
use super::tensor_files::{HostTensors, TensorFiles, write_tensors};
use super::weights::{hub_name, module_name, skeleton, to_hub, transposed};
use crate::error::{Error, Result};
use crate::files::{self, json_error};
use crate::recipe;

/// Keys of PEFT's `LoraConfig` under which an adapter is more than A and B, or computes something
/// else with them.
const UNSUPPORTED: [&str; 12] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// Values of `init_lora_weights` that leave the checkpoint's weights as they are.
const KEEP_BASE: [&str; 4] = ["eva", "gaussian", "mica", "orthogonal"];

/// What PEFT puts before the names of modules.
pub const PREFIX: &str = "base_model.model.";

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
            target_modules: match recipe.target_modules.is_regex() {
                // It may match what is no linear layer, which PEFT refuses to adapt: `naming` lists
                // those that it found.
                true => Value::Null,
                false => Value::String(pattern(recipe)),
            },
            bias: none(),
            use_rslora: recipe.use_rslora,
            use_dora: recipe.use_dora,
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
        let text = files::read_text(&path).map_err(|e| {
            e.help("an adapter is a folder with adapter_config.json and adapter_model.safetensors")
        })?;
        let config: Self = serde_json::from_str(&text)
            .map_err(|e| json_error(&path, "not a LoRA configuration: ", &e))?;
        match config.unsupported(&text) {
            Some((what, help)) => {
                Err(Error::input(format!("{}: {what}", path.display())).help(help))
            }
            None => Ok(config),
        }
    }

    /// What in `text`, the configuration's file, keeps the adapter from being loaded; and the fix.
    fn unsupported(&self, text: &str) -> Option<(String, &'static str)> {
        let json: Value = serde_json::from_str(text).unwrap_or_default();
        let kind = |what: String| {
            let help = "LoRA adapters, rsLoRA and DoRA among them, can be loaded";
            Some((format!("{what}, which cannot be loaded"), help))
        };
        if self.peft_type != "LORA" {
            return kind("`peft_type` is not LORA".into());
        }
        if self.bias != "none" {
            return kind("`bias` is not none".into());
        }
        if let Some(key) = UNSUPPORTED.into_iter().find(|key| json.get(key).is_some_and(is_set)) {
            return kind(format!("`{key}` is set"));
        }
        if self.r == 0 || self.rank_pattern.values().any(|r| *r == 0) {
            return kind("`r` is 0".into());
        }
        let initial = self.init_lora_weights.as_str().unwrap_or("gaussian");
        if !KEEP_BASE.contains(&&*initial.to_lowercase()) {
            return Some((
                format!("`init_lora_weights` is {initial}, which changes the base weights too"),
                "save it with PEFT's `path_initial_model_for_weight_conversion`: of PiSSA, OLoRA, \
                 CorDA and LoRA-GA that makes plain LoRA",
            ));
        }
        let ranks = self.rank_pattern.keys().map(|key| ("rank_pattern", key));
        let mut keys = ranks.chain(self.alpha_pattern.keys().map(|key| ("alpha_pattern", key)));
        keys.find(|(_, key)| ending(key).is_err()).map(|(pattern, key)| {
            let what = format!("`{key}` in `{pattern}` is no regular expression known here");
            (what, "name the layers without look-around and back references")
        })
    }

    /// Rank and scale of the adapter of the layer with this hub name, which a pattern may spell
    /// either way.
    pub(super) fn of(&self, name: &str) -> (usize, f64) {
        let r = by_either(&self.rank_pattern, name).unwrap_or(self.r);
        let alpha = by_either(&self.alpha_pattern, name).unwrap_or(self.lora_alpha);
        (r, scaling(r, alpha, self.use_rslora))
    }

    /// The configuration of the same adapter where its layers are called `modules`: what does not
    /// find them under these names lists them. PEFT's lists of ends of names do not say which part
    /// of the model they mean.
    fn naming(mut self, modules: Vec<String>) -> Self {
        self.rank_pattern = naming(self.rank_pattern, &modules);
        self.alpha_pattern = naming(self.alpha_pattern, &modules);
        let targets = self.target_modules.as_str().and_then(|p| whole(p).ok());
        if !targets.is_some_and(|targets| modules.iter().all(|name| targets.is_match(name))) {
            self.target_modules = modules.into();
        }
        self
    }
}

/// Whether a key has another value than the one that switches it off.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(keys) => !keys.is_empty(),
        _ => true,
    }
}

/// The value of the first key that, as a regular expression, ends the name of `module`.
/// Source: PEFT's `get_pattern_key`.
fn by_pattern<T: Copy>(patterns: &BTreeMap<String, T>, module: &str) -> Option<T> {
    let ends = |key: &str| ending(key).is_ok_and(|ending| ending.is_match(module));
    patterns.iter().find(|(key, _)| ends(key)).map(|(_, value)| *value)
}

/// What matches names that end with `key`, a regular expression.
fn ending(key: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!(r"^(?:.*\.)?(?:{key})$"))
}

/// The value for the layer with this hub name, which a pattern may spell either way.
fn by_either<T: Copy>(patterns: &BTreeMap<String, T>, name: &str) -> Option<T> {
    by_pattern(patterns, &module_name(name)).or_else(|| by_pattern(patterns, name))
}

/// `patterns` that find under the names `modules` what they find in either spelling.
fn naming<T: Copy + PartialEq>(
    patterns: BTreeMap<String, T>,
    modules: &[String],
) -> BTreeMap<String, T> {
    let of = |module: &String| by_either(&patterns, &hub_name(module));
    if modules.iter().all(|module| by_pattern(&patterns, module) == of(module)) {
        return patterns;
    }
    modules.iter().filter_map(|module| Some((module.clone(), of(module)?))).collect()
}

fn scaling(r: usize, alpha: f64, rslora: bool) -> f64 {
    let r = r as f64;
    alpha / if rslora { r.sqrt() } else { r }
}

/// Hub name and `[i, o]` of each linear layer.
fn linear_layers(model: &mut QwenVl) -> Vec<(String, [usize; 2])> {
    let layers = model.linear_layers_mut().into_iter();
    layers.map(|(name, layer)| (name, layer.shape())).collect()
}

/// Hub name and size of each tensor of the adapter that `recipe` asks for, from shapes alone.
///
/// # Errors
/// As [`attach`], or for an adapter to start from as [`check_fits`].
pub fn sizes(recipe: &recipe::Lora, config: &Config) -> Result<Vec<(String, usize)>> {
    let layers = linear_layers(&mut skeleton(config)?);
    let (ranks, use_dora) = if let Some(dir) = &recipe.from {
        ranks(dir, &layers).map_err(|e| e.of_key("lora.from"))?
    } else {
        let names: Vec<String> = layers.iter().map(|(name, _)| name.clone()).collect();
        let targets = targets(recipe, &names)?.into_iter();
        (targets.map(|layer| (layer, recipe.r)).collect(), recipe.use_dora)
    };
    let mut sizes = vec![];
    for (layer, [i, o]) in &layers {
        let Some(r) = ranks.get(layer) else { continue };
        sizes.push((format!("{layer}.lora_A.weight"), r * i));
        sizes.push((format!("{layer}.lora_B.weight"), r * o));
        if use_dora {
            sizes.push((format!("{layer}.lora_magnitude_vector"), *o));
        }
    }
    Ok(sizes)
}

/// The rank of each of `layers` that the adapter in `dir` has, and whether it is DoRA.
fn ranks(dir: &Path, layers: &[(String, [usize; 2])]) -> Result<(BTreeMap<String, usize>, bool)> {
    let files = AdapterFiles::open(dir)?;
    let fitted = files.fit(layers)?.into_keys();
    let rank = |layer: String| {
        let (r, _) = files.config.of(&layer);
        (layer, r)
    };
    Ok((fitted.map(rank).collect(), files.config.use_dora))
}

/// Attaches new adapters to the layers that `recipe` names; returns how many.
///
/// # Errors
/// Where the pattern is malformed or matches nothing.
pub fn attach(model: &mut QwenVl, recipe: &recipe::Lora, seed: u64) -> Result<usize> {
    let layers = model.linear_layers_mut();
    let names: Vec<String> = layers.iter().map(|(name, _)| name.clone()).collect();
    let targets = targets(recipe, &names)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let scaling = scaling(recipe.r, recipe.alpha(), recipe.use_rslora);
    for (name, layer) in layers {
        if targets.contains(&name) {
            let lora = Lora::new(layer, recipe.r, scaling, recipe.dropout, &mut rng);
            layer.lora =
                Some(if recipe.use_dora { lora.with_magnitude(layer, None) } else { lora });
        }
    }
    Ok(targets.len())
}

/// Checks that an adapter's files are there, and whole.
///
/// # Errors
/// Where they are not.
pub fn check(dir: &Path) -> Result<()> {
    AdapterFiles::open(dir).map(drop)
}

/// Checks by its headers that an adapter has its place in a model of this shape.
///
/// # Errors
/// Where a file is missing or malformed, or does not fit the model.
pub fn check_fits(dir: &Path, config: &Config) -> Result<()> {
    AdapterFiles::open(dir)?.fit(&linear_layers(&mut skeleton(config)?)).map(drop)
}

/// Attaches an adapter that PEFT (or this program) wrote; returns its configuration.
///
/// # Errors
/// As [`check_fits`], or where a head's weight, which PEFT saves beside its adapter, is another.
pub fn load(model: &mut QwenVl, dir: &Path, dropout: f64) -> Result<AdapterConfig> {
    let files = AdapterFiles::open(dir)?;
    let fitted = files.fit(&linear_layers(model))?;
    for (name, layer) in model.linear_layers_mut() {
        let Some(keys) = fitted.get(&name) else { continue };
        layer.lora = Some(files.lora(keys, &name, layer, dropout)?);
        if let Some(key) = &keys.base
            && !is_weight(layer, &files.tensors, key)?
        {
            return Err(files.other_weight(key));
        }
    }
    Ok(files.config)
}

/// Whether the tensor `key` is the weight of `layer`, as far as the types tell in which the file and
/// the model hold them.
fn is_weight(layer: &Linear, files: &TensorFiles, key: &str) -> Result<bool> {
    let [i, o] = layer.shape();
    let (values, _) = files.f32(key)?;
    if let Weight::Nf4(own) = &layer.weight {
        let theirs = Nf4::new(values, [o, i], own.dtype(), &own.device());
        return Ok(own.fingerprint()? == theirs.fingerprint()?);
    }
    let stored = match files.outline(key)?.dtype {
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        _ => DType::F32,
    };
    let held = layer.weight.dtype();
    let own = TensorData::new(host(layer.weight.val())?, [i, o])
        .convert_dtype(stored)
        .convert_dtype(held);
    Ok(own == TensorData::new(transposed(&values, o, i), [i, o]).convert_dtype(held))
}

/// Writes the adapter of `model` into the folder `dir`.
///
/// # Errors
/// Where the disk refuses.
pub fn save(model: &QwenVl, config: &AdapterConfig, dir: &Path) -> Result<()> {
    let shapes: BTreeMap<String, Vec<usize>> =
        parameters::list(model).into_iter().map(|p| (p.name, p.shape)).collect();
    let adapter: Named = parameters::trained_values(model)
        .into_iter()
        .filter(|(name, _)| name.contains(".lora_"))
        .collect();
    let tensors = adapter.into_iter().map(|(name, value)| {
        let shape = &shapes[&name];
        let values = to_hub(&name, shape, host(value)?);
        let shape = shape.iter().rev().copied().collect();
        Ok((name, (values, shape)))
    });
    write(tensors.collect::<Result<_>>()?, config, dir, module_name)
}

/// Writes the adapter with these `tensors`, by hub name, into the folder `dir`, where `spell` turns
/// hub names into those of modules.
///
/// # Errors
/// Where the disk refuses.
pub fn write(
    tensors: HostTensors,
    config: &AdapterConfig,
    dir: &Path,
    spell: impl Fn(&str) -> String,
) -> Result<()> {
    files::create_dir(dir)?;
    let layer = |name: &String| spell(name.split(".lora_").next().unwrap_or(name));
    let mut modules: Vec<String> = tensors.keys().map(layer).collect();
    modules.dedup();
    let tensors =
        tensors.into_iter().map(|(name, tensor)| (format!("{PREFIX}{}", spell(&name)), tensor));
    write_tensors(&dir.join("adapter_model.safetensors"), &tensors.collect())?;
    let config = config.clone().naming(modules);
    files::write_json(&dir.join("adapter_config.json"), &config)
}
