//! Random checkpoints: Qwen's published shapes and small ones, each tensor drawn by itself.
//!
//! Token ids are those of the built-in tokenizer at every shape, so that one file of samples
//! serves all. Number `i` of a tensor is number `i` of the sequence that its name seeds.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData, bf16};
use clap::ValueEnum;
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};
use vlm4d_train::model::config::Config;
use vlm4d_train::model::parameters;
use vlm4d_train::model::peft::{self, AdapterConfig};
use vlm4d_train::model::tensor_files::Outline;
use vlm4d_train::model::{hub, weights};
use vlm4d_train::recipe::{self, Part};

use super::Failure;
use super::samples::VISION;

/// Shape of a checkpoint. Source of the true ones: the `config.json` of Qwen's releases.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Shape {
    /// Qwen2-VL: 6 layers of width 256 behind a tower of 4 layers of width 192.
    Nano,
    /// Qwen2.5-VL of that size.
    #[value(name = "2.5-nano")]
    Nano2_5,
    /// Qwen2-VL: 2 layers of width 64; for checking that a script works.
    Tiny,
    /// Qwen2.5-VL of that size.
    #[value(name = "2.5-tiny")]
    Tiny2_5,
    /// Qwen2-VL-2B.
    #[value(name = "2b")]
    B2,
    /// Qwen2-VL-7B.
    #[value(name = "7b")]
    B7,
    /// Qwen2.5-VL-3B.
    #[value(name = "2.5-3b")]
    B3_2_5,
    /// Qwen2.5-VL-7B.
    #[value(name = "2.5-7b")]
    B7_2_5,
}

/// What differs between shapes.
struct Sizes {
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    tied: bool,
    /// The tower's depth, width, inner width and heads.
    tower: [usize; 4],
}

impl Shape {
    fn is_2_5(self) -> bool {
        matches!(self, Self::Nano2_5 | Self::Tiny2_5 | Self::B3_2_5 | Self::B7_2_5)
    }

    fn sizes(self) -> Sizes {
        let text = |[hidden, inner, layers, heads, kv_heads, vocab]: [usize; 6], tied, tower| {
            Sizes { hidden, inner, layers, heads, kv_heads, vocab, tied, tower }
        };
        match self {
            Self::Nano => text([256, 1024, 6, 4, 2, 2048], false, [4, 192, 768, 4]),
            Self::Nano2_5 => text([256, 1024, 6, 4, 2, 2048], false, [4, 192, 512, 4]),
            Self::Tiny => text([64, 128, 2, 4, 2, 704], true, [2, 64, 256, 4]),
            Self::Tiny2_5 => text([64, 128, 2, 4, 2, 704], false, [3, 64, 96, 4]),
            Self::B2 => text([1536, 8960, 28, 12, 2, 151_936], true, [32, 1280, 5120, 16]),
            Self::B7 => text([3584, 18_944, 28, 28, 4, 152_064], false, [32, 1280, 5120, 16]),
            Self::B3_2_5 => text([2048, 11_008, 36, 16, 2, 151_936], true, [32, 1280, 3420, 16]),
            Self::B7_2_5 => text([3584, 18_944, 28, 28, 4, 152_064], false, [32, 1280, 3420, 16]),
        }
    }

    fn config(self) -> Value {
        let sizes = self.sizes();
        let [depth, width, inner, heads] = sizes.tower;
        let mut vision = json!({
            "depth": depth, "num_heads": heads, "in_chans": 3, "patch_size": 14,
            "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2
        });
        let own = if self.is_2_5() {
            // Every quarter of the tower ends with a block that attends to the whole frame pair.
            let every = (depth / 4).max(2);
            let full: Vec<usize> = (0..depth).filter(|i| (i + 1) % every == 0).collect();
            json!({
                "hidden_size": width, "intermediate_size": inner, "out_hidden_size": sizes.hidden,
                "hidden_act": "silu", "window_size": 112, "fullatt_block_indexes": full,
                "tokens_per_second": 2
            })
        } else {
            json!({"embed_dim": width, "mlp_ratio": inner / width, "hidden_size": sizes.hidden})
        };
        for (key, value) in own.as_object().into_iter().flatten() {
            vision[key] = value.clone();
        }
        let name = if self.is_2_5() { "Qwen2_5_VL" } else { "Qwen2VL" };
        let half = sizes.hidden / sizes.heads / 2;
        let section = [half / 4, (half - half / 4) / 2, half - half / 4 - (half - half / 4) / 2];
        json!({
            "architectures": [format!("{name}ForConditionalGeneration")],
            "model_type": if self.is_2_5() { "qwen2_5_vl" } else { "qwen2_vl" },
            "hidden_size": sizes.hidden, "intermediate_size": sizes.inner,
            "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads, "vocab_size": sizes.vocab,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": section},
            "tie_word_embeddings": sizes.tied, "hidden_act": "silu",
            "bos_token_id": 640, "eos_token_id": 642, "vision_start_token_id": VISION[0],
            "vision_end_token_id": VISION[1], "vision_token_id": 651, "image_token_id": 652,
            "video_token_id": VISION[2], "use_sliding_window": false, "vision_config": vision
        })
    }
}

/// Writes the checkpoint `dir` in shards, with one tensor in memory at a time, and in `adapter/`
/// an adapter for it whose matrices are all drawn: r = 8 on all linear layers of the language
/// model. Returns the number of parameters.
pub fn write(dir: &Path, shape: Shape, in_bf16: bool) -> Result<usize, Failure> {
    let source = tempfile::tempdir()?;
    std::fs::write(source.path().join("config.json"), shape.config().to_string())?;
    let config = Config::from_dir(source.path())?;
    let dtype = if in_bf16 { Dtype::BF16 } else { Dtype::F32 };
    let shapes = weights::shapes(&config)?.into_iter();
    let outlines: Vec<Outline> =
        shapes.map(|(name, shape)| Outline { name, dtype, shape }).collect();
    hub::write(dir, source.path(), &outlines, hub::SHARD_BYTES, Some(dtype), |outline| {
        Ok(draw(outline, &config))
    })?;
    adapter(&config, &dir.join("adapter"))?;
    Ok(outlines.iter().map(|outline| outline.shape.iter().product::<usize>()).sum())
}

/// The bytes of a tensor: norms are one, biases zero, matrices uniform with the spread of
/// PyTorch's linear layers. Layers that add to the residual stream have less, by the square root
/// of their number, so that activations stay as large as they are at any depth.
fn draw(outline: &Outline, config: &Config) -> Vec<u8> {
    let (name, shape) = (outline.name.as_str(), &outline.shape);
    let n: usize = shape.iter().product();
    let layers = match Part::of(name) {
        Part::Language => config.text.num_hidden_layers,
        _ => config.vision.depth,
    };
    let adds = ["o_proj", "down_proj", "attn.proj", "mlp.fc2"];
    let adds = adds.iter().any(|layer| name.ends_with(&format!("{layer}.weight")));
    let bound = match () {
        () if name.contains("embed_tokens") && config.tie_word_embeddings => 0.035,
        () if name.contains("embed_tokens") => 0.5,
        () => {
            let inputs = shape[1..].iter().product::<usize>() as f32;
            (3.0 / inputs).sqrt() / if adds { (2.0 * layers as f32).sqrt() } else { 1.0 }
        }
    };
    let seed = seed_of(name);
    let constant = match () {
        () if name.ends_with("bias") => Some(0.0),
        () if shape.len() == 1 => Some(1.0),
        () => None,
    };
    let value = |i: usize| constant.unwrap_or_else(|| bound * uniform(seed, i as u64));
    match outline.dtype {
        Dtype::BF16 => bytes(n, |i| bf16::from_f32(value(i)).to_le_bytes()),
        _ => bytes(n, |i| value(i).to_le_bytes()),
    }
}

/// `n` numbers, made on all cores.
fn bytes<const N: usize>(n: usize, of: impl Fn(usize) -> [u8; N] + Sync) -> Vec<u8> {
    const AT_ONCE: usize = 1 << 16;
    let mut bytes = vec![0; n * N];
    bytes.par_chunks_mut(AT_ONCE * N).enumerate().for_each(|(chunk, bytes)| {
        for (i, number) in bytes.chunks_exact_mut(N).enumerate() {
            number.copy_from_slice(&of(chunk * AT_ONCE + i));
        }
    });
    bytes
}

/// Number `i` of the sequence of `seed`, uniform in ±1: splitmix64.
pub fn uniform(seed: u64, i: u64) -> f32 {
    let state = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let z = z ^ (z >> 31);
    (z >> 40) as f32 * 2.0_f32.powi(-24) * 2.0 - 1.0
}

/// A seed for each name: FNV-1a.
fn seed_of(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// An adapter as PEFT begins one, but with a B that is not zero: else A has no gradient.
fn adapter(config: &Config, dir: &Path) -> Result<(), Failure> {
    let lora = recipe::Lora::default();
    let mut model = weights::skeleton(config)?;
    peft::attach(&mut model, &lora, 0)?;
    let model = parameters::replace(model.train(), |name, value| {
        if !name.ends_with("lora_B.weight") {
            return value;
        }
        let n = value.dims()[0];
        let drawn: Vec<f32> = (0..n as u64).map(|i| 0.02 * uniform(seed_of(name), i)).collect();
        Tensor::from_data(TensorData::new(drawn, [n]), &value.device())
    });
    Ok(peft::save(&model, &AdapterConfig::new(&lora, "."), dir)?)
}
