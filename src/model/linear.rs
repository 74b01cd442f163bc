//! Linear layers, with a low-rank adapter where one is attached, and what they are made of.
//!
//! Letters: `i` inputs, `o` outputs.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor, module::linear};

use super::lora::Lora;
use super::nf4::Nf4;

/// `x: […, i]` → `[…, o]`, with an adapter where one is attached.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[i, o]`.
    pub weight: Weight,
    /// `[o]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The low-rank update.
    pub lora: Option<Lora>,
}

/// A layer's matrix, `[i, o]`: the transpose of the hub's layout.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "some hundred bytes of a matrix's millions")]
pub enum Weight {
    /// In the type that is computed in.
    Dense(Param<Tensor<2>>),
    /// In four bits, never trained.
    Nf4(Nf4),
}

impl Weight {
    /// Its numbers, `[i, o]`.
    pub fn val(&self) -> Tensor<2> {
        match self {
            Self::Dense(weight) => weight.val(),
            Self::Nf4(weight) => weight.values(),
        }
    }

    /// The type of its numbers.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Dense(weight) => weight.val().dtype(),
            Self::Nf4(weight) => weight.dtype(),
        }
    }

    /// Where it is, without autodiff.
    pub fn device(&self) -> Device {
        match self {
            Self::Dense(weight) => weight.val().device().inner(),
            Self::Nf4(weight) => weight.device().inner(),
        }
    }

    /// `[i, o]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.shape().dims(),
            Self::Nf4(weight) => weight.shape(),
        }
    }

    /// Whether it is trained.
    pub fn is_trained(&self) -> bool {
        matches!(self, Self::Dense(weight) if weight.is_require_grad())
    }

    /// `x·W + bias`: `x: […, i]`, `bias: [o]` → `[…, o]`.
    pub fn product<const D: usize>(&self, x: Tensor<D>, bias: Option<Tensor<1>>) -> Tensor<D> {
        match self {
            Self::Dense(weight) => product(x, weight.val(), bias),
            Self::Nf4(weight) => add_bias(weight.product(x), bias),
        }
    }
}

impl From<Tensor<2>> for Weight {
    fn from(weight: Tensor<2>) -> Self {
        Self::Dense(Param::from_tensor(weight).set_require_grad(false))
    }
}

impl Linear {
    /// Applies the layer; `train` switches the adapter's dropout on.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, train: bool) -> Tensor<D> {
        let Some(lora) = &self.lora else {
            return self.weight.product(x, self.bias.as_ref().map(Param::val));
        };
        if let Some(magnitude) = &lora.magnitude {
            return lora.forward_dora(self, x, magnitude.val(), train);
        }
        lora.forward(self, x, train)
    }

    /// `[i, o]`.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.shape()
    }

    /// The layer for answers alone: its adapter is not trained any more.
    pub fn for_inference(&mut self) {
        self.lora = self.lora.take().map(|lora| lora.for_inference(&self.weight));
    }

    /// The layer while its adapter stays as it is.
    #[cfg(feature = "cuda")]
    pub fn keep_factors(&mut self) {
        let dtype = self.weight.dtype();
        if let Some(lora) = self.lora.as_mut().filter(|lora| lora.magnitude.is_none()) {
            lora.keep_factors(dtype);
        }
    }

    /// Adds the adapter to the weight and drops it: the same function without the extra work.
    pub fn merge(mut self) -> Self {
        if let Some(lora) = self.lora.take() {
            self.weight = lora.merged_into(&self.weight).into();
        }
        self
    }
}

/// `x·weight + bias`: `x: […, i]`, `weight: [i, o]` → `[…, o]`.
pub fn product<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    #[cfg(feature = "cuda")]
    if super::cuda::holds(&x) {
        return add_bias(super::cuda::product(x, weight), bias);
    }
    linear(x, weight, bias)
}

/// `y + bias`: `y: […, o]`, `bias: [o]`.
pub(super) fn add_bias<const D: usize>(y: Tensor<D>, bias: Option<Tensor<1>>) -> Tensor<D> {
    match bias {
        None => y,
        Some(bias) => y + bias.unsqueeze(),
    }
}

/// `x` as `dtype`; nothing happens where it is that already.
pub fn cast<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(FloatDType::from(dtype)) }
}
