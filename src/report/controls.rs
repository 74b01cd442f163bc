//! What an accuracy rests on: the same questions under each control, as a table and in one
//! sentence.

use std::collections::BTreeMap;
use std::path::Path;

use super::accuracy::{interval, points};
use super::table::Table;
use crate::data::vlm4d::Format;
use crate::error::Result;
use crate::eval::metrics::{Metrics, metrics};
use crate::eval::predict::{self, Prediction};
use crate::eval::rounds::TRAIN;
use crate::eval::stats::{Metric, Paired, share};
use crate::recipe::Control;

/// The metrics of an evaluation whose questions as they are got `plain`, and whose other rounds lie
/// in `dir`.
///
/// # Errors
/// Where a file cannot be read or is malformed.
pub fn read(dir: &Path, plain: &[Prediction], seed: u64) -> Result<Metrics> {
    let mut others = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let name = file.strip_prefix("predictions_").and_then(|f| f.strip_suffix(".jsonl"));
        if let Some(name) = name {
            others.insert(name.to_owned(), predict::read(&entry.path())?);
        }
    }
    Ok(metrics(plain, &others, seed))
}

/// An evaluation's name, as `before`, and its metrics.
pub type Stage = (&'static str, Metrics);

/// Both evaluations of the run in `dir`.
///
/// # Errors
/// As [`read`].
pub fn of_run(
    dir: &Path,
    before: &[Prediction],
    after: &[Prediction],
    seed: u64,
) -> Result<[Stage; 2]> {
    let stage = |name, plain| Ok((name, read(&dir.join(name), plain, seed)?));
    Ok([stage("before", before)?, stage("after", after)?])
}

/// Circular accuracy and all controls in one format; per stage the accuracy, and what the questions
/// as they are get more. Nothing where there are none.
pub fn table(stages: &[Stage], format: Format) -> Option<Table> {
    let heads = stages.iter().flat_map(|(name, _)| [*name, "true video adds"]);
    let mut table = Table::new(1, ["asked otherwise", "n"].into_iter().chain(heads));
    let mut rows: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (stage, (_, metrics)) in stages.iter().enumerate() {
        let mut put = |name: String, overall: &Metric, gain: Option<&Paired>| {
            let row = rows.entry(name).or_insert_with(|| vec![String::new(); table.head.len() - 1]);
            row[0] = overall.n.to_string();
            row[1 + 2 * stage] = interval(overall);
            row[2 + 2 * stage] = gain.map_or_else(String::new, points);
        };
        let circular = metrics.formats.get(&format).and_then(|m| m.circular.as_ref());
        if let Some(circular) = circular {
            let name = format!("right under all {} rotations", circular.rotations.len());
            put(name, &circular.overall, None);
        }
        for (control, formats) in &metrics.controls {
            if let Some(of) = formats.get(&format) {
                put(title(control), &of.breakdown.overall, of.gain.as_ref());
            }
        }
    }
    table.rows = rows.into_iter().map(|(name, cells)| [vec![name], cells].concat()).collect();
    (!table.rows.is_empty()).then(|| table.without_empty_columns())
}

/// What seeing the video is worth, in one sentence; nothing where nothing was asked without it.
pub fn worth(stages: &[Stage], format: Format) -> Option<String> {
    let each: Vec<String> = stages.iter().filter_map(|stage| gain(stage, format)).collect();
    let worth = || format!("Seeing the video is worth, in points: {}.", each.join("; "));
    (!each.is_empty()).then(worth)
}

/// [`table`] and [`worth`] as Markdown.
pub fn section(stages: &[Stage], format: Format) -> String {
    let table = table(stages, format).map(|table| table.markdown());
    let worth = worth(stages, format).map(|worth| worth + "\n");
    [table, worth].into_iter().flatten().collect::<Vec<_>>().join("\n")
}

/// `after +7.5 [+2.1, +13.0] (53.5 with it, 46.0 without)`.
fn gain((stage, metrics): &Stage, format: Format) -> Option<String> {
    let blind = metrics.controls.get(Control::NoVideo.name())?.get(&format)?;
    let gain = blind.gain?;
    let without = blind.breakdown.overall;
    // Of the same questions: those that have no video are not asked without it.
    let with = share(without.correct + gain.fixed - gain.broken, without.n);
    Some(format!(
        "{stage} {} ({:.1} with it, {:.1} without)",
        points(&gain),
        100.0 * with,
        100.0 * without.accuracy
    ))
}

fn title(name: &str) -> String {
    let titles = [
        (TRAIN, "training questions"),
        (Control::NoVideo.name(), "without the video"),
        (Control::Shuffled.name(), "frames shuffled"),
        (Control::Reversed.name(), "video reversed"),
        (Control::WrongVideo.name(), "another video"),
    ];
    let title = titles.iter().find(|(known, _)| *known == name);
    title.map_or_else(|| name.replace('_', " "), |(_, title)| (*title).to_owned())
}
