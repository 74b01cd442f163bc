//! The activations of the MLPs.

use burn::backend::Cuda;
use cubek::cubecl;
use cubek::cubecl::prelude::*;

use super::Primitive;
use super::layout::{address, each, elem, empty_like, flat};
use crate::model::record::Operation;
use crate::model::vision::QUICK_GELU;

/// `silu(gate) · up`, element by element.
#[derive(Clone, Debug)]
pub struct SwiGlu;

impl Operation<2, Cuda> for SwiGlu {
    type Saved = [Primitive; 2];

    fn forward(&self, inputs: [Primitive; 2]) -> (Primitive, [Primitive; 2]) {
        let [gate, up] = inputs.map(flat);
        let y = empty_like(&gate);
        let (count, dim, vector) = each(&gate);
        swiglu::launch(
            &gate.client,
            count,
            dim,
            address(&gate),
            vector,
            gate.clone().into_buffer_arg(),
            up.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            elem(gate.dtype),
        );
        (y, [gate, up])
    }

    fn backward(
        &self,
        [gate, up]: [Primitive; 2],
        gradient: Primitive,
        _: [bool; 2],
    ) -> [Option<Primitive>; 2] {
        let gradient = flat(gradient);
        let [dg, du] = [&gate, &up].map(empty_like);
        let (count, dim, vector) = each(&gate);
        swiglu_backward::launch(
            &gate.client,
            count,
            dim,
            address(&gate),
            vector,
            gate.clone().into_buffer_arg(),
            up.into_buffer_arg(),
            gradient.into_buffer_arg(),
            dg.clone().into_buffer_arg(),
            du.clone().into_buffer_arg(),
            elem(gate.dtype),
        );
        [Some(dg), Some(du)]
    }
}

/// `x · sigmoid(1.702 x)`, element by element.
#[derive(Clone, Debug)]
pub struct QuickGelu;

impl Operation<1, Cuda> for QuickGelu {
    type Saved = Primitive;

    fn forward(&self, [x]: [Primitive; 1]) -> (Primitive, Primitive) {
        let x = flat(x);
        let y = empty_like(&x);
        let (count, dim, vector) = each(&x);
        quick_gelu::launch(
            &x.client,
            count,
            dim,
            address(&x),
            vector,
            x.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            elem(x.dtype),
        );
        (y, x)
    }

    fn backward(&self, x: Primitive, gradient: Primitive, _: [bool; 1]) -> [Option<Primitive>; 1] {
        let (gradient, dx) = (flat(gradient), empty_like(&x));
        let (count, dim, vector) = each(&x);
        quick_gelu_backward::launch(
            &x.client,
            count,
            dim,
            address(&x),
            vector,
            x.clone().into_buffer_arg(),
            gradient.into_buffer_arg(),
            dx.clone().into_buffer_arg(),
            elem(x.dtype),
        );
        [Some(dx)]
    }
}

#[cube(launch, address_type = "dynamic")]
fn swiglu<T: Float, N: Size>(
    gate: &[Vector<T, N>],
    up: &[Vector<T, N>],
    y: &mut [Vector<T, N>],
    #[define(T)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let g = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let u = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
    y[ABSOLUTE_POS] = Vector::cast_from(g * sigmoid::<N>(g) * u);
}

#[cube(launch, address_type = "dynamic")]
fn swiglu_backward<T: Float, N: Size>(
    gate: &[Vector<T, N>],
    up: &[Vector<T, N>],
    gradient: &[Vector<T, N>],
    dg: &mut [Vector<T, N>],
    du: &mut [Vector<T, N>],
    #[define(T)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= dg.len() {
        terminate!();
    }
    let g = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let u = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
    let dy = Vector::<f32, N>::cast_from(gradient[ABSOLUTE_POS]);
    let s = sigmoid::<N>(g);
    let one = Vector::<f32, N>::cast_from(1.0f32);
    du[ABSOLUTE_POS] = Vector::cast_from(dy * g * s);
    dg[ABSOLUTE_POS] = Vector::cast_from(dy * u * s * (one + g * (one - s)));
}

#[cube(launch, address_type = "dynamic")]
fn quick_gelu<T: Float, N: Size>(
    x: &[Vector<T, N>],
    y: &mut [Vector<T, N>],
    #[define(T)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
    let slope = Vector::<f32, N>::cast_from(QUICK_GELU);
    y[ABSOLUTE_POS] = Vector::cast_from(x * sigmoid::<N>(slope * x));
}

#[cube(launch, address_type = "dynamic")]
fn quick_gelu_backward<T: Float, N: Size>(
    x: &[Vector<T, N>],
    gradient: &[Vector<T, N>],
    dx: &mut [Vector<T, N>],
    #[define(T)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= dx.len() {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
    let dy = Vector::<f32, N>::cast_from(gradient[ABSOLUTE_POS]);
    let (slope, one) =
        (Vector::<f32, N>::cast_from(QUICK_GELU), Vector::<f32, N>::cast_from(1.0f32));
    let s = sigmoid::<N>(slope * x);
    dx[ABSOLUTE_POS] = Vector::cast_from(dy * s * (one + slope * x * (one - s)));
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::cast_from(1.0f32);
    one / (one + (-x).exp())
}
