//! A table that is printed, written as Markdown or set in HTML, all from one description.

use std::fmt::Write;

use super::text::escape;

/// Rows of text under a head; the first `left` columns are set left, the others right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Names of the columns.
    pub head: Vec<String>,
    /// One text per column each.
    pub rows: Vec<Vec<String>>,
    /// Columns of names, which stand first; the others hold numbers.
    pub left: usize,
}

impl Table {
    /// A table without rows.
    pub fn new(left: usize, head: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { head: head.into_iter().map(Into::into).collect(), rows: vec![], left }
    }

    /// Leaves out the columns in which no row has anything.
    pub fn without_empty_columns(self) -> Self {
        let used = |column: usize| self.rows.iter().any(|row| !row[column].is_empty());
        let kept: Vec<usize> = (0..self.head.len()).filter(|c| used(*c)).collect();
        let pick = |row: &Vec<String>| kept.iter().map(|c| row[*c].clone()).collect();
        Self {
            head: pick(&self.head),
            rows: self.rows.iter().map(pick).collect(),
            left: kept.iter().filter(|c| **c < self.left).count(),
        }
    }

    /// In columns, for a terminal.
    pub fn terminal(&self) -> String {
        let lines = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| {
            lines().map(|row| row[column].chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let mut text = String::new();
        for row in lines() {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                match column < self.left {
                    true => format!("{cell:<width$}"),
                    false => format!("{cell:>width$}"),
                }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule = |column| if column < self.left { "---|" } else { "---:|" };
        let rules: String = (0..self.head.len()).map(rule).collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}|{rules}\n{rows}", line(&self.head))
    }

    /// As an HTML table.
    pub fn html(&self) -> String {
        let cells = |cells: &[String], head: bool| -> String {
            let tag = |column: usize| match (head, column < self.left) {
                (true, true) => ("<th scope=\"col\">", "</th>"),
                (true, false) => ("<th scope=\"col\" class=\"n\">", "</th>"),
                (false, true) => ("<td>", "</td>"),
                (false, false) => ("<td class=\"n\">", "</td>"),
            };
            let cell = |(column, text): (usize, &String)| {
                let (open, close) = tag(column);
                format!("{open}{}{close}", escape(text))
            };
            format!("<tr>{}</tr>", cells.iter().enumerate().map(cell).collect::<String>())
        };
        let rows: String = self.rows.iter().map(|row| cells(row, false) + "\n").collect();
        format!(
            "<div class=\"scroll\"><table>\n<thead>{}</thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n",
            cells(&self.head, true)
        )
    }
}
