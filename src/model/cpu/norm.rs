//! RMSNorm and LayerNorm. Letters: `d` length of a row.

use burn::backend::flex::FlexTensor;

use super::layout::{Dense, tensor};
use super::vector::{each_chunk, each_chunk_of_two, sum_of, vectorised};
use crate::model::record::Operation;

/// Rows that one task works on.
const ROWS: usize = 32;

#[derive(Clone, Debug)]
pub struct Rms {
    pub eps: f32,
}

#[derive(Clone, Debug)]
pub struct RmsSaved {
    x: Dense,
    weight: Dense,
    /// `1 / rms` of each row.
    scale: Vec<f32>,
}

impl Operation<2> for Rms {
    type Saved = RmsSaved;

    fn forward(&self, [x, weight]: [FlexTensor; 2]) -> (FlexTensor, RmsSaved) {
        let (x, weight) = (Dense::new(x), Dense::new(weight));
        let [rows, d] = x.rows();
        let (mut y, mut scale) = (vec![0.0; rows * d], vec![0.0; rows]);
        let (from, w) = (x.values(), weight.values());
        each_chunk_of_two([&mut y, &mut scale], [ROWS * d, ROWS], |i, [y, scale]| {
            rms(&from[i * ROWS * d..], w, self.eps, y, scale);
        });
        (tensor(y, x.shape()), RmsSaved { x, weight, scale })
    }

    fn backward(
        &self,
        saved: RmsSaved,
        gradient: FlexTensor,
        wanted: [bool; 2],
    ) -> [Option<FlexTensor>; 2] {
        let RmsSaved { x, weight, scale } = saved;
        let gradient = Dense::new(gradient);
        let [rows, d] = x.rows();
        let (from, g, w) = (x.values(), gradient.values(), weight.values());
        let dx = wanted[0].then(|| {
            let mut dx = vec![0.0; rows * d];
            each_chunk(&mut dx, ROWS * d, |i, dx| {
                let at = i * ROWS;
                rms_backward(&from[at * d..], &g[at * d..], w, &scale[at..], dx);
            });
            tensor(dx, x.shape())
        });
        let dw = wanted[1].then(|| {
            let mut dw = vec![0.0; d];
            rms_weight(from, g, &scale, &mut dw);
            tensor(dw, weight.shape())
        });
        [dx, dw]
    }
}

#[derive(Clone, Debug)]
pub struct Layer {
    pub eps: f32,
}

#[derive(Clone, Debug)]
pub struct LayerSaved {
    x: Dense,
    weight: Dense,
    /// Mean and `1 / std` of each row, one behind the other.
    statistics: Vec<f32>,
}

impl Operation<3> for Layer {
    type Saved = LayerSaved;

    fn forward(&self, [x, weight, bias]: [FlexTensor; 3]) -> (FlexTensor, LayerSaved) {
        let (x, weight, bias) = (Dense::new(x), Dense::new(weight), Dense::new(bias));
        let [rows, d] = x.rows();
        let (mut y, mut statistics) = (vec![0.0; rows * d], vec![0.0; 2 * rows]);
        let (from, w, b) = (x.values(), weight.values(), bias.values());
        each_chunk_of_two([&mut y, &mut statistics], [ROWS * d, 2 * ROWS], |i, [y, statistics]| {
            layer(&from[i * ROWS * d..], [w, b], self.eps, y, statistics);
        });
        (tensor(y, x.shape()), LayerSaved { x, weight, statistics })
    }

    fn backward(
        &self,
        saved: LayerSaved,
        gradient: FlexTensor,
        wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let LayerSaved { x, weight, statistics } = saved;
        let gradient = Dense::new(gradient);
        let [rows, d] = x.rows();
        let (from, g, w) = (x.values(), gradient.values(), weight.values());
        let dx = wanted[0].then(|| {
            let mut dx = vec![0.0; rows * d];
            each_chunk(&mut dx, ROWS * d, |i, dx| {
                let at = i * ROWS;
                layer_backward(&from[at * d..], &g[at * d..], w, &statistics[2 * at..], dx);
            });
            tensor(dx, x.shape())
        });
        let (mut dw, mut db) = (vec![0.0; d], vec![0.0; d]);
        if wanted[1] || wanted[2] {
            layer_weights(from, g, &statistics, &mut dw, &mut db);
        }
        let shape = weight.shape();
        [dx, wanted[1].then(|| tensor(dw, shape.clone())), wanted[2].then(|| tensor(db, shape))]
    }
}

// `d` is the length of `w`; `scale` and `of` hold what `forward` saved of each row.

vectorised! {
    pub fn rms(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], scale: &mut [f32]) {
        let d = w.len();
        for ((x, y), scale) in x.chunks(d).zip(y.chunks_mut(d)).zip(scale) {
            let mean = sum_of(x, x, |a, b| a * b) / d as f32;
            *scale = 1.0 / (mean + eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * *scale * w;
            }
        }
    }
}

vectorised! {
    pub fn rms_backward(x: &[f32], g: &[f32], w: &[f32], scale: &[f32], dx: &mut [f32]) {
        let d = w.len();
        for (((x, g), dx), scale) in x.chunks(d).zip(g.chunks(d)).zip(dx.chunks_mut(d)).zip(scale) {
            for ((dx, g), w) in dx.iter_mut().zip(g).zip(w) {
                *dx = g * w;
            }
            let along = sum_of(dx, x, |a, b| a * b) * scale * scale / d as f32;
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx = scale * (*dx - x * along);
            }
        }
    }
}

vectorised! {
    pub fn rms_weight(x: &[f32], g: &[f32], scale: &[f32], dw: &mut [f32]) {
        let d = dw.len();
        for ((x, g), scale) in x.chunks(d).zip(g.chunks(d)).zip(scale) {
            for ((dw, x), g) in dw.iter_mut().zip(x).zip(g) {
                *dw += g * x * scale;
            }
        }
    }
}

vectorised! {
    pub fn layer(x: &[f32], weights: [&[f32]; 2], eps: f32, y: &mut [f32], of: &mut [f32]) {
        let [w, b] = weights;
        let d = w.len();
        for ((x, y), of) in x.chunks(d).zip(y.chunks_mut(d)).zip(of.chunks_mut(2)) {
            let mean = sum_of(x, x, |a, _| a) / d as f32;
            let variance = sum_of(x, x, |a, _| (a - mean) * (a - mean)) / d as f32;
            let scale = 1.0 / (variance + eps).sqrt();
            of.copy_from_slice(&[mean, scale]);
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
                *y = (x - mean) * scale * w + b;
            }
        }
    }
}

vectorised! {
    pub fn layer_backward(x: &[f32], g: &[f32], w: &[f32], of: &[f32], dx: &mut [f32]) {
        let d = w.len();
        let rows = x.chunks(d).zip(g.chunks(d)).zip(dx.chunks_mut(d)).zip(of.chunks(2));
        for (((x, g), dx), of) in rows {
            let [mean, scale] = [of[0], of[1]];
            for ((dx, g), w) in dx.iter_mut().zip(g).zip(w) {
                *dx = g * w;
            }
            let level = sum_of(dx, x, |a, _| a) / d as f32;
            let along = sum_of(dx, x, |a, x| a * (x - mean)) * scale * scale / d as f32;
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx = scale * (*dx - level - (x - mean) * along);
            }
        }
    }
}

vectorised! {
    pub fn layer_weights(x: &[f32], g: &[f32], of: &[f32], dw: &mut [f32], db: &mut [f32]) {
        let d = dw.len();
        for ((x, g), of) in x.chunks(d).zip(g.chunks(d)).zip(of.chunks(2)) {
            let [mean, scale] = [of[0], of[1]];
            for (((dw, db), x), g) in dw.iter_mut().zip(&mut *db).zip(x).zip(g) {
                *dw += g * (x - mean) * scale;
                *db += g;
            }
        }
    }
}
