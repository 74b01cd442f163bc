//! `report.md`: the result of a run, ready to be pasted into an issue or a paper's appendix.

use std::fmt::Write;
use std::path::Path;

use super::accuracy;
use super::controls::{self, Stage};
use super::data;
use super::split;
use crate::data::vlm4d::Format;
use crate::error::Result;
use crate::eval::metrics::{FormatMetrics, matched, paired};
use crate::eval::predict::Prediction;
use crate::eval::stats::Paired;
use crate::files;
use crate::number::{seconds, thousands};
use crate::recipe::Recipe;
use crate::train::log;

/// Examples of each kind in the report.
const EXAMPLES: usize = 3;

/// Writes the report of the run in `dir`, whose evaluations before and after are `stages`.
///
/// # Errors
/// Where the run's files cannot be read or the disk refuses.
pub fn write(
    dir: &Path,
    recipe: &Recipe,
    stages: &[Stage; 2],
    predictions: [&[Prediction]; 2],
) -> Result<()> {
    let text = report(dir, recipe, stages, predictions)?;
    files::write(&dir.join("report.md"), text)
}

fn report(
    dir: &Path,
    recipe: &Recipe,
    stages: &[Stage; 2],
    [before, after]: [&[Prediction]; 2],
) -> Result<String> {
    let mut text = String::new();
    let seed = recipe.seed;
    let [early, late] = stages.each_ref().map(|(_, metrics)| &metrics.formats);
    let (split, split_seed) = split::told(dir, recipe)?;
    let title = dir.file_name().unwrap_or_default().to_string_lossy();
    let _ = writeln!(text, "# {title}\n");
    let _ = writeln!(
        text,
        "{} trained on {} with seed {seed}, tested on {}; {split} with seed {split_seed}.\n",
        recipe.model.held(&recipe.model.path),
        split::trained_on(&split::limited(dir, recipe)?, &recipe.data.train),
        recipe.data.test_subsets().join(" + ")
    );
    for format in Format::ALL {
        if let (Some(early), Some(late)) = (early.get(&format), late.get(&format)) {
            let change = paired(before, after, format, seed);
            accuracy_table(&mut text, format, early, late, &change);
            let _ = writeln!(text, "{}", controls::section(stages, format));
        }
    }
    training(&mut text, dir);
    examples(&mut text, before, after);
    if dir.join(data::PICTURE).is_file() {
        let _ = writeln!(text, "## Data\n\n![What the data holds]({})\n", data::PICTURE);
    }
    let _ = writeln!(
        text,
        "## How to read this\n\n{} The change is taken on the same questions; {}. {}.",
        accuracy::reading(),
        accuracy::P,
        accuracy::small()
    );
    Ok(text)
}

fn accuracy_table(
    text: &mut String,
    format: Format,
    early: &FormatMetrics,
    late: &FormatMetrics,
    change: &Paired,
) {
    let _ = writeln!(text, "## {}\n", accuracy::title(format));
    let _ = writeln!(text, "{}", accuracy::table(early, late).markdown());
    let _ = writeln!(text, "{}", accuracy::change(change, early, late));
    if let Some(chance) = late.breakdown.overall.chance {
        let _ = writeln!(text, "Guessing would get {:.1}.", 100.0 * chance);
    }
    text.push('\n');
}

fn training(text: &mut String, dir: &Path) {
    let records = log::read(&dir.join("log.jsonl")).unwrap_or_default();
    let (Some(first), Some(last)) = (records.first(), records.last()) else { return };
    let _ = writeln!(
        text,
        "## Training\n\n{} steps in {}; loss {:.3} at the first step, {:.3} at the last. Every step stands in `log.jsonl` and in TensorBoard.\n",
        thousands(last.step),
        seconds(records.iter().map(|r| r.seconds).sum()),
        first.loss,
        last.loss
    );
    let validations = log::read_validations(dir).unwrap_or_default();
    let Some(best) = validations.iter().rfind(|v| v.best) else { return };
    let _ = writeln!(
        text,
        "{} validations chose the checkpoint of step {} (loss {:.3}{}); the results after training are its. All stand in `validation.jsonl`.\n",
        validations.len(),
        best.step,
        best.scores.loss,
        best.scores.accuracy.iter().fold(String::new(), |text, (format, share)| {
            format!("{text}, {} {:.1}", format.name(), 100.0 * share)
        })
    );
}

fn examples(text: &mut String, before: &[Prediction], after: &[Prediction]) {
    let pairs = matched(before, after);
    let mut lines = String::new();
    for (kind, was, is) in
        [("Mended", false, true), ("Broken", true, false), ("Wrong both times", false, false)]
    {
        let chosen =
            pairs.iter().filter(|(early, late)| early.correct == was && late.correct == is);
        for (early, late) in chosen.take(EXAMPLES) {
            let _ = writeln!(
                lines,
                "- {kind}: `{}` ({}) {} Gold: {}. Before: {}. After: {}.",
                late.id,
                late.format.name(),
                late.question,
                late.gold,
                answer(early),
                answer(late)
            );
        }
    }
    if !lines.is_empty() {
        let _ = writeln!(text, "## Examples\n\n{lines}");
    }
}

/// What was answered: the response, or the letter that the probabilities took.
fn answer(p: &Prediction) -> String {
    let letter = p.extracted.as_deref().filter(|_| p.response.is_empty());
    quoted(letter.unwrap_or(&p.response))
}

/// A response on one line, at most 80 characters.
fn quoted(response: &str) -> String {
    let line = response.split_whitespace().collect::<Vec<_>>().join(" ").replace('`', "'");
    let cut: String = line.chars().take(80).collect();
    if cut.len() < line.len() { format!("`{cut}…`") } else { format!("`{cut}`") }
}
