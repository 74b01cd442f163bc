//! The activation of the gated MLPs.

use burn::backend::Cuda;
use cubek::cubecl;
use cubek::cubecl::prelude::*;

use super::Primitive;
use super::layout::{address, elem, empty_like, flat, grid, vector};
use crate::model::record::Operation;

/// `silu(gate) · up`, element by element.
#[derive(Clone, Debug)]
pub struct SwiGlu;

impl Operation<2, Cuda> for SwiGlu {
    type Saved = [Primitive; 2];

    fn forward(&self, inputs: [Primitive; 2]) -> (Primitive, [Primitive; 2]) {
        let [gate, up] = inputs.map(flat);
        let y = empty_like(&gate);
        let n = gate.meta.num_elements();
        let vector = vector(gate.dtype, n);
        let (count, dim) = grid(&gate, n / vector);
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
        let n = gate.meta.num_elements();
        let vector = vector(gate.dtype, n);
        let (count, dim) = grid(&gate, n / vector);
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

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::cast_from(1.0f32);
    one / (one + (-x).exp())
}
