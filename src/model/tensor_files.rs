//! Safetensors files: tensors by hub name out of one or several, and into one.
//!
//! Reads `model.safetensors`, else the shards of `model.safetensors.index.json`. A tensor is read
//! or written by itself, so that no second copy of them all is ever held.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use burn::tensor::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::{Map, Value, json};

use super::weights::hub_name;
use crate::error::{Error, Result};
use crate::files::{self, io_reason, read_text};

/// One open safetensors file.
pub(super) struct Shard {
    pub(super) path: PathBuf,
    file: File,
    metadata: Metadata,
    data_start: u64,
}

/// The tensors of a safetensors file or a set of shards, by hub name.
pub struct TensorFiles {
    /// The file, or the index of several.
    path: PathBuf,
    shards: Vec<Shard>,
    /// Hub name → shard and the name in it.
    names: BTreeMap<String, (usize, String)>,
}

impl TensorFiles {
    /// Opens the weights of a checkpoint folder.
    ///
    /// # Errors
    /// Where a file is missing, truncated or no safetensors file.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        if single.is_file() {
            Self::open([single])
        } else if index.is_file() {
            let shards = shard_names(&read_text(&index)?).ok_or_else(|| {
                Error::input(format!("{}: no `weight_map` of file names", index.display()))
                    .help("download the index again")
            })?;
            if let Some(missing) = shards.iter().find(|name| !dir.join(name).is_file()) {
                let path = dir.join(missing);
                return Err(Error::input(format!(
                    "{}: no such file, named by {}",
                    path.display(),
                    index.display()
                ))
                .help("download the missing shard"));
            }
            let files = Self::open(shards.iter().map(|name| dir.join(name)))?;
            Ok(Self { path: index, ..files })
        } else {
            Err(Error::input(format!(
                "{}: no model.safetensors and no model.safetensors.index.json",
                dir.display()
            ))
            .help("model.path must be a checkpoint folder in hub layout"))
        }
    }

    /// Opens safetensors files.
    ///
    /// # Errors
    /// As [`TensorFiles::from_dir`], or where a weight is there twice.
    pub fn open(paths: impl IntoIterator<Item = PathBuf>) -> Result<Self> {
        let shards = paths.into_iter().map(Shard::open).collect::<Result<Vec<_>>>()?;
        let mut names = BTreeMap::<String, (usize, String)>::new();
        for (i, shard) in shards.iter().enumerate() {
            for name in shard.metadata.offset_keys() {
                if let Some((j, other)) = names.insert(hub_name(&name), (i, name.clone())) {
                    let [path, of] = [i, j].map(|i| shards[i].path.display());
                    let what = format!("`{name}` is the same weight as `{other}` of {of}");
                    return Err(Error::input(format!("{path}: {what}")).help("keep one of the two"));
                }
            }
        }
        let path = shards.first().map_or_else(PathBuf::new, |shard| shard.path.clone());
        Ok(Self { path, shards, names })
    }

    /// Hub names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Shape of a tensor, where there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let (shard, name) = self.names.get(name)?;
        Some(&self.shards[*shard].metadata.info(name)?.shape)
    }

    /// How the file spells the tensor of a hub name, where there is one.
    pub fn original(&self, name: &str) -> Option<&str> {
        self.names.get(name).map(|(_, original)| original.as_str())
    }

    /// A tensor as it stands in the file: spelling, type and shape.
    ///
    /// # Errors
    /// Where there is none of that hub name.
    pub fn outline(&self, name: &str) -> Result<Outline> {
        let info = self.find(name)?.info;
        let spelled = self.original(name).unwrap_or(name).to_owned();
        Ok(Outline { name: spelled, dtype: info.dtype, shape: info.shape.clone() })
    }

    /// A tensor's bytes as they stand in the file.
    ///
    /// # Errors
    /// Where there is none of that hub name, or the disk fails.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.find(name)?.bytes()
    }

    /// A tensor's numbers as f32, row by row, with its shape.
    ///
    /// # Errors
    /// Where there is none of that hub name, or its type is not f32, f16 or bf16.
    pub fn f32(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>)> {
        let found = self.find(name)?;
        let bytes = found.bytes()?;
        let values = match found.info.dtype {
            Dtype::F32 => numbers(&bytes, f32::from_le_bytes),
            Dtype::BF16 => numbers(&bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => numbers(&bytes, |b| f16::from_le_bytes(b).to_f32()),
            other => return Err(wrong_type(&found.shard.path, name, other)),
        };
        Ok((values, found.info.shape.clone()))
    }

    pub(super) fn find(&self, name: &str) -> Result<Found<'_>> {
        let missing = || {
            let what = format!("{}: the checkpoint has no `{name}`", self.path.display());
            Error::input(what).help(
                "config.json and the weights come from different models, or a shard is missing",
            )
        };
        let (shard, original) = self.names.get(name).ok_or_else(missing)?;
        let shard = &self.shards[*shard];
        let info = shard.metadata.info(original).ok_or_else(missing)?;
        Ok(Found { shard, info })
    }
}

/// A tensor in a file, not read yet.
pub(super) struct Found<'a> {
    pub(super) shard: &'a Shard,
    pub(super) info: &'a TensorInfo,
}

/// Bytes of two tensors that are compared at a time.
const PIECE: usize = 1 << 20;

impl Found<'_> {
    fn len(&self) -> usize {
        let (start, end) = self.info.data_offsets;
        end - start
    }

    /// Checks that the tensor, called `name`, has this shape.
    pub(super) fn check_shape(&self, name: &str, shape: &[usize]) -> Result<()> {
        let (path, found) = (self.shard.path.display(), &self.info.shape);
        match found == shape {
            true => Ok(()),
            false => Err(Error::input(format!(
                "{path}: `{name}` is {found:?}, the model wants {shape:?}"
            ))
            .help("config.json and the weights come from different models")),
        }
    }

    /// Checks that the tensor, called `name`, is of a type that can be loaded.
    pub(super) fn check_type(&self, name: &str) -> Result<()> {
        match self.info.dtype {
            Dtype::F32 | Dtype::BF16 | Dtype::F16 => Ok(()),
            other => Err(wrong_type(&self.shard.path, name, other)),
        }
    }

    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        self.piece(0..self.len())
    }

    /// Whether the other one holds the same, bit for bit.
    pub(super) fn equals(&self, other: &Found<'_>) -> Result<bool> {
        if (self.info.dtype, &self.info.shape) != (other.info.dtype, &other.info.shape) {
            return Ok(false);
        }
        for start in (0..self.len()).step_by(PIECE) {
            let piece = start..self.len().min(start + PIECE);
            if self.piece(piece.clone())? != other.piece(piece)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn piece(&self, range: Range<usize>) -> Result<Vec<u8>> {
        let at = self.shard.data_start + (self.info.data_offsets.0 + range.start) as u64;
        let mut bytes = vec![0; range.len()];
        self.shard.file.read_exact_at(&mut bytes, at).map_err(|e| {
            Error::run(format!("{}: cannot be read: {e}", self.shard.path.display()))
        })?;
        Ok(bytes)
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self> {
        let broken = |what: &str| {
            Error::input(format!("{}: {what}", path.display()))
                .help("the file is incomplete or damaged: download it again")
        };
        let unread =
            |e: std::io::Error| Error::input(format!("{}: {}", path.display(), io_reason(&e)));
        let incomplete = |_| broken("not a complete safetensors file");
        let file = File::open(&path).map_err(unread)?;
        let file_len = file.metadata().map_err(unread)?.len();
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0).map_err(incomplete)?;
        let data_start = u64::from_le_bytes(length).saturating_add(8);
        if data_start > file_len {
            return Err(broken("not a complete safetensors file"));
        }
        let mut header = vec![0; data_start as usize - 8];
        file.read_exact_at(&mut header, 8).map_err(incomplete)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|_| broken("not a safetensors file: its header is malformed"))?;
        if data_start + metadata.data_len() as u64 != file_len {
            return Err(broken("not a complete safetensors file"));
        }
        Ok(Self { path, file, metadata, data_start })
    }
}

/// File names in an index, each once, sorted.
fn shard_names(index: &str) -> Option<BTreeSet<String>> {
    let json: Value = serde_json::from_str(index).ok()?;
    let map = json.get("weight_map")?.as_object()?;
    map.values().map(|file| file.as_str().map(str::to_owned)).collect()
}

/// Little-endian `bytes` as what `read` makes of them.
pub(super) fn numbers<E, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> E) -> Vec<E> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
}

/// The error for a tensor of a type that no model has.
pub(super) fn wrong_type(path: &Path, name: &str, dtype: Dtype) -> Error {
    let other = match dtype {
        Dtype::F64 => "cast it to f32",
        _ => "take the checkpoint that is not quantised",
    };
    Error::input(format!("{}: `{name}` is {dtype:?}", path.display()))
        .help(format!("only f32, f16 and bf16 weights can be loaded; {other}"))
}

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

/// f32 tensors on the host: numbers, row by row, and shape, by name.
pub type HostTensors = BTreeMap<String, (Vec<f32>, Vec<usize>)>;

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
