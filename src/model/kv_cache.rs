//! Keys and values of the tokens seen so far, layer by layer.
//!
//! One prompt fills a trunk. [`KvCache::branch`] then lets several continuations grow from it as
//! a batch: all see the one trunk, and each its own tail. Letters: `b` branches, `p` tokens of the
//! trunk, `s` of the tails, `t` that enter, `d` head width.

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::attention::{attention, branched_attention};

/// Keys and values, rotated.
type Pair = (Tensor<4>, Tensor<4>);

/// What each layer has seen.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// `[1, kv_heads, p, d]`.
    trunk: Vec<Option<Pair>>,
    /// `[b, kv_heads, s, d]`.
    tails: Vec<Option<Pair>>,
    branches: Option<Branches>,
}

#[derive(Clone, Debug)]
struct Branches {
    /// Tokens with which each branch starts; shorter ones are padded on the right.
    lengths: Vec<usize>,
    /// The length to which they are padded.
    padded: usize,
    /// Tokens in the tails.
    seen: usize,
    /// What the tokens that enter see of their tails: 0, or −∞; `[b, 1, t, s]`, f32.
    bias: Option<Tensor<4>>,
}

impl KvCache {
    /// An empty cache for `layers` layers.
    pub fn new(layers: usize) -> Self {
        Self { trunk: vec![None; layers], tails: vec![None; layers], branches: None }
    }

    /// What enters from now on continues the trunk in one branch per element of `lengths`: first
    /// so many tokens of each, the shorter ones padded on the right to the longest, then one token
    /// at a time. Earlier branches are forgotten.
    pub fn branch(&mut self, lengths: &[usize]) {
        self.tails.fill(None);
        let padded = lengths.iter().max().copied().unwrap_or_default();
        self.branches = Some(Branches { lengths: lengths.to_vec(), padded, seen: 0, bias: None });
    }

    /// Drops all branches but `rows`, counted from 0.
    pub fn keep(&mut self, rows: &[usize]) {
        let Some(branches) = &mut self.branches else { return };
        branches.lengths = rows.iter().map(|row| branches.lengths[*row]).collect();
        let Some((first, _)) = self.tails.iter().flatten().next() else { return };
        let rows: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        let rows = Tensor::<1, Int>::from_data(&rows[..], &first.device());
        for (k, v) in self.tails.iter_mut().flatten() {
            for tensor in [k, v] {
                *tensor = tensor.clone().select(0, rows.clone());
            }
        }
    }

    /// Appends `k` and `v` (`[b, kv_heads, t, d]`) to `layer` and attends to all of it:
    /// `q: [b, heads, t, d]` → the same.
    pub fn attend(&mut self, layer: usize, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
        let t = q.dims()[2];
        let (Some(branches), Some(trunk)) = (&mut self.branches, &self.trunk[layer]) else {
            let (k, v) = extend(&mut self.trunk[layer], k, v);
            return attention(q, k, v, true);
        };
        if layer == 0 {
            branches.enter(t, &q);
        }
        let tail = extend(&mut self.tails[layer], k, v);
        branched_attention(q, trunk.clone(), tail, branches.bias.clone())
    }
}

impl Branches {
    /// `t` more tokens enter each branch: a token sees itself, what came before it, no padding.
    fn enter(&mut self, t: usize, like: &Tensor<4>) {
        let first = self.seen;
        self.seen += t;
        let (padded, seen) = (self.padded, self.seen);
        let sees = |length: usize, query: usize, key: usize| {
            key <= query && (key < length || key >= padded)
        };
        let bias: Vec<f32> = self
            .lengths
            .iter()
            .flat_map(|length| (first..seen).map(move |query| (*length, query)))
            .flat_map(|(length, query)| (0..seen).map(move |key| (length, query, key)))
            .map(
                |(length, query, key)| {
                    if sees(length, query, key) { 0.0 } else { f32::NEG_INFINITY }
                },
            )
            .collect();
        self.bias = bias.iter().any(|b| *b != 0.0).then(|| {
            let data = TensorData::new(bias, [self.lengths.len(), 1, t, seen]);
            Tensor::from_data(data, (&like.device(), DType::F32))
        });
    }
}

fn extend(seen: &mut Option<Pair>, k: Tensor<4>, v: Tensor<4>) -> Pair {
    let all = match seen.take() {
        None => (k, v),
        Some((seen_k, seen_v)) => {
            (Tensor::cat(vec![seen_k, k], 2), Tensor::cat(vec![seen_v, v], 2))
        }
    };
    *seen = Some(all.clone());
    all
}
