//! The rotary embedding of heads. Letters: `d` head width.

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;

use super::layout::{Rows, tensor};
use super::vector::{each_chunk, vectorised};
use crate::model::record::Operation;

/// Cosines and sines, `[1, i, 1, d]`, `[1, 1, j, d]` or, row by row, `[b, 1, j, d]`.
#[derive(Clone, Debug)]
pub struct Tables {
    cos: Rows,
    sin: Rows,
}

impl Tables {
    pub fn new(cos: FlexTensor, sin: FlexTensor) -> Self {
        Self { cos: Rows::new(cos), sin: Rows::new(sin) }
    }

    /// The dimension of `x: [b, i, j, d]` along which the angles differ.
    fn axis(&self) -> usize {
        if self.cos.dims[1] > 1 { 1 } else { 2 }
    }

    fn at(&self, b: usize, position: usize, d: usize) -> [&[f32]; 2] {
        let b = if self.cos.dims[0] > 1 { b } else { 0 };
        let (i, j) = if self.axis() == 1 { (position, 0) } else { (0, position) };
        [&self.cos.from(b, i, j)[..d], &self.sin.from(b, i, j)[..d]]
    }

    /// Applies `rotate(x, cos, sin, y)` to each row. The output lies in memory as `[b, position,
    /// head, d]`, as the linear layers before and behind want it.
    fn map(
        &self,
        x: FlexTensor,
        rotate: impl Fn(&[f32], [&[f32]; 2], &mut [f32]) + Sync,
    ) -> FlexTensor {
        let x = Rows::new(x);
        let [b, i, j, d] = x.dims;
        let swapped = self.axis() == 2;
        let (positions, heads) = if swapped { (j, i) } else { (i, j) };
        let mut y = vec![0.0; b * i * j * d];
        each_chunk(&mut y, heads * d, |chunk, y| {
            let (b, position) = (chunk / positions, chunk % positions);
            let table = self.at(b, position, d);
            for (head, y) in y.chunks_mut(d).enumerate() {
                let (i, j) = if swapped { (head, position) } else { (position, head) };
                rotate(&x.from(b, i, j)[..d], table, y);
            }
        });
        let y = tensor(y, Shape::from(vec![b, positions, heads, d]));
        if swapped { y.transpose(1, 2) } else { y }
    }
}

#[derive(Clone, Debug)]
pub struct Rotate {
    pub tables: Tables,
}

impl Operation<1> for Rotate {
    type Saved = ();

    fn forward(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, ()) {
        let y = self.tables.map(x, |x, [cos, sin], y| turn(x, cos, sin, y));
        (y, ())
    }

    fn backward(&self, (): (), gradient: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let gradient = self.tables.map(gradient, |g, [cos, sin], dx| turn_back(g, cos, sin, dx));
        [Some(gradient)]
    }
}

vectorised! {
    pub fn turn(x: &[f32], cos: &[f32], sin: &[f32], y: &mut [f32]) {
        let half = x.len() / 2;
        let ((low, high), (y_low, y_high)) = (x.split_at(half), y.split_at_mut(half));
        let ((cos_low, cos_high), (sin_low, sin_high)) = (cos.split_at(half), sin.split_at(half));
        for i in 0..half {
            y_low[i] = low[i] * cos_low[i] - high[i] * sin_low[i];
            y_high[i] = high[i] * cos_high[i] + low[i] * sin_high[i];
        }
    }
}

vectorised! {
    pub fn turn_back(g: &[f32], cos: &[f32], sin: &[f32], dx: &mut [f32]) {
        let half = g.len() / 2;
        let ((low, high), (dx_low, dx_high)) = (g.split_at(half), dx.split_at_mut(half));
        let ((cos_low, cos_high), (sin_low, sin_high)) = (cos.split_at(half), sin.split_at(half));
        for i in 0..half {
            dx_low[i] = low[i] * cos_low[i] + high[i] * sin_high[i];
            dx_high[i] = high[i] * cos_high[i] - low[i] * sin_low[i];
        }
    }
}
