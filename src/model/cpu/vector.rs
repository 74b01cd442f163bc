//! Loops that the compiler turns into vector instructions, and the pieces they are made of.
//!
//! A program for any x86-64 would use four lanes: [`vectorised`] compiles a loop for what newer
//! processors have too, and chooses when it runs.

use rayon::prelude::*;

/// Numbers that are worked on side by side.
const LANES: usize = 16;

/// Fewer numbers than this are not worth a second thread.
const PARALLEL: usize = 32 * 1024;

/// Numbers that one task of an element-wise loop works on: they fit the cache.
pub const CHUNK: usize = 8 * 1024;

/// Compiles a function three times, for AVX-512, for AVX2 and for any processor; the best that
/// this processor has is run.
///
/// A function and no closure: only of functions can it be demanded that they are compiled into
/// their caller, with its instructions.
macro_rules! vectorised {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        pub fn $name($($arg: $type),*) {
            #[allow(clippy::inline_always, reason = "its instructions are those of its caller")]
            #[inline(always)]
            fn plain($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn with_avx512($($arg: $type),*) {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn with_avx2($($arg: $type),*) {
                    plain($($arg),*)
                }
                match $crate::model::cpu::vector::Instructions::here() {
                    // SAFETY: the processor was asked for the instructions.
                    $crate::model::cpu::vector::Instructions::Avx512 => {
                        return unsafe { with_avx512($($arg),*) };
                    }
                    // SAFETY: as above.
                    $crate::model::cpu::vector::Instructions::Avx2 => {
                        return unsafe { with_avx2($($arg),*) };
                    }
                    $crate::model::cpu::vector::Instructions::Any => {}
                }
            }
            plain($($arg),*)
        }
    };
}
pub(super) use vectorised;

/// Vector instructions of an x86-64 processor.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub enum Instructions {
    Avx512,
    Avx2,
    Any,
}

#[cfg(target_arch = "x86_64")]
impl Instructions {
    /// What this processor has; asked once, then remembered by the standard library.
    #[inline]
    pub fn here() -> Self {
        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match (has_avx2, has_avx512) {
            (true, true) => Self::Avx512,
            (true, false) => Self::Avx2,
            (false, _) => Self::Any,
        }
    }
}

/// Hands `f` each chunk of `out` with its index, on all threads where that pays.
pub fn each_chunk(out: &mut [f32], chunk: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let run = |(i, out): (usize, &mut [f32])| f(i, out);
    match out.len() < PARALLEL {
        true => out.chunks_mut(chunk).enumerate().for_each(run),
        false => out.par_chunks_mut(chunk).enumerate().for_each(run),
    }
}

/// [`each_chunk`] of two outputs at once; `chunks` are their chunks' lengths.
pub fn each_chunk_of_two(
    outs: [&mut [f32]; 2],
    chunks: [usize; 2],
    f: impl Fn(usize, [&mut [f32]; 2]) + Sync,
) {
    let run = |(i, (a, b)): (usize, (&mut [f32], &mut [f32]))| f(i, [a, b]);
    let parallel = outs.iter().any(|out| out.len() >= PARALLEL);
    let [a, b] = outs;
    if parallel {
        let a = a.par_chunks_mut(chunks[0]);
        a.zip(b.par_chunks_mut(chunks[1])).enumerate().for_each(run);
    } else {
        a.chunks_mut(chunks[0]).zip(b.chunks_mut(chunks[1])).enumerate().for_each(run);
    }
}

/// `e^x` within 2 units in the last place; what would be under 1e-38 is 1e-38, NaN stays.
///
/// Source: Cephes' `expf`: `x = n·ln 2 + r`, a polynomial in `r`, and `n` into the exponent.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first exact in few bits.
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + c;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    (p * r * r + r + 1.0) * power
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled with the caller's vector instructions")]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `Σ f(a, b)` over the pairs of two slices of one length, always in the same order.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled with the caller's vector instructions")]
pub fn sum_of(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| f(*a, *b)).sum();
    lanes.iter().sum::<f32>() + rest
}

/// The largest number; NaN is passed over.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled with the caller's vector instructions")]
pub fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| larger(a, *b))
}

/// Turns each `x` into `e^(x − shift)`; returns their sum, always in the same order.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled with the caller's vector instructions")]
pub fn exp_and_sum(x: &mut [f32], shift: f32) -> f32 {
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp(chunk[i] - shift);
            lanes[i] += chunk[i];
        }
    }
    let mut sum = 0.0;
    for x in rest {
        *x = exp(*x - shift);
        sum += *x;
    }
    lanes.iter().sum::<f32>() + sum
}
