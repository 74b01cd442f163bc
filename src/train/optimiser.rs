//! Global-norm clipping and AdamW, in PyTorch's order of operations.
//!
//! Own code although burn has an AdamW: moments are kept by parameter name, so that a checkpoint
//! holds them under the names of the adapter, and the clip is over all parameters together.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Tensor;

use crate::error::Result;
use crate::model::host::host;
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
    /// First and second moment by parameter name, flat.
    pub moments: BTreeMap<String, [Tensor<1>; 2]>,
}

impl AdamW {
    /// An optimiser that has taken no step.
    pub fn new(weight_decay: f64) -> Self {
        Self { weight_decay, ..Self::default() }
    }

    /// Moves every parameter of `model` that has a gradient.
    pub fn update<M: Module>(&mut self, model: M, lr: f64, gradients: &Named) -> M {
        self.step += 1;
        let (beta1, beta2) = BETAS;
        let exponent = self.step as i32;
        let (correction1, correction2) = (1.0 - beta1.powi(exponent), 1.0 - beta2.powi(exponent));
        parameters::replace(model, "", |name, value| {
            let gradient = gradients.get(name)?.clone();
            let [first, second] = self.moments.remove(name).unwrap_or_else(|| {
                let zeros = gradient.zeros_like();
                [zeros.clone(), zeros]
            });
            let first = first.clone() + (gradient.clone() - first).mul_scalar(1.0 - beta1);
            let second = second.mul_scalar(beta2) + gradient.square().mul_scalar(1.0 - beta2);
            let root = second.clone().sqrt().div_scalar(correction2.sqrt()).add_scalar(EPS);
            let step = (first.clone() / root).mul_scalar(lr / correction1);
            self.moments.insert(name.to_owned(), [first, second]);
            Some(value.mul_scalar(1.0 - lr * self.weight_decay) - step)
        })
    }
}

/// The global norm of `gradients`, which are scaled down to `max_norm` where it is larger.
///
/// # Errors
/// Where the device fails.
pub fn clip(gradients: &mut Named, max_norm: f64) -> Result<f64> {
    let squares = gradients.values().map(|g| g.clone().square().sum());
    let Some(total) = squares.reduce(|a, b| a + b) else { return Ok(0.0) };
    let norm = f64::from(host(total)?[0]).sqrt();
    // 1e-6: as `clip_grad_norm_`.
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 {
        gradients.values_mut().for_each(|g| *g = g.clone().mul_scalar(factor));
    }
    Ok(norm)
}
