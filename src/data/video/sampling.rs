//! Which frames of a video are taken: the rules of the tools that train and evaluate Qwen-VL
//! models, each under its tool's name.

use serde::{Deserialize, Serialize};

use super::VideoInfo;

/// Fewest frames that qwen-vl-utils (`FPS_MIN_FRAMES`) and Hugging Face (`min_frames`) take.
const MIN_FRAMES: usize = 4;
/// Both round the number of frames down to a multiple of this: qwen-vl-utils always, Hugging Face
/// for the temporal patch that all checkpoints have.
pub const FRAME_FACTOR: usize = 2;
/// VLM4D's evaluation gives vLLM the frames alone, and transformers' processor then takes its default.
const VLM4D_FPS: f64 = 2.0;

/// Whose rule chooses the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampling {
    /// qwen-vl-utils: first to last frame, evenly, rounded to the nearest; an even number of
    /// frames, at least 4 where the video has them. Its readers count the frames: a container that
    /// says fewer than it lists is not believed.
    Qwen,
    /// LLaMA-Factory: first to last frame, evenly, rounded down; `floor(duration_s · fps)` frames.
    /// Where a container does not say how many frames it has, LLaMA-Factory takes the first ones;
    /// here they are counted.
    LlamaFactory,
    /// Hugging Face's video processor: a constant step from frame 0, rounded down; an even number
    /// of frames, at least 4 where the video has them.
    Hf,
    /// VLM4D's evaluation: first to last frame, evenly, rounded down; `fps` frames for each whole
    /// second. It sets 1 fps, at most 64 frames and no bound on pixels but the checkpoint's, turns
    /// frames as the video's rotation says, and leaves them in the order blue, green, red, which is
    /// not imitated here.
    Vlm4d,
}

impl Sampling {
    /// The frames to take from `video`, ascending.
    ///
    /// # Errors
    /// What keeps the rule from being applied, without the file's name.
    pub fn indices(
        self,
        video: &VideoInfo,
        fps: f64,
        max_frames: usize,
    ) -> Result<Vec<usize>, String> {
        if !(fps > 0.0 && fps.is_finite()) {
            return Err(format!("`fps` is {fps}, expected a number above 0"));
        }
        let n = video.frames;
        // A cast from a float saturates, so that an absurd duration ends at `max_frames`.
        let k = match self {
            Self::Qwen | Self::Hf => {
                let wanted = n as f64 / video.fps * fps;
                let most = floor_to_even(max_frames.min(n));
                floor_to_even(wanted.max(MIN_FRAMES as f64).min(most as f64) as usize)
            }
            Self::LlamaFactory => ((video.duration_s * fps) as usize).max(1).min(max_frames).min(n),
            Self::Vlm4d => ((video.duration_s.floor() * fps) as usize).min(max_frames).min(n),
        };
        if k == 0 {
            return Err(self.too_few(video, fps, max_frames));
        }
        Ok(match self {
            Self::Qwen => linspace_f32(n, k),
            Self::Hf => arange_f32(n, k),
            Self::LlamaFactory | Self::Vlm4d => linspace_f64(n, k),
        })
    }

    /// Frames per second that the tool reports for `k` sampled frames.
    pub fn sample_fps(self, video: &VideoInfo, k: usize) -> f64 {
        match self {
            Self::LlamaFactory => k as f64 / video.duration_s,
            Self::Qwen | Self::Hf => k as f64 / video.frames as f64 * video.fps,
            Self::Vlm4d => VLM4D_FPS,
        }
    }

    /// Frames per second that the tool reports for a list of frames, of which it takes all, where it
    /// is told `fps`: LLaMA-Factory's `video_fps`, qwen-vl-utils' `sample_fps`, the `fps` of
    /// transformers' metadata (untold, the last takes 24).
    pub fn list_fps(self, fps: f64) -> f64 {
        match self {
            Self::Qwen | Self::LlamaFactory | Self::Hf => fps,
            Self::Vlm4d => VLM4D_FPS,
        }
    }

    fn too_few(self, video: &VideoInfo, fps: f64, max_frames: usize) -> String {
        let (n, least) = match self {
            Self::Qwen | Self::Hf => (video.frames, FRAME_FACTOR),
            Self::LlamaFactory | Self::Vlm4d => (video.frames, 1),
        };
        let name = match self {
            Self::Qwen => "qwen",
            Self::Hf => "hf",
            Self::LlamaFactory => "llamafactory",
            Self::Vlm4d => "vlm4d",
        };
        let s = if n == 1 { "" } else { "s" };
        if n < least {
            format!("has {n} frame{s}, sampling `{name}` needs at least {least}")
        } else if max_frames < least {
            format!("`max_frames` is {max_frames}, sampling `{name}` needs at least {least}")
        } else {
            let seconds = video.duration_s;
            format!(
                "lasts {seconds:.2} s: sampling `{name}` takes no frame from it at {fps} fps, \
                 as it counts whole seconds"
            )
        }
    }
}

fn floor_to_even(n: usize) -> usize {
    n / FRAME_FACTOR * FRAME_FACTOR
}

/// `torch.linspace(0, n - 1, k).round()`: float32, filled from both ends, half to even.
fn linspace_f32(n: usize, k: usize) -> Vec<usize> {
    let end = (n - 1) as f32;
    let step = end / (k - 1) as f32;
    (0..k)
        .map(|i| if i < k / 2 { step * i as f32 } else { end - step * (k - 1 - i) as f32 })
        .map(|x| x.round_ties_even() as usize)
        .collect()
}

/// `numpy.linspace(0, n - 1, k).astype(int)`: float64, rounded down, the last one exact.
fn linspace_f64(n: usize, k: usize) -> Vec<usize> {
    let end = (n - 1) as f64;
    let step = end / (k as f64 - 1.0);
    (0..k).map(|i| if i + 1 == k && k > 1 { n - 1 } else { (i as f64 * step) as usize }).collect()
}

/// `torch.arange(0, n, n / k).int()`: float32, rounded down. Where rounding lets torch count one
/// element too many, that one would be frame `n`, which no video has: `k` is kept.
fn arange_f32(n: usize, k: usize) -> Vec<usize> {
    let step = n as f64 / k as f64;
    (0..k).map(|i| (i as f64 * step) as f32 as usize).collect()
}
