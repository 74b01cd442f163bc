//! `config.json` → [`Config`]: the shapes of a Qwen2-VL or Qwen2.5-VL checkpoint.
//!
//! Accepts the flat layout of the hub and the nested one that transformers ≥ 4.52 writes
//! (`text_config`, `rope_parameters`), of which the outer keys say nothing of the language model.
//! A missing key takes the default of the family's configuration class in transformers, where that
//! class has one.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::read_json;

/// Base of the vision tower's rotary frequencies.
/// Source: `VisionRotaryEmbedding`.
pub const VISION_ROPE_THETA: f64 = 10_000.0;

/// Which of the two architectures a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// LayerNorm, quick-GELU and full attention in the vision tower.
    Qwen2Vl,
    /// RMSNorm, SwiGLU and windowed attention in the vision tower; positions in seconds.
    Qwen2_5Vl,
}

/// A checkpoint's architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The family, from `model_type`.
    pub family: Family,
    /// The language model.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// Id of `<|image_pad|>`.
    pub image_token_id: u32,
    /// Id of `<|video_pad|>`.
    pub video_token_id: u32,
    /// Whether `lm_head` shares the embedding's weights.
    pub tie_word_embeddings: bool,
}

/// The language model's shape; field names are the hub's.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of one head; `hidden_size / num_attention_heads` unless given.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence the checkpoint was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Rotary frequencies for time, height, width; they sum to `head_dim / 2`.
    pub mrope_section: [usize; 3],
    /// Standard deviation of new weights.
    pub initializer_range: f64,
}

/// The vision tower's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Number of blocks.
    pub depth: usize,
    /// Width of the tower (`embed_dim` in Qwen2-VL, `hidden_size` in Qwen2.5-VL).
    pub embed_dim: usize,
    /// Inner width of the MLP.
    pub intermediate_size: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Colour channels.
    pub in_channels: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Frames that one patch spans.
    pub temporal_patch_size: usize,
    /// Patches per side that the merger joins into one token.
    pub spatial_merge_size: usize,
    /// Qwen2.5-VL: side of an attention window, in pixels.
    pub window_size: usize,
    /// Qwen2.5-VL: blocks that attend to the whole frame pair.
    pub fullatt_block_indexes: Vec<usize>,
    /// Qwen2.5-VL: temporal positions per second of video.
    pub tokens_per_second: f64,
}

impl Config {
    /// Reads `config.json` of a checkpoint folder.
    ///
    /// # Errors
    /// Where the file is missing, is no JSON, lacks a key or names another architecture.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let json: Value = read_json(&path).map_err(|e| {
            e.help("give a folder in hub layout: config.json, tokenizer, chat template, processor")
        })?;
        Self::from_json(&json).map_err(|what| Error::input(format!("{}: {what}", path.display())))
    }

    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// What is wrong with it, without the file's name.
    pub fn from_json(json: &Value) -> Result<Self, String> {
        let family = match json.get("model_type").and_then(Value::as_str) {
            Some("qwen2_vl") => Family::Qwen2Vl,
            Some("qwen2_5_vl") => Family::Qwen2_5Vl,
            Some(other) => {
                return Err(format!(
                    "`model_type` is `{other}`; only `qwen2_vl` and `qwen2_5_vl` can be trained"
                ));
            }
            None => return Err("lacks `model_type`".into()),
        };
        if json.get("quantization_config").is_some_and(|q| !q.is_null()) {
            return Err(
                "the checkpoint is quantised (`quantization_config`); take the bf16 one".into()
            );
        }
        let top = Fields(json);
        let text = Fields(top.value("text_config").unwrap_or(json));
        let vision = json.get("vision_config").ok_or("lacks `vision_config`")?;
        // transformers 4 writes it into one of the two, and 5 ties where either says so.
        let tied = |fields: &Fields| fields.bool("tie_word_embeddings", false);
        Ok(Self {
            family,
            text: TextConfig::read(&text)?,
            vision: VisionConfig::read(family, &Fields(vision))
                .map_err(|what| format!("`vision_config`: {what}"))?,
            image_token_id: top.usize("image_token_id", Some(151_655))? as u32,
            video_token_id: top.usize("video_token_id", Some(151_656))? as u32,
            tie_word_embeddings: tied(&top)? || tied(&text)?,
        })
    }

    /// Side of the vision tower's windows, in merge blocks; none where all its blocks attend to the
    /// whole frame pair.
    pub fn window(&self) -> Option<usize> {
        let VisionConfig { window_size, spatial_merge_size, patch_size, .. } = self.vision;
        (self.family == Family::Qwen2_5Vl).then(|| window_size / spatial_merge_size / patch_size)
    }
}

impl TextConfig {
    fn read(fields: &Fields) -> Result<Self, String> {
        let hidden_size = fields.usize("hidden_size", None)?;
        let num_attention_heads = fields.usize("num_attention_heads", None)?;
        let head_dim = fields.usize("head_dim", Some(hidden_size / num_attention_heads.max(1)))?;
        if fields.bool("use_sliding_window", false)? {
            return Err("`use_sliding_window` is true; sliding windows are not supported".into());
        }
        fields.only("hidden_act", &["silu", "swish"])?;
        // Null is as many as heads, and a missing key the class's 8.
        let kv_heads = match fields.0.get("num_key_value_heads") {
            Some(Value::Null) => num_attention_heads,
            _ => fields.usize("num_key_value_heads", Some(8))?,
        };
        divides("num_attention_heads", num_attention_heads, "hidden_size", hidden_size)?;
        divides("num_key_value_heads", kv_heads, "num_attention_heads", num_attention_heads)?;
        let mrope_section = mrope_section(fields, head_dim)?;
        Ok(Self {
            hidden_size,
            intermediate_size: fields.usize("intermediate_size", None)?,
            num_hidden_layers: fields.usize("num_hidden_layers", None)?,
            num_attention_heads,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size: fields.usize("vocab_size", None)?,
            max_position_embeddings: fields.usize("max_position_embeddings", Some(32_768))?,
            rms_norm_eps: fields.f64("rms_norm_eps", Some(1e-5))?,
            rope_theta: fields.rope_theta(1_000_000.0)?,
            mrope_section,
            initializer_range: fields.f64("initializer_range", Some(0.02))?,
        })
    }
}

/// How many angles of a head of `head_dim` follow time, height and width.
fn mrope_section(fields: &Fields, head_dim: usize) -> Result<[usize; 3], String> {
    let rope = fields.rope().ok_or("lacks `rope_scaling` with `mrope_section`")?;
    let plain = |kind: &&Value| kind.is_null() || **kind == "default" || **kind == "mrope";
    let mut kinds = ["rope_type", "type"].iter().filter_map(|key| rope.get(key));
    if let Some(kind) = kinds.find(|kind| !plain(kind)) {
        return Err(format!(
            "`rope_scaling` is of type {kind}, and positions cannot be scaled; make it \
             \"mrope\": questions on videos stay far below the lengths that scaling is for"
        ));
    }
    let section = rope.get("mrope_section").and_then(Value::as_array);
    let section: Vec<usize> = section
        .ok_or("`rope_scaling` lacks `mrope_section`")?
        .iter()
        .filter_map(|n| n.as_u64().map(|n| n as usize))
        .collect();
    let section: [usize; 3] =
        section.try_into().map_err(|_| "`mrope_section` must hold three numbers")?;
    match section.iter().sum::<usize>() * 2 == head_dim {
        true => Ok(section),
        false => Err(format!(
            "`mrope_section` {section:?} must sum to half of the head width {head_dim}"
        )),
    }
}

impl VisionConfig {
    fn read(family: Family, fields: &Fields) -> Result<Self, String> {
        let embed_dim = match family {
            Family::Qwen2Vl => fields.usize("embed_dim", Some(1280))?,
            Family::Qwen2_5Vl => fields.usize("hidden_size", Some(3584))?,
        };
        let intermediate_size = match family {
            Family::Qwen2Vl => (embed_dim as f64 * fields.f64("mlp_ratio", Some(4.0))?) as usize,
            Family::Qwen2_5Vl => fields.usize("intermediate_size", Some(3420))?,
        };
        let fullatt_block_indexes =
            match fields.value("fullatt_block_indexes").and_then(Value::as_array) {
                Some(list) => list.iter().filter_map(|n| n.as_u64().map(|n| n as usize)).collect(),
                None => vec![7, 15, 23, 31],
            };
        let num_heads = fields.usize("num_heads", Some(16))?;
        // The rotary embedding splits a head into height and width, each into pairs.
        divides("num_heads × 4", 4 * num_heads, "the vision tower's width", embed_dim)?;
        fields.only(
            "hidden_act",
            match family {
                Family::Qwen2Vl => &["quick_gelu"],
                Family::Qwen2_5Vl => &["silu", "swish"],
            },
        )?;
        let rope_theta = fields.rope_theta(VISION_ROPE_THETA)?;
        if rope_theta != VISION_ROPE_THETA {
            return Err(format!(
                "`rope_theta` is {rope_theta}, only {VISION_ROPE_THETA} is supported"
            ));
        }
        // `in_chans`, which the hub's files have too, is no key of transformers.
        let in_channels = fields.usize("in_channels", Some(3))?;
        if in_channels != 3 {
            return Err(format!("`in_channels` is {in_channels}, and a video's frames have 3"));
        }
        let patch_size = fields.usize("patch_size", Some(14))?;
        let spatial_merge_size = fields.usize("spatial_merge_size", Some(2))?;
        let window_size = fields.usize("window_size", Some(112))?;
        if family == Family::Qwen2_5Vl && window_size < patch_size * spatial_merge_size {
            return Err(format!(
                "`window_size` ({window_size}) is below `patch_size` × `spatial_merge_size` \
                 ({patch_size} × {spatial_merge_size})"
            ));
        }
        Ok(Self {
            depth: fields.usize("depth", Some(32))?,
            embed_dim,
            intermediate_size,
            num_heads,
            in_channels,
            patch_size,
            temporal_patch_size: fields.usize("temporal_patch_size", Some(2))?,
            spatial_merge_size,
            window_size,
            fullatt_block_indexes,
            tokens_per_second: fields.f64("tokens_per_second", Some(4.0))?,
        })
    }

    /// Patches that the merger joins into one token: `spatial_merge_size²`.
    pub fn merge_unit(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }

    /// Numbers in one flattened patch: channels × frames × height × width.
    pub fn patch_dim(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }
}

/// Checks that `part` divides `whole`.
fn divides(part_name: &str, part: usize, whole_name: &str, whole: usize) -> Result<(), String> {
    match part != 0 && whole.is_multiple_of(part) {
        true => Ok(()),
        false => Err(format!("`{part_name}` ({part}) does not divide {whole_name} ({whole})")),
    }
}

/// A JSON object with typed access; null is as if the key were missing.
struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// What a file says of rotary embedding, beside a plain `rope_theta`: the older key, where both
    /// are there, as in transformers.
    fn rope(&self) -> Option<&'a Value> {
        let keys = ["rope_scaling", "rope_parameters"].iter();
        keys.filter_map(|key| self.value(key)).find(|value| value.is_object())
    }

    fn rope_theta(&self, default: f64) -> Result<f64, String> {
        match self.rope().and_then(|rope| rope.get("rope_theta")?.as_f64()) {
            Some(theta) => Ok(theta),
            None => self.f64("rope_theta", Some(default)),
        }
    }

    /// Checks that `key`, where it is there, is one of `names`.
    fn only(&self, key: &str, names: &[&str]) -> Result<(), String> {
        match self.value(key) {
            Some(value) if names.iter().all(|name| *value != **name) => {
                Err(format!("`{key}` is {value}, only `{}` is supported", names[0]))
            }
            _ => Ok(()),
        }
    }

    fn usize(&self, key: &str, default: Option<usize>) -> Result<usize, String> {
        match (self.value(key), default) {
            (Some(v), _) => v
                .as_u64()
                .map(|n| n as usize)
                .ok_or_else(|| format!("`{key}` must be a whole number, not {v}")),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(format!("lacks `{key}`")),
        }
    }

    fn f64(&self, key: &str, default: Option<f64>) -> Result<f64, String> {
        match (self.value(key), default) {
            (Some(v), _) => v.as_f64().ok_or_else(|| format!("`{key}` must be a number, not {v}")),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(format!("lacks `{key}`")),
        }
    }

    fn bool(&self, key: &str, default: bool) -> Result<bool, String> {
        match self.value(key) {
            Some(v) => v.as_bool().ok_or_else(|| format!("`{key}` must be true or false, not {v}")),
            None => Ok(default),
        }
    }
}
