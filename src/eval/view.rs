//! What the model is shown beside a question: the video, or as a control nothing or something
//! else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::data::entry::Entry;
use crate::data::variant::{Shown, Variant};
use crate::error::{Error, Result};
use crate::recipe::Control;

/// What stands for the videos of the questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// The videos, under this variant.
    Videos(Variant),
    /// Nothing: the questions are asked blind.
    Nothing,
    /// Other videos, each in the place of one.
    Others(BTreeMap<PathBuf, PathBuf>),
}

impl View {
    /// The videos as they are.
    pub const PLAIN: Self = Self::Videos(Variant::Plain);

    /// What `control` shows in the place of the videos of `entries`.
    ///
    /// # Errors
    /// A wrong video where there is only one.
    pub fn of<'a>(
        control: Control,
        entries: impl Iterator<Item = &'a Entry>,
        seed: u64,
    ) -> Result<Self> {
        Ok(match control {
            Control::NoVideo => Self::Nothing,
            Control::Shuffled => Self::Videos(Variant::Shuffled(seed)),
            Control::Reversed => Self::Videos(Variant::Reversed),
            Control::WrongVideo => Self::Others(others(entries, seed)?),
        })
    }

    /// What is shown with `entry`.
    pub fn shown(&self, entry: &Entry) -> Vec<Shown> {
        match self {
            Self::Videos(variant) => Shown::all(&entry.videos, *variant),
            Self::Nothing => vec![],
            Self::Others(other) => {
                let videos: Vec<PathBuf> =
                    entry.videos.iter().map(|v| other.get(v).unwrap_or(v).clone()).collect();
                Shown::all(&videos, Variant::Plain)
            }
        }
    }

    /// Whether the prompts have a place for videos.
    pub fn has_video(&self) -> bool {
        *self != Self::Nothing
    }
}

/// Another video for each video of `entries`: the next of the same source in an order drawn from
/// the seed; of any source where its own has no other. Each stands in for one video at most, but
/// for those of such lonely sources.
fn others<'a>(
    entries: impl Iterator<Item = &'a Entry>,
    seed: u64,
) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let mut sources: BTreeMap<&str, BTreeSet<&PathBuf>> = BTreeMap::new();
    for entry in entries {
        sources.entry(&entry.source).or_default().extend(&entry.videos);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut ring = |videos: &BTreeSet<&PathBuf>| -> Vec<(PathBuf, PathBuf)> {
        let mut videos: Vec<&PathBuf> = videos.iter().copied().collect();
        videos.shuffle(&mut rng);
        let next = videos.iter().cycle().skip(1);
        videos.iter().zip(next).map(|(a, b)| ((*a).clone(), (*b).clone())).collect()
    };
    let all: BTreeSet<&PathBuf> = sources.values().flatten().copied().collect();
    if all.len() == 1 {
        return Err(Error::input("eval.controls: `wrong_video` needs two test videos or more")
            .help("leave it out, or raise data.split.test"));
    }
    let mut other: BTreeMap<PathBuf, PathBuf> = ring(&all).into_iter().collect();
    for videos in sources.values().filter(|videos| videos.len() > 1) {
        other.extend(ring(videos));
    }
    Ok(other)
}
