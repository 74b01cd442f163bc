//! The language model: embedding, decoder layers, final norm.
//!
//! Enters `x: [b, t, hidden]`, leaves the same. One forward serves training, evaluation and
//! generation; a cache makes it incremental. Source: transformers' `Qwen2VLDecoderLayer`; field
//! names are the hub's. Letters: `b` batch, `t` tokens, `h` heads, `d` head width.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, activation::silu};

use super::attention::attention;
use super::cpu;
use super::kv_cache::KvCache;
use super::linear::Linear;
use super::norm::RmsNorm;
use super::rope::Rotary;

/// What all layers of one forward share.
#[derive(Clone, Debug)]
pub struct Context {
    /// Rotary tables of the tokens that enter.
    pub rotary: Rotary,
    /// Whether dropout is on.
    pub train: bool,
}

/// The decoder.
#[derive(Module, Debug)]
pub struct LanguageModel {
    /// Token embeddings.
    pub embed_tokens: Embedding,
    /// Decoder layers.
    pub layers: Vec<DecoderLayer>,
    /// Final norm.
    pub norm: RmsNorm,
}

/// A table of one row per token.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[vocab, hidden]`.
    pub weight: Param<Tensor<2>>,
}

/// Pre-norm attention and gated MLP.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    /// Self-attention.
    pub self_attn: SelfAttention,
    /// MLP.
    pub mlp: Mlp,
    /// Norm before attention.
    pub input_layernorm: RmsNorm,
    /// Norm before the MLP.
    pub post_attention_layernorm: RmsNorm,
}

/// Causal attention with grouped key and value heads.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// `hidden` → `h·d`.
    pub q_proj: Linear,
    /// `hidden` → `kv·d`.
    pub k_proj: Linear,
    /// `hidden` → `kv·d`.
    pub v_proj: Linear,
    /// `h·d` → `hidden`.
    pub o_proj: Linear,
    /// `d`.
    pub head_dim: usize,
}

/// SwiGLU.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `hidden` → `inner`.
    pub gate_proj: Linear,
    /// `hidden` → `inner`.
    pub up_proj: Linear,
    /// `inner` → `hidden`.
    pub down_proj: Linear,
}

impl Embedding {
    /// `ids: [t]` → `[t, hidden]`.
    pub fn forward(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        self.weight.val().select(0, ids)
    }
}

impl LanguageModel {
    /// All layers and the final norm: `x: [b, t, hidden]` → `[b, t, hidden]`.
    pub fn forward(
        &self,
        x: Tensor<3>,
        context: &Context,
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let x = self.layers.iter().enumerate().fold(x, |x, (i, layer)| {
            layer.forward(x, context, cache.as_deref_mut().map(|cache| (cache, i)))
        });
        self.norm.forward(x)
    }
}

impl DecoderLayer {
    /// `x: [b, t, hidden]` → `[b, t, hidden]`; `cache` is the cache and this layer's slot in it.
    pub fn forward(
        &self,
        x: Tensor<3>,
        context: &Context,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Tensor<3> {
        let x = x.clone() + self.self_attn.forward(self.input_layernorm.forward(x), context, cache);
        x.clone() + self.mlp.forward(self.post_attention_layernorm.forward(x), context.train)
    }

    /// The layer's linear layers with their hub names; `name` is the layer's own.
    pub fn linear_layers_mut(&mut self, name: &str) -> Vec<(String, &mut Linear)> {
        let attention = &mut self.self_attn;
        let mut layers = vec![
            (format!("{name}.self_attn.q_proj"), &mut attention.q_proj),
            (format!("{name}.self_attn.k_proj"), &mut attention.k_proj),
            (format!("{name}.self_attn.v_proj"), &mut attention.v_proj),
            (format!("{name}.self_attn.o_proj"), &mut attention.o_proj),
        ];
        layers.extend(self.mlp.linear_layers_mut(&format!("{name}.mlp")));
        layers
    }
}

impl SelfAttention {
    fn forward(
        &self,
        x: Tensor<3>,
        context: &Context,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Tensor<3> {
        let [b, t, _] = x.dims();
        let heads = |x: Tensor<3>| {
            let h = x.dims()[2] / self.head_dim;
            x.reshape([b, t, h, self.head_dim]).swap_dims(1, 2)
        };
        let q = context.rotary.apply(heads(self.q_proj.forward(x.clone(), context.train)));
        let k = context.rotary.apply(heads(self.k_proj.forward(x.clone(), context.train)));
        let v = heads(self.v_proj.forward(x, context.train));
        let y = match cache {
            Some((cache, layer)) => cache.attend(layer, q, k, v),
            None => attention(q, k, v, true),
        };
        let width = y.dims()[1] * self.head_dim;
        self.o_proj.forward(y.swap_dims(1, 2).reshape([b, t, width]), context.train)
    }
}

impl Mlp {
    /// The three layers with their hub names; `name` is the MLP's own.
    pub fn linear_layers_mut(&mut self, name: &str) -> Vec<(String, &mut Linear)> {
        vec![
            (format!("{name}.gate_proj"), &mut self.gate_proj),
            (format!("{name}.up_proj"), &mut self.up_proj),
            (format!("{name}.down_proj"), &mut self.down_proj),
        ]
    }

    /// `x: […, hidden]` → `[…, hidden]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, train: bool) -> Tensor<D> {
        let gate = self.gate_proj.forward(x.clone(), train);
        let up = self.up_proj.forward(x, train);
        self.down_proj.forward(swiglu(gate, up), train)
    }
}

/// `silu(gate) · up`, element by element.
fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    if cpu::runs(&gate) {
        return cpu::swiglu(gate, up);
    }
    #[cfg(feature = "cuda")]
    if super::cuda::holds(&gate) {
        return super::cuda::swiglu(gate, up);
    }
    silu(gate) * up
}
