//! A video or image → its sampled frames, resized, and their patches: the recipe's `[video]` and
//! `[image]` with the checkpoint's processor. An image is one frame; of a list of frames all are
//! taken.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::cache::Key;
use super::image::{self, ImageInfo};
use super::medium::{Kind, Medium};
use super::preprocessor::{PixelBudget, PreprocessorConfig, QWEN_FRAME_FACTOR};
use super::processor::{Patches, fit, fitted_size, patchify, resize, smart_resize};
use super::variant::Shown;
use super::video::{self, FRAME_FACTOR, Frames, Sampling, VideoInfo, VideoOptions};
use crate::error::{Error, Result};
use crate::model::config::VisionConfig;
use crate::model::rope::MediaGrid;
use crate::recipe;

/// How every video and image of a run is read.
#[derive(Clone, Debug)]
pub struct Reader {
    options: VideoOptions,
    videos: Processor,
    /// What a list's frames are brought within first, with some rules.
    of_list: Option<PixelBudget>,
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

/// What the headers of a video or image say.
struct Header {
    /// Pictures that are taken.
    len: usize,
    /// Height and width as shown.
    size: (usize, usize),
    second_per_grid: Option<f64>,
}

/// Raised when a rule of [`Sampling`] changes, or how frames are found, converted or resized, or what
/// is kept beside them and how: what was kept under the one before is not found any more, and a run
/// that was begun under it does not go on.
pub const RULES: u32 = 5;

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
            of_list: PixelBudget::of_list(sampling, video.min_pixels, video.max_pixels),
            images: processor(Kind::Image, image.min_pixels, image.max_pixels),
            upright_images: image.upright,
        })
    }

    /// What reading `medium` from the folder `dir` would give, from the headers: its grid, and the
    /// bytes of its sampled frames as decoded and as resized.
    ///
    /// # Errors
    /// Where a file is not what `medium` says, or it cannot be sampled.
    pub fn outline(&self, dir: &Path, medium: &Medium) -> Result<(MediaGrid, [usize; 2])> {
        let Processor { sampling, budget, config } = self.processor(medium.kind())?;
        let Header { len, size: (height, width), second_per_grid } = match medium {
            Medium::Image(file) => self.image_header(&dir.join(file))?,
            Medium::Video(file) => self.video_header(&dir.join(file))?,
            Medium::Frames(files) => self.list_header(&paths(dir, files))?,
        };
        let of = |e| wrong(dir, medium, e);
        let (to_fit_h, to_fit_w) = match medium {
            Medium::Frames(_) => self.list_size(height, width).map_err(of)?,
            _ => (height, width),
        };
        let fitted = fitted_size(to_fit_h, to_fit_w, *sampling, config, *budget);
        let (fitted_h, fitted_w) = fitted.map_err(of)?;
        let grid_thw = config.grid_thw(len, fitted_h, fitted_w);
        let bytes = |height: usize, width: usize| len * height * width * 3;
        let bytes = [bytes(height, width), bytes(fitted_h, fitted_w)];
        Ok((MediaGrid { grid_thw, second_per_grid }, bytes))
    }

    fn image_header(&self, path: &Path) -> Result<Header> {
        let size = image::probe(path)?.size(self.upright_images);
        Ok(Header { len: 1, size, second_per_grid: None })
    }

    fn video_header(&self, path: &Path) -> Result<Header> {
        let video = video::probe(path)?;
        let VideoOptions { sampling, fps, max_frames, upright } = self.options;
        let indices = sampling.indices(&video, fps, max_frames);
        let len = indices.map_err(|e| Error::input(format!("{}: {e}", path.display())))?.len();
        let VideoInfo { height, width, rotation, .. } = video;
        let size = ImageInfo { height, width, rotation }.size(upright);
        let second_per_grid = Some(self.second_per_grid(sampling.sample_fps(&video, len)));
        Ok(Header { len, size, second_per_grid })
    }

    fn list_header(&self, paths: &[PathBuf]) -> Result<Header> {
        let VideoOptions { sampling, fps, upright, .. } = self.options;
        let size = image::probe_frames(paths, upright)?;
        let second_per_grid = Some(self.second_per_grid(sampling.list_fps(fps)));
        Ok(Header { len: paths.len(), size, second_per_grid })
    }

    /// Seconds that one temporal patch spans.
    fn second_per_grid(&self, sample_fps: f64) -> f64 {
        self.videos.config.temporal_patch_size as f64 / sample_fps
    }

    /// The size (height, width) to which a list's frames are brought before they are fitted.
    fn list_size(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        match self.of_list {
            Some(budget) => {
                smart_resize(height, width, QWEN_FRAME_FACTOR, self.options.sampling, budget)
            }
            None => Ok((height, width)),
        }
    }

    /// Decodes and resizes the sampled frames of `medium` from the folder `dir`.
    ///
    /// # Errors
    /// As [`outline`](Self::outline); a file that is damaged.
    pub fn read(&self, dir: &Path, medium: &Medium) -> Result<Sampled> {
        let start = Instant::now();
        let Processor { sampling, budget, config } = self.processor(medium.kind())?;
        let of = |e| wrong(dir, medium, e);
        let (frames, second_per_grid, rotation) = match medium {
            Medium::Image(file) => {
                let path = dir.join(file);
                let (frames, rotation) = image::read(&path, *sampling, self.upright_images)?;
                (frames, None, rotation)
            }
            Medium::Video(file) => {
                let clip = video::read(&dir.join(file), &self.options)?;
                let seconds = clip.second_per_grid_t(config.temporal_patch_size);
                (clip.frames, Some(seconds), clip.video.rotation)
            }
            Medium::Frames(files) => {
                let VideoOptions { sampling, fps, upright, .. } = self.options;
                let (mut frames, rotation) =
                    image::read_frames(&paths(dir, files), sampling, upright)?;
                let (height, width) = self.list_size(frames.height, frames.width).map_err(of)?;
                if (height, width) != (frames.height, frames.width) {
                    frames = resize(&frames, height, width).map_err(of)?;
                }
                (frames, Some(self.second_per_grid(sampling.list_fps(fps))), rotation)
            }
        };
        let frames = fit(frames, medium.kind(), *sampling, config, *budget).map_err(of)?;
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
    ///
    /// # Errors
    /// Where the checkpoint has no processor for it.
    pub fn patches(&self, mut frames: Frames, shown: &Shown) -> Result<Patches> {
        shown.variant.apply(&mut frames);
        let config = &self.processor(shown.medium.kind())?.config;
        patchify(&frames, config).map_err(|e| e.at(&shown.medium.to_string()))
    }

    /// Names the frames of what has this content.
    pub(crate) fn key(&self, content: &str, kind: Kind) -> Key {
        let made_by = (env!("CARGO_PKG_VERSION"), video::decoder_version(), RULES);
        match kind {
            Kind::Image => {
                Key::new("frames", &(content, made_by, &self.images, self.upright_images))
            }
            Kind::Video => {
                let origin = (content, made_by, self.options, &self.videos, self.of_list);
                Key::new("frames", &origin)
            }
        }
    }

    /// Whether the checkpoint has a processor for each of `media`, and the recipe room for each list
    /// of frames.
    ///
    /// # Errors
    /// Why not; names the longest list.
    pub(crate) fn takes(&self, media: &[&Medium]) -> Result<()> {
        media.iter().try_for_each(|medium| self.processor(medium.kind()).map(drop))?;
        let most = self.options.max_frames;
        match media.iter().map(|medium| (medium.files().len(), medium)).max() {
            Some((n, medium)) if n > most => Err(Error::input(format!(
                "{medium}: a list of {n} frames, and video.max_frames is {most}"
            ))
            .help("raise it, or list fewer: no frame of a list is left out")),
            _ => Ok(()),
        }
    }

    fn processor(&self, kind: Kind) -> Result<&Processor> {
        match kind {
            Kind::Image => self.images.as_ref().map_err(Error::clone),
            Kind::Video => Ok(&self.videos),
        }
    }
}

fn paths(dir: &Path, files: &[PathBuf]) -> Vec<PathBuf> {
    files.iter().map(|file| dir.join(file)).collect()
}

/// The error of `medium`, which lies in the folder `dir`.
fn wrong(dir: &Path, medium: &Medium, error: Error) -> Error {
    error.at(&dir.join(medium.to_string()).display().to_string())
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
pub struct Sampled {
    /// As they are cut.
    pub frames: Frames,
    /// Seconds that one temporal patch spans; none of an image.
    pub second_per_grid: Option<f64>,
    /// What the file says about turning the pictures, in degrees.
    pub rotation: usize,
    /// Seconds that decoding and resizing took.
    pub cost_s: f64,
}
