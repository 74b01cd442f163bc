//! A linear layer with a low-rank update. Letters: `n` rows, `i` inputs, `o` outputs, `r` rank.

use burn::backend::Cuda;
use burn::tensor::DType;
use cubek::cubecl;
use cubek::cubecl::prelude::*;
use cubek::cubecl::std::tensor::TensorHandle;

use super::Primitive;
use super::layout::{address, each_of_rows, elem, flat, is_aligned, like, own};
use super::product::{
    Frozen, add_product, product, rows, scaled_product, transposed, with_rows_of,
};
use crate::model::record::Operation;

/// `x·weight + bias + scaling · (left·a)·b` of `x, left: […, i]`, in whose type it is computed, and
/// `a: [i, r]`, `b: [r, o]`, whose gradients have theirs. `left` is `x` where it has no gradient of
/// its own, and `x`'s is that of both.
#[derive(Clone, Debug)]
pub struct Adapted {
    /// `[i, o]`.
    pub weight: Frozen,
    /// `[o]`.
    pub bias: Option<Primitive>,
    /// What the update is multiplied by.
    pub scaling: f32,
    /// `a`, scaled, and `b`, in the type of `x`.
    pub factors: [Primitive; 2],
}

#[derive(Clone, Debug)]
pub struct Saved {
    /// `[n, i]`.
    left: Primitive,
    /// `left·a`, scaled: `[n, r]`.
    xa: Primitive,
    /// The type of `a` and `b`.
    learned: DType,
}

impl Operation<4, Cuda> for Adapted {
    type Saved = Saved;

    fn forward(&self, [x, left, a, _]: [Primitive; 4]) -> (Primitive, Saved) {
        let (left, learned, [a, b]) = (rows(left), a.dtype, self.factors.clone());
        let y = product(rows(x.clone()), self.weight.values());
        let xa = product(left.clone(), a);
        let y = match self.bias.clone() {
            None => add_product(y, xa.clone(), b),
            Some(bias) => add_biased(y, product(xa.clone(), b), bias),
        };
        (with_rows_of(&x, y), Saved { left, xa, learned })
    }

    fn backward(
        &self,
        Saved { left, xa, learned }: Saved,
        gradient: Primitive,
        wanted: [bool; 4],
    ) -> [Option<Primitive>; 4] {
        let (g, [a, b]) = (rows(gradient.clone()), self.factors.clone());
        let (d_xa, a) = (product(g.clone(), transposed(b)), transposed(a));
        let dx = wanted[0].then(|| {
            let dx = product(g.clone(), transposed(self.weight.values()));
            if wanted[1] { dx } else { add_product(dx, d_xa.clone(), a.clone()) }
        });
        let d_left = wanted[1].then(|| product(d_xa.clone(), a));
        let da = wanted[2].then(|| scaled_product(transposed(left), d_xa, self.scaling, learned));
        let db = wanted[3].then(|| scaled_product(transposed(xa), g, 1.0, learned));
        let [dx, d_left] = [dx, d_left].map(|d| d.map(|d| with_rows_of(&gradient, d)));
        [dx, d_left, da, db]
    }
}

/// `y + update + bias`: `[n, o]`, `[n, o]`, `[o]` → `[n, o]`, rounded once.
fn add_biased(y: Primitive, update: Primitive, bias: Primitive) -> Primitive {
    let (bias, mine) = (flat(bias), y.can_mut());
    if let [Some(columns), Some(update)] = [&y, &update].map(columns)
        && columns.meta == update.meta
        && mine
    {
        let (count, dim, vector) = each_of_rows(&columns);
        add_to_rows::launch(
            &y.client,
            count,
            dim,
            address(&columns),
            vector,
            columns.into_buffer_arg(),
            update.into_buffer_arg(),
            bias.into_buffer_arg(),
            elem(y.dtype),
        );
        return y;
    }
    let (y, update) = (own(y), flat(update));
    let (count, dim, vector) = each_of_rows(&y);
    add_to_columns::launch(
        &y.client,
        count,
        dim,
        address(&y),
        vector,
        y.clone().into_buffer_arg(),
        update.into_buffer_arg(),
        bias.into_buffer_arg(),
        elem(y.dtype),
    );
    y
}

/// The memory of `x: […, o]` where its columns lie one behind the other, as [`product`] leaves a tall
/// one: `[o, n]` of `n` rows, or of more where burn left gaps behind the columns.
fn columns(x: &Primitive) -> Option<Primitive> {
    let (shape, strides) = (x.meta.shape(), x.meta.strides());
    let last = shape.num_dims() - 1;
    let mut n = 1;
    for i in (0..last).rev().filter(|i| shape[*i] > 1) {
        if strides[i] != n {
            return None;
        }
        n *= shape[i];
    }
    let (o, pitch) = (shape[last], strides[last]);
    let held = x.handle.size_in_used() as usize >= o * pitch * x.dtype.size();
    (n > 1 && pitch >= n && held && is_aligned(x)).then(|| {
        let memory = TensorHandle::new_contiguous(vec![o, pitch], x.handle.clone(), elem(x.dtype));
        flat(like(x, memory, x.dtype))
    })
}

/// A number of `bias` for each column of `y` and `update`.
#[cube(launch, address_type = "dynamic")]
fn add_to_columns<T: Float, N: Size>(
    y: &mut [Vector<T, N>],
    update: &[Vector<T, N>],
    bias: &[Vector<T, N>],
    #[define(T)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i >= y.len() {
        terminate!();
    }
    y[i] = sum(y[i], update[i], Vector::cast_from(bias[i % bias.len()]));
}

/// A number of `bias` for each row of `y` and `update`.
#[cube(launch, address_type = "dynamic")]
fn add_to_rows<T: Float, N: Size>(
    y: &mut [Vector<T, N>],
    update: &[Vector<T, N>],
    bias: &[T],
    #[define(T)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i >= y.len() {
        terminate!();
    }
    y[i] = sum(y[i], update[i], Vector::cast_from(bias[i / (y.len() / bias.len())]));
}

#[cube]
fn sum<T: Float, N: Size>(
    y: Vector<T, N>,
    update: Vector<T, N>,
    bias: Vector<f32, N>,
) -> Vector<T, N> {
    Vector::cast_from(Vector::<f32, N>::cast_from(y) + Vector::cast_from(update) + bias)
}
