//! Predictions → `metrics.json`: accuracy with n and interval, per format, subset, source, group and kind of
//! right answer.

use std::collections::BTreeMap;

use serde::Serialize;

use super::answer::kind;
use super::predict::Prediction;
use super::rounds::{CIRCULAR, TRAIN};
use super::stats::{self, Breakdown, Metric, Outcome, Pair, Paired};
use crate::data::vlm4d::Format;

/// What `metrics.json` holds.
#[derive(Clone, Debug, Serialize)]
pub struct Metrics {
    /// `mc` and `ff`.
    #[serde(flatten)]
    pub formats: BTreeMap<Format, FormatMetrics>,
    /// The same under each control; `train` are training questions.
    pub controls: BTreeMap<String, BTreeMap<Format, FormatMetrics>>,
}

/// Accuracy where a question counts only if it is answered rightly under every rotation of its
/// choices. Source: MMBench's CircularEval.
#[derive(Clone, Debug, Serialize)]
pub struct Circular {
    /// Right under every rotation.
    #[serde(flatten)]
    pub overall: Metric,
    /// Accuracy under each rotation by itself, that by 0 first.
    pub rotations: Vec<f64>,
}

/// Accuracy in one format.
#[derive(Clone, Debug, Serialize)]
pub struct FormatMetrics {
    /// Overall and in parts.
    #[serde(flatten)]
    pub breakdown: Breakdown,
    /// Responses without an answer; they count as wrong.
    pub unanswered: usize,
    /// Who graded; with how many responses each where several did.
    pub grader: String,
    /// Multiple choice under all rotations of the choices, where that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circular: Option<Circular>,
    /// After training: what it changed, on the same questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<Paired>,
    /// Of a control: what the questions as they are get more, on the same questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gain: Option<Paired>,
}

/// Metrics of an evaluation and of its other rounds, by name.
pub fn metrics(
    predictions: &[Prediction],
    others: &BTreeMap<String, Vec<Prediction>>,
    seed: u64,
) -> Metrics {
    let mut formats = by_format(predictions, seed);
    if let (Some(rotated), Some(mc)) = (others.get(CIRCULAR), formats.get_mut(&Format::Mc)) {
        mc.circular = Some(circular(predictions, rotated, seed));
    }
    let controls = others.iter().filter(|(name, _)| *name != CIRCULAR).map(|(name, of)| {
        let mut control = by_format(of, seed);
        if name != TRAIN {
            for (format, metrics) in &mut control {
                metrics.gain = Some(paired(of, predictions, *format, seed));
            }
        }
        (name.clone(), control)
    });
    Metrics { controls: controls.collect(), formats }
}

/// A question of `plain` counts where it and all its rotations are right.
fn circular(plain: &[Prediction], rotated: &[Prediction], seed: u64) -> Circular {
    let mc = || plain.iter().filter(|p| p.format == Format::Mc);
    let mut rotations: BTreeMap<usize, Vec<bool>> = BTreeMap::new();
    let mut all: BTreeMap<&str, bool> = BTreeMap::new();
    for p in mc().chain(rotated) {
        rotations.entry(p.rotation.unwrap_or(0)).or_default().push(p.correct);
        *all.entry(&p.id).or_insert(true) &= p.correct;
    }
    let outcomes: Vec<Outcome> =
        mc().map(|p| Outcome { correct: all[&*p.id], chance: None, ..outcome(p) }).collect();
    let share = |right: &Vec<bool>| stats::share(right.iter().filter(|r| **r).count(), right.len());
    Circular {
        overall: stats::metric(&outcomes, seed),
        rotations: rotations.values().map(share).collect(),
    }
}

/// The accuracy over all predictions, in each format.
pub fn overall(predictions: &[Prediction], seed: u64) -> BTreeMap<Format, Metric> {
    let metric = |of: &[&Prediction]| {
        let outcomes: Vec<Outcome> = of.iter().map(|p| outcome(p)).collect();
        stats::metric(&outcomes, seed)
    };
    grouped(predictions).into_iter().map(|(format, of)| (format, metric(&of))).collect()
}

fn by_format(predictions: &[Prediction], seed: u64) -> BTreeMap<Format, FormatMetrics> {
    let formats = grouped(predictions).into_iter();
    formats.map(|(format, of)| (format, format_metrics(&of, seed))).collect()
}

fn grouped(predictions: &[Prediction]) -> BTreeMap<Format, Vec<&Prediction>> {
    let mut formats: BTreeMap<Format, Vec<&Prediction>> = BTreeMap::new();
    for prediction in predictions {
        formats.entry(prediction.format).or_default().push(prediction);
    }
    formats
}

fn format_metrics(predictions: &[&Prediction], seed: u64) -> FormatMetrics {
    let outcomes: Vec<Outcome> = predictions.iter().map(|p| outcome(p)).collect();
    FormatMetrics {
        breakdown: stats::breakdown(&outcomes, seed),
        unanswered: predictions.iter().filter(|p| p.extracted.is_none()).count(),
        grader: graders(predictions),
        circular: None,
        change: None,
        gain: None,
    }
}

/// Who graded: the one grader, or each with the number of its responses.
fn graders(predictions: &[&Prediction]) -> String {
    let mut graders: BTreeMap<&str, usize> = BTreeMap::new();
    for p in predictions {
        *graders.entry(&p.grader).or_default() += 1;
    }
    let several = graders.len() > 1;
    let named = graders.iter().map(|(name, n)| match several {
        true => format!("{name} ({n})"),
        false => (*name).to_owned(),
    });
    named.collect::<Vec<_>>().join(", ")
}

/// What the statistics have to know of a prediction.
pub fn outcome(p: &Prediction) -> Outcome<'_> {
    Outcome {
        subset: &p.subset,
        source: &p.source,
        group: &p.group,
        answer: kind(&p.gold),
        video: &p.video,
        cluster: p.cluster.as_deref().unwrap_or(&p.video),
        chance: (p.format == Format::Mc).then(|| {
            let right = p.choices.iter().filter(|choice| **choice == p.gold).count();
            stats::share(right, p.choices.len())
        }),
        correct: p.correct,
    }
}

/// What changed on the questions that `before` and `after` share, in one format.
pub fn paired(before: &[Prediction], after: &[Prediction], format: Format, seed: u64) -> Paired {
    stats::paired(&pairs(before, after, format), seed)
}

/// The questions that `before` and `after` share, in one format.
pub fn pairs<'a>(
    before: &'a [Prediction],
    after: &'a [Prediction],
    format: Format,
) -> Vec<Pair<'a>> {
    let matched = matched(before, after).into_iter().filter(|(_, late)| late.format == format);
    let pair = |(early, late): (&'a Prediction, &'a Prediction)| Pair {
        video: &late.video,
        // A run of before does not tell it.
        cluster: late.cluster.as_ref().or(early.cluster.as_ref()).unwrap_or(&late.video),
        before: early.correct,
        after: late.correct,
    };
    matched.map(pair).collect()
}

/// Each prediction of `after` behind that of `before` on the same question in the same format,
/// where there is one.
pub fn matched<'a>(
    before: &'a [Prediction],
    after: &'a [Prediction],
) -> Vec<(&'a Prediction, &'a Prediction)> {
    let earlier: BTreeMap<(&str, Format), &Prediction> =
        before.iter().map(|p| ((&*p.id, p.format), p)).collect();
    after.iter().filter_map(|p| Some((*earlier.get(&(&*p.id, p.format))?, p))).collect()
}
