//! Greedy generation, and the log-probabilities of chosen tokens on the way.
//!
//! What prompts on the same media have in common from the start (the system's turn and the video)
//! fills the cache once, as their trunk. The rest goes on as branches, those of several trunks in
//! one batch: a GPU reads all weights for each token, however many there are of it. Letters: `b`
//! branches, `t` tokens, `p` common tokens.

use std::ops::Range;

use burn::tensor::{DType, FloatDType, Int, Tensor, activation::log_softmax};

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

/// Prompts on the same media.
#[derive(Clone, Debug)]
pub struct Group {
    /// What is to be continued.
    pub prompts: Vec<Prompt>,
    /// What they show, in order.
    pub media: Vec<MediaGrid>,
    /// Features of each, `[v, hidden]`.
    pub features: Vec<Tensor<2>>,
}

/// A response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Response {
    /// Generated tokens, the ending one included where there is one.
    pub ids: Vec<u32>,
    /// Log-probabilities of the watched tokens before any penalty, one list per step watched.
    pub watched: Vec<Vec<f32>>,
}

/// Sees a prompt's index among all and the logits of each of its steps, `[vocab]`.
pub type Observer<'a> = &'a mut dyn FnMut(usize, &[f32]);

/// The most likely continuation of each prompt of `groups`, in order, token by token.
///
/// `model` is [fixed], or its adapters are made ready for every token.
///
/// [fixed]: QwenVl::for_inference
///
/// # Errors
/// Where a prompt does not fit its media, the logits are no numbers, or the device fails.
pub fn generate(
    model: &QwenVl,
    groups: &[Group],
    options: &Options,
    mut observe: Option<Observer>,
) -> Result<Vec<Response>> {
    let stems = groups.iter().map(|group| Stem::of(model, group)).collect::<Result<Vec<_>>>()?;
    let stems = stems.concat();
    let mut responses = Vec::new();
    for pack in packs(stems.iter().map(|stem| stem.prompts.len()), options.batch_size) {
        let mut cache = KvCache::new(model.model.layers.len());
        let mut branches = Vec::new();
        for (trunk, stem) in stems[pack].iter().enumerate() {
            cache.start_trunk();
            let common = &stem.prompts[0].input_ids[..stem.p];
            model.forward(common, &stem.group.media, &stem.group.features, Some(&mut cache))?;
            for prompt in stem.prompts {
                let index = responses.len();
                responses.push(Response::default());
                branches.push(Branch::new(model, stem, trunk, prompt, index)?);
            }
        }
        for batch in branches.chunks(options.batch_size.max(1)) {
            let batch = Branches(batch.to_vec());
            batch.answer(model, &mut cache, options, &mut responses, &mut observe)?;
        }
    }
    Ok(responses)
}

/// Neighbours that go together, at most `most` in all, or one that is larger; each has its size.
pub fn packs(sizes: impl Iterator<Item = usize>, most: usize) -> Vec<Range<usize>> {
    let mut packs: Vec<Range<usize>> = Vec::new();
    let mut held = 0;
    for (i, size) in sizes.enumerate() {
        match packs.last_mut() {
            Some(pack) if held + size <= most => (pack.end, held) = (i + 1, held + size),
            _ => {
                packs.push(i..i + 1);
                held = size;
            }
        }
    }
    packs
}

/// Prompts of a group that have their first `p` tokens in common, its media among them.
#[derive(Clone)]
struct Stem<'a> {
    group: &'a Group,
    prompts: &'a [Prompt],
    p: usize,
}

impl<'a> Stem<'a> {
    /// One for all prompts of `group`, or one for each.
    fn of(model: &QwenVl, group: &'a Group) -> Result<Vec<Self>> {
        let all = &group.prompts;
        let together = common_tokens(model, all).is_some();
        let parts = all.chunks(if together { all.len() } else { 1 }).map(|prompts| {
            let p = common_tokens(model, prompts).ok_or_else(|| {
                Error::run("a prompt needs two tokens or more, the last one no video or image")
            })?;
            Ok(Self { group, prompts, p })
        });
        parts.collect()
    }
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

/// A prompt that goes on behind its trunk.
#[derive(Clone)]
struct Branch<'a> {
    /// Of the response, among all.
    index: usize,
    trunk: usize,
    prompt: &'a Prompt,
    positions: Positions,
    /// Tokens of the trunk.
    p: usize,
}

impl<'a> Branch<'a> {
    fn new(
        model: &QwenVl,
        stem: &Stem,
        trunk: usize,
        prompt: &'a Prompt,
        index: usize,
    ) -> Result<Self> {
        let positions = Positions::new(&model.config, &prompt.input_ids, &stem.group.media)?;
        Ok(Self { index, trunk, prompt, positions, p: stem.p })
    }

    fn rest(&self) -> &'a [u32] {
        &self.prompt.input_ids[self.p..]
    }
}

/// Those that are answered at once.
struct Branches<'a>(Vec<Branch<'a>>);

impl Branches<'_> {
    fn answer(
        mut self,
        model: &QwenVl,
        cache: &mut KvCache,
        options: &Options,
        responses: &mut [Response],
        observe: &mut Option<Observer>,
    ) -> Result<()> {
        let mut last = self.prefill(model, cache);
        for step in 0.. {
            let logits = cast(model.logits(last), DType::F32);
            if !options.watch.is_empty() && (step == 0 || options.watch_every_step) {
                for (branch, watched) in self.0.iter().zip(watched(&logits, &options.watch)?) {
                    responses[branch.index].watched.push(watched);
                }
            }
            let chosen = self.choose(logits, options.repetition_penalty, responses, observe)?;
            let mut going = Vec::new();
            for (row, (branch, next)) in self.0.iter().zip(chosen).enumerate() {
                let (ids, most) = (&mut responses[branch.index].ids, branch.prompt.max_new_tokens);
                if ids.len() < most {
                    ids.push(next);
                    if ids.len() < most && !options.eos_token_ids.contains(&next) {
                        going.push(row);
                    }
                }
            }
            if going.is_empty() {
                break;
            }
            if going.len() < self.0.len() {
                self.0 = going.iter().map(|row| self.0[*row].clone()).collect();
                cache.keep(&going);
            }
            let ids = |branch: &Branch| responses[branch.index].ids.last().copied();
            let next: Vec<u32> = self.0.iter().filter_map(ids).collect();
            last = self.step(model, cache, &next, step);
        }
        Ok(())
    }

    /// What stands behind the common tokens; returns each prompt's last hidden state,
    /// `[b, hidden]`.
    fn prefill(&self, model: &QwenVl, cache: &mut KvCache) -> Tensor<2> {
        let lengths: Vec<(usize, usize)> =
            self.0.iter().map(|branch| (branch.trunk, branch.rest().len())).collect();
        let (b, t) = (lengths.len(), lengths.iter().map(|(_, n)| *n).max().unwrap_or_default());
        // What stands in the padding is never seen.
        let padded = |branch: &Branch| [branch.rest(), &vec![0; t - branch.rest().len()]].concat();
        let padded: Vec<u32> = self.0.iter().flat_map(padded).collect();
        let positions: Vec<Positions> =
            self.0.iter().map(|branch| branch.positions.part(branch.p..branch.p + t)).collect();
        cache.branch(&lengths);
        let x = model.embed_text(&padded);
        let hidden = x.dims()[1];
        let context = model.context(&positions, false);
        let x = model.model.forward(x.reshape([b, t, hidden]), &context, Some(cache));
        let last = lengths.iter().enumerate().map(|(row, (_, n))| (row * t + n - 1) as i64);
        let last = Tensor::<1, Int>::from_data(&last.collect::<Vec<_>>()[..], &model.device());
        x.reshape([b * t, hidden]).select(0, last)
    }

    /// One more token each, `step` of them before it → `[b, hidden]`.
    fn step(&self, model: &QwenVl, cache: &mut KvCache, next: &[u32], step: usize) -> Tensor<2> {
        let position = |branch: &Branch| Positions::text(branch.positions.next() + step as i64, 1);
        let positions: Vec<Positions> = self.0.iter().map(position).collect();
        // A generated media pad is a token like any other.
        let x = model.embed_text(next);
        let [b, hidden] = x.dims();
        let context = model.context(&positions, false);
        let x = model.model.forward(x.reshape([b, 1, hidden]), &context, Some(cache));
        x.reshape([b, hidden])
    }

    /// The next token of each: `logits: [b, vocab]`. They leave the device only where somebody wants
    /// to see them.
    fn choose(
        &self,
        logits: Tensor<2>,
        penalty: Option<f32>,
        responses: &[Response],
        observe: &mut Option<Observer>,
    ) -> Result<Vec<u32>> {
        if observe.is_none() && penalty.is_none() {
            return most_likely(logits);
        }
        let vocab = logits.dims()[1];
        let logits = host(logits)?;
        let chosen = self.0.iter().zip(logits.chunks(vocab)).map(|(branch, logits)| {
            if let Some(observe) = observe {
                observe(branch.index, logits);
            }
            let mut logits = logits.to_vec();
            if let Some(penalty) = penalty {
                let ids = &responses[branch.index].ids;
                penalise(&mut logits, branch.prompt.input_ids.iter().chain(ids), penalty);
            }
            first_highest(&logits)
        });
        chosen.collect()
    }
}

/// The first of the highest of each row of `logits: [b, vocab]`.
fn most_likely(logits: Tensor<2>) -> Result<Vec<u32>> {
    let (highest, ids) = logits.max_dim_with_indices(1);
    // One way from the device for both: f32 has all ids up to 2^24.
    let both = host(Tensor::cat(vec![highest, ids.cast(FloatDType::F32)], 1))?;
    let id = |row: &[f32]| if row[0].is_finite() { Ok(row[1] as u32) } else { Err(no_numbers()) };
    both.chunks(2).map(id).collect()
}

/// The same of one row on the host.
fn first_highest(logits: &[f32]) -> Result<u32> {
    let higher = |a: f32, b: f32| b > a || b.is_nan();
    let highest = logits.iter().enumerate().reduce(|a, b| if higher(*a.1, *b.1) { b } else { a });
    match highest {
        Some((id, logit)) if logit.is_finite() => Ok(id as u32),
        _ => Err(no_numbers()),
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
