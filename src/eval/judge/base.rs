//! The loaded checkpoint as its own judge, offline.
//!
//! It is told the criterion and the case and asked for yes or no: whichever is more probable as
//! its first token is the verdict, so there is always one. A small model is a weak judge; its name
//! stands beside what it decides.

use super::prompt::{CRITERION, case};
use super::{Case, Cost, Ruling};
use crate::data::chat::{Chat, Content, Message};
use crate::error::{Error, Result};
use crate::eval::generate::{Group, Options, Prompt, generate};
use crate::eval::grade::grade_ff;
use crate::interrupt;
use crate::model::qwen_vl::QwenVl;

/// A checkpoint that judges.
pub struct Base<'a> {
    model: QwenVl,
    chat: &'a Chat,
    name: String,
    batch_size: usize,
    yes: u32,
    no: u32,
}

impl<'a> Base<'a> {
    /// `model` without its adapters, under `name`; `batch_size` cases are judged at once.
    ///
    /// # Errors
    /// Where the tokenizer does not tell `Yes` from `No` by the first token.
    pub fn new(model: &QwenVl, chat: &'a Chat, name: String, batch_size: usize) -> Result<Self> {
        let mut model = model.clone();
        for (_, layer) in model.linear_layers_mut() {
            layer.lora = None;
        }
        let first = |word: &str| Ok::<_, Error>(chat.tokenizer.encode(word)?.first().copied());
        match (first("Yes")?, first("No")?) {
            (Some(yes), Some(no)) if yes != no => {
                Ok(Self { model, chat, name, batch_size, yes, no })
            }
            _ => Err(Error::input("the tokenizer does not tell `Yes` from `No`")
                .help("use another judge: eval.judge = { kind = \"rules\" }")),
        }
    }

    /// The name that stands beside its verdicts.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rules on `cases`, in order.
    ///
    /// # Errors
    /// Where the device fails or the user asked to stop.
    pub fn rule(
        &self,
        cases: &[Case],
        mut progress: impl FnMut(usize),
    ) -> Result<(Vec<Ruling>, Cost)> {
        let options = Options {
            watch: vec![self.yes, self.no],
            batch_size: self.batch_size,
            ..Options::default()
        };
        let mut rulings = Vec::with_capacity(cases.len());
        let mut cost = Cost { asked: cases.len(), ..Cost::default() };
        for batch in cases.chunks(self.batch_size) {
            interrupt::check("the judging of responses")?;
            let prompts = batch.iter().map(|one| self.prompt(one));
            let prompts: Vec<Prompt> = prompts.collect::<Result<_>>()?;
            cost.prompt_tokens += prompts.iter().map(|p| p.input_ids.len() as u64).sum::<u64>();
            let group = Group { prompts, media: vec![], features: vec![] };
            let responses = generate(&self.model, &[group], &options, None)?;
            for (one, response) in batch.iter().zip(responses) {
                let [yes, no] = response.watched[0][..] else {
                    return Err(Error::run("the judge's answer was not looked at"));
                };
                let extracted = grade_ff(&one.question, &one.response, &one.gold).extracted;
                rulings.push(Ruling { correct: yes > no && extracted.is_some(), extracted });
            }
            progress(rulings.len());
        }
        Ok((rulings, cost))
    }

    fn prompt(&self, one: &Case) -> Result<Prompt> {
        let system = Message::new("system", [Content::Text(CRITERION.into())]);
        let text = format!("{}\nIs the response correct? Answer with Yes or No.", case(one));
        let user = Message::new("user", [Content::Text(text)]);
        let input_ids = self.chat.encode_prompt(&[system, user], &[])?;
        Ok(Prompt { input_ids, max_new_tokens: 0 })
    }
}
