//! What passes between the hub and its cache, with patience for a bad line.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hf_hub::Cache;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Agent, Body};

use super::{Hub, Kind, RemoteFile, Repo, Snapshot, TICK, is_commit};
use crate::error::{Error, Result};
use crate::{files, hash, interrupt};

/// Attempts in a row that bring no byte.
const ATTEMPTS: u32 = 5;
/// Longest wait for a connection, an answer, or the next bytes.
const PATIENCE: Duration = Duration::from_secs(30);

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
pub(super) struct Client {
    hub: Hub,
    pub(super) repo: Repo,
    agent: Agent,
}

impl Client {
    pub(super) fn new(hub: Hub, repo: Repo) -> Self {
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
        let Repo { id, revision, .. } = &self.repo;
        let revision = revision.as_ref().map_or_else(String::new, |r| format!("@{r}"));
        format!("hf://{}{id}{revision}", self.repo.prefix())
    }

    /// The repository's folder in the cache.
    fn folder(&self) -> PathBuf {
        self.hub.cache.join(self.repo.layout("main").folder_name())
    }

    pub(super) fn snapshot_dir(&self, commit: &str) -> PathBuf {
        let cache = Cache::new(self.hub.cache.clone());
        cache.repo(self.repo.layout(commit)).pointer_path(commit)
    }

    /// Writes down which commit the revision stands for, for the next time offline.
    pub(super) fn remember(&self, commit: &str) -> Result<()> {
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
    pub(super) fn cached(self) -> Result<Snapshot> {
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

    pub(super) fn commit(&self) -> Result<String> {
        let revision = self.repo.revision().replace('/', "%2F");
        let (found, _) = self.json::<Revision>(&format!("{}/revision/{revision}", self.api()))?;
        match is_commit(&found.sha) {
            true => Ok(found.sha),
            false => Err(self.no_hub("the answer names no commit")),
        }
    }

    pub(super) fn list(&self, commit: &str) -> Result<Vec<RemoteFile>> {
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
        let attempt = || {
            let mut answer = self.get(url, 0)?;
            let next = answer.headers().get("link").and_then(|link| link.to_str().ok());
            let next = next.and_then(next_page);
            let text = answer.body_mut().with_config().limit(u64::MAX).read_to_string();
            Ok((text.map_err(|e| Failure::Passing(e.to_string(), None))?, next))
        };
        let (text, next) = self.persist(attempt, || false)?;
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
    pub(super) fn fetch(
        &self,
        commit: &str,
        file: &RemoteFile,
        received: &AtomicU64,
    ) -> Result<()> {
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
        let path: String = path.bytes().map(url_byte).collect();
        let repo = format!("{}{}", self.repo.prefix(), self.repo.id);
        format!("{}/{repo}/resolve/{commit}/{path}", self.hub.endpoint)
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
        let (endpoint, Repo { id, .. }) = (&self.hub.endpoint, &self.repo);
        let (name, page) = (self.name(), format!("{endpoint}/{}{id}", self.repo.prefix()));
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
