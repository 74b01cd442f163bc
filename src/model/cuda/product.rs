//! Products of matrices: cuBLAS's where there is one, and burn's by kernels that a GPU takes.
//!
//! From compute capability 9.0 on, burn's autotune tries kernels that copy tiles (TMA). Where a
//! product in bf16 has four times as many rows as columns, and more than 32 columns, they take
//! tiles of 512 rows (`find_instruction_size` and `infer_blueprint_plane` of cubek-matmul
//! 0.4.0-pre.1); a GPU copies 256. The driver refuses, burn holds the factors, the model's weights
//! among them, for never written, and the run ends. The transpose of such a product has many
//! columns, and none of this.

use burn::backend::Cuda;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;

use super::layout::scaled;
use super::{Primitive, cublas, nf4};
use crate::model::nf4::Parts;
use crate::model::record::Operation;

/// A product with as many columns has small tiles, however many rows.
const NARROW: usize = 32;

/// `x·weight`, both with gradients: `[…, i]`, `[i, o]` → `[…, o]`.
#[derive(Clone, Debug)]
pub struct Product;

impl Operation<2, Cuda> for Product {
    type Saved = [Primitive; 2];

    fn forward(&self, [x, weight]: [Primitive; 2]) -> (Primitive, [Primitive; 2]) {
        let y = with_rows_of(&x, product(rows(x.clone()), weight.clone()));
        (y, [x, weight])
    }

    fn backward(
        &self,
        [x, weight]: [Primitive; 2],
        gradient: Primitive,
        wanted: [bool; 2],
    ) -> [Option<Primitive>; 2] {
        let g = rows(gradient);
        [
            wanted[0].then(|| with_rows_of(&x, product(g.clone(), transposed(weight)))),
            wanted[1].then(|| product(transposed(rows(x.clone())), g.clone())),
        ]
    }
}

/// A weight that has no gradient, `[i, o]`.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each product that is recorded")]
pub enum Frozen {
    Dense(Primitive),
    Nf4(Parts<Primitive>),
}

impl Frozen {
    /// Its numbers; those of four bits each are made anew.
    pub fn values(&self) -> Primitive {
        match self {
            Self::Dense(weight) => weight.clone(),
            Self::Nf4(weight) => transposed(nf4::dequantised(weight)),
        }
    }
}

/// `x·weight` with a weight that has no gradient: `[…, i]` → `[…, o]`. It keeps no `x`.
#[derive(Clone, Debug)]
pub struct ByFrozen {
    /// `[i, o]`.
    pub weight: Frozen,
}

impl Operation<1, Cuda> for ByFrozen {
    type Saved = ();

    fn forward(&self, [x]: [Primitive; 1]) -> (Primitive, ()) {
        let weight = self.weight.values();
        (with_rows_of(&x, product(rows(x.clone()), weight)), ())
    }

    fn backward(&self, (): (), gradient: Primitive, _: [bool; 1]) -> [Option<Primitive>; 1] {
        let weight = self.weight.values();
        let dx = product(rows(gradient.clone()), transposed(weight));
        [Some(with_rows_of(&gradient, dx))]
    }
}

/// `lhs·rhs`: `[m, k]`, `[k, n]` → `[m, n]`.
pub fn product(lhs: Primitive, rhs: Primitive) -> Primitive {
    let dtype = lhs.dtype;
    scaled_product(lhs, rhs, 1.0, dtype)
}

/// `factor · lhs·rhs` as `dtype`: `[m, k]`, `[k, n]` → `[m, n]`.
pub fn scaled_product(lhs: Primitive, rhs: Primitive, factor: f32, dtype: DType) -> Primitive {
    cublas::product(&lhs, &rhs, factor, dtype)
        .unwrap_or_else(|| scaled(by_burn(lhs, rhs), factor, dtype))
}

/// `y + lhs·rhs`: `[m, n]`, `[m, k]`, `[k, n]`.
pub fn add_product(y: Primitive, lhs: Primitive, rhs: Primitive) -> Primitive {
    if cublas::add_to(&y, &lhs, &rhs) { y } else { Cuda::float_add(y, product(lhs, rhs)) }
}

/// `lhs·rhs`, as the transpose of `rhsᵀ·lhsᵀ` where it is tall.
fn by_burn(lhs: Primitive, rhs: Primitive) -> Primitive {
    let ([m, _], [_, n]): ([usize; 2], [usize; 2]) =
        (lhs.meta.shape().dims(), rhs.meta.shape().dims());
    if m >= 4 * n && n > NARROW {
        transposed(Cuda::float_matmul(transposed(rhs), transposed(lhs)))
    } else {
        Cuda::float_matmul(lhs, rhs)
    }
}

/// `x: […, d]` as `[n, d]`.
pub fn rows(x: Primitive) -> Primitive {
    let shape = x.meta.shape();
    let d = shape[shape.num_dims() - 1];
    let n = shape.num_elements() / d;
    Cuda::float_reshape(x, [n, d].into())
}

/// `y: [n, d]` as `[…, d]`, its rows standing as those of `x: […, i]` do.
pub fn with_rows_of(x: &Primitive, y: Primitive) -> Primitive {
    let mut shape = x.meta.shape().clone();
    let last = shape.num_dims() - 1;
    shape[last] = y.meta.shape()[1];
    Cuda::float_reshape(y, shape)
}

/// The transpose of `x`, where it lies.
pub fn transposed(x: Primitive) -> Primitive {
    Cuda::float_swap_dims(x, 0, 1)
}
