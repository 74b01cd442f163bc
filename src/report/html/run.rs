//! `report.html` of one run.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minijinja::context;

use super::questions::{Media, json};
use super::render;
use crate::data::split::By;
use crate::data::vlm4d::Format;
use crate::error::Result;
use crate::eval::metrics::{metrics, paired};
use crate::eval::predict::{self, Prediction};
use crate::eval::stats::{self, Breakdown, Metric};
use crate::files;
use crate::recipe::Recipe;
use crate::report::accuracy::{self, interval};
use crate::report::directions::confusion;
use crate::report::published;
use crate::report::svg::{self, Interval, Line, Mark};
use crate::report::table::Table;
use crate::report::terminal::{format_name, thousands};
use crate::train::log;

/// Points of a curve; longer ones are drawn as the means of as many stretches.
const POINTS: usize = 500;

/// Writes `report.html` into the run's folder. Returns the videos that it shows no frames of.
///
/// # Errors
/// Where the run's files cannot be read or the disk refuses.
pub fn write(
    dir: &Path,
    recipe: &Recipe,
    before: &[Prediction],
    after: &[Prediction],
    media: &Media,
) -> Result<Vec<String>> {
    let (questions, missing) = json(before, after, media)?;
    let page = page(dir, recipe, before, after, questions)?;
    files::write(&dir.join("report.html"), page)?;
    Ok(missing)
}

fn page(
    dir: &Path,
    recipe: &Recipe,
    before: &[Prediction],
    after: &[Prediction],
    questions: String,
) -> Result<String> {
    let seed = recipe.seed;
    let mut formats = Vec::new();
    let mut charts = Vec::new();
    let mut confusions = Vec::new();
    for format in [Format::Mc, Format::Ff] {
        let stage = |p| metrics(p, &BTreeMap::new(), seed).formats.remove(&format);
        let (Some(early), Some(late)) = (stage(before), stage(after)) else { continue };
        formats.push(context! {
            title => accuracy::title(format),
            table => accuracy::table(&early, &late).html(),
            change => accuracy::change(&paired(before, after, format, seed), &early, &late),
        });
        charts.push(by_group(format, &early.breakdown, &late.breakdown));
        for (name, predictions) in [("before", before), ("after", after)] {
            if let Some(c) = confusion(predictions, format) {
                let title = format!("{} {name}", format_name(format).to_uppercase());
                confusions.push(svg::heat_map(&title, &c.rows, &c.columns, &c.counts));
            }
        }
    }
    let by = match recipe.data.split.by {
        By::Video => "video",
        By::Question => "question",
    };
    render(
        "report.html",
        context! {
            title => title(dir),
            model => recipe.model.name(),
            trained_on => recipe.data.train.join(" + "),
            tested_on => recipe.data.test_subsets().join(" + "),
            by,
            seed => recipe.split_seed(),
            formats,
            charts,
            controls => controls(dir, [before, after], seed)?.map(|table| table.html()),
            curves => curves(dir)?,
            confusions,
            data => picture(&dir.join(crate::report::data::PICTURE)),
            recipe => recipe.to_toml()?,
            small => stats::SMALL,
            n_questions => thousands(after.len()),
            questions,
            script => include_str!("report.js"),
        },
    )
}

/// An SVG file as a `data:` URL, with styles of its own; nothing where there is none.
fn picture(path: &Path) -> Option<String> {
    let svg = std::fs::read(path).ok()?;
    Some(format!("data:image/svg+xml;base64,{}", STANDARD.encode(svg)))
}

/// The run's folder as a title: its last two parts tell runs apart.
fn title(dir: &Path) -> String {
    let parts: Vec<String> =
        dir.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
    parts[parts.len().saturating_sub(2)..].join("/")
}

/// Accuracy by group, before and after, against guessing and humans.
fn by_group(format: Format, early: &Breakdown, late: &Breakdown) -> String {
    let human = |group: &str| published::human(format, group);
    // Of all questions only where they are all of VLM4D's: its figure is over both subsets.
    let of_vlm4d = format == Format::Mc && published::is_whole(late.group.keys());
    let of_humans = |name: &str| match name {
        "all" => of_vlm4d.then_some(published::HUMAN_OVERALL),
        name => human(name),
    };
    let mark = |series, metric: &Metric| {
        let [low, high] = metric.ci95;
        Mark { series, value: metric.accuracy, low, high }
    };
    let row = |(name, before, after): (&str, Metric, Metric)| Interval {
        label: format!("{name} (n {})", after.n),
        marks: vec![mark(0, &before), mark(1, &after)],
        references: of_humans(name).map(|share| (published::HUMAN, share)).into_iter().collect(),
    };
    let rows: Vec<Interval> = accuracy::rows(early, late).into_iter().map(row).collect();
    svg::intervals(accuracy::title(format), &["before", "after"], &rows, late.overall.chance)
}

/// The same questions under each control, before and after; nothing where a run has no control.
///
/// # Errors
/// Where its predictions cannot be read.
pub fn controls(dir: &Path, plain: [&[Prediction]; 2], seed: u64) -> Result<Option<Table>> {
    let read = |stage: &str| -> Result<BTreeMap<String, Vec<Prediction>>> {
        let mut found = BTreeMap::new();
        let entries = std::fs::read_dir(dir.join(stage)).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let control = name.strip_prefix("predictions_").and_then(|n| n.strip_suffix(".jsonl"));
            if let Some(control) = control {
                found.insert(control.replace('_', " "), predict::read(&path)?);
            }
        }
        Ok(found)
    };
    let stages = [read("before")?, read("after")?];
    let names: std::collections::BTreeSet<&String> = stages.iter().flat_map(|s| s.keys()).collect();
    if names.is_empty() {
        return Ok(None);
    }
    let mut table =
        Table::new(1, ["the questions asked …", "MC before", "MC after", "FF before", "FF after"]);
    let cells = |of: [Option<&[Prediction]>; 2]| -> Vec<String> {
        let cell = |(format, stage): (Format, usize)| {
            let formats = metrics(of[stage]?, &BTreeMap::new(), seed).formats;
            Some(interval(&formats.get(&format)?.breakdown.overall))
        };
        [(Format::Mc, 0), (Format::Mc, 1), (Format::Ff, 0), (Format::Ff, 1)]
            .map(|place| cell(place).unwrap_or_default())
            .into()
    };
    let mut push = |name: String, of: [Option<&[Prediction]>; 2]| {
        table.rows.push([vec![name], cells(of)].concat());
    };
    push("with their video".into(), plain.map(Some));
    for name in names {
        let label = match name.as_str() {
            "no video" => "without video".into(),
            other => format!("under the control “{other}”"),
        };
        push(label, [0, 1].map(|stage| stages[stage].get(name).map(Vec::as_slice)));
    }
    Ok(Some(table.without_empty_columns()))
}

/// Loss, rate, gradient and validation over the steps.
fn curves(dir: &Path) -> Result<Vec<String>> {
    let records = log::read(&dir.join("log.jsonl"))?;
    let of = |value: &dyn Fn(&log::Record) -> f64| -> Vec<(f64, f64)> {
        let points: Vec<_> = records.iter().map(|r| (r.step as f64, value(r))).collect();
        svg::thinned(&points, POINTS)
    };
    let line = |name: &str, points, faint| Line { name: name.into(), points, faint };
    let with_mean = |points: Vec<(f64, f64)>| {
        let reach = points.len() / 40;
        let mean = svg::smoothed(&points, reach);
        vec![line("each step", points, true), line("running mean", mean, false)]
    };
    let validation = validation(dir)?;
    let mut loss = with_mean(of(&|r| r.loss));
    if let Some(points) = validation.get("loss") {
        loss.push(line("validation", points.clone(), false));
    }
    let accuracy: Vec<Line> = validation
        .iter()
        .filter(|(name, _)| *name != "loss")
        .map(|(name, points)| line(&name.to_uppercase(), points.clone(), false))
        .collect();
    let charts = [
        svg::lines("Loss", "step", &loss),
        svg::lines("Validation accuracy", "step", &accuracy),
        svg::lines("Learning rate", "step", &[line("lr", of(&|r| r.lr), false)]),
        svg::lines("Gradient norm", "step", &with_mean(of(&|r| r.grad_norm))),
    ];
    Ok(charts.into_iter().flatten().collect())
}

/// Curves of `validation.jsonl`, where the run has one: loss, and accuracy per format.
fn validation(dir: &Path) -> Result<BTreeMap<String, Vec<(f64, f64)>>> {
    let path = dir.join("validation.jsonl");
    let mut curves: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(curves) };
    for (i, line) in text.lines().enumerate() {
        let record: serde_json::Value = serde_json::from_str(line)
            .map_err(|e| crate::error::Error::run(format!("{}:{}: {e}", path.display(), i + 1)))?;
        let Some(step) = record["step"].as_f64() else { continue };
        let accuracies = record["accuracy"].as_object().into_iter().flatten();
        let loss = record["loss"].as_f64().map(|loss| ("loss".to_owned(), loss));
        let named = accuracies.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)));
        for (name, value) in loss.into_iter().chain(named) {
            curves.entry(name).or_default().push((step, value));
        }
    }
    Ok(curves)
}
