//! A step of AdamW and the squares for its clipping, each parameter in one pass.

use cubek::cubecl;
use cubek::cubecl::prelude::*;

use super::Primitive;
use super::block::{BLOCK, block_sum, sum};
use super::layout::{address, each, elem, empty, flat, own, vector};

/// What a step of AdamW multiplies by and adds, worked out on the host.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What the gradient is multiplied by first.
    pub factor: f32,
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

/// Moments and value behind the step, in their own memory: all flat, f32.
pub fn adamw(
    step: Step,
    gradient: Primitive,
    moments: [Primitive; 2],
    value: Primitive,
) -> ([Primitive; 2], Primitive) {
    let (gradient, value) = (flat(gradient), own(value));
    let [first, second] = moments.map(own);
    let (count, dim, vector) = each(&value);
    adamw_step::launch(
        &value.client,
        count,
        dim,
        address(&value),
        vector,
        gradient.into_buffer_arg(),
        first.clone().into_buffer_arg(),
        second.clone().into_buffer_arg(),
        value.clone().into_buffer_arg(),
        step.factor,
        step.first,
        step.decay,
        step.second,
        step.root,
        step.eps,
        step.rate,
        step.left,
    );
    ([first, second], value)
}

#[cube(launch, address_type = "dynamic")]
fn adamw_step<N: Size>(
    gradient: &[Vector<f32, N>],
    first: &mut [Vector<f32, N>],
    second: &mut [Vector<f32, N>],
    value: &mut [Vector<f32, N>],
    factor: f32,
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
    let g = gradient[i] * Vector::cast_from(factor);
    let m = first[i] + (g - first[i]) * Vector::cast_from(one_minus_beta1);
    let v = second[i] * Vector::cast_from(beta2) + g * g * Vector::cast_from(one_minus_beta2);
    let over = v.sqrt() / Vector::cast_from(root) + Vector::cast_from(eps);
    first[i] = m;
    second[i] = v;
    value[i] = value[i] * Vector::cast_from(left) - m / over * Vector::cast_from(rate);
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
