//! Frames → an H.264 file.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use video_rs::Error::BackendError;
use video_rs::encode::Settings;
use video_rs::ffmpeg::Error::Other;
use video_rs::ffmpeg::util::log;
use video_rs::frame::PixelFormat;
use video_rs::{Encoder, Frame, Options, Time};

use super::DemoOptions;
use super::paint;
use super::scene::Scene;
use crate::error::{Error, Result};
use crate::files;

/// Seconds that the last frame comes after a video's end.
///
/// The encoder gives the last packet no duration, so the frames are spread up to the very end. The
/// container tells the end in milliseconds, rounded up: a little later than a whole one, the last
/// frame lies before the end and readers show it.
const TAIL: f64 = 0.0004;

/// Paints and encodes one video as H.264.
pub(super) fn encode(path: &Path, scene: &Scene, options: &DemoOptions) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::run(format!("{}: cannot encode the video: {error}", path.display()))
    };
    let refused = |error| match error {
        BackendError(Other { errno }) => match io::Error::from_raw_os_error(errno) {
            e if is_the_disks(&e) => files::failed(path, &e),
            e => failed(&e),
        },
        error => failed(&error),
    };
    let (width, height) = (options.size.0 as usize, options.size.1 as usize);
    // The encoder would otherwise report on every video; what fails is returned.
    log::set_level(log::Level::Quiet);
    let mut encoder =
        Encoder::new(path, settings(width, height, scene.grain > 0.0)).map_err(refused)?;
    let last = options.frames() - 1;
    let end = options.frames() as f64 / f64::from(options.fps) + TAIL;
    for index in 0..=last {
        let t = index as f32 / last as f32;
        let pixels = paint::paint(scene, t, [width, height]);
        let frame = Frame::from_shape_vec((height, width, 3), pixels).map_err(|e| failed(&e))?;
        let time = Time::from_secs_f64(end * index as f64 / last as f64);
        encoder.encode(&frame, time).map_err(refused)?;
    }
    encoder.finish().map_err(refused)
}

/// Whether it is about the place of a file, not about its making.
fn is_the_disks(e: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, PermissionDenied, QuotaExceeded, StorageFull};
    matches!(e.kind(), FileTooLarge | PermissionDenied | QuotaExceeded | StorageFull)
}

/// The encoder's settings; the grain of the real videos takes the loss, clean ones stay clean.
fn settings(width: usize, height: usize, grainy: bool) -> Settings {
    let settings = [
        ("preset", "veryfast"),
        ("crf", if grainy { "27" } else { "18" }),
        // More threads would cut the frames differently on another machine.
        ("threads", "1"),
        // With its macroblock trees the encoder's choices vary from run to run, and with the
        // fastest code from processor to processor.
        ("x264-params", "mbtree=0:cpu-independent=1"),
    ];
    let settings = HashMap::from(settings.map(|(key, value)| (key.to_owned(), value.to_owned())));
    Settings::preset_h264_custom(width, height, PixelFormat::YUV420P, Options::from(settings))
}
