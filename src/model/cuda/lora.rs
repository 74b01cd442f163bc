//! The low-rank update of a linear layer. Letters: `n` rows, `i` inputs, `o` outputs, `r` rank.

use burn::backend::Cuda;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;

use super::Primitive;
use super::layout::{cast, scaled};
use super::product::{product, rows, transposed, with_rows_of};
use crate::model::record::Operation;

/// `y + scaling · (x·a)·b`: `y: […, o]`, `x: […, i]`, both bf16, in which it is computed;
/// `a: [i, r]`, `b: [r, o]`, whose gradients have their type.
#[derive(Clone, Debug)]
pub struct AddLora {
    /// What the update is multiplied by.
    pub scaling: f32,
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
        (Cuda::float_add(y, update), Saved { x, xa, learned })
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
