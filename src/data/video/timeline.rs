//! When each packet is shown, and thereby what has to be decoded for a frame.
//!
//! The whole file is read once without decoding. Sorted by time, packet `i` holds frame `i`, as
//! long as each packet has a time of its own and none is hidden. A frame then needs the packets
//! from the last key picture that is not shown after it, up to its own; in between, pictures that
//! none refers to are left out. What is decoded is found again by its time: should a frame not
//! come, or the file be of another kind, all of it is decoded instead.

use std::collections::HashSet;

use video_rs::ffmpeg::codec::Id;

use super::stream::Stream;
use crate::error::Result;

/// Codecs in which a key picture is one to begin with, and that say what others refer to.
const KNOWN: [Id; 9] = [
    Id::H264,
    Id::HEVC,
    Id::VP8,
    Id::VP9,
    Id::AV1,
    Id::MPEG4,
    Id::MPEG1VIDEO,
    Id::MPEG2VIDEO,
    Id::MJPEG,
];

/// The packets of a stream, in the order of the file.
pub(super) struct Timeline {
    packets: Vec<Listed>,
    /// Positions in `packets`, in the order of presentation.
    shown: Vec<usize>,
}

struct Listed {
    time: i64,
    is_key: bool,
}

/// What is needed of each packet.
pub(super) struct Plan(Vec<Need>);

/// What is needed of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// It may be left out.
    Nothing,
    /// Others may refer to its picture.
    References,
    /// Its picture is wanted.
    Picture,
}

impl Timeline {
    /// Reads all packets; none where they do not tell which of them holds which frame.
    ///
    /// # Errors
    /// A file that is cut short or damaged.
    pub(super) fn read(mut stream: Stream<'_>) -> Result<Option<Self>> {
        let (mut packets, mut times) = (Vec::new(), HashSet::new());
        let mut plain = KNOWN.contains(&stream.codec());
        while let Some(packet) = stream.packet()? {
            match packet.pts() {
                Some(time) if times.insert(time) && !stream.hides(&packet) => {
                    packets.push(Listed { time, is_key: packet.is_key() });
                }
                _ => plain = false,
            }
        }
        let counted = stream.info.frames;
        let starts = packets.first().is_some_and(|first| first.is_key);
        // Pictures are reordered and the times are not: these are then the times of decoding.
        let misdated = stream.reorders() && packets.is_sorted_by_key(|packet| packet.time);
        if !plain || !starts || misdated || (counted > 0 && counted != packets.len()) {
            return Ok(None);
        }
        let mut shown: Vec<usize> = (0..packets.len()).collect();
        shown.sort_by_key(|i| packets[*i].time);
        Ok(Some(Self { packets, shown }))
    }

    /// Number of frames.
    pub(super) fn len(&self) -> usize {
        self.packets.len()
    }

    /// When frame `i` is shown, in the stream's own unit.
    pub(super) fn time(&self, i: usize) -> i64 {
        self.packets[self.shown[i]].time
    }

    /// What has to be decoded for the frames at `indices`.
    pub(super) fn plan(&self, indices: &[usize]) -> Plan {
        let mut needs = vec![Need::Nothing; self.packets.len()];
        for &i in indices {
            let at = self.shown[i];
            let begins = |p: &Listed| p.is_key && p.time <= self.packets[at].time;
            let first = self.packets[..=at].iter().rposition(begins).unwrap_or(0);
            for need in &mut needs[first..at] {
                if *need == Need::Nothing {
                    *need = Need::References;
                }
            }
            needs[at] = Need::Picture;
        }
        while needs.last() == Some(&Need::Nothing) {
            needs.pop();
        }
        Plan(needs)
    }
}

impl Plan {
    /// Whether a packet behind the first `n` is needed.
    pub(super) fn goes_on(&self, n: usize) -> bool {
        n < self.0.len()
    }

    /// What is needed of packet `i`.
    pub(super) fn need(&self, i: usize) -> Need {
        self.0.get(i).copied().unwrap_or(Need::Nothing)
    }
}
