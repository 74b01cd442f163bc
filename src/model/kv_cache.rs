//! Keys and values of the tokens seen so far, layer by layer.

use burn::tensor::Tensor;

/// One slot per layer: keys and values, `[b, kv_heads, seen, d]`, rotated.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<Option<(Tensor<4>, Tensor<4>)>>,
}

impl KvCache {
    /// An empty cache for `layers` layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![None; layers] }
    }

    /// Appends `k` and `v` (`[b, kv_heads, t, d]`) to `layer`; returns all of it.
    pub fn extend(&mut self, layer: usize, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let all = match self.layers[layer].take() {
            None => (k, v),
            Some((seen_k, seen_v)) => {
                (Tensor::cat(vec![seen_k, k], 2), Tensor::cat(vec![seen_v, v], 2))
            }
        };
        self.layers[layer] = Some(all.clone());
        all
    }
}
