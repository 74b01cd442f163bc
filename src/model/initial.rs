//! A checkpoint before any training: random weights for a `config.json`.
//!
//! Source: transformers' `_init_weights`: matrices and the embedding from a normal distribution
//! with standard deviation `initializer_range`, norms one, biases zero.

use std::f32::consts::TAU;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;

use super::config::Config;
use super::host::{Outline, f32_bytes};
use super::hub::{SHARD_BYTES, write};
use super::weights::shapes;
use crate::error::Result;
use crate::files;

/// Writes the checkpoint `to` in hub layout: f32 weights drawn from `seed`, and copies of the
/// small files of the folder `source`. Returns the number of parameters.
///
/// # Errors
/// Input: `source` has no sound `config.json`, or `to` is in use. Run: where the disk refuses.
pub fn write_random(source: &Path, to: &Path, seed: u64) -> Result<usize> {
    let config = Config::from_dir(source)?;
    files::check_free(to)?;
    let outline = |(name, shape)| Outline { name, dtype: Dtype::F32, shape };
    let outlines: Vec<Outline> = shapes(&config)?.into_iter().map(outline).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let std = config.text.initializer_range as f32;
    write(to, source, &outlines, SHARD_BYTES, Some(Dtype::F32), |outline| {
        Ok(f32_bytes(&draw(&outline.name, outline.shape.iter().product(), std, &mut rng)))
    })?;
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

/// A number from the standard normal distribution, by Box and Muller.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (radius, angle) = (rng.random_range(f32::EPSILON..1.0), rng.random_range(0.0..TAU));
    (-2.0 * radius.ln()).sqrt() * angle.cos()
}
