//! The report of an evaluation alone.

use std::fmt::Write;
use std::path::Path;

use super::accuracy::{interval, reading, small, title};
use super::controls;
use super::published::{HUMAN_OVERALL, RANDOM_OVERALL, human, is_vlm4d};
use super::table::Table;
use crate::data::vlm4d::Format;
use crate::error::Result;
use crate::eval::metrics::FormatMetrics;
use crate::eval::predict;
use crate::files;
use crate::recipe::Recipe;

/// Writes `report.md` into `dir`, where the predictions are, headed `of`; returns its tables.
///
/// # Errors
/// Where the predictions cannot be read or the disk refuses.
pub fn write(dir: &Path, of: &str, recipe: &Recipe) -> Result<String> {
    let plain = predict::read(&dir.join("predictions.jsonl"))?;
    let stages = [("accuracy", controls::read(dir, &plain, recipe.seed)?)];
    let [(_, all)] = &stages;
    let mut tables = String::new();
    let is_vlm4d = is_vlm4d(dir);
    for (format, metrics) in &all.formats {
        let table = accuracies(metrics, *format, is_vlm4d);
        let _ = write!(tables, "## {}\n\n{table}\n", title(*format));
        let section = controls::section(&stages, *format);
        if !section.is_empty() {
            let _ = writeln!(tables, "{section}");
        }
    }
    let note = format!("{} {}.", reading(), small());
    files::write(&dir.join("report.md"), format!("# {of}\n\n{tables}{note}\n"))?;
    Ok(format!("\n{tables}{note}"))
}

/// One row for all and for each part; beside multiple choice the accuracy of guessing and, on
/// VLM4D's questions, by its groups, of humans.
fn accuracies(of: &FormatMetrics, format: Format, is_vlm4d: bool) -> String {
    let human = |name: &str| human(format, name).filter(|_| is_vlm4d);
    let percent =
        |share: Option<f64>| share.map_or_else(String::new, |s| format!("{:.1}", 100.0 * s));
    let mut table = Table::new(1, ["questions", "n", "accuracy", "guessing", "humans"]);
    for (name, metric) in
        [("**all**", &of.breakdown.overall)].into_iter().chain(of.breakdown.parts())
    {
        table.rows.push(vec![
            name.to_owned(),
            metric.n.to_string(),
            interval(metric),
            percent(metric.chance),
            percent(human(name)),
        ]);
    }
    let mut text = table.without_empty_columns().markdown();
    if of.breakdown.group.keys().any(|group| human(group).is_some()) {
        let _ = writeln!(
            text,
            "\nHumans: the VLM4D paper, {:.1} over all its questions; guessing got {:.1} there.",
            100.0 * HUMAN_OVERALL,
            100.0 * RANDOM_OVERALL
        );
    }
    let _ = writeln!(text, "\nUnanswered: {}. Graded by {}.", of.unanswered, of.grader);
    text
}
