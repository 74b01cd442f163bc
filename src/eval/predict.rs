//! Questions → responses → graded predictions, one line of `predictions.jsonl` each.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::generate::{Options, generate};
use super::grade::{grade_ff, grade_mc};
use crate::data::chat::Chat;
use crate::data::entry::Entry;
use crate::data::vlm4d::{Format, PromptStyle, letter};
use crate::error::{Error, Result};
use crate::features::Videos;
use crate::files::{self, io_reason};
use crate::interrupt;
use crate::model::config::VisionConfig;
use crate::model::qwen_vl::QwenVl;
use crate::model::rope::MediaGrid;
use crate::recipe::Eval;

/// A graded response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// `real/validation_1`.
    pub id: String,
    /// `real`, `synthetic`, or the name of a data set.
    pub subset: String,
    /// Where the video comes from.
    pub source: String,
    /// The paper's group.
    pub group: String,
    /// The video, relative to the data folder; what intervals are resampled over.
    pub video: String,
    /// Multiple choice or freeform.
    pub format: Format,
    /// Direct output or chain of thought.
    pub prompt: PromptStyle,
    /// The question.
    pub question: String,
    /// Its choices.
    pub choices: Vec<String>,
    /// The gold answer's text.
    pub gold: String,
    /// What the model wrote.
    pub response: String,
    /// What it was taken to answer; none where it did not answer.
    pub extracted: Option<String>,
    /// Whether that is right.
    pub correct: bool,
    /// Who graded it.
    pub grader: String,
    /// Log-probability of each letter at the first position of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub letter_logprobs: Option<BTreeMap<char, f32>>,
    /// Tokens of the prompt that stand for video.
    pub n_video_tokens: usize,
}

/// Asks a model questions.
pub struct Evaluator<'a> {
    /// The model, without a tape.
    pub model: &'a QwenVl,
    /// Its chat template and tokenizer.
    pub chat: &'a Chat,
    /// The videos of all questions.
    pub videos: &'a Videos,
    /// The recipe's `[eval]`.
    pub recipe: &'a Eval,
    /// Tokens that end a response.
    pub eos_token_ids: Vec<u32>,
}

impl Evaluator<'_> {
    /// Asks every entry in every format; without `video` the questions are asked blind.
    /// `progress` is told after each question, with how many are done.
    ///
    /// # Errors
    /// Where a prompt does not fit its media or the device fails.
    pub fn run(
        &self,
        entries: &[&Entry],
        video: bool,
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<Prediction>> {
        let mut predictions = Vec::new();
        for entry in entries {
            interrupt::check("the evaluation")?;
            let features = match video {
                true => self.videos.features(self.model, &entry.shown())?,
                false => vec![],
            };
            for format in entry.formats(&self.recipe.formats) {
                predictions.push(self.ask(entry, format, video, &features)?);
                progress(predictions.len());
            }
        }
        Ok(predictions)
    }

    fn ask(
        &self,
        entry: &Entry,
        format: Format,
        video: bool,
        features: &[Tensor<2>],
    ) -> Result<Prediction> {
        let grids = if video { self.videos.grids(&entry.shown())? } else { vec![] };
        let tokens = media_tokens(&self.model.config.vision, &grids);
        let messages = entry.prompt(format, self.recipe.prompt, video);
        let input_ids = self.chat.encode_prompt(&messages, &tokens)?;
        let letters: Vec<char> = match format {
            Format::Mc => (0..entry.choices.len()).map(letter).collect(),
            Format::Ff => vec![],
        };
        let options = Options {
            max_new_tokens: self.recipe.max_new_tokens(),
            eos_token_ids: self.eos_token_ids.clone(),
            repetition_penalty: None,
            watch: self.letter_ids(&letters)?,
        };
        let response = generate(self.model, &input_ids, &grids, features, &options, |_| ())?;
        let text = self.chat.tokenizer.decode(&response.ids, true)?;
        let verdict = match format {
            Format::Mc => grade_mc(&text, &entry.choices, &entry.gold_choices),
            Format::Ff => grade_ff(&text, &entry.gold),
        };
        let logprobs = letters.into_iter().zip(response.watched).collect();
        Ok(Prediction {
            id: entry.id.clone(),
            subset: entry.subset.clone(),
            source: entry.source.clone(),
            group: entry.group.clone(),
            video: entry.item().video.display().to_string(),
            format,
            prompt: self.recipe.prompt,
            question: entry.question.clone(),
            choices: entry.choices.clone(),
            gold: entry.gold.clone(),
            response: text,
            extracted: verdict.extracted,
            correct: verdict.correct,
            grader: verdict.grader.to_owned(),
            letter_logprobs: (format == Format::Mc).then_some(logprobs),
            n_video_tokens: tokens.iter().sum(),
        })
    }

    fn letter_ids(&self, letters: &[char]) -> Result<Vec<u32>> {
        let ids = letters.iter().map(|letter| {
            let ids = self.chat.tokenizer.encode(&letter.to_string())?;
            match ids[..] {
                [id] => Ok(id),
                _ => Err(Error::input(format!("the tokenizer has no single token for `{letter}`"))
                    .help("the letters' probabilities need one; use a Qwen-VL tokenizer")),
            }
        });
        ids.collect()
    }
}

/// Prompt tokens of each medium.
pub fn media_tokens(vision: &VisionConfig, grids: &[MediaGrid]) -> Vec<usize> {
    grids.iter().map(|grid| grid.tokens(vision)).collect()
}

/// Writes predictions, one JSON object a line.
///
/// # Errors
/// Where the disk refuses.
pub fn write(path: &Path, predictions: &[Prediction]) -> Result<()> {
    let lines = predictions.iter().map(|p| Ok(serde_json::to_string(p)? + "\n"));
    let text: String =
        lines.collect::<Result<_, serde_json::Error>>().map_err(|e| Error::run(e.to_string()))?;
    files::write(path, text)
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// Where the file is missing or malformed.
pub fn read(path: &Path) -> Result<Vec<Prediction>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::input(format!("{}: {}", path.display(), io_reason(&e))))?;
    let lines = text.lines().enumerate().map(|(i, line)| {
        serde_json::from_str(line).map_err(|e| {
            Error::input(format!("{}:{}: not a prediction: {e}", path.display(), i + 1))
        })
    });
    lines.collect()
}
