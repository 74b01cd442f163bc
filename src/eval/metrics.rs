//! Predictions → `metrics.json`: accuracy with n and interval, per format, subset, source, group.

use std::collections::BTreeMap;

use serde::Serialize;

use super::predict::Prediction;
use super::stats::{self, Metric, Outcome, Pair, Paired};
use crate::data::vlm4d::Format;

/// What `metrics.json` holds.
#[derive(Clone, Debug, Serialize)]
pub struct Metrics {
    /// `mc` and `ff`.
    #[serde(flatten)]
    pub formats: BTreeMap<Format, FormatMetrics>,
    /// The same under each control.
    pub controls: BTreeMap<String, BTreeMap<Format, FormatMetrics>>,
}

/// Accuracy in one format.
#[derive(Clone, Debug, Serialize)]
pub struct FormatMetrics {
    /// All questions.
    #[serde(flatten)]
    pub overall: Metric,
    /// Responses without an answer; they count as wrong.
    pub unanswered: usize,
    /// Who graded.
    pub grader: String,
    /// Accuracy of guessing; none for freeform.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
    /// Per subset.
    pub subset: BTreeMap<String, Metric>,
    /// Per source.
    pub source: BTreeMap<String, Metric>,
    /// Per group.
    pub group: BTreeMap<String, Metric>,
}

/// Metrics of an evaluation and of its controls, by name.
pub fn metrics(
    predictions: &[Prediction],
    controls: &BTreeMap<String, Vec<Prediction>>,
    seed: u64,
) -> Metrics {
    let of_controls = controls.iter().map(|(name, p)| (name.clone(), by_format(p, seed)));
    Metrics { formats: by_format(predictions, seed), controls: of_controls.collect() }
}

fn by_format(predictions: &[Prediction], seed: u64) -> BTreeMap<Format, FormatMetrics> {
    let mut formats: BTreeMap<Format, Vec<&Prediction>> = BTreeMap::new();
    for prediction in predictions {
        formats.entry(prediction.format).or_default().push(prediction);
    }
    formats.into_iter().map(|(format, of)| (format, format_metrics(&of, seed))).collect()
}

fn format_metrics(predictions: &[&Prediction], seed: u64) -> FormatMetrics {
    let outcomes: Vec<Outcome> = predictions.iter().map(|p| outcome(p)).collect();
    let breakdown = stats::breakdown(&outcomes, seed);
    let guesses: Vec<(usize, usize)> = predictions
        .iter()
        .filter(|p| p.format == Format::Mc)
        .map(|p| (p.choices.iter().filter(|c| **c == p.gold).count(), p.choices.len()))
        .collect();
    FormatMetrics {
        overall: breakdown.overall,
        unanswered: predictions.iter().filter(|p| p.extracted.is_none()).count(),
        grader: predictions.first().map_or_else(String::new, |p| p.grader.clone()),
        chance: stats::chance(&guesses),
        subset: breakdown.subset,
        source: breakdown.source,
        group: breakdown.group,
    }
}

/// What the statistics have to know of a prediction.
pub fn outcome(p: &Prediction) -> Outcome<'_> {
    Outcome {
        subset: &p.subset,
        source: &p.source,
        group: &p.group,
        video: &p.video,
        correct: p.correct,
    }
}

/// What changed on the questions that `before` and `after` share, in one format.
pub fn paired(before: &[Prediction], after: &[Prediction], format: Format, seed: u64) -> Paired {
    stats::paired(&pairs(before, after, format), seed)
}

/// The questions that `before` and `after` share, in one format.
pub fn pairs<'a>(before: &[Prediction], after: &'a [Prediction], format: Format) -> Vec<Pair<'a>> {
    let earlier: BTreeMap<&str, &Prediction> =
        before.iter().filter(|p| p.format == format).map(|p| (&*p.id, p)).collect();
    let pairs = after.iter().filter(|p| p.format == format).filter_map(|p| {
        let earlier = earlier.get(&*p.id)?;
        Some(Pair { video: &p.video, before: earlier.correct, after: p.correct })
    });
    pairs.collect()
}
