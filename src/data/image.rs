//! An image file enters, its RGB pixels leave.
//!
//! The bytes are those of Pillow's `convert("RGB")`, but for JPEG, where decoders round differently
//! (within 4 levels). Of several pictures in a file the first is taken, as Pillow does.

use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage, RgbaImage};

use super::video::{Frames, Sampling};
use crate::error::{Error, Result};
use crate::files::io_reason;

/// What an image's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Height in pixels, as coded.
    pub height: usize,
    /// Width in pixels, as coded.
    pub width: usize,
    /// Degrees, clockwise, by which a viewer turns it: 0, 90, 180 or 270.
    pub rotation: usize,
}

/// Reads what the header says.
///
/// # Errors
/// A file that is missing or no image of a kind that is read.
pub fn probe(path: &Path) -> Result<ImageInfo> {
    let mut decoder = open(path)?;
    let (width, height) = decoder.dimensions();
    let orientation = orientation(&mut decoder);
    Ok(ImageInfo {
        height: height as usize,
        width: width as usize,
        rotation: rotation(orientation),
    })
}

/// Decodes the image as one frame, and tells by how many degrees a viewer turns it; `upright` turns
/// and flips it so. What is transparent shows white with [`Sampling::Qwen`], else the color that the
/// file has there, as in each tool.
///
/// # Errors
/// As [`probe`]; a file that is damaged.
pub fn read(path: &Path, sampling: Sampling, upright: bool) -> Result<(Frames, usize)> {
    let mut decoder = open(path)?;
    let orientation = orientation(&mut decoder);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| unreadable(path, &e))?;
    if upright {
        picture.apply_orientation(orientation);
    }
    let four_channels = picture.color().channel_count() == 4;
    let rgb = match sampling == Sampling::Qwen && four_channels {
        true => over_white(&picture.into_rgba8()),
        false => picture.into_rgb8(),
    };
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Ok((Frames { rgb: rgb.into_raw(), len: 1, height, width }, rotation(orientation)))
}

fn open(path: &Path) -> Result<impl ImageDecoder> {
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    let reader =
        reader.map_err(|e| Error::input(format!("{}: {}", path.display(), io_reason(&e))))?;
    reader.into_decoder().map_err(|e| unreadable(path, &e))
}

fn unreadable(path: &Path, error: &image::ImageError) -> Error {
    Error::input(format!("{}: cannot be read as an image: {error}", path.display()))
        .help("JPEG, PNG, WebP, GIF and BMP are read; convert it, or make it again")
}

/// None where the file says nothing of it.
fn orientation(decoder: &mut impl ImageDecoder) -> Orientation {
    decoder.orientation().unwrap_or(Orientation::NoTransforms)
}

fn rotation(orientation: Orientation) -> usize {
    match orientation {
        Orientation::NoTransforms | Orientation::FlipHorizontal => 0,
        Orientation::Rotate90 | Orientation::Rotate90FlipH => 90,
        Orientation::Rotate180 | Orientation::FlipVertical => 180,
        Orientation::Rotate270 | Orientation::Rotate270FlipH => 270,
    }
}

/// Source: `to_rgb` of qwen-vl-utils, with Pillow's rounding.
fn over_white(picture: &RgbaImage) -> RgbImage {
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [r, g, b, alpha] = picture.get_pixel(x, y).0.map(u32::from);
        let over = |level: u32| {
            let sum = level * alpha + 255 * (255 - alpha) + 128;
            (((sum >> 8) + sum) >> 8) as u8
        };
        image::Rgb([over(r), over(g), over(b)])
    })
}
