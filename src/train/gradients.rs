//! Gradients of one sample, block by block.
//!
//! With `recompute` the forward keeps no tape, only each layer's input; the backward runs each
//! layer again with a tape of its own. What lies before the first trained part has no tape and is
//! not run again. Logits exist at labelled positions only, and of a few at a time. Letters: `t`
//! tokens, `n` labelled positions.

use std::borrow::Cow;

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};

use super::loss::{cross_entropy, predictions};
use crate::data::chat::IGNORE_INDEX;
use crate::error::{Error, Result};
use crate::model::host::host;
use crate::model::language::Context;
use crate::model::parameters::{Named, add_gradients, any_trained};
use crate::model::qwen_vl::QwenVl;
use crate::model::rope::Positions;

/// A sample, ready for the model.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Which one it is, for messages.
    pub id: String,
    /// `[t]`.
    pub input_ids: Vec<u32>,
    /// `[t]`, [`IGNORE_INDEX`] where nothing is learned.
    pub labels: Vec<i64>,
    /// Where each token stands in time, height and width.
    pub positions: Positions,
}

/// How the gradients are computed; none of it changes them.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// Recompute each layer in the backward pass.
    pub recompute: bool,
    /// Seed of the sample's dropout; none where there is no dropout.
    pub dropout_seed: Option<u64>,
    /// Most logits that exist at once ([`LOGITS_AT_ONCE`]); at least those of one position do.
    pub logits_at_once: usize,
    /// Samples are padded on the right to one token less than a multiple of so many; 1 pads none.
    pub multiple: usize,
}

/// On a GPU: kernels are tuned and compiled for each new shape, so that there be few. One less,
/// as attention there takes another query where their number is even.
pub const GPU_MULTIPLE: usize = 64;

/// 64 MiB in f32, and three times that with what the loss makes of them: the logits of 110
/// positions at Qwen's vocabulary of 152,064.
pub const LOGITS_AT_ONCE: usize = 1 << 24;

impl Sample {
    /// This one with its last token repeated up to one token less than a multiple of `multiple`:
    /// nothing before them sees them, and no loss is taken there.
    fn padded(&self, multiple: usize) -> Cow<'_, Self> {
        let t = (self.input_ids.len() + 1).next_multiple_of(multiple) - 1;
        if t == self.input_ids.len() {
            return Cow::Borrowed(self);
        }
        let mut padded = self.clone();
        padded.input_ids.resize(t, self.input_ids.last().copied().unwrap_or_default());
        padded.labels.resize(t, IGNORE_INDEX);
        padded.positions = self.positions.part(0..t);
        Cow::Owned(padded)
    }
}

/// Adds the gradients of `weight · Σ token losses` of `sample` to `sums`; returns `Σ token losses`.
///
/// `model` is in its training form ([`Module::train`](burn::module::Module::train)); `features`
/// are those of the sample's media, with a tape where the vision tower is trained.
///
/// # Errors
/// Where the sample's tokens do not fit its media or the device fails.
pub fn add_sample(
    model: &QwenVl,
    sample: &Sample,
    features: &[Tensor<2>],
    weight: f64,
    method: Method,
    sums: &mut Named,
) -> Result<f64> {
    let sample = sample.padded(method.multiple);
    let pass = Pass { model, context: model.context(&sample.positions, true), method };
    let embedded = model.embed(&sample.input_ids, features)?;
    let (loss, tape, gradient) = if method.recompute {
        let from = if embedded.is_tracked() { 0 } else { pass.first_trained() };
        let (inputs, last) = pass.forward_keeping_inputs(embedded.clone().inner(), from);
        let (loss, mut gradient) = pass.head(last, &sample.labels, weight, sums)?;
        for (i, input) in inputs.into_iter().enumerate().rev() {
            let through = i > 0 || embedded.is_tracked();
            gradient = pass.layer(from + i, input, gradient, through, sums);
        }
        (loss, embedded, gradient)
    } else {
        let last = pass.forward(embedded);
        let (loss, gradient) = pass.head(last.clone().inner(), &sample.labels, weight, sums)?;
        (loss, last, gradient)
    };
    if tape.is_tracked() {
        add_gradients(model, "", &mut (tape * gradient).sum().backward(), sums);
    }
    Ok(loss)
}

/// One sample's way through the model.
struct Pass<'a> {
    model: &'a QwenVl,
    context: Context,
    method: Method,
}

impl Pass<'_> {
    /// All layers with one tape: `[1, t, hidden]` → `[1, t, hidden]`.
    fn forward(&self, embedded: Tensor<3>) -> Tensor<3> {
        self.model.model.layers.iter().enumerate().fold(embedded, |x, (i, layer)| {
            self.seed_dropout(i);
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
            self.seed_dropout(i);
            layer.valid().forward(x, &self.context, None)
        });
        (inputs, last)
    }

    /// Norm, logits and loss; returns the summed token losses and the gradient of their weighted
    /// sum with respect to `last`, `[1, t, hidden]`.
    fn head(
        &self,
        last: Tensor<3>,
        labels: &[i64],
        weight: f64,
        sums: &mut Named,
    ) -> Result<(f64, Tensor<3>)> {
        let (rows, targets) = predictions(labels);
        let n = rows.len();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [n]), &last.device());
        let last = last.autodiff().require_grad();
        let hidden = self.model.model.norm.forward(last.clone().select(1, rows)).squeeze_dim(0);
        let at_once = (self.method.logits_at_once / self.model.config.text.vocab_size).max(1);
        let (mut value, mut pieces) = (0.0, Vec::new());
        self.seed_dropout(self.model.model.layers.len());
        for (i, targets) in targets.chunks(at_once).enumerate() {
            let piece = hidden.clone().inner().narrow(0, i * at_once, targets.len());
            let (loss, gradient) = self.loss(piece, targets, weight, sums)?;
            value += loss;
            pieces.push(gradient);
        }
        let mut gradients = (hidden * Tensor::cat(pieces, 0)).sum().backward();
        let gradient = last.grad_remove(&mut gradients);
        add_gradients(self.model, "", &mut gradients, sums);
        Ok((value, gradient.ok_or_else(no_gradient)?))
    }

    /// The summed token losses at `hidden: [n, hidden]`, and the gradient of their weighted sum.
    fn loss(
        &self,
        hidden: Tensor<2>,
        targets: &[i64],
        weight: f64,
        sums: &mut Named,
    ) -> Result<(f64, Tensor<2>)> {
        let hidden = hidden.autodiff().require_grad();
        let loss = cross_entropy(self.model.head(hidden.clone(), true), targets);
        let value = host(loss.clone().inner())?[0];
        let mut gradients = loss.mul_scalar(weight).backward();
        let gradient = hidden.grad_remove(&mut gradients).ok_or_else(no_gradient)?;
        add_gradients(self.model, "", &mut gradients, sums);
        Ok((f64::from(value), gradient))
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
        self.seed_dropout(i);
        let output = layer.forward(input.clone(), &self.context, None);
        let mut gradients = (output * gradient.clone()).sum().backward();
        add_gradients(layer, &format!("model.layers.{i}"), &mut gradients, sums);
        input.grad_remove(&mut gradients).unwrap_or(gradient)
    }

    /// Layer `i` (behind the last: the head) draws the same dropout each time it is run on this
    /// sample.
    fn seed_dropout(&self, i: usize) {
        if let Some(seed) = self.method.dropout_seed {
            self.model.device().seed(seed.wrapping_add(i as u64 + 1));
        }
    }
}

fn no_gradient() -> Error {
    Error::run("the loss has no gradient")
}
