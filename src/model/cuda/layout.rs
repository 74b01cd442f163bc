//! Tensors as kernels of our own read and write them: rows in memory, one behind the other.

use burn::tensor::{DType, Shape};
use cubek::cubecl;
use cubek::cubecl::ir::{AddressType, ElemType, FloatKind};
use cubek::cubecl::prelude::*;
use cubek::cubecl::std::tensor::TensorHandle;
use cubek::cubecl::zspace::metadata::Metadata;

use super::Primitive;

/// Bytes of which a kernel reads as many at once at most, from a multiple of them on.
const WIDE: usize = 16;

/// `x` without gaps, in the order of its dimensions; copied where it lies otherwise. A kernel that
/// asks for its length is told that of `x`.
pub fn flat(x: Primitive) -> Primitive {
    if x.is_contiguous() && is_aligned(&x) {
        return trimmed(x);
    }
    let (client, elem) = (x.client.clone(), elem(x.dtype));
    let copy = cubecl::std::tensor::into_contiguous(&client, x.clone().binding(), elem);
    like(&x, copy, x.dtype)
}

/// `x`, flat, without the memory behind it: burn rounds up that of a row, to 512 bytes.
fn trimmed(mut x: Primitive) -> Primitive {
    let behind = x.handle.size_in_used() - (x.meta.num_elements() * x.dtype.size()) as u64;
    if behind > 0 {
        *x.handle.offset_end.get_or_insert_default() += behind;
    }
    x
}

/// `x`, flat, where nothing else reads what is written: copied where something holds it too.
pub fn own(x: Primitive) -> Primitive {
    let x = flat(x);
    if x.can_mut() { x } else { x.copy() }
}

/// Whether `x` begins where [`vector`]s may. A part of another tensor need not.
pub fn is_aligned(x: &Primitive) -> bool {
    x.handle.offset_start.is_none_or(|offset| offset.is_multiple_of(WIDE as u64))
}

/// Memory for a tensor of `shape` beside `x`, in its type, without gaps.
pub fn empty(x: &Primitive, shape: &Shape) -> Primitive {
    empty_as(x, shape, x.dtype)
}

/// The same in `dtype`.
pub fn empty_as(x: &Primitive, shape: &Shape, dtype: DType) -> Primitive {
    let handle = x.client.empty(shape.num_elements() * dtype.size());
    like(x, TensorHandle::new_contiguous(shape.to_vec(), handle, elem(dtype)), dtype)
}

/// Memory for a tensor like `x`, without gaps.
pub fn empty_like(x: &Primitive) -> Primitive {
    empty(x, x.meta.shape())
}

/// `n` of the parts of `x: [e, …]`, from `from` on, where they lie.
pub fn part(x: &Primitive, from: usize, n: usize) -> Primitive {
    let mut part = x.clone();
    let (shape, strides) = (x.meta.shape(), x.meta.strides());
    let bytes = |e: usize| (e * strides[0] * x.dtype.size()) as u64;
    *part.handle.offset_start.get_or_insert_default() += bytes(from);
    *part.handle.offset_end.get_or_insert_default() += bytes(shape[0] - from - n);
    let mut fewer = shape.clone();
    fewer[0] = n;
    *part.meta = Metadata::new(fewer, strides.clone());
    part
}

/// The first `columns` of `x: [e, rows, …]`, where they lie.
pub fn first_columns(x: &Primitive, columns: usize) -> Primitive {
    let mut first = x.clone();
    let [e, rows, _]: [usize; 3] = x.meta.shape().dims();
    *first.meta = Metadata::new([e, rows, columns], x.meta.strides().clone());
    first
}

/// What a kernel wrote, as a tensor beside `beside`.
pub fn like(beside: &Primitive, written: TensorHandle, dtype: DType) -> Primitive {
    let (client, device) = (beside.client.clone(), beside.device.clone());
    Primitive::new(client, written.handle, *written.metadata, device, dtype)
}

/// `x` as `dtype`.
pub fn cast(x: Primitive, dtype: DType) -> Primitive {
    scaled(x, 1.0, dtype)
}

/// `factor · x` as `dtype`, rounded once.
pub fn scaled(x: Primitive, factor: f32, dtype: DType) -> Primitive {
    if x.dtype == dtype && factor == 1.0 {
        return x;
    }
    let x = flat(x);
    let y = empty_as(&x, x.meta.shape(), dtype);
    let n = x.meta.num_elements();
    let vector = vector(DType::F32, n);
    let (count, dim) = grid(&x, n / vector);
    scale::launch(
        &x.client,
        count,
        dim,
        address(&x),
        vector,
        x.clone().into_buffer_arg(),
        y.clone().into_buffer_arg(),
        factor,
        [elem(x.dtype), elem(dtype)],
    );
    y
}

#[cube(launch, address_type = "dynamic")]
fn scale<X: Float, Y: Float, N: Size>(
    x: &[Vector<X, N>],
    y: &mut [Vector<Y, N>],
    factor: f32,
    #[define(X, Y)] _dtypes: [ElemType; 2],
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
    y[ABSOLUTE_POS] = Vector::cast_from(x * Vector::cast_from(factor));
}

/// The kernels' name of `dtype`.
pub fn elem(dtype: DType) -> ElemType {
    match dtype {
        DType::BF16 => ElemType::Float(FloatKind::BF16),
        DType::F32 => ElemType::Float(FloatKind::F32),
        _ => unreachable!("models are bf16 or f32"),
    }
}

/// Numbers that a thread takes at once of runs of `width`.
pub fn vector(dtype: DType, width: usize) -> VectorSize {
    let most = WIDE / dtype.size();
    [8, 4, 2].into_iter().find(|n| *n <= most && width.is_multiple_of(*n)).unwrap_or(1)
}

/// The type that counts the numbers of `x`.
pub fn address(x: &Primitive) -> AddressType {
    x.required_address_type()
}

/// Blocks and threads for `n` that work alone.
pub fn grid(x: &Primitive, n: usize) -> (CubeCount, CubeDim) {
    let threads = CubeDim::new(&x.client, n);
    (cubecl::calculate_cube_count_elemwise(&x.client, n, threads), threads)
}

/// Blocks, threads and numbers of a thread for all numbers of `x`, each alone.
pub fn each(x: &Primitive) -> (CubeCount, CubeDim, VectorSize) {
    in_runs(x, x.meta.num_elements())
}

/// The same for `x: […, d]`, where no thread takes numbers of two rows.
pub fn each_of_rows(x: &Primitive) -> (CubeCount, CubeDim, VectorSize) {
    in_runs(x, x.meta.shape()[x.meta.shape().num_dims() - 1])
}

fn in_runs(x: &Primitive, width: usize) -> (CubeCount, CubeDim, VectorSize) {
    let vector = vector(x.dtype, width);
    let (count, dim) = grid(x, x.meta.num_elements() / vector);
    (count, dim, vector)
}
