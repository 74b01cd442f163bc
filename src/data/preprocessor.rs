//! What a checkpoint says about its pictures' sizes, levels and patches, and the bounds that a recipe
//! sets.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::medium::Kind;
use super::video::Sampling;
use crate::error::{Error, Result};
use crate::files::read_json;

/// qwen-vl-utils' `VIDEO_MIN_PIXELS` and `MIN_PIXELS`: 128 tokens of 28×28 pixels, and 4.
const QWEN_MIN_PIXELS: [usize; 2] = [128 * 28 * 28, 4 * 28 * 28];
/// Its `fetch_video` (0.0.14) resizes each frame of a list as an image first, with blocks of twice the
/// side: it hands on the side of a block for that of a patch.
pub const QWEN_FRAME_FACTOR: usize = 2 * 28;
const QWEN_FRAME_MIN_PIXELS: usize = 4 * QWEN_FRAME_FACTOR * QWEN_FRAME_FACTOR;
/// LLaMA-Factory's `video_min_pixels` and `image_min_pixels`.
const LLAMAFACTORY_MIN_PIXELS: [usize; 2] = [16 * 16, 32 * 32];
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

    /// The bounds within which `sampling` brings the frames of a list before those of a video, from
    /// a recipe's keys; none where it does not.
    pub fn of_list(
        sampling: Sampling,
        min_pixels: Option<usize>,
        max_pixels: usize,
    ) -> Option<Self> {
        let min_pixels = min_pixels.unwrap_or(QWEN_FRAME_MIN_PIXELS.min(max_pixels));
        (sampling == Sampling::Qwen).then_some(Self { min_pixels, max_pixels })
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
