//! `[video]`: how frames are taken from a video.

use serde::{Deserialize, Serialize};

use crate::data::video::Sampling;

/// `[video]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Video {
    /// Which tool's rule chooses the frames.
    pub sampling: Sampling,
    /// Frames taken per second of video. A list of frames, which is shown whole, counts as taken at it;
    /// `vlm4d`'s clock counts 2 a second, whatever was taken.
    pub fps: f64,
    /// Most frames of one video. A longer list of frames is refused.
    pub max_frames: usize,
    /// Most pixels of one frame, after resizing; taken as given. What is enlarged to `min_pixels`
    /// may exceed it by less than a block of 28 pixels a side: with `qwen` 40,000 makes 49,392 of a
    /// frame of 112 × 84. qwen-vl-utils has caps of its own since 0.0.11: 602,112, and for many frames
    /// 180,633,600 divided by their number.
    pub max_pixels: usize,
    /// Whether frames are turned as the video's rotation says. `PyAV`, and with it LLaMA-Factory and
    /// torchvision, does not; qwen-vl-utils with decord and VLM4D's evaluation do.
    pub upright: bool,
    /// Fewest pixels of one frame, after resizing; the sampling rule's own default where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_pixels: Option<usize>,
}

impl Default for Video {
    fn default() -> Self {
        // 2 fps: all three tools. 64 frames: VLM4D's evaluation. 200,704 = 256 tokens of 28 × 28.
        Self {
            sampling: Sampling::Qwen,
            fps: 2.0,
            max_frames: 64,
            max_pixels: 200_704,
            upright: false,
            min_pixels: None,
        }
    }
}
