//! The first video stream of a file, packet by packet and picture by picture.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Once;

use video_rs::ffmpeg::codec::discard::Discard;
use video_rs::ffmpeg::codec::packet::{Ref, side_data};
use video_rs::ffmpeg::{self, Packet, Rational, codec, format, frame, log, media};

use super::convert::Converter;
use super::timeline::{Need, Plan, Timeline};
use super::{Clip, Frames, VideoInfo, VideoOptions};
use crate::error::{Error, Result};

/// Seconds by which a whole Matroska file may end before its stated length.
const TOLERANCE_S: f64 = 0.5;

/// The first video stream of a file, decoded frame by frame.
pub(super) struct Stream<'a> {
    path: &'a Path,
    pub(super) info: VideoInfo,
    input: format::context::Input,
    index: usize,
    decoder: codec::decoder::Video,
    /// Video packets that the container's index lists; 0 where it has none.
    listed_packets: usize,
    /// Packets that were read.
    packets: usize,
    /// The one behind a packet that lacks something.
    ahead: Option<Packet>,
    /// The latest end of any stream's packet, in seconds.
    end_s: f64,
    /// Which of them are needed; all where there is none.
    plan: Option<Plan>,
    /// Whether the decoder has been given any.
    fed: bool,
    /// The first packet behind those that were left out.
    after_gap: Option<Packet>,
    /// Pictures that were decoded.
    pub(super) decoded: usize,
}

impl<'a> Stream<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self> {
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
        Ok(Self {
            path,
            info,
            input,
            index,
            decoder,
            listed_packets,
            packets: 0,
            ahead: None,
            end_s: 0.0,
            plan: None,
            fed: false,
            after_gap: None,
            decoded: 0,
        })
    }

    /// What the stream is coded in.
    pub(super) fn codec(&self) -> codec::Id {
        self.decoder.id()
    }

    /// Whether pictures are shown in another order than they are decoded in.
    pub(super) fn reorders(&self) -> bool {
        self.decoder.has_b_frames()
    }

    /// Whether the packet's picture is not shown: an edit list hides it, or, in VP8, a bit of its
    /// first byte is not set.
    pub(super) fn hides(&self, packet: &Packet) -> bool {
        let first = packet.data().and_then(<[u8]>::first);
        let vp8 = self.codec() == codec::Id::VP8;
        is_discarded(packet) || (vp8 && first.is_some_and(|byte| byte & 0x10 == 0))
    }

    /// The next packet of the stream; none at its end.
    pub(super) fn packet(&mut self) -> Result<Option<Packet>> {
        let packet = match self.ahead.take() {
            None => self.read_packet()?,
            ahead => ahead,
        };
        match packet {
            None if self.ends_early() => Err(self.cut_short(self.packets)),
            None => Ok(None),
            Some(packet) => {
                if packet.is_corrupt() {
                    // The file ends inside it, or a transport stream has lost a piece of it, which
                    // the decoder conceals.
                    self.ahead = self.read_packet().ok().flatten();
                    if self.ahead.is_none() {
                        return Err(self.cut_short(self.packets));
                    }
                }
                self.packets += 1;
                Ok(Some(packet))
            }
        }
    }

    /// The next packet of the stream as it is; none at the file's end.
    fn read_packet(&mut self) -> Result<Option<Packet>> {
        loop {
            let mut packet = Packet::empty();
            match packet.read(&mut self.input) {
                Ok(()) => self.reaches(&packet),
                Err(ffmpeg::Error::Eof) => return Ok(None),
                Err(e) => return Err(self.damaged(e)),
            }
            if packet.stream() == self.index {
                return Ok(Some(packet));
            }
        }
    }

    /// Notes how far the packet, of whichever stream, goes.
    fn reaches(&mut self, packet: &Packet) {
        let Some(stream) = self.input.stream(packet.stream()) else { return };
        let end = packet.pts().map_or(0, |pts| pts + packet.duration());
        self.end_s = self.end_s.max(end as f64 * ratio(stream.time_base()));
    }

    /// Whether the file ends before what its index lists, or, in Matroska, which has none, before
    /// the length that its head states.
    fn ends_early(&self) -> bool {
        let stated_s = self.input.duration() as f64 / f64::from(ffmpeg::ffi::AV_TIME_BASE);
        let matroska = self.input.format().name().contains("matroska");
        self.packets < self.listed_packets || (matroska && self.end_s + TOLERANCE_S < stated_s)
    }

    /// Whether all that the container's index lists has been read: what it counts beyond that is
    /// hidden.
    pub(super) fn is_whole(&self) -> bool {
        self.packets == self.listed_packets
    }

    /// Whether the container's index lists more frames than the container says it has.
    pub(super) fn lists_more(&self) -> bool {
        self.listed_packets > self.info.frames
    }

    /// Decodes the next frame; `false` at the end.
    fn next(&mut self, frame: &mut frame::Video) -> Result<bool> {
        loop {
            match self.decoder.receive_frame(frame) {
                Ok(()) => {
                    self.decoded += 1;
                    return Ok(true);
                }
                Err(ffmpeg::Error::Eof) => match self.after_gap.take() {
                    None => return Ok(false),
                    Some(packet) => {
                        self.decoder.flush();
                        self.decoder.send_packet(&packet).map_err(|e| self.damaged(e))?;
                    }
                },
                Err(ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) => self.feed()?,
                Err(e) => return Err(self.damaged(e)),
            }
        }
    }

    /// Hands the decoder the next packet that is needed, or the end of the stream.
    fn feed(&mut self) -> Result<()> {
        let mut left_out = false;
        while self.plan.as_ref().is_none_or(|plan| plan.goes_on(self.packets)) {
            let Some(packet) = self.packet()? else { break };
            // What precedes the first key picture would come out grey; ffmpeg 8 drops it too.
            if !self.fed && self.codec() == codec::Id::HEVC && !begins_hevc(&packet) {
                continue;
            }
            let need = self.plan.as_ref().map_or(Need::Picture, |plan| plan.need(self.packets - 1));
            if need == Need::Nothing {
                left_out = true;
                continue;
            }
            // What no other picture refers to is decoded only for its own sake.
            self.decoder.skip_frame(match need {
                Need::References => Discard::NonReference,
                _ => Discard::Default,
            });
            if left_out && self.fed {
                // The pictures before the gap come out first.
                self.after_gap = Some(packet);
                break;
            }
            self.fed = true;
            return self.decoder.send_packet(&packet).map_err(|e| self.damaged(e));
        }
        self.decoder.send_eof().map_err(|e| self.damaged(e))
    }

    /// Decodes to the end and returns the number of frames, at least 1.
    pub(super) fn count(&mut self) -> Result<usize> {
        let mut frame = frame::Video::empty();
        while self.next(&mut frame)? {}
        match self.decoded {
            0 => Err(self.no_frames()),
            n => Ok(n),
        }
    }

    /// The frames that `options` choose.
    pub(super) fn indices(&self, options: &VideoOptions) -> Result<Vec<usize>> {
        (options.sampling)
            .indices(&self.info, options.fps, options.max_frames)
            .map_err(|what| Error::input(format!("{}: {what}", self.path.display())))
    }

    /// The frames at `indices`, ascending; `None` where the stream is whole but has fewer frames
    /// than it said.
    pub(super) fn at_indices(&mut self, indices: &[usize]) -> Result<Option<Frames>> {
        let mut raw = frame::Video::empty();
        let mut pictures = Pictures::new(indices.len());
        for (slot, &index) in indices.iter().enumerate() {
            while self.decoded <= index {
                if self.next(&mut raw)? {
                    continue;
                }
                if self.decoded == 0 {
                    return Err(self.no_frames());
                }
                return Ok(None);
            }
            pictures.put(slot, &raw).map_err(|e| self.damaged(e))?;
        }
        Ok(Some(pictures.frames))
    }

    /// Decodes from now on just what the frames at `indices` need; returns their times.
    pub(super) fn follow(&mut self, timeline: &Timeline, indices: &[usize]) -> Vec<i64> {
        self.plan = Some(timeline.plan(indices));
        indices.iter().map(|i| timeline.time(*i)).collect()
    }

    /// The frames with these times of presentation; `None` where one does not come, or a picture
    /// is damaged: what stands in its place depends on all that was decoded before.
    pub(super) fn at_times(&mut self, times: &[i64]) -> Result<Option<Frames>> {
        let mut slots: HashMap<i64, Vec<usize>> = HashMap::new();
        for (slot, time) in times.iter().enumerate() {
            slots.entry(*time).or_default().push(slot);
        }
        let mut raw = frame::Video::empty();
        let mut pictures = Pictures::new(times.len());
        while !slots.is_empty() && self.next(&mut raw)? {
            if is_damaged(&raw) {
                return Ok(None);
            }
            for slot in raw.pts().and_then(|time| slots.remove(&time)).unwrap_or_default() {
                pictures.put(slot, &raw).map_err(|e| self.damaged(e))?;
            }
        }
        Ok(slots.is_empty().then_some(pictures.frames))
    }

    /// A clip of this video.
    pub(super) fn clip(&self, frames: Frames, indices: Vec<usize>, options: &VideoOptions) -> Clip {
        // The picture's own size: a container may state another.
        let video = VideoInfo { width: frames.width, height: frames.height, ..self.info };
        let sample_fps = options.sampling.sample_fps(&video, indices.len());
        Clip { frames, indices, video, sample_fps, decoded: self.decoded }
    }

    fn no_frames(&self) -> Error {
        Error::input(format!("{}: has no frames", self.path.display()))
    }

    fn damaged(&self, reason: ffmpeg::Error) -> Error {
        let (path, n) = (self.path.display(), self.decoded);
        let reason = match reason {
            // Some decoders return a plain -1, which reads as EPERM.
            ffmpeg::Error::InvalidData | ffmpeg::Error::Other { errno: ffmpeg::error::EPERM } => {
                "the file is damaged".into()
            }
            ffmpeg::Error::InputChanged => "the frames change their size or format".into(),
            other => other.to_string(),
        };
        Error::input(format!("{path}: cannot be decoded after {n} frames: {reason}"))
            .help("download or encode the video again")
    }

    /// The error that the file ends after `n` frames.
    pub(super) fn cut_short(&self, n: usize) -> Error {
        let (path, all) = (self.path.display(), self.info.frames);
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
        return Err(
            Error::input(format!("{shown}: the file is empty")).help("download the video again")
        );
    }
    let url = path
        .to_str()
        .ok_or_else(|| Error::input(format!("{shown}: the file's name is not UTF-8")))?;
    // With the prefix, a colon in the name is not taken for a network protocol's.
    let input = format::input(&format!("file:{url}")).map_err(|e| match e {
        ffmpeg::Error::InvalidData | ffmpeg::Error::Eof => {
            Error::input(format!("{shown}: is not a video, or is cut short or damaged"))
                .help("download or encode the video again")
        }
        e => Error::input(format!("{shown}: cannot be read: {e}")),
    })?;
    let format = input.format();
    if format.name() == "image2" || format.name().ends_with("_pipe") {
        return Err(Error::input(format!("{shown}: is a picture, not a video"))
            .help("leave it out, or encode it as a video"));
    }
    Ok(input)
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
    if fps.or(duration_s).is_none() {
        let path = path.display();
        return Err(Error::input(format!("{path}: has neither a frame rate nor a duration")));
    }
    let mut info = VideoInfo {
        frames: 0,
        fps: fps.unwrap_or(0.0),
        duration_s: duration_s.unwrap_or(0.0),
        width: decoder.width() as usize,
        height: decoder.height() as usize,
        rotation: rotation(stream),
    };
    // What the container leaves out follows from the number of frames, once it is known.
    if frames > 0 {
        info.set_frames(frames);
    }
    Ok(info)
}

/// Whether an edit list hides the packet's picture.
fn is_discarded(packet: &Packet) -> bool {
    // SAFETY: the pointer is that of a live packet, and is only read. The bindings do not know this
    // flag.
    unsafe { (*packet.as_ptr()).flags & ffmpeg::ffi::AV_PKT_FLAG_DISCARD != 0 }
}

/// Whether something of the picture was lost.
fn is_damaged(picture: &frame::Video) -> bool {
    // SAFETY: the pointer is that of a live picture, and is only read. The bindings do not know
    // these flags.
    picture.is_corrupt() || unsafe { (*picture.as_ptr()).decode_error_flags } != 0
}

/// Degrees, clockwise, by which a player turns the pictures, to a multiple of 90.
///
/// The display matrix holds `[a, b, u, c, d, v, x, y, w]` in 16.16; `(a, b)` is where a row goes.
fn rotation(stream: &ffmpeg::Stream<'_>) -> usize {
    let matrix = stream.side_data().find(|data| data.kind() == side_data::Type::DisplayMatrix);
    let Some(matrix) = matrix else { return 0 };
    let (numbers, _) = matrix.data().as_chunks::<4>();
    let [a, b, ..] = *numbers else { return 0 };
    let [a, b] = [a, b].map(|number| f64::from(i32::from_ne_bytes(number)));
    (b.atan2(a).to_degrees() / 90.0).round().rem_euclid(4.0) as usize * 90
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

/// Frames while they are gathered.
struct Pictures {
    frames: Frames,
    converter: Option<Converter>,
}

impl Pictures {
    fn new(len: usize) -> Self {
        Self { frames: Frames { rgb: vec![], len, height: 0, width: 0 }, converter: None }
    }

    /// Puts a picture into its place; all must be of one size.
    fn put(&mut self, slot: usize, raw: &frame::Video) -> Result<(), ffmpeg::Error> {
        let converter = match &mut self.converter {
            Some(converter) => converter,
            none => {
                let (height, width) = (raw.height() as usize, raw.width() as usize);
                let rgb = vec![0; self.frames.len * height * width * 3];
                self.frames = Frames { rgb, height, width, ..self.frames };
                none.insert(Converter::new(raw)?)
            }
        };
        let size = self.frames.height * self.frames.width * 3;
        converter.write(raw, &mut self.frames.rgb[slot * size..(slot + 1) * size])
    }
}

/// Whether HEVC can be decoded from this packet on. The container's mark may be missing, so the
/// types of the NAL units are looked at: those from 16 to 23 are key pictures (ITU-T H.265, table
/// 7-1).
fn begins_hevc(packet: &Packet) -> bool {
    let is_key_picture =
        |unit: &[u8]| unit.first().is_some_and(|b| (16..24).contains(&(b >> 1 & 63)));
    let mut rest = packet.data().unwrap_or_default();
    if packet.is_key() || rest.starts_with(&[0, 0, 0, 1]) {
        // Behind start codes the marks are made by ffmpeg, which has looked there.
        return packet.is_key();
    }
    // In MP4 and Matroska each unit stands behind its length.
    while let Some((length, unit)) = rest.split_first_chunk() {
        if is_key_picture(unit) {
            return true;
        }
        rest = unit.get(u32::from_be_bytes(*length) as usize..).unwrap_or_default();
    }
    false
}
