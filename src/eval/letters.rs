//! The tokens that are a choice's letter, and their log-probabilities where the answer stands.

use std::collections::BTreeMap;

use super::generate::Response;
use crate::data::tokenizer::Tokenizer;
use crate::data::vlm4d::{PromptStyle, letter};
use crate::error::{Error, Result};

/// What may stand before a letter within its token, beside nothing.
const BEFORE: [&str; 12] = [" ", "(", " (", "[", "$", " $", "{", "'", " '", "\"", "*", ":"];

/// The letters' tokens, in each spelling that has a token for every letter.
pub struct Letters {
    /// One list per spelling, a token per letter; the first spelling is the letter alone.
    spellings: Vec<Vec<u32>>,
}

impl Letters {
    /// The tokens of the first `n` letters. A direct answer starts with the letter alone, at the
    /// end of a chain of thought it may be spelled otherwise.
    ///
    /// # Errors
    /// Where the tokenizer has no token for a letter alone.
    pub fn new(tokenizer: &Tokenizer, n: usize, style: PromptStyle) -> Result<Self> {
        let alone = (0..n).map(|i| {
            single(tokenizer, "", i)?.ok_or_else(|| {
                let letter = letter(i);
                Error::input(format!("the tokenizer has no single token for `{letter}`"))
                    .help("the letters' probabilities need one; use a Qwen-VL tokenizer")
            })
        });
        let mut spellings = vec![alone.collect::<Result<Vec<u32>>>()?];
        if style == PromptStyle::Cot {
            for before in BEFORE {
                let tokens = (0..n).map(|i| single(tokenizer, before, i));
                spellings.extend(tokens.collect::<Result<Option<Vec<u32>>>>()?);
            }
        }
        Ok(Self { spellings })
    }

    /// All tokens to watch, in the order that the other functions expect.
    pub fn tokens(&self) -> Vec<u32> {
        self.spellings.concat()
    }

    /// Log-probabilities of the first `n` letters at the first token of a response.
    pub fn at_start(&self, response: &Response, n: usize) -> BTreeMap<char, f32> {
        let first = response.watched.first().into_iter().flatten();
        first.take(n).enumerate().map(|(i, logprob)| (letter(i), *logprob)).collect()
    }

    /// Log-probabilities of the first `n` letters at the last token that is the letter `answer`,
    /// spelled as it is there; nothing where no token is.
    pub fn at_answer(
        &self,
        response: &Response,
        n: usize,
        answer: Option<&String>,
    ) -> Option<BTreeMap<char, f32>> {
        let answer = (0..n).find(|i| answer == Some(&letter(*i).to_string()))?;
        let mut steps = response.ids.iter().zip(&response.watched).rev();
        let (watched, spelling) = steps.find_map(|(id, watched)| {
            let spelling = self.spellings.iter().position(|tokens| tokens[answer] == *id)?;
            Some((watched, spelling))
        })?;
        let start = self.spellings.iter().take(spelling).map(Vec::len).sum::<usize>();
        Some((0..n).map(|i| (letter(i), watched[start + i])).collect())
    }
}

/// The token of letter `i` with `before` in front of it, where that is one token.
fn single(tokenizer: &Tokenizer, before: &str, i: usize) -> Result<Option<u32>> {
    let ids = tokenizer.encode(&format!("{before}{}", letter(i)))?;
    Ok(match ids[..] {
        [id] => Some(id),
        _ => None,
    })
}
