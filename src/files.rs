//! Reading files, with errors that name the place; and writing them so that a crash leaves the old
//! content or the new, never half of it.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Writes `path` through a temporary name beside it; where it is a link, what that leads to. What
/// is no regular file, as a pipe, is written as it is, and `/dev/stdout` is whatever stands behind
/// it.
///
/// # Errors
/// Where the disk refuses; `path` then holds what it held before.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    write_with(path, |file| file.write_all(content.as_ref()).map_err(|e| failed(path, &e)))
}

/// Writes `path` as [`write`] does, piece by piece.
///
/// # Errors
/// What `content` says, or where the disk refuses; `path` then holds what it held before.
pub fn write_with(path: &Path, content: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let is_system = ["/dev", "/proc"].iter().any(|system| path.starts_with(system));
    if is_system || path.metadata().is_ok_and(|there| !there.is_file()) {
        let file = File::options().append(true).open(path);
        return content(&mut file.map_err(|e| failed(path, &e))?);
    }
    let target = target(path);
    let temporary = target.with_added_extension("partial");
    let mut file = create_alone(&temporary).map_err(|e| failed(path, &e))?;
    let written = content(&mut file).and_then(|()| {
        let whole = file.sync_all().and_then(|()| std::fs::rename(&temporary, &target));
        whole.map_err(|e| failed(path, &e))
    });
    if written.is_err() {
        // What is half written would only take the room that the next try needs.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// What `path` leads to, whether that is there or not yet.
pub fn target(path: &Path) -> PathBuf {
    let pending = || Some(path.parent()?.join(path.read_link().ok()?));
    path.canonicalize().ok().or_else(pending).unwrap_or_else(|| path.to_owned())
}

/// Creates the file `path`, empty, for one writer at a time: another one waits until it has been
/// renamed.
fn create_alone(path: &Path) -> std::io::Result<File> {
    loop {
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        // Some file systems know no locks.
        let _ = file.lock();
        let own = file.metadata()?;
        if path.metadata().is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino())) {
            file.set_len(0)?;
            return Ok(file);
        }
    }
}

/// Creates a folder and what is above it.
///
/// # Errors
/// Where the disk refuses.
pub fn create_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|e| failed(path, &e))
}

/// Keeps other processes of this program out of the folder `dir`, for as long as the result lives.
///
/// # Errors
/// Where another one is at work in it.
pub fn lock(dir: &Path) -> Result<File> {
    let folder = File::open(dir).map_err(|e| failed(dir, &e))?;
    match folder.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(Error::input(format!("{}: another process is at work in it", dir.display()))
                .help("wait for it, or give another folder"))
        }
        // Some file systems know no locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(folder),
    }
}

/// Writes the folder `to`, or what that leads to, whole: `content` fills an empty one beside it,
/// which then takes its place. Others are kept out of it as [`lock`] does; what a killed process left
/// there goes.
///
/// # Errors
/// What `content` says, where another process is at work on the same folder, or the disk refuses;
/// `to` is then as it was.
pub fn write_dir<T>(to: &Path, content: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let to = target(to);
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let folder = to.with_file_name(format!(".{name}.partial"));
    if folder.exists() {
        let _lock = lock(&folder)?;
        remove_dir(&folder)?;
    }
    create_dir(&folder)?;
    let _lock = lock(&folder)?;
    let old = to.with_added_extension("old.partial");
    let written = recover(&old, &to).and_then(|()| content(&folder)).and_then(|written| {
        replace_dir(&folder, &to, &old)?;
        Ok(written)
    });
    if written.is_err() {
        // What is half written would only take the room that the next try needs.
        let _ = remove_dir(&folder);
    }
    written
}

/// Checks that `dir` can be written in, or made; leaves nothing there.
///
/// # Errors
/// Where it or what is above it is no folder, or may not be written in.
pub fn check_writable(dir: &Path) -> Result<()> {
    let there = dir.ancestors().find(|above| above.exists()).unwrap_or(Path::new("."));
    let trial = there.join(format!(".{}.partial", std::process::id()));
    let made = std::fs::create_dir(&trial).and_then(|()| std::fs::remove_dir(&trial));
    made.map_err(|e| {
        let Some(why) = unwritable(&e) else { return failed(there, &e) };
        Error::input(format!("{}: {why}", there.display())).help("give another folder")
    })
}

/// Why nothing can be written into what should be a folder, where that is the reason.
fn unwritable(error: &std::io::Error) -> Option<&'static str> {
    match error.kind() {
        std::io::ErrorKind::NotADirectory => Some("not a folder"),
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            Some("may not be written in")
        }
        _ => None,
    }
}

/// Why a folder could not be made or written in, in plain words.
pub fn folder_reason(error: &std::io::Error) -> String {
    // A file is where the folder would be made.
    let taken = error.kind() == std::io::ErrorKind::AlreadyExists;
    let why = if taken { Some("not a folder") } else { unwritable(error) };
    why.map_or_else(|| error.to_string(), str::to_owned)
}

/// Checks that nothing would be overwritten in `dir`.
///
/// # Errors
/// Where it is anything but a free path or an empty folder.
pub fn check_free(dir: &Path) -> Result<()> {
    let refused = |what: &str| {
        Err(Error::input(format!("{}: {what}", dir.display()))
            .help("choose another folder, or remove this one first"))
    };
    match std::fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(false) => Ok(()),
        Ok(true) => refused("the folder is not empty"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => refused("not a folder"),
        Err(e) => refused(&io_reason(&e)),
    }
}

/// Puts back what a process that was killed in [`replace_dir`] left of `to` as `old`.
///
/// # Errors
/// Where the disk refuses, or the name is too long.
fn recover(old: &Path, to: &Path) -> Result<()> {
    if !to.exists() {
        let _ = std::fs::rename(old, to);
    }
    remove_dir(old)
}

/// Puts the finished folder `from` in the place of `to`, whose content goes last. A process that is
/// killed in between leaves it as `old`, where the next one finds it.
///
/// # Errors
/// Where the disk refuses; `to` is then as it was.
fn replace_dir(from: &Path, to: &Path, old: &Path) -> Result<()> {
    match std::fs::rename(to, old) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(to, &e)),
        _ => {}
    }
    std::fs::rename(from, to).map_err(|e| {
        let _ = std::fs::rename(old, to);
        failed(to, &e)
    })?;
    // What cannot be removed now may go the next time.
    let _ = remove_dir(old);
    Ok(())
}

/// The path from the root on, where the working directory is known.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// A JSON file's content.
///
/// # Errors
/// Where it cannot be read or holds something else, with the place.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&read_text(path)?).map_err(|e| json_error(path, "", &e))
}

/// A file's text.
///
/// # Errors
/// Where it cannot be read.
pub fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|e| Error::input(format!("{}: {}", path.display(), io_reason(&e))))
}

/// Writes `path` as JSON for people to read, as [`write`] does.
///
/// # Errors
/// Where the disk refuses.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value).map_err(|e| Error::run(e.to_string()))?;
    write(path, json + "\n")
}

/// One JSON object a line.
///
/// # Errors
/// Where one cannot be written as JSON, which no input causes.
pub fn json_lines<T: Serialize>(items: &[T]) -> Result<String> {
    let lines = items.iter().map(|item| Ok(serde_json::to_string(item)? + "\n"));
    lines.collect::<Result<_, serde_json::Error>>().map_err(|e| Error::run(e.to_string()))
}

/// The error for a file whose JSON is malformed or, as `kind` says, not what it should be.
pub fn json_error(path: &Path, kind: &str, error: &serde_json::Error) -> Error {
    let ((line, column), what) = (json_place(error), json_reason(error));
    Error::input(format!("{}:{line}:{column}: {kind}{what}", path.display()))
}

/// Line and column of what is wrong with JSON, both from 1: where nothing of a line was read yet,
/// `serde_json` counts from 0.
pub fn json_place(error: &serde_json::Error) -> (usize, usize) {
    (error.line().max(1), error.column().max(1))
}

/// What is wrong with JSON, without the position that `serde_json` puts behind it: beside the
/// file's it is said twice, and of a file in lines it is another.
pub fn json_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&position).unwrap_or(&text).to_owned()
}

/// Why a file could not be read, in plain words.
pub fn io_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".into(),
        std::io::ErrorKind::PermissionDenied => "not readable: permission denied".into(),
        std::io::ErrorKind::IsADirectory => "is a folder".into(),
        _ => error.to_string(),
    }
}

/// The error for a file that could not be written.
pub fn failed(path: &Path, error: &std::io::Error) -> Error {
    use std::io::ErrorKind::{FileTooLarge, InvalidFilename, QuotaExceeded, StorageFull};
    // ENFILE and EMFILE: they have no kind.
    let too_many_open = matches!(error.raw_os_error(), Some(23 | 24));
    Error::run(format!("{}: cannot be written: {error}", path.display())).help(match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => {
            "make room on the disk (or lift its quota or the limit on file sizes), then start the \
             same command again; a run goes on where it stopped"
        }
        InvalidFilename => "give a shorter name",
        _ if too_many_open => {
            "raise the limit on open files (ulimit -n), then start the same command again"
        }
        _ => "check the folder and its permissions, then start the same command again",
    })
}

/// Removes a folder, where there is one.
///
/// # Errors
/// Where the disk refuses.
pub fn remove_dir(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(path, &e)),
        _ => Ok(()),
    }
}
