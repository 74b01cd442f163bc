//! Gradients of some samples, block by block.
//!
//! With `recompute` the forward keeps no tape, only each layer's input; the backward runs each
//! layer again with a tape of its own. What lies before the first trained part has no tape and is
//! not run again. Logits exist at labelled positions only, and of a few at a time. Letters: `b`
//! samples, `t` tokens, `n` labelled positions.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{DType, Int, Tensor};

use super::loss::{cross_entropy, predictions, total};
use crate::error::{Error, Result};
use crate::model::dropout::{self, Row};
use crate::model::host::host;
use crate::model::language::Context;
use crate::model::parameters::{Named, add_gradients, any_trained};
use crate::model::qwen_vl::QwenVl;
use crate::model::record::backward;
use crate::model::rope::Positions;

/// A sample, ready for the model.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Which one it is, for messages.
    pub id: String,
    /// `[t]`.
    pub input_ids: Vec<u32>,
    /// `[t]`, [`IGNORE_INDEX`](crate::data::chat::IGNORE_INDEX) where nothing is learned.
    pub labels: Vec<i64>,
    /// Where each token stands in time, height and width.
    pub positions: Positions,
}

/// How the gradients are computed; none of it changes them.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// Recompute each layer in the backward pass.
    pub recompute: bool,
    /// Most logits that exist at once ([`LOGITS_AT_ONCE`]); at least those of one position do.
    pub logits_at_once: usize,
    /// Samples are padded on the right to one token less than a multiple of so many; with 1 only to
    /// the longest of those that go together.
    pub multiple: usize,
}

/// Padded length on a GPU: kernels are tuned and compiled per shape, so few lengths are wanted. One
/// token less than the multiple, because `fused` attention adds a query where their number is even.
pub const GPU_MULTIPLE: usize = 64;

/// 64 MiB in f32, and three times that with what the loss makes of them: the logits of 110
/// positions at Qwen's vocabulary of 152,064.
pub const LOGITS_AT_ONCE: usize = 1 << 24;

/// How long a sample of `tokens` is padded: one token less than a multiple of `multiple`.
pub fn padded_length(tokens: usize, multiple: usize) -> usize {
    (tokens + 1).next_multiple_of(multiple) - 1
}

impl Sample {
    /// What it takes in memory.
    pub fn bytes(&self) -> usize {
        let rows = &self.positions.rows;
        size_of::<Self>()
            + size_of::<u32>() * self.input_ids.capacity()
            + size_of::<i64>() * self.labels.capacity()
            + size_of::<i64>() * rows.iter().map(Vec::capacity).sum::<usize>()
    }

    /// Its tokens with the last one repeated, and their positions, up to a length of `t`: nothing
    /// before them sees them, and no loss is taken there.
    fn padded(&self, t: usize) -> (Vec<u32>, Positions) {
        let mut input_ids = self.input_ids.clone();
        input_ids.resize(t, self.input_ids.last().copied().unwrap_or_default());
        (input_ids, self.positions.part(0..t))
    }
}

/// A sample as it enters an optimiser step.
#[derive(Clone, Debug)]
pub struct Weighted<'a> {
    /// The sample.
    pub sample: &'a Sample,
    /// Those of its media, `[v, hidden]` each, with a tape where the vision tower is trained.
    pub features: Vec<Tensor<2>>,
    /// What each of its token losses counts in the loss of the step.
    pub weight: f64,
    /// Seed of its dropout; none where there is no dropout.
    pub dropout_seed: Option<u64>,
}

/// The token losses of some samples. Nothing waits for the device until they are read.
#[derive(Clone, Debug)]
pub struct Losses {
    /// All of them, one sample's after the other's: `[n]` in pieces.
    pieces: Vec<Tensor<1>>,
    /// How many of them are each sample's.
    tokens: Vec<usize>,
}

impl Losses {
    /// Σ token losses of each sample.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn read(self) -> Result<Vec<f64>> {
        let pieces = self.pieces.into_iter().map(host).collect::<Result<Vec<_>>>()?.concat();
        let mut rest = &pieces[..];
        let of_sample = |tokens: &usize| {
            let (own, others) = rest.split_at(*tokens);
            rest = others;
            total(own)
        };
        Ok(self.tokens.iter().map(of_sample).collect())
    }
}

/// Adds the gradients of `Σ weight · Σ token losses` of `batch` to `sums`; returns the token losses.
///
/// The samples go through `model` together, which is in its training form
/// ([`Module::train`](burn::module::Module::train)), padded to the longest.
///
/// # Errors
/// Where a sample's tokens do not fit its media or the device fails.
pub fn add_samples(
    model: &QwenVl,
    batch: &[Weighted],
    method: Method,
    sums: &mut Named,
) -> Result<Losses> {
    let padded = |one: &Weighted| padded_length(one.sample.input_ids.len(), method.multiple);
    let t = batch.iter().map(padded).max().unwrap_or(0);
    let (ids, positions): (Vec<_>, Vec<_>) = batch.iter().map(|one| one.sample.padded(t)).unzip();
    let row = |one: &Weighted| Some(Row { seed: one.dropout_seed?, tokens: padded(one) });
    let rows = batch.iter().filter_map(row).collect();
    let pass = Pass { model, context: model.context(&positions, true), method, rows };
    let embedded = batch.iter().zip(&ids).map(|(one, ids)| model.embed(ids, &one.features));
    let embedded = Tensor::cat(embedded.collect::<Result<Vec<_>>>()?, 0);
    let labelled = Labelled::new(batch, t);
    let (losses, tape, gradient) = if method.recompute {
        let from = if embedded.is_tracked() { 0 } else { pass.first_trained() };
        let (inputs, last) = pass.forward_keeping_inputs(embedded.clone().inner(), from);
        let (losses, mut gradient) = pass.head(last, labelled, sums)?;
        for (i, input) in inputs.into_iter().enumerate().rev() {
            let through = i > 0 || embedded.is_tracked();
            gradient = pass.layer(from + i, input, gradient, through, sums);
        }
        (losses, embedded, gradient)
    } else {
        let last = pass.forward(embedded);
        let (losses, gradient) = pass.head(last.clone().inner(), labelled, sums)?;
        (losses, last, gradient)
    };
    if tape.is_tracked() {
        add_gradients(model, "", &mut backward(tape, gradient), sums);
    }
    Ok(losses)
}

/// Where a batch of rows of `t` tokens is learned from.
struct Labelled {
    /// Rows of `[b·t, hidden]` whose next token is labelled: `[n]`.
    rows: Vec<i64>,
    /// Those tokens: `[n]`.
    targets: Vec<i64>,
    /// What the loss at each counts: `[n]`.
    weights: Vec<f32>,
    /// How many of them are each sample's: `[b]`.
    tokens: Vec<usize>,
}

impl Labelled {
    fn new(batch: &[Weighted], t: usize) -> Self {
        let mut all = Self { rows: vec![], targets: vec![], weights: vec![], tokens: vec![] };
        for (row, one) in batch.iter().enumerate() {
            let (rows, targets) = predictions(&one.sample.labels);
            all.weights.extend(vec![one.weight as f32; rows.len()]);
            all.tokens.push(rows.len());
            all.rows.extend(rows.into_iter().map(|i| (row * t) as i64 + i));
            all.targets.extend(targets);
        }
        all
    }
}

/// Labelled positions that go through the head together.
struct Piece {
    /// Whose they are, where it draws dropout.
    row: Option<Row>,
    at: Range<usize>,
}

/// A batch's way through the model.
struct Pass<'a> {
    model: &'a QwenVl,
    context: Context,
    method: Method,
    /// The batch's samples, where they draw dropout.
    rows: Vec<Row>,
}

impl Pass<'_> {
    /// All layers with one tape: `[b, t, hidden]` → `[b, t, hidden]`.
    fn forward(&self, embedded: Tensor<3>) -> Tensor<3> {
        self.model.model.layers.iter().enumerate().fold(embedded, |x, (i, layer)| {
            self.begin_dropout(i);
            layer.forward(x, &self.context, None)
        })
    }

    /// The first layer with something to train; their number where there is none.
    fn first_trained(&self) -> usize {
        let layers = &self.model.model.layers;
        layers.iter().position(any_trained).unwrap_or(layers.len())
    }

    /// All layers without a tape; returns the inputs of those from `from` on, and the last one's
    /// output.
    fn forward_keeping_inputs(
        &self,
        embedded: Tensor<3>,
        from: usize,
    ) -> (Vec<Tensor<3>>, Tensor<3>) {
        let mut inputs = Vec::with_capacity(self.model.model.layers.len());
        let last = self.model.model.layers.iter().enumerate().fold(embedded, |x, (i, layer)| {
            if i >= from {
                inputs.push(x.clone());
            }
            self.begin_dropout(i);
            layer.valid().forward(x, &self.context, None)
        });
        (inputs, last)
    }

    /// Norm, logits and loss; returns the token losses and the gradient of their weighted sum with
    /// respect to `last`, `[b, t, hidden]`.
    fn head(
        &self,
        last: Tensor<3>,
        labelled: Labelled,
        sums: &mut Named,
    ) -> Result<(Losses, Tensor<3>)> {
        let Labelled { rows, targets, weights, tokens } = labelled;
        let [b, t, width] = last.dims();
        let rows = Tensor::<1, Int>::from_data(&rows[..], &last.device());
        let last = last.autodiff().require_grad();
        let hidden = last.clone().reshape([b * t, width]).select(0, rows);
        let hidden = self.model.model.norm.forward(hidden);
        let at_once = (self.method.logits_at_once / self.model.config.text.vocab_size).max(1);
        let (mut losses, mut gradients) = (Vec::new(), Vec::new());
        for piece in self.pieces(&tokens, at_once) {
            let rows = hidden.clone().inner().narrow(0, piece.at.start, piece.at.len());
            let (targets, weights) = (&targets[piece.at.clone()], &weights[piece.at]);
            dropout::begin(piece.row);
            let (loss, gradient) = self.loss(rows, targets, weights, sums)?;
            losses.push(loss);
            gradients.push(gradient);
        }
        let mut gradients = backward(hidden, Tensor::cat(gradients, 0));
        let gradient = last.grad_remove(&mut gradients);
        add_gradients(self.model, "", &mut gradients, sums);
        Ok((Losses { pieces: losses, tokens }, gradient.ok_or_else(no_gradient)?))
    }

    /// How the labelled positions, `tokens` of each sample, are cut, with at most `at_once` in each
    /// piece; where the head draws dropout, each sample's by themselves.
    fn pieces(&self, tokens: &[usize], at_once: usize) -> Vec<Piece> {
        let draws = self.model.lm_head.as_ref().is_some_and(|head| head.lora.is_some());
        let rows = if draws { &self.rows[..] } else { &[] };
        let together = if rows.is_empty() { vec![tokens.iter().sum()] } else { tokens.to_vec() };
        let mut pieces = Vec::new();
        let mut start = 0;
        for (i, n) in together.into_iter().enumerate() {
            let end = start + n;
            let cut = |from: usize| from..end.min(from + at_once);
            let row = |part| rows.get(i).map(|row| row.at(self.model.model.layers.len() + part));
            let pieces_of = (start..end).step_by(at_once).enumerate();
            pieces.extend(pieces_of.map(|(part, from)| Piece { row: row(part), at: cut(from) }));
            start = end;
        }
        pieces
    }

    /// The token losses at `hidden: [n, hidden]`, and the gradient of their weighted sum.
    fn loss(
        &self,
        hidden: Tensor<2>,
        targets: &[i64],
        weights: &[f32],
        sums: &mut Named,
    ) -> Result<(Tensor<1>, Tensor<2>)> {
        let weights = Tensor::<1>::from_data(weights, (&hidden.device(), DType::F32));
        let hidden = hidden.autodiff().require_grad();
        let losses = cross_entropy(self.model.head(hidden.clone(), true), targets);
        let mut gradients = backward(losses.clone(), weights);
        let gradient = hidden.grad_remove(&mut gradients).ok_or_else(no_gradient)?;
        add_gradients(self.model, "", &mut gradients, sums);
        Ok((losses.inner(), gradient))
    }

    /// Runs layer `i` again on its `input` with a tape; `gradient` is that of its output. What
    /// returns is that of its input, where it has to go `through`: else `gradient` itself, which
    /// nobody asks for.
    fn layer(
        &self,
        i: usize,
        input: Tensor<3>,
        gradient: Tensor<3>,
        through: bool,
        sums: &mut Named,
    ) -> Tensor<3> {
        let layer = &self.model.model.layers[i];
        let input = input.autodiff();
        let input = if through { input.require_grad() } else { input };
        self.begin_dropout(i);
        let output = layer.forward(input.clone(), &self.context, None);
        let mut gradients = backward(output, gradient.clone());
        add_gradients(layer, &format!("model.layers.{i}"), &mut gradients, sums);
        input.grad_remove(&mut gradients).unwrap_or(gradient)
    }

    /// Layer `i` draws the same dropout each time it is run on this batch.
    fn begin_dropout(&self, i: usize) {
        dropout::begin(self.rows.iter().map(|row| row.at(i)));
    }
}

fn no_gradient() -> Error {
    Error::run("the loss has no gradient")
}
