//! Positions: where each token stands in time, height and width, and the rotary tables that
//! follow from it.
//!
//! Source: Qwen2-VL §2.1 (M-RoPE), transformers 4.45–4.51 `get_rope_index`: the rule that the
//! checkpoints were trained with. Later versions of transformers differ; ours does not follow.
//! Letters: `t` tokens, `d` head width.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::config::{Config, Family, TextConfig, VISION_ROPE_THETA, VisionConfig};
use super::cpu;
use super::linear::cast;
use crate::error::{Error, Result};

/// An image or video as the language model sees it: the patch grid and its clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MediaGrid {
    /// Patches in time, height and width, before merging.
    pub grid_thw: [usize; 3],
    /// Seconds that one temporal patch lasts (`second_per_grid_ts`); none for an image.
    pub second_per_grid: Option<f64>,
}

impl MediaGrid {
    /// Tokens in the prompt: patches / `merge_unit`.
    pub fn tokens(&self, vision: &VisionConfig) -> usize {
        self.grid_thw.iter().product::<usize>() / vision.merge_unit()
    }
}

/// `position_ids` of one prompt: three rows (time, height, width) of `t` positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    /// `[3][t]`.
    pub rows: [Vec<i64>; 3],
}

impl Positions {
    /// M-RoPE positions of `input_ids`, whose media pads stand for `media`, in order.
    ///
    /// Text advances all rows together; a medium starts at the next position and spreads over
    /// its grid; the text behind it continues at the highest position + 1.
    ///
    /// # Errors
    /// Where the pads in `input_ids` do not agree with `media`.
    pub fn new(config: &Config, input_ids: &[u32], media: &[MediaGrid]) -> Result<Self> {
        let mut rows = [(); 3].map(|()| Vec::with_capacity(input_ids.len()));
        let mut media = media.iter();
        let (mut next, mut i) = (0_i64, 0);
        while i < input_ids.len() {
            if input_ids[i] != config.image_token_id && input_ids[i] != config.video_token_id {
                for row in &mut rows {
                    row.push(next);
                }
                (next, i) = (next + 1, i + 1);
                continue;
            }
            let grid = media.next().ok_or_else(|| pads_disagree("more"))?;
            let n = grid.tokens(&config.vision);
            if input_ids.len() < i + n || input_ids[i..i + n].iter().any(|id| *id != input_ids[i]) {
                return Err(pads_disagree("fewer"));
            }
            next = push_grid(config, grid, next, &mut rows);
            i += n;
        }
        match media.next() {
            None => Ok(Self { rows }),
            Some(_) => Err(pads_disagree("fewer")),
        }
    }

    /// The position behind the last one: where a generated token stands in all three rows.
    pub fn next(&self) -> i64 {
        self.rows.iter().flatten().max().map_or(0, |max| max + 1)
    }

    /// `rope_deltas`: what to add to a token's index behind the prompt to get its position.
    pub fn rope_delta(&self) -> i64 {
        self.next() - self.rows[0].len() as i64
    }

    /// `n` text tokens that start at `first`.
    pub fn text(first: i64, n: usize) -> Self {
        let row: Vec<i64> = (first..first + n as i64).collect();
        Self { rows: [row.clone(), row.clone(), row] }
    }

    /// The positions of tokens `range`; beyond the end the last token's go on as text.
    pub fn part(&self, range: std::ops::Range<usize>) -> Self {
        let t = self.rows[0].len();
        let beyond = Self::text(self.next(), range.end.saturating_sub(t));
        let of = |row: usize| {
            let inside = &self.rows[row][range.start.min(t)..range.end.min(t)];
            [inside, &beyond.rows[row]].concat()
        };
        Self { rows: [of(0), of(1), of(2)] }
    }
}

fn pads_disagree(how: &str) -> Error {
    Error::input(format!("the prompt has {how} video or image tokens than its media need"))
        .help("a question must not spell out the model's special tokens")
}

/// Appends one medium's positions from `start`; returns the position of the text behind it.
fn push_grid(config: &Config, media: &MediaGrid, start: i64, rows: &mut [Vec<i64>; 3]) -> i64 {
    let merge = config.vision.spatial_merge_size;
    let [t, h, w] = [media.grid_thw[0], media.grid_thw[1] / merge, media.grid_thw[2] / merge];
    let per_second = config.vision.tokens_per_second as f32;
    // In f32 and in this order, as the reference: else whole numbers may come out one less or more.
    let offset = |a: usize| match (config.family, media.second_per_grid) {
        (Family::Qwen2Vl, _) => a as i64,
        (Family::Qwen2_5Vl, Some(seconds)) => (a as f32 * seconds as f32 * per_second) as i64,
        (Family::Qwen2_5Vl, None) => 0,
    };
    let mut max = start;
    for a in 0..t {
        let time = start + offset(a);
        for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y as i64, x as i64))) {
            rows[0].push(time);
            rows[1].push(start + y);
            rows[2].push(start + x);
            max = max.max(time).max(start + y).max(start + x);
        }
    }
    max + 1
}

/// Cosines and sines of the rotary embedding, f32.
#[derive(Clone, Debug)]
pub struct Rotary {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rotary {
    /// Tables of the language model for a batch of `b` prompts of equal length: `[b, 1, t, d]`.
    pub fn text(config: &TextConfig, batch: &[Positions], device: &Device) -> Self {
        let half = config.head_dim / 2;
        let frequencies = inverse_frequencies(config.rope_theta, half);
        let row_of: Vec<usize> = (0..3).flat_map(|s| vec![s; config.mrope_section[s]]).collect();
        let tokens =
            batch.iter().flat_map(|one| (0..one.rows[0].len()).map(move |i| (&one.rows, i)));
        let angles = tokens.flat_map(|(rows, i)| {
            let position = |f: usize| rows[row_of[f]][i] as f32;
            (0..half).map(|f| position(f) * frequencies[f]).collect::<Vec<_>>()
        });
        let [cos, sin] = tables(&angles.collect::<Vec<_>>(), half, device);
        let t = cos.dims()[0] / batch.len();
        let shape = [batch.len(), 1, t, config.head_dim];
        Self { cos: cos.reshape(shape), sin: sin.reshape(shape) }
    }

    /// Tables of the vision tower for patches at `(y, x)`: `[1, patches, 1, d]`.
    pub fn vision(head_dim: usize, patches: &[(usize, usize)], device: &Device) -> Self {
        let quarter = head_dim / 4;
        let frequencies = inverse_frequencies(VISION_ROPE_THETA, quarter);
        let angles = patches.iter().flat_map(|&(y, x)| {
            let along = |p: usize| frequencies.iter().map(move |f| p as f32 * f);
            along(y).chain(along(x)).collect::<Vec<_>>()
        });
        let [cos, sin] = tables(&angles.collect::<Vec<_>>(), head_dim / 2, device);
        let shape = [1, patches.len(), 1, head_dim];
        Self { cos: cos.reshape(shape), sin: sin.reshape(shape) }
    }

    /// Width of the heads that these tables rotate.
    pub fn head_dim(&self) -> usize {
        self.cos.dims()[3]
    }

    /// Rotates `x: [batch, heads, t, d]` (or `[batch, patches, heads, d]` with vision tables).
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        if cpu::runs(&x) {
            return cpu::rotate(x, self.cos.clone(), self.sin.clone());
        }
        #[cfg(feature = "cuda")]
        if super::cuda::holds(&x) {
            return super::cuda::rotate(x, self.cos.clone(), self.sin.clone());
        }
        let dtype = x.dtype();
        let x = cast(x, DType::F32);
        let d = x.dims()[3];
        let rotated = Tensor::cat(
            vec![x.clone().narrow(3, d / 2, d / 2).neg(), x.clone().narrow(3, 0, d / 2)],
            3,
        );
        cast(x * self.cos.clone() + rotated * self.sin.clone(), dtype)
    }
}

/// `theta^(-i / n)` for `i` in `0..n`, in f32 as the reference computes it.
fn inverse_frequencies(theta: f64, n: usize) -> Vec<f32> {
    (0..n).map(|i| 1.0 / (theta as f32).powf(i as f32 / n as f32)).collect()
}

/// Cosine and sine of `angles: [n, half]`, each repeated to `[n, 2 * half]`.
fn tables(angles: &[f32], half: usize, device: &Device) -> [Tensor<2>; 2] {
    let n = angles.len() / half;
    [f32::cos as fn(f32) -> f32, f32::sin].map(|function| {
        let values: Vec<f32> = angles.iter().map(|a| function(*a)).collect();
        let table = Tensor::<2>::from_data(TensorData::new(values, [n, half]), device);
        Tensor::cat(vec![table.clone(), table], 1)
    })
}
