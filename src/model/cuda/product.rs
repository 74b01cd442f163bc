//! Products of matrices whose kernels a GPU takes.
//!
//! From compute capability 9.0 on, burn's autotune tries kernels that copy tiles (TMA). Where a
//! product in bf16 has four times as many rows as columns, and more than 32 columns, they take
//! tiles of 512 rows (`find_instruction_size` and `infer_blueprint_plane` of cubek-matmul
//! 0.4.0-pre.1); a GPU copies 256. The driver refuses, burn holds the factors, the model's weights
//! among them, for never written, and the run ends. The transpose of such a product has many
//! columns, and none of this.

use burn::backend::Cuda;
use burn::backend::ops::FloatTensorOps;

use super::Primitive;
use crate::model::record::Operation;

/// A product with as many columns has small tiles, however many rows.
const NARROW: usize = 32;

/// `x·weight`, both with gradients: `[n, i]`, `[i, o]` → `[n, o]`.
#[derive(Clone, Debug)]
pub struct Product;

impl Operation<2, Cuda> for Product {
    type Saved = [Primitive; 2];

    fn forward(&self, [x, weight]: [Primitive; 2]) -> (Primitive, [Primitive; 2]) {
        (product(x.clone(), weight.clone()), [x, weight])
    }

    fn backward(
        &self,
        [x, weight]: [Primitive; 2],
        gradient: Primitive,
        wanted: [bool; 2],
    ) -> [Option<Primitive>; 2] {
        [
            wanted[0].then(|| product(gradient.clone(), transposed(weight))),
            wanted[1].then(|| product(transposed(x), gradient)),
        ]
    }
}

/// `x·weight` with a weight that has no gradient: `[n, i]` → `[n, o]`. It keeps no `x`.
#[derive(Clone, Debug)]
pub struct ByFrozen {
    /// `[i, o]`.
    pub weight: Primitive,
}

impl Operation<1, Cuda> for ByFrozen {
    type Saved = ();

    fn forward(&self, [x]: [Primitive; 1]) -> (Primitive, ()) {
        (product(x, self.weight.clone()), ())
    }

    fn backward(&self, (): (), gradient: Primitive, _: [bool; 1]) -> [Option<Primitive>; 1] {
        [Some(product(gradient, transposed(self.weight.clone())))]
    }
}

/// `lhs·rhs`, as the transpose of `rhsᵀ·lhsᵀ` where it is tall.
pub fn product(lhs: Primitive, rhs: Primitive) -> Primitive {
    let ([m, _], [_, n]): ([usize; 2], [usize; 2]) =
        (lhs.meta.shape().dims(), rhs.meta.shape().dims());
    if m >= 4 * n && n > NARROW {
        transposed(Cuda::float_matmul(transposed(rhs), transposed(lhs)))
    } else {
        Cuda::float_matmul(lhs, rhs)
    }
}

/// The transpose of `x`, where it lies.
pub fn transposed(x: Primitive) -> Primitive {
    Cuda::float_swap_dims(x, 0, 1)
}
