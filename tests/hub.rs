//! `hf://` repositories, against a server on loopback that answers as the hub does, and fails as
//! networks do.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use vlm4d_train::data::hub::{Hub, Kind, Repo, Snapshot};
use vlm4d_train::error::Error;
use vlm4d_train::hash::hex;

use crate::support::golden;
use crate::support::run::{demo_data, program};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";
/// What is at least so long stands outside of git.
const LARGE: usize = 5000;

/// What goes wrong with one answer.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The connection ends after so many bytes of the content.
    Cut(usize),
    /// The content is longer than the listing says.
    Longer,
    /// One byte is wrong.
    Wrong,
    /// A range is asked for, the whole content comes.
    Whole,
    /// This status, and nothing else.
    Status(u16),
}

#[derive(Default)]
struct State {
    /// Contents by `models/ORG/NAME/PATH`.
    files: BTreeMap<String, Vec<u8>>,
    /// What goes wrong next, by the end of the content's path.
    faults: HashMap<String, VecDeque<Fault>>,
    /// `HOST PATH RANGE TOKEN` of each request.
    requests: Vec<String>,
}

/// A hub with one commit in each repository.
struct Server {
    port: u16,
    state: Arc<Mutex<State>>,
}

/// A request as far as it matters here.
struct Request {
    path: String,
    headers: HashMap<String, String>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self { port, state: Arc::default() };
        let state = server.state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = state.clone();
                std::thread::spawn(move || serve(stream.unwrap(), port, &state));
            }
        });
        server
    }

    /// Serves the files of `dir`, whichever depth they are at, as `repo`.
    fn add(&self, repo: &str, dir: &Path) {
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(dir).unwrap().display().to_string();
                    self.file(repo, &name, fs::read(&path).unwrap());
                }
            }
        }
    }

    fn file(&self, repo: &str, path: &str, content: Vec<u8>) {
        self.state.lock().unwrap().files.insert(format!("{repo}/{path}"), content);
    }

    fn fail(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        let faults = faults.into_iter().collect();
        self.state.lock().unwrap().faults.insert(path.to_owned(), faults);
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub {
            endpoint: self.endpoint(),
            cache: cache.to_owned(),
            token: Some(TOKEN.into()),
            offline: false,
        }
    }

    /// The requests so far that have `part` in them.
    fn requests(&self, part: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|r| r.contains(part)).cloned().collect()
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut headers = HashMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    Some(Request { path, headers })
}

fn serve(mut stream: TcpStream, port: u16, state: &Mutex<State>) {
    let Some(request) = read_request(&stream) else { return };
    let header = |name: &str| request.headers.get(name).cloned().unwrap_or_default();
    let note = [header("host"), request.path.clone(), header("range"), header("authorization")];
    let answer = {
        let mut state = state.lock().unwrap();
        state.requests.push(note.join(" "));
        answer(&request, port, &mut state)
    };
    // A client that has gone away is none of this test's business.
    let _ = stream.write_all(&answer);
}

fn head(status: u16, headers: &str, length: usize) -> Vec<u8> {
    format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n")
        .into_bytes()
}

fn status(status: u16, headers: &str) -> Vec<u8> {
    head(status, headers, 0)
}

fn answer(request: &Request, port: u16, state: &mut State) -> Vec<u8> {
    let path = request.path.as_str();
    if let Some(rest) = path.strip_prefix("/api/") {
        let mut answer = api(rest, port, state);
        if let Some(Fault::Cut(n)) = next_fault(rest, state) {
            let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
            answer.truncate(head + n);
        }
        return answer;
    }
    if let Some(hash) = path.strip_prefix("/storage/") {
        assert!(!request.headers.contains_key("authorization"), "the storage host got the token");
        let found = state.files.iter().find(|(_, content)| sha256(content) == hash);
        let Some((name, content)) = found.map(|(n, c)| (n.clone(), c.clone())) else {
            return status(404, "");
        };
        return content_of(&name, &content, request, state);
    }
    let (kind, rest) = match path.strip_prefix("/datasets/") {
        Some(rest) => ("datasets", rest),
        None => ("models", &path[1..]),
    };
    let Some((repo, file)) = rest.split_once(&format!("/resolve/{COMMIT}/")) else {
        return status(404, "x-error-code: EntryNotFound\r\n");
    };
    let name = format!("{kind}/{repo}/{}", file.replace("%20", " "));
    match state.files.get(&name).cloned() {
        None => status(404, "x-error-code: EntryNotFound\r\n"),
        Some(content) if content.len() >= LARGE => {
            let place =
                format!("location: http://localhost:{port}/storage/{}\r\n", sha256(&content));
            status(302, &place)
        }
        Some(content) => content_of(&name, &content, request, state),
    }
}

/// `models/ORG/NAME/revision/…` and `models/ORG/NAME/tree/…`, the latter in pages of 3.
fn api(rest: &str, port: u16, state: &State) -> Vec<u8> {
    let parts: Vec<&str> = rest.splitn(4, '/').collect();
    let prefix = parts[..3].join("/") + "/";
    if parts[2] == "gated" {
        return status(403, "x-error-code: GatedRepo\r\n");
    }
    let files: Vec<_> = state.files.iter().filter(|(name, _)| name.starts_with(&prefix)).collect();
    if files.is_empty() {
        return status(401, "x-error-code: RepoNotFound\r\n");
    }
    if let Some(revision) = parts[3].strip_prefix("revision/") {
        if ![COMMIT, "main", "refs%2Fpr%2F1"].contains(&revision) {
            return status(404, "x-error-code: RevisionNotFound\r\n");
        }
        return body(&json!({ "sha": COMMIT, "siblings": [] }).to_string(), "");
    }
    let (_, query) = parts[3].split_once("recursive=true").unwrap();
    let page: usize = query.strip_prefix("&cursor=").map_or(0, |page| page.parse().unwrap());
    let mut entries = vec![json!({ "type": "directory", "oid": "d1", "size": 0, "path": "QA" })];
    for (name, content) in files.iter().skip(3 * page).take(3) {
        let git = hex(&Sha256::digest(name))[..40].to_owned();
        let mut entry = json!({ "type": "file", "oid": git, "size": content.len(),
            "path": name.strip_prefix(&prefix).unwrap() });
        if content.len() >= LARGE {
            entry["lfs"] =
                json!({ "oid": sha256(content), "size": content.len(), "pointerSize": 134 });
        }
        entries.push(entry);
    }
    let next = format!(
        "link: <http://127.0.0.1:{port}/api/{prefix}tree/{COMMIT}?recursive=true&cursor={}>; \
         rel=\"next\"\r\n",
        page + 1
    );
    let more = files.len() > 3 * (page + 1);
    body(&json!(entries).to_string(), if more { &next } else { "" })
}

fn body(text: &str, headers: &str) -> Vec<u8> {
    [head(200, headers, text.len()), text.into()].concat()
}

fn next_fault(name: &str, state: &mut State) -> Option<Fault> {
    let faults = state.faults.iter_mut().find(|(path, _)| name.ends_with(path.as_str()));
    faults.and_then(|(_, faults)| faults.pop_front())
}

fn content_of(name: &str, content: &[u8], request: &Request, state: &mut State) -> Vec<u8> {
    let fault = next_fault(name, state);
    let mut content = content.to_vec();
    match fault {
        Some(Fault::Status(code)) => return status(code, "retry-after: 0\r\n"),
        Some(Fault::Longer) => content.push(b'x'),
        Some(Fault::Wrong) => content[0] ^= 1,
        _ => {}
    }
    let from = request.headers.get("range").filter(|_| !matches!(fault, Some(Fault::Whole)));
    let from = from.map(|r| r["bytes=".len()..r.len() - 1].parse::<usize>().unwrap());
    let (code, range) = match from {
        Some(from) if from >= content.len() => return status(416, ""),
        Some(from) => (
            206,
            format!("content-range: bytes {from}-{}/{}\r\n", content.len() - 1, content.len()),
        ),
        None => (200, String::new()),
    };
    let rest = &content[from.unwrap_or(0)..];
    let sent = if let Some(Fault::Cut(n)) = fault { &rest[..n.min(rest.len())] } else { rest };
    [head(code, &range, rest.len()), sent.to_vec()].concat()
}

fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// Bytes without a pattern, of this length.
fn noise(length: usize) -> Vec<u8> {
    let hashes = (0..length.div_ceil(32)).map(|i| Sha256::digest(i.to_le_bytes()));
    hashes.flat_map(|hash| hash.to_vec()).take(length).collect()
}

/// A server with the repository `org/tiny` and a cache of one's own.
fn tiny() -> (Server, TempDir, Repo) {
    let server = Server::start();
    for (path, length) in [("config.json", 500), ("model.safetensors", 60_000), ("notes/a b.md", 9)]
    {
        server.file("models/org/tiny", path, noise(length));
    }
    for i in 0..5 {
        server.file("models/org/tiny", &format!("extra/{i}.txt"), noise(i + 1));
    }
    (server, tempfile::tempdir().unwrap(), Repo::parse("hf://org/tiny").unwrap().unwrap())
}

/// Downloads everything; returns the snapshot.
fn fetch(hub: &Hub, repo: &Repo) -> Result<Snapshot, Error> {
    let snapshot = hub.snapshot(repo)?;
    snapshot.download(&snapshot.missing(|_| true), |_| ())?;
    Ok(snapshot)
}

fn blob(cache: &Path, content: &[u8], ending: &str) -> PathBuf {
    cache.join("models--org--tiny/blobs").join(sha256(content) + ending)
}

#[test]
fn repositories_are_named_as_hub_users_know_them() {
    let model = |id: &str, revision: Option<&str>| Repo {
        kind: Kind::Model,
        id: id.into(),
        revision: revision.map(Into::into),
    };
    let parse = |path: &str| Repo::parse(path).unwrap();
    assert_eq!(Repo::parse("data/vlm4d"), None);
    assert_eq!(
        parse("hf://Qwen/Qwen2-VL-7B-Instruct"),
        Ok(model("Qwen/Qwen2-VL-7B-Instruct", None))
    );
    assert_eq!(parse("hf://a/b@refs/pr/1"), Ok(model("a/b", Some("refs/pr/1"))));
    let data = Repo { kind: Kind::Dataset, ..model("shijiezhou/VLM4D", Some("main")) };
    assert_eq!(parse("hf://datasets/shijiezhou/VLM4D@main"), Ok(data.clone()));
    assert_eq!(data.pinned(COMMIT), format!("hf://datasets/shijiezhou/VLM4D@{COMMIT}"));
    for wrong in
        ["hf://", "hf://a", "hf://a/b/c", "hf://a/b@", "hf://../b", "hf://a/b c", "hf://datasets/a"]
    {
        assert!(parse(wrong).unwrap_err().starts_with(wrong), "{wrong}");
    }
    let pinned = model("a/b", Some(COMMIT));
    assert!(model("a/b", None).admits(&pinned) && model("a/b", Some("main")).admits(&pinned));
    assert!(!pinned.admits(&pinned) && !model("a/c", None).admits(&pinned));
}

#[test]
fn the_environment_means_what_it_means_to_python() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().display().to_string();
    let hub = |variables: &[(&str, &str)]| {
        let get = |name: &str| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        };
        Hub::from_variables(get).unwrap()
    };
    let plain = hub(&[("HOME", "/home/u")]);
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert_eq!(plain.cache, Path::new("/home/u/.cache/huggingface/hub"));
    assert_eq!((plain.token, plain.offline), (None, false));
    let xdg = hub(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/c")]);
    assert_eq!(xdg.cache, Path::new("/c/huggingface/hub"));
    fs::write(home.path().join("token"), " hf_stored\n").unwrap();
    let all = hub(&[("HF_HOME", &dir), ("HF_ENDPOINT", "http://m/"), ("HF_HUB_OFFLINE", "True")]);
    assert_eq!((all.endpoint.as_str(), all.offline), ("http://m", true));
    assert_eq!((all.cache, all.token.unwrap().as_str()), (home.path().join("hub"), "hf_stored"));
    let own = hub(&[("HF_HOME", &dir), ("HF_TOKEN", "hf_own"), ("HF_HUB_CACHE", "/d")]);
    assert_eq!((own.cache, own.token.unwrap().as_str()), (PathBuf::from("/d"), "hf_own"));
    assert!(Hub::from_variables(|_| None).is_err());
    for (name, value, cache) in [
        ("HF_HOME", "~/hf", "/home/u/hf/hub"),
        ("HF_HUB_CACHE", "${SCRATCH}/$NONE/~", "/s/$NONE/~"),
        ("HUGGINGFACE_HUB_CACHE", "$SCRATCH/hub", "/s/hub"),
    ] {
        let spelled = hub(&[("HOME", "/home/u"), ("SCRATCH", "/s"), (name, value)]);
        assert_eq!(spelled.cache, Path::new(cache));
    }
    let both = hub(&[("HOME", "/"), ("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/old")]);
    assert_eq!(both.cache, Path::new("/new"));
}

#[test]
fn files_come_into_the_hubs_own_cache() {
    let (server, cache, repo) = tiny();
    let hub = server.hub(cache.path());
    let snapshot = hub.snapshot(&repo).unwrap();
    let wanted = snapshot.missing(|path| path != "config.json");
    assert_eq!(wanted.len(), 7, "the listing has three pages");
    let mut told = vec![];
    snapshot.download(&wanted, |bytes| told.push(bytes)).unwrap();
    assert_eq!(*told.last().unwrap(), 60_000 + 9 + 15);
    assert!(told.is_sorted());
    let dir = cache.path().join("models--org--tiny/snapshots").join(COMMIT);
    assert_eq!(snapshot.dir(), dir);
    assert_eq!(fs::read(dir.join("notes/a b.md")).unwrap(), noise(9));
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), noise(60_000));
    assert!(!dir.join("config.json").exists(), "it was not wanted");
    let link = fs::read_link(dir.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(sha256(&noise(60_000))));
    assert_eq!(fs::read_link(dir.join("extra/1.txt")).unwrap().components().count(), 5);
    let main = fs::read_to_string(cache.path().join("models--org--tiny/refs/main")).unwrap();
    assert_eq!(main, COMMIT);
    // The token is for the hub alone, which the storage host checks too.
    let own: Vec<String> = server.requests("127.0.0.1");
    assert!(own.iter().all(|request| request.ends_with("Bearer hf_secret")), "{own:?}");
    assert_eq!(server.requests("localhost").len(), 1);
    // Nothing is asked for twice.
    let before = server.requests("/resolve/").len();
    fetch(&hub, &repo).unwrap();
    assert_eq!(server.requests("/resolve/").len(), before + 1, "config.json alone was missing");
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let (server, cache, repo) = tiny();
    server.fail("model.safetensors", [Fault::Cut(1000), Fault::Status(503), Fault::Cut(2000)]);
    let snapshot = fetch(&server.hub(cache.path()), &repo).unwrap();
    assert_eq!(fs::read(snapshot.dir().join("model.safetensors")).unwrap(), noise(60_000));
    let storage = server.requests("/storage/");
    let ranges: Vec<&str> = storage.iter().map(|r| r.split(' ').nth(2).unwrap()).collect();
    assert_eq!(ranges, ["", "bytes=1000-", "bytes=1000-", "bytes=3000-"]);
    assert!(!blob(cache.path(), &noise(60_000), ".incomplete").exists());
}

#[test]
fn a_cut_listing_is_asked_for_again() {
    let (server, cache, repo) = tiny();
    server.fail("revision/main", [Fault::Cut(5)]);
    server.fail("recursive=true", [Fault::Cut(10)]);
    let snapshot = server.hub(cache.path()).snapshot(&repo).unwrap();
    assert_eq!(snapshot.missing(|_| true).len(), 8);
    assert_eq!(server.requests("/api/").len(), 1 + 3 + 2, "three pages, two answers cut");
}

#[test]
fn what_a_killed_download_left_is_used() {
    let (content, longer) = (noise(60_000), noise(70_000));
    for (left, asked) in
        [(&content[..12_345], Some("bytes=12345-")), (&content[..], None), (&longer[..], Some(""))]
    {
        let (server, cache, repo) = tiny();
        let partial = blob(cache.path(), &content, ".incomplete");
        fs::create_dir_all(partial.parent().unwrap()).unwrap();
        fs::write(&partial, left).unwrap();
        let snapshot = fetch(&server.hub(cache.path()), &repo).unwrap();
        assert_eq!(fs::read(snapshot.dir().join("model.safetensors")).unwrap(), content);
        let storage = server.requests("/storage/");
        assert_eq!(storage.last().map(|r| r.split(' ').nth(2).unwrap()), asked);
    }
}

#[test]
fn a_server_that_cannot_go_on_starts_anew() {
    let (server, cache, repo) = tiny();
    server.fail("model.safetensors", [Fault::Cut(1000), Fault::Whole]);
    let snapshot = fetch(&server.hub(cache.path()), &repo).unwrap();
    assert_eq!(fs::read(snapshot.dir().join("model.safetensors")).unwrap(), noise(60_000));
}

fn error(hub: &Hub, repo: &Repo) -> (u8, String) {
    let Err(error) = fetch(hub, repo) else { panic!("it came") };
    (error.exit_code(), error.to_string())
}

#[test]
fn a_wrong_size_or_content_is_refused_and_not_kept() {
    for (fault, path, wanted) in [
        (Fault::Longer, "model.safetensors", "the server sends 60001 bytes, the hub lists 60000"),
        (Fault::Longer, "config.json", "the server sends 501 bytes, the hub lists 500"),
        (Fault::Wrong, "model.safetensors", "arrived damaged: its SHA-256 is "),
    ] {
        let (server, cache, repo) = tiny();
        server.fail(path, [fault]);
        let hub = server.hub(cache.path());
        let (code, text) = error(&hub, &repo);
        assert_eq!(code, 1, "{text}");
        assert!(text.starts_with(&format!("hf://org/tiny: {path}: {wanted}")), "{text}");
        let blobs = cache.path().join("models--org--tiny/blobs");
        let left =
            fs::read_dir(blobs).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert!(
            left.filter(
                |name| name.contains(&sha256(&noise(60_000))) || name.ends_with("incomplete")
            )
            .count()
                <= 1
        );
        // The next attempt has nothing of it.
        let snapshot = fetch(&hub, &repo).unwrap();
        assert_eq!(fs::read(snapshot.dir().join("model.safetensors")).unwrap(), noise(60_000));
        assert_eq!(fs::read(snapshot.dir().join("config.json")).unwrap(), noise(500));
    }
}

#[test]
fn errors_say_what_to_do() {
    let (server, cache, _) = tiny();
    let hub = server.hub(cache.path());
    let of = |hub: &Hub, path: &str| error(hub, &Repo::parse(path).unwrap().unwrap());
    for (path, wanted, help) in [
        ("hf://org/none", "no such repository on http://127", "may read it"),
        ("hf://org/gated", "its owner must let you in", "accept the conditions on http://127"),
        ("hf://datasets/org/gated", "its owner must let you in", "/datasets/org/gated, then set"),
        ("hf://org/tiny@v9", "the repository has no revision `v9`", "behind `@`"),
    ] {
        let (code, text) = of(&hub, path);
        assert_eq!(code, 2, "{text}");
        assert!(text.starts_with(path) && text.contains(wanted) && text.contains(help), "{text}");
    }
    let (_, text) = of(&Hub { token: None, ..hub.clone() }, "hf://org/none");
    assert!(text.contains("set HF_TOKEN or run `hf auth login`"), "{text}");
    let (code, text) = of(&Hub { offline: true, ..hub.clone() }, "hf://org/tiny");
    assert_eq!(code, 2);
    assert!(text.contains("HF_HUB_OFFLINE is set"), "{text}");
    // Nobody listens on a port that was just given back.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (code, text) =
        of(&Hub { endpoint: format!("http://127.0.0.1:{port}"), ..hub.clone() }, "hf://org/tiny");
    assert_eq!(code, 1);
    assert!(
        text.contains("cannot be had from http://127") && text.contains("HF_HUB_OFFLINE=1"),
        "{text}"
    );
    assert!(!text.contains(TOKEN));
}

#[test]
fn a_listing_cannot_lead_out_of_the_cache() {
    let (server, cache, repo) = tiny();
    server.file("models/org/tiny", "../../../evil.txt", vec![1]);
    let (code, text) = error(&server.hub(cache.path()), &repo);
    assert_eq!(code, 1);
    assert!(text.contains("it lists the file `../../../evil.txt`"), "{text}");
}

#[test]
fn offline_the_cache_is_enough() {
    let (server, cache, repo) = tiny();
    let hub = server.hub(cache.path());
    fetch(&hub, &repo).unwrap();
    let asked = server.requests("").len();
    let offline = Hub { offline: true, ..hub };
    let pinned = Repo::parse(&repo.pinned(COMMIT)).unwrap().unwrap();
    for repo in [repo, pinned] {
        let snapshot = offline.snapshot(&repo).unwrap();
        assert_eq!(snapshot.pinned(), format!("hf://org/tiny@{COMMIT}"));
        assert_eq!(fs::read(snapshot.dir().join("config.json")).unwrap(), noise(500));
        assert!(snapshot.missing(|_| true).is_empty());
    }
    assert_eq!(server.requests("").len(), asked);
}

#[test]
fn two_runs_download_a_file_once() {
    let (server, cache, repo) = tiny();
    let hub = server.hub(cache.path());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| fetch(&hub, &repo).unwrap());
        }
    });
    assert_eq!(server.requests("/storage/").len(), 1);
}

/// Runs `recipe` in `dir` with `variables` set.
fn run(dir: &Path, recipe: &str, variables: &[(&str, &str)]) -> Output {
    fs::create_dir_all(dir.join("recipes")).unwrap();
    fs::write(dir.join("recipes/r.toml"), recipe).unwrap();
    let mut command = program(dir);
    command.arg("recipes/r.toml").env_remove("HF_TOKEN");
    command.envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn a_recipe_can_be_run_from_the_hub() {
    let server = Server::start();
    server.add("models/org/tiny", &golden("ckpt/tiny-qwen2.5-vl"));
    server.file("models/org/tiny", "README.md", noise(100));
    server.file("models/org/tiny", "original/consolidated.pth", noise(100));
    server.add("datasets/org/demo", demo_data());
    server.file("datasets/org/demo", "videos_real/davis/not_asked_about.mp4", noise(100));
    let recipe = "[model]\npath = \"hf://org/tiny\"\n[data]\npath = \"hf://datasets/org/demo\"\n\
        [video]\nmax_frames = 4\nmax_pixels = 9408\n[lora]\n[train]\nmax_steps = 1\n\
        [eval]\nmax_new_tokens = 2\n";
    let home = tempfile::tempdir().unwrap();
    let endpoint = server.endpoint();
    let online = [("HF_HOME", home.path().to_str().unwrap()), ("HF_ENDPOINT", &endpoint)];
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), recipe, &online);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains(&format!("hub    hf://org/tiny@{COMMIT}: downloading ")), "{stdout}");
    for unwanted in ["README.md", "consolidated.pth", "not_asked_about.mp4", "videos_synthetic"] {
        assert!(
            server.requests(&format!("/resolve/{COMMIT}/")).iter().all(|r| !r.contains(unwanted))
        );
    }
    let resolved = fs::read_to_string(dir.path().join("runs/r/recipe.toml")).unwrap();
    for pinned in ["hf://org/tiny@", "hf://datasets/org/demo@"] {
        assert!(resolved.contains(&format!("path = \"{pinned}{COMMIT}\"")), "{resolved}");
    }
    let adapter =
        fs::read_to_string(dir.path().join("runs/r/adapter/adapter_config.json")).unwrap();
    assert!(adapter.contains("\"base_model_name_or_path\": \"org/tiny\""), "{adapter}");
    // Once more: the run's own commit is meant, and the run is finished.
    let again = run(dir.path(), recipe, &online);
    assert!(String::from_utf8_lossy(&again.stdout).contains("done before"));
    // Elsewhere and offline, the same numbers.
    let offline = [online[0], ("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "http://127.0.0.1:1")];
    let other = tempfile::tempdir().unwrap();
    let output = run(other.path(), recipe, &offline);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |dir: &TempDir| fs::read(dir.path().join("runs/r/after/predictions.jsonl")).unwrap();
    assert!(read(&dir) == read(&other));
}

#[test]
fn wrong_repositories_in_a_recipe_are_refused_with_their_line() {
    for (model, data, wanted) in [
        (
            "hf://org",
            "x",
            "recipes/r.toml:2:1: `path` is hf://org: `org` is not of the form ORG/NAME",
        ),
        ("hf://datasets/a/b", "x", "recipes/r.toml:2:1: `path` is hf://datasets/a/b: a data set"),
        ("x", "hf://a/b", "recipes/r.toml:4:1: `path` is hf://a/b: a model"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let recipe = format!("[model]\npath = \"{model}\"\n[data]\npath = \"{data}\"\n[lora]\n");
        let output = run(dir.path(), &recipe, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(wanted), "{stderr}");
    }
}
