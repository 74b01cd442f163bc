//! Checkpoint files → model: each tensor is read, cast and transposed by itself, so that no
//! second copy of the model is ever held.
//!
//! f32, f16 or bf16; names as on the hub (`model.layers.…`, `visual.…`) or as transformers ≥ 4.52
//! holds them (`model.language_model.layers.…`, `model.visual.…`).

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor, TensorData, bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use super::config::{Config, Family, VisionConfig};
use super::host::resident;
use super::language::{DecoderLayer, Embedding, LanguageModel, Mlp, SelfAttention};
use super::linear::{Linear, Weight};
use super::nf4::Nf4;
use super::norm::{LayerNorm, RmsNorm};
use super::qwen_vl::QwenVl;
use super::tensor_files::{Found, TensorFiles, numbers, wrong_type};
use super::vision::{
    MergerMlp, Norm, PatchEmbed, PatchMerger, QuickGeluMlp, VisionAttention, VisionBlock,
    VisionMlp, VisionTower,
};
use crate::error::{Error, Result};
use crate::recipe::Quantize;

/// Hub names of the two tensors that a checkpoint may tie.
const EMBEDDING: &str = "model.embed_tokens.weight";
const LM_HEAD: &str = "lm_head.weight";

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

/// Where a model's weights come from.
enum Source<'a> {
    Files(&'a TensorFiles),
    /// Shapes only: every tensor is one zero seen through a large shape.
    Nothing,
}

/// Hands out tensors by hub name and keeps count.
struct Loader<'a> {
    source: Source<'a>,
    dtype: DType,
    quantize: Option<Quantize>,
    device: &'a Device,
    taken: BTreeMap<String, Vec<usize>>,
}

/// Loads a model; all parameters are frozen.
///
/// `dtype` is the type of weights and activations, whatever the files hold; where `quantize` says
/// so, linear layers but `lm_head` are held in fewer bits, made from their weights as `dtype`.
///
/// # Errors
/// As [`check`], or where `config` ties two that differ.
pub fn load(
    config: &Config,
    files: &TensorFiles,
    dtype: DType,
    quantize: Option<Quantize>,
    device: &Device,
) -> Result<QwenVl> {
    check(config, files)?;
    if config.tie_word_embeddings {
        check_tied(files)?;
    }
    let (source, taken) = (Source::Files(files), BTreeMap::new());
    Loader { source, dtype, quantize, device, taken }.model(config)
}

/// Checks by their headers that `files` hold the tensors of a model.
///
/// # Errors
/// Where one is missing, has another shape than `config` says, a type that cannot be loaded, or is
/// left over.
pub fn check(config: &Config, files: &TensorFiles) -> Result<()> {
    let shapes = shapes(config)?;
    for (name, shape) in &shapes {
        let found = files.find(name)?;
        found.check_shape(name, shape)?;
        found.check_type(name)?;
    }
    let ignored =
        |name: &str| name.ends_with(".inv_freq") || (config.tie_word_embeddings && name == LM_HEAD);
    let left_over = files.names().find(|name| !shapes.contains_key(*name) && !ignored(name));
    let Some(name) = left_over else { return Ok(()) };
    let Found { shard, info } = files.find(name)?;
    let what = format!("`{name}` is {:?}, and config.json has no place for it", info.shape);
    Err(Error::input(format!("{}: {what}", shard.path.display()))
        .help("config.json and the weights come from different models"))
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

/// Hub names and numbers of the layers whose weights [`load`] quantises where asked.
///
/// # Errors
/// Where `config` is inconsistent.
pub fn quantisable(config: &Config) -> Result<BTreeMap<String, usize>> {
    let mut model = skeleton(config)?;
    let layers = model.linear_layers_mut().into_iter().filter(|(name, _)| may_be_quantised(name));
    Ok(layers.map(|(name, layer)| (name, layer.shape().iter().product())).collect())
}

/// Whether a linear layer may: all but the head, as in transformers.
fn may_be_quantised(layer: &str) -> bool {
    layer != "lm_head"
}

fn outlined(config: &Config) -> Result<(QwenVl, BTreeMap<String, Vec<usize>>)> {
    let device = Device::flex();
    let (source, dtype, taken) = (Source::Nothing, DType::F32, BTreeMap::new());
    let mut loader = Loader { source, dtype, quantize: None, device: &device, taken };
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
                let bytes = found.bytes()?;
                let data = match found.info.dtype {
                    Dtype::F32 => matrix(bytes, f32::from_le_bytes, as_shape, transpose),
                    Dtype::BF16 => matrix(bytes, bf16::from_le_bytes, as_shape, transpose),
                    Dtype::F16 => matrix(bytes, f16::from_le_bytes, as_shape, transpose),
                    other => return Err(wrong_type(&found.shard.path, name, other)),
                };
                resident(data, self.device, self.dtype)
            }
        };
        Ok(Param::from_tensor(tensor).set_require_grad(false))
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<Param<Tensor<1>>> {
        self.tensor(name, &[n], [n], false)
    }

    fn linear(&mut self, name: &str, [i, o]: [usize; 2], bias: bool) -> Result<Linear> {
        let weight = self.weight(name, [i, o])?;
        let bias = if bias { Some(self.vector(&format!("{name}.bias"), o)?) } else { None };
        Ok(Linear { weight, bias, lora: None })
    }

    /// A linear layer's weight, quantised where asked.
    fn weight(&mut self, layer: &str, [i, o]: [usize; 2]) -> Result<Weight> {
        let name = format!("{layer}.weight");
        match (&self.source, self.quantize) {
            (Source::Files(files), Some(Quantize::Nf4)) if may_be_quantised(layer) => {
                let (values, _) = files.f32(&name)?;
                if let Some(x) = values.iter().find(|x| !x.is_finite()) {
                    let path = files.find(&name)?.shard.path.display();
                    return Err(Error::input(format!(
                        "{path}: `{name}` has {x} among its numbers"
                    ))
                    .help("the checkpoint is damaged: take another one"));
                }
                self.taken.insert(name, vec![o, i]);
                Ok(Weight::Nf4(Nf4::new(values, [o, i], self.dtype, self.device)))
            }
            _ => Ok(Weight::Dense(self.tensor(&name, &[o, i], [i, o], true)?)),
        }
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
        let weight =
            Weight::Dense(self.tensor(name, &convolution, [vision.patch_dim(), e], true)?);
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
