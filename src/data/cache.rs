//! What a run keeps on disk for the next one: sampled frames and vision features.
//!
//! An entry is a file named by a hash of all that it was made from, so that a stale one is never
//! found. Its first line holds the SHA-256 of the key and what follows in the line: the content's
//! SHA-256 and length, and a description in JSON. The content follows. Entries appear by being renamed, so that several
//! runs can share a folder; a damaged one is removed and counts as absent. Beyond the limit those
//! that were not used for the longest time go.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::files::folder_reason;
use crate::hash::{self, hex};

/// Ending of an entry's name.
const ENDING: &str = "entry";
/// Ending of the name under which an entry is written.
const PARTIAL: &str = "partial";
/// What a killed run was writing is removed after this time.
const ABANDONED: Duration = Duration::from_hours(24);
/// Entries that this process has begun to write.
static BEGUN: AtomicUsize = AtomicUsize::new(0);
/// Longest first line that is taken for one.
const LONGEST_LINE: u64 = 1 << 16;

/// A folder of entries under a size limit.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    limit: u64,
    state: Mutex<State>,
    damaged: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of all entries when they were last counted; none before the first time.
    counted: Option<u64>,
    /// Bytes written since.
    added: u64,
    /// Why an entry could not be written.
    trouble: Option<String>,
}

/// The name of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(String);

impl Key {
    /// The key of a `kind` of entry that is made from just `origin`, told by its debug form.
    pub fn new(kind: &str, origin: &impl Debug) -> Self {
        Self(format!("{kind}-{}", hash::text(&format!("{origin:?}"))))
    }

    /// The SHA-256 of an entry's first line under this key.
    fn sign(&self, line: &str) -> String {
        hash::text(&format!("{} {line}", self.0))
    }
}

impl Cache {
    /// The cache in `dir`, which need not exist yet, of at most `limit` bytes; 0 switches it off.
    pub fn new(dir: &Path, limit: u64) -> Self {
        Self { dir: dir.to_owned(), limit, state: Mutex::default(), damaged: AtomicUsize::new(0) }
    }

    /// Whether entries are kept at all.
    pub fn is_on(&self) -> bool {
        self.limit > 0
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Most bytes that it may hold.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Entries that were found damaged, and removed.
    pub fn damaged(&self) -> usize {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Why entries could not be written, where that happened.
    pub fn trouble(&self) -> Option<String> {
        self.state.lock().ok().and_then(|state| state.trouble.clone())
    }

    /// An entry's description, without reading its content; the entry counts as used.
    pub fn about<A: DeserializeOwned>(&self, key: &Key) -> Option<A> {
        self.open(key, |entry| entry.about())
    }

    /// An entry's description and content, checked; the entry counts as used.
    pub fn get<A: DeserializeOwned>(&self, key: &Key) -> Option<(A, Vec<u8>)> {
        self.open(key, |mut entry| {
            let about = entry.about()?;
            let mut content = Vec::new();
            entry.rest.read_to_end(&mut content).ok()?;
            (sha256(&content) == entry.sha256).then_some((about, content))
        })
    }

    /// Keeps `content`. Where that cannot be, [`trouble`](Self::trouble) tells why, and the entry is
    /// made anew when it is needed.
    pub fn put(&self, key: &Key, about: &impl Serialize, content: &[u8]) {
        if content.len() as u64 > self.limit || !self.is_on() {
            return;
        }
        let written = self.write(key, about, content).and_then(|bytes| self.make_room(bytes));
        if let (Err(e), Ok(mut state)) = (written, self.state.lock()) {
            state.trouble.get_or_insert_with(|| folder_reason(&e));
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(&key.0).with_added_extension(ENDING)
    }

    /// Reads an entry; removes it where `read` finds it damaged.
    fn open<T>(&self, key: &Key, read: impl FnOnce(Opened) -> Option<T>) -> Option<T> {
        if !self.is_on() {
            return None;
        }
        let path = self.path(key);
        let file = File::open(&path).ok()?;
        // The time of the last use. A folder that may only be read is fine.
        let _ = file.set_modified(SystemTime::now());
        let found = Opened::new(key, file).and_then(read);
        if found.is_none() {
            self.damaged.fetch_add(1, Ordering::Relaxed);
            let _ = fs::remove_file(&path);
        }
        found
    }

    fn write(&self, key: &Key, about: &impl Serialize, content: &[u8]) -> io::Result<u64> {
        fs::create_dir_all(&self.dir)?;
        let about = serde_json::to_string(about)?;
        let header = format!("{} {} {about}", sha256(content), content.len());
        let line = format!("{} {header}\n", key.sign(&header));
        // Two runs that make the same entry write to names of their own.
        let own = format!("{}-{}", std::process::id(), BEGUN.fetch_add(1, Ordering::Relaxed));
        let partial = self.path(key).with_added_extension(own).with_added_extension(PARTIAL);
        let write = || {
            let mut file = File::create(&partial)?;
            file.write_all(line.as_bytes())?;
            file.write_all(content)?;
            fs::rename(&partial, self.path(key))
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&partial);
        })?;
        Ok((line.len() + content.len()) as u64)
    }

    /// Counts `bytes` as added; removes old entries where that went over the limit. Other runs
    /// write too, so the folder is counted anew every sixteenth of the limit.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let Ok(mut state) = self.state.lock() else { return Ok(()) };
        state.added += bytes;
        let known = state.counted.map(|counted| counted + state.added);
        if known.is_some_and(|n| n <= self.limit) && state.added <= self.limit / 16 {
            return Ok(());
        }
        state.counted = Some(self.sweep()?);
        state.added = 0;
        Ok(())
    }

    /// Removes what was not used for the longest time, down to nine tenths of the limit where it is
    /// exceeded, and what killed runs left half written; returns the bytes that remain.
    fn sweep(&self) -> io::Result<u64> {
        let now = SystemTime::now();
        let (mut entries, mut held) = (Vec::new(), 0);
        for file in fs::read_dir(&self.dir)? {
            let file = file?;
            let path = file.path();
            // Another run may have removed it meanwhile.
            let Ok(metadata) = file.metadata() else { continue };
            let used = metadata.modified()?;
            let ending = path.extension().unwrap_or_default();
            let abandoned = now.duration_since(used).is_ok_and(|age| age > ABANDONED);
            if ending == ENDING {
                held += metadata.len();
                entries.push((used, metadata.len(), path));
            } else if ending == PARTIAL && abandoned {
                let _ = fs::remove_file(path);
            }
        }
        if held > self.limit {
            entries.sort();
            for (_, bytes, path) in entries {
                if held <= self.limit / 10 * 9 {
                    break;
                }
                let _ = fs::remove_file(path);
                held -= bytes;
            }
        }
        Ok(held)
    }
}

/// An entry of which the first line has been read and checked.
struct Opened {
    /// That of the content.
    sha256: String,
    bytes: u64,
    about: String,
    rest: BufReader<File>,
    /// Bytes after the first line.
    left: u64,
}

impl Opened {
    fn new(key: &Key, file: File) -> Option<Self> {
        let all = file.metadata().ok()?.len();
        let mut rest = BufReader::new(file);
        let mut line = String::new();
        let read = (&mut rest).take(LONGEST_LINE).read_line(&mut line).ok()?;
        let (own, header) = line.strip_suffix('\n')?.split_once(' ')?;
        if key.sign(header) != own {
            return None;
        }
        let mut parts = header.splitn(3, ' ');
        let sha256 = parts.next()?.to_owned();
        let bytes = parts.next()?.parse().ok()?;
        let about = parts.next()?.to_owned();
        Some(Self { sha256, bytes, about, rest, left: all - read as u64 })
    }

    /// The description of an entry that has its whole length.
    fn about<A: DeserializeOwned>(&self) -> Option<A> {
        if self.left != self.bytes {
            return None;
        }
        serde_json::from_str(&self.about).ok()
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
