//! Frames → patches → vision features, once per video for the whole run.
//!
//! Decoding runs in threads ahead of the vision tower. While the tower is frozen its output is
//! kept; where it is trained the patches are, and the features are made anew with a tape.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};

use crate::data::processor::{Patches, PixelBudget, PreprocessorConfig, process};
use crate::data::variant::{Shown, Variant};
use crate::data::video::{self, VideoOptions};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::parameters;
use crate::model::qwen_vl::QwenVl;
use crate::model::rope::MediaGrid;
use crate::recipe;

/// Decoded videos that may wait for the vision tower.
const AHEAD: usize = 4;

/// How every video of a run is read.
#[derive(Clone, Debug)]
pub struct Reader {
    options: VideoOptions,
    budget: PixelBudget,
    config: PreprocessorConfig,
}

impl Reader {
    /// The recipe's `[video]` with the checkpoint's processor.
    ///
    /// # Errors
    /// Where `preprocessor_config.json` is missing or malformed, or the two do not agree.
    pub fn new(recipe: &recipe::Video, checkpoint: &Path) -> Result<Self> {
        let config = PreprocessorConfig::from_file(checkpoint.join("preprocessor_config.json"))?;
        let (sampling, fps, max_frames) = (recipe.sampling, recipe.fps, recipe.max_frames);
        let budget = PixelBudget::new(sampling, recipe.min_pixels, recipe.max_pixels, &config)?;
        Ok(Self { options: VideoOptions { sampling, fps, max_frames }, budget, config })
    }

    /// Patches and grid of one video, its frames under `variant`.
    ///
    /// # Errors
    /// Where it cannot be decoded or sampled.
    pub fn read(&self, path: &Path, variant: Variant) -> Result<(Patches, MediaGrid)> {
        let mut clip = video::read(path, &self.options)?;
        variant.apply(&mut clip.frames);
        let seconds = clip.second_per_grid_t(self.config.temporal_patch_size);
        let patches = process(clip.frames, self.options.sampling, &self.config, self.budget)
            .map_err(|e| Error::input(format!("{}: {e}", path.display())))?;
        let grid = MediaGrid { grid_thw: patches.grid_thw, second_per_grid: Some(seconds) };
        Ok((patches, grid))
    }
}

/// The videos of a run, ready for the model.
#[derive(Default)]
pub struct Videos {
    ready: HashMap<Shown, (MediaGrid, Kept)>,
}

enum Kept {
    /// `[v, hidden]`.
    Features(TensorData),
    Patches(Vec<f32>),
}

impl Videos {
    /// Reads `videos`, relative to `dir`; `progress` is told after each, with how many are done.
    ///
    /// # Errors
    /// The first video that cannot be read.
    pub fn read(
        model: &QwenVl,
        reader: &Reader,
        dir: &Path,
        videos: &[Shown],
        mut progress: impl FnMut(usize),
    ) -> Result<Self> {
        let trained = parameters::any_trained(&model.visual);
        let frozen = model.valid();
        let mut ready = HashMap::new();
        let queue = Mutex::new(videos.iter());
        let (sender, receiver) = sync_channel(AHEAD);
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(AHEAD);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                let (queue, sender) = (&queue, sender.clone());
                scope.spawn(move || {
                    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
                    while let Some(shown) = next() {
                        let patches = reader.read(&dir.join(&shown.video), shown.variant);
                        // Nobody listens any more once a video has failed.
                        if sender.send((shown, patches)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for (shown, patches) in receiver {
                interrupt::check("the reading of videos")?;
                let (patches, grid) = patches?;
                let kept = if trained {
                    Kept::Patches(patches.pixel_values)
                } else {
                    let features = frozen.features(&patches.pixel_values, patches.grid_thw);
                    let data = features.try_into_data();
                    Kept::Features(
                        data.map_err(|e| Error::run(format!("the device failed: {e:?}")))?,
                    )
                };
                ready.insert(shown.clone(), (grid, kept));
                progress(ready.len());
            }
            Ok(Self { ready })
        })
    }

    /// Grids of `videos`, in order.
    ///
    /// # Errors
    /// Where one was not read.
    pub fn grids(&self, videos: &[Shown]) -> Result<Vec<MediaGrid>> {
        videos.iter().map(|video| Ok(self.get(video)?.0)).collect()
    }

    /// Features of `videos`, in order, `[v, hidden]` each; with a tape where `model`'s vision
    /// tower is trained.
    ///
    /// # Errors
    /// Where one was not read.
    pub fn features(&self, model: &QwenVl, videos: &[Shown]) -> Result<Vec<Tensor<2>>> {
        let features = videos.iter().map(|video| {
            Ok(match self.get(video)? {
                (_, Kept::Features(data)) => {
                    Tensor::from_data(data.clone(), (&model.device(), data.dtype()))
                }
                (grid, Kept::Patches(patches)) => model.features(patches, grid.grid_thw),
            })
        });
        features.collect()
    }

    fn get(&self, shown: &Shown) -> Result<&(MediaGrid, Kept)> {
        let missing = || Error::run(format!("{}: was not read", shown.video.display()));
        self.ready.get(shown).ok_or_else(missing)
    }
}
