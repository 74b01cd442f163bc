//! Where a recipe's model and data are: a folder, or a repository on the hub, which is downloaded
//! first.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::data::entry::Entry;
use crate::data::hub::{Hub, RemoteFile, Repo, Snapshot};
use crate::data::medium::Medium;
use crate::error::{Error, Result};
use crate::hash;
use crate::number::{size, thousands};
use crate::report::terminal::Terminal;

const A_CHECKPOINT: &str = "model.path is a checkpoint folder in hub layout";
/// What questions stand in.
const QUESTIONS: [&str; 2] = [".json", ".jsonl"];

/// A model or data set that is at hand.
pub struct Place {
    /// Its folder.
    pub dir: PathBuf,
    /// What the recipe names it, with the commit where it comes from the hub.
    pub path: String,
    snapshot: Option<Snapshot>,
}

/// The checkpoint at `path`; from the hub: weights, configuration and tokenizer at its top.
///
/// # Errors
/// Where there is none, or it cannot be downloaded.
pub fn checkpoint(path: &str, terminal: &Terminal) -> Result<Place> {
    locate(path, "model.path", A_CHECKPOINT, at_top, terminal)
}

/// As [`checkpoint`], but without the weights.
///
/// # Errors
/// As [`checkpoint`].
pub fn checkpoint_without_weights(path: &str, terminal: &Terminal) -> Result<Place> {
    let small = |file: &str| at_top(file) && !file.ends_with(".safetensors");
    locate(path, "model.path", A_CHECKPOINT, small, terminal)
}

/// The data set at `path`; from the hub: its questions. What they show follows with
/// [`media`](Place::media).
///
/// # Errors
/// Where there is none, or it cannot be downloaded.
pub fn questions(path: &str, terminal: &Terminal) -> Result<Place> {
    let listed = |file: &str| QUESTIONS.iter().any(|end| file.ends_with(end));
    let what = "data.path is a folder with questions, videos and images";
    let place = locate(path, "data.path", what, listed, terminal)?;
    if let Some(snapshot) = &place.snapshot
        && snapshot.has("dataset_info.json")
    {
        // Conversations name their media in ways that only reading them tells.
        download(snapshot, &snapshot.missing(|_| true), terminal)?;
    }
    Ok(place)
}

/// What a checkpoint is called elsewhere: `ORG/NAME` for one from the hub, else its folder.
pub fn name(path: &str) -> String {
    match Repo::parse(path) {
        Some(Ok(repo)) => repo.id,
        _ => path.to_owned(),
    }
}

impl Place {
    /// Downloads the videos and images that `entries` need, where the data set comes from the hub.
    ///
    /// # Errors
    /// Where one cannot be downloaded.
    pub fn media<'a>(
        &self,
        entries: impl Iterator<Item = &'a Entry>,
        terminal: &Terminal,
    ) -> Result<()> {
        let Some(snapshot) = &self.snapshot else { return Ok(()) };
        let media: BTreeSet<String> = entries
            .flat_map(|entry| &entry.media)
            .flat_map(Medium::files)
            .map(|file| file.to_string_lossy().into_owned())
            .collect();
        download(snapshot, &snapshot.missing(|file| media.contains(file)), terminal)
    }
}

/// Whether a repository's file is part of the checkpoint at its top.
fn at_top(file: &str) -> bool {
    !file.contains('/') && hash::CHECKPOINT.iter().any(|end| file.ends_with(end))
}

/// What is at `path`, the value of the recipe's `key`; of a repository the files that are `wanted`.
fn locate(
    path: &str,
    key: &'static str,
    what: &str,
    wanted: impl Fn(&str) -> bool,
    terminal: &Terminal,
) -> Result<Place> {
    let Some(repo) = Repo::parse(path) else {
        let dir = PathBuf::from(path);
        if !dir.is_dir() {
            return Err(Error::input(format!("{path}: no such folder")).of_key(key).help(format!(
                "{what}, relative to where you start, or a repository on the hub, \
                 hf://ORG/NAME or hf://datasets/ORG/NAME"
            )));
        }
        return Ok(Place { dir, path: path.to_owned(), snapshot: None });
    };
    let repo = repo.map_err(|what| Error::input(what).of_key(key))?;
    let snapshot = Hub::from_env()?.snapshot(&repo).map_err(|e| e.of_key(key))?;
    download(&snapshot, &snapshot.missing(wanted), terminal)?;
    Ok(Place { dir: snapshot.dir(), path: snapshot.pinned(), snapshot: Some(snapshot) })
}

fn download(snapshot: &Snapshot, files: &[RemoteFile], terminal: &Terminal) -> Result<()> {
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    if !files.is_empty() {
        terminal.line(&format!(
            "hub    {}: downloading {} files, {}",
            snapshot.pinned(),
            thousands(files.len()),
            size(bytes)
        ));
    }
    let bar = terminal.bytes_bar("download", bytes);
    let outcome = snapshot.download(files, |received| bar.set(received as usize));
    bar.finish();
    outcome
}
