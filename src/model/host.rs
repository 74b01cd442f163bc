//! Tensors on the host: off the device as numbers, and into a safetensors file.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use burn::tensor::{DType, Tensor, bf16};
use half::f16;
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::files;

/// A tensor's numbers.
///
/// # Errors
/// Where the device fails.
pub fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let data = tensor.try_into_data().map_err(|e| Error::device(&format!("{e:?}")))?;
    let data = data.convert_dtype(DType::F32);
    data.try_to_vec().map_err(|e| Error::device(&format!("{e:?}")))
}

/// f32 tensors on the host: numbers, row by row, and shape, by name.
pub type HostTensors = BTreeMap<String, (Vec<f32>, Vec<usize>)>;

/// A tensor as the header of a safetensors file has it.
#[derive(Clone, Debug)]
pub struct Outline {
    /// Its name in the file.
    pub name: String,
    /// Type of its numbers.
    pub dtype: Dtype,
    /// Rows first.
    pub shape: Vec<usize>,
}

impl Outline {
    /// That of f32 numbers.
    pub fn f32(name: &str, shape: &[usize]) -> Self {
        Self { name: name.to_owned(), dtype: Dtype::F32, shape: shape.to_vec() }
    }

    /// Bytes of its numbers.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Writes a safetensors file; `bytes` is asked for the numbers of one tensor at a time, in the
/// order of `tensors`, so that no second copy of them all is ever held.
///
/// # Errors
/// What `bytes` says, or where the disk refuses.
pub fn write_file(
    path: &Path,
    tensors: &[Outline],
    mut bytes: impl FnMut(&Outline) -> Result<Vec<u8>>,
) -> Result<()> {
    let mut end = 0;
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    for tensor in tensors {
        let start = end;
        end += tensor.bytes();
        let value = json!({
            "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]
        });
        header.insert(tensor.name.clone(), value);
    }
    let mut header = Value::Object(header).to_string();
    // The format wants the numbers to start at a multiple of 8.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    files::write_with(path, |file| {
        let mut write = |part: &[u8]| file.write_all(part).map_err(|e| files::failed(path, &e));
        write(&(header.len() as u64).to_le_bytes())?;
        write(header.as_bytes())?;
        tensors.iter().try_for_each(|tensor| write(&bytes(tensor)?))
    })
}

/// Writes f32 tensors, `name → (numbers, shape)`, as one safetensors file.
///
/// # Errors
/// Where the disk refuses.
pub fn write_tensors(path: &Path, tensors: &HostTensors) -> Result<()> {
    let outlines: Vec<Outline> =
        tensors.iter().map(|(name, (_, shape))| Outline::f32(name, shape)).collect();
    write_file(path, &outlines, |outline| Ok(f32_bytes(&tensors[&outline.name].0)))
}

/// Numbers as a file holds them.
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Numbers in a file's type, rounded to the nearest.
pub fn in_type(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        _ => f32_bytes(values),
    }
}
