//! A video file enters, the sampled RGB frames leave.
//!
//! Which frames are taken differs between the tools that train and evaluate
//! Qwen-VL models; [`Sampling`] has each rule under its tool's name. The bytes
//! of a frame are those of `PyAV` 18's `to_ndarray(format="rgb24")`: the coded
//! picture in the color matrix it is tagged with, its pixels taken for square,
//! without the container's rotation unless that is asked for.
//!
//! Frames count by their order, not by their time: all four tools do so, with a
//! variable frame rate too. Only what a sampled frame needs is decoded, where
//! that gives the same frames: see [`timeline`].

mod convert;
mod sampling;
mod stream;
mod timeline;

use std::path::Path;

use video_rs::ffmpeg::{codec, software::scaling};

pub use self::sampling::{FRAME_FACTOR, Sampling};
use self::stream::Stream;
use self::timeline::Timeline;
use crate::error::Result;

/// How to sample a video.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VideoOptions {
    /// Whose rule chooses the frames.
    pub sampling: Sampling,
    /// Frames wanted per second of video.
    pub fps: f64,
    /// Most frames to take.
    pub max_frames: usize,
    /// Whether frames are turned as the container says, which `decord` does and `PyAV` does not.
    pub upright: bool,
}

/// What the container says about its first video stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VideoInfo {
    /// Number of frames: the container's count, or those that it lists or holds where it has none.
    pub frames: usize,
    /// Average frames per second.
    pub fps: f64,
    /// Length in seconds.
    pub duration_s: f64,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Degrees, clockwise, by which a player turns the pictures: 0, 90, 180 or 270.
    pub rotation: usize,
}

/// RGB frames of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    /// `[len, height, width, 3]`, row-major.
    pub rgb: Vec<u8>,
    /// Number of frames.
    pub len: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

/// The sampled frames of one video.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// The frames, in order.
    pub frames: Frames,
    /// Their positions in the video, counted from 0.
    pub indices: Vec<usize>,
    /// The video they come from.
    pub video: VideoInfo,
    /// Sampled frames per second of video, as the rule's own tool states it.
    pub sample_fps: f64,
    /// Pictures that were decoded for them.
    pub decoded: usize,
}

impl VideoInfo {
    /// Notes the number of frames, and what follows from it where the container does not say it.
    fn set_frames(&mut self, frames: usize) {
        self.frames = frames;
        if self.fps == 0.0 {
            self.fps = frames as f64 / self.duration_s;
        }
        if self.duration_s == 0.0 {
            self.duration_s = frames as f64 / self.fps;
        }
    }
}

impl Frames {
    /// Frame `i` as `[height, width, 3]`.
    ///
    /// # Panics
    /// Where `i` is not below `len`.
    pub fn frame(&self, i: usize) -> &[u8] {
        let size = self.height * self.width * 3;
        &self.rgb[i * size..(i + 1) * size]
    }

    /// Turns every frame clockwise by 0, 90, 180 or 270 degrees.
    pub fn turn(&mut self, degrees: usize) {
        let turns = degrees / 90 % 4;
        if turns == 0 {
            return;
        }
        let (h, w) = (self.height, self.width);
        if turns % 2 == 1 {
            (self.height, self.width) = (w, h);
        }
        // One frame at a time: a clip may fill much of the memory.
        let mut coded = vec![[0; 3]; h * w];
        for frame in self.rgb.as_chunks_mut().0.chunks_exact_mut(h * w) {
            coded.copy_from_slice(frame);
            for (at, pixel) in frame.iter_mut().enumerate() {
                let (y, x) = (at / self.width, at % self.width);
                *pixel = coded[match turns {
                    1 => (h - 1 - x) * w + y,
                    2 => h * w - 1 - at,
                    _ => x * w + w - 1 - y,
                }];
            }
        }
    }

    /// Appends the last frame once more where their number is odd.
    pub fn pad_to_even(&mut self) {
        if self.len % 2 == 1 {
            let size = self.height * self.width * 3;
            self.rgb.extend_from_within((self.len - 1) * size..);
            self.len += 1;
        }
    }
}

impl Clip {
    /// Seconds that one temporal patch spans, Qwen2.5-VL's `second_per_grid_t`.
    pub fn second_per_grid_t(&self, temporal_patch_size: usize) -> f64 {
        temporal_patch_size as f64 / self.sample_fps
    }
}

/// Reads what the container says, and counts the frames where it does not: those that it lists, or
/// else those that can be decoded.
///
/// # Errors
/// A file that is missing, empty, no video, without a video stream or without frames.
pub fn probe(path: &Path) -> Result<VideoInfo> {
    let mut stream = Stream::open(path)?;
    if stream.info.frames == 0 {
        let frames = match Timeline::read(Stream::open(path)?)? {
            Some(timeline) => timeline.len(),
            None => stream.count()?,
        };
        stream.info.set_frames(frames);
    }
    Ok(stream.info)
}

/// Decodes what the sampled frames need, in one thread.
///
/// Damage that the decoder itself conceals passes, as it does with `PyAV`. Where an edit list hides
/// frames that the container counts, those that can be seen are counted and sampled.
///
/// # Errors
/// As [`probe`]; a file that is damaged or ends before a sampled frame; a rule that does not fit
/// the video.
pub fn read(path: &Path, options: &VideoOptions) -> Result<Clip> {
    let mut clip = match read_some(path, options)? {
        Some(clip) => clip,
        None => read_whole(path, options)?,
    };
    if options.upright {
        clip.frames.turn(clip.video.rotation);
    }
    Ok(clip)
}

/// Decodes just what the sampled frames need; none where that cannot be told or did not give them.
fn read_some(path: &Path, options: &VideoOptions) -> Result<Option<Clip>> {
    let Some(timeline) = Timeline::read(Stream::open(path)?)? else { return Ok(None) };
    let mut stream = Stream::open(path)?;
    stream.info.set_frames(timeline.len());
    let indices = stream.indices(options)?;
    let times = stream.follow(&timeline, &indices);
    // What goes wrong here is told by reading the whole.
    let Ok(Some(frames)) = stream.at_times(&times) else { return Ok(None) };
    Ok(Some(stream.clip(frames, indices, options)))
}

/// As [`read`], but decodes all from the first frame to the last sampled one, whatever is needed.
///
/// # Errors
/// As [`read`].
pub fn read_whole(path: &Path, options: &VideoOptions) -> Result<Clip> {
    let mut stream = Stream::open(path)?;
    let undercounted = options.sampling == Sampling::Qwen && stream.lists_more();
    if stream.info.frames == 0 || undercounted {
        let frames = stream.count()?;
        stream = Stream::open(path)?;
        stream.info.set_frames(frames);
    }
    let indices = stream.indices(options)?;
    if let Some(frames) = stream.at_indices(&indices)? {
        return Ok(stream.clip(frames, indices, options));
    }
    let visible = stream.decoded;
    if !stream.is_whole() {
        return Err(stream.cut_short(visible));
    }
    let mut stream = Stream::open(path)?;
    stream.info.set_frames(visible);
    let indices = stream.indices(options)?;
    match stream.at_indices(&indices)? {
        Some(frames) => Ok(stream.clip(frames, indices, options)),
        None => Err(stream.cut_short(stream.decoded)),
    }
}

/// The versions of what decodes and converts the pictures: another one may give other bytes.
pub fn decoder_version() -> (u32, u32) {
    (codec::version(), scaling::version())
}
