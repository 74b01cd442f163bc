//! Numbers of a matrix in four bits.

use burn::tensor::Shape;
use cubek::cubecl;
use cubek::cubecl::prelude::*;

use super::Primitive;
use super::layout::{address, each, elem, empty_as};
use crate::model::nf4::{BLOCK, CODE, NESTED_BLOCK, Parts, WORD};

/// The numbers of `weight` as they lie, `[o, i]`, in its type.
pub fn dequantised(weight: &Parts<Primitive>) -> Primitive {
    let y = empty_as(&weight.nested_absmax, &Shape::from(weight.shape), weight.dtype);
    let (count, dim, vector) = each(&y);
    let arg = |x: &Primitive| x.clone().into_buffer_arg();
    dequantise::launch(
        &y.client,
        count,
        dim,
        address(&y),
        vector,
        arg(&weight.packed),
        arg(&weight.absmax),
        arg(&weight.nested_absmax),
        arg(&weight.tables),
        arg(&y),
        weight.offset,
        elem(weight.dtype),
    );
    y
}

/// A thread makes the numbers of a word, or of a part of one.
#[cube(launch, address_type = "dynamic")]
fn dequantise<Y: Float, N: Size>(
    packed: &[u32],
    absmax: &[u8],
    nested_absmax: &[f32],
    tables: &[f32],
    y: &mut [Vector<Y, N>],
    offset: f32,
    #[define(Y)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let from = ABSOLUTE_POS * N::value();
    let block = from / BLOCK;
    let nested_code = comptime!(CODE.len());
    let nested = tables[nested_code + absmax[block] as usize];
    let absmax = nested * nested_absmax[block / NESTED_BLOCK] + offset;
    let word = packed[from / WORD];
    let mut numbers = Vector::<f32, N>::cast_from(0.0f32);
    #[unroll]
    for k in 0..N::value() {
        let place = (from % WORD + k) as u32;
        // As `SHIFTS` has it.
        let shift = place / 2 * 8 + (1 - place % 2) * 4;
        numbers.insert(k, tables[((word >> shift) & 15) as usize] * absmax);
    }
    y[ABSOLUTE_POS] = Vector::cast_from(numbers);
}
