//! Asking the test questions, plainly and under each control.

use std::collections::BTreeMap;
use std::path::Path;

use super::prepare::Prepared;
use crate::data::entry::Entry;
use crate::error::{Error, Result};
use crate::eval::metrics::metrics;
use crate::eval::predict::{self, Evaluator, Prediction};
use crate::files;
use crate::model::qwen_vl::QwenVl;
use crate::recipe::Control;
use crate::report::terminal::{self, Terminal};

/// Asks all test questions, and again under each control; writes predictions and metrics. What is
/// already there is read instead.
pub fn evaluate(
    prepared: &Prepared,
    model: &QwenVl,
    dir: &Path,
    name: &str,
    terminal: &Terminal,
) -> Result<Vec<Prediction>> {
    let done = dir.join("predictions.jsonl");
    if done.exists() {
        let predictions = predict::read(&done)?;
        terminal::accuracy(name, &predictions, prepared.recipe.seed, terminal);
        return Ok(predictions);
    }
    files::create_dir(dir)?;
    let recipe = &prepared.recipe.eval;
    let entries: Vec<&Entry> = prepared.test.iter().collect();
    let questions: usize = entries.iter().map(|e| e.formats(&recipe.formats).len()).sum();
    let evaluator = Evaluator {
        model,
        chat: &prepared.chat,
        videos: &prepared.videos,
        recipe,
        eos_token_ids: prepared.eos_token_ids.clone(),
    };
    let ask = |label: &str, video: bool| {
        let bar = terminal.bar(label, questions);
        let predictions = evaluator.run(&entries, video, |done| bar.set(done));
        bar.finish();
        predictions
    };
    let predictions = ask(name, true)?;
    let mut controls = BTreeMap::new();
    for control in &recipe.controls {
        let Control::NoVideo = control;
        let blind = ask(&format!("{name}, no video"), false)?;
        predict::write(&dir.join("predictions_no_video.jsonl"), &blind)?;
        controls.insert("no_video".to_owned(), blind);
    }
    let metrics = metrics(&predictions, &controls, prepared.recipe.seed);
    let json = serde_json::to_string_pretty(&metrics).map_err(|e| Error::run(e.to_string()))?;
    files::write(&dir.join("metrics.json"), json + "\n")?;
    predict::write(&done, &predictions)?;
    terminal::accuracy(name, &predictions, prepared.recipe.seed, terminal);
    Ok(predictions)
}
