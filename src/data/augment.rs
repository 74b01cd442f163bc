//! Training questions → training samples, epoch by epoch.
//!
//! What a question is in an epoch depends on the seed, the epoch and the question's id alone, so
//! that a run which goes on sees what it would have seen. Its formats share what is drawn.

use std::collections::{BTreeMap, HashMap};

use super::draw::Draw;
use super::entry::Entry;
use super::mirror::Why;
use super::vlm4d::Format;

/// What changes from epoch to epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Augment {
    /// Seed of the draws.
    pub seed: u64,
    /// Whether each epoch has its own order of a question's choices.
    pub shuffle_choices: bool,
    /// Probability with which a question is mirrored in an epoch, where it can be.
    pub mirror: f64,
}

/// The samples of a training run, before they are encoded.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Each distinct sample once: a question and the format in which it is asked.
    pub distinct: Vec<(Entry, Format)>,
    /// By epoch, which of them it is made of, always as many; a single list where all epochs are
    /// alike.
    pub epochs: Vec<Vec<usize>>,
}

impl Augment {
    /// Whether one epoch differs from another.
    pub fn is_on(&self) -> bool {
        self.shuffle_choices || self.mirror > 0.0
    }

    /// The samples of `epochs` epochs: each of `entries` in those of `formats` in which it can be
    /// asked, in that order.
    pub fn samples(&self, entries: &[Entry], formats: &[Format], epochs: usize) -> Samples {
        let mut samples = Samples::default();
        let mut known = HashMap::new();
        let mirrored: Vec<Option<Entry>> = match self.mirror > 0.0 {
            true => entries.iter().map(|entry| entry.mirrored().ok()).collect(),
            false => vec![None; entries.len()],
        };
        for epoch in 0..if self.is_on() { epochs.max(1) } else { 1 } {
            let mut seen = Vec::new();
            for (i, plain) in entries.iter().enumerate() {
                let mirrored = mirrored[i].as_ref().filter(|_| self.is_mirrored(&plain.id, epoch));
                let order = self.order(plain, epoch);
                let entry = mirrored.unwrap_or(plain);
                for format in entry.formats(formats) {
                    // a freeform question does not show its choices
                    let order = order.clone().filter(|_| format == Format::Mc);
                    let key = (i, format, mirrored.is_some(), order.clone());
                    seen.push(*known.entry(key).or_insert_with(|| {
                        let entry = order.map_or(entry.clone(), |order| entry.with_choices(&order));
                        samples.distinct.push((entry, format));
                        samples.distinct.len() - 1
                    }));
                }
            }
            samples.epochs.push(seen);
        }
        samples
    }

    fn is_mirrored(&self, id: &str, epoch: usize) -> bool {
        self.draw(id, epoch, "mirror").chance(self.mirror)
    }

    /// The order of the choices; none where it stays.
    fn order(&self, entry: &Entry, epoch: usize) -> Option<Vec<usize>> {
        if !self.shuffle_choices || entry.choices.is_empty() {
            return None;
        }
        let mut order: Vec<usize> = (0..entry.choices.len()).collect();
        self.draw(&entry.id, epoch, "choices").shuffle(&mut order);
        Some(order)
    }

    fn draw(&self, id: &str, epoch: usize, what: &str) -> Draw {
        Draw::of(&[&self.seed.to_string(), &epoch.to_string(), what, id])
    }
}

/// How many of `entries` can be mirrored, and why the others are left alone.
pub fn mirrorable(entries: &[Entry]) -> (usize, BTreeMap<Why, usize>) {
    let mut reasons = BTreeMap::new();
    for why in entries.iter().filter_map(|entry| entry.mirrored().err()) {
        *reasons.entry(why).or_default() += 1;
    }
    (entries.len() - reasons.values().sum::<usize>(), reasons)
}
