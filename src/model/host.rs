//! Tensors on the host: off the device as numbers, and into a safetensors file.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Tensor};
use safetensors::tensor::{Dtype, TensorView};

use crate::error::{Error, Result};
use crate::files;

/// A tensor's numbers.
///
/// # Errors
/// Where the device fails.
pub fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let data =
        tensor.try_into_data().map_err(|e| Error::run(format!("the device failed: {e:?}")))?;
    let data = data.convert_dtype(DType::F32);
    data.try_to_vec().map_err(|e| Error::run(format!("the device failed: {e:?}")))
}

/// f32 tensors on the host: numbers, row by row, and shape, by name.
pub type HostTensors = BTreeMap<String, (Vec<f32>, Vec<usize>)>;

/// Writes f32 tensors, `name → (numbers, shape)`, as one safetensors file.
///
/// # Errors
/// Where the disk refuses.
pub fn write_tensors(path: &Path, tensors: HostTensors) -> Result<()> {
    let bytes: Vec<(String, Vec<u8>, Vec<usize>)> = tensors
        .into_iter()
        .map(|(name, (values, shape))| {
            (name, values.iter().flat_map(|v| v.to_le_bytes()).collect(), shape)
        })
        .collect();
    let views = bytes.iter().map(|(name, data, shape)| {
        TensorView::new(Dtype::F32, shape.clone(), data).map(|view| (name, view))
    });
    let views: Vec<_> = views.collect::<Result<_, _>>().map_err(|e| Error::run(e.to_string()))?;
    let format = Some([("format".to_owned(), "pt".to_owned())].into());
    let content = safetensors::serialize(views, format).map_err(|e| Error::run(e.to_string()))?;
    files::write(path, content)
}
