//! A video file enters, the sampled RGB frames leave.
//!
//! Which frames are taken differs between the tools that train and evaluate
//! Qwen-VL models; [`Sampling`] has each rule under its tool's name. The bytes
//! of a frame are those of `PyAV` 18's `to_ndarray(format="rgb24")`: the coded
//! picture in the color matrix it is tagged with, without the container's
//! rotation.

use std::path::Path;
use std::sync::Once;

use serde::{Deserialize, Serialize};
use video_rs::ffmpeg::{
    self, Packet, Rational, codec, color, format, frame, log, media, software::scaling,
};

use crate::error::{Error, Result};

/// Fewest frames that qwen-vl-utils (`FPS_MIN_FRAMES`) and Hugging Face (`min_frames`) take.
const MIN_FRAMES: usize = 4;
/// Both round the number of frames down to a multiple of the temporal patch.
const FRAME_FACTOR: usize = 2;

/// Whose rule chooses the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampling {
    /// qwen-vl-utils: first to last frame, evenly, rounded to the nearest; an even number of
    /// frames, at least 4 where the video has them.
    Qwen,
    /// LLaMA-Factory: first to last frame, evenly, rounded down; `floor(duration_s · fps)` frames.
    LlamaFactory,
    /// Hugging Face's video processor: a constant step from frame 0, rounded down; an even number
    /// of frames, at least 4 where the video has them.
    Hf,
    /// VLM4D's evaluation: first to last frame, evenly, rounded down; `fps` frames for each whole
    /// second (its own setting: 1 fps, at most 64).
    Vlm4d,
}

/// How to sample a video.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct VideoOptions {
    /// Whose rule chooses the frames.
    pub sampling: Sampling,
    /// Frames wanted per second of video.
    pub fps: f64,
    /// Most frames to take.
    pub max_frames: usize,
}

/// What the container says about its first video stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VideoInfo {
    /// Number of frames: the container's count, or the decoded ones where it has none.
    pub frames: usize,
    /// Average frames per second.
    pub fps: f64,
    /// Length in seconds.
    pub duration_s: f64,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
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
            Self::Qwen | Self::Hf | Self::Vlm4d => k as f64 / video.frames as f64 * video.fps,
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

/// Reads what the container says, and counts the frames where it does not.
///
/// # Errors
/// A file that is missing, empty, no video, without a video stream or without frames.
pub fn probe(path: impl AsRef<Path>) -> Result<VideoInfo> {
    let path = path.as_ref();
    let mut stream = Stream::open(path)?;
    if stream.info.frames == 0 {
        stream.info.frames = stream.count()?;
    }
    Ok(stream.info)
}

/// Decodes the video up to the last sampled frame, in one thread.
///
/// Damage that the decoder itself conceals passes, as it does with `PyAV`. Where an edit list hides
/// frames that the container counts, those that can be seen are counted and sampled.
///
/// # Errors
/// As [`probe`]; a file that is damaged or ends before a sampled frame; a rule that does not fit
/// the video.
pub fn read(path: impl AsRef<Path>, options: &VideoOptions) -> Result<Clip> {
    let path = path.as_ref();
    let mut stream = Stream::open(path)?;
    if stream.info.frames == 0 {
        let frames = stream.count()?;
        stream = Stream::open(path)?;
        stream.info.frames = frames;
    }
    let video = stream.info;
    if let Some(clip) = stream.read(options)? {
        return Ok(clip);
    }
    let visible = VideoInfo { frames: stream.decoded, ..video };
    let mut stream = Stream::open(path)?;
    stream.info = visible;
    stream.read(options)?.ok_or_else(|| stream.cut_short())
}

/// The versions of what decodes and converts the pictures: another one may give other bytes.
pub fn decoder_version() -> (u32, u32) {
    (codec::version(), scaling::version())
}

/// The first video stream of a file, decoded frame by frame.
struct Stream<'a> {
    path: &'a Path,
    info: VideoInfo,
    input: format::context::Input,
    index: usize,
    decoder: codec::decoder::Video,
    /// Video packets that the container's index lists; 0 where it has none.
    listed_packets: usize,
    packets: usize,
    decoded: usize,
}

impl<'a> Stream<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        set_up();
        let input = open_input(path)?;
        let stream = input
            .streams()
            .find(|s| {
                s.parameters().medium() == media::Type::Video
                    && !s.disposition().contains(format::stream::Disposition::ATTACHED_PIC)
            })
            .ok_or_else(|| Error::input(format!("{}: has no video stream", path.display())))?;
        let decoder = codec::Context::from_parameters(stream.parameters())
            .and_then(|context| context.decoder().video())
            .map_err(|e| Error::input(format!("{}: cannot be decoded: {e}", path.display())))?;
        let info = video_info(path, &input, &stream, &decoder)?;
        let index = stream.index();
        let listed_packets = listed_packets(&stream);
        Ok(Self { path, info, input, index, decoder, listed_packets, packets: 0, decoded: 0 })
    }

    /// Decodes the next frame; `false` at the end.
    fn next(&mut self, frame: &mut frame::Video) -> Result<bool> {
        loop {
            match self.decoder.receive_frame(frame) {
                Ok(()) => {
                    self.decoded += 1;
                    return Ok(true);
                }
                Err(ffmpeg::Error::Eof) => return Ok(false),
                Err(ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) => self.feed()?,
                Err(e) => return Err(self.damaged(e)),
            }
        }
    }

    /// Hands the decoder its next packet, or the end of the stream.
    fn feed(&mut self) -> Result<()> {
        loop {
            let mut packet = Packet::empty();
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() != self.index => {}
                // The file ends inside this packet.
                Ok(()) if packet.is_corrupt() => return Err(self.cut_short()),
                Ok(()) => {
                    self.packets += 1;
                    return self.decoder.send_packet(&packet).map_err(|e| self.damaged(e));
                }
                Err(ffmpeg::Error::Eof) if self.packets < self.listed_packets => {
                    return Err(self.cut_short());
                }
                Err(ffmpeg::Error::Eof) => {
                    return self.decoder.send_eof().map_err(|e| self.damaged(e));
                }
                Err(e) => return Err(self.damaged(e)),
            }
        }
    }

    /// Decodes to the end and returns the number of frames, at least 1.
    fn count(&mut self) -> Result<usize> {
        let mut frame = frame::Video::empty();
        while self.next(&mut frame)? {}
        match self.decoded {
            0 => Err(self.no_frames()),
            n => Ok(n),
        }
    }

    /// The sampled frames; `None` where the stream is whole but has fewer frames than it said.
    fn read(&mut self, options: &VideoOptions) -> Result<Option<Clip>> {
        let indices = (options.sampling)
            .indices(&self.info, options.fps, options.max_frames)
            .map_err(|what| Error::input(format!("{}: {what}", self.path.display())))?;
        let (mut raw, mut converter) = (frame::Video::empty(), None);
        let mut rgb = Vec::new();
        for &index in &indices {
            while self.decoded <= index {
                if self.next(&mut raw)? {
                    continue;
                }
                if self.decoded == 0 {
                    return Err(self.no_frames());
                }
                return Ok(None);
            }
            let converter = match &mut converter {
                Some(converter) => converter,
                none => none.insert(Converter::new(&raw).map_err(|e| self.damaged(e))?),
            };
            converter.append(&raw, &mut rgb).map_err(|e| self.damaged(e))?;
        }
        // The picture's own size: a container may state another.
        let (height, width) = (raw.height() as usize, raw.width() as usize);
        let video = VideoInfo { width, height, ..self.info };
        let sample_fps = options.sampling.sample_fps(&video, indices.len());
        let frames = Frames { rgb, len: indices.len(), height, width };
        Ok(Some(Clip { frames, indices, video, sample_fps }))
    }

    fn no_frames(&self) -> Error {
        Error::input(format!("{}: has no frames", self.path.display()))
    }

    fn damaged(&self, reason: ffmpeg::Error) -> Error {
        let (path, n) = (self.path.display(), self.decoded);
        let reason = match reason {
            ffmpeg::Error::InvalidData => "the file is damaged".into(),
            ffmpeg::Error::InputChanged => "the frames change their size or format".into(),
            other => other.to_string(),
        };
        Error::input(format!("{path}: cannot be decoded after {n} frames: {reason}"))
            .help("download or encode the video again")
    }

    fn cut_short(&self) -> Error {
        let (path, n, all) = (self.path.display(), self.decoded, self.info.frames);
        let of = if all > 0 { format!(" of {all}") } else { String::new() };
        Error::input(format!("{path}: ends after {n}{of} frames: the file is cut short"))
            .help("download the video again")
    }
}

/// Loads the library's error texts and silences its own messages: what goes wrong is told by our
/// error alone.
fn set_up() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // It only fails where it is built without some part, which opening a file then tells.
        let _ = ffmpeg::init();
        log::set_level(log::Level::Quiet);
    });
}

fn open_input(path: &Path) -> Result<format::context::Input> {
    let shown = path.display();
    let file = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::input(format!("{shown}: no such file")),
        _ => Error::input(format!("{shown}: cannot be read: {e}")),
    })?;
    if !file.is_file() {
        return Err(Error::input(format!("{shown}: is not a file")));
    }
    if file.len() == 0 {
        return Err(Error::input(format!("{shown}: the file is empty")));
    }
    let url = path
        .to_str()
        .ok_or_else(|| Error::input(format!("{shown}: the file's name is not UTF-8")))?;
    // With the prefix, a colon in the name is not taken for a network protocol's.
    format::input(&format!("file:{url}")).map_err(|e| match e {
        ffmpeg::Error::InvalidData | ffmpeg::Error::Eof => {
            Error::input(format!("{shown}: is not a video, or is cut short or damaged"))
        }
        e => Error::input(format!("{shown}: cannot be read: {e}")),
    })
}

fn video_info(
    path: &Path,
    input: &format::context::Input,
    stream: &ffmpeg::Stream<'_>,
    decoder: &codec::decoder::Video,
) -> Result<VideoInfo> {
    let frames = usize::try_from(stream.frames()).unwrap_or(0);
    let own = stream.duration() as f64 * ratio(stream.time_base());
    let container = input.duration() as f64 / f64::from(ffmpeg::ffi::AV_TIME_BASE);
    let rates = [stream.avg_frame_rate(), stream.rate()];
    let fps = rates.into_iter().map(ratio).find(|&fps| fps > 0.0);
    // An unknown length is negative.
    let duration_s = [own, container].into_iter().find(|&s| s > 0.0);
    let (fps, duration_s) = match (fps, duration_s) {
        (Some(fps), Some(s)) => (fps, s),
        (Some(fps), None) if frames > 0 => (fps, frames as f64 / fps),
        (None, Some(s)) if frames > 0 => (frames as f64 / s, s),
        _ => {
            let path = path.display();
            return Err(Error::input(format!("{path}: has neither a frame rate nor a duration")));
        }
    };
    let (width, height) = (decoder.width() as usize, decoder.height() as usize);
    Ok(VideoInfo { frames, fps, duration_s, width, height })
}

/// `r` as a number; 0 where it is undefined.
fn ratio(r: Rational) -> f64 {
    if r.denominator() == 0 { 0.0 } else { f64::from(r.numerator()) / f64::from(r.denominator()) }
}

fn listed_packets(stream: &ffmpeg::Stream<'_>) -> usize {
    // SAFETY: the pointer is that of an open stream, and is only read. The bindings' safe part
    // does not offer the index, and a missing packet cannot be told from an edit list without it.
    let n = unsafe { ffmpeg::ffi::avformat_index_get_entries_count(stream.as_ptr()) };
    usize::try_from(n).unwrap_or(0)
}

/// Converts decoded pictures to packed RGB.
struct Converter {
    scaler: scaling::Context,
    rgb: frame::Video,
}

impl Converter {
    fn new(raw: &frame::Video) -> Result<Self, ffmpeg::Error> {
        let (width, height) = (raw.width(), raw.height());
        // PyAV's default filter; it matters only where chroma is interpolated.
        let flags = scaling::Flags::BILINEAR;
        let mut scaler = scaling::Context::get(
            raw.format(),
            width,
            height,
            format::Pixel::RGB24,
            width,
            height,
            flags,
        )?;
        set_color_matrix(&mut scaler, raw);
        Ok(Self { scaler, rgb: frame::Video::empty() })
    }

    /// Appends the picture's rows, without the decoder's padding.
    fn append(&mut self, raw: &frame::Video, out: &mut Vec<u8>) -> Result<(), ffmpeg::Error> {
        self.scaler.run(raw, &mut self.rgb)?;
        let row = raw.width() as usize * 3;
        let stride = self.rgb.stride(0);
        let rows = self.rgb.data(0).chunks(stride).take(raw.height() as usize);
        rows.for_each(|r| out.extend_from_slice(&r[..row]));
        Ok(())
    }
}

/// Tells swscale the matrix that the stream is tagged with; without it, BT.601 is assumed.
fn set_color_matrix(scaler: &mut scaling::Context, raw: &frame::Video) {
    let matrix = match raw.color_space() {
        color::Space::BT709 => ffmpeg::ffi::SWS_CS_ITU709,
        color::Space::FCC => ffmpeg::ffi::SWS_CS_FCC,
        color::Space::SMPTE240M => ffmpeg::ffi::SWS_CS_SMPTE240M,
        color::Space::BT2020NCL | color::Space::BT2020CL => ffmpeg::ffi::SWS_CS_BT2020,
        _ => return,
    };
    let full_range = i32::from(raw.color_range() == color::Range::JPEG);
    // SAFETY: `scaler` owns a live context, and the coefficients are static tables of swscale.
    // The bindings' safe part cannot set the matrix. Contrast and saturation are 1 in 16.16.
    unsafe {
        let table = ffmpeg::ffi::sws_getCoefficients(matrix);
        let context = scaler.as_mut_ptr();
        let one = 1 << 16;
        ffmpeg::ffi::sws_setColorspaceDetails(context, table, full_range, table, 1, 0, one, one);
    }
}
