//! Tensors as kernels of our own read and write them: rows in memory, one behind the other.

use burn::backend::Cuda;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use cubek::cubecl;
use cubek::cubecl::ir::{AddressType, ElemType, FloatKind};
use cubek::cubecl::prelude::{CubeCount, CubeDim, VectorSize};
use cubek::cubecl::std::tensor::TensorHandle;

use super::Primitive;

/// `x` without gaps, in the order of its dimensions; copied where it lies otherwise.
pub fn flat(x: Primitive) -> Primitive {
    if x.is_contiguous() {
        return x;
    }
    let (client, elem) = (x.client.clone(), elem(x.dtype));
    let copy = cubecl::std::tensor::into_contiguous(&client, x.clone().binding(), elem);
    like(&x, copy, x.dtype)
}

/// Memory for a tensor of `shape` beside `x`, in its type, without gaps.
pub fn empty(x: &Primitive, shape: &Shape) -> Primitive {
    let handle = x.client.empty(shape.num_elements() * x.dtype.size());
    like(x, TensorHandle::new_contiguous(shape.to_vec(), handle, elem(x.dtype)), x.dtype)
}

/// Memory for a tensor like `x`, without gaps.
pub fn empty_like(x: &Primitive) -> Primitive {
    empty(x, x.meta.shape())
}

/// What a kernel wrote, as a tensor beside `beside`.
pub fn like(beside: &Primitive, written: TensorHandle, dtype: DType) -> Primitive {
    let (client, device) = (beside.client.clone(), beside.device.clone());
    Primitive::new(client, written.handle, *written.metadata, device, dtype)
}

/// `x` as `dtype`.
pub fn cast(x: Primitive, dtype: DType) -> Primitive {
    if x.dtype == dtype { x } else { Cuda::float_cast(x, dtype.into()) }
}

/// The kernels' name of `dtype`.
pub fn elem(dtype: DType) -> ElemType {
    match dtype {
        DType::BF16 => ElemType::Float(FloatKind::BF16),
        DType::F32 => ElemType::Float(FloatKind::F32),
        _ => unreachable!("models are bf16 or f32"),
    }
}

/// Numbers that a thread takes at once of runs of `width`: up to 16 bytes' worth.
pub fn vector(dtype: DType, width: usize) -> VectorSize {
    let most = 16 / dtype.size();
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
