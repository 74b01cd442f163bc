//! A checkpoint folder in hub layout: weights in shards with their index, and beside them what
//! belongs to the checkpoint (configuration, tokenizer, chat template, processor).

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Tensor};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::host::host;
use super::parameters;
use super::qwen_vl::QwenVl;
use super::tensor_files::{Outline, TensorFiles, in_type, write_file};
use super::weights::{shapes, to_hub};
use crate::error::{Error, Result};
use crate::files::{self, failed, io_reason};

/// Most bytes of one shard (transformers' default: 5 GB).
pub const SHARD_BYTES: usize = 5_000_000_000;

/// Ends of the names of files that belong to a checkpoint beside its weights.
pub const COPIED: [&str; 4] = [".json", ".txt", ".jinja", ".model"];
/// Which shard holds a tensor.
pub const INDEX: &str = "model.safetensors.index.json";

/// Writes a checkpoint into the folder `to`: the given tensors and the small files of the checkpoint
/// `source`; `config.json` names `dtype` as the weights' type where one is given. `bytes` is asked
/// for one tensor at a time.
///
/// # Errors
/// What `bytes` says, or where the disk refuses.
pub fn write(
    to: &Path,
    source: &Path,
    tensors: &[Outline],
    shard_bytes: usize,
    dtype: Option<Dtype>,
    mut bytes: impl FnMut(&Outline) -> Result<Vec<u8>>,
) -> Result<()> {
    files::create_dir(to)?;
    let shards = shards(tensors, shard_bytes);
    let file_name = |i: usize| match shards.len() {
        1 => "model.safetensors".to_owned(),
        n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
    };
    for (i, shard) in shards.iter().enumerate() {
        write_file(&to.join(file_name(i)), shard, &mut bytes)?;
    }
    if shards.len() > 1 {
        let of_shard = |(i, shard): (usize, &&[Outline])| {
            shard.iter().map(|t| (t.name.clone(), file_name(i).into())).collect::<Vec<_>>()
        };
        let map: Map<String, Value> = shards.iter().enumerate().flat_map(of_shard).collect();
        let total: usize = tensors.iter().map(Outline::bytes).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        files::write_json(&to.join(INDEX), &index)?;
    }
    copy_small_files(source, to)?;
    match dtype {
        Some(dtype) => name_dtype(&source.join("config.json"), &to.join("config.json"), dtype),
        None => Ok(()),
    }
}

/// Writes `model` as it is in memory: the type of its weights is that of the file. `source` is
/// the checkpoint that it was loaded from, whose spelling of names is kept. What stood in `to` is
/// replaced, once all is written.
///
/// # Errors
/// Where the device fails or the disk refuses.
pub fn save(model: &QwenVl, source: &Path, to: &Path) -> Result<()> {
    let original = TensorFiles::from_dir(source)?;
    let hub_shapes = shapes(&model.config)?;
    let parameters: BTreeMap<String, (Vec<usize>, Tensor<1>)> = parameters::values(model);
    let dtype = parameters.values().next().map_or(Dtype::F32, |(_, value)| stored(value.dtype()));
    let outlines = hub_shapes.iter().map(|(name, shape)| Outline {
        name: original.original(name).unwrap_or(name).to_owned(),
        dtype,
        shape: shape.clone(),
    });
    let outlines: Vec<Outline> = outlines.collect();
    let mut names = hub_shapes.keys();
    let bytes = |_: &Outline| {
        let found = names.next().and_then(|name| Some((name, parameters.get(name)?)));
        let (name, (shape, value)) = found.ok_or_else(|| Error::run("a tensor is missing"))?;
        let values = to_hub(name, shape, host(value.clone())?);
        Ok(in_type(&values, dtype))
    };
    files::write_dir(to, |to| write(to, source, &outlines, SHARD_BYTES, Some(dtype), bytes))
}

/// The file's name of a type of weights; a model has f32 or bf16.
fn stored(dtype: DType) -> Dtype {
    if dtype == DType::BF16 { Dtype::BF16 } else { Dtype::F32 }
}

/// Runs of `tensors` of at most `most` bytes each; a larger tensor is alone.
fn shards(tensors: &[Outline], most: usize) -> Vec<&[Outline]> {
    let (mut shards, mut start, mut size) = (Vec::new(), 0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        if i > start && size + tensor.bytes() > most {
            shards.push(&tensors[start..i]);
            (start, size) = (i, 0);
        }
        size += tensor.bytes();
    }
    shards.push(&tensors[start..]);
    shards
}

fn copy_small_files(from: &Path, to: &Path) -> Result<()> {
    let unread = |e: std::io::Error| Error::run(format!("{}: {}", from.display(), io_reason(&e)));
    for entry in std::fs::read_dir(from).map_err(unread)? {
        let path = entry.map_err(unread)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name != INDEX && COPIED.iter().any(|end| name.ends_with(end)) && path.is_file() {
            let target = to.join(&*name);
            std::fs::copy(&path, &target).map_err(|e| failed(&target, &e))?;
        }
    }
    Ok(())
}

/// Copies a `config.json` that names `dtype`, in whichever of the keys it has.
fn name_dtype(from: &Path, to: &Path, dtype: Dtype) -> Result<()> {
    let wrong = |e: String| Error::run(format!("{}: {e}", from.display()));
    let text = std::fs::read_to_string(from).map_err(|e| wrong(e.to_string()))?;
    let mut config: Value = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let name = match dtype {
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
        _ => "float32",
    };
    rename_dtype(&mut config, name);
    let has = ["dtype", "torch_dtype"].iter().any(|key| config.get(key).is_some());
    if let (false, Some(config)) = (has, config.as_object_mut()) {
        config.insert("torch_dtype".into(), name.into());
    }
    files::write_json(to, &config)
}

fn rename_dtype(config: &mut Value, name: &str) {
    for (key, value) in config.as_object_mut().into_iter().flatten() {
        match value {
            Value::String(dtype) if key == "torch_dtype" || key == "dtype" => {
                name.clone_into(dtype);
            }
            _ => rename_dtype(value, name),
        }
    }
}
