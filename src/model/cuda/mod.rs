//! Forward and backward passes of our own on a GPU, where burn composes them of many kernels, each
//! a pass over memory, or has kernels that do not serve. Callers ask [`holds`] or [`runs`] first.

#![allow(
    unused_qualifications,
    clippy::used_underscore_binding,
    reason = "what the macros of kernels make"
)]

mod attention;
mod block;
mod branches;
mod cublas;
mod gate;
mod layout;
mod lora;
mod nf4;
mod norm;
mod optimiser;
mod product;
mod rotary;
mod scores;

use burn::backend::tensor::FloatTensor;
use burn::backend::{
    BackendTensor, Cuda, DispatchAutodiffContext, DispatchDevice, DispatchTensor,
    DispatchTensorKind,
};
use burn::tensor::ops::PadMode;
use burn::tensor::{DType, Device, Tensor};

use self::product::Frozen;
use super::attention::Trunk;
use super::linear::Weight;
use super::nf4::{Nf4, Parts};
use super::record::{self, Input, Recording, run};

pub use optimiser::Step;

type Primitive = FloatTensor<Cuda>;

impl Recording for Cuda {
    fn into_kind(tensor: BackendTensor<Self>) -> DispatchTensorKind {
        DispatchTensorKind::Cube(tensor)
    }

    fn from_kind(kind: DispatchTensorKind) -> BackendTensor<Self> {
        match kind {
            DispatchTensorKind::Cube(tensor) => tensor,
            _ => unreachable!("callers ask where a tensor is first"),
        }
    }
}

/// Whether `x` is on a GPU.
pub fn holds<const D: usize>(x: &Tensor<D>) -> bool {
    is(&x.device())
}

/// Whether `device` is a GPU.
pub fn is(device: &Device) -> bool {
    matches!(device.clone().inner().as_dispatch(), DispatchDevice::Cube(_))
}

/// Whether `x` is bf16 on a GPU: what [`attention`] takes.
pub fn runs<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::BF16 && holds(x)
}

/// Why products of matrices on the GPU `device` are not cuBLAS's; nothing where they are.
pub fn why_no_cublas(device: &Device) -> Option<String> {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => cublas::start(device).err(),
        _ => None,
    }
}

/// Whether `q` and `k` are on a GPU whose [`attention_by_products`] has room for their scores.
pub fn has_room_for_scores(q: &Tensor<4>, k: &Tensor<4>) -> bool {
    match q.device().inner().as_dispatch() {
        DispatchDevice::Cube(device) => scores::fit(device, q.dims(), k.dims(), q.dtype()),
        _ => false,
    }
}

/// As [`attention`], of any type, with the scores in memory, where [there is room](has_room_for_scores).
pub fn attention_by_products(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, causal: bool) -> Tensor<4> {
    let inputs = [q, k, v].map(Tensor::into_dispatch);
    Tensor::from_dispatch(run(scores::Attention { causal }, inputs))
}

/// Scaled dot-product attention by fused kernels: `q: [b, heads, t, d]`,
/// `k, v: [b, kv_heads, s, d]` → `[b, heads, t, d]`; with `causal`, query `i` sees the keys up to `s - t + i`.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, causal: bool) -> Tensor<4> {
    let inputs = [q, k, v].map(Tensor::into_dispatch);
    Tensor::from_dispatch(run(attention::Attention { causal }, inputs))
}

/// `x·weight`: `x: […, i]`, `weight: [i, o]` → `[…, o]`.
pub fn product<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    Tensor::from_dispatch(if weight.is_tracked() {
        run(product::Product, [x.into_dispatch(), weight.into_dispatch()])
    } else {
        run(product::ByFrozen { weight: Frozen::Dense(untaped(weight)) }, [x.into_dispatch()])
    })
}

/// `x·weight` with a weight in four bits: `x: […, i]` → `[…, o]`.
pub fn product_by<const D: usize>(x: Tensor<D>, weight: &Nf4) -> Tensor<D> {
    let weight = Frozen::Nf4(parts(weight));
    Tensor::from_dispatch(run(product::ByFrozen { weight }, [x.into_dispatch()]))
}

/// The numbers of `weight`, `[i, o]`, in its type.
pub fn dequantised(weight: &Nf4) -> Tensor<2> {
    tensor(Frozen::Nf4(parts(weight)).values())
}

fn parts(weight: &Nf4) -> Parts<Primitive> {
    weight.parts(|x| record::integers::<Cuda>(x.into_dispatch()), untaped)
}

fn frozen(weight: &Weight) -> Frozen {
    match weight {
        Weight::Dense(weight) => Frozen::Dense(untaped(weight.val())),
        Weight::Nf4(weight) => Frozen::Nf4(parts(weight)),
    }
}

/// `x·weight + bias + scaling · (left·a)·b`: `x: […, i]`; `weight: [i, o]` and `bias: [o]`, without
/// gradients; `left: […, i]` with a gradient of its own, or `x` without one; `a: [i, r]`, `b: [r, o]`,
/// of any type, in which their gradients are; `factors` are [theirs](factors).
pub fn adapted<const D: usize>(
    [x, left]: [Tensor<D>; 2],
    weight: &Weight,
    bias: Option<Tensor<1>>,
    [a, b]: [Tensor<2>; 2],
    factors: [Tensor<2>; 2],
    scaling: f64,
) -> Tensor<D> {
    let [a, b] = whole_ranks(a, b);
    let inputs = [x.into_dispatch(), left.into_dispatch(), a.into_dispatch(), b.into_dispatch()];
    let operation = lora::Adapted {
        weight: frozen(weight),
        bias: bias.map(untaped),
        scaling: scaling as f32,
        factors: factors.map(untaped),
    };
    Tensor::from_dispatch(run(operation, inputs))
}

/// What [`adapted`] multiplies by, in the type of `x`: `a: [i, r]`, scaled, and `b: [r, o]`.
pub fn factors(a: Tensor<2>, b: Tensor<2>, scaling: f64, dtype: DType) -> [Tensor<2>; 2] {
    let [a, b] = whole_ranks(a, b).map(untaped);
    [layout::scaled(a, scaling as f32, dtype), layout::cast(b, dtype)].map(tensor)
}

/// `a: [i, r]` and `b: [r, o]` with zeros up to a rank that is a multiple of 8: the same product.
/// burn's kernels that copy 16 bytes at once (`cp.async`) begin between two of them, where there
/// is nothing to copy, for other ranks in bf16, which the instruction does not allow.
fn whole_ranks(a: Tensor<2>, b: Tensor<2>) -> [Tensor<2>; 2] {
    let r = a.dims()[1];
    match r.next_multiple_of(8) - r {
        0 => [a, b],
        more => {
            let zero = PadMode::Constant(0.0);
            [a.pad((0, more, 0, 0), zero), b.pad((0, 0, 0, more), zero)]
        }
    }
}

/// `x / rms(x) · weight` over the last dimension: `x: […, d]`, `weight: [d]`, without a gradient.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let weight = layout::cast(untaped(weight), x.dtype());
    let operation = norm::Rms { weight, eps: eps as f32 };
    Tensor::from_dispatch(run(operation, [x.into_dispatch()]))
}

/// `(x − mean) / std · weight + bias` over the last dimension: `x: […, d]`, `weight, bias: [d]`,
/// without gradients.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
) -> Tensor<D> {
    let [weight, bias] = [weight, bias].map(|w| layout::cast(untaped(w), x.dtype()));
    let operation = norm::Layer { weight, bias, eps: eps as f32 };
    Tensor::from_dispatch(run(operation, [x.into_dispatch()]))
}

/// `x · sigmoid(1.702 x)`, element by element.
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(run(gate::QuickGelu, [x.into_dispatch()]))
}

/// `silu(gate) · up`, element by element.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(run(gate::SwiGlu, [gate.into_dispatch(), up.into_dispatch()]))
}

/// Rotates the two halves of the last dimension of `x: [b, i, j, d]` by the angles of `cos` and
/// `sin`, `[1, i, 1, d]`, `[1, 1, j, d]` or `[b, 1, j, d]`, which have no gradient.
pub fn rotate(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let operation = rotary::Rotate { cos: untaped(cos), sin: untaped(sin) };
    Tensor::from_dispatch(run(operation, [x.into_dispatch()]))
}

/// Attention of one more token of each of `b` continuations of some trunks: `q: [b, heads, 1, d]`
/// sees its trunk's keys and values, those of the first trunk first, and its own tail's,
/// `[b, kv_heads, s, d]`, to whose scores `bias: [b, 1, 1, s]` (0 or −∞, f32) is added →
/// `[b, heads, 1, d]`. Without a tape.
pub fn branched_attention(
    q: Tensor<4>,
    trunks: &[Trunk],
    tail: (Tensor<4>, Tensor<4>),
    bias: Option<Tensor<4>>,
) -> Tensor<4> {
    let (tail, bias) = ([tail.0, tail.1].map(untaped), bias.map(untaped));
    let trunks = trunks.iter().map(|Trunk { k, v, branches }| branches::Trunk {
        keys_and_values: [k, v].map(|x| untaped(x.clone())),
        branches: *branches,
    });
    tensor(branches::attention(untaped(q), trunks, tail, bias))
}

/// Moments and value of a parameter behind a step of AdamW: all `[n]`, f32, without a tape.
pub fn adamw(
    step: Step,
    gradient: Tensor<1>,
    moments: [Tensor<1>; 2],
    value: Tensor<1>,
) -> ([Tensor<1>; 2], Tensor<1>) {
    let moments = moments.map(untaped);
    let (moments, value) = optimiser::adamw(step, untaped(gradient), moments, untaped(value));
    (moments.map(tensor), tensor(value))
}

/// Sums of squares whose sum is that of all numbers of `tensors`: `[n]`, f32; nothing of nothing.
pub fn squares<'a>(tensors: impl Iterator<Item = &'a Tensor<1>>) -> Option<Tensor<1>> {
    optimiser::squares(tensors.map(|x| untaped(x.clone())).collect()).map(tensor)
}

fn tensor<const D: usize>(x: Primitive) -> Tensor<D> {
    let kind = Cuda::into_kind(BackendTensor::Float(x));
    Tensor::from_dispatch(DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled })
}

fn untaped<const D: usize>(x: Tensor<D>) -> Primitive {
    Input::<Cuda>::new(x.into_dispatch()).untaped()
}
