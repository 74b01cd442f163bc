//! Gradients of one sample, block by block.
//!
//! With `recompute` the forward keeps no tape, only each layer's input; the backward runs each
//! layer again with a tape of its own. Frozen parts before the first trained one have no tape at
//! all. Letters: `t` tokens, `n` labelled positions.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};

use super::loss::{cross_entropy, predictions};
use crate::error::{Error, Result};
use crate::model::host::host;
use crate::model::language::Context;
use crate::model::parameters::{Named, add_gradients};
use crate::model::qwen_vl::QwenVl;
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
    /// Seed of the sample's dropout; none where there is no dropout.
    pub dropout_seed: Option<u64>,
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
    let pass = Pass { model, context: model.context(&sample.positions, true), method };
    let embedded = model.embed(&sample.input_ids, features)?;
    let (loss, tape, gradient) = if method.recompute {
        let (inputs, last) = pass.forward_keeping_inputs(embedded.clone().inner());
        let (loss, mut gradient) = pass.head(last, &sample.labels, weight, sums)?;
        for (i, input) in inputs.into_iter().enumerate().rev() {
            gradient = pass.layer(i, input, gradient, sums);
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

    /// All layers without a tape; returns each layer's input and the last one's output.
    fn forward_keeping_inputs(&self, embedded: Tensor<3>) -> (Vec<Tensor<3>>, Tensor<3>) {
        let mut inputs = Vec::with_capacity(self.model.model.layers.len());
        let last = self.model.model.layers.iter().enumerate().fold(embedded, |x, (i, layer)| {
            inputs.push(x.clone());
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
        let hidden = self.model.model.norm.forward(last.clone().select(1, rows));
        let loss = cross_entropy(self.model.logits(hidden.squeeze_dim(0)), &targets);
        let value = host(loss.clone().inner())?[0];
        let mut gradients = loss.mul_scalar(weight).backward();
        let gradient = last.grad_remove(&mut gradients);
        add_gradients(self.model, "", &mut gradients, sums);
        let gradient = gradient.ok_or_else(|| Error::run("the loss has no gradient"))?;
        Ok((f64::from(value), gradient))
    }

    /// Runs layer `i` again on its `input` with a tape; `gradient` is that of its output, what
    /// returns is that of its input.
    fn layer(
        &self,
        i: usize,
        input: Tensor<3>,
        gradient: Tensor<3>,
        sums: &mut Named,
    ) -> Tensor<3> {
        let layer = &self.model.model.layers[i];
        let input = input.autodiff().require_grad();
        self.seed_dropout(i);
        let output = layer.forward(input.clone(), &self.context, None);
        let mut gradients = (output * gradient).sum().backward();
        add_gradients(layer, &format!("model.layers.{i}"), &mut gradients, sums);
        // The input always reaches the output: through the residual stream.
        input.grad_remove(&mut gradients).unwrap_or_else(|| input.inner().zeros_like())
    }

    /// Layer `i` draws the same dropout each time it is run on this sample.
    fn seed_dropout(&self, i: usize) {
        if let Some(seed) = self.method.dropout_seed {
            self.model.device().seed(seed.wrapping_add(i as u64));
        }
    }
}
