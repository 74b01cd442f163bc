//! RGB frames enter, normalised patches leave.
//!
//! The numbers are those of Hugging Face's Qwen2-VL processors (torchvision
//! path): resize to a multiple of 28 pixels with an antialiased bicubic filter
//! in 8 bits, normalise, cut into patches. LLaMA-Factory resizes once more
//! before that; see [`llamafactory_resize`].
//!
//! Shape legend: `t` temporal patches, `h`×`w` patches of `patch_size` pixels.

use std::path::{Path, PathBuf};

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use serde::Deserialize;

use crate::data::medium::Kind;
use crate::data::video::{Frames, Sampling};
use crate::error::{Error, Result};
use crate::files::read_json;

/// qwen-vl-utils' `VIDEO_MIN_PIXELS` and `MIN_PIXELS`: 128 tokens of 28×28 pixels, and 4.
const QWEN_MIN_PIXELS: [usize; 2] = [128 * 28 * 28, 4 * 28 * 28];
/// LLaMA-Factory's `video_min_pixels` and `image_min_pixels`.
const LLAMAFACTORY_MIN_PIXELS: [usize; 2] = [16 * 16, 32 * 32];
/// The smallest side that LLaMA-Factory's Qwen plugin passes on.
const LLAMAFACTORY_MIN_SIDE: usize = 28;
/// The largest ratio of the sides, and what LLaMA-Factory squeezes a larger one to.
const MAX_ASPECT_RATIO: usize = 200;
const LLAMAFACTORY_ASPECT_RATIO: usize = 180;

/// transformers' `OPENAI_CLIP_MEAN` and `OPENAI_CLIP_STD`, as f32 has them.
const CLIP_MEAN: [f32; 3] = [0.481_454_67, 0.457_827_5, 0.408_210_72];
const CLIP_STD: [f32; 3] = [0.268_629_55, 0.261_302_6, 0.275_777_1];

/// What a checkpoint says about resizing, normalising and cutting a video's frames, or an image.
#[derive(Clone, Debug, PartialEq)]
pub struct PreprocessorConfig {
    /// The checkpoint's own bounds on a frame's pixels.
    pub pixels: PixelBudget,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames that one temporal patch spans.
    pub temporal_patch_size: usize,
    /// Side in patches of the block that becomes one language token.
    pub merge_size: usize,
    /// Mean of red, green and blue, of 1.
    pub image_mean: [f32; 3],
    /// Standard deviation of red, green and blue, of 1.
    pub image_std: [f32; 3],
}

/// Bounds on the pixels (`height · width`) of one resized frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelBudget {
    /// A smaller frame is enlarged.
    pub min_pixels: usize,
    /// A larger frame is reduced.
    pub max_pixels: usize,
}

/// The vision tower's input for one clip.
#[derive(Clone, Debug, PartialEq)]
pub struct Patches {
    /// `[t·h·w, 3·temporal_patch_size·patch_size²]`: patches by temporal patch, then by merge
    /// block, then within the block; within a patch channel, frame, row, column.
    pub pixel_values: Vec<f32>,
    /// `[t, h, w]`.
    pub grid_thw: [usize; 3],
}

impl PixelBudget {
    /// The bounds for frames or images prepared as `sampling`, from a recipe's keys.
    ///
    /// Left out, `min_pixels` is the tool's own: for frames 100,352 with `qwen`, 256 with
    /// `llamafactory`, for images 3,136 and 1,024; the checkpoint's else; never above `max_pixels`.
    /// What is enlarged to `min_pixels` is rounded up to whole merge blocks and may exceed
    /// `max_pixels` by those.
    ///
    /// # Errors
    /// `max_pixels` of 0, or `min_pixels` above it.
    pub fn new(
        sampling: Sampling,
        kind: Kind,
        min_pixels: Option<usize>,
        max_pixels: usize,
        config: &PreprocessorConfig,
    ) -> Result<Self> {
        if max_pixels == 0 {
            return Err(Error::input("`max_pixels` is 0, expected a positive number"));
        }
        let of_kind = |[video, image]: [usize; 2]| if kind == Kind::Video { video } else { image };
        let own = match sampling {
            Sampling::Qwen => of_kind(QWEN_MIN_PIXELS),
            Sampling::LlamaFactory => of_kind(LLAMAFACTORY_MIN_PIXELS),
            Sampling::Hf | Sampling::Vlm4d => config.pixels.min_pixels,
        };
        let min_pixels = min_pixels.unwrap_or(own.min(max_pixels));
        if min_pixels > max_pixels {
            return Err(Error::input(format!(
                "`min_pixels` ({min_pixels}) is above `max_pixels` ({max_pixels})"
            )));
        }
        Ok(Self { min_pixels, max_pixels })
    }
}

impl PreprocessorConfig {
    /// Reads those for `kind` from a checkpoint's folder, where transformers looks for them and in
    /// its order: its version 5 saves all of a processor in `processor_config.json`, version 4 a
    /// file for videos and before that one for images and videos alike.
    ///
    /// # Errors
    /// Where there is none of these files, one cannot be read, has no bounds on pixels or a value
    /// out of range, or a step that this processor always takes is switched off.
    pub fn from_dir(checkpoint: &Path, kind: Kind) -> Result<Self> {
        Ok(Self::located(checkpoint, kind)?.1)
    }

    /// As [`from_dir`](Self::from_dir), with the file that they stand in.
    ///
    /// # Errors
    /// As there.
    pub fn located(checkpoint: &Path, kind: Kind) -> Result<(PathBuf, Self)> {
        let [of_all, of_videos, of_images] =
            ["processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"]
                .map(|name| checkpoint.join(name));
        let nested = match (of_all.is_file(), kind) {
            (true, Kind::Video) => read_json::<Processor>(&of_all)?.video_processor,
            (true, Kind::Image) => read_json::<Processor>(&of_all)?.image_processor,
            (false, _) => None,
        };
        let (path, raw) = if let Some(raw) = nested {
            (of_all, raw)
        } else {
            let of_videos = (kind == Kind::Video).then_some(of_videos);
            let mut files = of_videos.into_iter().chain([of_images]);
            let path = files.find(|path| path.is_file()).ok_or_else(|| {
                let (dir, kind) = (checkpoint.display(), kind.name());
                Error::input(format!("{dir}: no processor for {kind}s")).help(
                    "a checkpoint has it in processor_config.json, video_preprocessor_config.json \
                     or preprocessor_config.json",
                )
            })?;
            let raw = read_json(&path)?;
            (path, raw)
        };
        match raw.check() {
            Ok(config) => Ok((path, config)),
            Err(what) => Err(Error::input(format!("{}: {what}", path.display()))),
        }
    }

    /// Side in pixels of what becomes one language token.
    pub fn factor(&self) -> usize {
        self.patch_size * self.merge_size
    }

    /// Patches of `len` frames of `height` × `width` pixels, in time, height and width.
    pub fn grid_thw(&self, len: usize, height: usize, width: usize) -> [usize; 3] {
        let side = self.patch_size;
        [len.div_ceil(self.temporal_patch_size), height / side, width / side]
    }
}

/// `processor_config.json`, of which early ones hold nothing about images and videos.
#[derive(Deserialize)]
struct Processor {
    image_processor: Option<RawConfig>,
    video_processor: Option<RawConfig>,
}

/// The keys in all their spellings.
#[derive(Deserialize)]
#[serde(default)]
struct RawConfig {
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
    size: Option<RawSize>,
    patch_size: usize,
    temporal_patch_size: usize,
    merge_size: usize,
    image_mean: [f32; 3],
    image_std: [f32; 3],
    do_resize: Option<bool>,
    do_rescale: Option<bool>,
    do_normalize: Option<bool>,
    resample: Option<u8>,
    rescale_factor: Option<f64>,
}

/// The defaults of `Qwen2VLImageProcessor` and `Qwen2VLVideoProcessor`; those for `size` differ.
impl Default for RawConfig {
    fn default() -> Self {
        Self {
            min_pixels: None,
            max_pixels: None,
            size: None,
            patch_size: 14,
            temporal_patch_size: 2,
            merge_size: 2,
            image_mean: CLIP_MEAN,
            image_std: CLIP_STD,
            do_resize: None,
            do_rescale: None,
            do_normalize: None,
            resample: None,
            rescale_factor: None,
        }
    }
}

#[derive(Default, Deserialize)]
struct RawSize {
    #[serde(alias = "min_pixels")]
    shortest_edge: Option<usize>,
    #[serde(alias = "max_pixels")]
    longest_edge: Option<usize>,
}

impl RawConfig {
    fn check(self) -> Result<PreprocessorConfig, String> {
        self.check_steps()?;
        // Like the library, the plain keys win over those in `size`.
        let size = self.size.unwrap_or_default();
        let min_pixels = self.min_pixels.or(size.shortest_edge);
        let max_pixels = self.max_pixels.or(size.longest_edge);
        let pixels = PixelBudget {
            min_pixels: min_pixels.ok_or("neither `min_pixels` nor `size.shortest_edge`")?,
            max_pixels: max_pixels.ok_or("neither `max_pixels` nor `size.longest_edge`")?,
        };
        let sizes = [
            ("max_pixels", pixels.max_pixels),
            ("patch_size", self.patch_size),
            ("temporal_patch_size", self.temporal_patch_size),
            ("merge_size", self.merge_size),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(format!("`{name}` is 0, expected a positive number"));
        }
        if pixels.min_pixels > pixels.max_pixels {
            return Err("`min_pixels` is above `max_pixels`".into());
        }
        if self.image_std.iter().any(|&std| std <= 0.0) {
            return Err("`image_std` has a value that is not positive".into());
        }
        Ok(PreprocessorConfig {
            pixels,
            patch_size: self.patch_size,
            temporal_patch_size: self.temporal_patch_size,
            merge_size: self.merge_size,
            image_mean: self.image_mean,
            image_std: self.image_std,
        })
    }

    fn check_steps(&self) -> Result<(), String> {
        const BICUBIC: u8 = 3;
        let steps = [
            ("do_resize", self.do_resize),
            ("do_rescale", self.do_rescale),
            ("do_normalize", self.do_normalize),
        ];
        if let Some((name, _)) = steps.iter().find(|(_, on)| *on == Some(false)) {
            return Err(format!("`{name}` is false, only true is supported"));
        }
        if let Some(resample) = self.resample.filter(|&r| r != BICUBIC) {
            return Err(format!("`resample` is {resample}, only 3 (bicubic) is supported"));
        }
        match self.rescale_factor {
            Some(f) if (f * 255.0 - 1.0).abs() > 1e-6 => {
                Err(format!("`rescale_factor` is {f}, only 1/255 is supported"))
            }
            _ => Ok(()),
        }
    }
}

/// The size (height, width) that a frame is resized to: multiples of `factor` near the frame's
/// aspect ratio, within the bounds.
///
/// Source: Qwen2-VL's `smart_resize`, with Python's rounding (half to even).
///
/// # Errors
/// A side of 0, or one side more than 200 times the other.
pub fn smart_resize(
    height: usize,
    width: usize,
    factor: usize,
    budget: PixelBudget,
) -> Result<(usize, usize)> {
    let (long, short) = (height.max(width), height.min(width));
    if short == 0 || long as f64 / short as f64 > MAX_ASPECT_RATIO as f64 {
        return Err(Error::input(format!(
            "a frame of {width}×{height} pixels: one side may be at most {MAX_ASPECT_RATIO} times \
             the other"
        )));
    }
    let (h, w, f) = (height as f64, width as f64, factor as f64);
    let nearest = |side: f64| (side / f).round_ties_even() as usize * factor;
    let (new_h, new_w) = (nearest(h), nearest(w));
    Ok(if new_h * new_w > budget.max_pixels {
        let beta = (h * w / budget.max_pixels as f64).sqrt();
        let below = |side: f64| ((side / beta / f).floor() as usize * factor).max(factor);
        (below(h), below(w))
    } else if new_h * new_w < budget.min_pixels {
        let beta = (budget.min_pixels as f64 / (h * w)).sqrt();
        let above = |side: f64| (side * beta / f).ceil() as usize * factor;
        (above(h), above(w))
    } else {
        (new_h, new_w)
    })
}

/// Resizes each frame: bicubic (a = -0.5) with antialias, in 8 bits, rows first.
///
/// Within one level of torchvision's and Pillow's (up to 12.2) result.
///
/// # Errors
/// A size of 0, or one too large to hold.
pub fn resize(frames: &Frames, height: usize, width: usize) -> Result<Frames> {
    let mut resizer = Resizer::new();
    let mut rgb = Vec::with_capacity(frames.len * height * width * 3);
    for i in 0..frames.len {
        // Both passes in one call would go down the columns first.
        let wide =
            pass(&mut resizer, frames.frame(i), frames.height, frames.width, frames.height, width)?;
        rgb.extend(pass(&mut resizer, &wide, frames.height, width, height, width)?);
    }
    Ok(Frames { rgb, len: frames.len, height, width })
}

fn pass(
    r: &mut Resizer,
    rgb: &[u8],
    h: usize,
    w: usize,
    to_h: usize,
    to_w: usize,
) -> Result<Vec<u8>> {
    let fail = |what: String| {
        Error::input(format!(
            "a frame of {w}×{h} pixels cannot be resized to {to_w}×{to_h}: {what}"
        ))
    };
    let side = |n: usize| match u32::try_from(n) {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(fail("a side is out of range".into())),
    };
    let source =
        ImageRef::new(side(w)?, side(h)?, rgb, PixelType::U8x3).map_err(|e| fail(e.to_string()))?;
    let mut target = Image::new(side(to_w)?, side(to_h)?, PixelType::U8x3);
    let bicubic = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    r.resize(&source, &mut target, &bicubic).map_err(|e| fail(e.to_string()))?;
    Ok(target.into_vec())
}

/// What LLaMA-Factory does to a video's frames before the processor sees them: an odd number is
/// made even with the last one, and each frame is brought within the bounds, not to a multiple of
/// anything.
///
/// Source: `_preprocess_image` and `_regularize_videos` of its `Qwen2VLPlugin`.
///
/// # Errors
/// As [`resize`].
pub fn llamafactory_resize(mut frames: Frames, budget: PixelBudget) -> Result<Frames> {
    frames.pad_to_even();
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
/// bounds; the others resize once, within `budget`. An image is one frame.
///
/// # Errors
/// As [`smart_resize`] and [`resize`].
pub fn fit(
    frames: Frames,
    sampling: Sampling,
    config: &PreprocessorConfig,
    budget: PixelBudget,
) -> Result<Frames> {
    let (height, width) = fitted_size(frames.height, frames.width, sampling, config, budget)?;
    let frames = match sampling {
        Sampling::LlamaFactory => llamafactory_resize(frames, budget)?,
        Sampling::Qwen | Sampling::Hf | Sampling::Vlm4d => frames,
    };
    resize(&frames, height, width)
}

/// The size (height, width) to which [`fit`] brings frames of `height` × `width`.
///
/// # Errors
/// As [`smart_resize`].
pub fn fitted_size(
    height: usize,
    width: usize,
    sampling: Sampling,
    config: &PreprocessorConfig,
    budget: PixelBudget,
) -> Result<(usize, usize)> {
    let (height, width, budget) = match sampling {
        Sampling::LlamaFactory => {
            let within = |(h, w), step: Step| step(h, w, budget);
            let (h, w) = LLAMAFACTORY_STEPS.into_iter().fold((height, width), within);
            (h, w, config.pixels)
        }
        Sampling::Qwen | Sampling::Hf | Sampling::Vlm4d => (height, width, budget),
    };
    smart_resize(height, width, config.factor(), budget)
}
