//! Attention of one more token of each of several continuations of some trunks: what answering
//! repeats for every token.

use burn::tensor::DType;
use cubek::cubecl;
use cubek::cubecl::prelude::*;

use super::Primitive;
use super::block::{BLOCK, THREADS, block_max, block_sum, sum};
use super::layout::{address, elem, empty_like, flat, is_aligned, part, vector};

/// What some continuations grow from.
pub struct Trunk {
    /// `[1, kv_heads, p, d]` each.
    pub keys_and_values: [Primitive; 2],
    /// How many grow from it.
    pub branches: usize,
}

/// `q: [b, heads, 1, d]` sees all keys and values of its trunk, those of the first trunk first, and
/// of its own tail, `[b, kv_heads, s, d]`, to whose scores `bias: [b, 1, 1, s]` (0 or −∞, f32) is
/// added → `[b, heads, 1, d]`. One softmax over both, in f32.
pub fn attention(
    q: Primitive,
    trunks: impl Iterator<Item = Trunk>,
    tail: [Primitive; 2],
    bias: Option<Primitive>,
) -> Primitive {
    let (q, tail, bias) = (flat(q), tail.map(dense), bias.map(flat));
    let y = empty_like(&q);
    let mut from = 0;
    for trunk in trunks {
        let of = |x: &Primitive| part(x, from, trunk.branches);
        let bias = bias.as_ref().map(of);
        write(&of(&y), &of(&q), trunk.keys_and_values, tail.each_ref().map(of), bias);
        from += trunk.branches;
    }
    y
}

/// Writes to `y` what `q` sees, all of it of one trunk.
fn write(
    y: &Primitive,
    q: &Primitive,
    trunk: [Primitive; 2],
    [tail_k, tail_v]: [Primitive; 2],
    bias: Option<Primitive>,
) {
    let [trunk_k, trunk_v] = trunk.map(dense);
    let [b, heads, _, d] = q.meta.shape().dims();
    let group = heads / tail_k.meta.shape()[1];
    let vector = vector(q.dtype, d);
    let biased = bias.is_some();
    // Without a bias the kernel does not read what stands in its place.
    let bias = bias.unwrap_or_else(|| q.clone());
    branches::launch(
        &q.client,
        CubeCount::new_1d((b * heads) as u32),
        BLOCK,
        address(&trunk_k).max(address(&tail_k)),
        vector,
        q.clone().into_buffer_arg(),
        trunk_k.into_tensor_arg(),
        trunk_v.into_tensor_arg(),
        tail_k.into_tensor_arg(),
        tail_v.into_tensor_arg(),
        bias.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        1.0 / (d as f32).sqrt(),
        heads,
        group,
        d / vector,
        biased,
        [elem(q.dtype), elem(DType::F32)],
    );
}

/// `x` where its rows are whole, nothing lies between them, and the first dimension is the outermost;
/// else a copy.
fn dense(x: Primitive) -> Primitive {
    let strides = x.meta.strides();
    let outermost = strides[0] >= strides[1].max(strides[2]);
    let whole = strides[3] == 1 && x.is_contiguous_buffer() && is_aligned(&x);
    if outermost && whole { x } else { flat(x) }
}

/// A block per branch and head, a thread per key at first and per part of a value then, as many
/// keys at once as there are threads. Letters: `n` keys so far, `m` the highest score of theirs.
#[cube(launch, address_type = "dynamic")]
fn branches<T: Float, B: Float, N: Size>(
    q: &[Vector<T, N>],
    trunk_k: &Tensor<Vector<T, N>>,
    trunk_v: &Tensor<Vector<T, N>>,
    tail_k: &Tensor<Vector<T, N>>,
    tail_v: &Tensor<Vector<T, N>>,
    bias: &[B],
    y: &mut [Vector<T, N>],
    scale: f32,
    #[comptime] heads: usize,
    #[comptime] group: usize,
    #[comptime] d: usize,
    #[comptime] biased: bool,
    #[define(T, B)] _dtypes: [ElemType; 2],
) {
    let (branch, kv) = (CUBE_POS / heads, CUBE_POS % heads / group);
    let (p, s) = (trunk_k.shape(2), tail_k.shape(2));
    let mut query = Shared::<[Vector<f32, N>]>::new_slice(d);
    let mut weights = Shared::<[f32]>::new_slice(comptime!(THREADS as usize));
    let unit = UNIT_POS as usize;
    if unit < d {
        query[unit] = Vector::cast_from(q[CUBE_POS * d + unit]) * Vector::cast_from(scale);
    }
    sync_cube();

    // Whose part of which value a thread sums up.
    let parts = comptime!(THREADS as usize / d);
    let (part, column) = (unit / d, unit % d);
    let mut mean = Vector::<f32, N>::cast_from(0.0f32);
    let mut m = f32::min_value();
    let mut total = 0.0f32;
    for first in range_stepped(0usize, p + s, THREADS as usize) {
        let key = first + unit;
        let mut score = f32::min_value();
        if key < p {
            score = dot::<T, N>(&query, trunk_k, at::<T, N>(trunk_k, 0, kv, key), d);
        } else if key < p + s {
            score = dot::<T, N>(&query, tail_k, at::<T, N>(tail_k, branch, kv, key - p), d);
            if comptime!(biased) {
                score += f32::cast_from(bias[branch * s + key - p]);
            }
        }
        let highest = max(m, block_max(score));
        let weight = (score - highest).exp();
        weights[unit] = weight;
        let fades = (m - highest).exp();
        total = total * fades + block_sum(weight);
        mean *= Vector::cast_from(fades);
        m = highest;
        if part < parts {
            let n = min(p + s - first, THREADS as usize);
            for i in range_stepped(part, n, parts) {
                let key = first + i;
                let weight = Vector::<f32, N>::cast_from(weights[i]);
                if key < p {
                    let value = trunk_v[at::<T, N>(trunk_v, 0, kv, key) + column];
                    mean += weight * Vector::cast_from(value);
                } else {
                    let value = tail_v[at::<T, N>(tail_v, branch, kv, key - p) + column];
                    mean += weight * Vector::cast_from(value);
                }
            }
        }
        sync_cube();
    }

    let mut sums = Shared::<[Vector<f32, N>]>::new_slice(comptime!(THREADS as usize));
    sums[unit] = mean;
    sync_cube();
    if unit < d {
        let mut all = Vector::<f32, N>::cast_from(0.0f32);
        for part in 0..parts {
            all += sums[part * d + unit];
        }
        y[CUBE_POS * d + unit] = Vector::cast_from(all / Vector::cast_from(total));
    }
}

/// Where in `x: [batch, heads, tokens, d]` a row begins.
#[cube]
fn at<T: Float, N: Size>(
    x: &Tensor<Vector<T, N>>,
    batch: usize,
    head: usize,
    token: usize,
) -> usize {
    (batch * x.stride(0) + head * x.stride(1) + token * x.stride(2)) / N::value()
}

#[cube]
fn dot<T: Float, N: Size>(
    query: &Shared<[Vector<f32, N>]>,
    keys: &Tensor<Vector<T, N>>,
    row: usize,
    #[comptime] d: usize,
) -> f32 {
    let mut products = Vector::<f32, N>::cast_from(0.0f32);
    for i in 0..d {
        products += query[i] * Vector::cast_from(keys[row + i]);
    }
    sum::<N>(products)
}
