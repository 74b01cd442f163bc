//! The two normalisations, a block of threads per row, whose weights have no gradient.

use burn::backend::Cuda;
use cubek::cubecl;
use cubek::cubecl::prelude::*;

use super::Primitive;
use super::block::{BLOCK, block_sum, sum};
use super::layout::{address, elem, empty_like, flat, vector};
use crate::model::record::Operation;

/// `x / rms(x) · weight` over the last dimension: `x: […, d]`.
#[derive(Clone, Debug)]
pub struct Rms {
    /// `[d]`, in the type of `x`.
    pub weight: Primitive,
    /// Added to the mean square.
    pub eps: f32,
}

impl Operation<1, Cuda> for Rms {
    type Saved = Primitive;

    fn forward(&self, [x]: [Primitive; 1]) -> (Primitive, Primitive) {
        let x = flat(x);
        let y = empty_like(&x);
        let (count, dim, vector) = rows(&x);
        rms_norm::launch(
            &x.client,
            count,
            dim,
            address(&x),
            vector,
            x.clone().into_buffer_arg(),
            flat(self.weight.clone()).into_buffer_arg(),
            y.clone().into_buffer_arg(),
            self.eps,
            elem(x.dtype),
        );
        (y, x)
    }

    fn backward(&self, x: Primitive, gradient: Primitive, _: [bool; 1]) -> [Option<Primitive>; 1] {
        let (gradient, dx) = (flat(gradient), empty_like(&x));
        let (count, dim, vector) = rows(&x);
        rms_norm_backward::launch(
            &x.client,
            count,
            dim,
            address(&x),
            vector,
            x.clone().into_buffer_arg(),
            flat(self.weight.clone()).into_buffer_arg(),
            gradient.into_buffer_arg(),
            dx.clone().into_buffer_arg(),
            self.eps,
            elem(x.dtype),
        );
        [Some(dx)]
    }
}

/// `(x − mean) / std · weight + bias` over the last dimension: `x: […, d]`.
#[derive(Clone, Debug)]
pub struct Layer {
    /// `[d]`, in the type of `x`.
    pub weight: Primitive,
    /// `[d]`, in the type of `x`.
    pub bias: Primitive,
    /// Added to the variance.
    pub eps: f32,
}

impl Operation<1, Cuda> for Layer {
    type Saved = Primitive;

    fn forward(&self, [x]: [Primitive; 1]) -> (Primitive, Primitive) {
        let x = flat(x);
        let y = empty_like(&x);
        let (count, dim, vector) = rows(&x);
        layer_norm::launch(
            &x.client,
            count,
            dim,
            address(&x),
            vector,
            x.clone().into_buffer_arg(),
            flat(self.weight.clone()).into_buffer_arg(),
            flat(self.bias.clone()).into_buffer_arg(),
            y.clone().into_buffer_arg(),
            self.eps,
            elem(x.dtype),
        );
        (y, x)
    }

    fn backward(&self, x: Primitive, gradient: Primitive, _: [bool; 1]) -> [Option<Primitive>; 1] {
        let (gradient, dx) = (flat(gradient), empty_like(&x));
        let (count, dim, vector) = rows(&x);
        layer_norm_backward::launch(
            &x.client,
            count,
            dim,
            address(&x),
            vector,
            x.clone().into_buffer_arg(),
            flat(self.weight.clone()).into_buffer_arg(),
            gradient.into_buffer_arg(),
            dx.clone().into_buffer_arg(),
            self.eps,
            elem(x.dtype),
        );
        [Some(dx)]
    }
}

/// Blocks, threads of a block and numbers at once for the rows of `x: […, d]`.
fn rows(x: &Primitive) -> (CubeCount, CubeDim, usize) {
    let shape = x.meta.shape();
    let d = shape[shape.num_dims() - 1];
    let rows = (shape.num_elements() / d) as u32;
    (CubeCount::new_1d(rows), BLOCK, vector(x.dtype, d))
}

#[cube(launch, address_type = "dynamic")]
fn rms_norm<T: Float, N: Size>(
    x: &[Vector<T, N>],
    weight: &[Vector<T, N>],
    y: &mut [Vector<T, N>],
    eps: f32,
    #[define(T)] _dtype: ElemType,
) {
    let d = weight.len();
    let row = CUBE_POS * d;
    let mut squares = Vector::<f32, N>::cast_from(0.0f32);
    for i in range_stepped(UNIT_POS as usize, d, CUBE_DIM as usize) {
        let x = Vector::<f32, N>::cast_from(x[row + i]);
        squares += x * x;
    }
    let scale = one_over_rms::<N>(block_sum(sum::<N>(squares)), d, eps);
    for i in range_stepped(UNIT_POS as usize, d, CUBE_DIM as usize) {
        let x = Vector::<f32, N>::cast_from(x[row + i]);
        // As the reference: back to the activation's type first, then times the weight.
        y[row + i] = Vector::cast_from(x * Vector::cast_from(scale)) * weight[i];
    }
}

/// With `g` the gradient times the weight and `r = 1 / rms`: `r·g − x·r³·mean(g·x)`.
#[cube(launch, address_type = "dynamic")]
fn rms_norm_backward<T: Float, N: Size>(
    x: &[Vector<T, N>],
    weight: &[Vector<T, N>],
    gradient: &[Vector<T, N>],
    dx: &mut [Vector<T, N>],
    eps: f32,
    #[define(T)] _dtype: ElemType,
) {
    let d = weight.len();
    let row = CUBE_POS * d;
    let mut squares = Vector::<f32, N>::cast_from(0.0f32);
    let mut products = Vector::<f32, N>::cast_from(0.0f32);
    for i in range_stepped(UNIT_POS as usize, d, CUBE_DIM as usize) {
        let x = Vector::<f32, N>::cast_from(x[row + i]);
        let g = Vector::<f32, N>::cast_from(gradient[row + i]) * Vector::cast_from(weight[i]);
        squares += x * x;
        products += g * x;
    }
    let r = one_over_rms::<N>(block_sum(sum::<N>(squares)), d, eps);
    let mean = block_sum(sum::<N>(products)) / f32::cast_from(d * N::value());
    let along = Vector::<f32, N>::cast_from(r * r * r * mean);
    for i in range_stepped(UNIT_POS as usize, d, CUBE_DIM as usize) {
        let x = Vector::<f32, N>::cast_from(x[row + i]);
        let g = Vector::<f32, N>::cast_from(gradient[row + i]) * Vector::cast_from(weight[i]);
        dx[row + i] = Vector::cast_from(g * Vector::cast_from(r) - x * along);
    }
}

#[cube]
fn one_over_rms<N: Size>(squares: f32, d: usize, eps: f32) -> f32 {
    1.0f32 / (squares / f32::cast_from(d * N::value()) + eps).sqrt()
}

#[cube(launch, address_type = "dynamic")]
fn layer_norm<T: Float, N: Size>(
    x: &[Vector<T, N>],
    weight: &[Vector<T, N>],
    bias: &[Vector<T, N>],
    y: &mut [Vector<T, N>],
    eps: f32,
    #[define(T)] _dtype: ElemType,
) {
    let d = weight.len();
    let row = CUBE_POS * d;
    let (mean, scale) = mean_and_scale::<T, N>(x, row, d, eps);
    for i in range_stepped(UNIT_POS as usize, d, CUBE_DIM as usize) {
        let x = Vector::<f32, N>::cast_from(x[row + i]) - Vector::cast_from(mean);
        let scaled = x * Vector::cast_from(scale) * Vector::cast_from(weight[i]);
        y[row + i] = Vector::cast_from(scaled + Vector::cast_from(bias[i]));
    }
}

/// With `g` the gradient times the weight and `z = (x − mean) / std`:
/// `(g − mean(g) − z·mean(g·z)) / std`.
#[cube(launch, address_type = "dynamic")]
fn layer_norm_backward<T: Float, N: Size>(
    x: &[Vector<T, N>],
    weight: &[Vector<T, N>],
    gradient: &[Vector<T, N>],
    dx: &mut [Vector<T, N>],
    eps: f32,
    #[define(T)] _dtype: ElemType,
) {
    let d = weight.len();
    let row = CUBE_POS * d;
    let (mean, scale) = mean_and_scale::<T, N>(x, row, d, eps);
    let (mean, scale) = (Vector::<f32, N>::cast_from(mean), Vector::<f32, N>::cast_from(scale));
    let mut gradients = Vector::<f32, N>::cast_from(0.0f32);
    let mut products = Vector::<f32, N>::cast_from(0.0f32);
    for i in range_stepped(UNIT_POS as usize, d, CUBE_DIM as usize) {
        let z = (Vector::<f32, N>::cast_from(x[row + i]) - mean) * scale;
        let g = Vector::<f32, N>::cast_from(gradient[row + i]) * Vector::cast_from(weight[i]);
        gradients += g;
        products += g * z;
    }
    let n = f32::cast_from(d * N::value());
    let level = Vector::<f32, N>::cast_from(block_sum(sum::<N>(gradients)) / n);
    let along = Vector::<f32, N>::cast_from(block_sum(sum::<N>(products)) / n);
    for i in range_stepped(UNIT_POS as usize, d, CUBE_DIM as usize) {
        let z = (Vector::<f32, N>::cast_from(x[row + i]) - mean) * scale;
        let g = Vector::<f32, N>::cast_from(gradient[row + i]) * Vector::cast_from(weight[i]);
        dx[row + i] = Vector::cast_from((g - level - z * along) * scale);
    }
}

/// The mean of a row, and one over its standard deviation.
#[cube]
fn mean_and_scale<T: Float, N: Size>(
    x: &[Vector<T, N>],
    row: usize,
    d: usize,
    eps: f32,
) -> (f32, f32) {
    let mut total = Vector::<f32, N>::cast_from(0.0f32);
    for i in range_stepped(UNIT_POS as usize, d, CUBE_DIM as usize) {
        total += Vector::cast_from(x[row + i]);
    }
    let mean = block_sum(sum::<N>(total)) / f32::cast_from(d * N::value());
    let mut squares = Vector::<f32, N>::cast_from(0.0f32);
    for i in range_stepped(UNIT_POS as usize, d, CUBE_DIM as usize) {
        let x = Vector::<f32, N>::cast_from(x[row + i]) - Vector::cast_from(mean);
        squares += x * x;
    }
    (mean, one_over_rms::<N>(block_sum(sum::<N>(squares)), d, eps))
}
