//! `data stats`, `data check`, `data split` and `data terms`, as their users meet them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;
use vlm4d_train::data::demo::{self, DemoOptions};
use vlm4d_train::data::entry;
use vlm4d_train::data::stats::{Count, Stats};
use vlm4d_train::data::terms::{Counts, TERMS};

use crate::support::real_files;
use crate::support::run::program;

fn data(dir: &Path, args: &[&str]) -> Output {
    program(dir).arg("data").args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A rendered set in `demo`.
fn demo_set() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let options = DemoOptions { real_videos: 6, synthetic_videos: 3, ..DemoOptions::default() };
    demo::render(&dir.path().join("demo"), &options, |_, _| ()).unwrap();
    dir
}

/// Well-formed XML, as far as that can be told without a parser: every tag is closed.
fn check_svg(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let mut open = Vec::new();
    for tag in text.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag ends");
        let name = tag.trim_matches('/').split_whitespace().next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{text}");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty() && text.starts_with("<svg xmlns="), "{open:?}");
    text
}

#[test]
fn stats_of_the_real_files_are_the_published_ones() {
    let Some(folder) = real_files("stats_of_the_real_files_are_the_published_ones") else { return };
    let (entries, _) = entry::read(&folder, &["real".into(), "synthetic".into()]).unwrap();
    let stats = Stats::new(&entries);
    let [real, synthetic] = &stats.subsets[..] else { panic!("two subsets") };
    let kind = |subset: &vlm4d_train::data::stats::Subset, source: &str, group: &str| {
        let Count { questions, files } = subset.kinds[&(source.into(), group.into())];
        (questions, files)
    };
    assert_eq!(real.all, Count { questions: 1_371, files: 600 });
    assert_eq!(synthetic.all, Count { questions: 445, files: 400 });
    assert_eq!(kind(real, "ego4d", "ego-centric"), (449, 300));
    let davis = kind(real, "davis", "exo-centric");
    let tube = kind(real, "youtube-vos", "exo-centric");
    assert_eq!((davis.0 + tube.0, davis.1, tube.1), (922, 210, 90));
    assert_eq!(kind(synthetic, "synthetic", "directional").0, 400);
    assert_eq!(kind(synthetic, "synthetic", "false-positive").0, 45);
    assert_eq!((real.per_file[&1], *real.per_file.keys().max().unwrap()), (275, 9));
    assert_eq!(real.letters.iter().sum::<usize>(), 1_371);
    assert_eq!(real.answers.iter().map(|(_, n)| n).sum::<usize>(), 1_371);
    // 76 as a number, one as a text
    assert_eq!(real.answers.iter().find(|(answer, _)| answer == "0").unwrap().1, 77);
}

#[test]
fn stats_are_printed_and_drawn() {
    let dir = demo_set();
    let output = data(dir.path(), &["stats", "demo", "--out", "data.svg"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let line = text.lines().find(|line| line.starts_with("synthetic") && line.contains(" all "));
    let columns: Vec<&str> = line.unwrap().split_whitespace().collect();
    let questions: Vec<Value> =
        serde_json::from_slice(&fs::read(dir.path().join("demo/QA/synthetic_mc.json")).unwrap())
            .unwrap();
    assert_eq!(columns[2..4], [questions.len().to_string(), "3".into()], "{text}");
    for word in ["gold letter, %", "videos with so many questions", "exo-centric", "real"] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
    let picture = check_svg(&dir.path().join("data.svg"));
    assert!(picture.contains("real: answers") && picture.contains("<rect"));
    let output = data(dir.path(), &["stats", "demo", "--subsets", "reel"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("the folder has the subsets real, synthetic"));
    let output = data(dir.path(), &["stats", "nowhere"]);
    assert!(stderr(&output).contains("nowhere: no such folder"), "{}", stderr(&output));
}

/// A folder with the data set `talk`, its rows in `file`, and with `a.mp4`, which is no video.
fn talk_set(file: &str, rows: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let info = json!({"talk": {"file_name": file, "formatting": "sharegpt",
        "columns": {"videos": "videos"}}});
    write("dataset_info.json", &info.to_string());
    write(file, rows);
    write("a.mp4", "");
    dir
}

/// A conversation of one turn.
fn talk(ask: &str, say: &str, videos: &[&str]) -> Value {
    json!({"videos": videos, "conversations":
        [{"from": "human", "value": ask}, {"from": "gpt", "value": say}]})
}

#[test]
fn a_video_shown_twice_counts_once() {
    let row = talk("<video><video>Is it the same?", "Yes.", &["a.mp4", "a.mp4"]);
    let dir = talk_set("rows.json", &json!([row]).to_string());
    let (entries, _) = entry::read(dir.path(), &["talk".into()]).unwrap();
    let stats = Stats::new(&entries);
    assert_eq!(stats.subsets[0].all, Count { questions: 1, files: 1 });
    assert_eq!(stats.subsets[0].per_file, BTreeMap::from([(1, 1)]));
}

#[test]
fn control_characters_reach_neither_terminal_nor_picture() {
    let row = talk("<video>Where?", "\u{1b}[31mto the\u{b} left\u{ffff}", &["a.mp4"]);
    let dir = talk_set("rows.json", &json!([row]).to_string());
    let output = data(dir.path(), &["stats", ".", "--out", "data.svg"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let picture = fs::read_to_string(dir.path().join("data.svg")).unwrap();
    for text in [&stdout(&output), &picture] {
        assert!(text.contains("\u{fffd}[31mto the\u{fffd} left\u{fffd}"), "{text}");
        assert!(!text.contains(['\u{1b}', '\u{b}', '\u{ffff}']), "{text}");
    }
}

#[test]
fn check_lists_everything_that_is_wrong() {
    let dir = demo_set();
    let output = data(dir.path(), &["check", "demo"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    assert!(stdout(&output).contains("nothing is wrong"));

    let place = |path: &str| dir.path().join("demo").join(path);
    let file = place("QA/real_mc.json");
    let mut items: Vec<Value> = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let video = |item: &Value| {
        let url = item["video"].as_str().unwrap();
        place(url.split_once("/resolve/main/").map_or(url, |(_, path)| path))
    };
    let (cut, gone) = (video(&items[0]), video(&items[items.len() - 1]));
    assert_ne!(cut, gone);
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    fs::remove_file(&gone).unwrap();
    items[1]["answer"] = "nothing of this".into();
    items[2]["choices"] = json!([]);
    fs::write(&file, json!(items).to_string()).unwrap();
    fs::remove_dir_all(place("videos_synthetic")).unwrap();
    let output = data(dir.path(), &["check", "demo"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stdout(&output);
    for wanted in [
        "demo/QA/real_mc.json\n  item 1 (",
        "`answer` is \"nothing of this\", which is none of the `choices`\n  item 2 (",
        "`choices` is missing or not an object",
        "videos_synthetic\n  no such folder; 3 file(s) should be in it, ",
        "no such file, used by `real/",
    ] {
        assert!(text.contains(wanted), "no `{wanted}` in\n{text}");
    }
    for video in [&cut, &gone] {
        let name = video.file_name().unwrap().to_str().unwrap();
        assert_eq!(text.matches(name).count(), 1, "{name} in\n{text}");
    }
    assert!(stderr(&output).contains("5 problem(s) in 4 file(s)"), "{}", stderr(&output));

    // Of many missing videos of a folder, one problem with all of their names.
    for (i, item) in items.iter_mut().enumerate().skip(3) {
        item["video"] = format!("videos_real/davis/gone-{i}.mp4").into();
    }
    let more = (items.len()..40).map(|i| {
        let video = format!("videos_real/davis/gone-{i}.mp4");
        let mut item = items[0].clone();
        (item["id"], item["video"]) = (format!("validation_{}", 100 + i).into(), video.into());
        item
    });
    let more: Vec<Value> = more.collect();
    items.extend(more);
    fs::write(&file, json!(items).to_string()).unwrap();
    let text = stdout(&data(dir.path(), &["check", "demo", "--subsets", "real"]));
    assert!(text.contains("davis\n  lacks 37 files: gone-10.mp4, ") && text.contains("gone-9.mp4"));

    fs::write(&file, "[{]").unwrap();
    let output = data(dir.path(), &["check", "demo", "--subsets", "real"]);
    assert!(stdout(&output).contains("  line 1, column 3: not valid JSON"), "{}", stdout(&output));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn check_reads_folders_of_llamafactory() {
    let dir = demo_set();
    let folder = dir.path().join("demo/videos_synthetic");
    let video = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let video = video.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned();
    let row = |ask: &str, videos: &[&str], images: &[&str]| {
        json!({"videos": videos, "images": images, "conversations":
            [{"from": "human", "value": ask}, {"from": "gpt", "value": "left"}]})
        .to_string()
    };
    fs::write(dir.path().join("a.png"), "").unwrap();
    let rows = [
        row("<video>Where?", &[&video], &[]),
        "{]".into(),
        row("Where?", &[&video], &[]),
        row("<image>What?", &[], &["a.png"]),
        row("<video>Where?", &["gone.mp4"], &[]),
    ];
    fs::write(dir.path().join("rows.jsonl"), rows.join("\n")).unwrap();
    let columns = json!({"videos": "videos", "images": "images"});
    let info = json!({
        "talk": {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": columns},
        "far": {"hf_hub_url": "a/b"},
    });
    fs::write(dir.path().join("dataset_info.json"), info.to_string()).unwrap();
    let output = data(dir.path(), &["check", "."]);
    assert_eq!(output.status.code(), Some(2));
    let text = stdout(&output);
    for wanted in [
        "./rows.jsonl\n  line 2, column 2: ",
        "row 2: 0 `<video>` in its messages, but 1 video(s)",
        "row 4: ./gone.mp4: no such file",
        "./a.png\n  cannot be read as an image: ",
        "  help: each needs its marker in a user's message, and ",
        "  help: JPEG, PNG, WebP, GIF and BMP are read; ",
        "note   not looked at, as not in a file: far",
    ] {
        assert!(text.contains(wanted), "no `{wanted}` in\n{text}");
    }
    assert!(
        stderr(&output).contains("2 questions on 1 videos and 1 images: 4 problem(s) in 2 file(s)")
    );
    let output = data(dir.path(), &["check", ".", "--subsets", "far"]);
    assert!(stdout(&output).contains("data set `far`: "), "{}", stdout(&output));
}

#[test]
fn a_split_is_written_with_any_shares() {
    let dir = demo_set();
    let args = ["split", "demo", "--out", "s.json", "--seed", "3", "--by", "question"];
    let output = data(dir.path(), &[&args[..], &["--test", "0.3", "--val", "0.2"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let split: Value =
        serde_json::from_slice(&fs::read(dir.path().join("s.json")).unwrap()).unwrap();
    let count = |part: &str| split["real"][part].as_array().unwrap().len();
    assert_eq!((&split["real"]["seed"], &split["real"]["by"]), (&json!(3), &json!("question")));
    let line =
        format!("real: train {}  val {}  test {}\n", count("train"), count("val"), count("test"));
    assert!(stdout(&output).contains(&line), "{line}{}", stdout(&output));
    assert!(count("val") > 0 && count("test") > count("val"));
    let output = data(dir.path(), &["split", "demo", "--out", "t.json", "--test", "1.5"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!dir.path().join("t.json").exists());
}

fn term(counts: &Counts, name: &str) -> (usize, usize) {
    let i = TERMS.iter().position(|term| term.name == name).unwrap();
    (counts.having[i], counts.times[i])
}

#[test]
fn terms_are_counted_in_any_file() {
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str, text: &str, fields: &[&str]| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
        Counts::read(&path, &fields).map_err(|e| e.to_string())
    };
    let questions = json!([
        {"id": "left_1", "video": "https://x.org/left/turn left.mp4", "question": "Turning LEFT?",
            "choices": {"A": "left", "B": "Counter-clockwise, then clockwise", "C": 3}},
        {"question": "It moved upwards, a movement.", "path": "videos/left.mp4", "n": 3},
        {"id": "no word", "n": 7},
    ]);
    let counts = read("q.json", &questions.to_string(), &[]).unwrap();
    assert_eq!((counts.records, &*counts.name), (2, "q"));
    assert_eq!(counts.words, 6 + 5);
    assert_eq!(term(&counts, "left"), (1, 2));
    assert_eq!(term(&counts, "right"), (0, 0));
    assert_eq!(term(&counts, "turn"), (1, 1));
    assert_eq!((term(&counts, "up"), term(&counts, "move")), ((1, 1), (1, 2)));
    assert_eq!((term(&counts, "clockwise"), term(&counts, "counterclockwise")), ((1, 1), (1, 1)));
    assert_eq!(
        counts.having_kind,
        [("direction", 2), ("translation", 1), ("rotation", 1), ("perspective", 0)]
    );
    // COCO's and ActivityNet's forms, and JSON lines
    let coco = json!({"info": {"description": "to the left"}, "images": [{"file_name": "left.jpg", "id": 3}],
        "annotations": [{"caption": "a dog runs away"}, {"caption": "a dog"}]});
    let counts = read("c.json", &coco.to_string(), &[]).unwrap();
    assert_eq!((counts.records, term(&counts, "away"), term(&counts, "left")), (2, (1, 1), (0, 0)));
    let activity = json!({"v_1": {"duration": 3.0, "sentences": ["He turns.", "He turns again."]}});
    let counts = read("a.json", &activity.to_string(), &[]).unwrap();
    assert_eq!((counts.records, term(&counts, "turn")), (1, (1, 2)));
    let lines = "{\"caption\": \"to the left\", \"note\": \"to the right\"}\n\n\"left\"\n";
    let counts = read("l.jsonl", lines, &[]).unwrap();
    assert_eq!(
        (counts.records, term(&counts, "left"), term(&counts, "right")),
        (2, (2, 2), (1, 1))
    );
    let counts = read("f.jsonl", lines, &["caption"]).unwrap();
    assert_eq!((counts.records, term(&counts, "right")), (1, (0, 0)));
    for (name, text, fields, wanted) in [
        ("w.json", "[1,", &[][..], "w.json:1:3: not JSON"),
        ("w.jsonl", "1\n{", &[], "w.jsonl:2:1: not JSON"),
        ("w.json", "[1]", &[], "w.json: holds no text"),
        ("w.jsonl", lines, &["captoin"], "w.jsonl: holds no text in captoin"),
    ] {
        let error = read(name, text, fields).unwrap_err();
        assert!(error.contains(wanted) && !error.contains(" at line "), "{error}");
    }
}

#[test]
fn terms_are_printed_and_drawn() {
    let dir = demo_set();
    let files = ["demo/QA/real_mc.json", "demo/QA/synthetic_mc.json"];
    let output = data(dir.path(), &["terms", files[0], files[1], "--out", "terms.svg"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert_eq!(text.lines().filter(|line| line.contains("any of these")).count(), 4, "{text}");
    assert!(text.contains("real_mc, %") && text.contains("synthetic_mc: "), "{text}");
    let picture = check_svg(&dir.path().join("terms.svg"));
    assert_eq!(picture.matches("<rect").count(), 2 * TERMS.len());
    for arguments in [["terms", files[0], "--out", "t.png"], ["stats", "demo", "--out", "t.png"]] {
        let output = data(dir.path(), &arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains("a picture is written as .svg"), "{}", stderr(&output));
        assert!(stdout(&output).is_empty() && !dir.path().join("t.png").exists());
    }
    let output = data(dir.path(), &["terms", files[0], "--out", "/dev/stdout"]);
    assert!(stdout(&output).starts_with("<svg"), "{}", stdout(&output));
    let output = data(dir.path(), &["terms", "gone.json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("gone.json: no such file"), "{}", stderr(&output));
}
