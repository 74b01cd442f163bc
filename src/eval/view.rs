//! What the model is shown beside a question: the video, or as a control nothing or something
//! else.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::data::entry::Entry;
use crate::data::medium::Medium;
use crate::data::ties::Ties;
use crate::data::variant::{Shown, Variant};
use crate::error::{Error, Result};
use crate::recipe::Control;

/// What stands for the videos of the questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// The videos, under this variant.
    Videos(Variant),
    /// Nothing: the questions are asked blind, but for their images.
    Nothing,
    /// In the place of an entry's media the same with other videos.
    Others(BTreeMap<Vec<Medium>, Vec<Medium>>),
}

impl View {
    /// The videos as they are.
    pub const PLAIN: Self = Self::Videos(Variant::Plain);

    /// What `control` shows in the place of the videos of `entries`.
    ///
    /// # Errors
    /// Wrong videos where there are too few others.
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
        let shown = |medium: &Medium, variant| {
            // An image has no order.
            let variant = if medium.is_video() { variant } else { Variant::Plain };
            Shown { medium: medium.clone(), variant }
        };
        let plain = |medium| shown(medium, Variant::Plain);
        let media = entry.media.iter();
        match self {
            Self::Videos(variant) => media.map(|medium| shown(medium, *variant)).collect(),
            Self::Nothing => media.filter(|m| !m.is_video()).map(plain).collect(),
            Self::Others(others) => {
                others.get(&entry.media).unwrap_or(&entry.media).iter().map(plain).collect()
            }
        }
    }

    /// Whether the prompts have a place for videos.
    pub fn has_video(&self) -> bool {
        *self != Self::Nothing
    }
}

/// Other videos for those of each entry, by its media, whose images stay: for each the next of the
/// same source in an order drawn from the seed, of any source where its own has no other. Where
/// entries have one video each, in files of their own, every one stands in for one at most, but for
/// those of such lonely sources.
fn others<'a>(
    entries: impl Iterator<Item = &'a Entry>,
    seed: u64,
) -> Result<BTreeMap<Vec<Medium>, Vec<Medium>>> {
    let entries: Vec<&Entry> = entries.collect();
    let all: BTreeSet<(&str, &Medium)> = entries.iter().copied().flat_map(videos).collect();
    let mut order: Vec<(&str, &Medium)> = all.into_iter().collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let places: BTreeMap<(&str, &Medium), usize> = order.iter().copied().zip(0..).collect();
    let clips = clips(entries.iter().flat_map(|entry| &entry.media));
    let mut others: BTreeMap<Vec<Medium>, Vec<Medium>> = BTreeMap::new();
    for entry in entries {
        let own: BTreeSet<&OsStr> = entry.media.iter().map(|medium| clips[medium]).collect();
        let mut chosen: Vec<Medium> = Vec::new();
        for medium in &entry.media {
            let Some(place) = places.get(&(&*entry.source, medium)) else {
                chosen.push(medium.clone());
                continue;
            };
            let (before, from) = order.split_at(*place);
            let ring = from.iter().chain(before);
            let near = ring.clone().filter(|(source, _)| *source == entry.source);
            let mut nearest = near.chain(ring).map(|(_, video)| *video);
            let other = nearest.find(|v| !own.contains(&clips[v]) && !chosen.contains(v));
            chosen.push(other.ok_or_else(|| too_few(entry))?.clone());
        }
        others.insert(entry.media.clone(), chosen);
    }
    Ok(others)
}

/// What `media` are of: lists that share a frame, and what shares one with these, are of one clip.
fn clips<'a>(media: impl Iterator<Item = &'a Medium>) -> BTreeMap<&'a Medium, &'a OsStr> {
    let media: BTreeSet<&Medium> = media.collect();
    let mut ties = Ties::new(media.iter().map(|medium| medium.names().collect()));
    media.into_iter().map(|medium| (medium, ties.first(medium.files()[0].as_os_str()))).collect()
}

/// The videos of an entry with their source.
fn videos(entry: &Entry) -> impl Iterator<Item = (&str, &Medium)> {
    let videos = entry.media.iter().filter(|medium| medium.is_video());
    videos.map(|video| (&*entry.source, video))
}

fn too_few(entry: &Entry) -> Error {
    let what =
        format!("eval.controls: `wrong_video` finds too few other videos for `{}`", entry.id);
    Error::input(what).of_key("eval.controls").help("leave it out, or raise data.split.test")
}
