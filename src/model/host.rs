//! Numbers on their way to the device and back.

use burn::tensor::kind::Basic;
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::parameters::Named;
use crate::error::{Error, Result};

/// `data` as a tensor that stays, such as a weight: apart from what comes and goes, it is not looked
/// through for room each time that something comes.
pub fn resident<const D: usize, K: Basic>(
    data: TensorData,
    device: &Device,
    dtype: DType,
) -> Tensor<D, K> {
    device.memory_persistent_allocations(data, |data: TensorData| {
        Tensor::from_data(data.convert_dtype(dtype), (device, dtype))
    })
}

/// A tensor's numbers.
///
/// # Errors
/// Where the device fails.
pub fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let data = data(tensor)?.convert_dtype(DType::F32);
    data.try_to_vec().map_err(|e| Error::device(&format!("{e:?}")))
}

/// What a tensor holds, in its type.
///
/// # Errors
/// Where the device fails.
pub fn data<const D: usize, K: Basic>(tensor: Tensor<D, K>) -> Result<TensorData> {
    tensor.try_into_data().map_err(|e| Error::device(&format!("{e:?}")))
}

/// `tensors` in the host's memory, on the way from one device to another.
///
/// # Errors
/// Where the device fails.
pub fn on_host(tensors: Named) -> Result<Named> {
    let tensors = tensors.into_iter().map(|(name, tensor)| {
        let data = data(tensor)?;
        let dtype = data.dtype();
        Ok((name, Tensor::from_data(data, (&Device::flex(), dtype))))
    });
    tensors.collect()
}
