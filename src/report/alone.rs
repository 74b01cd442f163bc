//! The report of an evaluation alone.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::accuracy::interval;
use super::controls;
use super::published::{HUMAN_OVERALL, human};
use crate::data::vlm4d::Format;
use crate::error::Result;
use crate::eval::answer::kind;
use crate::eval::metrics::{FormatMetrics, metrics};
use crate::eval::predict::Prediction;
use crate::eval::stats::{Metric, SMALL};
use crate::files;
use crate::recipe::Recipe;

/// Accuracy of guessing on all of VLM4D's multiple-choice questions, in percent. Source: its table of
/// models, row `Random`.
const RANDOM_OVERALL: f64 = 24.2;

/// Writes `report.md` into `dir`, where the predictions are; returns its tables.
///
/// # Errors
/// Where the predictions cannot be read or the disk refuses.
pub fn write(dir: &Path, title: &str, recipe: &Recipe, plain: &[Prediction]) -> Result<String> {
    let all = controls::read(dir, recipe.seed)?;
    let mut tables = String::new();
    for (format, of) in &all.formats {
        let name = match format {
            Format::Mc => "Multiple choice (MC)",
            Format::Ff => "Freeform (FF)",
        };
        let _ = write!(tables, "## {name}\n\n{}\n", table(of, *format, plain, recipe.seed));
        let section = controls::section(&[("accuracy", &all)], *format);
        if !section.is_empty() {
            let _ = writeln!(tables, "{section}");
        }
    }
    let note = format!(
        "Accuracies are percentages with a 95 % interval from a bootstrap over videos; a response \
         without an answer counts as wrong. ✻ marks fewer than {SMALL} videos: too few for a sound \
         interval."
    );
    files::write(&dir.join("report.md"), format!("# {title}\n\n{tables}{note}\n"))?;
    Ok(format!("\n{tables}{note}"))
}

/// One row per subset, source and group; beside multiple choice the accuracy of guessing and, by
/// the paper's groups, of humans.
fn table(of: &FormatMetrics, format: Format, plain: &[Prediction], seed: u64) -> String {
    let mc = format == Format::Mc;
    let guessing = |key: &dyn Fn(&Prediction) -> bool| {
        let own: Vec<Prediction> =
            plain.iter().filter(|p| p.format == format && key(p)).cloned().collect();
        let chance = metrics(&own, &BTreeMap::new(), seed).formats.remove(&format);
        chance.and_then(|m| m.chance).map_or_else(String::new, |c| format!(" {:.1} |", 100.0 * c))
    };
    let mut text = String::from("| questions | n | accuracy |");
    text += match mc {
        true => " guessing | humans |\n|---|---:|---:|---:|---:|\n",
        false => "\n|---|---:|---:|\n",
    };
    let humans = |name: &str| match (mc, human(name)) {
        (true, Some(share)) => format!(" {:.1} |", 100.0 * share),
        (true, None) => " |".into(),
        (false, _) => String::new(),
    };
    let mut row = |name: &str, metric: &Metric, key: &dyn Fn(&Prediction) -> bool| {
        let (guessing, humans) = (guessing(key), humans(name));
        let _ =
            writeln!(text, "| {name} | {} | {} |{guessing}{humans}", metric.n, interval(metric));
    };
    row("**all**", &of.overall, &|_| true);
    let mut seen = Vec::new();
    for (parts, key) in [
        (&of.subset, (|p: &Prediction| p.subset.clone()) as fn(&Prediction) -> String),
        (&of.source, |p| p.source.clone()),
        (&of.group, |p| p.group.clone()),
        (&of.answer, |p| kind(&p.gold).to_owned()),
    ] {
        for (name, metric) in parts {
            // `synthetic` is a subset and a source.
            if !seen.contains(name) {
                row(name, metric, &|p| key(p) == *name);
                seen.push(name.clone());
            }
        }
    }
    if mc && of.group.keys().any(|group| human(group).is_some()) {
        let _ = writeln!(
            text,
            "\nHumans: the VLM4D paper, {:.1} over all its questions; guessing got {RANDOM_OVERALL:.1} there.",
            100.0 * HUMAN_OVERALL
        );
    }
    let _ = writeln!(text, "\nUnanswered: {}. Graded by {}.", of.unanswered, of.grader);
    text
}
