//! A checkpoint before any training: random weights for a `config.json`.
//!
//! As transformers' `_init_weights`: matrices and the embedding from a normal distribution with
//! standard deviation `initializer_range`, norms one, biases zero; but the language model's queries
//! lean on its keys, so that a token attends to its like from the beginning. Finding again what is
//! asked for would else have to come up by chance first, and in a small model does not for very
//! long. Source: Trockman and Kolter, Mimetic Initialization of Self-Attention Layers, ICML 2023.

use std::f32::consts::TAU;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;

use super::config::{Config, TextConfig};
use super::hub::{SHARD_BYTES, write};
use super::tensor_files::{Outline, f32_bytes};
use super::weights::shapes;
use crate::error::Result;
use crate::files;

/// Share of the keys in the queries.
const LEAN: f32 = 0.7;

/// Writes the checkpoint `to` in hub layout: f32 weights drawn from `seed`, and copies of the
/// small files of the folder `source`. Returns the number of parameters.
///
/// # Errors
/// Input: `source` has no sound `config.json`, or `to` is in use. Run: where the disk refuses.
pub fn write_random(source: &Path, to: &Path, seed: u64) -> Result<usize> {
    let config = Config::from_dir(source)?;
    files::check_free(to)?;
    files::check_writable(to)?;
    let outlines: Vec<Outline> =
        shapes(&config)?.iter().map(|(name, shape)| Outline::f32(name, shape)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let std = config.text.initializer_range as f32;
    let mut keys = vec![];
    let bytes = |outline: &Outline| {
        let mut values = draw(&outline.name, outline.shape.iter().product(), std, &mut rng);
        // In the order of names: a layer's keys come before its queries.
        if outline.name.ends_with("k_proj.weight") {
            keys.clone_from(&values);
        } else if outline.name.ends_with("q_proj.weight") {
            lean(&mut values, &keys, &config.text);
        }
        Ok(f32_bytes(&values))
    };
    files::write_dir(to, |to| write(to, source, &outlines, SHARD_BYTES, Some(Dtype::F32), bytes))?;
    Ok(outlines.iter().map(|outline| outline.shape.iter().product::<usize>()).sum())
}

/// The `n` numbers of a tensor.
fn draw(name: &str, n: usize, std: f32, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let (module, field) = name.rsplit_once('.').unwrap_or(("", name));
    if field == "bias" {
        return vec![0.0; n];
    }
    if ["norm", "norm1", "norm2", "ln_q"].iter().any(|norm| module.ends_with(norm)) {
        return vec![1.0; n];
    }
    (0..n).map(|_| std * normal(rng)).collect()
}

/// Mixes into each head's rows of `queries`, `[heads · d, hidden]`, those of its key head in
/// `keys`, `[kv_heads · d, hidden]`.
fn lean(queries: &mut [f32], keys: &[f32], config: &TextConfig) {
    let head = config.head_dim * config.hidden_size;
    let of_a_key = config.num_attention_heads / config.num_key_value_heads * head;
    for (group, key) in queries.chunks_mut(of_a_key).zip(keys.chunks(head)) {
        for query in group.chunks_mut(head) {
            query.iter_mut().zip(key).for_each(|(q, k)| *q = LEAN * k + (1.0 - LEAN) * *q);
        }
    }
}

/// A number from the standard normal distribution, by Box and Muller.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (radius, angle) = (rng.random_range(f32::EPSILON..1.0), rng.random_range(0.0..TAU));
    (-2.0 * radius.ln()).sqrt() * angle.cos()
}
