//! The frames of a video as one small picture, so that a page needs no video beside it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::data::processor::resize;
use crate::data::video::Frames;
use crate::error::{Error, Result};

/// Height of a frame in pixels.
const HEIGHT: usize = 120;
/// JPEG quality, of 100.
const QUALITY: u8 = 72;
/// Most frames of one video.
const MOST: usize = 8;
/// Frames of all videos together, at about 6 kB each, as long as each has three.
const BUDGET: usize = 2_400;

/// Frames side by side.
#[derive(Clone, Debug, Serialize)]
pub struct Strip {
    /// A JPEG as a `data:` URL.
    pub src: String,
    /// How many frames stand in it.
    pub frames: usize,
    /// Width over height of one frame.
    pub aspect: f64,
}

/// How many frames each of `videos` videos may show.
pub fn frames_per_video(videos: usize) -> usize {
    (BUDGET / videos.max(1)).clamp(3, MOST)
}

/// At most `most` of `frames`, evenly, first and last among them.
///
/// # Errors
/// Where the frames cannot be made smaller or encoded.
pub fn strip(frames: &Frames, most: usize) -> Result<Strip> {
    let n = frames.len.min(most).max(1);
    let last = frames.len.saturating_sub(1);
    let chosen = (0..n).map(|i| if n == 1 { 0 } else { (i * last + (n - 1) / 2) / (n - 1) });
    let rgb: Vec<u8> = chosen.flat_map(|i| frames.frame(i).iter().copied()).collect();
    let chosen = Frames { rgb, len: n, height: frames.height, width: frames.width };
    let width = (frames.width * HEIGHT / frames.height.max(1)).clamp(1, 4 * HEIGHT);
    let small = resize(&chosen, HEIGHT, width)?;
    let line = 3 * width;
    let mut picture = Vec::with_capacity(small.rgb.len());
    for y in 0..HEIGHT {
        for i in 0..n {
            picture.extend_from_slice(&small.frame(i)[y * line..(y + 1) * line]);
        }
    }
    let mut jpeg = Vec::new();
    jpeg_encoder::Encoder::new(&mut jpeg, QUALITY)
        .encode(&picture, (width * n) as u16, HEIGHT as u16, jpeg_encoder::ColorType::Rgb)
        .map_err(|e| Error::run(format!("a frame cannot be encoded: {e}")))?;
    Ok(Strip {
        src: format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg)),
        frames: n,
        aspect: width as f64 / HEIGHT as f64,
    })
}
