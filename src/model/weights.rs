//! Checkpoint files → model: each tensor is read, cast and transposed by itself, so that no
//! second copy of the model is ever held.
//!
//! Reads `model.safetensors`, else the shards of `model.safetensors.index.json`, in transformers'
//! order; f32, f16 or bf16; names as on the hub (`model.layers.…`, `visual.…`) or as transformers
//! ≥ 4.52 holds them (`model.language_model.layers.…`, `model.visual.…`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor, TensorData, bf16};
use half::f16;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::Value;

use super::config::{Config, Family, VisionConfig};
use super::host::Outline;
use super::language::{DecoderLayer, Embedding, LanguageModel, Mlp, SelfAttention};
use super::lora::Linear;
use super::norm::{LayerNorm, RmsNorm};
use super::qwen_vl::QwenVl;
use super::vision::{
    MergerMlp, Norm, PatchEmbed, PatchMerger, QuickGeluMlp, VisionAttention, VisionBlock,
    VisionMlp, VisionShape, VisionTower,
};
use crate::error::{Error, Result};
use crate::files::{io_reason, read_text};

/// Hub names of the two tensors that a checkpoint may tie.
const EMBEDDING: &str = "model.embed_tokens.weight";
const LM_HEAD: &str = "lm_head.weight";

/// One open safetensors file.
struct Shard {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    data_start: u64,
}

/// The tensors of a safetensors file or a set of shards, by hub name.
pub struct TensorFiles {
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
            Self::open(shards.iter().map(|name| dir.join(name)))
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
    /// As [`TensorFiles::from_dir`].
    pub fn open(paths: impl IntoIterator<Item = PathBuf>) -> Result<Self> {
        let shards = paths.into_iter().map(Shard::open).collect::<Result<Vec<_>>>()?;
        let names = shards.iter().enumerate().flat_map(|(i, shard)| {
            let names = shard.metadata.offset_keys().into_iter();
            names.map(move |name| (hub_name(&name), (i, name)))
        });
        Ok(Self { names: names.collect(), shards })
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
    /// Where there is none of that name, or its type is not f32, f16 or bf16.
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

    fn find(&self, name: &str) -> Result<Found<'_>> {
        let missing = || {
            let file =
                self.shards.first().map_or_else(String::new, |s| s.path.display().to_string());
            Error::input(format!("{file}: the checkpoint has no `{name}`")).help(
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
struct Found<'a> {
    shard: &'a Shard,
    info: &'a TensorInfo,
}

/// Bytes of two tensors that are compared at a time.
const PIECE: usize = 1 << 20;

impl Found<'_> {
    fn len(&self) -> usize {
        let (start, end) = self.info.data_offsets;
        end - start
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        self.piece(0..self.len())
    }

    /// Whether the other one holds the same, bit for bit.
    fn equals(&self, other: &Found<'_>) -> Result<bool> {
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

/// The hub's spelling of a tensor's name.
pub fn hub_name(name: &str) -> String {
    match name.strip_prefix("model.language_model.") {
        Some(rest) => format!("model.{rest}"),
        None => {
            name.strip_prefix("model.").filter(|n| n.starts_with("visual.")).unwrap_or(name).into()
        }
    }
}

/// The spelling of transformers ≥ 4.52 for a hub name.
pub fn module_name(hub: &str) -> String {
    match hub.strip_prefix("model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None if hub.starts_with("visual.") => format!("model.{hub}"),
        None => hub.into(),
    }
}

fn numbers<E, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> E) -> Vec<E> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
}

fn wrong_type(path: &Path, name: &str, dtype: Dtype) -> Error {
    let other = match dtype {
        Dtype::F64 => "cast it to f32",
        _ => "take the checkpoint that is not quantised",
    };
    Error::input(format!("{}: `{name}` is {dtype:?}", path.display()))
        .help(format!("only f32, f16 and bf16 weights can be loaded; {other}"))
}

/// Where a model's weights come from.
enum Source<'a> {
    Files(&'a TensorFiles),
    /// Shapes only: every tensor is one zero seen through a large shape.
    Nothing,
}

/// Hands out tensors by hub name, checks their shapes and keeps count.
struct Loader<'a> {
    source: Source<'a>,
    dtype: DType,
    device: &'a Device,
    taken: BTreeMap<String, Vec<usize>>,
}

/// Loads a model; all parameters are frozen.
///
/// `dtype` is the type of weights and activations, whatever the files hold.
///
/// # Errors
/// Where a tensor is missing, has another shape than `config` says, or is left over, or where
/// `config` ties two that differ.
pub fn load(config: &Config, files: &TensorFiles, dtype: DType, device: &Device) -> Result<QwenVl> {
    if config.tie_word_embeddings {
        check_tied(files)?;
    }
    let mut loader = Loader { source: Source::Files(files), dtype, device, taken: BTreeMap::new() };
    let model = loader.model(config)?;
    let ignored =
        |name: &str| name.ends_with(".inv_freq") || (config.tie_word_embeddings && name == LM_HEAD);
    let left_over = files.names().find(|name| !loader.taken.contains_key(*name) && !ignored(name));
    match left_over {
        None => Ok(model),
        Some(name) => Err(Error::input(format!(
            "the checkpoint has `{name}`, which config.json has no place for"
        ))
        .help("config.json and the weights come from different models")),
    }
}

/// Checks that a tied head is the embedding, where the files have both: two that differ are not
/// tied by transformers, whatever config.json says.
fn check_tied(files: &TensorFiles) -> Result<()> {
    let Ok(head) = files.find(LM_HEAD) else { return Ok(()) };
    if head.equals(&files.find(EMBEDDING)?)? {
        return Ok(());
    }
    let what = format!("`{LM_HEAD}` differs from `{EMBEDDING}`, to which config.json ties it");
    Err(Error::input(format!("{}: {what}", head.shard.path.display()))
        .help("set `tie_word_embeddings` to false in config.json"))
}

/// Hub name and hub shape of every tensor of a model, without a weight being allocated.
///
/// # Errors
/// Where `config` is inconsistent.
pub fn shapes(config: &Config) -> Result<BTreeMap<String, Vec<usize>>> {
    Ok(outlined(config)?.1)
}

/// A model whose layers have their shapes, and no weights.
///
/// # Errors
/// Where `config` is inconsistent.
pub fn skeleton(config: &Config) -> Result<QwenVl> {
    Ok(outlined(config)?.0)
}

fn outlined(config: &Config) -> Result<(QwenVl, BTreeMap<String, Vec<usize>>)> {
    let device = Device::flex();
    let (source, dtype, taken) = (Source::Nothing, DType::F32, BTreeMap::new());
    let mut loader = Loader { source, dtype, device: &device, taken };
    let model = loader.model(config)?;
    Ok((model, loader.taken))
}

impl Loader<'_> {
    /// Reads `name`, of `shape` in the file, as a matrix of `rows`; transposed where asked.
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: &[usize],
        as_shape: [usize; D],
        transpose: bool,
    ) -> Result<Param<Tensor<D>>> {
        self.taken.insert(name.to_owned(), shape.to_vec());
        let tensor = match self.source {
            Source::Nothing => Tensor::<D>::zeros([1; D], self.device).expand(as_shape),
            Source::Files(files) => {
                let found = files.find(name)?;
                if found.info.shape != shape {
                    return Err(Error::input(format!(
                        "{}: `{name}` is {:?}, the model wants {shape:?}",
                        found.shard.path.display(),
                        found.info.shape
                    ))
                    .help("config.json and the weights come from different models"));
                }
                let bytes = found.bytes()?;
                let data = match found.info.dtype {
                    Dtype::F32 => matrix(bytes, f32::from_le_bytes, as_shape, transpose),
                    Dtype::BF16 => matrix(bytes, bf16::from_le_bytes, as_shape, transpose),
                    Dtype::F16 => matrix(bytes, f16::from_le_bytes, as_shape, transpose),
                    other => return Err(wrong_type(&found.shard.path, name, other)),
                };
                // Weights stay: apart from what comes and goes, they are not looked through for
                // room each time that something comes.
                let options = (self.device, self.dtype);
                self.device.memory_persistent_allocations(data, |data: TensorData| {
                    Tensor::from_data(data.convert_dtype(self.dtype), options)
                })
            }
        };
        Ok(Param::from_tensor(tensor).set_require_grad(false))
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<Param<Tensor<1>>> {
        self.tensor(name, &[n], [n], false)
    }

    fn linear(&mut self, name: &str, [i, o]: [usize; 2], bias: bool) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), &[o, i], [i, o], true)?;
        let bias = if bias { Some(self.vector(&format!("{name}.bias"), o)?) } else { None };
        Ok(Linear { weight, bias, lora: None })
    }

    fn rms_norm(&mut self, name: &str, n: usize, eps: f64) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: self.vector(&format!("{name}.weight"), n)?, eps })
    }

    fn model(&mut self, config: &Config) -> Result<QwenVl> {
        let visual = self.vision(config)?;
        let text = &config.text;
        let (hidden, vocab) = (text.hidden_size, text.vocab_size);
        let shape = [vocab, hidden];
        let embed_tokens = Embedding { weight: self.tensor(EMBEDDING, &shape, shape, false)? };
        let layers = (0..text.num_hidden_layers)
            .map(|l| self.decoder_layer(config, &format!("model.layers.{l}")))
            .collect::<Result<_>>()?;
        let norm = self.rms_norm("model.norm", hidden, text.rms_norm_eps)?;
        let lm_head = if config.tie_word_embeddings {
            None
        } else {
            Some(self.linear("lm_head", [hidden, vocab], false)?)
        };
        let model = LanguageModel { embed_tokens, layers, norm };
        Ok(QwenVl { visual, model, lm_head, config: config.clone() })
    }

    fn decoder_layer(&mut self, config: &Config, name: &str) -> Result<DecoderLayer> {
        let text = &config.text;
        let (hidden, eps) = (text.hidden_size, text.rms_norm_eps);
        let q = text.num_attention_heads * text.head_dim;
        let kv = text.num_key_value_heads * text.head_dim;
        Ok(DecoderLayer {
            self_attn: SelfAttention {
                q_proj: self.linear(&format!("{name}.self_attn.q_proj"), [hidden, q], true)?,
                k_proj: self.linear(&format!("{name}.self_attn.k_proj"), [hidden, kv], true)?,
                v_proj: self.linear(&format!("{name}.self_attn.v_proj"), [hidden, kv], true)?,
                o_proj: self.linear(&format!("{name}.self_attn.o_proj"), [q, hidden], false)?,
                head_dim: text.head_dim,
            },
            mlp: self.gated_mlp(&format!("{name}.mlp"), hidden, text.intermediate_size, false)?,
            input_layernorm: self.rms_norm(&format!("{name}.input_layernorm"), hidden, eps)?,
            post_attention_layernorm: self.rms_norm(
                &format!("{name}.post_attention_layernorm"),
                hidden,
                eps,
            )?,
        })
    }

    fn gated_mlp(&mut self, name: &str, hidden: usize, inner: usize, bias: bool) -> Result<Mlp> {
        Ok(Mlp {
            gate_proj: self.linear(&format!("{name}.gate_proj"), [hidden, inner], bias)?,
            up_proj: self.linear(&format!("{name}.up_proj"), [hidden, inner], bias)?,
            down_proj: self.linear(&format!("{name}.down_proj"), [inner, hidden], bias)?,
        })
    }

    fn vision(&mut self, config: &Config) -> Result<VisionTower> {
        let vision = &config.vision;
        let e = vision.embed_dim;
        let name = "visual.patch_embed.proj.weight";
        let side = vision.patch_size;
        let convolution = [e, vision.in_channels, vision.temporal_patch_size, side, side];
        let weight = self.tensor(name, &convolution, [vision.patch_dim(), e], true)?;
        let blocks = (0..vision.depth)
            .map(|b| self.vision_block(config.family, vision, &format!("visual.blocks.{b}")))
            .collect::<Result<_>>()?;
        let unit = e * vision.merge_unit();
        Ok(VisionTower {
            patch_embed: PatchEmbed { proj: Linear { weight, bias: None, lora: None } },
            blocks,
            merger: PatchMerger {
                ln_q: self.vision_norm(config.family, "visual.merger.ln_q", e)?,
                mlp: MergerMlp {
                    linear_0: self.linear("visual.merger.mlp.0", [unit, unit], true)?,
                    linear_2: self.linear(
                        "visual.merger.mlp.2",
                        [unit, config.text.hidden_size],
                        true,
                    )?,
                },
            },
            config: VisionShape::new(vision, config.family == Family::Qwen2_5Vl),
        })
    }

    fn vision_block(
        &mut self,
        family: Family,
        vision: &VisionConfig,
        name: &str,
    ) -> Result<VisionBlock> {
        let (e, inner) = (vision.embed_dim, vision.intermediate_size);
        let mlp = format!("{name}.mlp");
        Ok(VisionBlock {
            norm1: self.vision_norm(family, &format!("{name}.norm1"), e)?,
            norm2: self.vision_norm(family, &format!("{name}.norm2"), e)?,
            attn: VisionAttention {
                qkv: self.linear(&format!("{name}.attn.qkv"), [e, 3 * e], true)?,
                proj: self.linear(&format!("{name}.attn.proj"), [e, e], true)?,
            },
            mlp: match family {
                Family::Qwen2Vl => VisionMlp::QuickGelu(QuickGeluMlp {
                    fc1: self.linear(&format!("{mlp}.fc1"), [e, inner], true)?,
                    fc2: self.linear(&format!("{mlp}.fc2"), [inner, e], true)?,
                }),
                Family::Qwen2_5Vl => VisionMlp::SwiGlu(self.gated_mlp(&mlp, e, inner, true)?),
            },
        })
    }

    fn vision_norm(&mut self, family: Family, name: &str, n: usize) -> Result<Norm> {
        // 1e-6: fixed in both families' vision code.
        let eps = 1e-6;
        Ok(match family {
            Family::Qwen2_5Vl => Norm::Rms(self.rms_norm(name, n, eps)?),
            Family::Qwen2Vl => Norm::Layer(LayerNorm {
                weight: self.vector(&format!("{name}.weight"), n)?,
                bias: self.vector(&format!("{name}.bias"), n)?,
                eps,
            }),
        })
    }
}

/// Little-endian `bytes` as a tensor of `shape`; with `transpose` they hold its transpose.
fn matrix<E: burn::tensor::Element, const N: usize, const D: usize>(
    bytes: Vec<u8>,
    read: impl Fn([u8; N]) -> E,
    shape: [usize; D],
    transpose: bool,
) -> TensorData {
    let mut values = numbers(&bytes, read);
    // Before the transpose, which needs room for the values once more.
    drop(bytes);
    if transpose {
        values = transposed(&values, shape[1], shape[0]);
    }
    TensorData::new(values, shape)
}

/// A parameter's numbers in the hub's layout. `name` is its hub name, `shape` that of burn's
/// layout: matrices but the embedding lie transposed.
pub fn to_hub(name: &str, shape: &[usize], values: Vec<f32>) -> Vec<f32> {
    match shape {
        [rows, columns] if !name.ends_with("embed_tokens.weight") => {
            transposed(&values, *rows, *columns)
        }
        _ => values,
    }
}

/// Rows and columns that are transposed at a time: what is read and what is written stay in a
/// core's cache.
const TILE: usize = 64;

/// The transpose of a row-major `rows × columns` matrix.
pub fn transposed<E: Copy + Send + Sync>(values: &[E], rows: usize, columns: usize) -> Vec<E> {
    // Every number is written over.
    let mut transposed = values.to_vec();
    let bands = transposed.par_chunks_mut((TILE * rows).max(1)).enumerate();
    bands.for_each(|(band, written)| {
        for start in (0..rows).step_by(TILE) {
            for (c, column) in written.chunks_mut(rows).enumerate() {
                for r in start..rows.min(start + TILE) {
                    column[r] = values[r * columns + band * TILE + c];
                }
            }
        }
    });
    transposed
}
