//! `[image]`: how images are read, where a data set has any.

use serde::{Deserialize, Serialize};

/// `[image]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Image {
    /// Most pixels of an image, after resizing.
    pub max_pixels: usize,
    /// Whether images are turned as their EXIF data say. Neither LLaMA-Factory nor qwen-vl-utils
    /// does; transformers' `load_image` does.
    pub upright: bool,
    /// Fewest pixels of an image, after resizing; the sampling rule's own default where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_pixels: Option<usize>,
}

impl Default for Image {
    fn default() -> Self {
        // 768 × 768: LLaMA-Factory's `image_max_pixels`.
        Self { max_pixels: 589_824, upright: false, min_pixels: None }
    }
}
