//! A video's or image's file → its sampled frames, resized, and their patches: the recipe's
//! `[video]` and `[image]` with the checkpoint's processor. An image is one frame.

use std::path::Path;
use std::time::Instant;

use super::cache::Key;
use super::image;
use super::medium::Kind;
use super::preprocessor::{PixelBudget, PreprocessorConfig};
use super::processor::{Patches, fit, fitted_size, patchify};
use super::variant::Shown;
use super::video::{self, FRAME_FACTOR, Frames, Sampling, VideoOptions};
use crate::error::{Error, Result};
use crate::model::config::VisionConfig;
use crate::model::rope::MediaGrid;
use crate::recipe;

/// How every video and image of a run is read.
#[derive(Clone, Debug)]
pub struct Reader {
    options: VideoOptions,
    videos: Processor,
    /// Why there is none where the checkpoint has none that can be used: it matters only to data
    /// with images.
    images: Result<Processor, Error>,
    upright_images: bool,
}

/// How pictures of one kind become patches.
#[derive(Clone, Debug)]
struct Processor {
    sampling: Sampling,
    budget: PixelBudget,
    config: PreprocessorConfig,
}

/// What a file's header says.
struct Header {
    /// Pictures that are taken.
    len: usize,
    height: usize,
    width: usize,
    turned: bool,
    second_per_grid: Option<f64>,
}

/// Raised when a rule of [`Sampling`] changes, or how frames are found or converted, or what is kept
/// beside them and how: what was kept under the one before is not found any more.
const RULES: u32 = 4;

impl Reader {
    /// The recipe's `[video]` and `[image]` with the processor of `checkpoint`, whose tower is
    /// `vision`.
    ///
    /// # Errors
    /// Where the processor's settings for videos are missing or malformed, or do not agree with
    /// recipe or tower.
    pub fn new(
        video: &recipe::Video,
        image: &recipe::Image,
        checkpoint: &Path,
        vision: &VisionConfig,
    ) -> Result<Self> {
        let sampling = video.sampling;
        let processor = |kind, min_pixels, max_pixels| {
            let (path, config) = PreprocessorConfig::located(checkpoint, kind)?;
            check_patches(&path, &config, vision)?;
            if sampling == Sampling::Hf && config.temporal_patch_size != FRAME_FACTOR {
                let n = config.temporal_patch_size;
                return Err(Error::input(format!(
                    "{}: `temporal_patch_size` is {n}, and sampling `hf` takes multiples of \
                     {FRAME_FACTOR} frames",
                    path.display()
                ))
                .help("take another video.sampling"));
            }
            let budget = PixelBudget::new(sampling, kind, min_pixels, max_pixels, &config)?;
            Ok(Processor { sampling, budget, config })
        };
        let (fps, max_frames) = (video.fps, video.max_frames);
        Ok(Self {
            options: VideoOptions { sampling, fps, max_frames, upright: video.upright },
            videos: processor(Kind::Video, video.min_pixels, video.max_pixels)?,
            images: processor(Kind::Image, image.min_pixels, image.max_pixels),
            upright_images: image.upright,
        })
    }

    /// What reading the file would give, from its header: its grid, and the bytes of its sampled
    /// frames as decoded and as resized.
    ///
    /// # Errors
    /// Where it is not what `kind` says, or cannot be sampled.
    pub fn outline(&self, path: &Path, kind: Kind) -> Result<(MediaGrid, [usize; 2])> {
        let Processor { sampling, budget, config } = self.processor(kind)?;
        let header = match kind {
            Kind::Image => self.image_header(path)?,
            Kind::Video => self.video_header(path, config)?,
        };
        let Header { len, height, width, turned, second_per_grid } = header;
        let (to_fit_h, to_fit_w) = if turned { (width, height) } else { (height, width) };
        let fitted = fitted_size(to_fit_h, to_fit_w, *sampling, config, *budget);
        let (fitted_h, fitted_w) = fitted.map_err(|e| wrong(path, e))?;
        let grid_thw = config.grid_thw(len, fitted_h, fitted_w);
        let bytes = |height: usize, width: usize| len * height * width * 3;
        let bytes = [bytes(height, width), bytes(fitted_h, fitted_w)];
        Ok((MediaGrid { grid_thw, second_per_grid }, bytes))
    }

    fn image_header(&self, path: &Path) -> Result<Header> {
        let image::ImageInfo { height, width, rotation } = image::probe(path)?;
        let turned = self.upright_images && rotation % 180 != 0;
        Ok(Header { len: 1, height, width, turned, second_per_grid: None })
    }

    fn video_header(&self, path: &Path, config: &PreprocessorConfig) -> Result<Header> {
        let video = video::probe(path)?;
        let VideoOptions { sampling, fps, max_frames, upright } = self.options;
        let len = sampling.indices(&video, fps, max_frames).map_err(|e| wrong(path, e))?.len();
        let seconds = config.temporal_patch_size as f64 / sampling.sample_fps(&video, len);
        Ok(Header {
            len,
            height: video.height,
            width: video.width,
            turned: upright && video.rotation % 180 != 0,
            second_per_grid: Some(seconds),
        })
    }

    /// Decodes and resizes the sampled frames of one video, or an image.
    pub(crate) fn read(&self, path: &Path, kind: Kind) -> Result<Sampled> {
        let start = Instant::now();
        let Processor { sampling, budget, config } = self.processor(kind)?;
        let (frames, second_per_grid, rotation) = match kind {
            Kind::Image => {
                let (frames, rotation) = image::read(path, *sampling, self.upright_images)?;
                (frames, None, rotation)
            }
            Kind::Video => {
                let clip = video::read(path, &self.options)?;
                let seconds = clip.second_per_grid_t(config.temporal_patch_size);
                (clip.frames, Some(seconds), clip.video.rotation)
            }
        };
        let frames = fit(frames, *sampling, config, *budget).map_err(|e| wrong(path, e))?;
        let cost_s = start.elapsed().as_secs_f64();
        Ok(Sampled { frames, second_per_grid, rotation, cost_s })
    }

    /// The grid of what was read.
    pub(crate) fn grid(&self, sampled: &Sampled) -> MediaGrid {
        let Frames { len, height, width, .. } = sampled.frames;
        // Both kinds are cut into the tower's patches.
        let grid_thw = self.videos.config.grid_thw(len, height, width);
        MediaGrid { grid_thw, second_per_grid: sampled.second_per_grid }
    }

    /// Whether pictures of this kind are turned as their file says.
    pub(crate) fn is_upright(&self, kind: Kind) -> bool {
        match kind {
            Kind::Image => self.upright_images,
            Kind::Video => self.options.upright,
        }
    }

    /// The patches of a video or image as it is shown.
    pub(crate) fn patches(&self, mut frames: Frames, shown: &Shown) -> Result<Patches> {
        shown.variant.apply(&mut frames);
        let config = &self.processor(shown.medium.kind)?.config;
        patchify(&frames, config).map_err(|e| wrong(&shown.medium.path, e))
    }

    /// Names the frames of the file with this content.
    pub(crate) fn key(&self, content: &str, kind: Kind) -> Key {
        let made_by = (env!("CARGO_PKG_VERSION"), video::decoder_version(), RULES);
        match kind {
            Kind::Image => {
                Key::new("frames", &(content, made_by, &self.images, self.upright_images))
            }
            Kind::Video => Key::new("frames", &(content, made_by, self.options, &self.videos)),
        }
    }

    /// Whether the checkpoint has a processor for this kind.
    ///
    /// # Errors
    /// Why it has none.
    pub(crate) fn takes(&self, kind: Kind) -> Result<()> {
        self.processor(kind).map(drop)
    }

    fn processor(&self, kind: Kind) -> Result<&Processor> {
        match kind {
            Kind::Image => self.images.as_ref().map_err(Error::clone),
            Kind::Video => Ok(&self.videos),
        }
    }
}

fn wrong(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::input(format!("{}: {error}", path.display()))
}

/// Checks that the processor whose settings stand in `path` cuts patches that the vision tower
/// takes.
fn check_patches(path: &Path, cut: &PreprocessorConfig, vision: &VisionConfig) -> Result<()> {
    let sizes = [
        ("patch_size", cut.patch_size, vision.patch_size),
        ("temporal_patch_size", cut.temporal_patch_size, vision.temporal_patch_size),
        ("merge_size", cut.merge_size, vision.spatial_merge_size),
    ];
    match sizes.into_iter().find(|(_, cut, taken)| cut != taken) {
        None => Ok(()),
        Some((name, cut, taken)) => Err(Error::input(format!(
            "{}: `{name}` is {cut}, and the vision tower's in config.json {taken}",
            path.display()
        ))
        .help("the two files come from different models")),
    }
}

/// The frames of one video, or an image, ready to be cut into patches.
#[derive(Clone)]
pub(crate) struct Sampled {
    pub frames: Frames,
    /// None of an image.
    pub second_per_grid: Option<f64>,
    /// What the file says about turning the pictures, in degrees.
    pub rotation: usize,
    /// Seconds that decoding and resizing took.
    pub cost_s: f64,
}
