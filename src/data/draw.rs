//! Random draws that outlive changes of the random crates' conveniences: the same on every machine
//! and in every version.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// `ChaCha8` with its own seeding, scaling and shuffle.
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    /// Draws that depend on the seed alone.
    pub(crate) fn new(seed: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Draws that depend on these words alone, in this order; no word holds a line break.
    pub(crate) fn of(words: &[&str]) -> Self {
        Self(ChaCha8Rng::from_seed(Sha256::digest(words.join("\n")).into()))
    }

    /// A number below `n`, which is not 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        // 64 random bits scaled by n: the bias is n / 2^64
        let scaled = (u128::from(self.0.next_u64()) * n as u128) >> 64;
        usize::try_from(scaled).expect("smaller than n")
    }

    /// A place in a random order.
    pub(crate) fn place(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// True with this probability.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        // 53 random bits: as many as an f64 in [0, 1) has
        let unit = (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        unit < probability
    }

    /// Fisher and Yates's shuffle.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
