//! Linear layers and their low-rank adapters.
//!
//! The adapter works on the activation side, `y = x·W + b + s·(x·A)·B`: the dense update
//! `W + s·A·B` is never formed, so a frozen weight costs no gradient. Source: PEFT's
//! `lora.Linear`. Letters: `i` inputs, `o` outputs, `r` rank.

use burn::module::{Module, Param};
use burn::tensor::{DType, Distribution, FloatDType, Tensor, TensorData, module::linear};
use rand::RngExt as Rng;

use super::cpu;

/// `x: […, i]` → `[…, o]`, with an adapter where one is attached.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[i, o]`: the transpose of the hub's layout.
    pub weight: Param<Tensor<2>>,
    /// `[o]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The low-rank update.
    pub lora: Option<Lora>,
}

/// A low-rank update `s·A·B`, kept in f32 over a base of any type.
#[derive(Module, Debug)]
pub struct Lora {
    /// `[i, r]`: the transpose of PEFT's `lora_A.weight`.
    pub lora_a: Param<Tensor<2>>,
    /// `[r, o]`: the transpose of PEFT's `lora_B.weight`.
    pub lora_b: Param<Tensor<2>>,
    /// `alpha / r`.
    pub scaling: f64,
    /// Share of the adapter's inputs that is dropped while training.
    pub dropout: f64,
}

impl Linear {
    /// Applies the layer; `train` switches the adapter's dropout on.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, train: bool) -> Tensor<D> {
        let y = linear(x.clone(), self.weight.val(), self.bias.as_ref().map(Param::val));
        match &self.lora {
            None => y,
            Some(lora) => lora.add_to(y, x, train),
        }
    }

    /// `[i, o]`.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.shape().dims()
    }

    /// Adds the adapter to the weight and drops it: the same function without the extra work.
    pub fn merge(mut self) -> Self {
        if let Some(lora) = self.lora.take() {
            let update = lora.lora_a.val().matmul(lora.lora_b.val()).mul_scalar(lora.scaling);
            self.weight = self.weight.map(|w| {
                let dtype = w.dtype();
                cast(cast(w, DType::F32) + update, dtype)
            });
        }
        self
    }
}

impl Lora {
    /// An adapter that changes nothing yet: A as PEFT draws it (Kaiming-uniform with `a = √5`,
    /// that is uniform in `±1/√i`), B zero. Drawn on the host: the same on every device.
    pub fn new(of: &Linear, r: usize, scaling: f64, dropout: f64, rng: &mut impl Rng) -> Self {
        let [i, o] = of.shape();
        let bound = 1.0 / (i as f32).sqrt();
        let a: Vec<f32> = (0..i * r).map(|_| rng.random_range(-bound..bound)).collect();
        let device = of.weight.val().device().inner();
        let a = Tensor::from_data(TensorData::new(a, [i, r]), (&device, DType::F32));
        Self::from_tensors(a, Tensor::zeros([r, o], (&device, DType::F32)), scaling, dropout)
    }

    /// An adapter with given weights: `a: [i, r]`, `b: [r, o]`, f32.
    pub fn from_tensors(a: Tensor<2>, b: Tensor<2>, scaling: f64, dropout: f64) -> Self {
        Self { lora_a: Param::from_tensor(a), lora_b: Param::from_tensor(b), scaling, dropout }
    }

    /// Adds `s·(x·A)·B` to `y: […, o]`, the layer's output for `x: […, i]`.
    fn add_to<const D: usize>(&self, y: Tensor<D>, x: Tensor<D>, train: bool) -> Tensor<D> {
        let mut x = cast(x, DType::F32);
        if train && self.dropout > 0.0 {
            let keep = 1.0 - self.dropout;
            x = x.clone() * x.random_like(Distribution::Bernoulli(keep)).div_scalar(keep);
        }
        let (a, b) = (self.lora_a.val(), self.lora_b.val());
        if cpu::runs(&y) {
            return cpu::add_lora(y, x, a, b, self.scaling);
        }
        let dtype = y.dtype();
        y + cast(linear(linear(x, a, None), b, None).mul_scalar(self.scaling), dtype)
    }
}

/// `x` as `dtype`; nothing happens where it is that already.
pub fn cast<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(FloatDType::from(dtype)) }
}
