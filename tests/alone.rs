//! `eval`: a checkpoint by itself, with an adapter of a run, with one of PEFT's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::golden;
use crate::support::run::{Workplace, copy_dir, demo_data, text};

fn workplace(model: &str, eval: &str) -> Workplace {
    Workplace::new(&format!(
        "[model]\npath = {:?}\n[data]\npath = {:?}\ncache = \"cache\"\n[video]\nmax_frames = 4\n\
         max_pixels = 9408\n[lora]\n[train]\nlr = 1e-2\nmax_steps = 2\ngrad_accum = 2\n\
         [eval]\nmax_new_tokens = 4\n{eval}\n",
        golden(&format!("ckpt/{model}")).display().to_string(),
        demo_data().display().to_string(),
    ))
}

fn succeed(place: &Workplace, arguments: &[&str]) -> String {
    let output = place.with(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Every file below `dir`, with its content.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        found.push((path.strip_prefix(dir).unwrap().to_owned(), std::fs::read(path).unwrap()));
    }
    found.sort();
    found
}

const ALL: &str = "controls = [\"no_video\", \"shuffled\", \"reversed\", \"wrong_video\"]\n\
                   circular = true\ntrain_share = 0.1";

#[test]
fn a_run_and_evaluations_alone_say_the_same() {
    let place = workplace("tiny-qwen2.5-vl", ALL);
    succeed(&place, &["recipes/r.toml"]);
    let stage = |stage: &str| files(&place.path(stage));
    let predictions = |files: Vec<(PathBuf, Vec<u8>)>| -> Vec<(PathBuf, Vec<u8>)> {
        files
            .into_iter()
            .filter(|(path, _)| path.to_string_lossy().contains("predictions"))
            .collect()
    };
    let stdout = succeed(&place, &["eval", "recipes/r.toml"]);
    for part in
        ["| **all** |", "without the video", "right under all 4 rotations", "runs/r/eval/base"]
    {
        assert!(stdout.contains(part), "no `{part}` in\n{stdout}");
    }
    let base = predictions(stage("eval/base"));
    assert_eq!(base.len(), 7);
    assert!(base == predictions(stage("before")), "not what the run had before");
    check_controls(&place.path("eval/base"));
    succeed(&place, &["eval", "recipes/r.toml", "--adapter", "runs/r/adapter"]);
    let trained = predictions(stage("eval/runs-r-adapter"));
    assert!(trained == predictions(stage("after")), "not what the run had after");
    assert!(trained != base, "the adapter changes nothing");
    // The run's own folder is left alone.
    let output = place.with(&["eval", "recipes/r.toml", "--out", "runs/r"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("runs/r: holds a run"));
    // Once more, elsewhere: the same bytes; and at the same place, nothing is done again.
    succeed(&place, &["eval", "recipes/r.toml", "--out", "again"]);
    let again = files(&place.0.path().join("again"));
    assert_eq!(again.len(), 12);
    assert!(again == stage("eval/base"));
    succeed(&place, &["eval", "recipes/r.toml", "--out", "again"]);
    assert!(files(&place.0.path().join("again")) == again);
    // Another adapter does not go where one has been.
    let mixed =
        place.with(&["eval", "recipes/r.toml", "--adapter", "runs/r/adapter", "--out", "again"]);
    assert_eq!(mixed.status.code(), Some(2));
    check_metrics(&place.path("after/metrics.json"));
    let report = std::fs::read_to_string(place.path("report.md")).unwrap();
    for part in ["Seeing the video is worth, in points: before", "another video", "frames shuffled"]
    {
        assert!(report.contains(part), "no `{part}` in\n{report}");
    }
}

fn check_metrics(path: &Path) {
    let metrics: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let controls = metrics["controls"].as_object().unwrap();
    let names: Vec<&String> = controls.keys().collect();
    assert_eq!(names, ["no_video", "reversed", "shuffled", "train", "wrong_video"]);
    assert_eq!(metrics["mc"]["circular"]["rotations"].as_array().unwrap().len(), 4);
    assert_eq!(controls["reversed"]["mc"]["n"], metrics["mc"]["n"]);
    assert!(controls["reversed"]["mc"]["gain"]["p"].is_number());
    assert_eq!(metrics["mc"]["change"]["n"], metrics["mc"]["n"]);
    assert!(controls["train"]["mc"].get("gain").is_none());
}

#[test]
fn an_adapter_of_peft_is_asked() {
    let place = workplace("tiny-qwen2-vl", "controls = []");
    let adapter = golden("tiny-qwen2-vl/adapter_step_5");
    let adapter = adapter.to_str().unwrap();
    succeed(&place, &["eval", "recipes/r.toml", "--adapter", adapter, "--out", "peft"]);
    succeed(&place, &["eval", "recipes/r.toml", "--out", "base"]);
    let [peft, base] = ["peft", "base"]
        .map(|out| std::fs::read(place.0.path().join(out).join("predictions.jsonl")).unwrap());
    assert!(peft != base, "the adapter changes nothing");
}

#[test]
fn letters_alone_decide_where_the_recipe_says_so() {
    let place = workplace("tiny-qwen2-vl", "controls = []\nscoring = \"logprob\"");
    succeed(&place, &["eval", "recipes/r.toml", "--out", "out"]);
    let text = std::fs::read_to_string(place.0.path().join("out/predictions.jsonl")).unwrap();
    let mut seen = 0;
    for line in text.lines() {
        let prediction: Value = serde_json::from_str(line).unwrap();
        if prediction["format"] == "ff" {
            assert_eq!(prediction["grader"], "rules");
            continue;
        }
        seen += 1;
        assert_eq!(
            (&prediction["grader"], &prediction["response"]),
            (&"logprob".into(), &"".into())
        );
        let letters = prediction["letter_logprobs"].as_object().unwrap();
        let of = |letter: &str| letters[letter].as_f64().unwrap();
        let answer = prediction["extracted"].as_str().unwrap();
        assert!(letters.keys().all(|letter| of(letter) <= of(answer)), "{line}");
        let chosen = &prediction["choices"][usize::from(answer.as_bytes()[0] - b'A')];
        assert_eq!(prediction["correct"], Value::from(*chosen == prediction["gold"]), "{line}");
    }
    assert!(seen > 0);
}

#[test]
fn a_stopped_evaluation_goes_on_behind_its_last_batch() {
    let place = workplace("tiny-qwen2-vl", "controls = []\nbatch_size = 1");
    succeed(&place, &["eval", "recipes/r.toml", "--out", "whole"]);
    let whole = std::fs::read_to_string(place.0.path().join("whole/predictions.jsonl")).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    // Each video is a batch: the first one's answers, one of them changed to know it by, half of
    // the next, and a line that was being written.
    let video = |line: &str| serde_json::from_str::<Value>(line).unwrap()["video"].to_string();
    let own: Vec<&str> = lines.iter().filter(|l| video(l) == video(lines[0])).copied().collect();
    let next = lines.iter().find(|l| video(l) != video(lines[0])).unwrap();
    let marked = own[0].replacen("\"question\":\"", "\"question\":\"MARK ", 1);
    let rest = own[1..].join("\n");
    let changed = next.replacen("\"question\":\"", "\"question\":\"LOST ", 1);
    let so_far = format!("{marked}\n{rest}\n{changed}\n{}", &next[..next.len() / 2]);
    let out = place.0.path().join("stopped");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("predictions.jsonl.so-far"), so_far).unwrap();
    succeed(&place, &["eval", "recipes/r.toml", "--out", "stopped"]);
    let resumed = std::fs::read_to_string(out.join("predictions.jsonl")).unwrap();
    assert_eq!(resumed.replace("MARK ", ""), whole);
    assert_eq!(resumed.matches("MARK ").count(), 1, "the kept answers were asked again");
    assert!(!out.join("predictions.jsonl.so-far").exists());
}

#[test]
fn what_cannot_be_asked_is_refused() {
    let place = workplace("tiny-qwen2-vl", "");
    let checkpoint = golden("ckpt/tiny-qwen2-vl");
    let other = golden("tiny-qwen2.5-vl/adapter_step_5");
    for (arguments, wanted) in [
        (vec!["--adapter", "nowhere"], "nowhere/adapter_config.json: no such file"),
        (vec!["--adapter", checkpoint.to_str().unwrap()], "is a checkpoint, no adapter"),
        (vec!["--adapter", other.to_str().unwrap()], "the model wants"),
    ] {
        let output = place.with(&[vec!["eval", "recipes/r.toml"], arguments].concat());
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(wanted), "no `{wanted}` in\n{stderr}");
        assert!(!place.0.path().join("runs").exists(), "something was written");
    }
}

#[test]
fn an_evaluation_goes_on_with_what_its_answers_depend_on() {
    let place = workplace("tiny-qwen2-vl", "");
    let path = place.0.path().join("recipes/r.toml");
    let recipe = std::fs::read_to_string(&path).unwrap();
    let with = |from: &str, to: &str| {
        assert!(recipe.contains(from), "{from}");
        std::fs::write(&path, recipe.replacen(from, to, 1)).unwrap();
        place.with(&["eval", "recipes/r.toml", "--out", "out"])
    };
    assert!(with("lr = 1e-2", "lr = 1e-2").status.success());
    for (from, to) in [
        ("lr = 1e-2", "lr = 1e-3"),
        ("[lora]", "[lora]\nr = 4"),
        ("[lora]\n", ""),
        ("[video]", "mirror = 0.5\n[video]"),
    ] {
        let output = with(from, to);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("done before; its results:"));
    }
    for (from, to, told) in [
        ("[eval]", "[eval]\nprompt = \"cot\"", "`eval.prompt` is do there and cot here"),
        ("[video]", "split = { test = 0.3 }\n[video]", "`data.split.test` is 0.2 there and 0.3"),
        ("[model]", "seed = 7\n[model]", "`seed` is 42 there and 7 here"),
    ] {
        let output = with(from, to);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        let told = format!("out: holds an evaluation of another recipe: {told}");
        assert!(
            stderr.contains(&told) && stderr.contains("help: give another folder with --out"),
            "{stderr}"
        );
    }
}

/// Controls show what they are named for.
fn check_controls(dir: &Path) {
    let read = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(dir.join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let of = |control: &str| read(&format!("predictions_{control}.jsonl"));
    let letters = |all: &[Value]| -> Vec<Value> {
        all.iter().map(|p| p["letter_logprobs"].clone()).collect()
    };
    let plain = read("predictions.jsonl");
    assert!(plain.iter().all(|p| p["n_video_tokens"].as_u64() > Some(0)));
    assert!(of("no_video").iter().all(|p| p["n_video_tokens"] == 0));
    assert!(of("wrong_video").iter().all(|p| p["shown"].is_string() && p["shown"] != p["video"]));
    for control in ["no_video", "shuffled", "reversed", "wrong_video"] {
        assert_ne!(letters(&of(control)), letters(&plain), "{control}");
    }
}

#[test]
fn a_judge_decides_what_the_rules_leave_open_in_every_round() {
    let eval = "controls = [\"no_video\"]\njudge = { kind = \"base\" }";
    let place = workplace("tiny-qwen2-vl", eval);
    succeed(&place, &["eval", "recipes/r.toml", "--out", "out"]);
    for file in ["predictions.jsonl", "predictions_no_video.jsonl"] {
        let text = std::fs::read_to_string(place.0.path().join("out").join(file)).unwrap();
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut judged = 0;
        for p in all.filter(|p| p["format"] == "ff") {
            let open = !p["response"].as_str().unwrap().trim().is_empty();
            match p["grader"].as_str().unwrap() {
                "rules" => assert!(p["correct"] == true || !open, "{p}"),
                grader => {
                    assert_eq!(grader, "base/tiny-qwen2-vl");
                    judged += 1;
                }
            }
        }
        assert!(judged > 0, "{file}");
    }
}

#[test]
fn responses_end_as_the_checkpoint_says_and_answer_the_recipes_prompt() {
    let place = workplace("tiny-qwen2-vl", "controls = []");
    let source = golden("ckpt/tiny-qwen2-vl");
    copy_dir(&source, &place.0.path().join("model"));
    let ends = serde_json::json!({"eos_token_id": (0..704).collect::<Vec<u32>>()}).to_string();
    std::fs::write(place.0.path().join("model/generation_config.json"), ends).unwrap();
    let path = place.0.path().join("recipes/r.toml");
    let recipe = std::fs::read_to_string(&path).unwrap();
    let ask = |out: &str, from: &str, to: &str| {
        assert!(recipe.contains(from));
        std::fs::write(&path, recipe.replace(from, to)).unwrap();
        succeed(&place, &["eval", "recipes/r.toml", "--out", out]);
        let file = place.0.path().join(out).join("predictions.jsonl");
        std::fs::read_to_string(file).unwrap()
    };
    let four = ask("four", "tokens = 4", "tokens = 4");
    let one = ask("one", "tokens = 4", "tokens = 1");
    assert_ne!(one, four);
    assert_eq!(ask("ended", &source.display().to_string(), "model"), one);
    let cot = ask("cot", "[eval]", "[eval]\nprompt = \"cot\"");
    let responses = |text: &str| -> Vec<Value> {
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        all.map(|p| p["response"].clone()).collect()
    };
    assert_ne!(responses(&cot), responses(&four));
}

#[test]
fn every_adapter_has_a_folder_of_its_own() {
    let place = workplace("tiny-qwen2-vl", "");
    let folder = |adapter: &str| {
        let output = place.with(&["eval", "recipes/r.toml", "--adapter", adapter]);
        let stdout = text(&output.stdout);
        stdout.lines().next().unwrap().split_once("runs/r/eval/").unwrap().1.to_owned()
    };
    assert_eq!(folder("runs/r/adapter"), "runs-r-adapter");
    assert!(!["", "base"].contains(&&*folder(".")) && folder("base") != "base");
    let long = "x/".repeat(200);
    let paths = ["a/b/c", "a-b/c", "a/b-c", "/x/a", "x/a", "../a", "up/a", ".", &long, &long[2..]];
    let folders: BTreeSet<String> = paths.iter().map(|path| folder(path)).collect();
    assert_eq!(folders.len(), paths.len(), "{folders:?}");
    assert!(folders.iter().all(|folder| folder.len() < 256), "{folders:?}");
}
