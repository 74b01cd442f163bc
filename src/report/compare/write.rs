//! A comparison for people and programs: terminal, Markdown, CSV and HTML.

use std::path::{Path, PathBuf};

use super::{Change, Comparison, FORMATS, Row, Score};
use crate::data::vlm4d::Format;
use crate::error::{Error, Result};
use crate::files;
use crate::number::thousands;
use crate::report::accuracy::{self, interval, points};
use crate::report::html;
use crate::report::published;
use crate::report::svg::{self, Interval, Mark};
use crate::report::table::Table;
use crate::report::terminal::Terminal;

const FILES: [&str; 4] = ["compare.md", "compare.csv", "compare_differences.csv", "compare.html"];

/// Differences on the terminal.
const SHOWN: usize = 30;

/// Whether `path` is a file that [`Comparison::write`] made: shells put them among the runs.
pub fn is_output(path: &Path) -> bool {
    path.is_file() && path.file_name().is_some_and(|name| FILES.iter().any(|file| name == *file))
}

impl Comparison {
    /// Prints tables and notes; of many differences some, the others being written or not.
    pub fn print(&self, is_written: bool, terminal: &Terminal) {
        terminal.line(&format!("tested on {}", self.tested_on));
        terminal.line("");
        terminal.line(self.accuracies().terminal().trim_end());
        let mut changes = self.changes();
        let others = changes.rows.len().saturating_sub(SHOWN);
        changes.rows.truncate(SHOWN);
        if !changes.rows.is_empty() {
            terminal.line("");
            terminal.line(changes.terminal().trim_end());
        }
        terminal.line("");
        if others > 0 {
            let place = if is_written { "compare.md has" } else { "--out DIR writes" };
            terminal.note(&format!("{} more differences: {place} all", thousands(others)));
        }
        for note in self.all_notes() {
            terminal.note(&note);
        }
    }

    /// Writes `compare.md`, `compare.csv`, `compare_differences.csv` and `compare.html` into `dir`.
    /// Returns their paths.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn write(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        files::create_dir(dir)?;
        let contents = [self.markdown(), self.csv(), self.differences_csv(), self.html(dir)?];
        let paths = FILES.map(|file| dir.join(file));
        for (path, content) in paths.iter().zip(contents) {
            files::write(path, content)?;
        }
        Ok(paths.into())
    }

    fn all_notes(&self) -> Vec<String> {
        let guessing = self
            .chance
            .map(|chance| format!("Guessing would get {:.1} in multiple choice.", 100.0 * chance));
        guessing.into_iter().chain(self.notes.iter().cloned()).collect()
    }

    /// The paper's Table 2.
    fn accuracies(&self) -> Table {
        let mut head = vec!["model", "trained on", "settings", "runs"];
        for format in FORMATS {
            head.extend(match format {
                Format::Ff => ["FF", "FF paper"],
                Format::Mc => ["MC", "MC paper"],
            });
        }
        let mut table = Table::new(3, head);
        for row in &self.rows {
            let runs = if row.runs.len() > 1 { row.runs.len().to_string() } else { String::new() };
            let mut cells =
                vec![row.model.clone(), row.trained_on.clone(), row.settings.clone(), runs];
            for format in FORMATS {
                cells.push(row.scores.get(&format).map(cell).unwrap_or_default());
                cells.push(row.published.map(|p| p.cell(format)).unwrap_or_default());
            }
            table.rows.push(cells);
        }
        table.without_empty_columns()
    }

    /// Differences with their intervals.
    fn changes(&self) -> Table {
        let mut table = Table::new(2, ["model", "difference", "FF", "p", "MC", "p"]);
        for difference in &self.differences {
            let mut cells = vec![difference.model.clone(), difference.what.clone()];
            for format in FORMATS {
                let change = difference.changes.get(&format);
                cells.push(change.map(|change| points(&change.paired)).unwrap_or_default());
                cells.push(change.map(p_cell).unwrap_or_default());
            }
            table.rows.push(cells);
        }
        table.without_empty_columns()
    }

    /// Accuracy per group in one format.
    fn groups(&self, format: Format) -> Option<Table> {
        let of = |row: &Row| row.scores.get(&format).map(|score| score.groups.clone());
        let names: std::collections::BTreeSet<String> = self
            .rows
            .iter()
            .filter_map(of)
            .flat_map(std::collections::BTreeMap::into_keys)
            .collect();
        if names.len() < 2 {
            return None;
        }
        let head = ["model", "trained on", "settings"].map(str::to_owned).into_iter();
        let mut table = Table::new(3, head.chain(names.iter().cloned()));
        for row in &self.rows {
            let Some(groups) = of(row) else { continue };
            let mut cells = vec![row.model.clone(), row.trained_on.clone(), row.settings.clone()];
            cells.extend(
                names.iter().map(|name| groups.get(name).map(interval).unwrap_or_default()),
            );
            table.rows.push(cells);
        }
        let human = |name: &String| published::human(format, name).filter(|_| self.is_vlm4d);
        if names.iter().any(|name| human(name).is_some()) {
            let mut cells = vec![published::HUMAN.to_owned(), String::new(), String::new()];
            cells.extend(
                names.iter().map(|name| {
                    human(name).map(|h| format!("{:.1}", 100.0 * h)).unwrap_or_default()
                }),
            );
            table.rows.push(cells);
        }
        Some(table.without_empty_columns())
    }

    fn markdown(&self) -> String {
        let mut parts = vec![
            format!("# Comparison\n\nTested on {}.\n", self.tested_on),
            self.accuracies().markdown(),
        ];
        if !self.differences.is_empty() {
            parts.push("## Differences, in points\n".into());
            parts.push(self.changes().markdown());
        }
        for (format, table) in FORMATS.into_iter().filter_map(|f| Some((f, self.groups(f)?))) {
            parts.push(format!("## {} by group\n", accuracy::title(format)));
            parts.push(table.markdown());
        }
        parts.push("## How to read this\n".into());
        parts.extend(self.all_notes().iter().map(|note| format!("- {note}")));
        parts.join("\n") + "\n"
    }

    /// One line per row, format and group; accuracies are shares of the answers of all runs.
    fn csv(&self) -> String {
        let mut csv = Csv::new(&[
            "model",
            "trained_on",
            "settings",
            "runs",
            "format",
            "questions",
            "n",
            "accuracy",
            "ci95_low",
            "ci95_high",
            "deviation",
            "unanswered",
            "paper",
            "paper_revised",
            "folders",
        ]);
        for row in &self.rows {
            for (format, score) in &row.scores {
                let paper = row.published.map(|p| match format {
                    Format::Ff => [p.ff, p.ff],
                    Format::Mc => [p.mc, p.mc_revised],
                });
                let paper = paper.map(|both| both.map(|percent| format!("{:.3}", percent / 100.0)));
                let [first, revised] = paper.unwrap_or_default();
                let folders: Vec<String> =
                    row.runs.iter().map(|dir| dir.display().to_string()).collect();
                let all = (String::from("all"), &score.overall);
                let groups = score.groups.iter().map(|(name, metric)| (name.clone(), metric));
                for (questions, metric) in std::iter::once(all).chain(groups) {
                    let whole = questions == "all";
                    let only = |text: String| if whole { text } else { String::new() };
                    csv.line(&[
                        row.model.clone(),
                        row.trained_on.clone(),
                        row.settings.clone(),
                        row.runs.len().to_string(),
                        format.name().to_owned(),
                        questions,
                        metric.n.to_string(),
                        metric.accuracy.to_string(),
                        metric.ci95[0].to_string(),
                        metric.ci95[1].to_string(),
                        only(score.deviation.map(|d| d.to_string()).unwrap_or_default()),
                        only(score.unanswered.to_string()),
                        only(first.clone()),
                        only(revised.clone()),
                        folders.join(" "),
                    ]);
                }
            }
        }
        csv.0
    }

    fn differences_csv(&self) -> String {
        let mut csv = Csv::new(&[
            "model",
            "difference",
            "format",
            "n",
            "points",
            "ci95_low",
            "ci95_high",
            "fixed",
            "broken",
            "p",
        ]);
        for difference in &self.differences {
            for (format, change) in &difference.changes {
                let paired = &change.paired;
                csv.line(&[
                    difference.model.clone(),
                    difference.what.clone(),
                    format.name().to_owned(),
                    paired.n.to_string(),
                    (100.0 * paired.difference).to_string(),
                    (100.0 * paired.ci95[0]).to_string(),
                    (100.0 * paired.ci95[1]).to_string(),
                    paired.fixed.to_string(),
                    paired.broken.to_string(),
                    if change.single { paired.p.to_string() } else { String::new() },
                ]);
            }
        }
        csv.0
    }

    fn html(&self, dir: &Path) -> Result<String> {
        let groups: Vec<_> = FORMATS
            .into_iter()
            .filter_map(|f| {
                let table = self.groups(f)?.html();
                Some(minijinja::context! { title => format!("{} by group", accuracy::title(f)), table })
            })
            .collect();
        let charts: Vec<String> =
            FORMATS.into_iter().filter_map(|format| self.chart(format)).collect();
        let runs: Vec<_> = self
            .rows
            .iter()
            .filter(|row| !row.trained_on.starts_with(super::ORIGINAL))
            .flat_map(|row| row.runs.iter().map(move |run| (row, run)))
            .map(|(row, run)| {
                minijinja::context! {
                    name => format!("{} {}", row.model, row.trained_on),
                    folder => run.display().to_string(),
                    href => html::relative(dir, &run.join("report.html")),
                }
            })
            .collect();
        html::render(
            "compare.html",
            minijinja::context! {
                title => "Comparison",
                tested_on => &self.tested_on,
                accuracies => self.accuracies().html(),
                changes => (!self.differences.is_empty()).then(|| self.changes().html()),
                charts,
                groups,
                notes => self.all_notes(),
                runs,
            },
        )
    }

    fn chart(&self, format: Format) -> Option<String> {
        let rows: Vec<Interval> = self
            .rows
            .iter()
            .filter_map(|row| {
                let score = row.scores.get(&format)?;
                let [low, high] = score.overall.ci95;
                let label = [&*row.model, &row.trained_on, &row.settings];
                let label: Vec<&str> = label.into_iter().filter(|part| !part.is_empty()).collect();
                let series = usize::from(!row.trained_on.starts_with(super::ORIGINAL));
                let value = score.overall.accuracy;
                let mut references = Vec::new();
                if let Some(paper) = row.published {
                    let paper = if format == Format::Mc { paper.mc } else { paper.ff };
                    references.push(("paper", paper / 100.0));
                }
                Some(Interval {
                    label: label.join(", "),
                    marks: vec![Mark { series, value, low, high }],
                    references,
                })
            })
            .collect();
        let chance = self.chance.filter(|_| format == Format::Mc);
        let names = ["original", "trained"];
        (!rows.is_empty()).then(|| svg::intervals(accuracy::title(format), &names, &rows, chance))
    }
}

/// `50.7 ± 1.2 [45.0, 56.2]`.
fn cell(score: &Score) -> String {
    match score.deviation {
        None => interval(&score.overall),
        Some(deviation) => {
            let text = interval(&score.overall);
            let (value, rest) = text.split_once(' ').unwrap_or((&text, ""));
            format!("{value} ± {:.1} {rest}", 100.0 * deviation)
        }
    }
}

fn p_cell(change: &Change) -> String {
    match change.single {
        true => accuracy::p(change.paired.p),
        false => String::new(),
    }
}

/// Comma-separated values as RFC 4180 has them.
struct Csv(String);

impl Csv {
    fn new(head: &[&str]) -> Self {
        Self(head.join(",") + "\n")
    }

    fn line(&mut self, cells: &[String]) {
        let quoted = cells.iter().map(|cell| match cell.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", cell.replace('"', "\"\"")),
            false => cell.clone(),
        });
        self.0 += &(quoted.collect::<Vec<_>>().join(",") + "\n");
    }
}

/// Compares the runs in `dirs`, prints the result, and writes it into `out` where that is given.
///
/// # Errors
/// Where the runs cannot be compared or the disk refuses.
pub fn compare(dirs: &[PathBuf], out: Option<&Path>, terminal: &Terminal) -> Result<()> {
    out.map_or(Ok(()), files::check_writable)?;
    let (runs, left_out) = super::find(dirs)?;
    let mut comparison = Comparison::new(&runs)?;
    comparison.notes.extend(left_out);
    comparison.print(out.is_some(), terminal);
    if let Some(out) = out {
        let paths = comparison.write(out)?;
        let shown: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        terminal.line(&format!("comparison {}", shown.join("  ")));
    }
    Ok(())
}

/// The folder above all of `dirs`.
///
/// # Errors
/// Where there is none.
pub fn common_folder(dirs: &[PathBuf]) -> Result<PathBuf> {
    let first = dirs.first().and_then(|dir| dir.parent());
    let above = first.and_then(|first| {
        first.ancestors().find(|above| dirs.iter().all(|dir| dir.starts_with(above)))
    });
    above.map(Path::to_owned).ok_or_else(|| Error::run("the runs have no common folder"))
}
