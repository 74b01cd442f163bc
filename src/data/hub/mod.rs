//! Repositories on the Hugging Face hub: `hf://ORG/NAME[@REV]` is a model, `hf://datasets/ORG/NAME[@REV]`
//! a data set.
//!
//! Files go into the hub's own cache, shared with Python's `huggingface_hub`: contents under
//! `blobs/`, named by their hash, and `snapshots/COMMIT/` with links to them. A download that is cut
//! goes on where it stopped; its size, and the SHA-256 of what the hub keeps outside of git, are
//! checked before it counts as there.
//!
//! hf-hub gives the cache's layout. The transfer is our own on ureq, which hf-hub 0.5 uses too: that
//! sends the token on to the storage host, cannot finish a file that was complete when it was
//! stopped, lists no sizes and has no offline mode; 1.0 does not resume.

mod client;

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use hf_hub::{Repo as Layout, RepoType};
use regex::{Captures, Regex};

use self::client::Client;
use crate::error::{Error, Result};
use crate::parallel;

/// Files that are downloaded at once.
const AT_ONCE: usize = 4;
/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A checkpoint.
    Model,
    /// Questions and videos.
    Dataset,
}

/// A repository, as a recipe names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repo {
    /// What it holds.
    pub kind: Kind,
    /// `ORG/NAME`.
    pub id: String,
    /// Branch, tag or commit; `main` where it is not said.
    pub revision: Option<String>,
}

impl Repo {
    /// The repository that `path` names; none where it does not start with `hf://`.
    ///
    /// # Errors
    /// What is wrong with its form.
    pub fn parse(path: &str) -> Option<Result<Self, String>> {
        let rest = path.strip_prefix("hf://")?;
        let (kind, rest) = match rest.strip_prefix("datasets/") {
            Some(rest) => (Kind::Dataset, rest),
            None => (Kind::Model, rest),
        };
        let (id, revision) = match rest.split_once('@') {
            Some((id, revision)) => (id, Some(revision.to_owned())),
            None => (rest, None),
        };
        let word = |part: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !part.is_empty() && part.chars().all(known) && !part.starts_with('.')
        };
        let parts: Vec<&str> = id.split('/').collect();
        Some(if parts.len() != 2 || !parts.iter().all(|part| word(part)) {
            Err(format!("{path}: `{id}` is not of the form ORG/NAME"))
        } else if revision
            .as_deref()
            .is_some_and(|r| r.is_empty() || r.contains(char::is_whitespace))
        {
            Err(format!("{path}: nothing that can be a branch, tag or commit stands behind `@`"))
        } else {
            Ok(Self { kind, id: id.to_owned(), revision })
        })
    }

    /// The path that names just `commit` of this repository.
    pub fn pinned(&self, commit: &str) -> String {
        format!("hf://{}{}@{commit}", self.prefix(), self.id)
    }

    /// Whether `pinned` names a commit of this repository, and this one leaves open which.
    pub fn admits(&self, pinned: &Self) -> bool {
        let commit = |repo: &Self| repo.revision.as_deref().is_some_and(is_commit);
        self.kind == pinned.kind && self.id == pinned.id && !commit(self) && commit(pinned)
    }

    /// What stands before `ORG/NAME` in paths and in addresses of files.
    fn prefix(&self) -> &'static str {
        match self.kind {
            Kind::Model => "",
            Kind::Dataset => "datasets/",
        }
    }

    fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    fn layout(&self, revision: &str) -> Layout {
        let kind = match self.kind {
            Kind::Model => RepoType::Model,
            Kind::Dataset => RepoType::Dataset,
        };
        Layout::with_revision(self.id.clone(), kind, revision.to_owned())
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.chars().all(|c| c.is_ascii_hexdigit())
}

/// Where the hub is and how it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// Its address, without a slash at the end.
    pub endpoint: String,
    /// The cache's folder, `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// What lets into gated and private repositories.
    pub token: Option<String>,
    /// Whether only the cache is used.
    pub offline: bool,
}

impl Hub {
    /// The hub as its users set it up: `HF_ENDPOINT`; `HF_HUB_CACHE` (once `HUGGINGFACE_HUB_CACHE`)
    /// or `HF_HOME`; `HF_TOKEN`, or what `hf auth login` has stored; `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// Where there is neither a home folder nor one of these.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// As [`from_env`](Self::from_env), with the environment given.
    ///
    /// # Errors
    /// As that.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let path = |name: &str| get(name).map(|path| expanded(&path, &get));
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|dir| dir.join("huggingface")))
            .or_else(|| path("HOME").map(|dir| dir.join(".cache/huggingface")))
            .ok_or_else(|| {
                Error::input("there is no place for what comes from the hub")
                    .help("set HF_HOME to a folder")
            })?;
        let stored = || {
            let path = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
            fs::read_to_string(path).ok()
        };
        let token = get("HF_TOKEN").or_else(stored).map(|token| token.trim().to_owned());
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let yes =
            |value: String| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: cache.unwrap_or_else(|| home.join("hub")),
            token: token.filter(|token| !token.is_empty()),
            offline: get("HF_HUB_OFFLINE").is_some_and(yes),
        })
    }

    /// The files of `repo` at its revision. Offline: whatever the cache has.
    ///
    /// # Errors
    /// Where there is no such repository or revision, it may not be read, the hub cannot be
    /// reached, or, offline, the cache has nothing of it.
    pub fn snapshot(&self, repo: &Repo) -> Result<Snapshot> {
        let client = Client::new(self.clone(), repo.clone());
        if self.offline {
            return client.cached();
        }
        let commit = client.commit()?;
        let files = client.list(&commit)?;
        Ok(Snapshot { client, commit, files })
    }
}

/// A path with its `~/` and variables replaced as Python's `expanduser` and `expandvars` do; what
/// is not set stays.
fn expanded(path: &str, get: impl Fn(&str) -> Option<String>) -> PathBuf {
    static VARIABLE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\$(\w+|\{\w+\})").expect("tested"));
    let below = path.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let path = match (below, get("HOME")) {
        (Some(rest), Some(home)) => home + rest,
        _ => path.to_owned(),
    };
    let value = |found: &Captures| {
        get(found[1].trim_matches(['{', '}'])).unwrap_or_else(|| found[0].to_owned())
    };
    VARIABLE.replace_all(&path, value).into_owned().into()
}

/// One file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// The name of its content in the cache, which is the `ETag` that the hub sends.
    blob: String,
    /// Whether that is a SHA-256; else it is git's hash.
    large: bool,
}

/// A repository at one commit.
pub struct Snapshot {
    client: Client,
    commit: String,
    files: Vec<RemoteFile>,
}

impl Snapshot {
    /// The folder with the files that are there.
    pub fn dir(&self) -> PathBuf {
        self.client.snapshot_dir(&self.commit)
    }

    /// The path that names just this commit.
    pub fn pinned(&self) -> String {
        self.client.repo.pinned(&self.commit)
    }

    /// Whether the repository has the file at `path`; offline, whether the cache has.
    pub fn has(&self, path: &str) -> bool {
        self.dir().join(path).exists() || self.files.iter().any(|file| file.path == path)
    }

    /// Files whose path is `wanted` and that the cache does not have; none offline.
    pub fn missing(&self, wanted: impl Fn(&str) -> bool) -> Vec<RemoteFile> {
        let dir = self.dir();
        let absent = |file: &&RemoteFile| wanted(&file.path) && !dir.join(&file.path).exists();
        self.files.iter().filter(absent).cloned().collect()
    }

    /// Downloads `files`; `progress` is told, now and then, how many bytes of them are there.
    ///
    /// # Errors
    /// The first that cannot be had; what was received stays for the next attempt.
    pub fn download(&self, files: &[RemoteFile], mut progress: impl FnMut(u64)) -> Result<()> {
        let received: Vec<AtomicU64> = files.iter().map(|_| AtomicU64::new(0)).collect();
        let queue = Mutex::new((0..files.len()).collect::<VecDeque<_>>());
        let (sender, receiver) = channel();
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(files.len()) {
                let (queue, sender, received) = (&queue, sender.clone(), &received);
                let work = move || {
                    let next = || queue.lock().ok().and_then(|mut queue| queue.pop_front());
                    while let Some(i) = next() {
                        let outcome = self.client.fetch(&self.commit, &files[i], &received[i]);
                        if outcome.is_err()
                            && let Ok(mut queue) = queue.lock()
                        {
                            queue.clear();
                        }
                        // The receiver goes away after the first failure.
                        let _ = sender.send(outcome);
                    }
                };
                parallel::spawn(scope, work)?;
            }
            drop(sender);
            loop {
                match receiver.recv_timeout(TICK) {
                    Ok(outcome) => outcome?,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                progress(received.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum());
            }
            self.client.remember(&self.commit)
        })
    }
}
