//! Accuracies before and after, and their change, as every report tells them.

use std::collections::BTreeMap;

use super::table::Table;
use crate::data::vlm4d::Format;
use crate::eval::metrics::FormatMetrics;
use crate::eval::stats::{Breakdown, Metric, Paired, SMALL};

/// What an [`interval`] is.
pub const INTERVALS: &str = "95 % intervals from a bootstrap over videos, or Clopper and Pearson's \
                             where all videos score alike; those that share a file or a question \
                             count as one";

/// What `p` is.
pub const P: &str =
    "p is McNemar's exact test: it takes questions as independent, the interval does not";

/// A format's name as a title.
pub fn title(format: Format) -> &'static str {
    match format {
        Format::Mc => "Multiple choice (MC)",
        Format::Ff => "Freeform (FF)",
    }
}

/// What the mark of an [`interval`] says.
pub fn small() -> String {
    format!("✻ marks fewer than {SMALL} videos: too few for a sound interval")
}

/// How to read accuracies, in two sentences.
pub fn reading() -> String {
    format!(
        "Accuracies are percentages of all test questions; a response without an answer counts as \
         wrong. Brackets are {INTERVALS}."
    )
}

/// `31.0 [25.1, 37.4]`, marked where there are too few videos for the interval.
pub fn interval(metric: &Metric) -> String {
    let [low, high] = metric.ci95.map(|share| 100.0 * share);
    let small = if metric.small { " ✻" } else { "" };
    format!("{:.1} [{low:.1}, {high:.1}]{small}", 100.0 * metric.accuracy)
}

/// `38.2 ±5.6 (n 275)`: percent and half the interval's width; `0.0 [0.0, 70.8] (n 6)` where the
/// interval reaches more than twice as far to one side, and ± would mislead.
pub fn percent(metric: &Metric) -> String {
    let [value, low, high] =
        [metric.accuracy, metric.ci95[0], metric.ci95[1]].map(|share| 100.0 * share);
    let (below, above) = (value - low, high - value);
    let interval = match 2.0 * below.min(above) < below.max(above) {
        true => format!("[{low:.1}, {high:.1}]"),
        false => format!("±{:.1}", (high - low) / 2.0),
    };
    format!("{value:.1} {interval} (n {})", metric.n)
}

/// `+4.2 [-18.8, +23.8]`: what changed, in points.
pub fn points(change: &Paired) -> String {
    let [low, high] = change.ci95.map(|share| 100.0 * share);
    format!("{:+.1} [{low:+.1}, {high:+.1}]", 100.0 * change.difference)
}

/// Names and metrics before and after: all, then [`Breakdown::parts`].
pub fn rows<'a>(early: &'a Breakdown, late: &'a Breakdown) -> Vec<(&'a str, Metric, Metric)> {
    let after: BTreeMap<&str, &Metric> = late.parts().into_iter().collect();
    let both = |(name, before): (&'a str, &Metric)| Some((name, *before, **after.get(name)?));
    let all = ("all", early.overall, late.overall);
    std::iter::once(all).chain(early.parts().into_iter().filter_map(both)).collect()
}

/// [`rows`] with the change in points.
pub fn table(early: &FormatMetrics, late: &FormatMetrics) -> Table {
    let mut table = Table::new(1, ["questions", "n", "before", "after", "change"]);
    for (name, before, after) in rows(&early.breakdown, &late.breakdown) {
        table.rows.push(vec![
            name.to_owned(),
            after.n.to_string(),
            interval(&before),
            interval(&after),
            format!("{:+.1}", 100.0 * (after.accuracy - before.accuracy)),
        ]);
    }
    table
}

/// `0.012`; where it is smaller than three places show, `<0.001`.
pub fn p(p: f64) -> String {
    match p {
        p if p < 0.001 => "<0.001".to_owned(),
        p => format!("{p:.3}"),
    }
}

/// What changed on the same questions, in one sentence, and who graded.
pub fn change(change: &Paired, early: &FormatMetrics, late: &FormatMetrics) -> String {
    let [low, high] = change.ci95.map(|share| 100.0 * share);
    format!(
        "Change {:+.1} points, 95 % interval [{low:+.1}, {high:+.1}]; {} fixed, {} broken, McNemar's p {}. \
         Without an answer: {} before, {} after. Graded by {}.",
        100.0 * change.difference,
        change.fixed,
        change.broken,
        p(change.p),
        early.unanswered,
        late.unanswered,
        late.grader
    )
}
