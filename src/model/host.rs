//! Tensors off the device, as numbers.

use burn::tensor::{DType, Tensor};

use crate::error::{Error, Result};

/// A tensor's numbers.
///
/// # Errors
/// Where the device fails.
pub fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let data = tensor.try_into_data().map_err(|e| Error::device(&format!("{e:?}")))?;
    let data = data.convert_dtype(DType::F32);
    data.try_to_vec().map_err(|e| Error::device(&format!("{e:?}")))
}
