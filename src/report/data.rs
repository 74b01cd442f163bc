//! What a data set holds and what its texts speak of, as tables and pictures.

use std::fmt::Write;

use super::svg::text;
use super::table::Table;
use super::text::{escape, legible};
use crate::data::stats::{Count, Stats, Subset};
use crate::data::terms::{Counts, TERMS};
use crate::number::thousands;

/// The picture's file in a run's folder.
pub const PICTURE: &str = "data.svg";

/// Answers that are shown by name.
const ANSWERS: usize = 10;
/// Questions on one file that have a column of their own.
const PER_FILE: usize = 9;

/// `part` of `whole` in percent.
fn percent(part: usize, whole: usize) -> String {
    format!("{:.1}", 100.0 * part as f64 / whole.max(1) as f64)
}

/// The tables of `data stats`.
pub fn tables(stats: &Stats) -> String {
    let mut parts = vec![kinds(stats).terminal(), per_file(stats).terminal()];
    if stats.subsets.iter().any(|subset| !subset.letters.is_empty()) {
        parts.push(letters(stats).terminal());
    }
    parts.push(answers(stats).terminal());
    parts.join("\n")
}

fn kinds(stats: &Stats) -> Table {
    let (files, mean) = (format!("{}s", stats.medium), format!("questions/{}", stats.medium));
    let head = ["subset", "source", "group", "questions", &files, &mean];
    let mut table = Table::new(3, head);
    let row = |names: [&str; 3], count: &Count| {
        let mean = count.questions as f64 / count.files.max(1) as f64;
        let mean = if count.files == 0 { String::new() } else { format!("{mean:.2}") };
        let numbers = [thousands(count.questions), thousands(count.files), mean];
        names.map(str::to_owned).into_iter().chain(numbers).collect()
    };
    for subset in &stats.subsets {
        for ((source, group), count) in &subset.kinds {
            table.rows.push(row([&subset.name, source, group], count));
        }
        table.rows.push(row([&subset.name, "all", ""], &subset.all));
    }
    table
}

/// Name and number of files for each number of questions on one, the last for all above.
fn histogram(subset: &Subset) -> Vec<(String, usize)> {
    let many: usize = subset.per_file.range(PER_FILE + 1..).map(|(_, n)| n).sum();
    let of = |n| (n, subset.per_file.get(&n).copied().unwrap_or_default());
    let few = (1..=PER_FILE).map(of).map(|(n, files)| (n.to_string(), files));
    few.chain([(format!("{}+", PER_FILE + 1), many)]).collect()
}

fn per_file(stats: &Stats) -> Table {
    let columns = histogram(&Subset::default()).into_iter().map(|(name, _)| name);
    let head = [format!("{}s with so many questions", stats.medium)].into_iter().chain(columns);
    let mut table = Table::new(1, head);
    for subset in &stats.subsets {
        let cells = histogram(subset).into_iter().map(|(_, n)| match n {
            0 => String::new(),
            n => thousands(n),
        });
        table.rows.push([subset.name.clone()].into_iter().chain(cells).collect());
    }
    table.without_empty_columns()
}

fn letters(stats: &Stats) -> Table {
    let most = stats.subsets.iter().map(|subset| subset.letters.len()).max().unwrap_or_default();
    let head = ["gold letter, %".to_owned()].into_iter().chain(letter_names(most));
    let mut table = Table::new(1, head);
    for subset in &stats.subsets {
        let total = subset.letters.iter().sum();
        let cells = (0..most).map(|i| match subset.letters.get(i) {
            Some(n) => percent(*n, total),
            None => String::new(),
        });
        table.rows.push([subset.name.clone()].into_iter().chain(cells).collect());
    }
    table
}

fn letter_names(n: usize) -> impl Iterator<Item = String> {
    (0..n).map(|i| crate::data::vlm4d::letter(i).to_string())
}

/// The commonest answers, and the others as one.
fn common(subset: &Subset) -> Vec<(String, usize)> {
    let (named, others) = subset.answers.split_at(subset.answers.len().min(ANSWERS));
    let mut common = named.to_vec();
    if !others.is_empty() {
        let n = others.iter().map(|(_, n)| n).sum();
        common.push((format!("{} others", thousands(others.len())), n));
    }
    common
}

fn answers(stats: &Stats) -> Table {
    let mut table = Table::new(2, ["subset", "answer", "questions", "%"]);
    for subset in &stats.subsets {
        for (answer, n) in common(subset) {
            let share = percent(n, subset.all.questions);
            table.rows.push(vec![subset.name.clone(), short(&answer), thousands(n), share]);
        }
    }
    table
}

/// The beginning of a long answer, on one line.
fn short(text: &str) -> String {
    const MOST: usize = 40;
    let line = legible(text).split_whitespace().collect::<Vec<_>>().join(" ");
    match line.chars().count() > MOST {
        true => line.chars().take(MOST - 1).chain(['…']).collect(),
        false => line,
    }
}

/// Width of the pictures, in their own units.
const WIDTH: f64 = 720.0;
/// Where bars and cells begin, right of their names.
const LEFT: f64 = 250.0;
/// Height of a row.
const ROW: f64 = 20.0;

/// A standing SVG of `body`, light and dark by the reader's preference.
fn svg(height: f64, title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"data\" width=\"{WIDTH}\" \
         height=\"{height:.0}\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" \
         aria-label=\"{title}\"><style>.data{{font:13px system-ui,sans-serif;background:#fff;\
         max-width:100%;height:auto}}.data text{{fill:#1f2328}}.data .head{{font-weight:600}}\
         .data .pale{{fill:#59636e}}.data rect{{fill:#0969da}}.data .on{{fill:#fff}}\
         @media(prefers-color-scheme:dark){{.data{{background:#0d1117}}.data text{{fill:#e6edf3}}\
         .data .pale{{fill:#9198a1}}.data rect{{fill:#4493f8}}.data .on{{fill:#0d1117}}}}</style>\
         <title>{title}</title>{body}</svg>\n"
    )
}

/// A bar: its name, its length and what stands behind it.
type Bar = (String, usize, String);

/// The picture of a data set: by source, by questions on a file and by answer.
pub fn picture(stats: &Stats) -> String {
    let mut groups: Vec<(String, Vec<Bar>)> = Vec::new();
    let medium = stats.medium;
    for subset in &stats.subsets {
        let name = &subset.name;
        let kind = |((source, group), count): (&(String, String), &Count)| {
            let files = thousands(count.files);
            let behind = format!("{} on {files} {medium}s", thousands(count.questions));
            let name = if source == group { source.clone() } else { format!("{source}, {group}") };
            (name, count.questions, behind)
        };
        groups.push((format!("{name}: questions"), subset.kinds.iter().map(kind).collect()));
        let files = histogram(subset).into_iter().filter(|(_, n)| *n > 0);
        let files = files.map(|(name, n)| (format!("{name} on a {medium}"), n, thousands(n)));
        groups.push((format!("{name}: {medium}s by their questions"), files.collect()));
        let answers = common(subset).into_iter().enumerate().map(|(i, (answer, n))| {
            let behind = format!("{} ({} %)", thousands(n), percent(n, subset.all.questions));
            // the rest has no bar: it would outgrow each answer's own
            (short(&answer), if i < ANSWERS { n } else { 0 }, behind)
        });
        groups.push((format!("{name}: answers"), answers.collect()));
    }
    let mut body = String::new();
    let mut y = 8.0;
    for (head, bars) in groups.iter().filter(|(_, bars)| !bars.is_empty()) {
        y += ROW;
        body += &text("head", 12.0, y, "start", head);
        y += 8.0;
        let most = bars.iter().map(|bar| bar.1).max().unwrap_or(1).max(1);
        for (name, n, behind) in bars {
            let width = (WIDTH - LEFT - 170.0) * *n as f64 / most as f64;
            body += &text("", LEFT - 8.0, y + 14.0, "end", &short(name));
            let _ = write!(
                body,
                "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=\"2\"/>",
                y + 3.0,
                ROW - 6.0
            );
            body += &text("pale", LEFT + width + 6.0, y + 14.0, "start", behind);
            y += ROW;
        }
        y += 8.0;
    }
    svg(y + 8.0, "What the data holds", &body)
}

/// The table of `data terms`: by term and by kind, the share of each file's records that have it,
/// and how often it stands there.
pub fn terms_table(files: &[Counts]) -> String {
    let names = files.iter().map(|file| format!("{}, %", file.name));
    let head = ["kind", "term"]
        .map(str::to_owned)
        .into_iter()
        .chain(names.zip(files).flat_map(|(name, _)| [name, "times".to_owned()]));
    let mut table = Table::new(2, head);
    for (i, term) in TERMS.iter().enumerate() {
        let cells = files
            .iter()
            .flat_map(|file| [percent(file.having[i], file.records), thousands(file.times[i])]);
        let names = [term.kind, term.name].map(str::to_owned);
        table.rows.push(names.into_iter().chain(cells).collect());
        let is_last = TERMS.get(i + 1).is_none_or(|next| next.kind != term.kind);
        if is_last {
            let cells = files.iter().flat_map(|file| {
                let any = file.having_kind.iter().find(|(kind, _)| *kind == term.kind);
                let of_kind = TERMS.iter().zip(&file.times).filter(|(t, _)| t.kind == term.kind);
                let times = of_kind.map(|(_, times)| times).sum();
                [percent(any.map_or(0, |(_, n)| *n), file.records), thousands(times)]
            });
            let names = [term.kind, "any of these"].map(str::to_owned);
            table.rows.push(names.into_iter().chain(cells).collect());
        }
    }
    let mut text = table.terminal();
    for file in files {
        let (records, words) = (thousands(file.records), thousands(file.words));
        let _ = writeln!(text, "{}: {records} texts, {words} words", file.name);
    }
    text
}

/// The heat map of `data terms`: a row for each term, a column for each file; the darker the larger
/// the share of its records that have the term.
pub fn terms_heat_map(files: &[Counts]) -> String {
    let wide = (WIDTH - LEFT - 12.0) / files.len().max(1) as f64;
    let fits = |file: &Counts| file.name.chars().count() as f64 * 8.0 < wide;
    let top = if files.iter().all(fits) { 60.0 } else { 130.0 };
    let mut body = text("head", 12.0, 24.0, "start", "Texts that have a word of motion, %");
    for (c, file) in files.iter().enumerate() {
        let x = LEFT + wide * (c as f64 + 0.5);
        if fits(file) {
            body += &text("", x, top - 10.0, "middle", &file.name);
        } else {
            let _ = write!(
                body,
                "<text transform=\"translate({x:.1} {:.1}) rotate(-35)\">{}</text>",
                top - 8.0,
                escape(&file.name.chars().take(20).collect::<String>())
            );
        }
    }
    let mut y = top;
    let mut kind = "";
    for (i, term) in TERMS.iter().enumerate() {
        if term.kind != kind {
            y += if kind.is_empty() { 0.0 } else { 8.0 };
            kind = term.kind;
            body += &text("head", 12.0, y + 15.0, "start", kind);
        }
        body += &text("", LEFT - 8.0, y + 15.0, "end", term.name);
        for (c, file) in files.iter().enumerate() {
            let share = file.having[i] as f64 / file.records.max(1) as f64;
            let x = LEFT + wide * c as f64;
            let _ = write!(
                body,
                "<g><title>{}: {} in {} of {}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" \
                 width=\"{:.1}\" height=\"{:.1}\" fill-opacity=\"{:.3}\"/>",
                escape(&file.name),
                term.name,
                thousands(file.having[i]),
                thousands(file.records),
                wide - 2.0,
                ROW - 2.0,
                0.04 + 0.96 * share.sqrt()
            );
            let class = if share.sqrt() > 0.8 { "on" } else { "" };
            let label = percent(file.having[i], file.records);
            body += &text(class, x + wide / 2.0, y + 14.0, "middle", &label);
            body += "</g>";
        }
        y += ROW;
    }
    svg(y + 12.0, "How often texts speak of motion", &body)
}
