//! Charts as inline SVG: numbers in, one `<svg>` out, without script.
//!
//! Colours are classes (`s0`, `s1` for the series, `grid`, `mark`, `cell`) that `style.css` fills,
//! so that one picture serves a light and a dark page. Lengths are in the picture's own units; the
//! page scales it to its column.

use std::fmt::Write;

use super::text::escape;

/// Width of every chart.
const WIDTH: f64 = 560.0;

/// An accuracy (a share) with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark {
    /// Which of the chart's series it belongs to.
    pub series: usize,
    /// The share.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// One row of [`intervals`].
#[derive(Clone, Debug, PartialEq)]
pub struct Interval {
    /// Its name.
    pub label: String,
    /// At most one per series.
    pub marks: Vec<Mark>,
    /// Numbers of others to stand beside: name and share.
    pub references: Vec<(&'static str, f64)>,
}

/// Accuracies with their intervals from 0 to 100 %, one row each; `chance` is a dashed line.
pub fn intervals(title: &str, series: &[&str], rows: &[Interval], chance: Option<f64>) -> String {
    const LEFT: f64 = 8.0;
    const RIGHT: f64 = 8.0;
    const TOP: f64 = 58.0;
    let row_height = |row: &Interval| 26.0 + 11.0 * row.marks.len().max(1) as f64;
    let height = TOP + rows.iter().map(row_height).sum::<f64>() + 26.0;
    let x = |share: f64| LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT);
    let mut body = String::new();
    let mut legend: Vec<(String, &str)> =
        series.iter().enumerate().map(|(i, name)| (format!("s{i}"), *name)).collect();
    for name in rows.iter().flat_map(|row| &row.references).map(|(name, _)| *name) {
        if !legend.iter().any(|(_, known)| *known == name) {
            legend.push(("ref".into(), name));
        }
    }
    body += &legend_line(&legend, 40.0);
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        body += &line("grid", [x(tick), TOP - 6.0, x(tick), height - 22.0]);
        let anchor = if tick == 0.0 {
            "start"
        } else if tick == 1.0 {
            "end"
        } else {
            "middle"
        };
        body += &text("tick", x(tick), height - 8.0, anchor, &format!("{:.0}", 100.0 * tick));
    }
    if let Some(chance) = chance {
        body += &line("chance", [x(chance), TOP - 6.0, x(chance), height - 22.0]);
        let label = format!("guessing {:.1}", 100.0 * chance);
        body += &text("tick", x(chance) + 4.0, height - 24.0, "start", &label);
    }
    let mut top = TOP;
    for row in rows {
        body += &text("label", LEFT, top + 12.0, "start", &row.label);
        let values: Vec<String> =
            row.marks.iter().map(|mark| format!("{:.1}", 100.0 * mark.value)).collect();
        body += &text("value", WIDTH - RIGHT, top + 12.0, "end", &values.join(" → "));
        for (i, mark) in row.marks.iter().enumerate() {
            let y = top + 24.0 + 11.0 * i as f64;
            let name = series.get(mark.series).unwrap_or(&"");
            let [value, low, high] = [mark.value, mark.low, mark.high].map(|share| 100.0 * share);
            let hint = format!("{}, {name}: {value:.1} [{low:.1}, {high:.1}]", row.label);
            let _ = write!(
                body,
                "<g class=\"mark s{}\"><title>{}</title>{}<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4.5\"/></g>",
                mark.series,
                escape(&hint),
                line("whisker", [x(mark.low), y, x(mark.high), y]),
                x(mark.value),
            );
        }
        for (name, share) in &row.references {
            let y = top + 24.0 + 11.0 * (row.marks.len().max(1) - 1) as f64 / 2.0;
            let hint = format!("{}, {name}: {:.1}", row.label, 100.0 * share);
            let (x, size) = (x(*share), 5.0);
            let _ = write!(
                body,
                "<path class=\"ref\" d=\"M{:.1} {y:.1}L{x:.1} {:.1}L{:.1} {y:.1}L{x:.1} {:.1}Z\"><title>{}</title></path>",
                x - size,
                y - size,
                x + size,
                y + size,
                escape(&hint)
            );
        }
        top += row_height(row);
    }
    picture(title, height, &body)
}

/// A line of [`lines`].
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Points from left to right.
    pub points: Vec<(f64, f64)>,
    /// Thin and pale: the noise behind another line.
    pub faint: bool,
}

/// Lines over a common axis, `x` named by `across`. Nothing where no line has a point.
pub fn lines(title: &str, across: &str, lines: &[Line]) -> Option<String> {
    const LEFT: f64 = 54.0;
    const RIGHT: f64 = 12.0;
    const TOP: f64 = 52.0;
    const BOTTOM: f64 = 36.0;
    const HEIGHT: f64 = 260.0;
    let points =
        || lines.iter().flat_map(|l| &l.points).filter(|p| p.0.is_finite() && p.1.is_finite());
    let range = |of: &dyn Fn(&(f64, f64)) -> f64| {
        points().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)))
    };
    let ((x0, x1), (low, high)) = (range(&|p| p.0), range(&|p| p.1));
    points().next()?;
    let ticks = nice_ticks(low.min(0.0), high);
    let (y0, y1) = (ticks[0], *ticks.last()?);
    let span = |a: f64, b: f64| if b > a { b - a } else { 1.0 };
    let x = |v: f64| LEFT + (v - x0) / span(x0, x1) * (WIDTH - LEFT - RIGHT);
    let y = |v: f64| HEIGHT - BOTTOM - (v - y0) / span(y0, y1) * (HEIGHT - TOP - BOTTOM);
    let mut body = String::new();
    let legend: Vec<(String, &str)> = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| !line.faint && !line.name.is_empty())
        .map(|(i, line)| (format!("s{i}"), &*line.name))
        .collect();
    if legend.len() > 1 {
        body += &legend_line(&legend, 40.0);
    }
    for tick in &ticks {
        body += &line("grid", [LEFT, y(*tick), WIDTH - RIGHT, y(*tick)]);
        body += &text("tick", LEFT - 6.0, y(*tick) + 4.0, "end", &short(*tick));
    }
    for (value, anchor) in [(x0, "start"), (x1, "end")] {
        body += &text("tick", x(value), HEIGHT - 18.0, anchor, &short(value));
    }
    body += &text("tick", LEFT.midpoint(WIDTH - RIGHT), HEIGHT - 4.0, "middle", across);
    for (i, line) in lines.iter().enumerate() {
        let points: Vec<String> = line
            .points
            .iter()
            .filter(|p| p.0.is_finite() && p.1.is_finite())
            .map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1)))
            .collect();
        let class = if line.faint { "curve faint" } else { "curve" };
        let _ = write!(
            body,
            "<polyline class=\"{class} s{i}\" points=\"{}\"><title>{}</title></polyline>",
            points.join(" "),
            escape(&line.name)
        );
    }
    Some(picture(title, HEIGHT, &body))
}

/// Counts of `rows` (what is right) taken for `columns` (what was answered); a cell is the darker
/// the larger its share of the row.
pub fn heat_map(title: &str, rows: &[String], columns: &[String], counts: &[Vec<usize>]) -> String {
    const LEFT: f64 = 132.0;
    const TOP: f64 = 118.0;
    let wide = (WIDTH - LEFT - 8.0) / columns.len().max(1) as f64;
    let high = wide.clamp(18.0, 32.0);
    let height = TOP + high * rows.len() as f64 + 10.0;
    let mut body = text("tick", LEFT - 8.0, TOP - 8.0, "end", "right answer");
    body += &text("tick", WIDTH - 8.0, 40.0, "end", "answered");
    for (c, name) in columns.iter().enumerate() {
        let x = LEFT + wide * (c as f64 + 0.5);
        let _ = write!(
            body,
            "<text class=\"tick\" text-anchor=\"start\" transform=\"translate({:.1} {:.1}) rotate(-50)\">{}</text>",
            x,
            TOP - 8.0,
            escape(name)
        );
    }
    for (r, (name, counts)) in rows.iter().zip(counts).enumerate() {
        let y = TOP + high * r as f64;
        let total: usize = counts.iter().sum();
        body += &text("label", LEFT - 8.0, y + high / 2.0 + 4.0, "end", name);
        for (c, count) in counts.iter().enumerate() {
            let share = *count as f64 / total.max(1) as f64;
            let x = LEFT + wide * c as f64;
            let right = if columns[c] == *name { " right" } else { "" };
            let dark = if share > 0.55 { " on" } else { "" };
            let hint = format!("{name} → {}: {count} of {total}", columns[c]);
            let _ = write!(
                body,
                "<g class=\"cell{right}\"><title>{}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill-opacity=\"{:.2}\"/>",
                escape(&hint),
                wide - 2.0,
                high - 2.0,
                if *count == 0 { 0.03 } else { 0.1 + 0.85 * share },
            );
            if *count > 0 {
                let (x, y) = (x + wide / 2.0 - 1.0, y + high / 2.0 + 3.0);
                body += &text(&format!("count{dark}"), x, y, "middle", &count.to_string());
            }
            body += "</g>";
        }
    }
    picture(title, height, &body)
}

fn picture(title: &str, height: f64, body: &str) -> String {
    let title = escape(title);
    format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{title}\">{}{body}</svg>",
        format_args!("<text class=\"title\" x=\"8\" y=\"18\">{title}</text>")
    )
}

fn legend_line(entries: &[(String, &str)], y: f64) -> String {
    let mut x = 8.0;
    let mut body = String::new();
    for (class, name) in entries {
        let _ = write!(
            body,
            "<g class=\"mark {class}\"><circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4.5\"/></g>",
            x + 5.0,
            y - 4.0
        );
        body += &text("tick", x + 14.0, y, "start", name);
        x += 32.0 + 6.8 * name.chars().count() as f64;
    }
    body
}

fn line(class: &str, [x1, y1, x2, y2]: [f64; 4]) -> String {
    format!("<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>")
}

/// A text at `(x, y)`.
pub(super) fn text(class: &str, x: f64, y: f64, anchor: &str, text: &str) -> String {
    format!(
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escape(text)
    )
}

/// Round numbers from at most `low` to at least `high`, three to seven of them.
fn nice_ticks(low: f64, high: f64) -> Vec<f64> {
    let span = if high > low { high - low } else { high.abs().max(1e-12) };
    let magnitude = 10f64.powf((span / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * magnitude);
    let step = step.into_iter().find(|step| span / step <= 5.0).unwrap_or(magnitude * 10.0);
    let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
    (first..=last.max(first + 1)).map(|i| i as f64 * step).collect()
}

/// `0.5`, `120`, `2e-5`.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        small if small < 1e-3 => {
            let text = format!("{value:.1e}");
            text.replace(".0e", "e")
        }
        large if large >= 100.0 => format!("{value:.0}"),
        _ => format!("{value:.4}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

/// At most `most` points: the mean of as many stretches of equal length.
pub fn thinned(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let length = points.len().div_ceil(most.max(1)).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(length).map(mean).collect()
}

/// Each point as the mean of itself and its neighbours, `reach` on either side.
pub fn smoothed(points: &[(f64, f64)], reach: usize) -> Vec<(f64, f64)> {
    let mean = |i: usize| {
        let part = &points[i.saturating_sub(reach)..(i + reach + 1).min(points.len())];
        (points[i].0, part.iter().map(|p| p.1).sum::<f64>() / part.len() as f64)
    };
    (0..points.len()).map(mean).collect()
}
