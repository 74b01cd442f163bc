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

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use hf_hub::{Cache, Repo as Layout, RepoType};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::error::{Error, Result};
use crate::{files, hash, interrupt};

/// Files that are downloaded at once.
const AT_ONCE: usize = 4;
/// Attempts in a row that bring no byte.
const ATTEMPTS: u32 = 5;
/// Longest wait for a connection, an answer, or the next bytes.
const PATIENCE: Duration = Duration::from_secs(30);
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
        let datasets = if self.kind == Kind::Dataset { "datasets/" } else { "" };
        format!("hf://{datasets}{}@{commit}", self.id)
    }

    /// Whether `pinned` names a commit of this repository, and this one leaves open which.
    pub fn admits(&self, pinned: &Self) -> bool {
        let commit = |repo: &Self| repo.revision.as_deref().is_some_and(is_commit);
        self.kind == pinned.kind && self.id == pinned.id && !commit(self) && commit(pinned)
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
    /// The hub as its users set it up: `HF_ENDPOINT`; `HF_HUB_CACHE` or `HF_HOME`; `HF_TOKEN`, or
    /// what `hf auth login` has stored; `HF_HUB_OFFLINE`.
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
        let home = get("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| get("XDG_CACHE_HOME").map(|dir| Path::new(&dir).join("huggingface")))
            .or_else(|| get("HOME").map(|dir| Path::new(&dir).join(".cache/huggingface")))
            .ok_or_else(|| {
                Error::input("there is no place for what comes from the hub")
                    .help("set HF_HOME to a folder")
            })?;
        let stored = || {
            let path = get("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
            fs::read_to_string(path).ok()
        };
        let token = get("HF_TOKEN").or_else(stored).map(|token| token.trim().to_owned());
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let yes =
            |value: String| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: get("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
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
                scope.spawn(move || {
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
                });
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

/// Why an attempt failed.
enum Failure {
    /// Trying again may help, after this time where the server says so.
    Passing(String, Option<Duration>),
    /// Trying again would not help.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: String,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    oid: String,
    size: u64,
}

impl From<TreeEntry> for RemoteFile {
    fn from(entry: TreeEntry) -> Self {
        let TreeEntry { path, size, oid, lfs, .. } = entry;
        match lfs {
            Some(lfs) => Self { path, size: lfs.size, blob: lfs.oid, large: true },
            None => Self { path, size, blob: oid, large: false },
        }
    }
}

/// Talks to the hub about one repository.
struct Client {
    hub: Hub,
    repo: Repo,
    agent: Agent,
}

impl Client {
    fn new(hub: Hub, repo: Repo) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // A gated file is stored elsewhere: that host must not see the token.
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .user_agent(concat!("vlm4d-train/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { hub, repo, agent }
    }

    fn name(&self) -> String {
        let Repo { kind, id, revision } = &self.repo;
        let datasets = if *kind == Kind::Dataset { "datasets/" } else { "" };
        let revision = revision.as_ref().map_or_else(String::new, |r| format!("@{r}"));
        format!("hf://{datasets}{id}{revision}")
    }

    /// The repository's folder in the cache.
    fn folder(&self) -> PathBuf {
        self.hub.cache.join(self.repo.layout("main").folder_name())
    }

    fn snapshot_dir(&self, commit: &str) -> PathBuf {
        let cache = Cache::new(self.hub.cache.clone());
        cache.repo(self.repo.layout(commit)).pointer_path(commit)
    }

    /// Writes down which commit the revision stands for, for the next time offline.
    fn remember(&self, commit: &str) -> Result<()> {
        let revision = self.repo.revision();
        if is_commit(revision) {
            return Ok(());
        }
        let cache = Cache::new(self.hub.cache.clone());
        cache
            .repo(self.repo.layout(revision))
            .create_ref(commit)
            .map_err(|e| files::failed(&self.folder().join("refs"), &e))
    }

    /// What the cache has, without asking the hub.
    fn cached(self) -> Result<Snapshot> {
        let revision = self.repo.revision();
        let commit = match is_commit(revision) {
            true => Some(revision.to_owned()),
            false => fs::read_to_string(self.folder().join("refs").join(revision)).ok(),
        };
        let commit = commit.map(|commit| commit.trim().to_owned());
        match commit.filter(|commit| self.snapshot_dir(commit).is_dir()) {
            Some(commit) => Ok(Snapshot { client: self, commit, files: vec![] }),
            None => Err(Error::input(format!(
                "{}: is not in {}, and HF_HUB_OFFLINE is set",
                self.name(),
                self.hub.cache.display()
            ))
            .help("unset HF_HUB_OFFLINE for the first run, or check HF_HOME")),
        }
    }

    /// `models/ORG/NAME` or `datasets/ORG/NAME`, in the hub's interface.
    fn api(&self) -> String {
        let kind = if self.repo.kind == Kind::Dataset { "datasets" } else { "models" };
        format!("{}/api/{kind}/{}", self.hub.endpoint, self.repo.id)
    }

    fn commit(&self) -> Result<String> {
        let revision = self.repo.revision().replace('/', "%2F");
        let (found, _) = self.json::<Revision>(&format!("{}/revision/{revision}", self.api()))?;
        match is_commit(&found.sha) {
            true => Ok(found.sha),
            false => Err(self.no_hub("the answer names no commit")),
        }
    }

    fn list(&self, commit: &str) -> Result<Vec<RemoteFile>> {
        let mut files = Vec::new();
        let mut page = Some(format!("{}/tree/{commit}?recursive=true", self.api()));
        while let Some(url) = page {
            let (entries, next) = self.json::<Vec<TreeEntry>>(&url)?;
            let entries = entries.into_iter().filter(|entry| entry.kind == "file");
            files.extend(entries.map(RemoteFile::from));
            page = next;
        }
        let outside = |file: &&RemoteFile| {
            let parts = Path::new(&file.path).components();
            let plain = |part| matches!(part, std::path::Component::Normal(_));
            !parts.into_iter().all(plain) || file.blob.contains(['/', '.'])
        };
        match files.iter().find(outside) {
            Some(file) => Err(self.no_hub(&format!("it lists the file `{}`", file.path))),
            None => Ok(files),
        }
    }

    /// An answer in JSON and the address of its next page.
    fn json<T: DeserializeOwned>(&self, url: &str) -> Result<(T, Option<String>)> {
        let mut answer = self.persist(|| self.get(url, 0), || false)?;
        let next = answer.headers().get("link").and_then(|link| link.to_str().ok());
        let next = next.and_then(next_page);
        let text = answer.body_mut().with_config().limit(u64::MAX).read_to_string();
        let text = text.map_err(|e| self.unreachable(&e.to_string()))?;
        let parsed = serde_json::from_str(&text).map_err(|e| self.no_hub(&e.to_string()))?;
        Ok((parsed, next))
    }

    /// Tries until it works or it no longer makes sense; `moved` tells whether the last attempt
    /// brought something.
    fn persist<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, Failure>,
        mut moved: impl FnMut() -> bool,
    ) -> Result<T> {
        let mut failed = 0;
        loop {
            let (what, wait) = match attempt() {
                Ok(found) => return Ok(found),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(what, wait)) => (what, wait),
            };
            failed = if moved() { 1 } else { failed + 1 };
            if failed == ATTEMPTS {
                return Err(self.unreachable(&what));
            }
            let wait = wait.unwrap_or(Duration::from_millis(250 << failed));
            pause(wait.min(PATIENCE))?;
        }
    }

    /// Asks for `url` from byte `from` on.
    fn get(&self, url: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.hub.token
            && url.starts_with(&format!("{}/", self.hub.endpoint))
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let answer = request.call().map_err(|e| Failure::Passing(e.to_string(), None))?;
        match answer.status().as_u16() {
            200 | 206 | 416 => Ok(answer),
            status @ (408 | 429 | 500..) => {
                let wait = answer.headers().get("retry-after").and_then(|v| v.to_str().ok());
                let wait = wait.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
                Err(Failure::Passing(format!("the server answers {status}"), wait))
            }
            status => Err(Failure::Final(self.refused(url, status, &answer))),
        }
    }

    /// Brings `file` into the cache and links it into the snapshot.
    fn fetch(&self, commit: &str, file: &RemoteFile, received: &AtomicU64) -> Result<()> {
        let blob = self.folder().join("blobs").join(&file.blob);
        files::create_dir(&self.folder().join("blobs"))?;
        let lock = self.lock(&file.blob)?;
        if !blob.exists() {
            self.fill(commit, file, &blob, received)?;
        }
        received.store(file.size, Ordering::Relaxed);
        drop(lock);
        let link = self.snapshot_dir(commit).join(&file.path);
        let depth = 2 + Path::new(&file.path).components().count() - 1;
        let target = Path::new(&"../".repeat(depth)).join("blobs").join(&file.blob);
        if let Some(parent) = link.parent() {
            files::create_dir(parent)?;
        }
        // A link to what is no longer there, or one that another process has just made.
        let _ = fs::remove_file(&link);
        match std::os::unix::fs::symlink(target, &link) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(files::failed(&link, &e))
            }
            _ => Ok(()),
        }
    }

    /// Waits until no other process, Python's among them, downloads `blob`.
    fn lock(&self, blob: &str) -> Result<File> {
        let dir = self.hub.cache.join(".locks").join(self.repo.layout("main").folder_name());
        files::create_dir(&dir)?;
        let path = dir.join(blob).with_added_extension("lock");
        let options = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = options.map_err(|e| files::failed(&path, &e))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) => pause(TICK)?,
                Err(fs::TryLockError::Error(e)) => return Err(files::failed(&path, &e)),
            }
        }
    }

    /// Downloads and checks one content.
    fn fill(
        &self,
        commit: &str,
        file: &RemoteFile,
        blob: &Path,
        received: &AtomicU64,
    ) -> Result<()> {
        let partial = blob.with_added_extension("incomplete");
        let mut before = 0;
        self.persist(
            || self.receive(commit, file, &partial, received),
            || {
                let now = received.load(Ordering::Relaxed);
                std::mem::replace(&mut before, now) < now
            },
        )?;
        if file.large {
            let found = hash::file(&partial)?;
            if found != file.blob {
                let _ = fs::remove_file(&partial);
                let (name, path) = (self.name(), &file.path);
                return Err(Error::run(format!(
                    "{name}: {path}: arrived damaged: its SHA-256 is {found}, the hub's {}",
                    file.blob
                ))
                .help("start the same command again: the file is downloaded anew"));
            }
        }
        fs::rename(&partial, blob).map_err(|e| files::failed(blob, &e))
    }

    /// One attempt to receive what is missing of `file`.
    fn receive(
        &self,
        commit: &str,
        file: &RemoteFile,
        partial: &Path,
        received: &AtomicU64,
    ) -> Result<(), Failure> {
        let fail = |e: &std::io::Error| Failure::Final(files::failed(partial, e));
        let mut out =
            OpenOptions::new().create(true).append(true).open(partial).map_err(|e| fail(&e))?;
        let mut at = out.metadata().map_err(|e| fail(&e))?.len();
        received.store(at, Ordering::Relaxed);
        if at == file.size {
            return Ok(());
        }
        let mut answer = self.get(&self.file_url(commit, &file.path), at)?;
        let goes_on = answer.status() == 206 && starts_at(&answer, at);
        if at > 0 && !goes_on {
            // The whole file comes, or what is there is longer than the file.
            out.set_len(0).map_err(|e| fail(&e))?;
            received.store(0, Ordering::Relaxed);
            if answer.status() != 200 {
                return Err(Failure::Passing("the server cannot go on".into(), None));
            }
            at = 0;
        }
        if let Some(rest) = answer.body().content_length()
            && at + rest != file.size
        {
            return Err(self.wrong_size(file, partial, at + rest));
        }
        let mut body = answer.body_mut().with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 1 << 18];
        while at < file.size {
            interrupt::check("the download")?;
            let n = match body.read(&mut buffer) {
                Ok(0) => return Err(Failure::Passing("the connection was cut".into(), None)),
                Ok(n) => n,
                Err(e) => return Err(Failure::Passing(e.to_string(), None)),
            };
            out.write_all(&buffer[..n]).map_err(|e| fail(&e))?;
            at += n as u64;
            received.store(at, Ordering::Relaxed);
        }
        match at > file.size {
            true => Err(self.wrong_size(file, partial, at)),
            false => out.sync_all().map_err(|e| fail(&e)),
        }
    }

    fn file_url(&self, commit: &str, path: &str) -> String {
        let datasets = if self.repo.kind == Kind::Dataset { "datasets/" } else { "" };
        let path: String = path.bytes().map(url_byte).collect();
        format!("{}/{datasets}{}/resolve/{commit}/{path}", self.hub.endpoint, self.repo.id)
    }

    fn wrong_size(&self, file: &RemoteFile, partial: &Path, found: u64) -> Failure {
        let _ = fs::remove_file(partial);
        let (name, RemoteFile { path, size, .. }) = (self.name(), file);
        Failure::Final(
            Error::run(format!(
                "{name}: {path}: the server sends {found} bytes, the hub lists {size}"
            ))
            .help("try again later, or check HF_ENDPOINT: the mirror is not up to date"),
        )
    }

    fn refused(&self, url: &str, status: u16, answer: &Response<Body>) -> Error {
        let code = answer.headers().get("x-error-code").and_then(|code| code.to_str().ok());
        let (name, page) = (self.name(), format!("{}/{}", self.hub.endpoint, self.repo.id));
        let with_token = match &self.hub.token {
            Some(_) => "check the name, and that your HF_TOKEN may read it",
            None => "check the name; for a private repository set HF_TOKEN or run `hf auth login`",
        };
        match (code, status) {
            (Some("GatedRepo"), _) => {
                Error::input(format!("{name}: its owner must let you in ({status})")).help(format!(
                    "accept the conditions on {page}, then set HF_TOKEN or run `hf auth login`"
                ))
            }
            (Some("RevisionNotFound"), _) => Error::input(format!(
                "{name}: the repository has no revision `{}`",
                self.repo.revision()
            ))
            .help("give a branch, tag or commit behind `@`, or leave it out"),
            (Some("RepoNotFound"), _) | (None, 401 | 403 | 404) => Error::input(format!(
                "{name}: no such repository on {}, or not for you ({status})",
                self.hub.endpoint
            ))
            .help(with_token),
            _ => Error::run(format!("{name}: the hub answers {status} to {url}")),
        }
    }

    fn unreachable(&self, why: &str) -> Error {
        let (name, Hub { endpoint, cache, .. }) = (self.name(), &self.hub);
        Error::run(format!("{name}: cannot be had from {endpoint}: {why}")).help(format!(
            "check the network and HF_ENDPOINT, then start the same command again: it goes on \
             where it stopped. HF_HUB_OFFLINE=1 uses what is in {}",
            cache.display()
        ))
    }

    fn no_hub(&self, why: &str) -> Error {
        let (name, endpoint) = (self.name(), &self.hub.endpoint);
        Error::run(format!("{name}: {endpoint} does not answer as the hub does: {why}"))
            .help("check HF_ENDPOINT")
    }
}

/// Whether a partial answer begins at byte `at`.
fn starts_at(answer: &Response<Body>, at: u64) -> bool {
    let range = answer.headers().get("content-range").and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {at}-")))
}

/// The address behind `rel="next"` in a `Link` header.
fn next_page(link: &str) -> Option<String> {
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    let (_, rest) = next.split_once('<')?;
    Some(rest.split_once('>')?.0.to_owned())
}

/// A byte of a path as it stands in an address.
fn url_byte(byte: u8) -> String {
    match byte {
        b'/' | b'.' | b'-' | b'_' | b'~' => char::from(byte).to_string(),
        _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    }
}

/// Waits, unless the user asks to stop.
fn pause(time: Duration) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < time {
        interrupt::check("the download")?;
        std::thread::sleep(TICK.min(time));
    }
    Ok(())
}
