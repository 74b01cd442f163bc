//! Products with a frozen matrix in four bits, some of whose rows are numbers at a time.
//!
//! Letters: `n` rows, `i` inputs, `o` outputs.

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Shape, bf16};
use rayon::prelude::*;

use super::layout::{Dense, tensor};
use super::matrix::{Matrix, MatrixMut, Threads, Write, product};
use super::vector::vectorised;
use crate::model::nf4::{BLOCK, CODE, NESTED_BLOCK, NESTED_CODE, Parts, SHIFTS, WORD};
use crate::model::record::Operation;

/// Numbers that exist at once, 1 MiB, a core's cache; more where a block's rows have more.
const AT_ONCE: usize = 1 << 18;
/// Numbers that a thread makes at once.
const PIECE: usize = 64 * BLOCK;

/// `x·weight`.
#[derive(Clone, Debug)]
pub struct ByNf4 {
    pub weight: Parts<FlexTensor>,
}

impl Operation<1> for ByNf4 {
    type Saved = Shape;

    fn forward(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, Shape) {
        let x = Dense::new(x);
        let ([n, i], [o, _]) = (x.rows(), self.weight.shape);
        let mut y = vec![0.0; n * o];
        let rows = Matrix::new(x.values(), [n, i], i);
        self.each_panel(|from, panel| {
            let width = panel.len() / i;
            let out = MatrixMut::new(&mut y[from..], [n, width], o);
            let panel = Matrix::new(panel, [width, i], i).transposed();
            product(out, (rows, panel), 1.0, Write::Over, Threads::All);
        });
        let mut shape = x.shape();
        let last = shape.num_dims() - 1;
        shape[last] = o;
        (tensor(y, shape), x.shape())
    }

    fn backward(&self, x: Shape, gradient: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let g = Dense::new(gradient);
        let ([n, o], [_, i]) = (g.rows(), self.weight.shape);
        let mut dx = vec![0.0; n * i];
        self.each_panel(|from, panel| {
            let width = panel.len() / i;
            let columns = Matrix::new(&g.values()[from..], [n, width], o);
            let (out, panel) =
                (MatrixMut::new(&mut dx, [n, i], i), Matrix::new(panel, [width, i], i));
            product(out, (columns, panel), 1.0, Write::Add, Threads::All);
        });
        [Some(tensor(dx, x))]
    }
}

impl ByNf4 {
    /// Hands out the matrix some rows at a time, with the number of the first.
    fn each_panel(&self, mut work: impl FnMut(usize, &[f32])) {
        let [o, i] = self.weight.shape;
        // So many that a panel begins with a block.
        let rows = BLOCK * (AT_ONCE / (BLOCK * i)).max(1);
        let mut panel = vec![0.0; rows.min(o) * i];
        for from in (0..o).step_by(rows) {
            let panel = &mut panel[..rows.min(o - from) * i];
            dequantise(&self.weight, from * i, panel);
            work(from, panel);
        }
    }
}

/// All numbers: `[o, i]`.
pub fn all(weight: &Parts<FlexTensor>) -> Vec<f32> {
    let mut numbers = vec![0.0; weight.shape.iter().product()];
    dequantise(weight, 0, &mut numbers);
    numbers
}

/// The numbers from number `from` on, which begins a block, in f32 as they are in the weight's type.
fn dequantise(weight: &Parts<FlexTensor>, from: usize, numbers: &mut [f32]) {
    let packed: &[u32] = weight.packed.as_slice().expect("u32 side by side, by construction");
    let codes: &[u8] = weight.absmax.as_slice().expect("u8 side by side, by construction");
    let nested: &[f32] =
        weight.nested_absmax.as_slice().expect("f32 side by side, by construction");
    numbers.par_chunks_mut(PIECE).enumerate().for_each(|(piece, numbers)| {
        let first = (from + piece * PIECE) / BLOCK;
        let blocks = first..first + numbers.len().div_ceil(BLOCK);
        let absmax = blocks
            .map(|b| NESTED_CODE[usize::from(codes[b])] * nested[b / NESTED_BLOCK] + weight.offset);
        let absmax: Vec<f32> = absmax.collect();
        from_blocks(&packed[first * BLOCK / WORD..], &absmax, numbers);
        if weight.dtype == DType::BF16 {
            numbers.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
        }
    });
}

vectorised! {
    /// Numbers of blocks of these `absmax`.
    pub fn from_blocks(packed: &[u32], absmax: &[f32], numbers: &mut [f32]) {
        let blocks = packed.chunks(BLOCK / WORD).zip(numbers.chunks_mut(BLOCK));
        for ((packed, numbers), absmax) in blocks.zip(absmax) {
            for (word, numbers) in packed.iter().zip(numbers.chunks_mut(WORD)) {
                for (number, shift) in numbers.iter_mut().zip(SHIFTS) {
                    *number = CODE[(word >> shift) as usize & 15] * absmax;
                }
            }
        }
    }
}
