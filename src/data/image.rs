//! An image file enters, its RGB pixels leave; of the frames of a video, all of them.
//!
//! The bytes are those of Pillow's `convert("RGB")`, but for JPEG, where decoders round differently
//! (within 4 levels, more where chroma is subsampled, at the right edge above all). Of several pictures
//! in a file the first is taken, as Pillow does.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage, RgbaImage};

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

impl ImageInfo {
    /// Height and width; if it is shown `upright`, as a viewer turns it.
    pub fn size(self, upright: bool) -> (usize, usize) {
        match upright && !self.rotation.is_multiple_of(180) {
            true => (self.width, self.height),
            false => (self.height, self.width),
        }
    }
}

/// Reads what the header says.
///
/// # Errors
/// A file that is missing, no image of a kind that is read, or has more than 8 bits a channel.
pub fn probe(path: &Path) -> Result<ImageInfo> {
    let (mut decoder, _) = open(path)?;
    let (width, height) = decoder.dimensions();
    let orientation = orientation(&mut decoder);
    Ok(ImageInfo {
        height: height as usize,
        width: width as usize,
        rotation: rotation(orientation),
    })
}

/// Decodes the image as one frame, and tells by how many degrees a viewer turns it; `upright` turns
/// and flips it so. What is transparent by an alpha channel shows white with [`Sampling::Qwen`]; else
/// it has the color that the file has there, as in each tool.
///
/// # Errors
/// As [`probe`]; a file that is damaged.
pub fn read(path: &Path, sampling: Sampling, upright: bool) -> Result<(Frames, usize)> {
    let (mut decoder, format) = open(path)?;
    if format == Some(ImageFormat::Jpeg) {
        check_end(path)?;
    }
    let orientation = orientation(&mut decoder);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| unreadable(path, &e))?;
    if upright {
        picture.apply_orientation(orientation);
    }
    let rgb = match sampling == Sampling::Qwen && is_rgba(path, format, &picture)? {
        true => over_white(&picture.into_rgba8()),
        false => picture.into_rgb8(),
    };
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Ok((Frames { rgb: rgb.into_raw(), len: 1, height, width }, rotation(orientation)))
}

/// Height and width of the frames of one video, from their headers.
///
/// # Errors
/// As [`probe`]; frames of different sizes.
pub fn probe_frames(paths: &[PathBuf], upright: bool) -> Result<(usize, usize)> {
    let mut first = None;
    for path in paths {
        let size = probe(path)?.size(upright);
        check_size(path, size, &mut first)?;
    }
    first.ok_or_else(|| Error::input("a video without frames"))
}

/// Decodes the frames of one video as [`read`] does, and tells by how many degrees a viewer turns
/// one of them at the most.
///
/// # Errors
/// As [`read`]; frames of different sizes.
pub fn read_frames(
    paths: &[PathBuf],
    sampling: Sampling,
    upright: bool,
) -> Result<(Frames, usize)> {
    let mut all = Frames { rgb: Vec::new(), len: 0, height: 0, width: 0 };
    let (mut first, mut rotation) = (None, 0);
    for path in paths {
        let (Frames { rgb, height, width, .. }, turned) = read(path, sampling, upright)?;
        check_size(path, (height, width), &mut first)?;
        if all.len == 0 {
            (all.height, all.width) = (height, width);
            all.rgb.reserve_exact(rgb.len() * paths.len());
        }
        all.rgb.extend(rgb);
        all.len += 1;
        rotation = rotation.max(turned);
    }
    Ok((all, rotation))
}

/// Checks that a frame has the height and width of the `first`, which it is itself where there is
/// none. The tools take frames that are alike once they are resized; here they are alike before.
///
/// # Errors
/// Names the frame.
pub fn check_size(
    path: &Path,
    (h, w): (usize, usize),
    first: &mut Option<(usize, usize)>,
) -> Result<()> {
    let (first_h, first_w) = *first.get_or_insert((h, w));
    if (h, w) == (first_h, first_w) {
        return Ok(());
    }
    Err(Error::input(format!(
        "{}: has {w}×{h} pixels, and the first frame of its video {first_w}×{first_h}",
        path.display()
    ))
    .help("give all frames of a list the same size"))
}

/// The decoder of the file's format, whatever its name, and that format.
fn open(path: &Path) -> Result<(impl ImageDecoder, Option<ImageFormat>)> {
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    let reader =
        reader.map_err(|e| Error::input(format!("{}: {}", path.display(), io_reason(&e))))?;
    let format = reader.format();
    let decoder = reader.into_decoder().map_err(|e| unreadable(path, &e))?;
    let color = decoder.color_type();
    if color.bytes_per_pixel() > color.channel_count() {
        // Pillow cuts levels of grey off at 255, and halves those of colors.
        return Err(Error::input(format!("{}: has more than 8 bits a channel", path.display()))
            .help("save it with 8: tools make different things of more"));
    }
    Ok((decoder, format))
}

/// Checks that a JPEG has its end: the decoder shows what is missing as grey, and Pillow refuses it.
/// Without its marker alone, Pillow takes some.
fn check_end(path: &Path) -> Result<()> {
    let jpeg = fs::read(path)
        .map_err(|e| Error::input(format!("{}: {}", path.display(), io_reason(&e))))?;
    match has_end(&jpeg) {
        true => Ok(()),
        false => Err(Error::input(format!("{}: the image is cut short", path.display()))
            .help("download it again, or make it again")),
    }
}

/// Whether a marker says that the picture ends; not one of a thumbnail within a segment, nor what
/// follows the picture.
fn has_end(jpeg: &[u8]) -> bool {
    const END: u8 = 0xD9;
    // Stuffing, fill bytes, and the markers that no segment follows.
    let alone = |marker: u8| matches!(marker, 0x00 | 0x01 | 0xFF | 0xD0..=0xD8);
    let mut rest = jpeg;
    while let Some(at) = rest.windows(2).position(|pair| pair[0] == 0xFF && !alone(pair[1])) {
        match rest[at + 1..] {
            [END, ..] => return true,
            [_, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([high, low]));
                rest = rest.get(at + 2 + length..).unwrap_or_default();
            }
            _ => return false,
        }
    }
    false
}

/// Whether a picture is RGBA to Pillow: a palette or color that is transparent has no channel for it.
fn is_rgba(path: &Path, format: Option<ImageFormat>, picture: &DynamicImage) -> Result<bool> {
    const COLOR_TYPE: usize = 25;
    const RGBA: u8 = 6;
    Ok(match format {
        Some(ImageFormat::WebP) => picture.color().has_alpha(),
        Some(ImageFormat::Png) => {
            let mut header = [0; COLOR_TYPE + 1];
            let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
            read.map_err(|e| Error::input(format!("{}: {}", path.display(), io_reason(&e))))?;
            header[COLOR_TYPE] == RGBA
        }
        _ => false,
    })
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
