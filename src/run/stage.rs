//! A stage of a run, or an evaluation alone: the test questions, asked plainly and under each
//! control.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use super::prepare::Prepared;
use crate::error::{Error, Result};
use crate::eval::judge::Judge;
use crate::eval::metrics::{metrics, paired};
use crate::eval::predict::{self, Ask, Prediction, answer_all, batches};
use crate::eval::rounds::Round;
use crate::files;
use crate::model::qwen_vl::QwenVl;
use crate::report::terminal::{self, Terminal};

/// Asks `model`, in training form, all test questions, and again under each control; writes
/// predictions and metrics into `dir`. What is already there is read instead. `earlier` is what a
/// change is measured against.
pub fn evaluate(
    prepared: &Prepared,
    model: &QwenVl,
    judge: Option<&Judge>,
    earlier: Option<&[Prediction]>,
    dir: &Path,
    terminal: &Terminal,
) -> Result<Vec<Prediction>> {
    let name = &*dir.file_name().unwrap_or_default().to_string_lossy();
    files::create_dir(dir)?;
    let recipe = &prepared.recipe;
    let mut plain = Vec::new();
    let mut others = BTreeMap::new();
    for round in &prepared.rounds {
        let predictions = ask(prepared, model, round, judge, dir, name, terminal)?;
        match &round.name {
            None => plain = predictions,
            Some(name) => drop(others.insert(name.clone(), predictions)),
        }
    }
    let mut metrics = metrics(&plain, &others, recipe.seed);
    if let Some(earlier) = earlier {
        for (format, of) in &mut metrics.formats {
            of.change = Some(paired(earlier, &plain, *format, recipe.seed));
        }
    }
    files::write_json(&dir.join("metrics.json"), &metrics)?;
    terminal::accuracy(name, &plain, recipe.seed, terminal);
    terminal::controls(&metrics, terminal);
    Ok(plain)
}

/// The predictions of one round, read where all are written already. An evaluation that was
/// stopped goes on behind the last questions that it answered.
fn ask(
    prepared: &Prepared,
    model: &QwenVl,
    round: &Round,
    judge: Option<&Judge>,
    dir: &Path,
    stage: &str,
    terminal: &Terminal,
) -> Result<Vec<Prediction>> {
    let path = dir.join(round.file());
    if path.exists() {
        match predict::read(&path) {
            Ok(read) if answer_all(&read, round.asks.iter()) => return Ok(read),
            _ => terminal.note(&format!(
                "{} does not answer the questions: they are asked again",
                path.display()
            )),
        }
    }
    let label = match &round.name {
        None => stage.to_owned(),
        Some(name) => format!("{stage}, {}", name.replace('_', " ")),
    };
    let batches = batches(&round.asks, &round.view, prepared.recipe.eval.batch_size);
    let so_far = path.with_added_extension("so-far");
    let mut answers = SoFar::open(&so_far, &round.asks, &batches)?;
    let bar = terminal.bar(&label, round.asks.len());
    let left = &batches[answers.batches..];
    bar.set(answers.predictions.len());
    let answered = prepared.answer(model, &round.asks, left, &round.view, |i, predictions| {
        answers.add(&left[i], predictions)?;
        bar.set(answers.predictions.len());
        Ok(())
    });
    bar.finish();
    answered?;
    let mut predictions: Vec<Prediction> = answers.predictions.into_values().collect();
    if let Some(judge) = judge {
        judged(judge, &mut predictions, &label, terminal)?;
    }
    predict::write(&path, &predictions)?;
    std::fs::remove_file(&so_far).map_err(|e| files::failed(&so_far, &e))?;
    Ok(predictions)
}

/// Has the judge decide what the rules leave open, and says what it took.
fn judged(
    judge: &Judge,
    predictions: &mut [Prediction],
    label: &str,
    terminal: &Terminal,
) -> Result<()> {
    let bar = terminal.bar("judging", predictions.len());
    let cost = judge.apply(predictions, |done| bar.set(done));
    bar.finish();
    terminal::judged(judge.name(), label, &cost?, terminal);
    Ok(())
}

/// Predictions as they come, on disk too, batch by batch.
struct SoFar<'a> {
    path: &'a Path,
    file: File,
    /// How many batches are answered, the first ones.
    batches: usize,
    predictions: BTreeMap<usize, Prediction>,
}

impl<'a> SoFar<'a> {
    /// Reads what an earlier start left at `path`: whole batches only, so that the others are
    /// answered in the same as without a stop.
    fn open(path: &'a Path, asks: &[Ask], batches: &[Vec<Vec<usize>>]) -> Result<Self> {
        let bytes = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![],
            read => read
                .map_err(|e| Error::run(format!("{}: {}", path.display(), files::io_reason(&e))))?,
        };
        // A line that was cut off may end within a character.
        let text = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let mut predictions = BTreeMap::new();
        let (mut whole, mut kept) = (0, String::new());
        for batch in batches.iter().map(|batch| batch.concat()) {
            let own: Vec<&str> = lines.by_ref().take(batch.len()).collect();
            let parsed: Result<Vec<Prediction>, _> =
                own.iter().map(|line| serde_json::from_str(line)).collect();
            match parsed {
                Ok(parsed) if answer_all(&parsed, batch.iter().map(|i| &asks[*i])) => {
                    predictions.extend(batch.into_iter().zip(parsed));
                    kept += &own.concat();
                    whole += 1;
                }
                _ => break,
            }
        }
        files::write(path, kept)?;
        let file =
            OpenOptions::new().append(true).open(path).map_err(|e| files::failed(path, &e))?;
        Ok(Self { path, file, batches: whole, predictions })
    }

    fn add(&mut self, batch: &[Vec<usize>], predictions: Vec<Prediction>) -> Result<()> {
        let text = files::json_lines(&predictions)?;
        self.file.write_all(text.as_bytes()).map_err(|e| files::failed(self.path, &e))?;
        self.predictions.extend(batch.iter().flatten().copied().zip(predictions));
        Ok(())
    }
}
