//! A video's file → its sampled frames, resized, and their patches: the recipe's `[video]` with the
//! checkpoint's processor.

use std::path::Path;
use std::time::Instant;

use super::cache::Key;
use super::processor::{Patches, PixelBudget, PreprocessorConfig, fit, fitted_size, patchify};
use super::variant::Shown;
use super::video::{self, FRAME_FACTOR, Frames, Sampling, VideoOptions};
use crate::error::{Error, Result};
use crate::model::config::VisionConfig;
use crate::model::rope::MediaGrid;
use crate::recipe;

/// How every video of a run is read.
#[derive(Clone, Debug)]
pub struct Reader {
    options: VideoOptions,
    budget: PixelBudget,
    config: PreprocessorConfig,
}

/// Raised when a rule of [`Sampling`] changes, or how frames are found or converted, or what is kept
/// beside them and how: what was kept under the one before is not found any more.
const RULES: u32 = 2;

impl Reader {
    /// The recipe's `[video]` with the processor of `checkpoint`, whose tower is `vision`.
    ///
    /// # Errors
    /// Where the processor's settings are missing or malformed, or do not agree with recipe or
    /// tower.
    pub fn new(recipe: &recipe::Video, checkpoint: &Path, vision: &VisionConfig) -> Result<Self> {
        let (path, config) = PreprocessorConfig::located(checkpoint)?;
        check_patches(&path, &config, vision)?;
        if recipe.sampling == Sampling::Hf && config.temporal_patch_size != FRAME_FACTOR {
            let n = config.temporal_patch_size;
            return Err(Error::input(format!(
                "{}: `temporal_patch_size` is {n}, and sampling `hf` takes multiples of \
                 {FRAME_FACTOR} frames",
                path.display()
            ))
            .help("take another video.sampling"));
        }
        let (sampling, fps, max_frames) = (recipe.sampling, recipe.fps, recipe.max_frames);
        let budget = PixelBudget::new(sampling, recipe.min_pixels, recipe.max_pixels, &config)?;
        let options = VideoOptions { sampling, fps, max_frames, upright: recipe.upright };
        Ok(Self { options, budget, config })
    }

    /// What reading a video would give, from its header: its grid, and the bytes of its sampled
    /// frames as decoded and as resized.
    ///
    /// # Errors
    /// Where it is no video or cannot be sampled.
    pub fn outline(&self, path: &Path) -> Result<(MediaGrid, [usize; 2])> {
        let video = video::probe(path)?;
        let VideoOptions { sampling, fps, max_frames, upright } = self.options;
        let turned = upright && video.rotation % 180 != 0;
        let (height, width) = match turned {
            true => (video.width, video.height),
            false => (video.height, video.width),
        };
        let wrong = |e: String| Error::input(format!("{}: {e}", path.display()));
        let len = sampling.indices(&video, fps, max_frames).map_err(wrong)?.len();
        let (height, width) = fitted_size(height, width, sampling, &self.config, self.budget)
            .map_err(|e| wrong(e.to_string()))?;
        let seconds = self.config.temporal_patch_size as f64 / sampling.sample_fps(&video, len);
        let grid_thw = self.config.grid_thw(len, height, width);
        let grid = MediaGrid { grid_thw, second_per_grid: Some(seconds) };
        let bytes = |height: usize, width: usize| len * height * width * 3;
        Ok((grid, [bytes(video.height, video.width), bytes(height, width)]))
    }

    /// Decodes and resizes the sampled frames of one video.
    pub(crate) fn read(&self, path: &Path) -> Result<Sampled> {
        let start = Instant::now();
        let clip = video::read(path, &self.options)?;
        let second_per_grid = clip.second_per_grid_t(self.config.temporal_patch_size);
        let frames = fit(clip.frames, self.options.sampling, &self.config, self.budget)
            .map_err(|e| Error::input(format!("{}: {e}", path.display())))?;
        let (rotation, cost_s) = (clip.video.rotation, start.elapsed().as_secs_f64());
        Ok(Sampled { frames, second_per_grid, rotation, cost_s })
    }

    /// The grid of a video that was read.
    pub(crate) fn grid(&self, sampled: &Sampled) -> MediaGrid {
        let Frames { len, height, width, .. } = sampled.frames;
        let grid_thw = self.config.grid_thw(len, height, width);
        MediaGrid { grid_thw, second_per_grid: Some(sampled.second_per_grid) }
    }

    /// Whether pictures are turned as their container says.
    pub(crate) fn is_upright(&self) -> bool {
        self.options.upright
    }

    /// The patches of a video as it is shown.
    pub(crate) fn patches(&self, mut frames: Frames, shown: &Shown) -> Result<Patches> {
        shown.variant.apply(&mut frames);
        patchify(&frames, &self.config)
            .map_err(|e| Error::input(format!("{}: {e}", shown.video.display())))
    }

    /// Names the frames of the video with this content.
    pub(crate) fn key(&self, content: &str) -> Key {
        let made_by = (env!("CARGO_PKG_VERSION"), video::decoder_version(), RULES);
        Key::new("frames", &(content, made_by, self))
    }
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

/// The frames of one video, ready to be cut into patches.
#[derive(Clone)]
pub(crate) struct Sampled {
    pub frames: Frames,
    pub second_per_grid: f64,
    /// What the container says about turning the pictures, in degrees.
    pub rotation: usize,
    /// Seconds that decoding and resizing took.
    pub cost_s: f64,
}
