//! Attention: the one function through which every head of both towers goes.

use burn::tensor::{Tensor, module, ops::AttentionModuleOptions};

use super::cpu;

/// Scaled dot-product attention with grouped key and value heads.
///
/// `q: [b, heads, t, d]`, `k, v: [b, kv_heads, s, d]` → `[b, heads, t, d]`. With `causal`, query
/// `i` sees the keys up to `s - t + i`: the last query sees all, so a cached prefix and right
/// padding need no mask. Softmax statistics are f32.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, causal: bool) -> Tensor<4> {
    // A single query sees everything that is cached.
    let is_causal = causal && q.dims()[2] > 1;
    if cpu::runs(&q) {
        return cpu::attention(q, k, v, is_causal);
    }
    module::attention(
        q,
        k,
        v,
        None,
        None,
        AttentionModuleOptions { is_causal, ..Default::default() },
    )
}
