//! The rotary embedding.

use burn::backend::Cuda;
use burn::backend::ops::FloatTensorOps;
use cubek::cubecl;
use cubek::cubecl::prelude::*;

use super::Primitive;
use super::layout::{address, elem, empty_like, flat, grid, vector};
use crate::model::record::Operation;

/// Rotates the two halves of the last dimension of `x: [b, i, j, d]` by the angles of the tables,
/// which have no gradient.
#[derive(Clone, Debug)]
pub struct Rotate {
    /// `[1, i, 1, d]`, `[1, 1, j, d]` or `[b, 1, j, d]`, f32; each half the same.
    pub cos: Primitive,
    /// As `cos`.
    pub sin: Primitive,
}

impl Operation<1, Cuda> for Rotate {
    type Saved = ();

    fn forward(&self, [x]: [Primitive; 1]) -> (Primitive, ()) {
        (self.rotate(x, false), ())
    }

    fn backward(&self, (): (), gradient: Primitive, _: [bool; 1]) -> [Option<Primitive>; 1] {
        [Some(self.rotate(gradient, true))]
    }
}

impl Rotate {
    fn rotate(&self, x: Primitive, back: bool) -> Primitive {
        // In memory the tokens come before the heads, in both towers.
        let heads_first = self.cos.meta.shape()[1] == 1;
        let in_memory = |x| if heads_first { Cuda::float_swap_dims(x, 1, 2) } else { x };
        let x = flat(in_memory(x));
        let [_, _, heads, d] = x.meta.shape().dims();
        let y = empty_like(&x);
        let vector = vector(x.dtype, d / 2);
        let (count, dim) = grid(&x, x.meta.num_elements() / (2 * vector));
        rotate::launch(
            &x.client,
            count,
            dim,
            address(&x),
            vector,
            x.clone().into_buffer_arg(),
            flat(self.cos.clone()).into_buffer_arg(),
            flat(self.sin.clone()).into_buffer_arg(),
            y.clone().into_buffer_arg(),
            heads,
            d / (2 * vector),
            back,
            elem(x.dtype),
        );
        in_memory(y)
    }
}

/// A pair of numbers `half` vectors apart per thread.
#[cube(launch, address_type = "dynamic")]
fn rotate<T: Float, N: Size>(
    x: &[Vector<T, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<T, N>],
    #[comptime] heads: usize,
    #[comptime] half: usize,
    #[comptime] back: bool,
    #[define(T)] _dtype: ElemType,
) {
    let row = ABSOLUTE_POS / half;
    let first = row * 2 * half + ABSOLUTE_POS % half;
    if first >= y.len() {
        terminate!();
    }
    // Rows of the tables are tokens; where there are more tokens, they are those of more batches.
    let angle = row / heads * 2 * half % cos.len() + ABSOLUTE_POS % half;
    let (c, s) = (cos[angle], sin[angle]);
    let a = Vector::<f32, N>::cast_from(x[first]);
    let b = Vector::<f32, N>::cast_from(x[first + half]);
    if comptime!(back) {
        y[first] = Vector::cast_from(a * c + b * s);
        y[first + half] = Vector::cast_from(b * c - a * s);
    } else {
        y[first] = Vector::cast_from(a * c - b * s);
        y[first + half] = Vector::cast_from(b * c + a * s);
    }
}
