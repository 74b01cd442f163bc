//! Keys and values of the tokens seen so far, layer by layer.
//!
//! Prompts fill a trunk each. [`KvCache::branch`] then lets several continuations grow from them as
//! one batch: each sees its own trunk and its own tail. Letters: `b` branches, `p` tokens of a
//! trunk, `s` of the tails, `t` that enter, `d` head width.

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::attention::{Trunk, attention, branched_attention};

/// Keys and values, rotated.
type Pair = (Tensor<4>, Tensor<4>);

/// What each layer has seen.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// Of each trunk and layer: `[1, kv_heads, p, d]`.
    trunks: Vec<Vec<Option<Pair>>>,
    /// `[b, kv_heads, s, d]`.
    tails: Vec<Option<Pair>>,
    branches: Option<Branches>,
}

#[derive(Clone, Debug)]
struct Branches {
    /// From which trunk each branch grows, in order.
    trunks: Vec<usize>,
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
        Self { trunks: vec![], tails: vec![None; layers], branches: None }
    }

    /// What enters from now on fills another trunk.
    pub fn start_trunk(&mut self) {
        self.trunks.push(vec![None; self.tails.len()]);
        self.branches = None;
    }

    /// What enters from now on continues the trunks in branches, `(trunk, tokens)` each, in the
    /// order of the trunks: first so many tokens of each, the shorter ones padded on the right to
    /// the longest, then one token at a time. Earlier branches are forgotten.
    pub fn branch(&mut self, branches: &[(usize, usize)]) {
        self.tails.fill(None);
        let (trunks, lengths): (Vec<_>, Vec<_>) = branches.iter().copied().unzip();
        let padded = lengths.iter().max().copied().unwrap_or_default();
        self.branches = Some(Branches { trunks, lengths, padded, seen: 0, bias: None });
    }

    /// Drops all branches but `rows`, counted from 0.
    pub fn keep(&mut self, rows: &[usize]) {
        let Some(branches) = &mut self.branches else { return };
        for of in [&mut branches.trunks, &mut branches.lengths] {
            *of = rows.iter().map(|row| of[*row]).collect();
        }
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
    ///
    /// # Panics
    /// Where no trunk was started.
    pub fn attend(&mut self, layer: usize, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
        let t = q.dims()[2];
        let Some(branches) = &mut self.branches else {
            let trunk = self.trunks.last_mut().expect("a trunk is started first");
            let (k, v) = extend(&mut trunk[layer], k, v);
            return attention(q, k, v, true);
        };
        if layer == 0 {
            branches.enter(t, &q);
        }
        let tail = extend(&mut self.tails[layer], k, v);
        let trunks = branches.trunks.chunk_by(|a, b| a == b).map(|of| {
            let (k, v) = self.trunks[of[0]][layer].clone().expect("a trunk is filled first");
            Trunk { k, v, branches: of.len() }
        });
        branched_attention(q, &trunks.collect::<Vec<_>>(), tail, branches.bias.clone())
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
