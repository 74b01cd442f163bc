//! Attention in blocks of queries: no more than one block's scores exist at a time.
//!
//! The backward pass makes them again from the queries, the keys and each query's `log Σ e^score`.
//! Source: FlashAttention-2 (Dao, 2023), without its blocks of keys: a row of scores fits the
//! cache here. Letters: `b` batch, `h` heads, `t` queries, `s` keys, `d` head width.

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use super::layout::{Rows, tensor};
use super::matrix::{Matrix, MatrixMut, Threads, Write, product};
use super::vector::{exp, exp_and_sum, max, sum_of, vectorised};
use crate::model::record::Operation;

/// Queries in a block.
const BLOCK: usize = 64;

#[derive(Clone, Debug)]
pub struct Attention {
    pub causal: bool,
}

#[derive(Clone, Debug)]
pub struct Saved {
    q: Rows,
    k: Rows,
    v: Rows,
    y: Rows,
    /// `log Σ e^score` of each query: `[b, t, h]`.
    log_sums: Vec<f32>,
}

/// The sizes of a call.
#[derive(Clone, Copy)]
struct Sizes {
    b: usize,
    h: usize,
    t: usize,
    s: usize,
    d: usize,
    /// Query heads that share a key head.
    group: usize,
    causal: bool,
}

impl Sizes {
    fn new(q: &Rows, k: &Rows, causal: bool) -> Self {
        let ([b, h, t, d], [_, kv, s, _]) = (q.dims, k.dims);
        Self { b, h, t, s, d, group: h / kv, causal }
    }

    /// What scores are scaled by.
    fn scale(&self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    /// How many keys query `i` sees.
    fn seen(&self, i: usize) -> usize {
        match self.causal {
            true => (self.s + i + 1).saturating_sub(self.t).min(self.s),
            false => self.s,
        }
    }
}

impl Operation<3> for Attention {
    type Saved = Saved;

    fn forward(&self, inputs: [FlexTensor; 3]) -> (FlexTensor, Saved) {
        let [q, k, v] = inputs.map(Rows::new);
        let sizes = Sizes::new(&q, &k, self.causal);
        let Sizes { b, h, t, s, d, .. } = sizes;
        // In memory `[b, t, h, d]`, as the linear layer behind wants it.
        let (mut y, mut log_sums) = (vec![0.0; b * t * h * d], vec![0.0; b * t * h]);
        let blocks = t.div_ceil(BLOCK);
        // Blocks of one batch entry lie side by side; the last may be short.
        let entries = y.chunks_mut(t * h * d).zip(log_sums.chunks_mut(t * h)).enumerate();
        let tasks: Vec<_> = entries
            .flat_map(|(entry, (y, log_sums))| {
                let parts = y.chunks_mut(BLOCK * h * d).zip(log_sums.chunks_mut(BLOCK * h));
                parts.enumerate().map(move |(block, part)| (entry, block, part))
            })
            .collect();
        debug_assert_eq!(tasks.len(), b * blocks);
        let run = |scores: &mut Vec<f32>, (entry, block, (y, log_sums)): Task<'_>| {
            scores.resize(BLOCK * s, 0.0);
            for head in 0..h {
                let at = Place { entry, head, start: block * BLOCK, rows: log_sums.len() / h };
                forward_block(&sizes, [&q, &k, &v], at, scores, (&mut *y, &mut *log_sums));
            }
        };
        match b * h * t * s < 1 << 14 {
            true => {
                let mut scores = Vec::new();
                tasks.into_iter().for_each(|task| run(&mut scores, task));
            }
            false => tasks.into_par_iter().with_max_len(1).for_each_init(Vec::new, run),
        }
        let y = tensor(y, Shape::from(vec![b, t, h, d])).transpose(1, 2);
        (y.clone(), Saved { q, k, v, y: Rows::new(y), log_sums })
    }

    fn backward(
        &self,
        saved: Saved,
        gradient: FlexTensor,
        _: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let gradient = Rows::new(gradient);
        let sizes = Sizes::new(&saved.q, &saved.k, self.causal);
        let Sizes { b, h, t, s, d, group, .. } = sizes;
        let mut dq = vec![0.0; b * h * t * d];
        let (mut dk, mut dv) = (vec![0.0; b * h * s * d], vec![0.0; b * h * s * d]);
        dq.par_chunks_mut(t * d)
            .zip(dk.par_chunks_mut(s * d))
            .zip(dv.par_chunks_mut(s * d))
            .enumerate()
            .with_max_len(1)
            .for_each_init(
                || (Vec::new(), Vec::new()),
                |scratch, (i, ((dq, dk), dv))| {
                    scratch.0.resize(BLOCK * s, 0.0);
                    scratch.1.resize(BLOCK * s, 0.0);
                    let (entry, head) = (i / h, i % h);
                    for start in (0..t).step_by(BLOCK) {
                        let rows = BLOCK.min(t - start);
                        let at = Place { entry, head, start, rows };
                        let scratch = (&mut scratch.0[..], &mut scratch.1[..]);
                        let out = [&mut *dq, &mut *dk, &mut *dv];
                        backward_block(&sizes, &saved, &gradient, at, scratch, out);
                    }
                },
            );
        let shape = |heads, n| Shape::from(vec![b, heads, n, d]);
        let [dk, dv] = [dk, dv].map(|x| tensor(sum_groups(x, group, s * d), shape(h / group, s)));
        [Some(tensor(dq, shape(h, t))), Some(dk), Some(dv)]
    }
}

/// Batch entry, block, and its part of output and `log Σ e^score`.
type Task<'a> = (usize, usize, (&'a mut [f32], &'a mut [f32]));

/// A block of queries of one head.
#[derive(Clone, Copy)]
struct Place {
    entry: usize,
    head: usize,
    start: usize,
    rows: usize,
}

/// `rows × d` of one head from position `start` on.
fn part(x: &Rows, entry: usize, head: usize, start: usize, rows: usize) -> Matrix<'_> {
    Matrix::new(x.from(entry, head, start), [rows, x.dims[3]], x.strides[2])
}

/// `y` and `log_sums` are the block's parts of the outputs, of all heads.
fn forward_block(
    sizes: &Sizes,
    [q, k, v]: [&Rows; 3],
    at: Place,
    scores: &mut [f32],
    (y, log_sums): (&mut [f32], &mut [f32]),
) {
    let Sizes { h, d, group, .. } = *sizes;
    let Place { entry, head, start, rows } = at;
    let n = sizes.seen(start + rows - 1);
    let [keys, values] = [k, v].map(|x| part(x, entry, head / group, 0, n));
    let queries = part(q, entry, head, start, rows);
    let into = MatrixMut::new(scores, [rows, n], n);
    product(into, (queries, keys.transposed()), sizes.scale(), Write::Over, Threads::One);
    let mut sums = [0.0; BLOCK];
    for (i, row) in scores.chunks_mut(n).take(rows).enumerate() {
        let (seen, hidden) = row.split_at_mut(sizes.seen(start + i));
        softmax(seen, &mut log_sums[i * h + head], &mut sums[i]);
        hidden.fill(0.0);
    }
    let probabilities = Matrix::new(scores, [rows, n], n);
    let into = MatrixMut::new(&mut y[head * d..], [rows, d], h * d);
    product(into, (probabilities, values), 1.0, Write::Over, Threads::One);
    for (i, sum) in sums[..rows].iter().enumerate() {
        let from = (i * h + head) * d;
        divide(&mut y[from..from + d], *sum);
    }
}

/// `dq`, `dk` and `dv` are those of the query head, `[t, d]` and `[s, d]`.
fn backward_block(
    sizes: &Sizes,
    saved: &Saved,
    gradient: &Rows,
    at: Place,
    (probabilities, slopes): (&mut [f32], &mut [f32]),
    [dq, dk, dv]: [&mut [f32]; 3],
) {
    let Sizes { h, t, d, group, .. } = *sizes;
    let Place { entry, head, start, rows } = at;
    let n = sizes.seen(start + rows - 1);
    let scale = sizes.scale();
    let [keys, values] = [&saved.k, &saved.v].map(|x| part(x, entry, head / group, 0, n));
    let [queries, dy] = [&saved.q, gradient].map(|x| part(x, entry, head, start, rows));
    let one = |out: MatrixMut, of: (Matrix, Matrix), scale: f32, write: Write| {
        product(out, of, scale, write, Threads::One);
    };
    let square = [rows, n];
    one(MatrixMut::new(probabilities, square, n), (queries, keys.transposed()), scale, Write::Over);
    one(MatrixMut::new(slopes, square, n), (dy, values.transposed()), scale, Write::Over);
    let both = probabilities.chunks_mut(n).zip(slopes.chunks_mut(n)).take(rows).enumerate();
    for (i, (p, slope)) in both {
        let query = start + i;
        let seen = sizes.seen(query);
        let log_sum = saved.log_sums[(entry * t + query) * h + head];
        let dy = &gradient.from(entry, head, query)[..d];
        let y = &saved.y.from(entry, head, query)[..d];
        score_slopes(&mut p[..seen], &mut slope[..seen], log_sum, scale, [dy, y]);
        p[seen..].fill(0.0);
        slope[seen..].fill(0.0);
    }
    let (p, slopes) = (Matrix::new(probabilities, square, n), Matrix::new(slopes, square, n));
    let into = MatrixMut::new(&mut dq[start * d..], [rows, d], d);
    one(into, (slopes, keys), 1.0, Write::Over);
    one(MatrixMut::new(dk, [n, d], d), (slopes.transposed(), queries), 1.0, Write::Add);
    one(MatrixMut::new(dv, [n, d], d), (p.transposed(), dy), 1.0, Write::Add);
}

/// Sums the gradients of key heads over the query heads that share them; `head` numbers each.
fn sum_groups(per_query_head: Vec<f32>, group: usize, head: usize) -> Vec<f32> {
    if group == 1 {
        return per_query_head;
    }
    let mut sums = Vec::with_capacity(per_query_head.len() / group);
    for heads in per_query_head.chunks(group * head) {
        let start = sums.len();
        sums.extend_from_slice(&heads[..head]);
        for other in heads[head..].chunks(head) {
            sums[start..].iter_mut().zip(other).for_each(|(sum, x)| *sum += x);
        }
    }
    sums
}

vectorised! {
    /// `scores` → `e^(score − largest)`, their sum, and `log Σ e^score`.
    pub fn softmax(scores: &mut [f32], log_sum: &mut f32, sum: &mut f32) {
        let largest = max(scores);
        *sum = exp_and_sum(scores, largest);
        *log_sum = largest + sum.ln();
    }
}

vectorised! {
    pub fn divide(y: &mut [f32], by: f32) {
        let scale = 1.0 / by;
        y.iter_mut().for_each(|y| *y *= scale);
    }
}

vectorised! {
    /// One query's scores → probabilities, and the slopes of its probabilities → those of its
    /// scores. `outputs` are the gradient of its output and the output.
    pub fn score_slopes(
        p: &mut [f32],
        slope: &mut [f32],
        log_sum: f32,
        scale: f32,
        outputs: [&[f32]; 2],
    ) {
        let mean = scale * sum_of(outputs[0], outputs[1], |a, b| a * b);
        for (p, slope) in p.iter_mut().zip(slope) {
            *p = exp(*p - log_sum);
            *slope = *p * (*slope - mean);
        }
    }
}
