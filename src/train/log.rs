//! What a run says while it trains: `log.jsonl`, TensorBoard events, and the terminal.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::board::Board;
use super::validation::Validation;
use crate::error::{Error, Result};
use crate::files::{failed, io_reason};

const LOG: &str = "log.jsonl";
const VALIDATIONS: &str = "validation.jsonl";
const ADVICE: &str = "move the run's folder away and start anew";

/// One optimiser step, a line of `log.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Optimiser steps taken, this one included.
    pub step: usize,
    /// Passes over the samples, this step included.
    pub epoch: f64,
    /// Loss of the step before its update.
    pub loss: f64,
    /// Learning rate of the step: of several parts, that of the language model before the vision
    /// tower's, and this before the merger's.
    pub lr: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Samples of the step.
    pub samples: usize,
    /// Tokens of the step, prompt and video included.
    pub tokens: usize,
    /// Seconds that the step took.
    pub seconds: f64,
    /// Memory of the process, or of the GPU of those it trains on that holds most, in bytes.
    pub memory_bytes: u64,
}

/// Writes the records of a run.
pub struct Log {
    path: PathBuf,
    validations: PathBuf,
    board: Board,
}

impl Log {
    /// Opens the log of the run in `dir`; lines behind step `last_step`, and validations behind that
    /// of step `last_validation`, are dropped, since the run goes on from there.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn open(dir: &Path, last_step: usize, last_validation: usize) -> Result<Self> {
        let [path, validations] = [LOG, VALIDATIONS].map(|name| dir.join(name));
        keep_until(&path, last_step)?;
        if validations.exists() {
            keep_until(&validations, last_validation)?;
        }
        Ok(Self { path, validations, board: Board::open(dir, last_step)? })
    }

    /// Appends one step.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn step(&mut self, record: &Record) -> Result<()> {
        append(&self.path, record)?;
        let rate = |n: usize| n as f64 / record.seconds.max(1e-9);
        for (tag, value) in [
            ("train/loss", record.loss),
            ("train/lr", record.lr),
            ("train/grad_norm", record.grad_norm),
            ("train/epoch", record.epoch),
            ("speed/tokens_per_second", rate(record.tokens)),
            ("speed/samples_per_second", rate(record.samples)),
            ("memory/bytes", record.memory_bytes as f64),
        ] {
            self.board.scalar(tag, value, record.step)?;
        }
        Ok(())
    }

    /// Appends one validation.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn validation(&mut self, validation: &Validation) -> Result<()> {
        append(&self.validations, validation)?;
        let (scores, step) = (&validation.scores, validation.step);
        self.board.scalar("validation/loss", scores.loss, step)?;
        for (format, share) in &scores.accuracy {
            let tag = format!("validation/accuracy_{}", format.name());
            self.board.scalar(&tag, *share, step)?;
        }
        Ok(())
    }

    /// Adds the recipe to the TensorBoard events.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn recipe(&mut self, toml: &str) -> Result<()> {
        self.board.text("recipe", &format!("```toml\n{toml}```\n"), 0)
    }
}

/// Appends `value` as one line of JSON.
fn append(path: &Path, value: &impl Serialize) -> Result<()> {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.and_then(|mut file| file.write_all((serde_json::to_string(value)? + "\n").as_bytes()))
        .map_err(|e| failed(path, &e))
}

/// Drops the lines behind step `last_step`; the others stay as they are, to the last digit.
fn keep_until(path: &Path, last_step: usize) -> Result<()> {
    #[derive(Deserialize)]
    struct Line {
        step: usize,
    }
    let text = whole_lines(path)?;
    let mut kept = String::new();
    for (i, line) in text.lines().enumerate() {
        let Line { step } = parse(path, i, line)?;
        if step <= last_step {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    crate::files::write(path, kept)
}

/// The lines of a log; none where there is no file. A last one that a crash cut off is left out.
fn whole_lines(path: &Path) -> Result<String> {
    let mut text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(e) => {
            return Err(Error::input(format!("{}: {}", path.display(), io_reason(&e))).help(ADVICE));
        }
    };
    text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    Ok(text)
}

fn parse<T: DeserializeOwned>(path: &Path, i: usize, line: &str) -> Result<T> {
    serde_json::from_str(line).map_err(|e| {
        Error::input(format!("{}:{}: not a line of a log: {e}", path.display(), i + 1)).help(ADVICE)
    })
}

/// The records of a `log.jsonl`; none where there is no file. A last line that a crash cut off is
/// left out.
///
/// # Errors
/// Where the file cannot be read or holds something else.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    lines(path)
}

/// The validations of the run in `dir`; none where it has none.
///
/// # Errors
/// As [`read`].
pub fn read_validations(dir: &Path) -> Result<Vec<Validation>> {
    lines(&dir.join(VALIDATIONS))
}

/// What the lines of a log hold.
fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = whole_lines(path)?;
    text.lines().enumerate().map(|(i, line)| parse(path, i, line)).collect()
}
