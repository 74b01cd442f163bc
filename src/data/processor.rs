//! RGB frames enter, normalised patches leave.
//!
//! The numbers are those of Hugging Face's Qwen2-VL processors (torchvision
//! path): resize to a multiple of 28 pixels with an antialiased bicubic filter
//! in 8 bits, normalise, cut into patches. qwen-vl-utils resizes videos in f32;
//! LLaMA-Factory resizes once more before that; see [`llamafactory_resize`].
//!
//! Shape legend: `t` temporal patches, `h`×`w` patches of `patch_size` pixels.

use std::fmt::Display;

use fast_image_resize::images::{Image, ImageRef, TypedImage, TypedImageRef};
use fast_image_resize::pixels::F32x3;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::medium::Kind;
use super::preprocessor::{PixelBudget, PreprocessorConfig};
use super::video::{Frames, Sampling};
use crate::error::{Error, Result};

/// The smallest side that LLaMA-Factory's Qwen plugin passes on.
const LLAMAFACTORY_MIN_SIDE: usize = 28;
/// The largest ratio of the sides, and what LLaMA-Factory squeezes a larger one to.
const MAX_ASPECT_RATIO: usize = 200;
const LLAMAFACTORY_ASPECT_RATIO: usize = 180;

/// The vision tower's input for one clip.
#[derive(Clone, Debug, PartialEq)]
pub struct Patches {
    /// `[t·h·w, 3·temporal_patch_size·patch_size²]`: patches by temporal patch, then by merge
    /// block, then within the block; within a patch channel, frame, row, column.
    pub pixel_values: Vec<f32>,
    /// `[t, h, w]`.
    pub grid_thw: [usize; 3],
}

/// The size (height, width) that a picture is resized to: multiples of `factor` near its aspect
/// ratio, within the bounds.
///
/// Source: `smart_resize` of qwen-vl-utils for [`Sampling::Qwen`], of transformers for the others,
/// with Python's rounding (half to even).
///
/// # Errors
/// A side of 0, or one side more than 200 times the other; a side that would come to 0 pixels.
pub fn smart_resize(
    height: usize,
    width: usize,
    factor: usize,
    sampling: Sampling,
    budget: PixelBudget,
) -> Result<(usize, usize)> {
    let (long, short) = (height.max(width), height.min(width));
    if short == 0 || long as f64 / short as f64 > MAX_ASPECT_RATIO as f64 {
        return Err(Error::input(format!(
            "a picture of {width}×{height} pixels: one side may be at most {MAX_ASPECT_RATIO} \
             times the other"
        )));
    }
    // One tool keeps thin pictures from coming to nothing where it rounds, the other where it reduces.
    let (rounded_least, reduced_least) = match sampling {
        Sampling::Qwen => (factor, 0),
        Sampling::LlamaFactory | Sampling::Hf | Sampling::Vlm4d => (0, factor),
    };
    let (h, w, f) = (height as f64, width as f64, factor as f64);
    let nearest = |side: f64| ((side / f).round_ties_even() as usize * factor).max(rounded_least);
    let (new_h, new_w) = (nearest(h), nearest(w));
    let size = if new_h * new_w > budget.max_pixels {
        let beta = (h * w / budget.max_pixels as f64).sqrt();
        let below = |side: f64| ((side / beta / f).floor() as usize * factor).max(reduced_least);
        (below(h), below(w))
    } else if new_h * new_w < budget.min_pixels {
        let beta = (budget.min_pixels as f64 / (h * w)).sqrt();
        let above = |side: f64| (side * beta / f).ceil() as usize * factor;
        (above(h), above(w))
    } else {
        (new_h, new_w)
    };
    resizable((height, width), size)
}

/// `to` (height, width), where a picture of the size `from` can be resized to it.
fn resizable(from: (usize, usize), to: (usize, usize)) -> Result<(usize, usize)> {
    let fits = |side: usize| side > 0 && u32::try_from(side).is_ok();
    match fits(to.0) && fits(to.1) {
        true => Ok(to),
        false => Err(not_resized(from, to, "a side is out of range")
            .help("raise `max_pixels`, or leave the picture out")),
    }
}

fn not_resized((h, w): (usize, usize), (to_h, to_w): (usize, usize), why: impl Display) -> Error {
    Error::input(format!("a picture of {w}×{h} pixels cannot be resized to {to_w}×{to_h}: {why}"))
}

/// Resizes each frame: bicubic (a = -0.5) with antialias, in 8 bits, rows first.
///
/// Within one level of Pillow's (up to 12.2) result and of torchvision's `transforms.v2`.
///
/// # Errors
/// A size of 0, or one too large to hold.
pub fn resize(frames: &Frames, height: usize, width: usize) -> Result<Frames> {
    let (from, between, to) =
        ((frames.height, frames.width), (frames.height, width), (height, width));
    let mut resizer = Resizer::new();
    let mut rgb = Vec::with_capacity(frames.len * height * width * 3);
    for i in 0..frames.len {
        // Both passes in one call would go down the columns first.
        let wide = pass(&mut resizer, frames.frame(i), from, between)?;
        rgb.extend(pass(&mut resizer, &wide, between, to)?);
    }
    Ok(Frames { rgb, len: frames.len, height, width })
}

fn pass(
    resizer: &mut Resizer,
    rgb: &[u8],
    from: (usize, usize),
    to: (usize, usize),
) -> Result<Vec<u8>> {
    let [from_w, from_h, to_w, to_h] = sides(from, to)?;
    let source = ImageRef::new(from_w, from_h, rgb, PixelType::U8x3)
        .map_err(|e| not_resized(from, to, e))?;
    let mut target = Image::new(to_w, to_h, PixelType::U8x3);
    resizer.resize(&source, &mut target, &bicubic()).map_err(|e| not_resized(from, to, e))?;
    Ok(target.into_vec())
}

/// As [`resize`], but in f32, and rounded once, half to even.
///
/// Within one level of torchvision's `transforms.functional.resize`, which qwen-vl-utils takes for
/// videos: 8 bits between the passes cut off what is darker than black and brighter than white there,
/// many levels' worth at sharp edges.
///
/// # Errors
/// As there.
pub fn resize_f32(frames: &Frames, height: usize, width: usize) -> Result<Frames> {
    let (from, to) = ((frames.height, frames.width), (height, width));
    let [from_w, from_h, to_w, to_h] = sides(from, to)?;
    let mut resizer = Resizer::new();
    let mut target = TypedImage::new(to_w, to_h);
    let mut rgb = Vec::with_capacity(frames.len * height * width * 3);
    for i in 0..frames.len {
        let levels = frames.frame(i).as_chunks().0.iter();
        let pixels: Vec<F32x3> = levels.map(|rgb| F32x3::new(rgb.map(f32::from))).collect();
        let source =
            TypedImageRef::new(from_w, from_h, &pixels).map_err(|e| not_resized(from, to, e))?;
        let resized = resizer.resize_typed(&source, &mut target, &bicubic());
        resized.map_err(|e| not_resized(from, to, e))?;
        // The cast ends at 0 and 255.
        let level = |value: f32| value.round_ties_even() as u8;
        rgb.extend(target.pixels().iter().flat_map(|pixel| pixel.0.map(level)));
    }
    Ok(Frames { rgb, len: frames.len, height, width })
}

/// Width and height of `from`, which a decoder gave, and of `to`.
fn sides(from: (usize, usize), to: (usize, usize)) -> Result<[u32; 4]> {
    resizable(from, to)?;
    Ok([from.1, from.0, to.1, to.0].map(|side| side as u32))
}

fn bicubic() -> ResizeOptions {
    ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
}

/// What LLaMA-Factory does to a video's frames before the processor sees them: an odd number is made
/// even with the last one, before a control puts them into another order (of one, an image's, cutting
/// into patches makes two), and each frame is brought within the bounds, not to a multiple of anything.
///
/// Source: `_preprocess_image` and `_regularize_videos` of its `Qwen2VLPlugin`.
///
/// # Errors
/// As [`resize`].
pub fn llamafactory_resize(mut frames: Frames, budget: PixelBudget) -> Result<Frames> {
    if frames.len > 1 {
        frames.pad_to_even();
    }
    for step in LLAMAFACTORY_STEPS {
        let (h, w) = step(frames.height, frames.width, budget);
        if (h, w) != (frames.height, frames.width) {
            frames = resize(&frames, h, w)?;
        }
    }
    Ok(frames)
}

/// One size (height, width) from another.
type Step = fn(usize, usize, PixelBudget) -> (usize, usize);

/// LLaMA-Factory resizes for each of these that changes the size.
const LLAMAFACTORY_STEPS: [Step; 4] = [reduce, enlarge, widen, squeeze];

fn reduce(h: usize, w: usize, budget: PixelBudget) -> (usize, usize) {
    if h * w > budget.max_pixels { scale(h, w, budget.max_pixels) } else { (h, w) }
}

fn enlarge(h: usize, w: usize, budget: PixelBudget) -> (usize, usize) {
    if h * w < budget.min_pixels { scale(h, w, budget.min_pixels) } else { (h, w) }
}

fn scale(h: usize, w: usize, pixels: usize) -> (usize, usize) {
    let factor = (pixels as f64 / (h * w) as f64).sqrt();
    ((h as f64 * factor) as usize, (w as f64 * factor) as usize)
}

fn widen(h: usize, w: usize, _: PixelBudget) -> (usize, usize) {
    (h.max(LLAMAFACTORY_MIN_SIDE), w.max(LLAMAFACTORY_MIN_SIDE))
}

fn squeeze(h: usize, w: usize, _: PixelBudget) -> (usize, usize) {
    if w > h * MAX_ASPECT_RATIO {
        (h, h * LLAMAFACTORY_ASPECT_RATIO)
    } else if h > w * MAX_ASPECT_RATIO {
        (w * LLAMAFACTORY_ASPECT_RATIO, w)
    } else {
        (h, w)
    }
}

/// Cuts frames whose sides are multiples of [`PreprocessorConfig::factor`] into normalised
/// patches; where the last temporal patch lacks frames, the last frame is repeated.
///
/// # Errors
/// No frames, or sides that are not such multiples.
pub fn patchify(frames: &Frames, config: &PreprocessorConfig) -> Result<Patches> {
    let Frames { len, height, width, .. } = *frames;
    let factor = config.factor();
    if len == 0 || height == 0 || width == 0 || height % factor != 0 || width % factor != 0 {
        return Err(Error::input(format!(
            "{len} frames of {width}×{height} pixels: expected sides that are multiples of {factor}"
        )));
    }
    let (p, merge) = (config.patch_size, config.merge_size);
    let grid = config.grid_thw(len, height, width);
    let normalised = normalisation(config);
    let mut pixel_values =
        Vec::with_capacity(grid[0] * config.temporal_patch_size * height * width * 3);
    for t in 0..grid[0] {
        let first = t * config.temporal_patch_size;
        let pictures: Vec<&[u8]> = (first..first + config.temporal_patch_size)
            .map(|i| frames.frame(i.min(len - 1)))
            .collect();
        for (y, x) in block_order(grid[1], grid[2], merge) {
            for (channel, table) in normalised.iter().enumerate() {
                for picture in &pictures {
                    for row in y * p..(y + 1) * p {
                        let start = (row * width + x * p) * 3;
                        let pixels = picture[start..start + p * 3].iter();
                        let values = pixels.skip(channel).step_by(3);
                        pixel_values.extend(values.map(|&v| table[usize::from(v)]));
                    }
                }
            }
        }
    }
    Ok(Patches { pixel_values, grid_thw: grid })
}

/// `(level − 255·mean) / (255·std)` of each level, by channel.
fn normalisation(config: &PreprocessorConfig) -> [[f32; 256]; 3] {
    std::array::from_fn(|c| {
        let (mean, std) = (config.image_mean[c] * 255.0, config.image_std[c] * 255.0);
        std::array::from_fn(|level| (level as f32 - mean) / std)
    })
}

/// Row and column of each patch of an `h`×`w` grid, by merge block and then within the block.
fn block_order(h: usize, w: usize, merge: usize) -> impl Iterator<Item = (usize, usize)> {
    let block = move |y: usize, x: usize| {
        (y..y + merge).flat_map(move |row| (x..x + merge).map(move |column| (row, column)))
    };
    (0..h).step_by(merge).flat_map(move |y| (0..w).step_by(merge).flat_map(move |x| block(y, x)))
}

/// Sampled frames to the size in which they are cut into patches, as the tool that `sampling`
/// names does it.
///
/// `llamafactory` brings the frames within `budget` first and then follows the checkpoint's own
/// bounds; the others resize once, within `budget`, and `qwen` does so in f32 with videos. An image
/// is one frame.
///
/// # Errors
/// As [`smart_resize`] and [`resize`].
pub fn fit(
    frames: Frames,
    kind: Kind,
    sampling: Sampling,
    config: &PreprocessorConfig,
    budget: PixelBudget,
) -> Result<Frames> {
    let (height, width) = fitted_size(frames.height, frames.width, sampling, config, budget)?;
    match (sampling, kind) {
        (Sampling::Qwen, Kind::Video) => resize_f32(&frames, height, width),
        (Sampling::LlamaFactory, _) => resize(&llamafactory_resize(frames, budget)?, height, width),
        (Sampling::Qwen | Sampling::Hf | Sampling::Vlm4d, _) => resize(&frames, height, width),
    }
}

/// The size (height, width) to which [`fit`] brings frames of `height` × `width`.
///
/// # Errors
/// As [`smart_resize`], also for the sizes on the way there.
pub fn fitted_size(
    height: usize,
    width: usize,
    sampling: Sampling,
    config: &PreprocessorConfig,
    budget: PixelBudget,
) -> Result<(usize, usize)> {
    let (height, width, budget) = match sampling {
        Sampling::LlamaFactory => {
            let within = |(h, w), step: Step| resizable((h, w), step(h, w, budget));
            let (h, w) = LLAMAFACTORY_STEPS.into_iter().try_fold((height, width), within)?;
            (h, w, config.pixels)
        }
        Sampling::Qwen | Sampling::Hf | Sampling::Vlm4d => (height, width, budget),
    };
    smart_resize(height, width, config.factor(), sampling, budget)
}
