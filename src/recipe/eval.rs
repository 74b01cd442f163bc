//! `[eval]`: what is measured, and who judges.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::vlm4d::{Format, PromptStyle};

/// `[eval]`. Answers are the most likely tokens, without the checkpoint's repetition penalty, as
/// VLM4D's; transformers' `generate` takes that from `generation_config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// What is measured.
    pub formats: Vec<Format>,
    /// Direct output (`do`) or chain of thought (`cot`).
    pub prompt: PromptStyle,
    /// Controls beside the accuracy.
    pub controls: Vec<Control>,
    /// Share of the training questions that is asked too, to see what was memorised.
    pub train_share: f64,
    /// Whether multiple choice is asked under every rotation of its choices too (MMBench's
    /// CircularEval).
    pub circular: bool,
    /// What decides a multiple-choice answer.
    pub scoring: Scoring,
    /// Most prompts that are answered at once, those on several videos together.
    pub batch_size: usize,
    /// Longest response, in tokens; 32 for direct output, 1,024 (VLM4D) for chain of thought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// Who says whether a freeform answer is right.
    pub judge: Judge,
}

impl Default for Eval {
    fn default() -> Self {
        Self {
            formats: Format::ALL.into(),
            prompt: PromptStyle::Do,
            controls: vec![Control::NoVideo],
            train_share: 0.0,
            circular: false,
            scoring: Scoring::Text,
            batch_size: 16,
            max_new_tokens: None,
            judge: Judge::default(),
        }
    }
}

impl Eval {
    /// `max_new_tokens`, or the prompt style's default.
    pub fn max_new_tokens(&self) -> usize {
        self.max_new_tokens.unwrap_or(match self.prompt {
            PromptStyle::Do => 32,
            PromptStyle::Cot => 1024,
        })
    }
}

/// An evaluation that shows what the accuracy rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// The same questions without their video.
    NoVideo,
    /// The video's frames in another order, drawn from the seed.
    Shuffled,
    /// The video backwards.
    Reversed,
    /// Another test video, of the same source where there is one.
    WrongVideo,
}

impl Control {
    /// As in the recipe, and in the name of its file of predictions.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoVideo => "no_video",
            Self::Shuffled => "shuffled",
            Self::Reversed => "reversed",
            Self::WrongVideo => "wrong_video",
        }
    }
}

/// What decides a multiple-choice answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scoring {
    /// The response, graded by rules.
    Text,
    /// The letter that is most probable as the response's first token; nothing is generated.
    Logprob,
}

/// `eval.judge`: who decides freeform answers that the rules do not accept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Judge {
    /// `rules`, `openai` or `base`.
    pub kind: JudgeKind,
    /// Where an OpenAI-compatible endpoint starts, before `/chat/completions`; OpenAI's own where
    /// left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Which of the endpoint's models judges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Environment variable that holds the endpoint's key.
    pub key_env: String,
    /// Most requests at once.
    pub concurrency: usize,
    /// How often a request that failed is sent again, after 1, 2, 4, … s.
    pub max_retries: usize,
    /// Seconds to wait for an answer.
    pub timeout_s: f64,
    /// Price of a million tokens sent, to state what judging cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_price: Option<f64>,
    /// Price of a million tokens answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_price: Option<f64>,
    /// Folder that keeps verdicts, for this run and the next.
    pub cache: PathBuf,
}

impl Default for Judge {
    fn default() -> Self {
        Self {
            kind: JudgeKind::Rules,
            url: None,
            model: None,
            key_env: "OPENAI_API_KEY".into(),
            concurrency: 8,
            max_retries: 6,
            timeout_s: 120.0,
            input_price: None,
            output_price: None,
            cache: "data/cache/judge".into(),
        }
    }
}

/// Who judges freeform answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JudgeKind {
    /// Normal forms of both answers are compared; nobody else is asked.
    Rules,
    /// A model behind an OpenAI-compatible endpoint.
    Openai,
    /// The loaded checkpoint, without its adapter.
    Base,
}
