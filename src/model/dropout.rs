//! The random numbers of dropout.
//!
//! Each sample draws its own, by its seed: what goes through the model with it, on which device and
//! in which thread changes nothing. Letters: `b` samples, `t` tokens, `i` inputs.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use burn::tensor::ops::PadMode;
use burn::tensor::{DType, Device, Distribution, Tensor};

/// A sample that draws.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Of what it draws next.
    pub seed: u64,
    /// Tokens that it draws for, where it stands in a batch: those behind them are padding.
    pub tokens: usize,
}

impl Row {
    /// The row where its draws for one part of the model begin.
    pub fn at(self, part: usize) -> Self {
        Self { seed: self.seed.wrapping_add(part as u64 + 1), ..self }
    }

    /// Numbers of `shape`, 1 with probability `keep`, else 0.
    fn draw<const D: usize>(&mut self, shape: [usize; D], keep: f64, device: &Device) -> Tensor<D> {
        let seed = self.seed;
        // The next draw's, by Knuth's MMIX generator.
        self.seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        device.seed(seed);
        Tensor::random(shape, Distribution::Bernoulli(keep), (device, DType::F32))
    }
}

/// burn has one generator for all devices and threads: nobody may come between a seed and its draw.
static GENERATOR: Mutex<()> = Mutex::new(());

thread_local! {
    /// What goes through the model in this thread.
    static ROWS: RefCell<Vec<Row>> = const { RefCell::new(vec![]) };
}

/// Says what goes through the model in this thread from now on.
pub fn begin(rows: impl IntoIterator<Item = Row>) {
    ROWS.set(rows.into_iter().collect());
}

/// 1 with probability `keep`, else 0, in f32, shaped as `x`: `[b, t, i]`, or of one
/// sample any shape.
pub fn kept<const D: usize>(x: &Tensor<D>, keep: f64) -> Tensor<D> {
    let (shape, device) = (x.dims(), x.device());
    ROWS.with_borrow_mut(|rows| match &mut rows[..] {
        [] => Tensor::random(shape, Distribution::Bernoulli(keep), (&device, DType::F32)),
        [row] => row.draw(shape, keep, &device),
        rows => {
            let of_row = |row: &mut Row| {
                let mut own = shape;
                (own[0], own[1]) = (1, row.tokens);
                let kept = row.draw(own, keep, &device);
                match shape[1] - row.tokens {
                    0 => kept,
                    padding => kept.pad((0, 0, 0, padding), PadMode::Constant(0.0)),
                }
            };
            Tensor::cat(rows.iter_mut().map(of_row).collect(), 0)
        }
    })
}
