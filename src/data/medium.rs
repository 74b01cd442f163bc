//! The files that a question shows: videos and images.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::number::thousands;

/// What a file is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// One picture, without a clock.
    Image,
    /// Frames in time.
    Video,
}

/// A file that a question shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Medium {
    /// Relative to the data folder.
    pub path: PathBuf,
    /// Whether it is a video or an image.
    pub kind: Kind,
}

impl Kind {
    /// `image`, `video`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Video => "video",
        }
    }
}

impl Medium {
    /// The video at `path`.
    pub fn video(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_owned(), kind: Kind::Video }
    }

    /// The image at `path`.
    pub fn image(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_owned(), kind: Kind::Image }
    }

    /// Whether it is a video.
    pub fn is_video(&self) -> bool {
        self.kind == Kind::Video
    }
}

/// What each of `media` is: `video` or `image`, or `file` where there are both.
pub fn name<'a>(media: impl Iterator<Item = &'a Medium>) -> &'static str {
    let kinds: BTreeSet<Kind> = media.map(|medium| medium.kind).collect();
    match kinds.into_iter().collect::<Vec<_>>()[..] {
        [] => Kind::Video.name(),
        [kind] => kind.name(),
        _ => "file",
    }
}

/// How many different files `media` are: `2,000 videos`, `12 videos and 3 images`.
pub fn count<'a>(media: impl Iterator<Item = &'a Medium>) -> String {
    let (videos, images): (BTreeSet<_>, BTreeSet<_>) = media.partition(|medium| medium.is_video());
    match (videos.len(), images.len()) {
        (videos, 0) => format!("{} videos", thousands(videos)),
        (0, images) => format!("{} images", thousands(images)),
        (videos, images) => {
            format!("{} videos and {} images", thousands(videos), thousands(images))
        }
    }
}
