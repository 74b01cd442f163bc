//! Global-norm clipping and AdamW, in PyTorch's order of operations.
//!
//! Own code although burn has an AdamW: moments are kept by parameter name, so that a checkpoint
//! holds them under the names of the adapter, and the clip is over all parameters together.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{DType, Tensor};

use crate::error::Result;
#[cfg(feature = "cuda")]
use crate::model::cuda;
use crate::model::host::host;
use crate::model::linear::cast;
use crate::model::parameters::{self, Named};

/// Decay rates of the moments and what is added to the root of the second one.
/// Source: PyTorch's and LLaMA-Factory's defaults.
const BETAS: (f64, f64) = (0.9, 0.999);
const EPS: f64 = 1e-8;

/// AdamW with decoupled weight decay.
#[derive(Clone, Debug, Default)]
pub struct AdamW {
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Steps taken.
    pub step: usize,
    /// Those of them in which a parameter had a gradient, by its name: as in PyTorch, its moments are
    /// corrected by these alone.
    pub steps: BTreeMap<String, usize>,
    /// First and second moment by parameter name, flat.
    pub moments: BTreeMap<String, [Tensor<1>; 2]>,
    /// f32 values of the parameters that the model holds in bf16, whose steps would else be
    /// rounded away.
    pub masters: Named,
}

impl AdamW {
    /// An optimiser that has taken no step.
    pub fn new(weight_decay: f64) -> Self {
        Self { weight_decay, ..Self::default() }
    }

    /// Moves every parameter of `model` that has a gradient, which is multiplied by `factor` first;
    /// `lr` is asked for each one's rate.
    pub fn update<M: Module>(
        &mut self,
        model: M,
        lr: impl Fn(&str) -> f64 + Sync,
        gradients: &Named,
        factor: f64,
    ) -> M {
        self.step += 1;
        let Some(first) = gradients.values().next() else { return model };
        // The first step makes moments, each one bf16 weights, and all of these stay: as `resident`.
        first.device().memory_persistent_allocations((self, model), |(optimiser, model)| {
            optimiser.move_all(model, &lr, gradients, factor)
        })
    }

    fn move_all<M: Module>(
        &mut self,
        model: M,
        lr: impl Fn(&str) -> f64,
        gradients: &Named,
        factor: f64,
    ) -> M {
        parameters::replace(model, |name, value| {
            let Some(gradient) = gradients.get(name).cloned() else { return value };
            let decay = if decays(name, gradients) { self.weight_decay } else { 0.0 };
            let steps = self.steps.entry(name.to_owned()).or_default();
            *steps += 1;
            let exponent = *steps as i32;
            let corrections = [BETAS.0, BETAS.1].map(|beta| 1.0 - beta.powi(exponent));
            let step = Step { factor, lr: lr(name), decay, corrections };
            let moments = self
                .moments
                .remove(name)
                .unwrap_or_else(|| [gradient.zeros_like(), gradient.zeros_like()]);
            let dtype = value.dtype();
            let master = self.masters.remove(name).unwrap_or_else(|| cast(value, DType::F32));
            let (moments, master) = step.take(gradient, moments, master);
            self.moments.insert(name.to_owned(), moments);
            if dtype != DType::F32 {
                self.masters.insert(name.to_owned(), master.clone());
            }
            cast(master, dtype)
        })
    }
}

/// One step of one parameter.
struct Step {
    /// What the gradient is multiplied by.
    factor: f64,
    lr: f64,
    decay: f64,
    /// `1 − βᵗ` of both moments.
    corrections: [f64; 2],
}

impl Step {
    /// Moments and value behind it.
    fn take(
        self,
        gradient: Tensor<1>,
        moments: [Tensor<1>; 2],
        value: Tensor<1>,
    ) -> ([Tensor<1>; 2], Tensor<1>) {
        let ((beta1, beta2), [correction1, correction2]) = (BETAS, self.corrections);
        let (root, rate) = (correction2.sqrt(), self.lr / correction1);
        let left = 1.0 - self.lr * self.decay;
        #[cfg(feature = "cuda")]
        if cuda::holds(&value) {
            let step = cuda::Step {
                factor: self.factor as f32,
                first: (1.0 - beta1) as f32,
                decay: beta2 as f32,
                second: (1.0 - beta2) as f32,
                root: root as f32,
                eps: EPS as f32,
                rate: rate as f32,
                left: left as f32,
            };
            return cuda::adamw(step, gradient, moments, value);
        }
        let [first, second] = moments;
        let clipped = self.factor < 1.0;
        let gradient = if clipped { gradient.mul_scalar(self.factor) } else { gradient };
        let first = first.clone() + (gradient.clone() - first).mul_scalar(1.0 - beta1);
        let second = second.mul_scalar(beta2) + gradient.square().mul_scalar(1.0 - beta2);
        let over = second.clone().sqrt().div_scalar(root).add_scalar(EPS);
        let value = value.mul_scalar(left) - (first.clone() / over).mul_scalar(rate);
        ([first, second], value)
    }
}

/// Whether weight decay acts on a parameter: not on biases and norms, but for the vision tower's
/// norms without a bias, whose names transformers' rule misses.
/// Source: `Trainer.get_decay_parameter_names`.
fn decays(name: &str, gradients: &Named) -> bool {
    let layer = name.strip_suffix(".weight").unwrap_or(name);
    match layer.rsplit('.').next().unwrap_or_default() {
        "norm1" | "norm2" | "ln_q" => !gradients.contains_key(&format!("{layer}.bias")),
        last => last != "bias" && last != "norm" && !last.ends_with("layernorm"),
    }
}

/// The global norm of `gradients`.
///
/// # Errors
/// Where the device fails.
pub fn global_norm(gradients: &Named) -> Result<f64> {
    let Some(squares) = squares(gradients) else { return Ok(0.0) };
    Ok(host(squares)?.into_iter().map(f64::from).sum::<f64>().sqrt())
}

/// What gradients of the global norm `norm` are multiplied by, so that it is at most `max_norm`; 0
/// clips nothing.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    // 1e-6: as `clip_grad_norm_`.
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// Sums of squares whose sum is that of all `gradients`; nothing where there are none.
fn squares(gradients: &Named) -> Option<Tensor<1>> {
    #[cfg(feature = "cuda")]
    if gradients.values().next().is_some_and(cuda::holds) {
        return cuda::squares(gradients.values());
    }
    gradients.values().map(|g| g.clone().square().sum()).reduce(|a, b| a + b)
}
