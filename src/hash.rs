//! SHA-256 of files, so that a run says what it was made from.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Ends of the names of files that make a checkpoint what it is.
pub const CHECKPOINT: &[&str] = &[".safetensors", ".json", ".txt", ".jinja"];

/// One hash over the files in `dir` whose names end in one of `endings`: names and contents, in
/// the names' order.
///
/// # Errors
/// Where a file cannot be read.
pub fn files(dir: &Path, endings: &[&str]) -> Result<String> {
    let entries = std::fs::read_dir(dir).map_err(|e| unreadable(dir, &e))?;
    let wanted = |path: &PathBuf| {
        path.is_file() && endings.iter().any(|end| path.to_string_lossy().ends_with(end))
    };
    let mut paths: Vec<PathBuf> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(wanted).collect();
    paths.sort();
    let mut hash = Sha256::new();
    for path in paths {
        hash.update(path.file_name().unwrap_or_default().to_string_lossy().as_bytes());
        update(&mut hash, &path)?;
    }
    Ok(hex(&hash.finalize()))
}

/// The hash of one file's content.
///
/// # Errors
/// Where it cannot be read.
pub fn file(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    update(&mut hash, path)?;
    Ok(hex(&hash.finalize()))
}

/// The hash of a text.
pub fn text(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn update(hash: &mut Sha256, path: &Path) -> Result<()> {
    let mut file = File::open(path).map_err(|e| unreadable(path, &e))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(|e| unreadable(path, &e))? {
            0 => return Ok(()),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::input(format!("{}: cannot be read: {error}", path.display()))
}
