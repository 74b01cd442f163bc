//! What is done to a video's frames before they are processed: mirrored for training, put into
//! another order as a control of the evaluation.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::medium::Medium;
use super::video::Frames;

/// A change to the frames of a clip, whose times stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Variant {
    /// As they are.
    #[default]
    Plain,
    /// Left and right exchanged.
    Mirrored,
    /// Last frame first.
    Reversed,
    /// In an order drawn from this seed, never the true one where there are two frames or more.
    Shuffled(u64),
}

/// A video or image, and how it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shown {
    /// The file.
    pub medium: Medium,
    /// What is done to its frames.
    pub variant: Variant,
}

impl Shown {
    /// `media`, each under `variant`.
    pub fn all(media: &[Medium], variant: Variant) -> Vec<Self> {
        media.iter().map(|medium| Self { medium: medium.clone(), variant }).collect()
    }
}

impl Variant {
    /// Changes `frames` in place.
    pub fn apply(self, frames: &mut Frames) {
        match self {
            Self::Plain => {}
            Self::Mirrored => {
                for row in frames.rgb.chunks_mut((3 * frames.width).max(1)) {
                    let pixels = row.as_chunks_mut::<3>().0;
                    pixels.reverse();
                }
            }
            Self::Reversed => reorder(frames, &(0..frames.len).rev().collect::<Vec<_>>()),
            Self::Shuffled(seed) => reorder(frames, &shuffled(frames.len, seed)),
        }
    }
}

fn reorder(frames: &mut Frames, order: &[usize]) {
    frames.rgb = order.iter().flat_map(|i| frames.frame(*i).iter().copied()).collect();
}

fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..n).collect();
    while n > 1 && order.is_sorted() {
        order.shuffle(&mut rng);
    }
    order
}
