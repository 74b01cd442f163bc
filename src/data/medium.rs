//! What a question shows: videos and images.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::hash;
use crate::number::thousands;

/// As what something is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// One picture, without a clock.
    Image,
    /// Frames in time.
    Video,
}

/// What a question shows, its files relative to the data folder.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Medium {
    /// An image.
    Image(PathBuf),
    /// A video in a file.
    Video(PathBuf),
    /// A video as a list of images, its frames in order: at least one, and all are shown.
    Frames(Vec<PathBuf>),
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
        Self::Video(path.as_ref().to_owned())
    }

    /// The image at `path`.
    pub fn image(path: impl AsRef<Path>) -> Self {
        Self::Image(path.as_ref().to_owned())
    }

    /// Whether it is a video or an image.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Image(_) => Kind::Image,
            Self::Video(_) | Self::Frames(_) => Kind::Video,
        }
    }

    /// Whether it is a video.
    pub fn is_video(&self) -> bool {
        self.kind() == Kind::Video
    }

    /// Its files.
    pub fn files(&self) -> &[PathBuf] {
        match self {
            Self::Image(file) | Self::Video(file) => std::slice::from_ref(file),
            Self::Frames(files) => files,
        }
    }

    /// Its files' names.
    pub fn names(&self) -> impl Iterator<Item = &OsStr> {
        self.files().iter().map(|file| file.as_os_str())
    }

    /// Its files, to give them other names.
    pub fn files_mut(&mut self) -> &mut [PathBuf] {
        match self {
            Self::Image(file) | Self::Video(file) => std::slice::from_mut(file),
            Self::Frames(files) => files,
        }
    }
}

/// What each of `media` is: `video` or `image`, or `file` where there are both.
pub fn name<'a>(media: impl Iterator<Item = &'a Medium>) -> &'static str {
    let kinds: BTreeSet<Kind> = media.map(Medium::kind).collect();
    match kinds.into_iter().collect::<Vec<_>>()[..] {
        [] => Kind::Video.name(),
        [kind] => kind.name(),
        _ => "file",
    }
}

/// The file's name; of a list the first one's and the last one's, how many there are, and the
/// beginning of the SHA-256 of all names: `bear/00000.jpg … 00081.jpg (82, 1f6c)`.
impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self::Frames(files) = self else { return self.files()[0].display().fmt(f) };
        let [first, .., last] = &files[..] else { return write!(f, "{} (1)", files[0].display()) };
        let folder = first.parent().unwrap_or(Path::new(""));
        let last = last.strip_prefix(folder).unwrap_or(last);
        let (n, all) = (files.len(), hash::text(&format!("{files:?}")));
        write!(f, "{} … {} ({n}, {})", first.display(), last.display(), &all[..4])
    }
}

/// How many different ones `media` are: `2,000 videos`, `12 videos and 3 images`.
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
