//! Checkpoint → checkpoint, with an adapter merged where there is one: one tensor at a time in the
//! order of hub names, spelling and types as in the source, merged weights computed in f32 and
//! rounded once.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::Dtype;

use crate::error::Result;
use crate::interrupt;
use crate::model::config::Config;
use crate::model::host::host;
use crate::model::hub;
use crate::model::linear::Linear;
use crate::model::peft;
use crate::model::tensor_files::{Outline, TensorFiles, in_type};
use crate::model::weights::{self, transposed};
use crate::report::terminal::Terminal;

/// Writes a checkpoint into the folder `to`: that of `checkpoint` with `adapter`, where one is given,
/// merged, and its weights in `dtype`, else in the types that they have.
///
/// # Errors
/// Where the two do not fit, a file is damaged, or the disk refuses.
pub fn write(
    checkpoint: &Path,
    adapter: Option<&Path>,
    to: &Path,
    shard_bytes: usize,
    dtype: Option<Dtype>,
    terminal: &Terminal,
) -> Result<()> {
    let source = TensorFiles::from_dir(checkpoint)?;
    let mut adapted = BTreeMap::new();
    if let Some(adapter) = adapter {
        let mut skeleton = weights::skeleton(&Config::from_dir(checkpoint)?)?;
        peft::load(&mut skeleton, adapter, 0.0)?;
        for (name, layer) in skeleton.linear_layers_mut() {
            if layer.lora.is_some() {
                adapted.insert(format!("{name}.weight"), layer.clone());
            }
        }
    }
    let names: Vec<&str> = source.names().collect();
    let outlines: Vec<Outline> =
        names.iter().map(|name| source.outline(name)).collect::<Result<_>>()?;
    let as_written =
        |outline: &Outline| Outline { dtype: dtype.unwrap_or(outline.dtype), ..outline.clone() };
    let written: Vec<Outline> = outlines.iter().map(as_written).collect();
    let bar = terminal.bar("tensors", names.len());
    let mut at = names.iter().enumerate();
    let result = hub::write(to, checkpoint, &written, shard_bytes, dtype, |outline| {
        interrupt::check("the export")?;
        let Some((i, name)) = at.next() else { return Ok(vec![]) };
        bar.set(i);
        match adapted.remove(*name) {
            None if outline.dtype == outlines[i].dtype => source.bytes(name),
            None => Ok(in_type(&source.f32(name)?.0, outline.dtype)),
            Some(layer) => {
                let (values, _) = source.f32(name)?;
                let merged = merged(layer, &values)?;
                Ok(in_type(&merged, outline.dtype))
            }
        }
    });
    bar.finish();
    result
}

/// The weight `[o, i]` with its adapter, row by row.
fn merged(mut layer: Linear, weight: &[f32]) -> Result<Vec<f32>> {
    let [i, o] = layer.shape();
    let data = TensorData::new(transposed(weight, o, i), [i, o]);
    let weight = Tensor::<2>::from_data(data, (&Device::flex(), DType::F32));
    layer.weight = weight.into();
    Ok(transposed(&host(layer.merge().weight.val())?, i, o))
}
