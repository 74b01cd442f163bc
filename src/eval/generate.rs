//! Greedy generation with a cache, and the log-probabilities of chosen tokens at its start.

use burn::tensor::{DType, Tensor, activation::log_softmax};

use crate::error::Result;
use crate::model::host::host;
use crate::model::kv_cache::KvCache;
use crate::model::lora::cast;
use crate::model::qwen_vl::QwenVl;
use crate::model::rope::{MediaGrid, Positions};

/// When to stop, and what to look at on the way.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// Tokens that end the response.
    pub eos_token_ids: Vec<u32>,
    /// Divides (or multiplies) the logits of tokens seen before; 1 is none. Source: transformers'
    /// `RepetitionPenaltyLogitsProcessor`.
    pub repetition_penalty: Option<f32>,
    /// Tokens whose log-probability at the first position is wanted.
    pub watch: Vec<u32>,
}

/// A response.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Generated tokens, the ending one included where there is one.
    pub ids: Vec<u32>,
    /// Log-probabilities of the watched tokens at the first position, before any penalty.
    pub watched: Vec<f32>,
}

/// The most likely continuation of a prompt, token by token.
///
/// `features` are those of the prompt's media, `[v, hidden]` each. `observe` sees the logits of
/// each step, `[vocab]`.
///
/// # Errors
/// Where the prompt does not fit its media or the device fails.
pub fn generate(
    model: &QwenVl,
    input_ids: &[u32],
    media: &[MediaGrid],
    features: &[Tensor<2>],
    options: &Options,
    mut observe: impl FnMut(&[f32]),
) -> Result<Response> {
    let mut cache = KvCache::new(model.model.layers.len());
    let (hidden, positions) = model.forward(input_ids, media, features, Some(&mut cache))?;
    let mut position = positions.next();
    let mut last = last_token(hidden);
    let mut response = Response { ids: vec![], watched: vec![] };
    while response.ids.len() < options.max_new_tokens {
        let logits = cast(model.logits(last), DType::F32);
        if response.ids.is_empty() && !options.watch.is_empty() {
            let log_probabilities = host(log_softmax(logits.clone(), 1))?;
            let watched = options.watch.iter().map(|id| log_probabilities[*id as usize]);
            response.watched = watched.collect();
        }
        let mut logits = host(logits)?;
        observe(&logits);
        if let Some(penalty) = options.repetition_penalty {
            penalise(&mut logits, input_ids.iter().chain(&response.ids), penalty);
        }
        let next = argmax(&logits);
        response.ids.push(next);
        if options.eos_token_ids.contains(&next) || response.ids.len() == options.max_new_tokens {
            break;
        }
        let context = model.context(&Positions::text(position, 1), false);
        // A generated media pad is a token like any other.
        let x = model.embed_text(&[next]).unsqueeze();
        last = last_token(model.model.forward(x, &context, Some(&mut cache)));
        position += 1;
    }
    Ok(response)
}

/// `[1, t, hidden]` → `[1, hidden]`.
fn last_token(hidden: Tensor<3>) -> Tensor<2> {
    let t = hidden.dims()[1];
    hidden.narrow(1, t - 1, 1).squeeze_dim(1)
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> u32 {
    let largest = logits.iter().enumerate().reduce(|a, b| if b.1 > a.1 { b } else { a });
    largest.map_or(0, |(id, _)| id as u32)
}

fn penalise<'a>(logits: &mut [f32], seen: impl Iterator<Item = &'a u32>, penalty: f32) {
    let seen: std::collections::BTreeSet<usize> = seen.map(|id| *id as usize).collect();
    for id in seen {
        let logit = &mut logits[id];
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
    }
}
