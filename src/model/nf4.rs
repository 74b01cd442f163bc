//! Frozen weights in four bits, for QLoRA: NF4 with double quantisation, as bitsandbytes'
//! `Linear4bit` has them (`quant_type = "nf4"`, `compress_statistics = True`), whose names these are.
//!
//! A matrix in the hub's layout, row by row, is cut into blocks of 64. Each number is the nearest of
//! 16, times its block's largest magnitude (`absmax`). These, less their mean (`offset`), take eight
//! bits each: the nearest of 256 numbers, times the largest magnitude of 256 of them. All in all a
//! number takes 4.13 bits. Source: Dettmers et al. 2023, "QLoRA"; bitsandbytes' `quantize_4bit`.
//!
//! Letters: `i` inputs, `o` outputs, `b` blocks.

use std::sync::LazyLock;

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData, bf16};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::cpu;
use super::host::{data, resident};
use super::linear::cast;
use crate::error::Result;
use crate::hash::hex;

/// Numbers that share an `absmax`.
pub const BLOCK: usize = 64;
/// Blocks whose `absmax` share one.
pub const NESTED_BLOCK: usize = 256;
/// Codes in a word.
pub const WORD: usize = 8;
/// Where in its word each code stands: of a byte's two the first in the upper half.
pub const SHIFTS: [u32; WORD] = [4, 0, 12, 8, 20, 16, 28, 24];

/// What the codes of numbers stand for: quantiles of a normal distribution (QLoRA, appendix E).
pub const CODE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// What the codes of `absmax` stand for, in order: for each power of ten from 10⁻⁶ to 1 twice as
/// many steps between a tenth of it and itself, either sign; 0 and 1. Rounded as bitsandbytes'
/// `create_dynamic_map` is, where `torch.linspace` counts from both ends.
pub static NESTED_CODE: LazyLock<[f32; 256]> = LazyLock::new(|| {
    let mut numbers = vec![0.0, 1.0];
    for power in 0..7 {
        let steps = 1 << power;
        let step = (1.0f32 - 0.1) / steps as f32;
        let bound = |k: i32| match 2 * k < steps + 1 {
            true => step.mul_add(k as f32, 0.1),
            false => (-step).mul_add((steps - k) as f32, 1.0),
        };
        let unit = 10f64.powi(power - 6) as f32;
        for k in 0..steps {
            let number = unit * f32::midpoint(bound(k), bound(k + 1));
            numbers.extend([number, -number]);
        }
    }
    numbers.sort_by(f32::total_cmp);
    std::array::from_fn(|i| numbers[i])
});

/// Half-way between two of them.
static NESTED_BOUNDS: LazyLock<Vec<f32>> =
    LazyLock::new(|| NESTED_CODE.windows(2).map(|pair| f32::midpoint(pair[0], pair[1])).collect());

/// Bytes that so many `numbers` take.
pub fn bytes(numbers: usize) -> usize {
    let blocks = numbers.div_ceil(BLOCK);
    numbers.div_ceil(2) + blocks + 4 * blocks.div_ceil(NESTED_BLOCK)
}

/// A frozen matrix, `[i, o]`.
#[derive(Module, Debug)]
pub struct Nf4 {
    /// Codes, u32: `[⌈i·o / 8⌉]`.
    packed: Tensor<1, Int>,
    /// Their codes, u8: `[b]`.
    absmax: Tensor<1, Int>,
    /// `[⌈b / 256⌉]`.
    nested_absmax: Tensor<1>,
    /// [`CODE`] and [`NESTED_CODE`], where a GPU finds them.
    tables: Tensor<1>,
    /// Mean of `absmax`.
    offset: f32,
    inputs: usize,
    outputs: usize,
    #[module(skip)]
    dtype: DType,
}

/// The same as a backend has it, which computes with it.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "as in `Nf4`")]
pub struct Parts<T> {
    pub packed: T,
    pub absmax: T,
    pub nested_absmax: T,
    pub tables: T,
    pub offset: f32,
    /// `[o, i]`, as the numbers lie.
    pub shape: [usize; 2],
    pub dtype: DType,
}

impl Nf4 {
    /// The matrix of `values`, `[o, i]` row by row, as they are in `dtype`, in which its numbers are
    /// asked for.
    pub fn new(mut values: Vec<f32>, [o, i]: [usize; 2], dtype: DType, device: &Device) -> Self {
        if dtype == DType::BF16 {
            values.par_iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
        }
        let blocks: Vec<([u32; BLOCK / WORD], f32)> =
            values.par_chunks(BLOCK).map(quantised).collect();
        let offset = blocks.iter().map(|(_, absmax)| f64::from(*absmax)).sum::<f64>();
        let offset = (offset / blocks.len().max(1) as f64) as f32;
        let (absmax, nested_absmax): (Vec<Vec<u8>>, Vec<f32>) = blocks
            .par_chunks(NESTED_BLOCK)
            .map(|blocks| compressed(blocks.iter().map(|(_, absmax)| absmax - offset)))
            .unzip();
        let mut packed: Vec<u32> = blocks.into_iter().flat_map(|(packed, _)| packed).collect();
        packed.truncate(values.len().div_ceil(WORD));
        let [words, b] = [packed.len(), absmax.iter().map(Vec::len).sum()];
        let tables = [&CODE[..], &NESTED_CODE[..]].concat();
        Self {
            packed: resident(TensorData::new(packed, [words]), device, DType::U32),
            absmax: resident(TensorData::new(absmax.concat(), [b]), device, DType::U8),
            nested_absmax: resident(TensorData::from(&nested_absmax[..]), device, DType::F32),
            tables: resident(TensorData::from(&tables[..]), device, DType::F32),
            offset,
            inputs: i,
            outputs: o,
            dtype,
        }
    }

    /// `[i, o]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.inputs, self.outputs]
    }

    /// The type in which its numbers are asked for.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.nested_absmax.device()
    }

    /// Its numbers, `[i, o]`.
    pub fn values(&self) -> Tensor<2> {
        #[cfg(feature = "cuda")]
        if super::cuda::holds(&self.nested_absmax) {
            return super::cuda::dequantised(self);
        }
        cast(cpu::dequantised(self), self.dtype).transpose()
    }

    /// `x·W`: `x: […, i]` → `[…, o]`. What goes back through it costs the numbers once more: they
    /// are not kept.
    pub fn product<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        #[cfg(feature = "cuda")]
        if super::cuda::holds(&x) {
            return super::cuda::product_by(x, self);
        }
        let dtype = x.dtype();
        cast(cpu::product_by(cast(x, DType::F32), self), dtype)
    }

    /// The same on `device`, by way of the host.
    ///
    /// # Errors
    /// Where a device fails.
    pub fn on(&self, device: &Device) -> Result<Self> {
        let Parts { packed, absmax, nested_absmax, tables, .. } = self.on_host();
        Ok(Self {
            packed: resident(packed?, device, DType::U32),
            absmax: resident(absmax?, device, DType::U8),
            nested_absmax: resident(nested_absmax?, device, DType::F32),
            tables: resident(tables?, device, DType::F32),
            ..self.clone()
        })
    }

    /// What tells it from another.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn fingerprint(&self) -> Result<String> {
        let Parts { packed, absmax, nested_absmax, .. } = self.on_host();
        let mut hasher = Sha256::new();
        for data in [packed, absmax, nested_absmax] {
            hasher.update(data?.as_bytes());
        }
        let hash = hex(&hasher.finalize());
        Ok(format!("{:?} {:?} nf4 {} {hash}", self.shape(), self.dtype, self.offset))
    }

    fn on_host(&self) -> Parts<Result<TensorData>> {
        self.parts(data, data)
    }

    /// Its parts, each taken as a backend has it.
    pub(super) fn parts<T>(
        &self,
        int: impl Fn(Tensor<1, Int>) -> T,
        float: impl Fn(Tensor<1>) -> T,
    ) -> Parts<T> {
        Parts {
            packed: int(self.packed.clone()),
            absmax: int(self.absmax.clone()),
            nested_absmax: float(self.nested_absmax.clone()),
            tables: float(self.tables.clone()),
            offset: self.offset,
            shape: [self.outputs, self.inputs],
            dtype: self.dtype,
        }
    }
}

/// The codes of a block, and its `absmax`.
fn quantised(block: &[f32]) -> ([u32; BLOCK / WORD], f32) {
    let largest = block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let factor = 1.0 / largest.max(1e-38);
    let bounds: [f32; 15] = std::array::from_fn(|i| f32::midpoint(CODE[i], CODE[i + 1]));
    let mut words = [0; BLOCK / WORD];
    for (k, x) in block.iter().enumerate() {
        let scaled = (x * factor).clamp(-1.0, 1.0);
        let code = bounds.iter().map(|bound| u32::from(scaled > *bound)).sum::<u32>();
        words[k / WORD] |= code << SHIFTS[k % WORD];
    }
    (words, largest)
}

/// The codes of the `absmax` of some blocks, and their largest magnitude.
fn compressed(absmax: impl Iterator<Item = f32> + Clone) -> (Vec<u8>, f32) {
    let largest = absmax.clone().fold(0f32, |largest, x| largest.max(x.abs()));
    let factor = 1.0 / largest.max(1e-38);
    let code = |x: f32| NESTED_BOUNDS.partition_point(|bound| *bound < x * factor) as u8;
    (absmax.map(code).collect(), largest)
}
