//! What is wrong with a data set, before it is told which file it stands in.

use std::fs;
use std::path::{Path, PathBuf};

use super::chat::spelled_pad;
use crate::error::{Error, Result};
use crate::files::{io_reason, json_place, json_reason};

/// One thing wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line and column, both from 1, where the file cannot be parsed.
    pub place: Option<(usize, usize)>,
    /// What is wrong: `item 3 (validation_4): …`.
    pub what: String,
    /// How to fix it; empty where that is plain.
    pub help: &'static str,
}

/// Something wrong at no place of its own.
pub(super) fn fault(what: impl Into<String>, help: &'static str) -> Fault {
    Fault { place: None, what: what.into(), help }
}

impl Fault {
    /// Checks that a text spells nothing that stands for an image or a video.
    pub(super) fn no_pads(text: &str) -> Result<(), Self> {
        match spelled_pad(text) {
            None => Ok(()),
            Some(pad) => Err(fault(
                format!("spells `{pad}`"),
                "the model would take it for an image or a video: spell it in another way",
            )),
        }
    }

    /// The same, said of `part` of the file.
    pub(super) fn of(self, part: &str) -> Self {
        Self { what: format!("{part}: {}", self.what), ..self }
    }

    /// As the error of a run that needs the file.
    pub fn in_file(self, path: &Path) -> Error {
        let place = self.place.map(|(line, column)| format!(":{line}:{column}"));
        let shown = path.display();
        let error = Error::input(format!("{shown}{}: {}", place.unwrap_or_default(), self.what));
        if self.help.is_empty() { error } else { error.help(self.help) }
    }
}

/// A file's text, without a byte order mark.
pub(super) fn read_text(path: &Path) -> Result<String, Fault> {
    let mut text = fs::read_to_string(path).map_err(|e| fault(io_reason(&e), ""))?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.remove(0);
    }
    Ok(text)
}

const BYTE_ORDER_MARK: char = '\u{feff}';

/// A file, read as far as that goes.
#[derive(Clone, Debug)]
pub struct Inspected<T> {
    /// The file.
    pub path: PathBuf,
    /// What could be read.
    pub items: Vec<T>,
    /// What could not, in the file's order.
    pub faults: Vec<Fault>,
}

impl<T> Inspected<T> {
    /// A file of which nothing can be read.
    pub(super) fn lost(path: PathBuf, fault: Fault) -> Self {
        Self { path, items: vec![], faults: vec![fault] }
    }

    /// The same, where it is a fault that there is nothing in the file.
    pub(super) fn not_empty(mut self) -> Self {
        if self.items.is_empty() && self.faults.is_empty() {
            self.faults.push(fault("holds no questions", ""));
        }
        self
    }

    /// All of the file.
    ///
    /// # Errors
    /// The first thing wrong with it.
    pub fn whole(self) -> Result<Vec<T>> {
        match self.faults.into_iter().next() {
            Some(fault) => Err(fault.in_file(&self.path)),
            None => Ok(self.items),
        }
    }
}

/// Parses a file, or the line `first_line` of one.
pub(super) fn parse_json<T: serde::de::DeserializeOwned>(
    text: &str,
    first_line: usize,
) -> Result<T, Fault> {
    serde_json::from_str(text).map_err(|e| {
        let (line, column) = json_place(&e);
        Fault { place: Some((first_line + line - 1, column)), what: json_reason(&e), help: "" }
    })
}
