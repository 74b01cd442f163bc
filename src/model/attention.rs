//! Attention: the one function through which every head of both towers goes.

use burn::tensor::activation::softmax;
use burn::tensor::ops::{AttentionModuleOptions, PadMode};
use burn::tensor::{Bool, DType, Tensor, module};

use super::cpu;
use super::linear::cast;

/// Scaled dot-product attention with grouped key and value heads.
///
/// `q: [b, heads, t, d]`, `k, v: [b, kv_heads, s, d]` → `[b, heads, t, d]`. With `causal`, query
/// `i` sees the keys up to `s - t + i`: the last query sees all, so a cached prefix and right
/// padding need no mask. Softmax statistics are f32.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, causal: bool) -> Tensor<4> {
    // A single query sees everything that is cached.
    let causal = causal && q.dims()[2] > 1;
    #[cfg(feature = "cuda")]
    if super::cuda::has_room_for_scores(&q, &k) {
        return super::cuda::attention_by_products(q, k, v, causal);
    }
    if cpu::runs(&q) {
        cpu::attention(q, k, v, causal)
    } else if q.dtype() == DType::F32 || cpu::holds(&q) {
        // On a GPU burn's kernels read f32 as TF32 or f16, whatever is said of matrix products.
        composed(q, k, v, causal)
    } else {
        fused(q, k, v, causal)
    }
}

/// Causal queries that [`composed`] takes at once: with the keys that none of them sees left out,
/// long prompts cost half, in time and in memory.
pub const QUERIES: usize = 512;

/// Bytes of scores, and of what the backward pass makes of them, that are in a GPU's memory at once
/// where cuBLAS multiplies.
pub const SCORES_AT_ONCE: usize = 512 << 20;

/// Rows of such scores begin at multiples of it: 16 bytes of bf16, which cuBLAS's fast kernels want.
pub const SCORES_PITCH: usize = 8;

/// Heads of keys whose scores [fit](SCORES_AT_ONCE): of `r` queries of all heads that share one, and
/// of `s` keys, in a type of `width` bytes. cuBLAS has blocks for so many matrices at the most.
pub fn scores_at_once(r: usize, s: usize, width: usize) -> usize {
    const MATRICES: usize = u16::MAX as usize;
    let row = s.next_multiple_of(SCORES_PITCH);
    (SCORES_AT_ONCE / (2 * r * row * (4 + width)).max(1)).min(MATRICES)
}

/// [`attention`] composed of matrix products and a softmax in f32, as transformers' `eager` is:
/// what all other ways are held to.
pub fn composed(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, causal: bool) -> Tensor<4> {
    let [t, s] = [q.dims()[2], k.dims()[2]];
    if !causal || t <= QUERIES {
        return at_once(q, k, v, causal);
    }
    let parts = (0..t).step_by(QUERIES).map(|from| {
        let to = t.min(from + QUERIES);
        let [k, v] = [&k, &v].map(|x| x.clone().slice_dim(2, 0..s - t + to));
        at_once(q.clone().slice_dim(2, from..to), k, v, true)
    });
    Tensor::cat(parts.collect(), 2)
}

fn at_once(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, causal: bool) -> Tensor<4> {
    let ([b, heads, t, d], [_, kv, s, _]) = (q.dims(), k.dims());
    let (dtype, device) = (q.dtype(), q.device());
    // The heads of a group share their keys: they are further queries of the same keys.
    let rows = heads / kv * t;
    let scores = q.reshape([b, kv, rows, d]).matmul(k.transpose()).reshape([b, heads, t, s]);
    let scores = cast(scores, DType::F32).div_scalar((d as f64).sqrt());
    let scores = if causal {
        let hidden = Tensor::<2, Bool>::tril_mask([t, s], s as i64 - t as i64, &device);
        scores.mask_fill(hidden.unsqueeze(), f32::NEG_INFINITY)
    } else {
        scores
    };
    let weights = cast(softmax(scores, 3), dtype).reshape([b, kv, rows, s]);
    weights.matmul(v).reshape([b, heads, t, d])
}

/// [`attention`] by burn's fused kernels.
pub fn fused(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, causal: bool) -> Tensor<4> {
    let (t, tape) = (q.dims()[2], [&q, &k, &v].into_iter().any(Tensor::is_tracked));
    if !causal || !tape || t % 2 == 1 {
        return attend(q, k, v, causal);
    }
    // The causal backward pass (cubek-microkernel 0.4.0-pre.1) takes as many queries from where a
    // key's begin as there are in all, and so reads behind the last. Only where the last step of
    // queries is cut short, as an odd number is by every step, does it find nothing there.
    let [q, k, v] = [q, k, v].map(|x| x.pad((0, 0, 0, 1), PadMode::Constant(0.0)));
    attend(q, k, v, causal).slice_dim(2, 0..t)
}

fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, is_causal: bool) -> Tensor<4> {
    #[cfg(feature = "cuda")]
    if super::cuda::runs(&q) {
        return super::cuda::attention(q, k, v, is_causal);
    }
    let options = AttentionModuleOptions { is_causal, ..Default::default() };
    module::attention(q, k, v, None, None, options)
}

/// What several continuations grow from.
#[derive(Clone, Debug)]
pub struct Trunk {
    /// Keys, `[1, kv_heads, p, d]`.
    pub k: Tensor<4>,
    /// Values, likewise.
    pub v: Tensor<4>,
    /// How many grow from it.
    pub branches: usize,
}

/// Attention of `b` continuations of some trunks, for each token without a copy of a trunk per
/// continuation.
///
/// `q: [b, heads, t, d]` sees all keys and values of its trunk, those of the first trunk first, and
/// of its own tail's, `[b, kv_heads, s, d]`, what `bias: [b, 1, t, s]` (0 or −∞, f32) lets it →
/// `[b, heads, t, d]`. One softmax over both, in f32. Without a tape.
pub fn branched_attention(
    q: Tensor<4>,
    trunks: &[Trunk],
    tail: (Tensor<4>, Tensor<4>),
    bias: Option<Tensor<4>>,
) -> Tensor<4> {
    #[cfg(feature = "cuda")]
    if q.dims()[2] == 1 && super::cuda::holds(&q) {
        return super::cuda::branched_attention(q, trunks, tail, bias);
    }
    if let [trunk] = trunks {
        return of_one_trunk(q, trunk, tail, bias);
    }
    let mut from = 0;
    let parts = trunks.iter().map(|trunk| {
        let part = |x: &Tensor<4>| x.clone().narrow(0, from, trunk.branches);
        let tail = (part(&tail.0), part(&tail.1));
        let y = of_one_trunk(part(&q), trunk, tail, bias.as_ref().map(part));
        from += trunk.branches;
        y
    });
    Tensor::cat(parts.collect(), 0)
}

fn of_one_trunk(
    q: Tensor<4>,
    trunk: &Trunk,
    tail: (Tensor<4>, Tensor<4>),
    bias: Option<Tensor<4>>,
) -> Tensor<4> {
    let ([b, heads, t, d], dtype) = (q.dims(), q.dtype());
    let ([_, kv, _, _], [_, _, s, _]) = (trunk.k.dims(), tail.0.dims());
    #[cfg(feature = "cuda")]
    if super::cuda::holds(&q) {
        // Several tokens enter where continuations begin: beside later ones only padding is hidden,
        // which stands behind all that count. A trunk for each is little memory there.
        let trunk_of_each = |x: &Tensor<4>| x.clone().expand([b, kv, x.dims()[2], d]);
        let whole = |x: &Tensor<4>, tail| Tensor::cat(vec![trunk_of_each(x), tail], 2);
        let k = whole(&trunk.k, tail.0.clone());
        if super::cuda::has_room_for_scores(&q, &k) {
            return super::cuda::attention_by_products(q, k, whole(&trunk.v, tail.1), true);
        }
    }
    // The heads of a group share their keys: they are further queries of the same keys, and so
    // are the branches before the trunk.
    let rows = heads / kv * t;
    let to_trunk = |x: Tensor<4>| -> Tensor<4> {
        let width = x.dims()[3];
        x.swap_dims(0, 1).reshape([1, kv, b * rows, width])
    };
    let to_tail = |x: Tensor<4>| -> Tensor<4> {
        let width = x.dims()[3];
        x.reshape([kv, b, rows, width]).swap_dims(0, 1)
    };
    let [trunk_k, trunk_v, tail_k, tail_v] =
        [trunk.k.clone(), trunk.v.clone(), tail.0, tail.1].map(|x| cast(x, DType::F32));
    let q = cast(q, DType::F32).div_scalar((d as f64).sqrt()).reshape([b, kv, rows, d]);
    let trunk_scores = to_trunk(q.clone()).matmul(trunk_k.transpose());
    let mut tail_scores = q.matmul(tail_k.transpose());
    if let Some(bias) = bias {
        tail_scores = (tail_scores.reshape([b, heads, t, s]) + bias).reshape([b, kv, rows, s]);
    }
    let tail_scores = to_trunk(tail_scores);
    let highest = trunk_scores.clone().max_dim(3).max_pair(tail_scores.clone().max_dim(3));
    let trunk_weights = (trunk_scores - highest.clone()).exp();
    let tail_weights = (tail_scores - highest).exp();
    let total = trunk_weights.clone().sum_dim(3) + tail_weights.clone().sum_dim(3);
    let y = to_tail(trunk_weights.matmul(trunk_v)) + to_tail(tail_weights).matmul(tail_v);
    cast((y / to_tail(total)).reshape([b, heads, t, d]), dtype)
}
