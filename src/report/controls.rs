//! What an accuracy rests on: the same questions under each control, as a table and in one
//! sentence.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::accuracy::interval;
use super::terminal::format_name;
use crate::data::vlm4d::Format;
use crate::error::Result;
use crate::eval::metrics::{FormatMetrics, Metrics, metrics};
use crate::eval::predict;
use crate::eval::rounds::TRAIN;
use crate::eval::stats::Paired;

/// Reads the predictions of all rounds in `dir` and sums them up.
///
/// # Errors
/// Where a file is missing or malformed.
pub fn read(dir: &Path, seed: u64) -> Result<Metrics> {
    let mut others = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let name = file.strip_prefix("predictions_").and_then(|f| f.strip_suffix(".jsonl"));
        if let Some(name) = name {
            others.insert(name.to_owned(), predict::read(&entry.path())?);
        }
    }
    Ok(metrics(&predict::read(&dir.join("predictions.jsonl"))?, &others, seed))
}

/// A Markdown table of circular accuracy and all controls, one column per stage (`before`,
/// `after`), and what seeing the video is worth in a sentence; nothing where there are none.
pub fn section(stages: &[(&str, &Metrics)], format: Format) -> String {
    let mut rows: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (_, metrics) in stages {
        let circular = metrics.formats.get(&format).and_then(|m| m.circular.as_ref());
        if let Some(circular) = circular {
            let name = format!("right under all {} rotations", circular.rotations.len());
            rows.entry(name).or_default().push(interval(&circular.overall));
        }
        for (control, formats) in &metrics.controls {
            if let Some(of) = formats.get(&format) {
                rows.entry(title(control)).or_default().push(control_cell(of));
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let heads: Vec<&str> = stages.iter().map(|(name, _)| *name).collect();
    let mut text = format!(
        "| asked otherwise | {} |\n|---|{}\n",
        heads.join(" | "),
        "---:|".repeat(heads.len())
    );
    for (name, cells) in rows.iter().filter(|(_, cells)| cells.len() == stages.len()) {
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    }
    let worth: Vec<String> = stages.iter().filter_map(|stage| worth(stage, format)).collect();
    if !worth.is_empty() {
        let _ = writeln!(
            text,
            "\nSeeing the video is worth, in {}: {}.",
            format_name(format),
            worth.join("; ")
        );
    }
    text
}

/// `after +7.5 points [+2.1, +13.0] (53.5 with it, 46.0 without)`.
fn worth((stage, metrics): &(&str, &Metrics), format: Format) -> Option<String> {
    let blind = metrics.controls.get("no_video")?.get(&format)?;
    let plain = metrics.formats.get(&format)?;
    Some(format!(
        "{stage} {} ({:.1} with it, {:.1} without)",
        points(&blind.gain?),
        100.0 * plain.breakdown.overall.accuracy,
        100.0 * blind.breakdown.overall.accuracy
    ))
}

fn title(control: &str) -> String {
    match control {
        TRAIN => "questions that were trained on".into(),
        "no_video" => "without the video".into(),
        "shuffled" => "frames shuffled".into(),
        "reversed" => "video reversed".into(),
        "wrong_video" => "another video".into(),
        other => other.replace('_', " "),
    }
}

/// Accuracy with interval, and what the questions as they are get more.
fn control_cell(of: &FormatMetrics) -> String {
    let gain =
        of.gain.map_or_else(String::new, |gain| format!("; the true video adds {}", points(&gain)));
    let overall = of.breakdown.overall;
    format!("{} (n {}){gain}", interval(&overall), overall.n)
}

fn points(gain: &Paired) -> String {
    let [low, high] = gain.ci95.map(|share| 100.0 * share);
    format!("{:+.1} points [{low:+.1}, {high:+.1}]", 100.0 * gain.difference)
}
