//! Questions → responses → graded predictions, one line of `predictions.jsonl` each.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::generate::{Group, Options, Prompt, Response, generate, packs};
use super::grade::{self, Verdict, grade_ff, grade_mc};
use super::letters::Letters;
use super::view::View;
use crate::data::chat::Chat;
use crate::data::entry::Entry;
use crate::data::vlm4d::{Format, PromptStyle};
use crate::error::{Error, Result};
use crate::features::Videos;
use crate::files;
use crate::interrupt;
use crate::model::config::VisionConfig;
use crate::model::qwen_vl::QwenVl;
use crate::model::rope::MediaGrid;
use crate::recipe::{Eval, Scoring};

/// A graded response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// `real/validation_1`.
    pub id: String,
    /// `real`, `synthetic`, or the name of a data set.
    pub subset: String,
    /// Where its video or image comes from.
    pub source: String,
    /// The paper's group.
    pub group: String,
    /// The question's video or image, relative to the data folder.
    pub video: String,
    /// Another video that stands for it and all that are tied to both; those are resampled together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The video that was shown instead, where it was another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<String>,
    /// Multiple choice or freeform.
    pub format: Format,
    /// Direct output or chain of thought.
    pub prompt: PromptStyle,
    /// By how many places the choices were rotated, in circular evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<usize>,
    /// The question.
    pub question: String,
    /// Its choices, as they were shown.
    pub choices: Vec<String>,
    /// The gold answer's text.
    pub gold: String,
    /// What the model wrote; nothing where the letters' probabilities decide.
    pub response: String,
    /// What it was taken to answer; none where it did not answer.
    pub extracted: Option<String>,
    /// Whether that is right.
    pub correct: bool,
    /// Who graded it.
    pub grader: String,
    /// Log-probability of each letter where the answer stands: at the response's first token, or
    /// with chain of thought at the last token that is the letter taken (spelled as there, with or
    /// without a space before it). None for freeform, and where a chain of thought ends without a
    /// letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letter_logprobs: Option<BTreeMap<char, f32>>,
    /// Tokens of the prompt that stand for videos and images.
    pub n_video_tokens: usize,
}

impl Prediction {
    /// `ask` before it is answered.
    pub fn open(ask: &Ask, prompt: PromptStyle) -> Self {
        let Ask { entry, format, rotation } = ask;
        Self {
            id: entry.id.clone(),
            subset: entry.subset.clone(),
            source: entry.source.clone(),
            group: entry.group.clone(),
            video: entry.video(),
            cluster: entry.cluster.clone(),
            shown: None,
            format: *format,
            prompt,
            rotation: (*rotation > 0).then_some(*rotation),
            question: entry.question.clone(),
            choices: entry.choices.clone(),
            gold: entry.gold.clone(),
            response: String::new(),
            extracted: None,
            correct: false,
            grader: String::new(),
            letter_logprobs: None,
            n_video_tokens: 0,
        }
    }
}

/// A question, how it is asked, and with its choices rotated by how many places.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The question, its choices rotated.
    pub entry: Entry,
    /// Multiple choice or freeform.
    pub format: Format,
    /// 0, or a rotation of circular evaluation.
    pub rotation: usize,
}

impl Ask {
    /// Every entry in every one of `formats` that it can be asked in.
    pub fn all<'a>(entries: impl IntoIterator<Item = &'a Entry>, formats: &[Format]) -> Vec<Self> {
        let asks = entries.into_iter().flat_map(|entry| {
            let formats = entry.formats(formats).into_iter();
            formats.map(|format| Self { entry: entry.clone(), format, rotation: 0 })
        });
        asks.collect()
    }

    /// Every multiple-choice question of `entries` with its choices rotated, once for each
    /// rotation but the first, which is the question itself.
    pub fn rotations<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Vec<Self> {
        let asks = entries.into_iter().flat_map(|entry| {
            let n = entry.choices.len();
            (1..n).map(move |rotation| {
                let order: Vec<usize> = (0..n).map(|i| (i + rotation) % n).collect();
                Self { entry: entry.with_choices(&order), format: Format::Mc, rotation }
            })
        });
        asks.collect()
    }

    /// Its prompt under `view`, whose media take so many `tokens` each.
    ///
    /// # Errors
    /// Where the prompt does not fit its media.
    pub fn encode(
        &self,
        view: &View,
        style: PromptStyle,
        chat: &Chat,
        tokens: &[usize],
    ) -> Result<Vec<u32>> {
        chat.encode_prompt(&self.entry.prompt(self.format, style, view.has_video()), tokens)
    }
}

/// Whether `predictions` answer just `asks`, in order.
pub fn answer_all<'a>(
    predictions: &[Prediction],
    asks: impl ExactSizeIterator<Item = &'a Ask>,
) -> bool {
    let answers = |(p, ask): (&Prediction, &Ask)| {
        let Ask { entry, format, rotation } = ask;
        (&p.id, p.format, p.rotation.unwrap_or(0)) == (&entry.id, *format, *rotation)
    };
    predictions.len() == asks.len() && predictions.iter().zip(asks).all(answers)
}

/// Which of `asks` are answered at once, group by group: those on one video, whose tokens are then
/// read once, and as many groups as a batch has room for.
pub fn batches(asks: &[Ask], view: &View, batch_size: usize) -> Vec<Vec<Vec<usize>>> {
    let groups = groups(asks, view, batch_size);
    let packs = packs(groups.iter().map(Vec::len), batch_size);
    packs.into_iter().map(|pack| groups[pack].to_vec()).collect()
}

/// Those on one video; without video as many as a batch holds.
fn groups(asks: &[Ask], view: &View, batch_size: usize) -> Vec<Vec<usize>> {
    let mut order = Vec::new();
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (i, ask) in asks.iter().enumerate() {
        let shown = view.shown(&ask.entry);
        let group = groups.entry(shown.clone()).or_default();
        if group.is_empty() {
            order.push(shown);
        }
        group.push(i);
    }
    let size = |blind: bool| if blind { batch_size } else { usize::MAX };
    let groups = order.into_iter().flat_map(|shown| {
        let group = groups.remove(&shown).unwrap_or_default();
        group.chunks(size(shown.is_empty())).map(<[usize]>::to_vec).collect::<Vec<_>>()
    });
    groups.collect()
}

/// Asks a model questions.
pub struct Evaluator<'a> {
    /// The model, without a tape: what videos are looked at with.
    pub model: QwenVl,
    /// The same [for inference](QwenVl::for_inference): what answers.
    pub fixed: QwenVl,
    /// Its chat template and tokenizer.
    pub chat: &'a Chat,
    /// What all questions show.
    pub videos: &'a Videos,
    /// The recipe's `[eval]`.
    pub recipe: &'a Eval,
    /// Tokens that end a response.
    pub eos_token_ids: Vec<u32>,
}

impl Evaluator<'_> {
    /// Answers the questions of `batch`, indices of `asks`; those of a group are shown the same.
    ///
    /// # Errors
    /// Where a prompt does not fit its media, the device fails, or the user asked to stop.
    pub fn answer(
        &self,
        asks: &[Ask],
        batch: &[Vec<usize>],
        view: &View,
    ) -> Result<Vec<Prediction>> {
        interrupt::check("the evaluation")?;
        let groups = batch.iter().map(|group| self.group(asks, group, view));
        let groups: Vec<Group> = groups.collect::<Result<_>>()?;
        let asks = || batch.iter().flatten().map(|i| &asks[*i]);
        let most = asks().map(|ask| ask.entry.choices.len()).max().unwrap_or_default();
        let letters = Letters::new(&self.chat.tokenizer, most, self.recipe.prompt)?;
        let options = Options {
            eos_token_ids: self.eos_token_ids.clone(),
            watch: letters.tokens(),
            watch_every_step: self.recipe.prompt == PromptStyle::Cot,
            batch_size: self.recipe.batch_size,
            ..Options::default()
        };
        let responses = generate(&self.fixed, &groups, &options, None)?;
        let media = groups.iter().flat_map(|group| vec![&group.media; group.prompts.len()]);
        let predictions = asks().zip(responses).zip(media).map(|((ask, response), media)| {
            let others = matches!(view, View::Others(_)).then(|| view.shown(&ask.entry));
            let other = others.into_iter().flatten().find(|shown| shown.medium.is_video());
            Ok(Prediction {
                shown: other.map(|shown| shown.medium.to_string()),
                n_video_tokens: media_tokens(&self.model.config.vision, media).iter().sum(),
                ..self.prediction(ask, &response, &letters)?
            })
        });
        predictions.collect()
    }

    /// The prompts of `group`, indices of `asks`, and what all of them are shown.
    fn group(&self, asks: &[Ask], group: &[usize], view: &View) -> Result<Group> {
        let shown = group.first().map(|i| view.shown(&asks[*i].entry)).unwrap_or_default();
        let media = self.videos.grids(&shown)?;
        let tokens = media_tokens(&self.model.config.vision, &media);
        let prompts = group.iter().map(|i| self.prompt(&asks[*i], view, &tokens));
        let (prompts, features) =
            (prompts.collect::<Result<_>>()?, self.videos.features(&self.model, &shown)?);
        Ok(Group { prompts, media, features })
    }

    fn prompt(&self, ask: &Ask, view: &View, tokens: &[usize]) -> Result<Prompt> {
        let input_ids = ask.encode(view, self.recipe.prompt, self.chat, tokens)?;
        let max_new_tokens = match self.by_probability(ask) {
            true => 0,
            false => self.recipe.max_new_tokens(),
        };
        Ok(Prompt { input_ids, max_new_tokens })
    }

    fn by_probability(&self, ask: &Ask) -> bool {
        self.recipe.scoring == Scoring::Logprob && ask.format == Format::Mc
    }

    fn prediction(&self, ask: &Ask, response: &Response, letters: &Letters) -> Result<Prediction> {
        let Ask { entry, format, .. } = ask;
        let text = self.chat.tokenizer.decode(&response.ids, true)?;
        let n = entry.choices.len();
        let (verdict, logprobs) = match format {
            Format::Ff => (grade_ff(&entry.question, &text, &entry.gold), None),
            Format::Mc if self.by_probability(ask) => {
                let logprobs = letters.at_start(response, n);
                (likeliest(&logprobs, &entry.gold_choices), Some(logprobs))
            }
            Format::Mc => {
                let verdict = grade_mc(&text, &entry.choices, &entry.gold_choices);
                let logprobs = match self.recipe.prompt {
                    PromptStyle::Do => Some(letters.at_start(response, n)),
                    PromptStyle::Cot => letters.at_answer(response, n, verdict.extracted.as_ref()),
                };
                (verdict, logprobs)
            }
        };
        Ok(Prediction {
            response: text,
            extracted: verdict.extracted,
            correct: verdict.correct,
            grader: verdict.grader.to_owned(),
            letter_logprobs: logprobs,
            ..Prediction::open(ask, self.recipe.prompt)
        })
    }
}

/// The letter with the highest log-probability, the first of several, as the answer.
fn likeliest(logprobs: &BTreeMap<char, f32>, gold: &[usize]) -> Verdict {
    let best = logprobs.iter().enumerate().reduce(|a, b| if b.1.1 > a.1.1 { b } else { a });
    Verdict {
        extracted: best.map(|(_, (letter, _))| letter.to_string()),
        correct: best.is_some_and(|(i, _)| gold.contains(&i)),
        grader: grade::LOGPROB,
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
    files::write(path, files::json_lines(predictions)?)
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// Where the file is missing or malformed.
pub fn read(path: &Path) -> Result<Vec<Prediction>> {
    let text = files::read_text(path)?;
    let lines = text.lines().enumerate().map(|(i, line)| {
        serde_json::from_str(line).map_err(|e| {
            Error::input(format!("{}:{}: not a prediction: {e}", path.display(), i + 1))
                .help("start the run's recipe again: what is missing or damaged is made again")
        })
    });
    lines.collect()
}
