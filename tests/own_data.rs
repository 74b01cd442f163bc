//! Data sets of one's own through the whole run: VLM4D's form under another name, and
//! LLaMA-Factory's.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use vlm4d_train::recipe::Recipe;

use crate::support::golden;
use crate::support::run::{Workplace, copy_dir, demo_data, recipe, text, tiny};

/// `recipe` with `data` added to its `[data]`.
fn with(recipe: &str, data: &str) -> String {
    recipe.replacen("[video]", &format!("{data}\n[video]"), 1)
}

fn predictions(place: &Workplace) -> Vec<Value> {
    asked(place, "predictions.jsonl")
}

/// The predictions of one round after training.
fn asked(place: &Workplace, file: &str) -> Vec<Value> {
    let lines = fs::read_to_string(place.path("after").join(file)).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn split(place: &Workplace) -> Value {
    serde_json::from_slice(&fs::read(place.path("split.json")).unwrap()).unwrap()
}

/// The demo's real questions as `QA/mine_mc.json`, with plain paths to videos under `clips`.
fn mine() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("own");
    copy_dir(demo_data(), &data);
    fs::rename(data.join("videos_real"), data.join("clips")).unwrap();
    fs::remove_file(data.join("QA/synthetic_mc.json")).unwrap();
    let questions = fs::read_to_string(data.join("QA/real_mc.json")).unwrap();
    fs::remove_file(data.join("QA/real_mc.json")).unwrap();
    let mut items: Vec<Value> = serde_json::from_str(&questions).unwrap();
    for item in &mut items {
        let url = item["video"].as_str().unwrap();
        let (_, path) = url.split_once("/videos_real/").unwrap();
        item["video"] = format!("clips/{path}").into();
    }
    fs::write(data.join("QA/mine_mc.json"), json!(items).to_string()).unwrap();
    (dir, data)
}

#[test]
fn own_questions_go_through_the_whole_run() {
    let (_dir, data) = mine();
    let recipe = recipe(&tiny(), &data, "max_steps = 1\ngrad_accum = 1");
    let place = Workplace::new(&with(&recipe, "train = [\"mine\"]"));
    let output = place.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("data   mine "), "{}", text(&output.stdout));
    let predictions = predictions(&place);
    assert!(!predictions.is_empty());
    for prediction in predictions {
        assert_eq!(prediction["subset"], "mine");
        assert!(prediction["id"].as_str().unwrap().starts_with("mine/"));
        assert!(prediction["video"].as_str().unwrap().starts_with("clips/"));
    }
    let place = Workplace::new(&recipe);
    let output = place.run();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("the folder has the subsets mine"));
}

/// A `split.json` given back draws the same parts, with whatever seed.
#[test]
fn a_split_can_be_given_back() {
    let (_dir, data) = mine();
    let steps = "max_steps = 1\ngrad_accum = 1";
    let drawn = "train = [\"mine\"]\nsplit = { by = \"question\", test = 0.3, val = 0.1 }";
    let first = Workplace::new(&with(&recipe(&tiny(), &data, steps), drawn));
    assert!(first.run().status.success());
    let file = first.path("split.json").display().to_string();
    let given = format!("train = [\"mine\"]\nsplit = {{ file = {file:?} }}");
    let again = with(&recipe(&tiny(), &data, steps), &given);
    let second = Workplace::new(&format!("seed = 7\n{again}"));
    let output = second.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(split(&second), split(&first));
    let ids = |place: &Workplace| -> Vec<Value> {
        predictions(place).into_iter().map(|p| p["id"].clone()).collect()
    };
    assert_eq!(ids(&second), ids(&first));
    assert!(text(&output.stdout).contains("split of "), "{}", text(&output.stdout));
    // reports tell how it was made, which the recipe does not know
    let made = format!("by question with seed {}", split(&first)["mine"]["seed"]);
    for file in ["report.md", "report.html"] {
        let report = fs::read_to_string(second.path(file)).unwrap();
        assert!(report.contains(&made), "{file} has no `{made}`");
        assert!(report.contains("with seed 7, tested on"), "{file}");
    }
    // questions that are in no part are told
    let mut smaller = split(&first);
    let dropped = smaller["mine"]["train"].as_array_mut().unwrap().pop().unwrap();
    fs::write(first.path("smaller.json"), smaller.to_string()).unwrap();
    let third = Workplace::new(&again.replace("split.json", "smaller.json"));
    let output = third.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let note = "note   1 question(s) of `mine` are in no part of ";
    assert!(text(&output.stdout).contains(note), "{}", text(&output.stdout));
    assert_eq!(split(&third), smaller);
    // what cannot be
    let twice = |part: &str, id: &Value| {
        let mut wrong = split(&first);
        wrong["mine"][part].as_array_mut().unwrap().push(id.clone());
        wrong
    };
    for (wrong, wanted) in [
        (twice("test", &dropped), format!("{} is in train and in test", dropped.as_str().unwrap())),
        (twice("val", &json!("mine/none")), "`mine/none` is no question of the data".into()),
        (json!({"real": smaller["mine"]}), "has no subset `mine`".into()),
        (json!([]), "wrong.json:1:".into()),
    ] {
        fs::write(first.path("wrong.json"), wrong.to_string()).unwrap();
        let place = Workplace::new(&again.replace("split.json", "wrong.json"));
        let output = place.run();
        assert_eq!(output.status.code(), Some(2), "{wanted}");
        let stderr = text(&output.stderr).replace('`', "");
        assert!(stderr.contains(&wanted.replace('`', "")), "no {wanted} in {stderr}");
        assert!(!stderr.contains(" at line "), "{stderr}");
    }
    let both = again.replace("split = {", "split = { test = 0.1,");
    let output = Workplace::new(&both).run();
    assert!(
        text(&output.stderr).contains("`file` is given beside `by`, `test`, `val` or `seed`"),
        "{}",
        text(&output.stderr)
    );
}

/// A folder of LLaMA-Factory's with ten videos and two turns on each; with `image` one beside each
/// video but the first, in whose place it stands.
fn talks(dir: &Path, image: bool) -> PathBuf {
    let data = dir.join("data");
    copy_dir(demo_data(), &data);
    let mut videos: Vec<PathBuf> = Vec::new();
    for folder in fs::read_dir(data.join("videos_real")).unwrap() {
        videos.extend(fs::read_dir(folder.unwrap().path()).unwrap().map(|f| f.unwrap().path()));
    }
    videos.sort();
    let rows: Vec<Value> = videos
        .iter()
        .enumerate()
        .map(|(i, video)| {
            let [images, videos] = match (image, i) {
                (false, _) => [0, 1],
                (true, 0) => [1, 0],
                (true, _) => [1, 1],
            };
            let ask = "<image>".repeat(images) + &"<video>".repeat(videos) + "Where to?";
            let picture = format!("{i}.png");
            // of these the first one is asked to be turned
            let from = if i == 0 { "turned.jpg" } else { "small.png" };
            fs::copy(golden("images/data").join(from), data.join(&picture)).unwrap();
            let images = &[picture][..images];
            let videos = &[video.strip_prefix(dir).unwrap()][..videos];
            json!({"videos": videos, "images": images, "messages": [
                {"role": "user", "content": ask}, {"role": "assistant", "content": "To the left."},
                {"role": "user", "content": "Really?"}, {"role": "assistant", "content": "Left."}]})
        })
        .collect();
    fs::write(data.join("talks.json"), json!(rows).to_string()).unwrap();
    let info = json!({"talks": {"file_name": "talks.json", "formatting": "sharegpt",
        "columns": {"messages": "messages", "videos": "videos", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
            "assistant_tag": "assistant"}}});
    fs::write(data.join("dataset_info.json"), info.to_string()).unwrap();
    data
}

/// VLM4D's default, to test on `real`, is not for a set of LLaMA-Factory's that has one of its names.
#[test]
fn a_set_is_tested_on_itself_whatever_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = with(&recipe(&tiny(), dir.path(), ""), "train = [\"synthetic\"]");
    let tested = || Recipe::from_text(&recipe, "r.toml").unwrap().data.test_subsets();
    assert_eq!(tested(), ["real"]);
    fs::write(dir.path().join("dataset_info.json"), "{}").unwrap();
    assert_eq!(tested(), ["synthetic"]);
}

#[test]
fn conversations_go_through_the_whole_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = talks(dir.path(), false);
    let recipe = recipe(&tiny(), &data, "max_steps = 2\ngrad_accum = 1");
    let place =
        Workplace::new(&with(&recipe, "train = [\"talks\"]\nformats = [\"mc\"]\nmirror = 0.5"));
    let output = place.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let predictions = predictions(&place);
    assert_eq!(predictions.len(), 2, "two of ten conversations, freeform");
    assert!(predictions.iter().all(|p| p["format"] == "ff" && p["gold"] == "Left."));
    assert!(predictions.iter().all(|p| p["n_video_tokens"].as_u64().unwrap() > 0));
    for note in [
        "note   conversations are freeform, whatever data.formats and eval.formats say",
        "note   all 8 training questions can be mirrored",
    ] {
        assert!(text(&output.stdout).contains(note), "{}", text(&output.stdout));
    }
    let refused = |data: &str, wanted: &str| {
        let place = Workplace::new(&with(&recipe, data));
        let output = place.run();
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(wanted), "{}", text(&output.stderr));
        assert!(!place.path("recipe.toml").exists());
    };
    refused("train = [\"talks\"]\nshuffle_choices = true", "no training question has choices");
    refused("train = [\"talk\"]", "no data set `talk`\n  help: the file has talks");
    let rows = fs::read_to_string(data.join("talks.json")).unwrap();
    fs::write(data.join("talks.json"), rows.replacen("Really?", "<|video_pad|>?", 1)).unwrap();
    refused("train = [\"talks\"]", "talks.json: row 0: message 2: spells `<|video_pad|>`");
}

#[test]
fn conversations_with_images_go_through_the_whole_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = talks(dir.path(), true);
    let recipe = recipe(&tiny(), &data, "max_steps = 2\ngrad_accum = 1");
    let recipe = with(&recipe, "train = [\"talks\"]\nmirror = 0.5\nsplit = { test = 0.9 }");
    let place = Workplace::new(&(recipe + "controls = [\"no_video\", \"wrong_video\"]"));
    let output = place.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.contains("data   talks 10 questions on 9 videos and 10 images: "), "{said}");
    assert!(said.contains("\nfiles  ") && !said.contains("\nvideos "), "{said}");
    let turned = "note   0.png would be turned by a viewer and are used as coded, as Pillow and ";
    assert!(said.contains(turned) && said.contains("image.upright = true turns them"), "{said}");
    let tested = asked(&place, "predictions.jsonl").into_iter();
    let (image, videos): (Vec<_>, Vec<_>) = tested.partition(|p| p["video"] == "0.png");
    assert_eq!((image.len(), videos.len()), (1, 8));
    let tokens = |p: &Value| p["n_video_tokens"].as_u64().unwrap();
    let blind = asked(&place, "predictions_no_video.jsonl");
    assert_eq!(blind.len(), 8, "there is nothing to ask without a video of an image");
    for (blind, seen) in blind.iter().zip(&videos) {
        assert!(0 < tokens(blind) && tokens(blind) < tokens(seen), "the image stays");
    }
    for wrong in asked(&place, "predictions_wrong_video.jsonl") {
        let shown = wrong["shown"].as_str().unwrap();
        assert!(shown.contains(".mp4") && wrong["video"] != shown, "{wrong}");
    }
    assert_eq!(tokens(&image[0]), 4, "45 × 61 pixels as 56 × 56");
    let report = fs::read_to_string(place.path("report.html")).unwrap();
    assert!(report.contains("\"0.png\""), "the image stands in the report");
}
