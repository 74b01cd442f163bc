//! Attention by cuBLAS's products, with its scores in memory. Letters: `e` heads of keys of all
//! samples, `r` queries of all heads that share one, `t` queries of a head, `s` keys, `d` the width
//! of a head.
//!
//! burn's fused kernels keep no scores, and pay for it with instructions: a layer of 2B, of a sample
//! of 700 tokens, takes 17 million of a warp's for attention and 115 million for its gradients, and
//! an H100 begins at most 0.9 million million in a second. The softmax here takes 11 million each way.

use burn::backend::Cuda;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use cubek::cubecl::prelude::*;
use cubek::cubecl::{self, Device as CubeDevice};

use super::Primitive;
use super::block::{BLOCK, PLANE, PLANES, max_of_plane, sum_of_plane};
use super::cublas::{is_used, write};
use super::layout::{address, elem, empty, empty_as, first_columns, flat, part};
use crate::model::attention::{SCORES_PITCH, scores_at_once};
use crate::model::record::Operation;

/// Scaled dot-product attention with grouped key and value heads, as
/// [`attention`](super::attention::Attention) otherwise.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Whether query `i` sees the keys up to `s - t + i` alone.
    pub causal: bool,
}

/// What an attention needs of its queries and keys, and the `log Σ e^score` of each query, `[e, r]`.
type Saved = (Heads, Primitive);

impl Operation<3, Cuda> for Attention {
    type Saved = Saved;

    fn forward(&self, inputs: [Primitive; 3]) -> (Primitive, Saved) {
        let heads = Heads::new(inputs, self.causal);
        let (y, sums) = heads.attend();
        (Cuda::float_reshape(y, heads.shapes[0].clone()), (heads, sums))
    }

    fn backward(
        &self,
        (heads, sums): Saved,
        gradient: Primitive,
        _: [bool; 3],
    ) -> [Option<Primitive>; 3] {
        let [of_queries, of_keys] = heads.shapes.clone();
        let [dq, dk, dv] = heads.gradients(&sums, gradient);
        let shaped = [(dq, of_queries), (dk, of_keys.clone()), (dv, of_keys)];
        shaped.map(|(dx, shape)| Some(Cuda::float_reshape(dx, shape)))
    }
}

/// Whether cuBLAS is there on the GPU `device`, and has room for the scores of `q: [b, heads, t, d]` and
/// `k: [b, kv_heads, s, d]` of type `dtype`.
pub fn fit(device: &CubeDevice, q: [usize; 4], k: [usize; 4], dtype: DType) -> bool {
    is_used(device) && scores_at_once(q[1] / k[1] * q[2], k[2], dtype.size()) > 0
}

#[derive(Clone, Debug)]
pub struct Heads {
    /// `[e, r, d]`.
    q: Primitive,
    /// `[e, s, d]`.
    k: Primitive,
    /// `[e, s, d]`.
    v: Primitive,
    /// As they came: queries', and keys'.
    shapes: [Shape; 2],
    causal: bool,
}

impl Heads {
    fn new([q, k, v]: [Primitive; 3], causal: bool) -> Self {
        let shapes = [&q, &k].map(|x| x.meta.shape().clone());
        let [b, heads, t, _]: [usize; 4] = shapes[0].dims();
        let [_, kv, s, _]: [usize; 4] = shapes[1].dims();
        let e = b * kv;
        let (q, [k, v]) = (matrices(q, e, heads / kv * t), [k, v].map(|x| matrices(x, e, s)));
        Self { q, k, v, shapes, causal }
    }

    /// `[e, r, d]` and `[e, r]`.
    fn attend(&self) -> (Primitive, Primitive) {
        let ([e, r, _], [_, s, _]) = (self.q.meta.shape().dims(), self.k.meta.shape().dims());
        let y = empty(&self.q, self.q.meta.shape());
        let sums = empty_as(&self.q, &[e, r, 1].into(), DType::F32);
        let [scores, weights] = self.room([DType::F32, self.q.dtype]);
        for (from, n) in self.parts() {
            let of = |x: &Primitive| part(x, from, n);
            let [scores, weights] = [&scores, &weights].map(|x| part(x, 0, n));
            write(&first_columns(&scores, s), &of(&self.q), &across(of(&self.k)), 1.0);
            softmax::launch(
                &y.client,
                planes(&scores),
                BLOCK,
                address(&scores),
                scores.into_buffer_arg(),
                weights.clone().into_buffer_arg(),
                of(&sums).into_buffer_arg(),
                self.rule(),
                self.causal,
                elem(weights.dtype),
            );
            write(&of(&y), &first_columns(&weights, s), &of(&self.v), 1.0);
        }
        (y, sums)
    }

    /// Of queries, keys and values, shaped as these; `gradient: [b, heads, t, d]`.
    fn gradients(&self, sums: &Primitive, gradient: Primitive) -> [Primitive; 3] {
        let ([e, r, _], [_, s, _]) = (self.q.meta.shape().dims(), self.k.meta.shape().dims());
        let (g, dtype) = (matrices(gradient, e, r), self.q.dtype);
        let [dq, dk, dv] = [&self.q, &self.k, &self.v].map(|x| empty(x, x.meta.shape()));
        let room = self.room([DType::F32, DType::F32, dtype, dtype]);
        for (from, n) in self.parts() {
            let of = |x: &Primitive| part(x, from, n);
            let (q, k, g) = (of(&self.q), of(&self.k), of(&g));
            let [scores, products, weights, slopes] = room.each_ref().map(|x| part(x, 0, n));
            write(&first_columns(&scores, s), &q, &across(k.clone()), 1.0);
            write(&first_columns(&products, s), &g, &across(of(&self.v)), 1.0);
            softmax_backward::launch(
                &q.client,
                planes(&scores),
                BLOCK,
                address(&scores),
                scores.into_buffer_arg(),
                products.into_buffer_arg(),
                of(sums).into_buffer_arg(),
                weights.clone().into_buffer_arg(),
                slopes.clone().into_buffer_arg(),
                self.rule(),
                self.causal,
                elem(dtype),
            );
            let [weights, slopes] = [weights, slopes].map(|x| first_columns(&x, s));
            write(&of(&dv), &across(weights), &g, 1.0);
            write(&of(&dq), &slopes, &k, self.scale());
            write(&of(&dk), &across(slopes), &q, self.scale());
        }
        [dq, dk, dv]
    }

    /// What scores are multiplied by.
    fn scale(&self) -> f32 {
        1.0 / (self.q.meta.shape()[2] as f32).sqrt()
    }

    fn rule(&self) -> RuleLaunch {
        let (t, s) = (self.shapes[0][2], self.shapes[1][2]);
        RuleLaunch::new(s as u32, t as u32, self.scale())
    }

    /// The first heads of keys, and how many, of each part whose scores are there at once.
    fn parts(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (e, n) = (self.q.meta.shape()[0], self.at_once());
        (0..e).step_by(n).map(move |from| (from, n.min(e - from)))
    }

    fn at_once(&self) -> usize {
        let ([e, r, _], s) = (self.q.meta.shape().dims(), self.k.meta.shape()[1]);
        scores_at_once(r, s, self.q.dtype.size()).clamp(1, e)
    }

    /// `[n, r, …]` for the scores of a part, in each of `types`.
    fn room<const N: usize>(&self, types: [DType; N]) -> [Primitive; N] {
        let (r, s) = (self.q.meta.shape()[1], self.k.meta.shape()[1]);
        let shape = [self.at_once(), r, s.next_multiple_of(SCORES_PITCH)].into();
        types.map(|dtype| empty_as(&self.q, &shape, dtype))
    }
}

/// `x: [b, heads, n, d]` as `[e, rows, d]`.
fn matrices(x: Primitive, e: usize, rows: usize) -> Primitive {
    let d = x.meta.shape()[3];
    Cuda::float_reshape(flat(x), [e, rows, d].into())
}

/// The transposes of `x: [e, …, …]`, where they lie.
fn across(x: Primitive) -> Primitive {
    Cuda::float_swap_dims(x, 1, 2)
}

/// Blocks that have a plane for each row of `scores: [n, r, …]`.
fn planes(scores: &Primitive) -> CubeCount {
    let rows = scores.meta.shape()[0] * scores.meta.shape()[1];
    CubeCount::new_1d(rows.div_ceil(PLANES as usize) as u32)
}

/// What a row of scores is of.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Rule {
    keys: u32,
    /// Of one head: the rows of several follow each other.
    queries: u32,
    scale: f32,
}

/// The row of this plane.
#[cube]
fn row() -> usize {
    CUBE_POS * comptime!(PLANES as usize) + UNIT_POS_Y as usize
}

/// Where a row of scores lies.
#[derive(CubeType, Clone, Copy)]
struct Row {
    /// The place of its first.
    at: usize,
    /// Keys that its query sees.
    seen: usize,
    /// From it to the next row.
    pitch: usize,
}

/// Row `row` of `rows`.
#[cube]
fn place(scores: &[f32], row: usize, rows: usize, rule: &Rule, #[comptime] causal: bool) -> Row {
    let pitch = scores.len() / rows;
    let keys = rule.keys as usize;
    let seen = if causal {
        let queries = rule.queries as usize;
        keys + row % queries + 1 - queries
    } else {
        keys
    };
    Row { at: row * pitch, seen, pitch }
}

/// e to the power of the scaled score at `i`, less `from`.
#[cube]
fn power(scores: &[f32], i: usize, rule: &Rule, from: f32) -> f32 {
    (scores[i] * rule.scale - from).exp()
}

/// `weights` of `scores`, and the logarithm of the sum that they were divided by. The threads of a
/// plane take a row.
#[cube(launch, address_type = "dynamic")]
fn softmax<T: Float>(
    scores: &[f32],
    weights: &mut [T],
    sums: &mut [f32],
    rule: &Rule,
    #[comptime] causal: bool,
    #[define(T)] _dtype: ElemType,
) {
    let row = row();
    if row >= sums.len() {
        terminate!();
    }
    let place = place(scores, row, sums.len(), rule, causal);
    let (at, seen, pitch) = (place.at, place.seen, place.pitch);
    let (first, step) = (UNIT_POS_X as usize, comptime!(PLANE as usize));
    let mut highest = f32::min_value();
    for i in range_stepped(first, seen, step) {
        highest = max(highest, scores[at + i] * rule.scale);
    }
    let highest = max_of_plane(highest);
    let mut total = 0.0f32;
    for i in range_stepped(first, seen, step) {
        total += power(scores, at + i, rule, highest);
    }
    let sum = highest + sum_of_plane(total).ln();
    for i in range_stepped(first, pitch, step) {
        let mut weight = 0.0f32;
        if i < seen {
            weight = power(scores, at + i, rule, sum);
        }
        weights[at + i] = T::cast_from(weight);
    }
    if UNIT_POS_X == 0 {
        sums[row] = sum;
    }
}

/// The same `weights`, and the gradients of scaled scores; `products` are the weights' gradients.
#[cube(launch, address_type = "dynamic")]
fn softmax_backward<T: Float>(
    scores: &[f32],
    products: &[f32],
    sums: &[f32],
    weights: &mut [T],
    slopes: &mut [T],
    rule: &Rule,
    #[comptime] causal: bool,
    #[define(T)] _dtype: ElemType,
) {
    let row = row();
    if row >= sums.len() {
        terminate!();
    }
    let place = place(scores, row, sums.len(), rule, causal);
    let (at, seen, pitch) = (place.at, place.seen, place.pitch);
    let (first, step) = (UNIT_POS_X as usize, comptime!(PLANE as usize));
    let sum = sums[row];
    let mut along = 0.0f32;
    for i in range_stepped(first, seen, step) {
        along += power(scores, at + i, rule, sum) * products[at + i];
    }
    let along = sum_of_plane(along);
    for i in range_stepped(first, pitch, step) {
        let mut weight = 0.0f32;
        let mut slope = 0.0f32;
        if i < seen {
            weight = power(scores, at + i, rule, sum);
            slope = weight * (products[at + i] - along);
        }
        weights[at + i] = T::cast_from(weight);
        slopes[at + i] = T::cast_from(slope);
    }
}
