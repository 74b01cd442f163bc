//! `model.device` and `model.dtype` → where and in what type the model runs.

use burn::tensor::{DType, Device};

use crate::error::{Error, Result};
use crate::recipe::{Dtype, Model};

/// A device and what to call it.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The device, without autodiff.
    pub device: Device,
    /// `cpu` or `cuda:0`.
    pub name: String,
    /// Type of weights and activations.
    pub dtype: DType,
}

/// The device that a recipe asks for.
///
/// # Errors
/// Where there is no such device; none is put in its place.
pub fn choose(model: &Model) -> Result<Chosen> {
    let gpus = gpus();
    let wanted = match (model.device.as_str(), gpus.is_empty()) {
        ("auto", true) | ("cpu", _) => None,
        ("auto", false) => Some(0),
        (name, _) => match name.strip_prefix("cuda:").map(str::parse::<usize>) {
            Some(Ok(index)) => Some(index),
            _ => {
                return Err(Error::input(format!("`model.device` is `{name}`"))
                    .help("auto, cpu, or cuda:0"));
            }
        },
    };
    let Some(index) = wanted else {
        let dtype = if model.dtype == Dtype::Bf16 { DType::BF16 } else { DType::F32 };
        return Ok(Chosen { device: Device::flex(), name: "cpu".into(), dtype });
    };
    let dtype = if model.dtype == Dtype::F32 { DType::F32 } else { DType::BF16 };
    match gpus.into_iter().nth(index) {
        Some(device) => Ok(Chosen { device, name: format!("cuda:{index}"), dtype }),
        None => Err(no_such_gpu(index)),
    }
}

#[cfg(feature = "cuda")]
fn gpus() -> Vec<Device> {
    Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec()
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> Vec<Device> {
    vec![]
}

fn no_such_gpu(index: usize) -> Error {
    let what = format!("`model.device` is `cuda:{index}`, and there is no such GPU here");
    Error::input(what).help(if cfg!(feature = "cuda") {
        "check `nvidia-smi`, or set device = \"cpu\""
    } else {
        "this program was built without CUDA: build it with --features cuda, or set device = \"cpu\""
    })
}
