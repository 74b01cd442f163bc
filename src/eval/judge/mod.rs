//! Freeform responses that the rules do not accept → the verdicts of a judge.
//!
//! What the rules accept is right and is never shown to the judge: they accept only what is
//! equivalent beyond doubt. A response without any answer is wrong without a judge. The rest is
//! judged, each distinct `(question, gold, response)` once, and carries the judge's name as its
//! grader. The judge is a model behind an OpenAI-compatible endpoint, or the loaded checkpoint
//! itself, without its adapter.

pub mod base;
pub mod cache;
pub mod openai;
pub mod prompt;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::base::Base;
use self::openai::OpenAi;
use super::predict::Prediction;
use crate::data::chat::Chat;
use crate::data::vlm4d::Format;
use crate::error::Result;
use crate::model::qwen_vl::QwenVl;
use crate::recipe::{Judge as Config, JudgeKind, Recipe};

/// What is judged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// The question.
    pub question: String,
    /// The gold answer.
    pub gold: String,
    /// What the model wrote.
    pub response: String,
}

/// How it is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruling {
    /// The answer that the response commits to; none where it gives none.
    pub extracted: Option<String>,
    /// Whether it is equivalent to the gold answer.
    pub correct: bool,
}

/// What judging took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cost {
    /// Cases that the judge was asked.
    pub asked: usize,
    /// Cases whose ruling was in the cache.
    pub cached: usize,
    /// Requests that failed and were sent again.
    pub retries: usize,
    /// Tokens of the requests, as the endpoint counts them.
    pub prompt_tokens: u64,
    /// Tokens of the answers.
    pub completion_tokens: u64,
    /// In the currency of the recipe's prices; none where it has none.
    pub price: Option<f64>,
}

/// Checks what `judge` needs beside the checkpoint.
///
/// # Errors
/// Where the key for the endpoint is missing.
pub fn check(judge: &Config) -> Result<()> {
    match judge.kind {
        JudgeKind::Openai => OpenAi::new(judge).map(drop),
        JudgeKind::Rules | JudgeKind::Base => Ok(()),
    }
}

/// Who judges.
pub enum Judge<'a> {
    /// A model behind an endpoint.
    OpenAi(Box<OpenAi>),
    /// The checkpoint itself.
    Base(Box<Base<'a>>),
}

impl<'a> Judge<'a> {
    /// The judge of `recipe`; none where the rules decide alone. `model` is the checkpoint, whose
    /// adapters the judge does without.
    ///
    /// # Errors
    /// Where the key for the endpoint is missing.
    pub fn of(recipe: &Recipe, model: &QwenVl, chat: &'a Chat) -> Result<Option<Self>> {
        let judge = &recipe.eval.judge;
        Ok(match judge.kind {
            JudgeKind::Rules => None,
            JudgeKind::Openai => Some(Self::OpenAi(Box::new(OpenAi::new(judge)?))),
            JudgeKind::Base => {
                let name = format!("base/{}", recipe.model.held(&recipe.model.name()));
                let judge = Base::new(model, chat, name, recipe.eval.batch_size)?;
                Some(Self::Base(Box::new(judge)))
            }
        })
    }

    /// The name that stands beside its verdicts.
    pub fn name(&self) -> &str {
        match self {
            Self::OpenAi(judge) => judge.name(),
            Self::Base(judge) => judge.name(),
        }
    }

    /// Judges the freeform `predictions` that the rules did not accept; `progress` is told how
    /// many cases are done.
    ///
    /// # Errors
    /// Where the judge cannot be asked, or answers with no verdict time and again.
    pub fn apply(
        &self,
        predictions: &mut [Prediction],
        progress: impl FnMut(usize),
    ) -> Result<Cost> {
        let open = |p: &&mut Prediction| {
            p.format == Format::Ff && !p.correct && !p.response.trim().is_empty()
        };
        let mut cases: BTreeMap<Case, Option<Ruling>> = BTreeMap::new();
        for p in predictions.iter_mut().filter(open) {
            cases.insert(Case::of(p), None);
        }
        let list: Vec<Case> = cases.keys().cloned().collect();
        let (rulings, cost) = match self {
            Self::OpenAi(judge) => judge.rule(&list, progress)?,
            Self::Base(judge) => judge.rule(&list, progress)?,
        };
        cases.extend(list.into_iter().zip(rulings.into_iter().map(Some)));
        for p in predictions.iter_mut().filter(open) {
            if let Some(Some(ruling)) = cases.get(&Case::of(p)) {
                p.correct = ruling.correct;
                p.extracted.clone_from(&ruling.extracted);
                self.name().clone_into(&mut p.grader);
            }
        }
        Ok(cost)
    }
}

impl Case {
    fn of(p: &Prediction) -> Self {
        Self {
            question: p.question.clone(),
            gold: p.gold.clone(),
            response: p.response.trim().to_owned(),
        }
    }
}
