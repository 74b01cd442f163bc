//! What an evaluation asks: the test questions, and the same or others under each control.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::predict::Ask;
use super::view::View;
use crate::data::entry::Entry;
use crate::data::vlm4d::Format;
use crate::error::Result;
use crate::recipe::Recipe;

/// Name of the round with rotated choices.
pub const CIRCULAR: &str = "circular";
/// Name of the round of training questions.
pub const TRAIN: &str = "train";

/// Questions that are asked under one view.
#[derive(Clone, Debug)]
pub struct Round {
    /// None for the test questions as they are; else the control's name, [`CIRCULAR`] or
    /// [`TRAIN`].
    pub name: Option<String>,
    /// What is asked.
    pub asks: Vec<Ask>,
    /// What the model is shown with it.
    pub view: View,
}

impl Round {
    /// `entries` as they are, in every one of `formats`.
    pub fn plain(entries: &[Entry], formats: &[Format]) -> Self {
        Self { name: None, asks: Ask::all(entries, formats), view: View::PLAIN }
    }

    /// The file of its predictions.
    pub fn file(&self) -> String {
        match &self.name {
            None => "predictions.jsonl".into(),
            Some(name) => format!("predictions_{name}.jsonl"),
        }
    }
}

/// The rounds of `recipe`: first the test questions as they are.
///
/// # Errors
/// A control that the questions do not allow.
pub fn rounds(recipe: &Recipe, test: &[Entry], train: &[Entry]) -> Result<Vec<Round>> {
    let eval = &recipe.eval;
    let plain = Round::plain(test, &eval.formats);
    // A control says nothing of a question without a video.
    let asks: Vec<Ask> = plain.asks.iter().filter(|ask| ask.entry.has_video()).cloned().collect();
    let mut rounds = vec![plain];
    if test.is_empty() {
        return Ok(rounds);
    }
    for control in eval.controls.iter().filter(|_| !asks.is_empty()) {
        let view = View::of(*control, test.iter(), recipe.seed)?;
        rounds.push(Round { name: Some(control.name().into()), asks: asks.clone(), view });
    }
    if eval.circular {
        let asks = Ask::rotations(test);
        rounds.push(Round { name: Some(CIRCULAR.into()), asks, view: View::PLAIN });
    }
    let memorised = share(train, eval.train_share, recipe.seed);
    if !memorised.is_empty() {
        let asks = Ask::all(memorised, &eval.formats);
        rounds.push(Round { name: Some(TRAIN.into()), asks, view: View::PLAIN });
    }
    Ok(rounds)
}

/// A share of the entries, rounded up, drawn from the seed and in their order.
fn share(entries: &[Entry], share: f64, seed: u64) -> Vec<&Entry> {
    let wanted = (entries.len() as f64 * share).ceil() as usize;
    let mut drawn: Vec<usize> = (0..entries.len()).collect();
    drawn.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    drawn.truncate(wanted);
    drawn.sort_unstable();
    drawn.into_iter().map(|i| &entries[i]).collect()
}
