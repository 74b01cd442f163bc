//! The activations of the MLPs.

use burn::backend::flex::FlexTensor;

use super::layout::{Dense, tensor};
use super::vector::{CHUNK, each_chunk, each_chunk_of_two, sigmoid, vectorised};
use crate::model::record::Operation;
use crate::model::vision::QUICK_GELU;

#[derive(Clone, Debug)]
pub struct SwiGlu;

impl Operation<2> for SwiGlu {
    type Saved = [Dense; 2];

    fn forward(&self, inputs: [FlexTensor; 2]) -> (FlexTensor, [Dense; 2]) {
        let [gate, up] = inputs.map(Dense::new);
        let (g, u) = (gate.values(), up.values());
        let mut y = vec![0.0; g.len()];
        each_chunk(&mut y, CHUNK, |i, y| {
            swiglu(&g[i * CHUNK..], &u[i * CHUNK..], y);
        });
        (tensor(y, gate.shape()), [gate, up])
    }

    fn backward(
        &self,
        [gate, up]: [Dense; 2],
        gradient: FlexTensor,
        wanted: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let gradient = Dense::new(gradient);
        let (g, u, dy) = (gate.values(), up.values(), gradient.values());
        let (mut dg, mut du) = (vec![0.0; g.len()], vec![0.0; g.len()]);
        each_chunk_of_two([&mut dg, &mut du], [CHUNK; 2], |i, [dg, du]| {
            let from = i * CHUNK;
            swiglu_backward(&g[from..], &u[from..], &dy[from..], dg, du);
        });
        let shape = gate.shape();
        [wanted[0].then(|| tensor(dg, shape.clone())), wanted[1].then(|| tensor(du, shape))]
    }
}

#[derive(Clone, Debug)]
pub struct QuickGelu;

impl Operation<1> for QuickGelu {
    type Saved = Dense;

    fn forward(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, Dense) {
        let x = Dense::new(x);
        let from = x.values();
        let mut y = vec![0.0; from.len()];
        each_chunk(&mut y, CHUNK, |i, y| {
            quick_gelu(&from[i * CHUNK..], y);
        });
        (tensor(y, x.shape()), x)
    }

    fn backward(&self, x: Dense, gradient: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let gradient = Dense::new(gradient);
        let (from, dy) = (x.values(), gradient.values());
        let mut dx = vec![0.0; from.len()];
        each_chunk(&mut dx, CHUNK, |i, dx| {
            quick_gelu_backward(&from[i * CHUNK..], &dy[i * CHUNK..], dx);
        });
        [Some(tensor(dx, x.shape()))]
    }
}

vectorised! {
    pub fn swiglu(g: &[f32], u: &[f32], y: &mut [f32]) {
        for ((y, g), u) in y.iter_mut().zip(g).zip(u) {
            *y = g * sigmoid(*g) * u;
        }
    }
}

vectorised! {
    pub fn swiglu_backward(g: &[f32], u: &[f32], dy: &[f32], dg: &mut [f32], du: &mut [f32]) {
        for ((dg, du), ((g, u), dy)) in dg.iter_mut().zip(du).zip(g.iter().zip(u).zip(dy)) {
            let s = sigmoid(*g);
            *du = dy * g * s;
            *dg = dy * u * s * (1.0 + g * (1.0 - s));
        }
    }
}

vectorised! {
    pub fn quick_gelu(x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = x * sigmoid(QUICK_GELU * x);
        }
    }
}

vectorised! {
    pub fn quick_gelu_backward(x: &[f32], dy: &[f32], dx: &mut [f32]) {
        for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
            let s = sigmoid(QUICK_GELU * x);
            *dx = dy * s * (1.0 + QUICK_GELU * x * (1.0 - s));
        }
    }
}
