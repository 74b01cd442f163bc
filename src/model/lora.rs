//! The low-rank adapters of linear layers.
//!
//! An adapter works on the activation side, `y = x·W + b + s·(x·A)·B`: the dense update
//! `W + s·A·B` is never formed, so a frozen weight costs no gradient. DoRA scales each output of
//! the updated weight to a trained length. Source: PEFT's `lora.Linear` and `DoraLinearLayer`.
//! Letters: `i` inputs, `o` outputs, `r` rank.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};
use rand::RngExt as Rng;

use super::cpu;
use super::dropout;
use super::host::resident;
use super::linear::{Linear, Weight, add_bias, cast, product};

/// A low-rank update `s·A·B`, kept in f32 over a base of any type. Its gradients are f32 too.
#[derive(Module, Debug)]
pub struct Lora {
    /// `[i, r]`: the transpose of PEFT's `lora_A.weight`.
    pub lora_a: Param<Tensor<2>>,
    /// `[r, o]`: the transpose of PEFT's `lora_B.weight`.
    pub lora_b: Param<Tensor<2>>,
    /// DoRA: length of each output's weights, `[o]`; PEFT's `lora_magnitude_vector`.
    pub magnitude: Option<Param<Tensor<1>>>,
    /// DoRA: the lengths that the weights have, `[o]`, where they do not change any more.
    lengths: Option<Tensor<1>>,
    /// On a GPU: A, scaled, and B in the weight's type, where they do not change for a while.
    factors: Option<[Tensor<2>; 2]>,
    /// `alpha / r`, with rsLoRA `alpha / √r`.
    pub scaling: f64,
    /// Share of the adapter's inputs that is dropped while training.
    pub dropout: f64,
}

impl Lora {
    /// An adapter that changes nothing yet: A as PEFT draws it (Kaiming-uniform with `a = √5`,
    /// that is uniform in `±1/√i`), B zero. Drawn on the host: the same on every device.
    pub fn new(of: &Linear, r: usize, scaling: f64, dropout: f64, rng: &mut impl Rng) -> Self {
        let [i, o] = of.shape();
        let bound = 1.0 / (i as f32).sqrt();
        let a: Vec<f32> = (0..i * r).map(|_| rng.random_range(-bound..bound)).collect();
        let device = of.weight.device();
        let [a, b] = [TensorData::new(a, [i, r]), TensorData::zeros::<f32, _>([r, o])]
            .map(|data| resident(data, &device, DType::F32));
        Self::from_tensors(a, b, scaling, dropout)
    }

    /// An adapter with given weights: `a: [i, r]`, `b: [r, o]`, f32.
    pub fn from_tensors(a: Tensor<2>, b: Tensor<2>, scaling: f64, dropout: f64) -> Self {
        let (lora_a, lora_b) = (Param::from_tensor(a), Param::from_tensor(b));
        let (magnitude, lengths, factors) = (None, None, None);
        Self { lora_a, lora_b, magnitude, lengths, factors, scaling, dropout }
    }

    /// The adapter as DoRA with the given lengths, `[o]`; those that `of` has now where none are.
    pub fn with_magnitude(mut self, of: &Linear, magnitude: Option<Tensor<1>>) -> Self {
        let magnitude = magnitude.unwrap_or_else(|| self.lengths(&of.weight));
        self.magnitude = Some(Param::from_tensor(magnitude));
        self
    }

    /// `x·W + b + s·(x'·A)·B` of the layer `of`, with `x'` the inputs that are left after dropout; in
    /// the type of `x`, as PEFT does under autocast.
    pub(super) fn forward<const D: usize>(
        &self,
        of: &Linear,
        x: Tensor<D>,
        train: bool,
    ) -> Tensor<D> {
        let bias = of.bias.as_ref().map(Param::val);
        let left = self.drop_inputs(x.clone(), train);
        #[cfg(feature = "cuda")]
        if super::cuda::holds(&x) && !of.weight.is_trained() {
            let left = if self.drops(train) { left } else { left.detach() };
            let factors = self.factors.clone().unwrap_or_else(|| self.new_factors(x.dtype()));
            let learned = [self.lora_a.val(), self.lora_b.val()];
            return super::cuda::adapted(
                [x, left],
                &of.weight,
                bias,
                learned,
                factors,
                self.scaling,
            );
        }
        let y = add_bias(of.weight.product(x, None), bias);
        if cpu::runs(&y) {
            return cpu::add_lora(y, left, self.lora_a.val(), self.lora_b.val(), self.scaling);
        }
        y + self.update(left)
    }

    /// `x·W + b + (c − 1)·x'·W + c·s·(x'·A)·B` of the layer `of`, with `x'` the inputs that are left
    /// after dropout and `c` the factor that gives each output its `magnitude`.
    pub(super) fn forward_dora<const D: usize>(
        &self,
        of: &Linear,
        x: Tensor<D>,
        magnitude: Tensor<1>,
        train: bool,
    ) -> Tensor<D> {
        let y = of.weight.product(x.clone(), None);
        let dtype = y.dtype();
        let factor = (magnitude / self.lengths(&of.weight)).unsqueeze();
        let (left, base) = if self.drops(train) {
            let left = self.drop_inputs(x, train);
            (left.clone(), of.weight.product(left, None))
        } else {
            (x, y.clone())
        };
        let left = cast(left, DType::F32);
        let correction = (factor.clone() - 1.0) * cast(base, DType::F32);
        let y = y + cast(correction + factor * self.update(left), dtype);
        add_bias(y, of.bias.as_ref().map(Param::val))
    }

    /// `weight` and the update as one matrix, in the weight's type.
    pub(super) fn merged_into(&self, weight: &Weight) -> Tensor<2> {
        let dtype = weight.dtype();
        let update = self.lora_a.val().matmul(self.lora_b.val()).mul_scalar(self.scaling);
        let factor =
            self.magnitude.as_ref().map(|m| (m.val() / self.lengths(weight)).unsqueeze::<2>());
        let merged = cast(weight.val(), DType::F32) + update;
        let merged = match factor {
            None => merged,
            Some(c) => c * merged,
        };
        cast(merged, dtype)
    }

    /// The adapter of a model that only answers: what is the same for every token is done once.
    pub(super) fn for_inference(mut self, weight: &Weight) -> Self {
        let dtype = weight.dtype();
        self.lengths = self.magnitude.as_ref().map(|_| self.lengths(weight));
        // DoRA's correction is f32 in any case.
        if dtype != DType::F32 && self.magnitude.is_none() {
            let scaling = std::mem::replace(&mut self.scaling, 1.0);
            self.lora_a = self.lora_a.map(|a| cast(a.mul_scalar(scaling), dtype));
            self.lora_b = self.lora_b.map(|b| cast(b, dtype));
        }
        self
    }

    /// Lengths of the columns of `W + s·A·B`, `[o]`, f32, as a constant: no gradient flows through
    /// them. From `‖w‖² + 2s·wᵀ(A·b) + s²·‖A·b‖²`, so that `A·B` is not formed.
    fn lengths(&self, weight: &Weight) -> Tensor<1> {
        if let Some(lengths) = &self.lengths {
            return lengths.clone();
        }
        let weight = cast(weight.val().detach(), DType::F32);
        let (a, b) = (self.lora_a.val().detach(), self.lora_b.val().detach());
        let mixed = (a.clone().transpose().matmul(weight.clone()) * b.clone()).sum_dim(0);
        let own = (a.clone().transpose().matmul(a).matmul(b.clone()) * b).sum_dim(0);
        let squares = weight.square().sum_dim(0)
            + mixed.mul_scalar(2.0 * self.scaling)
            + own.mul_scalar(self.scaling * self.scaling);
        squares.sqrt().squeeze_dim(0)
    }

    /// Keeps what each forward pass else makes anew, for as long as A and B stay as they are.
    #[cfg(feature = "cuda")]
    pub(super) fn keep_factors(&mut self, dtype: DType) {
        self.factors = Some(self.new_factors(dtype));
    }

    #[cfg(feature = "cuda")]
    fn new_factors(&self, dtype: DType) -> [Tensor<2>; 2] {
        super::cuda::factors(self.lora_a.val(), self.lora_b.val(), self.scaling, dtype)
    }

    /// Whether inputs are dropped.
    fn drops(&self, train: bool) -> bool {
        train && self.dropout > 0.0
    }

    /// `x`, of which in training a share is dropped and the rest scaled up.
    fn drop_inputs<const D: usize>(&self, x: Tensor<D>, train: bool) -> Tensor<D> {
        if !self.drops(train) {
            return x;
        }
        // In f32: rounded to bf16, the factor alone would be off by up to 0.2 %.
        let (keep, dtype) = (1.0 - self.dropout, x.dtype());
        let x = cast(x, DType::F32);
        let kept = dropout::kept(&x, keep).div_scalar(keep);
        cast(x * kept, dtype)
    }

    /// `s·(x·A)·B`: `x: […, i]` → `[…, o]`, in the type of `x`.
    fn update<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let [a, b] = [&self.lora_a, &self.lora_b].map(|weight| cast(weight.val(), x.dtype()));
        // Scaled where there are few numbers.
        product(product(x, a, None).mul_scalar(self.scaling), b, None)
    }
}
