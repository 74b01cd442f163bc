//! The low-rank update of a linear layer. Letters: `n` rows, `i` inputs, `o` outputs, `r` rank.

use burn::backend::Cuda;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use cubek::cubecl;
use cubek::cubecl::prelude::*;
use cubek::cubecl::std::tensor::TensorHandle;

use super::Primitive;
use super::layout::{address, cast, each_of_rows, elem, flat, is_aligned, like, own, scaled};
use super::product::{product, rows, transposed, with_rows_of};
use crate::model::record::Operation;

/// `y + bias + scaling · (x·a)·b`: `y: […, o]`, `x: […, i]`, both bf16, in which it is computed;
/// `a: [i, r]`, `b: [r, o]`, whose gradients have their type.
#[derive(Clone, Debug)]
pub struct AddLora {
    /// What the update is multiplied by.
    pub scaling: f32,
    /// `[o]`, bf16.
    pub bias: Option<Primitive>,
    /// `a`, scaled, and `b`, both bf16.
    pub factors: [Primitive; 2],
}

#[derive(Clone, Debug)]
pub struct Saved {
    /// `[n, i]`.
    x: Primitive,
    /// `x·a`, scaled: `[n, r]`.
    xa: Primitive,
    /// The type of `a` and `b`.
    learned: DType,
}

impl Operation<4, Cuda> for AddLora {
    type Saved = Saved;

    fn forward(&self, [y, x, a, _]: [Primitive; 4]) -> (Primitive, Saved) {
        let (x, learned) = (rows(x), a.dtype);
        let [a, b] = self.factors.clone();
        let xa = product(x.clone(), a);
        let update = with_rows_of(&y, product(xa.clone(), b));
        let sum = match self.bias.clone() {
            None => Cuda::float_add(y, update),
            Some(bias) => add_biased(y, update, bias),
        };
        (sum, Saved { x, xa, learned })
    }

    fn backward(
        &self,
        Saved { x, xa, learned }: Saved,
        gradient: Primitive,
        wanted: [bool; 4],
    ) -> [Option<Primitive>; 4] {
        let (g, [a, b]) = (rows(gradient.clone()), self.factors.clone());
        let d_xa = product(g.clone(), transposed(b));
        let dx = wanted[1].then(|| with_rows_of(&gradient, product(d_xa.clone(), transposed(a))));
        let da = wanted[2].then(|| scaled(product(transposed(x), d_xa), self.scaling, learned));
        let db = wanted[3].then(|| cast(product(transposed(xa), g), learned));
        [wanted[0].then_some(gradient), dx, da, db]
    }
}

/// `y + update + bias`: `[…, o]`, `[…, o]`, `[o]` → `[…, o]`, rounded once.
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
        like(x, memory, x.dtype)
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
