//! The demo set: VLM4D's layout, the same bytes from the same seed, nothing to be learnt from the
//! text, and in the videos what the answers say.

mod lessons;
mod text;
mod videos;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;
use video_rs::{Decoder, Frame};
use vlm4d_train::data::demo::{DemoOptions, DemoSummary, render};

const SUBSETS: [&str; 2] = ["real", "synthetic"];
const HUB: &str = "https://huggingface.co/datasets/shijiezhou/VLM4D/resolve/main/";

fn small() -> DemoOptions {
    DemoOptions { real_videos: 24, synthetic_videos: 48, size: (112, 84), ..DemoOptions::default() }
}

/// A rendered set, made once for all tests.
fn rendered() -> &'static Path {
    static SET: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, set) = SET.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let set = folder.path().join("demo");
        render(&set, &small(), |_, _| ()).unwrap();
        (folder, set)
    });
    set
}

/// A question as the file has it.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    id: String,
    video: String,
    question_type: String,
    question: String,
    choices: BTreeMap<String, Value>,
    answer: Value,
}

impl Item {
    fn path(&self) -> &str {
        self.video.strip_prefix(HUB).unwrap()
    }

    fn letter(&self) -> &str {
        self.choices.iter().find(|(_, choice)| **choice == self.answer).unwrap().0
    }
}

fn items(set: &Path, subset: &str) -> Vec<Item> {
    let text = fs::read_to_string(set.join(format!("QA/{subset}_mc.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

#[test]
fn layout_and_schema_are_vlm4ds() {
    let set = rendered();
    let mut asked = BTreeSet::new();
    for subset in SUBSETS {
        for (index, item) in items(set, subset).iter().enumerate() {
            assert_eq!(item.id, format!("validation_{}", index + 1));
            assert_eq!(item.question_type, "multiple-choice");
            assert!(item.path().starts_with(&format!("videos_{subset}/")), "{item:?}");
            assert_eq!(item.choices.keys().collect::<Vec<_>>(), ["A", "B", "C", "D"]);
            let texts: BTreeSet<_> = item.choices.values().map(Value::to_string).collect();
            assert_eq!(texts.len(), 4, "{item:?}");
            assert!(item.choices.values().any(|choice| *choice == item.answer), "{item:?}");
            let counts = item.question.to_lowercase().contains("how many ");
            assert!(item.choices.values().all(|choice| choice.is_u64() == counts), "{item:?}");
            let texts = format!("{} {:?}", item.question, item.choices.values());
            assert!(!["{thing", "{other", "{colour"].iter().any(|s| texts.contains(s)), "{item:?}");
            asked.insert(PathBuf::from(item.path()));
        }
    }
    let videos: BTreeSet<_> = files(set)
        .into_keys()
        .filter(|path| path.extension().is_some_and(|e| e == "mp4"))
        .collect();
    assert_eq!(videos, asked);
    let of = |folder: &str| videos.iter().filter(|video| video.starts_with(folder)).count();
    let folders =
        ["videos_real/davis", "videos_real/ego4d", "videos_real/youtube-vos", "videos_synthetic"];
    assert_eq!(folders.map(of), [8, 12, 4, 48]);
}

#[test]
fn videos_have_the_asked_length() {
    for item in &items(rendered(), "real")[..4] {
        let path = rendered().join(item.path());
        let decoder = Decoder::new(path.as_path()).unwrap();
        assert_eq!(decoder.frames().unwrap(), 12);
        assert!((decoder.duration().unwrap().as_secs_f64() - 3.0).abs() < 0.001);
        let frames = frames(&path);
        assert_eq!(frames.len(), 12);
        assert_eq!(frames[0].dim(), (84, 112, 3));
    }
}

#[test]
fn same_options_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let options = DemoOptions { real_videos: 4, synthetic_videos: 3, ..small() };
    let set = |name: &str, options: &DemoOptions| {
        let out = folder.path().join(name);
        let mut told = Vec::new();
        let summary = render(&out, options, |done, total| told.push((done, total))).unwrap();
        assert_eq!(told, (1..=7).map(|done| (done, 7)).collect::<Vec<_>>());
        let questions = items(&out, "real").len() + items(&out, "synthetic").len();
        assert_eq!(summary, DemoSummary { videos: 7, questions });
        files(&out)
    };
    let first = set("first", &options);
    assert_eq!(first.len(), 9);
    assert!(first == set("second", &options), "two renderings differ");
    assert!(first != set("third", &DemoOptions { seed: 43, ..options }), "the seed is not used");
}

#[test]
fn a_folder_in_use_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let options = DemoOptions { real_videos: 1, synthetic_videos: 0, ..small() };
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine.txt"), "mine").unwrap();
    let error = render(&out, &options, |_, _| ()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("demo: the folder is not empty"), "{error}");
    assert_eq!(files(folder.path()).len(), 1);

    fs::remove_file(out.join("mine.txt")).unwrap();
    // What a killed one left goes.
    fs::create_dir_all(folder.path().join(".demo.partial/QA/old")).unwrap();
    render(&out, &options, |_, _| ()).unwrap();
    let beside: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(beside.len(), 1, "{beside:?}");

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(render(&file, &options, |_, _| ()).unwrap_err().exit_code(), 2);
}

#[test]
fn options_that_make_no_video_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for options in [
        DemoOptions { size: (113, 84), ..small() },
        DemoOptions { seconds: 0.1, ..small() },
        DemoOptions { seconds: f64::NAN, ..small() },
        DemoOptions { fps: 0, ..small() },
        DemoOptions { real_videos: 0, synthetic_videos: 0, ..small() },
    ] {
        let error = render(&folder.path().join("demo"), &options, |_, _| ()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

fn frames(path: &Path) -> Vec<Frame> {
    let mut decoder = Decoder::new(path).unwrap();
    let frames = decoder.decode_iter().map_while(Result::ok);
    frames.map(|(_, frame)| frame).collect()
}
