//! What a run says while it trains: `log.jsonl`, TensorBoard events, and the terminal.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tensorboard_rs::summary_writer::SummaryWriter;

use crate::error::{Error, Result};
use crate::files::failed;

/// One optimiser step, a line of `log.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Optimiser steps taken, this one included.
    pub step: usize,
    /// Passes over the samples, this step included.
    pub epoch: f64,
    /// Loss of the step before its update.
    pub loss: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Samples of the step.
    pub samples: usize,
    /// Tokens of the step, prompt and video included.
    pub tokens: usize,
    /// Seconds that the step took.
    pub seconds: f64,
    /// Memory of the process, in bytes.
    pub memory_bytes: u64,
}

/// Writes the records of a run.
pub struct Log {
    path: PathBuf,
    board: SummaryWriter,
}

impl Log {
    /// Opens the log of the run in `dir`; lines behind step `last_step` are dropped, since the
    /// run goes on from there.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn open(dir: &Path, last_step: usize) -> Result<Self> {
        let path = dir.join("log.jsonl");
        let kept: String = read(&path)?
            .iter()
            .filter(|record| record.step <= last_step)
            .map(line)
            .collect::<std::io::Result<_>>()
            .map_err(|e| failed(&path, &e))?;
        crate::files::write(&path, kept)?;
        Ok(Self { path, board: SummaryWriter::new(dir) })
    }

    /// Appends one step.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn step(&mut self, record: &Record) -> Result<()> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).open(&self.path);
        file.and_then(|mut file| file.write_all(line(record)?.as_bytes()))
            .map_err(|e| failed(&self.path, &e))?;
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
            self.board.add_scalar(tag, value as f32, record.step);
        }
        self.board.flush();
        Ok(())
    }

    /// Adds an accuracy to the TensorBoard events.
    pub fn accuracy(&mut self, tag: &str, share: f64, step: usize) {
        self.board.add_scalar(tag, share as f32, step);
        self.board.flush();
    }
}

fn line(record: &Record) -> std::io::Result<String> {
    Ok(serde_json::to_string(record)? + "\n")
}

/// The records of a `log.jsonl`; none where there is no file. A last line that a crash cut off is
/// left out.
///
/// # Errors
/// Where the file cannot be read or holds something else.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::run(format!("{}: {e}", path.display()))),
    };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().enumerate().map(|(i, line)| {
        serde_json::from_str(line).map_err(|e| {
            Error::input(format!("{}:{}: not a step of a log: {e}", path.display(), i + 1))
                .help("move the run's folder away and start anew")
        })
    });
    lines.collect()
}

/// Memory of this process in bytes; 0 where the system does not say.
pub fn memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
