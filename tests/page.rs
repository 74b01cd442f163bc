//! The reports of a run: what stands in them, and how the page behaves in a browser.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use vlm4d_train::data::entry::{self, Entry};
use vlm4d_train::data::video::Frames;
use vlm4d_train::data::vlm4d::{Format, PromptStyle, letter};
use vlm4d_train::error::Result;
use vlm4d_train::eval::answer::{direction, kind};
use vlm4d_train::eval::grade;
use vlm4d_train::eval::predict::{self, Prediction};
use vlm4d_train::recipe::Recipe;
use vlm4d_train::report::controls;
use vlm4d_train::report::directions::confusion;
use vlm4d_train::report::html::Media;
use vlm4d_train::report::html::relative;
use vlm4d_train::report::html::run::write;
use vlm4d_train::report::html::strip::{frames_per_video, strip};
use vlm4d_train::report::markdown;

use crate::support::run::write_vlm4d_split;
use crate::support::skipped;

/// Questions as many as VLM4D has, on as many videos.
const QUESTIONS: usize = 1_816;
const VIDEOS: usize = 1_000;

struct Asked {
    id: String,
    source: String,
    group: String,
    video: String,
    choices: Vec<String>,
    question: String,
}

/// Made-up questions; VLM4D's own where `VLM4D_QA` names them.
fn questions() -> Vec<Asked> {
    if let Some(dir) = std::env::var_os("VLM4D_QA") {
        let subsets = ["real", "synthetic"].map(str::to_owned);
        let (questions, _) = entry::read(Path::new(&dir), &subsets).unwrap();
        let own = |q: Entry| Asked {
            video: q.video(),
            id: q.id,
            source: q.source,
            group: q.group,
            choices: q.choices,
            question: q.question,
        };
        return questions.into_iter().map(own).collect();
    }
    let choices = ["left", "right", "towards the camera", "not moving"].map(str::to_owned);
    (0..QUESTIONS)
        .map(|i| Asked {
            id: format!("real/validation_{i}"),
            source: ["davis", "ego4d", "youtube-vos", "synthetic"][i % 4].into(),
            group: ["exo-centric", "ego-centric", "exo-centric", "directional"][i % 4].into(),
            video: format!("videos_real/{}/{}.mp4", i % 4, i % VIDEOS),
            choices: choices.to_vec(),
            question: format!("In which direction does number {i} move?"),
        })
        .collect()
}

/// Answers of a model that is right `right` times in ten.
fn predictions(right: usize, turn: usize) -> Vec<Prediction> {
    let mut all = Vec::new();
    for (i, asked) in questions().into_iter().enumerate() {
        let Asked { id, source, group, video, choices, question } = asked;
        for format in Format::ALL {
            let gold = (i * 5) % choices.len();
            let correct = (i * 7 + turn) % 10 < right;
            let taken = if correct { gold } else { (gold + 1 + turn % 2) % choices.len() };
            let silent = !correct && i % 17 == 0;
            let extracted = match format {
                Format::Mc => letter(taken).to_string(),
                Format::Ff => choices[taken].to_lowercase(),
            };
            let logprob = |c: usize| if c == taken { -0.4f32 } else { -2.2 };
            let letters = (0..choices.len()).map(|c| (letter(c), logprob(c))).collect();
            all.push(Prediction {
                id: id.clone(),
                subset: id.split('/').next().unwrap().into(),
                source: source.clone(),
                group: group.clone(),
                video: video.clone(),
                cluster: None,
                format,
                rotation: None,
                shown: None,
                prompt: PromptStyle::Do,
                question: question.clone(),
                choices: choices.clone(),
                gold: choices[gold].clone(),
                response: if silent { "</script> <b>&".into() } else { extracted.clone() },
                extracted: (!silent).then_some(extracted),
                correct,
                grader: "rules".into(),
                letter_logprobs: (format == Format::Mc).then_some(letters),
                n_video_tokens: 12,
            });
        }
    }
    all
}

/// A ball that crosses a field.
fn frames(name: &str) -> Frames {
    let (len, height, width) = (8, 96, 168);
    let tint = name.bytes().map(usize::from).sum::<usize>() % 120;
    let mut rgb = Vec::with_capacity(len * height * width * 3);
    for f in 0..len {
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let ball =
                (x as isize - (20 * f + 10) as isize).pow(2) + (y as isize - 48).pow(2) < 150;
            let ground = [40 + tint, 60 + y, 150 - y];
            rgb.extend(if ball { [240, 220, 60] } else { ground.map(|v| v as u8) });
        }
    }
    Frames { rgb, len, height, width }
}

/// Writes the page of a made-up run on all questions; returns its folder.
fn page() -> TempDir {
    page_of(&predictions(3, 0), &predictions(6, 4))
}

fn page_of(before: &[Prediction], after: &[Prediction]) -> TempDir {
    let dir = TempDir::new().unwrap();
    page_in(dir.path(), before, after);
    dir
}

fn recipe() -> Recipe {
    let text = "[model]\npath = \"data/models/Qwen2.5-VL-7B-Instruct\"\n[data]\npath = \"data/vlm4d\"\n[lora]\n";
    Recipe::from_text(text, "made up").unwrap()
}

fn page_in(dir: &Path, before: &[Prediction], after: &[Prediction]) {
    let record = |step: usize| {
        let x = step as f64 / 400.0;
        let loss = 2.0 * (-3.0 * x).exp() + 0.3 + 0.1 * (step as f64 * 12.9).sin();
        format!(
            "{{\"step\":{step},\"epoch\":{x},\"loss\":{loss},\"lr\":{},\"grad_norm\":{},\"samples\":8,\"tokens\":9000,\"seconds\":2.0,\"memory_bytes\":1}}\n",
            1e-4 * (1.0 + (3.1 * x).cos()) / 2.0,
            0.5 + 0.2 * (step as f64 * 7.7).sin()
        )
    };
    std::fs::write(dir.join("log.jsonl"), (1..=400).map(record).collect::<String>()).unwrap();
    write_vlm4d_split(dir, &["real", "synthetic"]);
    page_anew(dir, before, after);
}

/// Writes the page alone.
fn page_anew(dir: &Path, before: &[Prediction], after: &[Prediction]) {
    let recipe = recipe();
    let media = Media {
        frames: &|name: &str| -> Result<Frames> { Ok(frames(name)) },
        href: &|name: &str| Some(format!("../../data/vlm4d/{name}")),
        progress: &|_| (),
    };
    let stages = controls::of_run(dir, before, after, recipe.seed).unwrap();
    let missing = write(dir, &recipe, &stages, [before, after], &media).unwrap();
    assert_eq!(missing, Vec::<String>::new());
}

/// The JSON that the page carries.
fn data(html: &str) -> Value {
    let start = html.find("id=\"data\">").unwrap() + "id=\"data\">".len();
    let end = start + html[start..].find("</script>").unwrap();
    serde_json::from_str(&html[start..end]).unwrap()
}

#[test]
fn one_file_holds_everything() {
    let dir = page();
    let path = dir.path().join("report.html");
    let html = std::fs::read_to_string(&path).unwrap();
    for outside in ["src=\"http", "href=\"http", "@import", "url(http", "<link rel=\"stylesheet\""]
    {
        assert!(!html.contains(outside), "`{outside}`");
    }
    for part in [
        "Multiple choice (MC)",
        "Freeform (FF)",
        "Loss",
        "Learning rate",
        "human, VLM4D",
        "guessing",
        "right answer",
        "it takes questions as independent",
        "where all videos score alike",
    ] {
        assert!(html.contains(part), "no `{part}`");
    }
    let data = data(&html);
    let questions = data["questions"].as_array().unwrap();
    assert_eq!(questions.len(), 2 * QUESTIONS);
    // A response that looks like markup ends no script.
    assert!(questions.iter().any(|q| q["after"]["response"] == "</script> <b>&"));
    assert_eq!(html.matches("</script>").count(), 2);
    for q in questions {
        let [before, after] = ["before", "after"].map(|s| q[s]["correct"].as_bool().unwrap());
        let outcome = match (before, after) {
            (false, true) => "fixed",
            (true, false) => "broken",
            (true, true) => "right",
            (false, false) => "wrong",
        };
        assert_eq!(q["outcome"], outcome);
        let letters = q["after"].get("letters").map_or(0, |l| l.as_array().unwrap().len());
        assert_eq!(letters > 0, q["format"] == "mc");
    }
    let videos = data["videos"].as_array().unwrap();
    assert_eq!(videos.len(), VIDEOS);
    assert!(videos.iter().all(|v| v["strip"]["frames"] == 3), "the budget allows three of each");
    let size = std::fs::metadata(&path).unwrap().len();
    assert!(size < 40 << 20, "{size} bytes");
}

/// Circular accuracy is that of all rotations together, and a control says what the video adds.
#[test]
fn controls_are_told_as_everywhere() {
    let dir = TempDir::new().unwrap();
    let [mut before, mut after] = [predictions(3, 0), predictions(6, 4)];
    for (stage, all) in [("before", &mut before), ("after", &mut after)] {
        all.truncate(80);
        std::fs::create_dir(dir.path().join(stage)).unwrap();
        let write = |name: &str, of: &[Prediction]| {
            let path = dir.path().join(stage).join(format!("predictions_{name}.jsonl"));
            predict::write(&path, of).unwrap();
        };
        let turned = |p: &Prediction| Prediction { rotation: Some(1), correct: true, ..p.clone() };
        let mc = all.iter().filter(|p| p.format == Format::Mc);
        write("circular", &mc.map(turned).collect::<Vec<_>>());
        write("no_video", all);
        write("train", &all[..8]);
    }
    page_in(dir.path(), &before, &after);
    let html = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    let stages = controls::of_run(dir.path(), &before, &after, 42).unwrap();
    let table = controls::table(&stages, Format::Mc).unwrap();
    assert!(html.contains(&table.html()));
    let names: Vec<&str> = table.rows.iter().map(|row| &*row[0]).collect();
    let want = ["right under all 2 rotations", "training questions", "without the video"];
    assert_eq!(names, want);
    let [circular, blind] = [&table.rows[0], &table.rows[2]];
    let heads = ["asked otherwise", "n", "before", "true video adds", "after", "true video adds"];
    assert_eq!(table.head, heads);
    assert!(circular[2].starts_with("30.0 [") && circular[4].starts_with("60.0 ["));
    assert!(circular[3].is_empty() && blind[3].starts_with("+0.0 ["), "{blind:?}");
    assert!(html.contains("Seeing the video is worth, in points: before +0.0 ["));
}

/// The paper's figure over all questions is over real and synthetic videos together.
#[test]
fn humans_stand_beside_all_where_all_was_asked() {
    for (groups, whole) in [
        (&["ego-centric", "exo-centric"] as &[&str], false),
        (&["directional", "false-positive"], false),
        (&["directional", "ego-centric", "exo-centric", "false-positive"], true),
    ] {
        let mut all = predictions(6, 4);
        all.truncate(80);
        for (i, p) in all.iter_mut().enumerate() {
            groups[i / 2 % groups.len()].clone_into(&mut p.group);
        }
        let dir = page_of(&all, &all);
        let html = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
        assert_eq!(html.contains("all (n 40), human, VLM4D: 98.3"), whole, "{groups:?}");
        assert!(html.contains(&format!("{} (n ", groups[0])) && html.contains("human, VLM4D: "));
        // Other questions have such groups too, as the demo set.
        write_vlm4d_split(dir.path(), &["real", "demo"]);
        page_anew(dir.path(), &all, &all);
        let html = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
        assert!(html.contains(&format!("{} (n ", groups[0])) && !html.contains("human, VLM4D"));
    }
}

/// Where the letters' probabilities decide, there is no response to quote.
#[test]
fn examples_quote_the_letter_where_there_is_no_response() {
    let dir = TempDir::new().unwrap();
    let [mut before, mut after] = [predictions(3, 0), predictions(6, 4)];
    for p in before.iter_mut().chain(&mut after) {
        p.response.clear();
        p.extracted = Some(if p.correct { "A" } else { "B" }.into());
    }
    let stages = controls::of_run(dir.path(), &before, &after, 42).unwrap();
    markdown::write(dir.path(), &recipe(), &stages, [&before, &after]).unwrap();
    let report = std::fs::read_to_string(dir.path().join("report.md")).unwrap();
    for part in ["Before: `B`. After: `A`.", "Before: `A`. After: `B`."] {
        assert!(report.contains(part), "no `{part}` in\n{report}");
    }
}

#[test]
fn frames_are_taken_evenly() {
    assert_eq!([1, 100, 400, 1_000].map(frames_per_video), [8, 8, 6, 3]);
    let all = frames("a");
    let picture = strip(&all, 3).unwrap();
    assert_eq!((picture.frames, picture.aspect), (3, 210.0 / 120.0));
    assert!(picture.src.starts_with("data:image/jpeg;base64,/9j/"));
    let one = Frames { len: 1, rgb: all.frame(0).to_vec(), ..all.clone() };
    assert_eq!(strip(&one, 8).unwrap().frames, 1);
}

#[test]
fn kinds_of_answers_are_told_apart() {
    for (want, texts) in [
        ("direction", &["left", "right, two times", "left and towards the camera"] as &[&str]),
        ("no motion", &["not moving", "No rotation", "staying in place"]),
        ("number", &["3", "one book", "Once", "one clockwise, one counter-clockwise"]),
        (
            "nothing there",
            &["no dragon there", "there are no cars in the video", "ther are no ice skaters"],
        ),
        ("other answer", &["no", "yes", "blue", "none of them"]),
    ] {
        for text in texts {
            assert_eq!(kind(text), want, "{text}");
        }
    }
}

#[test]
fn directions_are_told_from_answers() {
    for (text, want) in [
        ("Left", Some("left")),
        ("to his left", Some("left")),
        ("from left to right", Some("right")),
        ("Right to left", Some("left")),
        ("left-to-right", Some("right")),
        ("left then right", None),
        ("Both left and right", None),
        ("right hand", None),
        ("picking up", None),
        ("counter clockwise", Some("counter-clockwise")),
        ("Anticlockwise", Some("counter-clockwise")),
        ("clockwise", Some("clockwise")),
        ("not moving", Some("not moving")),
        ("moving straight and not turning", Some("forwards")),
        ("closer towards the camera", Some("towards")),
        ("further away from camera", Some("away")),
        ("downhill", Some("down")),
        ("left and towards the camera", None),
        ("4", None),
        ("no dragon there", None),
    ] {
        assert_eq!(direction(text), want, "{text}");
    }
    let predictions = predictions(6, 4);
    let table = confusion(&predictions, Format::Mc).unwrap();
    let counted: usize = table.counts.iter().flatten().sum();
    let golds =
        predictions.iter().filter(|p| p.format == Format::Mc && direction(&p.gold).is_some());
    assert_eq!(counted, golds.count());
    for (row, name) in table.counts.iter().zip(&table.rows) {
        let right = table.columns.iter().position(|column| column == name).unwrap();
        let correct = predictions
            .iter()
            .filter(|p| p.format == Format::Mc && p.correct && direction(&p.gold) == Some(name));
        assert!(row[right] >= correct.count(), "{name}");
    }
}

/// Freeform answers are told by what was said, not by the normal form that the rules make of it.
#[test]
fn directions_of_freeform_answers_are_those_that_were_said() {
    let base = predictions(6, 4).into_iter().find(|p| p.format == Format::Ff).unwrap();
    for (gold, response, want) in [
        ("not moving", "The truck stands still.", "not moving"),
        ("not spinning", "It isn't spinning.", "not moving"),
        ("right to left", "From the right to the left.", "left"),
        ("left", "It is stationary.", "not moving"),
        ("left", "not spinning", "not moving"),
        ("left", "from left to right", "right"),
        ("left", "It comes from the left.", "other"),
        ("left", "It came from the right. Final answer: not moving.", "not moving"),
        ("left", "left and right", "other"),
    ] {
        let grade::Verdict { extracted, correct, grader } = grade::grade_ff("", response, gold);
        let (gold, response) = (gold.to_owned(), response.to_owned());
        let grader = grader.to_owned();
        let p = Prediction { gold, response, extracted, correct, grader, ..base.clone() };
        let table = confusion(std::slice::from_ref(&p), Format::Ff).unwrap();
        let counted = table.counts[0].iter().position(|n| *n == 1).unwrap();
        assert_eq!(table.columns[counted], want, "{}", p.response);
    }
    // A judge tells in plain words what it read.
    let judged = Prediction {
        gold: "left".into(),
        response: "Hm.".into(),
        extracted: Some("not moving".into()),
        correct: false,
        grader: "base/m".into(),
        ..base
    };
    let table = confusion(&[judged], Format::Ff).unwrap();
    assert_eq!(table.counts[0][1..], [1, 0], "{:?}", table.columns);
}

#[test]
fn links_lead_from_the_run_to_the_video() {
    let of = |from: &str, to: &str| relative(Path::new(from), Path::new(to));
    assert_eq!(of("runs/a/b", "data/v l/x#1.mp4"), "../../../data/v%20l/x%231.mp4");
    assert_eq!(of("runs", "runs/a/report.html"), "a/report.html");
    assert_eq!(of("/a/b", "/a/c/d.mp4"), "../c/d.mp4");
}

#[test]
fn the_page_works_in_a_browser() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/report.cjs");
    let dir = page();
    let pictures = std::env::var_os("VLM4D_PICTURES").map_or(dir.path().to_owned(), PathBuf::from);
    let run = Command::new("node")
        .arg(script)
        .arg(dir.path().join("report.html"))
        .arg(&pictures)
        .output();
    let Ok(output) = run else {
        skipped("node is missing");
        return;
    };
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|o| String::from_utf8_lossy(o));
    match output.status.code() {
        Some(77) => skipped(&stdout),
        Some(0) => println!("{stdout}"),
        _ => panic!("{stdout}{stderr}"),
    }
}
