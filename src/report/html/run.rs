//! `report.html` of one run.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minijinja::context;

use super::questions::{Media, json};
use super::render;
use crate::data::vlm4d::Format;
use crate::error::Result;
use crate::eval::metrics::paired;
use crate::eval::predict::Prediction;
use crate::eval::stats::{Breakdown, Metric};
use crate::files;
use crate::number::thousands;
use crate::recipe::Recipe;
use crate::report::accuracy;
use crate::report::controls::{self, Stage};
use crate::report::directions::confusion;
use crate::report::published;
use crate::report::split;
use crate::report::svg::{self, Interval, Line, Mark};
use crate::train::log;
use crate::train::validation::{Scores, Validation};

/// Points of a curve; longer ones are drawn as the means of as many stretches.
const POINTS: usize = 500;

/// Writes `report.html` into the run's folder, whose evaluations before and after are `stages`. Returns the videos that it shows no frames of.
///
/// # Errors
/// Where the run's files cannot be read or the disk refuses.
pub fn write(
    dir: &Path,
    recipe: &Recipe,
    stages: &[Stage; 2],
    [before, after]: [&[Prediction]; 2],
    media: &Media,
) -> Result<Vec<String>> {
    let (questions, missing) = json(before, after, media)?;
    let page = page(dir, recipe, stages, [before, after], questions)?;
    files::write(&dir.join("report.html"), page)?;
    Ok(missing)
}

fn page(
    dir: &Path,
    recipe: &Recipe,
    stages: &[Stage; 2],
    [before, after]: [&[Prediction]; 2],
    questions: String,
) -> Result<String> {
    let seed = recipe.seed;
    let [early, late] = stages.each_ref().map(|(_, metrics)| &metrics.formats);
    let mut formats = Vec::new();
    let mut charts = Vec::new();
    let mut confusions = Vec::new();
    let is_vlm4d = published::is_vlm4d(dir);
    for format in Format::ALL {
        let (Some(early), Some(late)) = (early.get(&format), late.get(&format)) else { continue };
        formats.push(context! {
            title => accuracy::title(format),
            table => accuracy::table(early, late).html(),
            change => accuracy::change(&paired(before, after, format, seed), early, late),
            controls => controls::table(stages, format).map(|table| table.html()),
            worth => controls::worth(stages, format),
        });
        charts.push(by_group(format, &early.breakdown, &late.breakdown, is_vlm4d));
        for (name, predictions) in [("before", before), ("after", after)] {
            if let Some(c) = confusion(predictions, format) {
                let title = format!("{} {name}", format.name().to_uppercase());
                confusions.push(svg::heat_map(&title, &c.rows, &c.columns, &c.counts));
            }
        }
    }
    let (split, split_seed) = split::told(dir, recipe)?;
    render(
        "report.html",
        context! {
            title => title(dir),
            model => recipe.model.held(&recipe.model.name()),
            trained_on => split::trained_on(&split::limited(dir, recipe)?, &recipe.data.train),
            tested_on => recipe.data.test_subsets().join(" + "),
            seed,
            split,
            split_seed,
            formats,
            charts,
            curves => curves(dir)?,
            confusions,
            data => picture(&dir.join(crate::report::data::PICTURE)),
            recipe => recipe.to_toml()?,
            intervals => accuracy::INTERVALS,
            p => accuracy::P,
            small => accuracy::small(),
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

/// Accuracy by group, before and after, against guessing and, on VLM4D's questions, humans.
fn by_group(format: Format, early: &Breakdown, late: &Breakdown, is_vlm4d: bool) -> String {
    // Of all questions only where they are of all groups: its figure is over both subsets.
    let is_whole = format == Format::Mc && published::is_whole(late.group.keys());
    let of_humans = |name: &str| match name {
        "all" => is_whole.then_some(published::HUMAN_OVERALL),
        name => published::human(format, name),
    };
    let mark = |series, metric: &Metric| {
        let [low, high] = metric.ci95;
        Mark { series, value: metric.accuracy, low, high }
    };
    let row = |(name, before, after): (&str, Metric, Metric)| Interval {
        label: format!("{name} (n {})", after.n),
        marks: vec![mark(0, &before), mark(1, &after)],
        references: of_humans(name)
            .filter(|_| is_vlm4d)
            .map(|share| (published::HUMAN, share))
            .into_iter()
            .collect(),
    };
    let rows: Vec<Interval> = accuracy::rows(early, late).into_iter().map(row).collect();
    svg::intervals(accuracy::title(format), &["before", "after"], &rows, late.overall.chance)
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
    let validations = log::read_validations(dir)?;
    let validated = |name: &str, value: &dyn Fn(&Scores) -> Option<f64>| -> Option<Line> {
        let point = |v: &Validation| Some((v.step as f64, value(&v.scores)?));
        let points: Vec<_> = validations.iter().filter_map(point).collect();
        (!points.is_empty()).then(|| line(name, points, false))
    };
    let mut loss = with_mean(of(&|r| r.loss));
    loss.extend(validated("validation", &|scores| Some(scores.loss)));
    let accuracy: Vec<Line> = Format::ALL
        .into_iter()
        .filter_map(|format| {
            let name = format.name().to_uppercase();
            validated(&name, &|scores| scores.accuracy.get(&format).map(|share| 100.0 * share))
        })
        .collect();
    let charts = [
        svg::lines("Loss", "step", &loss),
        svg::lines("Validation accuracy, %", "step", &accuracy),
        svg::lines("Learning rate", "step", &[line("lr", of(&|r| r.lr), false)]),
        svg::lines("Gradient norm", "step", &with_mean(of(&|r| r.grad_norm))),
    ];
    Ok(charts.into_iter().flatten().collect())
}
