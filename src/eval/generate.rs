//! Greedy generation, and the log-probabilities of chosen tokens on the way.
//!
//! Prompts on the same media are answered together: what they have in common from the start (the
//! system's turn and the video) fills the cache once, the rest goes on as a batch of branches.
//! Letters: `b` branches, `t` tokens, `p` common tokens.

use burn::tensor::{DType, Int, Tensor, activation::log_softmax};

use crate::error::{Error, Result};
use crate::model::host::host;
use crate::model::kv_cache::KvCache;
use crate::model::linear::cast;
use crate::model::qwen_vl::QwenVl;
use crate::model::rope::{MediaGrid, Positions};

/// When to stop, and what to look at on the way.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens that end the response.
    pub eos_token_ids: Vec<u32>,
    /// Divides (or multiplies, where they are negative) the logits of tokens seen before. Source:
    /// transformers' `RepetitionPenaltyLogitsProcessor`.
    pub repetition_penalty: Option<f32>,
    /// Tokens whose log-probability is wanted.
    pub watch: Vec<u32>,
    /// Whether it is wanted at every step, not only at the first.
    pub watch_every_step: bool,
    /// Most prompts that are answered at once.
    pub batch_size: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            eos_token_ids: vec![],
            repetition_penalty: None,
            watch: vec![],
            watch_every_step: false,
            batch_size: 16,
        }
    }
}

/// What is to be continued.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// `[t]`.
    pub input_ids: Vec<u32>,
    /// Most tokens to generate; 0 only looks at the watched tokens.
    pub max_new_tokens: usize,
}

/// A response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Response {
    /// Generated tokens, the ending one included where there is one.
    pub ids: Vec<u32>,
    /// Log-probabilities of the watched tokens before any penalty, one list per step watched.
    pub watched: Vec<Vec<f32>>,
}

/// The most likely continuation of each of `prompts`, token by token.
///
/// All show the same media: `features` are theirs, `[v, hidden]` each. `model` is [fixed], or its
/// adapters are made ready for every token. `observe` sees the prompt's index and the logits of
/// each of its steps, `[vocab]`.
///
/// [fixed]: QwenVl::for_inference
///
/// # Errors
/// Where a prompt does not fit its media, the logits are no numbers, or the device fails.
pub fn generate(
    model: &QwenVl,
    prompts: &[Prompt],
    media: &[MediaGrid],
    features: &[Tensor<2>],
    options: &Options,
    mut observe: impl FnMut(usize, &[f32]),
) -> Result<Vec<Response>> {
    let mut responses = vec![Response::default(); prompts.len()];
    let together = common_tokens(model, prompts).is_some();
    let mut start = 0;
    for part in prompts.chunks(if together { prompts.len() } else { 1 }) {
        let p = common_tokens(model, part).ok_or_else(|| {
            Error::run("a prompt needs two tokens or more, the last one no video or image")
        })?;
        let common = &part[0].input_ids[..p];
        let mut cache = KvCache::new(model.model.layers.len());
        model.forward(common, media, features, Some(&mut cache))?;
        for batch in part.chunks(options.batch_size.max(1)) {
            let branches = Branches::new(batch, start, p, model, media)?;
            branches.answer(model, &mut cache, options, &mut responses, &mut observe)?;
            start += batch.len();
        }
    }
    Ok(responses)
}

/// How many first tokens the prompts share, such that each has more and all media lie within;
/// nothing where that cannot be.
fn common_tokens(model: &QwenVl, prompts: &[Prompt]) -> Option<usize> {
    let first = &prompts.first()?.input_ids;
    let shared = |ids: &Vec<u32>| {
        let equal = ids.iter().zip(first).take_while(|(a, b)| a == b).count();
        equal.min(ids.len().saturating_sub(1))
    };
    let p = prompts.iter().map(|prompt| shared(&prompt.input_ids)).min()?;
    let config = &model.config;
    let is_pad = |id: &u32| *id == config.image_token_id || *id == config.video_token_id;
    let behind = prompts.iter().any(|prompt| prompt.input_ids[p..].iter().any(is_pad));
    (p > 0 && !behind).then_some(p)
}

/// Prompts behind their common start, and what has been generated for them.
struct Branches<'a> {
    /// Index of each among all responses.
    index: Vec<usize>,
    prompts: Vec<&'a Prompt>,
    positions: Vec<Positions>,
    /// Common tokens.
    p: usize,
}

impl<'a> Branches<'a> {
    fn new(
        prompts: &'a [Prompt],
        start: usize,
        p: usize,
        model: &QwenVl,
        media: &[MediaGrid],
    ) -> Result<Self> {
        let positions =
            prompts.iter().map(|one| Positions::new(&model.config, &one.input_ids, media));
        Ok(Self {
            index: (start..start + prompts.len()).collect(),
            prompts: prompts.iter().collect(),
            positions: positions.collect::<Result<_>>()?,
            p,
        })
    }

    fn answer(
        mut self,
        model: &QwenVl,
        cache: &mut KvCache,
        options: &Options,
        responses: &mut [Response],
        observe: &mut impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let mut last = self.prefill(model, cache);
        for step in 0.. {
            let logits = cast(model.logits(last), DType::F32);
            if !options.watch.is_empty() && (step == 0 || options.watch_every_step) {
                for (i, watched) in self.index.iter().zip(watched(&logits, &options.watch)?) {
                    responses[*i].watched.push(watched);
                }
            }
            let logits = host(logits)?;
            let vocab = logits.len() / self.index.len();
            let mut going = Vec::new();
            for (row, logits) in logits.chunks(vocab).enumerate() {
                let (i, prompt) = (self.index[row], self.prompts[row]);
                observe(i, logits);
                let response = &mut responses[i];
                if response.ids.len() < prompt.max_new_tokens {
                    let seen = prompt.input_ids.iter().chain(&response.ids);
                    let next = most_likely(logits, seen, options.repetition_penalty)?;
                    response.ids.push(next);
                    let full = response.ids.len() == prompt.max_new_tokens;
                    if !full && !options.eos_token_ids.contains(&next) {
                        going.push(row);
                    }
                }
            }
            if going.is_empty() {
                break;
            }
            if going.len() < self.index.len() {
                self.keep(&going);
                cache.keep(&going);
            }
            let next: Vec<u32> =
                self.index.iter().filter_map(|i| responses[*i].ids.last().copied()).collect();
            last = self.step(model, cache, &next, step);
        }
        Ok(())
    }

    /// What stands behind the common tokens; returns each prompt's last hidden state,
    /// `[b, hidden]`.
    fn prefill(&self, model: &QwenVl, cache: &mut KvCache) -> Tensor<2> {
        let rest: Vec<&[u32]> = self.prompts.iter().map(|one| &one.input_ids[self.p..]).collect();
        let lengths: Vec<usize> = rest.iter().map(|ids| ids.len()).collect();
        let t = lengths.iter().copied().max().unwrap_or_default();
        // What stands in the padding is never seen.
        let padded: Vec<u32> =
            rest.iter().flat_map(|ids| (0..t).map(|i| ids.get(i).copied().unwrap_or(0))).collect();
        let positions: Vec<Positions> =
            self.positions.iter().map(|all| all.part(self.p..self.p + t)).collect();
        cache.branch(&lengths);
        let b = rest.len();
        let x = model.embed_text(&padded);
        let hidden = x.dims()[1];
        let context = model.context(&positions, false);
        let x = model.model.forward(x.reshape([b, t, hidden]), &context, Some(cache));
        let last = lengths.iter().enumerate().map(|(row, length)| (row * t + length - 1) as i64);
        let last = Tensor::<1, Int>::from_data(&last.collect::<Vec<_>>()[..], &model.device());
        x.reshape([b * t, hidden]).select(0, last)
    }

    /// One more token each, `step` of them before it → `[b, hidden]`.
    fn step(&self, model: &QwenVl, cache: &mut KvCache, next: &[u32], step: usize) -> Tensor<2> {
        let positions: Vec<Positions> = self
            .positions
            .iter()
            .map(|prompt| Positions::text(prompt.next() + step as i64, 1))
            .collect();
        // A generated media pad is a token like any other.
        let x = model.embed_text(next);
        let [b, hidden] = x.dims();
        let context = model.context(&positions, false);
        let x = model.model.forward(x.reshape([b, 1, hidden]), &context, Some(cache));
        x.reshape([b, hidden])
    }

    /// Drops all branches but `rows`.
    fn keep(&mut self, rows: &[usize]) {
        self.index = rows.iter().map(|row| self.index[*row]).collect();
        self.prompts = rows.iter().map(|row| self.prompts[*row]).collect();
        self.positions = rows.iter().map(|row| self.positions[*row].clone()).collect();
    }
}

/// Log-probabilities of `tokens`, a list per row of `logits: [b, vocab]`. All are finite: no logit is
/// masked.
fn watched(logits: &Tensor<2>, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
    let ids: Vec<i64> = tokens.iter().map(|id| i64::from(*id)).collect();
    let ids = Tensor::<1, Int>::from_data(&ids[..], &logits.device());
    let chosen = host(log_softmax(logits.clone(), 1).select(1, ids))?;
    if !chosen.iter().all(|logprob| logprob.is_finite()) {
        return Err(no_numbers());
    }
    Ok(chosen.chunks(tokens.len()).map(<[f32]>::to_vec).collect())
}

/// The first of the largest logits, those of tokens `seen` penalised.
fn most_likely<'a>(
    logits: &[f32],
    seen: impl Iterator<Item = &'a u32>,
    penalty: Option<f32>,
) -> Result<u32> {
    let largest = |logits: &[f32]| {
        let largest = logits.iter().enumerate().reduce(|a, b| if b.1 > a.1 { b } else { a });
        largest.map(|(id, logit)| (id as u32, *logit))
    };
    let found = match penalty {
        None => largest(logits),
        Some(penalty) => {
            let mut logits = logits.to_vec();
            penalise(&mut logits, seen, penalty);
            largest(&logits)
        }
    };
    match found {
        Some((id, logit)) if logit.is_finite() => Ok(id),
        _ => Err(no_numbers()),
    }
}

fn no_numbers() -> Error {
    Error::run("the model's logits are no numbers")
        .help("the weights hold numbers that are none, or overflow: try model.dtype = \"f32\"")
}

fn penalise<'a>(logits: &mut [f32], seen: impl Iterator<Item = &'a u32>, penalty: f32) {
    let seen: std::collections::BTreeSet<usize> = seen.map(|id| *id as usize).collect();
    for id in seen {
        let logit = &mut logits[id];
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
    }
}
