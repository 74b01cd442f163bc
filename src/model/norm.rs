//! The two normalisations, with f32 statistics.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};

use super::cpu;
use super::linear::cast;

/// `x / rms(x) · weight` over the last dimension.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[d]`.
    pub weight: Param<Tensor<1>>,
    /// Added to the mean square.
    pub eps: f64,
}

impl RmsNorm {
    /// `x: […, d]` → `[…, d]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        if cpu::runs(&x) {
            return cpu::rms_norm(x, self.weight.val(), self.eps);
        }
        #[cfg(feature = "cuda")]
        if super::cuda::holds(&x) && !self.weight.val().is_tracked() {
            return super::cuda::rms_norm(x, self.weight.val(), self.eps);
        }
        let dtype = x.dtype();
        let x = cast(x, DType::F32);
        let scale = x.clone().square().mean_dim(D - 1).add_scalar(self.eps).sqrt().recip();
        // As the reference: back to the activation's type first, then times the weight.
        cast(x * scale, dtype) * self.weight.val().unsqueeze()
    }
}

/// `(x − mean) / std · weight + bias` over the last dimension.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[d]`.
    pub weight: Param<Tensor<1>>,
    /// `[d]`.
    pub bias: Param<Tensor<1>>,
    /// Added to the variance.
    pub eps: f64,
}

impl LayerNorm {
    /// `x: […, d]` → `[…, d]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        if cpu::runs(&x) {
            return cpu::layer_norm(x, self.weight.val(), self.bias.val(), self.eps);
        }
        #[cfg(feature = "cuda")]
        if super::cuda::holds(&x)
            && ![&self.weight, &self.bias].iter().any(|w| w.val().is_tracked())
        {
            return super::cuda::layer_norm(x, self.weight.val(), self.bias.val(), self.eps);
        }
        let dtype = x.dtype();
        let x = cast(x, DType::F32);
        let centred = x.clone() - x.mean_dim(D - 1);
        let std = centred.clone().square().mean_dim(D - 1).add_scalar(self.eps).sqrt();
        let weight = cast(self.weight.val(), DType::F32).unsqueeze();
        cast(centred / std * weight + cast(self.bias.val(), DType::F32).unsqueeze(), dtype)
    }
}
