//! A step of AdamW and the squares for its clipping, each parameter in one pass.

use cubek::cubecl;
use cubek::cubecl::prelude::*;

use super::Primitive;
use super::block::{BLOCK, block_sum, sum};
use super::layout::{address, each, elem, empty, empty_like, flat, vector};

/// What a step of AdamW multiplies by and adds, worked out on the host.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What of the first moment gives way to the gradient, `1 − β₁`.
    pub first: f32,
    /// Decay of the second moment, `β₂`.
    pub decay: f32,
    /// What of the squared gradient enters it, `1 − β₂`.
    pub second: f32,
    /// Divides the root of the second moment: `√(1 − β₂ᵗ)`.
    pub root: f32,
    /// Added to that root.
    pub eps: f32,
    /// Learning rate over `1 − β₁ᵗ`.
    pub rate: f32,
    /// What is left of the parameter, `1 − lr·weight_decay`.
    pub left: f32,
}

/// Moments and value behind the step: all flat, f32.
pub fn adamw(
    step: Step,
    gradient: Primitive,
    moments: [Primitive; 2],
    value: Primitive,
) -> ([Primitive; 2], Primitive) {
    let (gradient, value) = (flat(gradient), flat(value));
    let [first, second] = moments.map(flat);
    let [new_first, new_second, new_value] = [&first, &second, &value].map(empty_like);
    let (count, dim, vector) = each(&value);
    adamw_step::launch(
        &value.client,
        count,
        dim,
        address(&value),
        vector,
        gradient.into_buffer_arg(),
        first.into_buffer_arg(),
        second.into_buffer_arg(),
        value.clone().into_buffer_arg(),
        new_first.clone().into_buffer_arg(),
        new_second.clone().into_buffer_arg(),
        new_value.clone().into_buffer_arg(),
        step.first,
        step.decay,
        step.second,
        step.root,
        step.eps,
        step.rate,
        step.left,
    );
    ([new_first, new_second], new_value)
}

#[cube(launch, address_type = "dynamic")]
fn adamw_step<N: Size>(
    gradient: &[Vector<f32, N>],
    first: &[Vector<f32, N>],
    second: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    new_first: &mut [Vector<f32, N>],
    new_second: &mut [Vector<f32, N>],
    new_value: &mut [Vector<f32, N>],
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    root: f32,
    eps: f32,
    rate: f32,
    left: f32,
) {
    let i = ABSOLUTE_POS;
    if i >= value.len() {
        terminate!();
    }
    let g = gradient[i];
    let m = first[i] + (g - first[i]) * Vector::cast_from(one_minus_beta1);
    let v = second[i] * Vector::cast_from(beta2) + g * g * Vector::cast_from(one_minus_beta2);
    let over = v.sqrt() / Vector::cast_from(root) + Vector::cast_from(eps);
    new_first[i] = m;
    new_second[i] = v;
    new_value[i] = value[i] * Vector::cast_from(left) - m / over * Vector::cast_from(rate);
}

/// Blocks that share the numbers of one tensor.
const BLOCKS: u32 = 32;

/// Sums of squares whose sum is that of all numbers of `tensors`, f32: `[n]`.
pub fn squares(tensors: Vec<Primitive>) -> Option<Primitive> {
    let first = tensors.first()?;
    let sums = empty(first, &[tensors.len() * BLOCKS as usize].into());
    for (i, x) in tensors.into_iter().enumerate() {
        let x = flat(x);
        let vector = vector(x.dtype, x.meta.num_elements());
        square_sums::launch(
            &x.client,
            CubeCount::new_1d(BLOCKS),
            BLOCK,
            address(&x),
            vector,
            x.clone().into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            i as u32 * BLOCKS,
            elem(x.dtype),
        );
    }
    Some(sums)
}

#[cube(launch, address_type = "dynamic")]
fn square_sums<T: Float, N: Size>(
    x: &[Vector<T, N>],
    sums: &mut [f32],
    to: u32,
    #[define(T)] _dtype: ElemType,
) {
    let mut squares = Vector::<f32, N>::cast_from(0.0f32);
    for i in range_stepped(ABSOLUTE_POS, x.len(), CUBE_DIM as usize * CUBE_COUNT) {
        let x = Vector::<f32, N>::cast_from(x[i]);
        squares += x * x;
    }
    let total = block_sum(sum::<N>(squares));
    if UNIT_POS == 0 {
        sums[to as usize + CUBE_POS] = total;
    }
}
