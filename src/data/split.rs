//! Questions → train, validation and test, the same on every machine.
//!
//! A subset's units (its videos, or its single questions) are put in an order
//! that keeps like with like: by source, then by number of questions, then by
//! answer, and at random within these. Test takes `k` of the `n` units at even
//! distances along that order, from a random start. So each unit is taken with
//! the same probability, each run of like units gives its share to within one
//! unit, and the share of *questions* comes out near the share of units.
//! Validation is then taken from what is left in the same way.
//!
//! Test depends on nothing but the subset's own questions, the seed and the test
//! share: runs on the real, the synthetic and both sets share their test
//! questions. Source: the paper's 80/20, which does not say how it was drawn;
//! systematic sampling is textbook material.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::draw::Draw;
use super::entry::Entry;
use super::medium;
use super::ties::Ties;
use crate::error::{Error, Result};
use crate::files::{json_error, read_text};

/// What may not be torn apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// All questions on a video or image go to the same part; one on several ties these together.
    #[default]
    Video,
    /// Each question by itself, as the paper seems to do: most test questions
    /// then have their video in train.
    Question,
}

impl By {
    /// As in recipes and files: `video` or `question`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Video => "video",
            Self::Question => "question",
        }
    }
}

/// The parts of one subset: ids, in the order of the question file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// What the split was drawn with.
    pub seed: u64,
    /// What was kept together.
    pub by: By,
    /// Trained on.
    pub train: Vec<String>,
    /// Chooses the checkpoint; never trained on, never reported.
    pub val: Vec<String>,
    /// Reported.
    pub test: Vec<String>,
    /// Would be trained on, but for a limit: on no side.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// Name of the part that is on no side.
const LEFT_OUT: &str = "left_out";

/// Splits each subset of `entries`; the result, by subset, is `split.json`.
///
/// `test_share` and `val_share` are shares of a subset, in [0, 1). A share above
/// zero takes at least one unit, and train keeps at least one.
///
/// # Errors
/// Shares that leave nothing to train on, a subset too small for its parts, or a
/// video whose questions would cross between the parts of two subsets.
pub fn split(
    entries: &[Entry],
    seed: u64,
    test_share: f64,
    val_share: f64,
    by: By,
) -> Result<BTreeMap<String, Split>> {
    let valid = |share: f64| (0.0..1.0).contains(&share);
    if !valid(test_share) || !valid(val_share) || test_share + val_share >= 1.0 {
        return Err(Error::input(format!(
            "split: `test` is {test_share} and `val` is {val_share}: nothing is left to train on"
        ))
        .help("both are shares of at least 0, and their sum is below 1"));
    }
    let mut subsets: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        subsets.entry(&entry.subset).or_default().push(entry);
    }
    let mut splits = BTreeMap::new();
    for (name, entries) in subsets {
        let drawn = split_subset(name, &entries, seed, test_share, val_share, by)?;
        splits.insert(name.to_owned(), drawn);
    }
    check_videos(entries, &splits)?;
    Ok(splits)
}

/// A split that was written before, as far as it concerns the subsets of `entries`; and what is worth
/// telling of it, one line each.
///
/// # Errors
/// A file that is no split, lacks a subset, names a question that is none of `entries` or one twice,
/// or says it was made by video and lets one cross.
pub fn read(path: &Path, entries: &[Entry]) -> Result<(BTreeMap<String, Split>, Vec<String>)> {
    let shown = path.display();
    let text = read_text(path)?;
    let mut file: BTreeMap<String, Split> = serde_json::from_str(&text).map_err(|e| {
        json_error(path, "not a split: ", &e).help(
            "`vlm4d-train data split` writes one, and every run: \
             {\"real\": {\"seed\", \"by\", \"train\", \"val\", \"test\"}}",
        )
    })?;
    let names: BTreeSet<&str> = entries.iter().map(|entry| &*entry.subset).collect();
    let known: Vec<String> = file.keys().cloned().collect();
    let (mut splits, mut notes) = (BTreeMap::new(), Vec::new());
    for name in names {
        let split = file.remove(name).ok_or_else(|| {
            Error::input(format!("{shown}: has no subset `{name}`"))
                .help(format!("it has {}", known.join(", ")))
        })?;
        let mut part_of: BTreeMap<&str, &str> = BTreeMap::new();
        for (part, id) in split.parts() {
            if let Some(other) = part_of.insert(id, part) {
                return Err(Error::input(format!("{shown}: `{id}` is in {other} and in {part}"))
                    .help("a question is in one part, once"));
            }
        }
        let own = entries.iter().filter(|entry| entry.subset == name);
        let left = own.filter(|entry| part_of.remove(&*entry.id).is_none()).count();
        if let Some(id) = part_of.keys().next() {
            return Err(Error::input(format!("{shown}: `{id}` is no question of the data"))
                .help("the split was made of other question files"));
        }
        if left > 0 {
            notes.push(format!(
                "{left} question(s) of `{name}` are in no part of {shown} and are not used"
            ));
        }
        splits.insert(name.to_owned(), split);
    }
    check_videos(entries, &splits)?;
    Ok((splits, notes))
}

impl Split {
    /// Keeps `most` training questions at most, in their order, and leaves the others out.
    ///
    /// Where a question comes in the draw depends on its id and the seed alone: what a smaller limit
    /// keeps, a larger one keeps too, whatever else there is.
    pub fn limit(&mut self, most: usize) {
        let seed = self.seed.to_string();
        let mut drawn = self.train.clone();
        drawn.sort_by_cached_key(|id| Draw::of(&[&seed, "max_questions", id]).place());
        let kept: BTreeSet<String> = drawn.into_iter().take(most).collect();
        let all = std::mem::take(&mut self.train).into_iter();
        let (train, others): (Vec<_>, Vec<_>) = all.partition(|id| kept.contains(id));
        self.train = train;
        self.left_out.extend(others);
    }

    /// How many training questions there are, those that are left out among them.
    pub fn trainable(&self) -> usize {
        self.train.len() + self.left_out.len()
    }

    /// Every question with the name of its part.
    fn parts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let parts = [
            ("train", &self.train),
            ("val", &self.val),
            ("test", &self.test),
            (LEFT_OUT, &self.left_out),
        ];
        parts.into_iter().flat_map(|(part, ids)| ids.iter().map(move |id| (part, id.as_str())))
    }
}

fn split_subset(
    name: &str,
    entries: &[&Entry],
    seed: u64,
    test_share: f64,
    val_share: f64,
    by: By,
) -> Result<Split> {
    let mut rng = Draw::new(seed);
    let units = units(entries, by);
    let n = units.len();
    // What ties most of the questions together would leave nearly nothing to train on.
    let (kept, units): (Vec<_>, Vec<_>) =
        units.into_iter().partition(|unit| is_tied(unit) && 2 * unit.len() > entries.len());
    let free = units.len() + usize::from(!kept.is_empty());
    let n_test = count(n, test_share, free);
    let n_val = count(n, val_share, free - n_test);
    if n_test + n_val >= free {
        let media = entries.iter().flat_map(|entry| &entry.media);
        let kind = if by == By::Video { medium::name(media) } else { "question" };
        return Err(Error::input(format!(
            "split: subset `{name}` has {n} {kind}(s): too few for {n_test} in test, {n_val} in \
             validation and one to train on"
        ))
        .help("add data, lower `test` or `val`, or set them to 0"));
    }
    let (test, rest) = draw(units, n_test, &mut rng);
    let (val, _) = draw(rest, n_val, &mut rng);
    let (test, val) = (ids(&test), ids(&val));
    let [train, left_out] = [Vec::new(), Vec::new()];
    let mut split = Split { seed, by, train, val: Vec::new(), test: Vec::new(), left_out };
    for entry in entries {
        let part = match entry.id.as_str() {
            id if test.contains(id) => &mut split.test,
            id if val.contains(id) => &mut split.val,
            _ => &mut split.train,
        };
        part.push(entry.id.clone());
    }
    Ok(split)
}

/// Questions that stay together, sorted by id.
type Unit<'a> = Vec<&'a Entry>;

/// The units of a subset, in an order that does not depend on the input's.
fn units<'a>(entries: &[&'a Entry], by: By) -> Vec<Unit<'a>> {
    let mut ties = Ties::new(entries.iter().map(|entry| entry.names()));
    let mut units: BTreeMap<(&OsStr, &str), Unit> = BTreeMap::new();
    for &entry in entries {
        let video = entry.names()[0];
        let key = match by {
            By::Video => (ties.first(video), ""),
            By::Question => (video, entry.id.as_str()),
        };
        units.entry(key).or_default().push(entry);
    }
    let mut units: Vec<Unit> = units.into_values().collect();
    for unit in &mut units {
        unit.sort_by(|a, b| a.id.cmp(&b.id));
    }
    units
}

/// Whether questions of a unit show several videos or images between them.
fn is_tied(unit: &Unit) -> bool {
    let mut media = unit.iter().flat_map(|entry| &entry.media);
    let first = media.next();
    media.any(|medium| Some(medium) != first)
}

/// How many of `n` units a share takes: the nearest number that leaves one of
/// those `free`, but at least one.
fn count(n: usize, share: f64, free: usize) -> usize {
    if share == 0.0 {
        return 0;
    }
    let nearest = (n as f64 * share).round() as usize;
    nearest.min(free.saturating_sub(1)).max(1)
}

/// Takes `k` of the units; gives what was taken and what is left.
fn draw<'a>(units: Vec<Unit<'a>>, k: usize, rng: &mut Draw) -> (Vec<Unit<'a>>, Vec<Unit<'a>>) {
    let n = units.len();
    let ordered = order(units, rng);
    let start = if n == 0 { 0 } else { rng.below(n) };
    let (taken, left): (Vec<_>, Vec<_>) = ordered
        .into_iter()
        .enumerate()
        .partition(|(i, _)| ((i + 1) * k + start) / n > (i * k + start) / n);
    let mut left: Vec<Unit> = left.into_iter().map(|(_, unit)| unit).collect();
    // back into an order free of chance, for the next draw to start from
    left.sort_by(|a, b| a[0].id.cmp(&b[0].id));
    (taken.into_iter().map(|(_, unit)| unit).collect(), left)
}

/// Puts like units beside each other: by source, number of questions and answer
/// (that of the first question), at random within these and among the answers.
fn order<'a>(mut units: Vec<Unit<'a>>, rng: &mut Draw) -> Vec<Unit<'a>> {
    rng.shuffle(&mut units);
    let answers: BTreeSet<&str> = units.iter().map(|unit| unit[0].gold.as_str()).collect();
    let mut answers: Vec<&str> = answers.into_iter().collect();
    rng.shuffle(&mut answers);
    let rank: BTreeMap<&str, usize> = answers.into_iter().zip(0..).collect();
    let mut sources: BTreeMap<&str, Vec<Unit>> = BTreeMap::new();
    for unit in units {
        sources.entry(&unit[0].source).or_default().push(unit);
    }
    let mut ordered = Vec::new();
    for (i, mut group) in sources.into_values().enumerate() {
        group.sort_by_key(|unit| (unit.len(), rank[unit[0].gold.as_str()]));
        // there and back, so that sizes do not jump where sources meet
        if i % 2 == 1 {
            group.reverse();
        }
        ordered.extend(group);
    }
    ordered
}

fn ids<'a>(units: &[Unit<'a>]) -> BTreeSet<&'a str> {
    units.iter().flatten().map(|entry| entry.id.as_str()).collect()
}

/// Subsets are split apart, so a video that two of them share could cross; those split by question
/// let it.
fn check_videos(entries: &[Entry], splits: &BTreeMap<String, Split>) -> Result<()> {
    let mut parts: BTreeMap<&str, &str> = BTreeMap::new();
    for split in splits.values().filter(|split| split.by == By::Video) {
        let sides = split.parts().filter(|(part, _)| *part != LEFT_OUT);
        parts.extend(sides.map(|(part, id)| (id, part)));
    }
    let mut seen: BTreeMap<&OsStr, &Entry> = BTreeMap::new();
    for entry in entries {
        // a question that is in none of these parts cannot cross
        let Some(&b) = parts.get(entry.id.as_str()) else { continue };
        for video in entry.names() {
            let first = *seen.entry(video).or_insert(entry);
            let a = parts[first.id.as_str()];
            if a != b {
                return Err(Error::input(format!(
                    "{}: is in {a} with `{}` and in {b} with `{}`",
                    video.display(),
                    first.id,
                    entry.id
                ))
                .help("keep all questions on a file in one subset, or split by `question`"));
            }
        }
    }
    Ok(())
}
