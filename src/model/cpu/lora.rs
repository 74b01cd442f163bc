//! The low-rank update of a linear layer. Letters: `n` rows, `i` inputs, `o` outputs, `r` rank.

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;

use super::layout::{Dense, tensor};
use super::matrix::{Matrix, MatrixMut, Threads, Write, product};
use crate::model::record::Operation;

#[derive(Clone, Debug)]
pub struct AddLora {
    pub scaling: f32,
}

#[derive(Clone, Debug)]
pub struct Saved {
    x: Dense,
    a: Dense,
    b: Dense,
    /// `x·a`: `[n, r]`.
    xa: Vec<f32>,
}

fn matrix(x: &Dense) -> Matrix<'_> {
    let [rows, columns] = x.rows();
    Matrix::new(x.values(), [rows, columns], columns)
}

/// `scale · lhs·rhs`, `[rows, columns]`.
fn times(scale: f32, lhs: Matrix, rhs: Matrix, [rows, columns]: [usize; 2]) -> Vec<f32> {
    let mut out = vec![0.0; rows * columns];
    let into = MatrixMut::new(&mut out, [rows, columns], columns);
    product(into, (lhs, rhs), scale, Write::Over, Threads::All);
    out
}

impl Operation<4> for AddLora {
    type Saved = Saved;

    fn forward(&self, [y, x, a, b]: [FlexTensor; 4]) -> (FlexTensor, Saved) {
        let (mut y, [x, a, b]) = (Dense::new(y), [x, a, b].map(Dense::new));
        let ([n, o], [_, r]) = (y.rows(), a.rows());
        let xa = times(1.0, matrix(&x), matrix(&a), [n, r]);
        product(
            MatrixMut::new(y.values_mut(), [n, o], o),
            (Matrix::new(&xa, [n, r], r), matrix(&b)),
            self.scaling,
            Write::Add,
            Threads::All,
        );
        (y.0, Saved { x, a, b, xa })
    }

    fn backward(
        &self,
        Saved { x, a, b, xa }: Saved,
        gradient: FlexTensor,
        wanted: [bool; 4],
    ) -> [Option<FlexTensor>; 4] {
        let g = Dense::new(gradient);
        let ([n, o], [i, r]) = (g.rows(), a.rows());
        let mut dx = None;
        let mut da = None;
        if wanted[1] || wanted[2] {
            let d_xa = times(self.scaling, matrix(&g), matrix(&b).transposed(), [n, r]);
            let d_xa = Matrix::new(&d_xa, [n, r], r);
            dx = wanted[1]
                .then(|| tensor(times(1.0, d_xa, matrix(&a).transposed(), [n, i]), x.shape()));
            da = wanted[2].then(|| {
                let da = times(1.0, matrix(&x).transposed(), d_xa, [i, r]);
                tensor(da, Shape::from(vec![i, r]))
            });
        }
        let db = wanted[3].then(|| {
            let xa = Matrix::new(&xa, [n, r], r).transposed();
            tensor(times(self.scaling, xa, matrix(&g), [r, o]), Shape::from(vec![r, o]))
        });
        [wanted[0].then_some(g.0), dx, da, db]
    }
}
