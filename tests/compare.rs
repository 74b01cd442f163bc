//! Runs side by side: rows, intervals, differences, seeds, and what is refused.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vlm4d_train::data::vlm4d::Format;
use vlm4d_train::eval::stats;
use vlm4d_train::recipe::Recipe;
use vlm4d_train::report::compare::{self, Comparison, find};

use crate::support::run::{QUESTIONS, RunFolder, program, text};

fn compared(dirs: &[PathBuf]) -> Comparison {
    Comparison::new(&find(dirs).unwrap().0).unwrap_or_else(|e| panic!("{e}"))
}

/// Runs `compare` with `arguments` in `dir`: exit code, standard output, standard error.
fn command(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = program(dir).arg("compare").args(arguments).output().unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_table_is_the_papers() {
    let root = TempDir::new().unwrap();
    let write = |name: &str, model: &str, train: &[&str], after: usize| {
        RunFolder { model, train, right: [3, after], ..RunFolder::default() }
            .write(root.path(), name)
    };
    let (old, new) =
        ("m/Qwen2-VL-7B-Instruct", "hub/models--Qwen--Qwen2.5-VL-7B-Instruct/snapshots/abc");
    let dirs = [
        write("both", old, &["synthetic", "real"], 5),
        write("synthetic", old, &["synthetic"], 4),
        write("real", old, &["real"], 6),
        write("new", new, &["real"], 7),
    ];
    let comparison = compared(&dirs);
    let rows: Vec<(&str, &str)> =
        comparison.rows.iter().map(|row| (&*row.model, &*row.trained_on)).collect();
    let (old, new) = ("Qwen2-VL-7B-Instruct", "Qwen2.5-VL-7B-Instruct");
    let want = ["original", "R", "S", "R+S"].map(|on| (old, on));
    assert_eq!(rows, [&want[..], &[(new, "original"), (new, "R")]].concat());
    let mc = |row: usize| comparison.rows[row].scores[&Format::Mc].overall.accuracy;
    assert_eq!((0..6).map(mc).collect::<Vec<_>>(), [0.3, 0.6, 0.4, 0.5, 0.3, 0.7]);
    let paper: Vec<f64> =
        comparison.rows.iter().map(|row| row.published.unwrap().mc_revised).collect();
    assert_eq!(paper, [38.3, 54.5, 42.5, 55.5, 43.4, 55.6]);
    // Six pairs of four rows, one of two, and two trainings that both models share.
    assert_eq!(comparison.differences.len(), 6 + 1 + 2);
    let gain = &comparison.differences[0];
    assert_eq!(gain.what, "R − original");
    let change = gain.changes[&Format::Mc];
    assert!((change.paired.difference - 0.3).abs() < 1e-12 && change.single);
    let [fixed, broken] = [change.paired.fixed, change.paired.broken];
    assert_eq!(fixed - broken, QUESTIONS * 3 / 10);
    assert_eq!(change.paired.p, stats::mcnemar(fixed, broken));
}

#[test]
fn the_papers_numbers_stand_beside_what_was_tested_alike() {
    for (extra, split, paper, humans) in [
        ("", None, true, true),
        ("[eval]\nprompt = \"cot\"", None, false, true),
        ("[eval]\nscoring = \"logprob\"", None, false, true),
        (
            "",
            Some(r#"{"real": {"seed": 1, "by": "video", "train": [], "val": [], "test": ["a"]}}"#),
            false,
            false,
        ),
    ] {
        let root = TempDir::new().unwrap();
        let dir = RunFolder { extra, ..RunFolder::default() }.write(root.path(), "run");
        split.iter().for_each(|split| std::fs::write(dir.join("split.json"), split).unwrap());
        let comparison = compared(&[dir]);
        let found = comparison.rows.iter().map(|row| row.published.is_some());
        assert_eq!(found.collect::<Vec<_>>(), [paper; 2], "{extra}");
        comparison.write(root.path()).unwrap();
        let text = std::fs::read_to_string(root.path().join("compare.md")).unwrap();
        assert_eq!(text.contains("human, VLM4D"), humans, "{text}");
    }
}

#[test]
fn seeds_are_pooled_with_a_deviation() {
    let root = TempDir::new().unwrap();
    let dirs: Vec<PathBuf> = [(1, 5), (2, 6), (3, 7)]
        .into_iter()
        .map(|(seed, after)| {
            RunFolder { seed, right: [3, after], ..RunFolder::default() }
                .write(root.path(), &format!("seed_{seed}"))
        })
        .collect();
    let comparison = compared(&dirs);
    assert_eq!(comparison.rows.len(), 2);
    // The model before training answers alike in all three: one evaluation, no deviation.
    assert_eq!(comparison.rows[0].scores[&Format::Ff].deviation, None);
    let score = &comparison.rows[1].scores[&Format::Ff];
    assert!((score.overall.accuracy - 0.6).abs() < 1e-12);
    assert!((score.deviation.unwrap() - 0.1).abs() < 1e-12);
    assert_eq!(score.overall.n, 3 * QUESTIONS);
    let change = comparison.differences[0].changes[&Format::Ff];
    assert!((change.paired.difference - 0.3).abs() < 1e-12 && !change.single);
}

#[test]
fn all_test_sets_are_told() {
    let root = TempDir::new().unwrap();
    let dirs = [(1, 0, "v1"), (2, 20, "v2")].map(|(seed, first, videos)| {
        let made_from = ["data", videos];
        RunFolder { seed, first, split: "", made_from, ..RunFolder::default() }
            .write(root.path(), &format!("seed_{seed}"))
    });
    let comparison = compared(&dirs);
    let wanted = "100 questions on 50 videos of real in 2 test sets, split by video";
    assert_eq!(comparison.tested_on, wanted);
    assert_eq!(comparison.rows[1].scores[&Format::Mc].overall.n_videos, 50);
}

#[test]
fn a_run_that_has_not_begun_may_be_of_the_same_model() {
    let root = TempDir::new().unwrap();
    let dirs = [(1, 0), (2, 20)].map(|(seed, first)| {
        RunFolder { seed, first, split: "", ..RunFolder::default() }
            .write(root.path(), &format!("seed_{seed}"))
    });
    let mut runs = find(&dirs).unwrap().0;
    runs[1].recipe.provenance = None;
    compare::check(&runs).unwrap();
    runs[1].recipe.model.path = "another".into();
    compare::check(&runs).unwrap_err();
}

#[test]
fn other_settings_make_another_row() {
    let root = TempDir::new().unwrap();
    let write = |name: &str, extra: &str| {
        RunFolder { extra, ..RunFolder::default() }.write(root.path(), name)
    };
    let comparison = compared(&[write("low", "lr = 1e-4"), write("high", "lr = 2e-4")]);
    let settings: Vec<&str> = comparison.rows.iter().map(|row| &*row.settings).collect();
    assert_eq!(settings, ["", "lr 0.0001", "lr 0.0002"]);
    assert!(comparison.notes.iter().any(|note| note.contains("differ in `train.lr`")));
}

#[test]
fn other_questions_and_videos_make_another_row() {
    let root = TempDir::new().unwrap();
    let write = |name: &str, made_from: [&str; 2], train: &[&str]| {
        RunFolder { train, made_from, ..RunFolder::default() }.write(root.path(), name)
    };
    let synthetic = write("synthetic", ["synthetic", "s"], &["synthetic"]);
    let old = write("old", ["old-question-files", "v"], &["real"]);
    for (name, made_from, want) in [
        ("questions", ["new", "v"], ["data_sha256 new", "data_sha256 old-ques"]),
        ("videos", ["old-question-files", "w"], ["videos_sha256 v", "videos_sha256 w"]),
    ] {
        let new = write(name, made_from, &["real"]);
        let comparison = compared(&[old.clone(), new, synthetic.clone()]);
        let first: Vec<_> = comparison.rows.iter().map(|row| &*row.trained_on).collect();
        assert_eq!(first, ["original", "R", "R", "S"], "{name}");
        let trained = comparison.rows.iter().filter(|row| row.trained_on == "R");
        let mut settings: Vec<&str> = trained.map(|row| &*row.settings).collect();
        settings.sort_unstable();
        assert_eq!(settings, want, "{name}");
        let told = |note: &String| note.starts_with("The runs differ in `provenance.");
        assert!(comparison.notes.iter().any(told), "{:?}", comparison.notes);
    }
    // Other subsets have other files, and in another order too, which is no difference.
    let both = RunFolder { train: &["real", "synthetic"], ..RunFolder::default() };
    let turned = RunFolder {
        train: &["synthetic", "real"],
        made_from: ["turned", "videos"],
        seed: 7,
        ..RunFolder::default()
    };
    let [both, turned] =
        [(both, "both"), (turned, "turned")].map(|(run, name)| run.write(root.path(), name));
    let comparison = compared(&[old, synthetic, both, turned]);
    let runs: Vec<_> = comparison.rows.iter().map(|r| (&*r.settings, r.runs.len())).collect();
    assert_eq!(runs, [("", 1), ("", 1), ("", 1), ("", 2)]);
    assert!(!comparison.notes.iter().any(|note| note.starts_with("The runs differ in")));
}

#[test]
fn models_that_should_have_answered_alike_are_told() {
    let root = TempDir::new().unwrap();
    let write = |name: &str, train: &[&str], right: [usize; 2]| {
        RunFolder { train, right, ..RunFolder::default() }.write(root.path(), name)
    };
    let dirs = [
        write("real", &["real"], [3, 6]),
        write("synthetic", &["synthetic"], [4, 6]),
        write("again", &["real"], [3, 7]),
    ];
    let notes = compared(&dirs).notes;
    for (row, reason) in [("original", "the row is of both"), ("R", "from the same seed 42")] {
        let told = |note: &String| {
            note.starts_with(&format!("Qwen2-VL-7B-Instruct {row}: "))
                && note.contains("have other answers to the same questions")
                && note.contains(reason)
        };
        assert!(notes.iter().any(told), "{notes:?}");
    }
}

#[test]
fn a_terminal_shows_some_of_many_differences() {
    let root = TempDir::new().unwrap();
    for i in 1..10 {
        let extra = format!("lr = {i}e-4");
        RunFolder { extra: &extra, ..RunFolder::default() }.write(root.path(), &format!("r{i}"));
    }
    let told = text(&program(root.path()).arg("compare").arg(".").output().unwrap().stdout);
    assert!(told.contains("note   15 more differences: --out DIR writes all"), "{told}");
    assert!(told.contains("The runs differ in `train.lr`: ") && told.contains(" (and 3 more)."));
}

#[test]
fn what_is_asked_beside_the_test_questions_makes_no_row() {
    let root = TempDir::new().unwrap();
    let write = |name: &str, train: &[&str], extra: &str| {
        RunFolder { train, extra, ..RunFolder::default() }.write(root.path(), name)
    };
    let asked = "[eval]\ncontrols = []\ncircular = true\ntrain_share = 0.5";
    let comparison = compared(&[write("a", &["real"], ""), write("b", &["synthetic"], asked)]);
    let rows: Vec<_> =
        comparison.rows.iter().map(|row| (&*row.trained_on, &*row.settings)).collect();
    assert_eq!(rows, [("original", ""), ("R", ""), ("S", "")]);
    assert!(!comparison.notes.iter().any(|note| note.starts_with("The runs differ in")));
}

#[test]
fn differences_between_models_name_the_settings_of_both() {
    let root = TempDir::new().unwrap();
    let write = |name: &str, model: &str, extra: &str| {
        RunFolder { model, extra, ..RunFolder::default() }.write(root.path(), name)
    };
    let [one, other] = ["m/Qwen2-VL-7B-Instruct", "m/Qwen2.5-VL-7B-Instruct"];
    let comparison = compared(&[
        write("low", one, "lr = 1e-4"),
        write("high", one, "lr = 2e-4"),
        write("other", other, "lr = 1e-4"),
    ]);
    let between = comparison.differences.iter().filter(|d| d.model.contains(" − "));
    let names: Vec<&str> = between.map(|d| &*d.what).collect();
    assert_eq!(names, ["original", "R − R (lr 0.0001)", "R − R (lr 0.0002)"]);
}

#[test]
fn the_command_prints_and_writes() {
    let root = TempDir::new().unwrap();
    RunFolder::default().write(root.path(), "runs/a/real");
    RunFolder { train: &["synthetic"], right: [3, 4], ..RunFolder::default() }
        .write(root.path(), "runs/a/synthetic");
    let (code, stdout, stderr) = command(root.path(), &["runs/a", "--out", "runs/a"]);
    assert_eq!(code, 0, "{stderr}");
    for word in [
        "tested on 80 questions on 40 videos of real, split by video",
        "FF paper",
        "R − original",
        "it takes questions as independent",
        "60.0 [",
    ] {
        assert!(stdout.contains(word), "no `{word}` in\n{stdout}");
    }
    let read = |file: &str| std::fs::read_to_string(root.path().join("runs/a").join(file)).unwrap();
    assert!(read("compare.md").contains("| Qwen2-VL-7B-Instruct | R | 60.0 ["));
    let csv = read("compare.csv");
    // Three rows, two formats, and all questions beside the two groups.
    assert_eq!(csv.lines().count(), 1 + 3 * 2 * 3);
    assert!(csv.lines().all(|line| line.split(',').count() == 15), "{csv}");
    assert_eq!(read("compare_differences.csv").lines().count(), 1 + 3 * 2);
    let html = read("compare.html");
    assert!(html.contains("<svg") && html.contains("href=\"synthetic/report.html\""));
    // Once more over what the shell makes of runs/a/*: the written files are no runs.
    let (code, again, stderr) = command(
        root.path(),
        &["runs/a/compare.csv", "runs/a/compare.html", "runs/a/real", "runs/a/synthetic"],
    );
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with(&again), "{again}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let root = TempDir::new().unwrap();
    RunFolder::default().write(root.path(), "a");
    RunFolder { first: 20, train: &["synthetic"], ..RunFolder::default() }.write(root.path(), "b");
    let refused = |arguments: &[&str], wanted: &str| {
        let (code, _, stderr) = command(root.path(), arguments);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(wanted), "no `{wanted}` in\n{stderr}");
        assert!(!root.path().join("out").exists(), "something was written");
    };
    refused(
        &["a", "b", "--out", "out"],
        "a and b: not tested on the same questions: 80 and 80 in mc, 60 in common; `real/validation_0` is only in a",
    );
    // Nor are these two seeds, each with its own split.
    RunFolder { first: 20, split: "seed = 7", ..RunFolder::default() }.write(root.path(), "split");
    refused(&["a", "split"], "their splits have the seeds 42 and 7");
    std::fs::remove_dir_all(root.path().join("split")).unwrap();
    refused(&["nowhere"], "nowhere: no such folder");
    std::fs::create_dir(root.path().join("empty")).unwrap();
    refused(&["empty"], "empty: no run: it has no recipe.toml");
    std::fs::remove_file(root.path().join("b/after/predictions.jsonl")).unwrap();
    refused(&["a", "b"], "b: the run is not finished");
    let (code, stdout, _) = command(root.path(), &["."]);
    let left_out = "the run is not finished: it has no after/predictions.jsonl; left out";
    assert!(code == 0 && stdout.contains(left_out), "{stdout}");
    // What else cannot be read is told as what it is.
    RunFolder { train: &["synthetic"], ..RunFolder::default() }.write(root.path(), "b");
    std::fs::write(root.path().join("b/recipe.toml"), "lr = 1").unwrap();
    let (code, stdout, _) = command(root.path(), &["."]);
    assert!(code == 0 && stdout.contains("b/recipe.toml:1:1: unknown field `lr`"), "{stdout}");
    let untested = RunFolder { train: &["synthetic"], ..RunFolder::default() };
    let untested = untested.write(root.path(), "untested");
    for stage in ["before", "after"] {
        std::fs::write(untested.join(stage).join("predictions.jsonl"), "").unwrap();
    }
    let (code, stdout, _) = command(root.path(), &["a", "untested"]);
    assert!(code == 0 && stdout.contains("untested: tested on nothing; left out"), "{stdout}");
    std::fs::remove_dir_all(untested).unwrap();
    std::fs::write(root.path().join("b/predictions.jsonl"), "").unwrap();
    refused(&["a", "b"], "b: no run: it is an evaluation alone");
    std::fs::remove_dir_all(root.path().join("b")).unwrap();
    // Another gold answer under the same id is another question.
    let path = root.path().join("a/after/predictions.jsonl");
    RunFolder { train: &["synthetic"], ..RunFolder::default() }.write(root.path(), "c");
    RunFolder { seed: 7, ..RunFolder::default() }.write(root.path(), "seed");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"gold\":\"left\"", "\"gold\":\"up\"", 1)).unwrap();
    for other in ["c", "seed"] {
        refused(
            &["a", other],
            "`real/validation_0` has another question, other choices or another answer",
        );
    }
}

/// Beside a given split the recipe knows neither what was kept together nor a seed.
#[test]
fn a_given_split_is_told_as_it_was_made() {
    let root = TempDir::new().unwrap();
    let given = RunFolder { split: "file = \"s.json\"", ..RunFolder::default() };
    let dir = given.write(root.path(), "a");
    let made = r#"{"real": {"seed": 7, "by": "question", "train": [], "val": [], "test": []}}"#;
    std::fs::write(dir.join("split.json"), made).unwrap();
    let comparison = compared(&[dir]);
    let wanted = "80 questions on 40 videos of real, split of s.json by question";
    assert_eq!(comparison.tested_on, wanted);
    RunFolder { first: 20, train: &["synthetic"], ..given }.write(root.path(), "b");
    let (code, _, stderr) = command(root.path(), &["a", "b"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("help: a split was given: set data.split.file"), "{stderr}");
}

#[test]
fn the_split_may_have_a_seed_of_its_own() {
    let recipe = |split: &str| {
        let text = format!("seed = 7\n[model]\npath = \"m\"\n[data]\npath = \"d\"\n{split}");
        Recipe::from_text(&text, "r.toml").unwrap()
    };
    assert_eq!(recipe("").split_seed(), 7);
    let own = recipe("split = { seed = 42 }");
    assert_eq!((own.seed, own.split_seed()), (7, 42));
    // What a run keeps says which seed it was.
    assert_eq!(
        Recipe::from_text(&recipe("").to_toml().unwrap(), "r").unwrap().data.split.seed,
        Some(7)
    );
}
