//! Accuracies with their uncertainty. In: which questions were answered correctly, and on which
//! video. Out: [`Metric`] (accuracy with a 95% interval), [`Paired`] (after minus before on the
//! same questions) and the chance level.
//!
//! Questions on one video are not independent, nor are those on videos that are tied to each other,
//! so intervals come from resampling clusters, not questions: the cluster bootstrap (Davison &
//! Hinkley, *Bootstrap Methods and their Application*, 1997, §3.8) with percentile limits. Equal
//! input and seed give equal numbers, in whatever order the questions come.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::data::ties::Ties;

/// Resamples per interval. Percentile limits want 1,000 or more (Efron & Tibshirani, *An
/// Introduction to the Bootstrap*, 1993, §13.3 and §19.3); twice that keeps the limits steady to
/// about a tenth of a standard error.
pub const RESAMPLES: usize = 2_000;

/// Below this many clusters a [`Metric`] is flagged `small`: cluster-robust intervals are too narrow
/// with few clusters, "few" reaching from under 20 to under 50 (Cameron & Miller, *A
/// Practitioner's Guide to Cluster-Robust Inference*, 2015, §VI).
pub const SMALL: usize = 30;

/// One graded question, with the keys that it is counted under.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome<'a> {
    /// `real` or `synthetic`.
    pub subset: &'a str,
    /// Where the video comes from, as `davis`.
    pub source: &'a str,
    /// Column of VLM4D's tables, as `ego`.
    pub group: &'a str,
    /// What kind of answer is right, as `number`.
    pub answer: &'a str,
    /// Identity of the video, unique over all subsets.
    pub video: &'a str,
    /// The video that stands for all that are tied to it: [`Prediction::cluster`], or `video`.
    ///
    /// [`Prediction::cluster`]: super::predict::Prediction::cluster
    pub cluster: &'a str,
    /// Accuracy of guessing among the choices, a share; nothing where none are shown.
    pub chance: Option<f64>,
    /// Whether the answer counts. No answer is wrong, never left out.
    pub correct: bool,
}

/// One question answered before and after training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// As [`Outcome::video`].
    pub video: &'a str,
    /// As [`Outcome::cluster`].
    pub cluster: &'a str,
    /// Whether the answer before training counts.
    pub before: bool,
    /// Whether the answer after training counts.
    pub after: bool,
}

/// An accuracy with its sample size and uncertainty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// Questions.
    pub n: usize,
    /// Of them answered correctly.
    pub correct: usize,
    /// `correct / n`, a share in 0..1; 0 where there is no question.
    pub accuracy: f64,
    /// 95% interval of `accuracy`; 0 to 1 where there is no question.
    pub ci95: [f64; 2],
    /// Videos that the questions are on, each for itself, whatever it is tied to.
    pub n_videos: usize,
    /// Fewer than [`SMALL`] clusters of tied videos: the interval is likely too narrow.
    pub small: bool,
    /// Accuracy of guessing: the mean of [`Outcome::chance`]; nothing where a question has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
}

/// Accuracies overall and per key.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Breakdown {
    /// All questions.
    #[serde(flatten)]
    pub overall: Metric,
    /// Per [`Outcome::subset`].
    pub subset: BTreeMap<String, Metric>,
    /// Per [`Outcome::source`].
    pub source: BTreeMap<String, Metric>,
    /// Per [`Outcome::group`].
    pub group: BTreeMap<String, Metric>,
    /// Per [`Outcome::answer`].
    pub answer: BTreeMap<String, Metric>,
}

impl Breakdown {
    /// The parts by name: subsets, groups, sources, then kinds of right answer. Each name once, as
    /// `synthetic` is a subset and a source.
    pub fn parts(&self) -> Vec<(&str, &Metric)> {
        let mut parts: Vec<(&str, &Metric)> = Vec::new();
        for (name, metric) in
            [&self.subset, &self.group, &self.source, &self.answer].into_iter().flatten()
        {
            if !parts.iter().any(|(known, _)| known == name) {
                parts.push((name, metric));
            }
        }
        parts
    }
}

/// After minus before on the same questions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// Questions.
    pub n: usize,
    /// Difference of the accuracies, in -1..1; 0 where there is no question.
    pub difference: f64,
    /// 95% interval of `difference`; -1 to 1 where there is no question.
    pub ci95: [f64; 2],
    /// Wrong before, right after: `b` of [`mcnemar`].
    pub fixed: usize,
    /// Right before, wrong after: `c` of [`mcnemar`].
    pub broken: usize,
    /// Two-sided p of [`mcnemar`]. It takes questions as independent; where videos carry several
    /// questions `ci95` is the more careful of the two.
    pub p: f64,
}

/// Accuracy over `outcomes`, with its interval.
pub fn metric(outcomes: &[Outcome], seed: u64) -> Metric {
    let correct = outcomes.iter().filter(|o| o.correct).count();
    let clusters = clusters(outcomes.iter().map(|o| ([o.video, o.cluster], f64::from(o.correct))));
    let videos: BTreeSet<&str> = outcomes.iter().map(|o| o.video).collect();
    let guessed: Option<f64> = outcomes.iter().map(|o| o.chance).sum();
    Metric {
        n: outcomes.len(),
        correct,
        accuracy: share(correct, outcomes.len()),
        ci95: interval(&clusters, seed, 0.0).unwrap_or([0.0, 1.0]),
        n_videos: videos.len(),
        small: clusters.len() < SMALL,
        chance: guessed.filter(|_| !outcomes.is_empty()).map(|sum| sum / outcomes.len() as f64),
    }
}

/// Accuracy per value of `key`.
pub fn by<'a>(
    outcomes: &[Outcome<'a>],
    key: impl Fn(&Outcome<'a>) -> &'a str,
    seed: u64,
) -> BTreeMap<String, Metric> {
    let mut groups: BTreeMap<&str, Vec<Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        groups.entry(key(outcome)).or_default().push(*outcome);
    }
    groups.into_iter().map(|(key, group)| (key.to_owned(), metric(&group, seed))).collect()
}

/// Accuracy overall, per subset, per source, per group and per kind of right answer.
pub fn breakdown(outcomes: &[Outcome], seed: u64) -> Breakdown {
    Breakdown {
        overall: metric(outcomes, seed),
        subset: by(outcomes, |o| o.subset, seed),
        source: by(outcomes, |o| o.source, seed),
        group: by(outcomes, |o| o.group, seed),
        answer: by(outcomes, |o| o.answer, seed),
    }
}

/// What training changed on the same questions.
pub fn paired(pairs: &[Pair], seed: u64) -> Paired {
    let fixed = pairs.iter().filter(|p| !p.before && p.after).count();
    let broken = pairs.iter().filter(|p| p.before && !p.after).count();
    let change = |p: &Pair| f64::from(p.after) - f64::from(p.before);
    let clusters = clusters(pairs.iter().map(|p| ([p.video, p.cluster], change(p))));
    Paired {
        n: pairs.len(),
        difference: share(fixed, pairs.len()) - share(broken, pairs.len()),
        ci95: interval(&clusters, seed, -1.0).unwrap_or([-1.0, 1.0]),
        fixed,
        broken,
        p: mcnemar(fixed, broken),
    }
}

/// Two-sided p of McNemar's exact test: `fixed` against `fixed + broken` throws of a fair coin,
/// the smaller tail doubled, at most 1.
pub fn mcnemar(fixed: usize, broken: usize) -> f64 {
    let n = fixed + broken;
    let mut ln_term = -(n as f64 * std::f64::consts::LN_2);
    let mut tail = 0.0;
    for k in 0..=fixed.min(broken) {
        tail += ln_term.exp();
        ln_term += ((n - k) as f64 / (k + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

/// Sum of the scores and number of questions of tied videos.
#[derive(Clone, Copy, Default)]
struct Cluster {
    sum: f64,
    n: f64,
}

/// Clusters of scores with their video and its cluster, in the order of the videos' names, so that
/// the questions' order plays no part. Runs may name a video's cluster differently, or not at all:
/// all scores of a video are in one.
fn clusters<'a>(scores: impl Iterator<Item = ([&'a str; 2], f64)> + Clone) -> Vec<Cluster> {
    let mut ties = Ties::new(scores.clone().map(|(names, _)| names.map(OsStr::new).to_vec()));
    let mut clusters: BTreeMap<&OsStr, Cluster> = BTreeMap::new();
    for ([video, _], score) in scores {
        let cluster = clusters.entry(ties.first(OsStr::new(video))).or_default();
        cluster.sum += score;
        cluster.n += 1.0;
    }
    clusters.into_values().collect()
}

/// 95% interval of the mean score per question, within `least..=1`; nothing without a question.
///
/// Percentiles of the bootstrap. Where all clusters score alike no resample differs, which would
/// read as certainty: then the bound is that of Clopper and Pearson for `clusters` trials that
/// all agree, `1 − 0.025^(1 / n)` away from the score.
fn interval(clusters: &[Cluster], seed: u64, least: f64) -> Option<[f64; 2]> {
    let first = clusters.first()?;
    let score = first.sum / first.n;
    if clusters.iter().all(|c| c.sum / c.n == score) {
        let off = 1.0 - 0.025_f64.powf(1.0 / clusters.len() as f64);
        return Some([(score - off).max(least), (score + off).min(1.0)]);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut all = Cluster::default();
            for _ in clusters {
                let drawn = clusters[rng.random_range(0..clusters.len())];
                all.sum += drawn.sum;
                all.n += drawn.n;
            }
            all.sum / all.n
        })
        .collect();
    means.sort_by(f64::total_cmp);
    // 2.5% of the resamples lie outside on either side.
    let outside = RESAMPLES / 40;
    Some([means[outside], means[RESAMPLES - 1 - outside]])
}

/// `part / of`; 0 of nothing.
pub fn share(part: usize, of: usize) -> f64 {
    if of == 0 { 0.0 } else { part as f64 / of as f64 }
}
