//! An adapter's files, as PEFT writes them: whether they have their place in a model, by headers
//! alone, and what they hold for each of its layers.
//!
//! Letters: `i` inputs, `o` outputs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};

use super::host::resident;
use super::linear::Linear;
use super::lora::Lora;
use super::peft::{AdapterConfig, PREFIX};
use super::targets::TIED;
use super::tensor_files::TensorFiles;
use super::weights::{module_name, transposed};
use crate::error::{Error, Result};

/// The files of an adapter.
pub(super) struct AdapterFiles {
    pub(super) config: AdapterConfig,
    pub(super) tensors: TensorFiles,
    path: PathBuf,
}

/// Names of the tensors that an adapter has for one layer.
pub(super) struct LayerKeys {
    a: String,
    b: String,
    magnitude: Option<String>,
    /// The layer's own weight, which PEFT saves of a head.
    pub(super) base: Option<String>,
}

const OTHER_MODEL: &str = "the adapter was made for another model";

impl AdapterFiles {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let config = AdapterConfig::from_dir(dir)?;
        let path = dir.join("adapter_model.safetensors");
        Ok(Self { config, tensors: TensorFiles::open([path.clone()])?, path })
    }

    /// What the adapter has for each of `layers`, hub names and `[i, o]`, by headers alone.
    pub(super) fn fit(
        &self,
        layers: &[(String, [usize; 2])],
    ) -> Result<BTreeMap<String, LayerKeys>> {
        let mut left: BTreeSet<String> = self.tensors.names().map(str::to_owned).collect();
        if left.is_empty() {
            return Err(self.wrong("the adapter is empty"));
        }
        let mut fitted = BTreeMap::new();
        for (name, shape) in layers {
            if let Some(keys) = self.layer(&mut left, name, *shape)? {
                fitted.insert(name.clone(), keys);
            }
        }
        let Some(name) = left.first() else { return Ok(fitted) };
        let error = self.wrong(&format!("`{name}` has no place in the model"));
        let of_head = name.starts_with(&format!("{PREFIX}lm_head."));
        let is_tied = layers.iter().all(|(layer, _)| layer != "lm_head");
        Err(if of_head && is_tied { error.help(TIED) } else { error })
    }

    /// What of `left` belongs to the layer `name`, of shape `[i, o]`; none where nothing does.
    fn layer(
        &self,
        left: &mut BTreeSet<String>,
        name: &str,
        [i, o]: [usize; 2],
    ) -> Result<Option<LayerKeys>> {
        let r = self.config.of(name).0;
        let mut find = |part: &str, shape: &[usize]| -> Result<Option<String>> {
            let Some(key) = take(left, name, part) else { return Ok(None) };
            let found = self.tensors.find(&key)?;
            found.check_shape(&key, shape).map_err(|e| e.help(OTHER_MODEL))?;
            found.check_type(&key)?;
            Ok(Some(key))
        };
        let a = find("lora_A.weight", &[r, i])?;
        let b = find("lora_B.weight", &[o, r])?;
        let magnitude = find("lora_magnitude_vector", &[o])?;
        let (a, b) = match (a, b) {
            (Some(a), Some(b)) => (a, b),
            (None, None) => return Ok(None),
            _ => return Err(self.wrong(&format!("`{name}` has only one of lora_A and lora_B"))),
        };
        if magnitude.is_some() != self.config.use_dora {
            return Err(self.wrong(&format!(
                "`{name}` and `use_dora` of adapter_config.json do not agree on \
                 lora_magnitude_vector"
            )));
        }
        let base = take(left, name, "base_layer.weight");
        match base.as_deref().filter(|key| self.tensors.shape(key) != Some(&[o, i][..])) {
            Some(key) => Err(self.other_weight(key)),
            None => Ok(Some(LayerKeys { a, b, magnitude, base })),
        }
    }

    /// The adapter of `layer`, of this hub name.
    pub(super) fn lora(
        &self,
        keys: &LayerKeys,
        name: &str,
        layer: &Linear,
        dropout: f64,
    ) -> Result<Lora> {
        let device = layer.weight.device();
        let matrix = |key: &str| -> Result<_> {
            let (values, shape) = self.tensors.f32(key)?;
            let [rows, columns] = [shape[0], shape[1]];
            let data = TensorData::new(transposed(&values, rows, columns), [columns, rows]);
            Ok(resident(data, &device, DType::F32))
        };
        let scaling = self.config.of(name).1;
        let lora = Lora::from_tensors(matrix(&keys.a)?, matrix(&keys.b)?, scaling, dropout);
        let Some(key) = &keys.magnitude else { return Ok(lora) };
        let values = self.tensors.f32(key)?.0;
        let magnitude = resident(TensorData::from(&values[..]), &device, DType::F32);
        Ok(lora.with_magnitude(layer, Some(magnitude)))
    }

    fn wrong(&self, what: &str) -> Error {
        Error::input(format!("{}: {what}", self.path.display())).help(OTHER_MODEL)
    }

    pub(super) fn other_weight(&self, key: &str) -> Error {
        self.wrong(&format!("`{key}` is not the checkpoint's weight")).help(
            "the adapter was made for another model, or changes this weight too: then merge it in \
             PEFT and take that checkpoint",
        )
    }
}

/// Takes out of `left` the name of what `layer`, a hub name, has as `part`, in either spelling.
fn take(left: &mut BTreeSet<String>, layer: &str, part: &str) -> Option<String> {
    let spelling = |module: &str| format!("{PREFIX}{module}.{part}");
    let keys = [spelling(&module_name(layer)), spelling(layer)];
    keys.into_iter().find(|key| left.remove(key))
}
