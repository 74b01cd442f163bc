//! Forward and backward passes of our own for f32 on the CPU.
//!
//! burn composes them of element-wise steps, each a pass over memory on one thread and, with a
//! tape, a tensor that is kept. Here each is one pass on all threads that keeps what its gradient
//! needs. Other devices and types take burn's operations: callers ask [`runs`] first.

mod attention;
mod gate;
mod layout;
mod lora;
mod matrix;
mod nf4;
mod norm;
mod rotary;
mod vector;

use burn::backend::flex::FlexTensor;
use burn::backend::{DispatchDevice, Flex};
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::nf4::{Nf4, Parts};
use super::record::{self, run};

/// Whether `x` is f32 on the CPU: what the functions of this module take.
pub fn runs<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && holds(x)
}

/// Whether `x` is on the CPU.
pub fn holds<const D: usize>(x: &Tensor<D>) -> bool {
    is(x.device())
}

/// Whether `device` is the CPU.
pub fn is(device: Device) -> bool {
    matches!(device.inner().as_dispatch(), DispatchDevice::Flex(_))
}

/// Scaled dot-product attention: `q: [b, heads, t, d]`, `k, v: [b, kv_heads, s, d]` →
/// `[b, heads, t, d]`; with `causal`, query `i` sees the keys up to `s - t + i`.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, causal: bool) -> Tensor<4> {
    let inputs = [q, k, v].map(Tensor::into_dispatch);
    Tensor::from_dispatch(run(attention::Attention { causal }, inputs))
}

/// `x / rms(x) · weight` over the last dimension: `x: […, d]`, `weight: [d]`.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let inputs = [x.into_dispatch(), weight.into_dispatch()];
    Tensor::from_dispatch(run(norm::Rms { eps: eps as f32 }, inputs))
}

/// `(x − mean) / std · weight + bias` over the last dimension: `x: […, d]`, `weight, bias: [d]`.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
) -> Tensor<D> {
    let inputs = [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()];
    Tensor::from_dispatch(run(norm::Layer { eps: eps as f32 }, inputs))
}

/// `silu(gate) · up`, element by element.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(run(gate::SwiGlu, [gate.into_dispatch(), up.into_dispatch()]))
}

/// `x · sigmoid(1.702 x)`, element by element.
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(run(gate::QuickGelu, [x.into_dispatch()]))
}

/// Rotates the two halves of the last dimension of `x: [b, i, j, d]` by the angles of `cos` and
/// `sin`, `[1, i, 1, d]`, `[1, 1, j, d]` or `[b, 1, j, d]`, which have no gradient.
pub fn rotate(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let tables = rotary::Tables::new(untaped(cos), untaped(sin));
    Tensor::from_dispatch(run(rotary::Rotate { tables }, [x.into_dispatch()]))
}

/// `y + scaling · (x·a)·b`: `y: […, o]`, `x: […, i]`, `a: [i, r]`, `b: [r, o]`.
pub fn add_lora<const D: usize>(
    y: Tensor<D>,
    x: Tensor<D>,
    a: Tensor<2>,
    b: Tensor<2>,
    scaling: f64,
) -> Tensor<D> {
    let inputs = [y.into_dispatch(), x.into_dispatch(), a.into_dispatch(), b.into_dispatch()];
    Tensor::from_dispatch(run(lora::AddLora { scaling: scaling as f32 }, inputs))
}

/// `x·weight`, f32: `x: […, i]`, `weight: [i, o]` → `[…, o]`.
pub fn product_by<const D: usize>(x: Tensor<D>, weight: &Nf4) -> Tensor<D> {
    Tensor::from_dispatch(run(nf4::ByNf4 { weight: parts(weight) }, [x.into_dispatch()]))
}

/// The numbers of `weight`, f32, as they lie: `[o, i]`.
pub fn dequantised(weight: &Nf4) -> Tensor<2> {
    let parts = parts(weight);
    let data = TensorData::new(nf4::all(&parts), parts.shape);
    Tensor::from_data(data, (&weight.device(), DType::F32))
}

fn parts(weight: &Nf4) -> Parts<FlexTensor> {
    weight.parts(|x| record::integers::<Flex>(x.into_dispatch()), untaped)
}

fn untaped<const D: usize>(x: Tensor<D>) -> FlexTensor {
    record::Input::<Flex>::new(x.inner().into_dispatch()).untaped()
}
