//! Adapters: new ones, and PEFT's files (`adapter_config.json`, `adapter_model.safetensors`) in and
//! out.
//!
//! Keys are written as transformers ≥ 4.52 names modules
//! (`base_model.model.model.language_model.layers.0…`); the older spelling is read too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::{DType, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use regex::Regex;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::Config;
use super::host::{host, resident};
use super::linear::Linear;
use super::lora::Lora;
use super::parameters::{self, Named};
use super::qwen_vl::QwenVl;
use super::targets::{TIED, pattern, targets, whole};
use super::tensor_files::{HostTensors, TensorFiles, write_tensors};
use super::weights::{hub_name, module_name, shapes, to_hub, transposed};
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
    fn of(&self, name: &str) -> (usize, f64) {
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

/// Hub name and size of each tensor of the adapter that `recipe` asks for, from shapes alone.
///
/// # Errors
/// As [`attach`]; where the adapter to start from cannot be read.
pub fn sizes(recipe: &recipe::Lora, config: &Config) -> Result<Vec<(String, usize)>> {
    if let Some(dir) = &recipe.from {
        let files = TensorFiles::open([dir.join("adapter_model.safetensors")])?;
        let adapter = files.names().filter(|name| name.contains(".lora_"));
        let sizes = adapter.map(|name| {
            let module = name.strip_prefix(PREFIX).unwrap_or(name);
            (hub_name(module), files.shape(name).unwrap_or_default().iter().product())
        });
        return Ok(sizes.collect());
    }
    let mut layers = BTreeMap::new();
    for (name, shape) in shapes(config)? {
        let (Some(layer), [o, i]) = (name.strip_suffix(".weight"), &shape[..]) else { continue };
        if layer != "model.embed_tokens" {
            layers.insert(layer.to_owned(), [*o, *i]);
        }
    }
    let names: Vec<String> = layers.keys().cloned().collect();
    let (r, mut sizes) = (recipe.r, vec![]);
    for layer in targets(recipe, &names)? {
        let [o, i] = layers[&layer];
        sizes.push((format!("{layer}.lora_A.weight"), r * i));
        sizes.push((format!("{layer}.lora_B.weight"), r * o));
        if recipe.use_dora {
            sizes.push((format!("{layer}.lora_magnitude_vector"), o));
        }
    }
    Ok(sizes)
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
    AdapterConfig::from_dir(dir)?;
    TensorFiles::open([dir.join("adapter_model.safetensors")]).map(drop)
}

/// Attaches an adapter that PEFT (or this program) wrote; returns its configuration.
///
/// # Errors
/// Where a file is missing or malformed, or does not fit the model.
pub fn load(model: &mut QwenVl, dir: &Path, dropout: f64) -> Result<AdapterConfig> {
    let config = AdapterConfig::from_dir(dir)?;
    let path = dir.join("adapter_model.safetensors");
    let files = TensorFiles::open([path.clone()])?;
    let left = files.names().map(str::to_owned).collect();
    let mut file = AdapterFile { files: &files, path: &path, left };
    for (name, layer) in model.linear_layers_mut() {
        let Some(lora) = layer_adapter(&mut file, &config, &name, layer, dropout)? else {
            continue;
        };
        layer.lora = Some(lora);
        // PEFT saves the weight of a head beside its adapter.
        if let Some(key) = file.take(&name, "base_layer.weight")
            && !is_weight(layer, &files, &key)?
        {
            return Err(file.wrong(&format!("`{key}` is not the checkpoint's weight")).help(
                "the adapter was made for another model, or changes this weight too: then merge it \
                 in PEFT and take that checkpoint",
            ));
        }
    }
    match file.left.first() {
        Some(name) => {
            let error = file.wrong(&format!("`{name}` has no place in the model"));
            let of_head = name.starts_with(&format!("{PREFIX}lm_head."));
            Err(if of_head && model.lm_head.is_none() { error.help(TIED) } else { error })
        }
        None if files.names().next().is_none() => Err(file.wrong("the adapter is empty")),
        None => Ok(config),
    }
}

/// An adapter's tensors, each to be taken once.
struct AdapterFile<'a> {
    files: &'a TensorFiles,
    path: &'a Path,
    left: BTreeSet<String>,
}

impl AdapterFile<'_> {
    /// Name of what `layer`, a hub name, has as `part`, in either spelling; none where that is not
    /// there, or taken.
    fn take(&mut self, layer: &str, part: &str) -> Option<String> {
        let spelling = |module: &str| format!("{PREFIX}{module}.{part}");
        let keys = [spelling(&module_name(layer)), spelling(layer)];
        keys.into_iter().find(|key| self.left.remove(key))
    }

    /// The numbers of what [`take`](Self::take) finds, which has to be of `shape`.
    fn tensor(&mut self, layer: &str, part: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        let Some(key) = self.take(layer, part) else { return Ok(None) };
        let (values, found) = self.files.f32(&key)?;
        match found == shape {
            true => Ok(Some(values)),
            false => Err(self.wrong(&format!("`{key}` is {found:?}, the model wants {shape:?}"))),
        }
    }

    fn wrong(&self, what: &str) -> Error {
        Error::input(format!("{}: {what}", self.path.display()))
            .help("the adapter was made for another model")
    }
}

/// The adapter that `file` has for `layer`, of this hub name; none where it has none.
fn layer_adapter(
    file: &mut AdapterFile,
    config: &AdapterConfig,
    name: &str,
    layer: &Linear,
    dropout: f64,
) -> Result<Option<Lora>> {
    let ([i, o], device) = (layer.shape(), layer.weight.val().device().inner());
    let (r, scaling) = config.of(name);
    let a = file.tensor(name, "lora_A.weight", &[r, i])?;
    let b = file.tensor(name, "lora_B.weight", &[o, r])?;
    let magnitude = file.tensor(name, "lora_magnitude_vector", &[o])?;
    let matrix = |values: Vec<f32>, [rows, columns]: [usize; 2]| {
        let data = TensorData::new(transposed(&values, rows, columns), [columns, rows]);
        resident(data, &device, DType::F32)
    };
    let lora = match (a, b) {
        (Some(a), Some(b)) => {
            Lora::from_tensors(matrix(a, [r, i]), matrix(b, [o, r]), scaling, dropout)
        }
        (None, None) => return Ok(None),
        _ => return Err(file.wrong(&format!("`{name}` has only one of lora_A and lora_B"))),
    };
    match (magnitude, config.use_dora) {
        (Some(values), true) => {
            let magnitude = resident(TensorData::from(&values[..]), &device, DType::F32);
            Ok(Some(lora.with_magnitude(layer, Some(magnitude))))
        }
        (None, false) => Ok(Some(lora)),
        _ => Err(file.wrong(&format!(
            "`{name}` and `use_dora` of adapter_config.json do not agree on lora_magnitude_vector"
        ))),
    }
}

/// Whether the tensor `key` is the weight of `layer`, as far as the types tell in which the file and
/// the model hold them.
fn is_weight(layer: &Linear, files: &TensorFiles, key: &str) -> Result<bool> {
    let ([i, o], weight) = (layer.shape(), layer.weight.val());
    let (values, shape) = files.f32(key)?;
    if shape != [o, i] {
        return Ok(false);
    }
    let stored = match files.outline(key)?.dtype {
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        _ => DType::F32,
    };
    let held = weight.dtype();
    let own = TensorData::new(host(weight)?, [i, o]).convert_dtype(stored).convert_dtype(held);
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
