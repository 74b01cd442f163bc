//! The question files: every trap of the real ones, and the real ones' counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::{Value, json};
use vlm4d_train::data::chat::{Content, Message};
use vlm4d_train::data::entry::{self, Entry};
use vlm4d_train::data::medium::Medium;
use vlm4d_train::data::vlm4d::{self, Format, PromptStyle};

use crate::support::real_files;

const URL: &str = "https://huggingface.co/datasets/shijiezhou/VLM4D/resolve/main/";

fn subsets() -> Vec<String> {
    vec!["real".into(), "synthetic".into()]
}

fn item(id: u32, video: &str, question: &str, choices: &Value, answer: &Value) -> Value {
    json!({"id": format!("validation_{id}"), "video": format!("{URL}{video}"), "question": question,
        "question_type": "multiple-choice", "choices": choices, "answer": answer})
}

/// A data folder with one question for each trap.
fn traps() -> tempfile::TempDir {
    let [davis, ego, tube] = ["davis/bus", "ego4d/clip_1", "youtube-vos/x"]
        .map(|name| format!("videos_real/{name}.mp4"));
    let which = json!({"A": "left", "B": "right", "C": "up ", "D": "away"});
    let real = json!([
        item(1, &davis, "How many turns?", &json!({"A": 1, "B": 2, "C": 3, "D": 0}), &json!(0)),
        item(2, &davis, "Where to? ", &which, &json!("up ")),
        item(3, &ego, "Which direction?", &json!({"A": "a", "B": "b", "C": "c", "D": "c"}), &json!("c")),
        item(4, &tube, "Which direction?", &which, &json!("left")),
        item(5, &tube, "Which direction?", &which, &json!("left")),
        {"id": 6, "video": "./own//y.mp4", "question": "Yes?", "choices": {"B": "no", "A": "yes"},
            "answer": "no"},
    ]);
    let synthetic = json!([
        item(
            1,
            "videos_synthetic/synth_001.mp4",
            "q",
            &json!({"A": "No car", "B": "x"}),
            &json!("No car")
        ),
        item(
            2,
            "videos_synthetic/synth_001.mp4",
            "r",
            &json!({"A": "north", "B": "x"}),
            &json!("north")
        ),
    ]);
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("QA")).unwrap();
    fs::write(folder.path().join("QA/real_mc.json"), real.to_string()).unwrap();
    // the other place where a file may stand
    fs::write(folder.path().join("synthetic_mc.json"), synthetic.to_string()).unwrap();
    folder
}

#[test]
fn traps_of_the_question_files() {
    let folder = traps();
    let (q, notes) = entry::read(folder.path(), &subsets()).unwrap();
    assert_eq!(q.len(), 8);
    let ids: BTreeSet<&str> = q.iter().map(|q| &*q.id).collect();
    assert_eq!(ids.len(), 8, "ids collide between the files and must not here");
    // integers are text, 0 too
    assert_eq!(q[0].choices, ["1", "2", "3", "0"]);
    assert_eq!((&*q[0].gold, &q[0].gold_choices), ("0", &vec![3]));
    assert_eq!(q[0].media, [Medium::video("videos_real/davis/bus.mp4")]);
    // white space
    assert_eq!((&*q[1].gold, &*q[1].choices[2], &*q[1].question), ("up", "up", "Where to?"));
    assert_eq!(q[1].gold_choices, [2]);
    // two gold letters
    assert_eq!(q[2].gold_choices, [2, 3]);
    // an own video, two choices
    assert_eq!((&*q[5].id, q[5].video()), ("real/6", "own/y.mp4".into()));
    assert_eq!(
        (&q[5].choices, &q[5].gold_choices),
        (&vec!["yes".to_owned(), "no".to_owned()], &vec![1])
    );
    let told = |f: fn(&Entry) -> &str| q.iter().map(f).collect::<Vec<_>>();
    let synthetic = "synthetic";
    assert_eq!(
        told(|q| &q.source),
        ["davis", "davis", "ego4d", "youtube-vos", "youtube-vos", "own", synthetic, synthetic]
    );
    let exo = "exo-centric";
    assert_eq!(
        told(|q| &q.group),
        [exo, exo, "ego-centric", exo, exo, "own", "false-positive", "directional"]
    );
    assert_eq!(
        notes,
        [
            "real/validation_3 has two identical choices; either letter counts",
            "real/validation_4 and real/validation_5 are the same question on the same video",
        ]
    );
}

#[test]
fn prompts_are_those_of_the_benchmark() {
    let folder = traps();
    let (q, _) = entry::read(folder.path(), &subsets()).unwrap();
    let ask = |i: usize, format, style| vlm4d::prompt(&q[i].question, &q[i].choices, format, style);
    assert_eq!(
        ask(1, Format::Mc, PromptStyle::Do),
        "\nQuestion: Where to?\nA: left\nB: right\nC: up\nD: away\n\nDo not generate any \
         intermediate reasoning process. Answer directly with the option letter from the given \
         choices.\n"
    );
    assert_eq!(
        ask(1, Format::Ff, PromptStyle::Do),
        "\nQuestion: Where to?\n\nDo not generate any intermediate reasoning process. Directly \
         output the final short answer.\n"
    );
    assert_eq!(
        ask(1, Format::Mc, PromptStyle::Cot),
        "\nQuestion: Where to?\nA: left\nB: right\nC: up\nD: away\n\nAnswer the given \
         multiple-choice question step by step. Begin by explaining your reasoning process \
         clearly. In the last sentence of your response, you must conclude by stating the final \
         answer using the following format: 'Therefore, the final answer is: $LETTER' (without \
         quotes), where $LETTER must be only one of the options (A or B or C or D). Think step by \
         step before answering."
    );
    assert_eq!(
        ask(1, Format::Ff, PromptStyle::Cot),
        "\nQuestion: Where to?\n\nAnswer the given question step by step. Begin by explaining \
         your reasoning process clearly. Conclude by stating the final answer using the following \
         format: 'Therefore, the final answer is: 'Answer: $ANSWER' (without quotes), where \
         $ANSWER is the final answer of the question. Think step by step before answering."
    );
    assert!(ask(5, Format::Mc, PromptStyle::Cot).contains("options (A or B)."));
    for (i, format, answer) in [(0, Format::Mc, "D"), (0, Format::Ff, "0"), (2, Format::Mc, "C")] {
        let learnt = q[i].training(format);
        assert_eq!(learnt[1], Message::new("assistant", [Content::Text(answer.into())]));
    }
    assert_eq!(serde_json::to_value(Format::Ff).unwrap(), "ff");
    assert_eq!(serde_json::from_str::<PromptStyle>("\"cot\"").unwrap(), PromptStyle::Cot);
}

#[test]
fn faults_of_a_question_file_are_named() {
    let good = item(7, "v/x.mp4", "q", &json!({"A": "l", "B": "r"}), &json!("l"));
    let with = |field: &str, value: Value| {
        let mut item = good.clone();
        item[field] = value;
        json!([good, item]).to_string()
    };
    let many: BTreeMap<String, u32> = (0..27).map(|i| (i.to_string(), i)).collect();
    let cases = [
        ("[\n {\"id\": 1,}]".to_owned(), "real_mc.json:2:11: not valid JSON"),
        ("{}".into(), "not a JSON array"),
        ("[1]".into(), "item 0: not an object"),
        ("[]".into(), "real_mc.json: holds no questions"),
        (with("id", Value::Null), "item 1: `id` is neither text nor a number"),
        (
            with("id", json!("validation_7")),
            "item 1 (`validation_7`): this `id` stands in it twice",
        ),
        (with("question", json!(" ")), "item 1 (`validation_7`): `question` is empty"),
        (with("question", json!("<|video_pad|>?")), "(`validation_7`): spells `<|video_pad|>`"),
        (with("answer", json!("A")), "`answer` is \"A\", which is none of the `choices`"),
        (with("choices", json!(["l", "r"])), "`choices` is missing or not an object"),
        (with("choices", json!({"A": "l"})), "`choices` has 1 entries"),
        (with("choices", json!(many)), "`choices` has 27 entries"),
        (with("choices", json!({"A": "l", "C": "r"})), "`choices`: `B` is missing"),
        (with("choices", json!({"A": "l", "B": ["r"]})), "`choices`: `B` is neither text nor"),
        (with("video", json!("https://x.org/y.mp4")), "`video` is the URL \"https://x.org/y.mp4\""),
    ];
    for (text, wanted) in cases {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("real_mc.json");
        fs::write(&path, &text).unwrap();
        let error = entry::read(folder.path(), &["real".into()]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let error = error.to_string();
        assert!(error.starts_with(path.to_str().unwrap()), "{error}");
        assert!(error.contains(wanted), "{error}\nlacks {wanted}");
        assert!(!error.contains(" at line "), "{error}");
    }
    let folder = traps();
    let error = entry::read(folder.path(), &["reel".into()]).unwrap_err();
    assert!(error.to_string().contains("no `QA/reel_mc.json`"), "{error}");
    assert_eq!(error.fix(), Some("the folder has the subsets real, synthetic"));
}

fn count<'a>(values: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts
}

#[test]
fn the_real_files_have_the_published_counts() {
    let Some(folder) = real_files("the_real_files_have_the_published_counts") else { return };
    let (q, notes) = entry::read(&folder, &subsets()).unwrap();
    let (real, synthetic): (Vec<_>, Vec<_>) = q.iter().partition(|q| q.subset == "real");
    assert_eq!((real.len(), synthetic.len()), (1_371, 445));
    let videos = |q: &[&Entry]| -> BTreeMap<String, String> {
        q.iter().map(|q| (q.video(), q.source.clone())).collect()
    };
    assert_eq!(
        count(videos(&real).values().map(String::as_str)),
        BTreeMap::from([("davis", 210), ("ego4d", 300), ("youtube-vos", 90)])
    );
    assert_eq!(count(videos(&synthetic).values().map(String::as_str)), [("synthetic", 400)].into());
    let groups =
        [("exo-centric", 922), ("ego-centric", 449), ("directional", 400), ("false-positive", 45)];
    assert_eq!(count(q.iter().map(|q| &*q.group)), groups.into());
    assert_eq!(q.iter().map(|q| &q.id).collect::<BTreeSet<_>>().len(), 1_816);

    let raw: Vec<Value> =
        serde_json::from_slice(&fs::read(folder.join("real_mc.json")).unwrap()).unwrap();
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let (mut integers, mut zeros, mut spaced) = (0, 0, 0);
    for (raw, q) in raw.iter().zip(&real) {
        let answer = text(&raw["answer"]);
        integers += usize::from(raw["answer"].is_i64());
        zeros += usize::from(raw["answer"] == 0);
        spaced += usize::from(answer != q.gold);
        assert_eq!(answer.trim(), q.gold);
        // trimming makes no choice gold that was not the answer before
        let exact: Vec<usize> = ["A", "B", "C", "D"]
            .iter()
            .enumerate()
            .filter(|(_, letter)| text(&raw["choices"][letter]) == answer)
            .map(|(i, _)| i)
            .collect();
        assert_eq!(exact, q.gold_choices, "{}", q.id);
    }
    assert_eq!((integers, zeros, spaced), (232, 76, 34));
    assert_eq!(
        notes,
        [
            "real/validation_633 has two identical choices; either letter counts",
            "real/validation_1288 and real/validation_1289 are the same question on the same video",
        ]
    );
}

/// Writes a data folder `data` with two empty videos, one of them above it.
fn sharegpt_folder(info: &Value, rows: &str) -> (tempfile::TempDir, PathBuf) {
    let top = tempfile::tempdir().unwrap();
    let data = top.path().join("data");
    fs::create_dir(&data).unwrap();
    for file in ["data/a.mp4", "data/i.png", "above.mp4"] {
        fs::write(top.path().join(file), "").unwrap();
    }
    fs::write(
        data.join("dataset_info.json"),
        json!({"set": info, "other": {"hf_hub_url": "x/y"}}).to_string(),
    )
    .unwrap();
    for file in ["rows.json", "rows.jsonl", "rows.csv"] {
        fs::write(data.join(file), rows).unwrap();
    }
    (top, data)
}

/// LLaMA-Factory's own names, for rows of JSON lines with every kind of medium.
#[test]
fn sharegpt_with_default_names() {
    let info = json!({"file_name": "rows.jsonl", "formatting": "sharegpt",
        "columns": {"system": "system", "videos": "videos", "images": "images"}});
    let rows = [
        json!({"system": "Be brief.", "videos": ["data/a.mp4", "above.mp4"], "images": "i.png",
            "conversations": [{"from": "human", "value": "see <video> <image><video>"},
                {"from": "gpt", "value": "ok"}]}),
        json!({"conversations": [{"from": "system", "value": "S"},
            {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
        // an empty system message is none, and the row's own outweighs the column
        json!({"system": "", "conversations": [{"from": "human", "value": "a"},
            {"from": "gpt", "value": "b"}]}),
        json!({"system": "S", "conversations": [{"from": "system", "value": ""},
            {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
    ];
    let rows: Vec<String> = rows.iter().map(Value::to_string).collect();
    let (_top, data) = sharegpt_folder(&info, &rows.join("\n\n"));
    let (c, _) = entry::read(&data, &["set".into()]).unwrap();
    assert_eq!((&*c[0].id, &*c[1].id, &*c[0].subset, c.len()), ("set/0", "set/1", "set", 4));
    // one file has one name, whichever folder its path counts from
    let [first, second] = ["a.mp4", "../above.mp4"].map(Medium::video);
    assert_eq!(c[0].media, [first, Medium::image("i.png"), second]);
    let text = |text: &str| Content::Text(text.into());
    assert_eq!(
        c[0].messages,
        [
            Message::new("system", [text("Be brief.")]),
            Message::new(
                "user",
                [text("see "), Content::Video, text(" "), Content::Image, Content::Video]
            ),
            Message::new("assistant", [text("ok")]),
        ]
    );
    assert_eq!(c[1].messages[0], Message::new("system", [text("S")]));
    assert_eq!((c[1].messages.len(), c[1].media.len()), (3, 0));
    for row in [2, 3] {
        assert_eq!(c[row].messages, c[1].messages[1..], "row {row}");
    }
}

/// What other data sets than those in a file need, and what stands for nothing.
#[test]
fn a_data_set_may_say_what_changes_nothing() {
    let info = json!({"file_name": "rows.json", "formatting": "sharegpt", "ranking": false,
        "split": "train", "subset": null, "folder": null, "num_samples": null,
        "columns": {"messages": null, "videos": "videos", "system": null, "tools": "tools"},
        "tags": {"user_tag": "human", "system_tag": null, "observation_tag": "observation",
            "function_tag": "function_call"}});
    let talk = json!([{"from": "system", "value": "S"}, {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b"}]);
    let rows = [json!(""), json!("[]"), json!([]), Value::Null];
    let rows: Value = rows.iter().map(|t| json!({"tools": t, "conversations": talk})).collect();
    let (_top, data) = sharegpt_folder(&info, &rows.to_string());
    let (conversations, _) = entry::read(&data, &["set".into()]).unwrap();
    assert_eq!(conversations.len(), 4);
    assert!(conversations.iter().all(|c| c.messages[0].role == "system" && c.messages.len() == 3));
}

/// A split by video goes by their names.
#[test]
fn a_file_has_one_name_however_it_is_spelled() {
    let info = json!({"file_name": "rows.json", "formatting": "sharegpt",
        "columns": {"videos": "videos"}});
    let (top, data) = sharegpt_folder(&info, "");
    fs::create_dir(data.join("sub")).unwrap();
    for (to, link) in
        [("a.mp4", "b.mp4"), ("sub", "way"), ("../above.mp4", "far.mp4"), ("..", "up")]
    {
        symlink(to, data.join(link)).unwrap();
    }
    let absolute = [data.join("a.mp4"), top.path().join("above.mp4")];
    let [inside, outside] = absolute.each_ref().map(|path| path.to_str().unwrap());
    let spelled = ["a.mp4", ".//a.mp4", "data/a.mp4", "./data//a.mp4", "../data/./a.mp4", inside];
    let linked = ["sub/../a.mp4", "way/../b.mp4", "b.mp4", "../data/sub/../../data/a.mp4"];
    let above =
        ["far.mp4", "above.mp4", "../above.mp4", "data/up/above.mp4", "sub/../far.mp4", outside];
    let rows: Vec<Value> = [&spelled[..], &linked, &above]
        .concat()
        .into_iter()
        .map(|path| {
            json!({"videos": path, "conversations": [{"from": "human", "value": "<video>q"},
                {"from": "gpt", "value": "a"}]})
        })
        .collect();
    fs::write(data.join("rows.json"), json!(rows).to_string()).unwrap();
    let (conversations, _) = entry::read(&data, &["set".into()]).unwrap();
    assert_eq!(conversations.len(), rows.len());
    let (within, above) = conversations.split_at(spelled.len() + linked.len());
    for (conversation, row) in within.iter().zip(rows) {
        assert_eq!(conversation.media, [Medium::video("a.mp4")], "{}", row["videos"]);
    }
    // the first of its names
    assert!(above.iter().all(|c| c.media == [Medium::video("../above.mp4")]), "{above:?}");
}

#[test]
fn a_questions_video_has_one_name_too() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("y.mp4"), "").unwrap();
    symlink("y.mp4", own.join("z.mp4")).unwrap();
    // What several links outside of the folder lead to is one file; a blob of the hub's cache is not
    // one video, but all that have the same content.
    let elsewhere = tempfile::tempdir().unwrap();
    for (target, links) in [("f.mp4", ["l.mp4", "k.mp4"]), ("blobs/hash", ["m.mp4", "n.mp4"])] {
        let target = elsewhere.path().join(target);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(&target, "").unwrap();
        links.iter().for_each(|link| symlink(&target, own.join(link)).unwrap());
    }
    let spelled = ["own/y.mp4", "own/../own/y.mp4", "own/z.mp4"];
    let linked = ["own/l.mp4", "own/k.mp4", "own/m.mp4", "own/n.mp4"];
    let items = spelled.iter().chain(&linked).enumerate().map(|(i, video)| {
        json!({"id": i, "video": video, "question": "Where to?", "choices": {"A": "up", "B": "on"},
            "answer": "up"})
    });
    let items: Value = items.collect();
    fs::write(folder.path().join("mine_mc.json"), items.to_string()).unwrap();
    let (questions, _) = entry::read(folder.path(), &["mine".into()]).unwrap();
    let names: Vec<String> = questions.iter().map(Entry::video).collect();
    assert!(names[..3].iter().all(|name| name == "own/y.mp4"), "{names:?}");
    let linked = ["own/k.mp4", "own/k.mp4", "own/m.mp4", "own/n.mp4"];
    assert_eq!(names[3..], linked);
}

/// What `dataset_info.json` says of the rows that these tests read.
fn rows_info() -> Value {
    json!({"file_name": "rows.json", "formatting": "sharegpt", "columns": {"videos": "videos"}})
}

/// The same with another value of `key`.
fn with(key: &str, value: Value) -> Value {
    let mut info = rows_info();
    info[key] = value;
    info
}

/// A set of one row.
fn row(messages: &[&Value], videos: &Value) -> String {
    json!([{"conversations": messages, "videos": videos}]).to_string()
}

/// The messages of a row that can be read.
fn turns() -> [Value; 2] {
    [json!({"from": "human", "value": "<video>q"}), json!({"from": "gpt", "value": "a"})]
}

/// `info` and `rows` are refused, in words that hold `wanted`.
fn refused(info: &Value, rows: &str, wanted: &str) {
    let (_top, data) = sharegpt_folder(info, rows);
    let error = entry::read(&data, &["set".into()]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let error = error.to_string();
    assert!(error.starts_with(data.to_str().unwrap()), "{error}");
    assert!(error.contains(wanted), "{error}\nlacks {wanted}");
    assert!(!error.contains(" at line "), "{error}");
}

#[test]
fn faults_of_a_sharegpt_set_are_named() {
    let ([user, gpt], info) = (turns(), rows_info());
    let system = json!({"from": "system", "value": "s"});
    let good = row(&[&user, &gpt], &json!(["a.mp4"]));
    let cases = [
        (with("formatting", json!("alpaca")), good.clone(), "`formatting` is `alpaca`"),
        (json!({"file_name": "rows.json"}), good.clone(), "`formatting` is `alpaca`"),
        (
            with("num_samples", json!(5)),
            good.clone(),
            "data set `set`: `num_samples` is not supported\n  help: remove it from dataset_info.json: \
             data.max_questions",
        ),
        (with("ranking", json!(true)), good.clone(), "`ranking` is not supported"),
        (with("split", json!("test")), good.clone(), "`split` is not supported"),
        (json!({"hf_hub_url": "a/b"}), good.clone(), "data set `set`: has no `file_name`"),
        (
            with("columns", json!({"tools": "t"})),
            json!([{"t": "[{}]", "conversations": [system, user, gpt]}]).to_string(),
            "row 0: has tools",
        ),
        (with("file_name", json!("rows.csv")), good.clone(), "rows.csv: not .json or .jsonl"),
        (with("file_name", json!("gone.json")), good.clone(), "gone.json: "),
        (with("file_name", json!("rows.jsonl")), "{}\n{,}".into(), "rows.jsonl:2:2: "),
        (info.clone(), "[\n{]".into(), "rows.json:2:2: "),
        (info.clone(), "[\n{},\n".into(), "rows.json:3:1: EOF"),
        (
            info.clone(),
            "{}\n{}".into(),
            "rows.json: holds a row on each line\n  help: name it .jsonl",
        ),
        (
            info.clone(),
            "{}".into(),
            "rows.json: not a list of rows\n  help: a list of rows; JSON lines go into",
        ),
        (with("file_name", json!("rows.jsonl")), "[{},\n{}]".into(), "rows.jsonl: holds a list of"),
        (with("file_name", json!("rows.jsonl")), "\n\n".into(), "rows.jsonl: holds no questions"),
        (info.clone(), "[]".into(), "rows.json: holds no questions"),
        (with("file_name", json!("../data")), good.clone(), "../data: is a folder"),
    ];
    for (info, rows, wanted) in cases {
        refused(&info, &rows, wanted);
    }
    // a byte order mark is none
    let (_top, data) = sharegpt_folder(&info, &format!("\u{feff}{good}"));
    assert_eq!(entry::read(&data, &["set".into()]).unwrap().0.len(), 1);
    let error = entry::read(&data, &["sett".into()]).unwrap_err();
    assert_eq!(
        error.fix(),
        Some("the file has other, set; data.train and data.test name what is used")
    );
}

#[test]
fn faults_of_a_sharegpt_row_are_named() {
    let ([user, gpt], info) = (turns(), rows_info());
    let system = json!({"from": "system", "value": "s"});
    let good = row(&[&user, &gpt], &json!(["a.mp4"]));
    let cases = [
        (
            with("columns", json!({})),
            good.clone(),
            "row 0: 1 `<video>` in its messages, but 0 video(s)",
        ),
        (info.clone(), row(&[&user, &gpt], &json!(["a.mp4", "a.mp4"])), "row 0: 1 `<video>`"),
        (info.clone(), row(&[&user, &gpt], &json!(["b.mp4"])), "b.mp4: no such file"),
        (info.clone(), row(&[&user, &gpt], &json!([3])), "row 0: `videos` holds what is not"),
        (info.clone(), row(&[&user], &json!(["a.mp4"])), "row 0: the messages are not user and"),
        (
            info.clone(),
            row(&[&gpt, &user], &json!(["a.mp4"])),
            "row 0: the messages are not user and",
        ),
        (info.clone(), row(&[], &json!([])), "row 0: the messages are not user and"),
        (
            info.clone(),
            row(&[&user, &system, &gpt], &json!(["a.mp4"])),
            "row 0: the messages are not",
        ),
        (
            info.clone(),
            row(&[&user, &json!({"from": "tool", "value": ""})], &json!([])),
            "message 1: unknown role `tool`",
        ),
        (
            info.clone(),
            row(&[&user, &json!({"from": "gpt", "value": 3})], &json!([])),
            "message 1: `value` is missing or",
        ),
        (
            info.clone(),
            row(&[&user, &gpt, &user, &json!({"from": "gpt", "value": " \n"})], &json!(["a.mp4"])),
            "row 0: the last answer is empty",
        ),
        (
            info.clone(),
            row(&[&user, &json!({"from": "gpt", "value": "<video>"})], &json!([])),
            "outside the user's",
        ),
        (
            info.clone(),
            row(&[&user, &json!({"from": "gpt", "value": "a <|image_pad|>"})], &json!(["a.mp4"])),
            "row 0: message 1: spells `<|image_pad|>`",
        ),
        (
            with("columns", json!({"system": "system"})),
            json!([{"system": "<|video_pad|>", "conversations": []}]).to_string(),
            "row 0: `system`: spells `<|video_pad|>`",
        ),
    ];
    for (info, rows, wanted) in cases {
        refused(&info, &rows, wanted);
    }
}
