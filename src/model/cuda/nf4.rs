//! Numbers of a matrix in four bits.

use burn::tensor::{DType, Shape};
use cubek::cubecl;
use cubek::cubecl::prelude::*;

use super::Primitive;
use super::layout::{address, each, elem, empty_as};
use crate::model::nf4::{BLOCK, NUMBERS, Parts, SCALES, WORD};

/// The numbers of `weight` as they lie, `[o, i]`, as `dtype`.
pub fn dequantised(weight: &Parts<Primitive>, dtype: DType) -> Primitive {
    let y = empty_as(&weight.ranges, &Shape::from(weight.shape), dtype);
    let (count, dim, vector) = each(&y);
    let arg = |x: &Primitive| x.clone().into_buffer_arg();
    dequantise::launch(
        &y.client,
        count,
        dim,
        address(&y),
        vector,
        arg(&weight.codes),
        arg(&weight.scales),
        arg(&weight.ranges),
        arg(&weight.tables),
        arg(&y),
        weight.offset,
        elem(dtype),
    );
    y
}

/// A thread makes the numbers of a word, or of a part of one.
#[cube(launch, address_type = "dynamic")]
fn dequantise<Y: Float, N: Size>(
    codes: &[u32],
    scales: &[u8],
    ranges: &[f32],
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
    let magnitudes = comptime!(NUMBERS.len());
    let largest = tables[magnitudes + scales[block] as usize] * ranges[block / SCALES] + offset;
    let word = codes[from / WORD];
    let mut numbers = Vector::<f32, N>::cast_from(0.0f32);
    #[unroll]
    for k in 0..N::value() {
        let place = (from % WORD + k) as u32;
        // Of a byte's two codes the first stands in the upper half.
        let shift = place / 2 * 8 + (1 - place % 2) * 4;
        numbers.insert(k, tables[((word >> shift) & 15) as usize] * largest);
    }
    y[ABSOLUTE_POS] = Vector::cast_from(numbers);
}
