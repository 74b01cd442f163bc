//! What a model costs, from its configuration alone: memory of its activations, and arithmetic.
//!
//! Counts of numbers, not bytes; arithmetic in floating-point operations, a product and its sum
//! being two. Letters: `t` tokens, `n` patches.

use super::attention::QUERIES;
use super::config::{Config, Family, TextConfig, VisionConfig};

impl TextConfig {
    /// Widths of the queries, and of keys and values together.
    fn attention_widths(&self) -> (usize, usize) {
        let width = |heads: usize| heads * self.head_dim;
        (width(self.num_attention_heads), 2 * width(self.num_key_value_heads))
    }

    /// Numbers that one decoder layer keeps for each token while it has a tape: what enters and
    /// leaves its norms, queries, keys and values, attention's output, and the three inner states
    /// of the MLP.
    pub fn tape(&self) -> usize {
        let (q, kv) = self.attention_widths();
        5 * self.hidden_size + 2 * q + kv + 3 * self.intermediate_size
    }

    /// Scores of one decoder layer over a prompt of `t` tokens, where attention is composed.
    pub fn scores(&self, t: usize) -> usize {
        self.num_attention_heads * t * usize::midpoint(t, t.min(QUERIES))
    }

    /// Numbers that the cache of keys and values holds for each token, over all layers.
    pub fn cache(&self) -> usize {
        self.num_hidden_layers * self.attention_widths().1
    }

    /// Weights that a token meets in all decoder layers.
    fn layer_weights(&self) -> usize {
        let (q, kv) = self.attention_widths();
        let attention = self.hidden_size * (2 * q + kv);
        self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)
    }

    /// Arithmetic of all decoder layers over a prompt of `t` tokens.
    pub fn forward_flops(&self, t: usize) -> f64 {
        let causal = self.num_hidden_layers * self.attention_widths().0 * t;
        2.0 * t as f64 * (self.layer_weights() + causal) as f64
    }

    /// Arithmetic of the logits of one token.
    pub fn logits_flops(&self) -> f64 {
        2.0 * (self.hidden_size * self.vocab_size) as f64
    }
}

impl VisionConfig {
    /// Numbers that exist at once for each patch in a block without a tape.
    pub fn block(&self) -> usize {
        5 * self.embed_dim + 2 * self.intermediate_size
    }
}

impl Config {
    /// Numbers that the vision tower's blocks keep for each patch while they have a tape.
    pub fn tower_tape(&self) -> usize {
        let states = if self.family == Family::Qwen2_5Vl { 3 } else { 2 };
        let vision = &self.vision;
        vision.depth * (7 * vision.embed_dim + states * vision.intermediate_size)
    }

    /// Arithmetic of the vision tower over a video of `grid_thw` patches.
    pub fn tower_flops(&self, [t, h, w]: [usize; 3]) -> f64 {
        let vision = &self.vision;
        let e = vision.embed_dim;
        let mlp =
            if self.family == Family::Qwen2_5Vl { 3 } else { 2 } * e * vision.intermediate_size;
        let full = match self.family {
            Family::Qwen2Vl => vision.depth,
            Family::Qwen2_5Vl => vision.fullatt_block_indexes.len().min(vision.depth),
        };
        let window = (vision.window_size / vision.patch_size).pow(2).min(h * w);
        let seen = full * h * w + (vision.depth - full) * window;
        let unit = e * vision.merge_unit();
        let merger = unit * (unit + self.text.hidden_size) / vision.merge_unit();
        let weights = vision.depth * (4 * e * e + mlp) + vision.patch_dim() * e + merger;
        2.0 * (t * h * w) as f64 * (weights + 2 * e * seen) as f64
    }
}
