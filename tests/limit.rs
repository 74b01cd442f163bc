//! `data.max_questions`: what a limited run trains on, and how that is told.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use vlm4d_train::data::split::Split;
use vlm4d_train::report::compare::{Comparison, find};

use crate::support::run::{RunFolder, Workplace, demo_data, program, recipe, text, tiny};

type Parts = BTreeMap<String, Split>;

fn parts(path: &Path) -> Parts {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A recipe of one epoch in steps of one sample, with further keys of its `[data]`.
fn limited(keys: &str) -> String {
    let recipe = recipe(&tiny(), demo_data(), "epochs = 1.0\ngrad_accum = 1");
    recipe.replacen("[video]", &format!("{keys}\n[video]"), 1) + "train_share = 1.0\n"
}

/// Output of a command that must succeed.
fn succeed(place: &Workplace, arguments: &[&str]) -> String {
    let output = place.with(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn limited_runs_train_on_nested_sets_and_are_compared() {
    let place = Workplace::new(&limited("max_questions = 6"));
    let path = |path: &str| place.0.path().join(path);
    let write = |name: &str, recipe: &str| fs::write(path("recipes").join(name), recipe).unwrap();
    write("fewer.toml", &limited("max_questions = { real = 3 }"));
    let told = succeed(&place, &["recipes/r.toml", "recipes/fewer.toml"]);
    let data = demo_data().display().to_string();
    succeed(&place, &["data", "split", &data, "--out", "whole.json"]);
    let whole = &parts(&path("whole.json"))["real"];
    let more = &parts(&place.path("split.json"))["real"];
    let fewer = &parts(&path("runs/fewer/split.json"))["real"];
    let n = whole.train.len();
    for (own, most, epoch) in
        [(more, 6, place.losses().len()), (fewer, 3, lines(&path("runs/fewer/log.jsonl")))]
    {
        assert_eq!((own.train.len(), own.left_out.len(), epoch), (most, n - most, 2 * most));
        assert_eq!((&own.test, &own.val), (&whole.test, &whole.val));
        let line = format!(": train {most} of {n}  test {}, split by video", whole.test.len());
        assert!(told.contains(&line), "no `{line}` in\n{told}");
    }
    assert!(fewer.train.iter().all(|id| more.train.contains(id)), "{fewer:?}");
    // What was trained on is asked once more, and nothing else.
    let memorised = fs::read_to_string(place.path("after/predictions_train.jsonl")).unwrap();
    let asked = memorised.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut asked: Vec<String> = asked.map(|p| p["id"].as_str().unwrap().to_owned()).collect();
    asked.dedup();
    assert_eq!(asked, more.train);
    for file in ["report.md", "report.html"] {
        let report = fs::read_to_string(place.path(file)).unwrap();
        assert!(report.contains(&format!("trained on real (6 of {n} questions) with seed")));
    }
    for word in ["R (6)", "R (3) − R (6)", "how many questions of each subset"] {
        assert!(told.contains(word), "no `{word}` in\n{told}");
    }
    assert!(!told.contains("The runs differ in"), "{told}");
    // A run's split gives the same training, and says of what it was drawn.
    write("given.toml", &limited("split = { file = \"runs/r/split.json\" }"));
    let told = succeed(&place, &["recipes/given.toml"]);
    assert!(told.contains(&format!(": train 6 of {n}  test")), "{told}");
    assert!(!told.contains("in no part"), "{told}");
    let losses = |run: &str| fs::read_to_string(path(run).join("log.jsonl")).unwrap();
    let of = |log: String| -> Vec<Value> {
        log.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].clone()).collect()
    };
    assert_eq!(of(losses("runs/given")), of(losses("runs/r")));
    // Another limit is another run.
    fs::remove_file(place.path("report.md")).unwrap();
    write("r.toml", &limited("max_questions = 5"));
    let output = place.run();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("`data.max_questions` is 6 there and 5 here"), "{stderr}");
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap().lines().count()
}

#[test]
fn limits_are_by_subset_and_may_be_out_of_reach() {
    let both = "train = [\"real\", \"synthetic\"]\n";
    let plan = |keys: &str| {
        let told = succeed(&Workplace::new(&limited(keys)), &["plan", "recipes/r.toml"]);
        let data = told.lines().filter(|line| line.starts_with("data "));
        data.map(|line| line.split_once(": ").unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    let whole = plan(both);
    assert!(whole[0].starts_with("train ") && !whole[0].contains(" of "), "{whole:?}");
    assert_eq!(plan(&format!("{both}max_questions = 10_000")), whole);
    let [real, synthetic] =
        plan(&format!("{both}max_questions = {{ synthetic = 2 }}")).try_into().unwrap();
    assert_eq!(real, whole[0]);
    assert_eq!(synthetic, whole[1].replacen("train ", "train 2 of ", 1));
    // What is tested alone has no limit.
    let tested = plan("train = [\"synthetic\"]\nmax_questions = 1");
    assert!(tested[1].starts_with("train 0  test "), "{tested:?}");
}

/// Limits the training questions of `subset` in the `split.json` of a made-up run.
fn limit(dir: &Path, subset: &str, most: usize) {
    let path = dir.join("split.json");
    let mut all = parts(&path);
    all.get_mut(subset).unwrap().limit(most);
    fs::write(path, serde_json::to_string(&all).unwrap()).unwrap();
}

#[test]
fn a_row_says_how_much_it_was_trained_on() {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, run: RunFolder| run.write(root.path(), name);
    let both = &["real", "synthetic"][..];
    let each = RunFolder { data: "max_questions = 400", ..RunFolder::default() };
    write("a", RunFolder::default());
    // Two seeds, and the same limit in other words.
    limit(&write("b", RunFolder { ..each }), "real", 400);
    let data = "max_questions = { real = 400 }";
    limit(&write("c", RunFolder { seed: 7, data, ..RunFolder::default() }), "real", 400);
    // A limit that is not reached is none.
    let data = "max_questions = 1_000";
    write("d", RunFolder { train: &["synthetic"], data, ..RunFolder::default() });
    limit(&write("e", RunFolder { train: both, data, ..RunFolder::default() }), "real", 1_000);
    let equal = write("f", RunFolder { train: both, ..each });
    ["real", "synthetic"].iter().for_each(|subset| limit(&equal, subset, 400));
    let output = program(root.path()).args(["compare", "."]).output().unwrap();
    let told = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: Vec<&str> = told.lines().skip(3).take(6).map(row_name).collect();
    let want = ["original", "R", "R (400)", "S", "R+S (1,000+all)", "R+S (400+400)"];
    assert_eq!(rows, want, "{told}");
    assert!(told.contains("R (400) − R ") && !told.contains("The runs differ in"), "{told}");
    let row = |name: &str| told.lines().find(|line| row_name(line) == name).unwrap();
    // The paper's runs were on all questions: its numbers stand beside those.
    assert!(row("R").contains("53.5 / 54.5") && row("original").contains("38.3"), "{told}");
    let runs = find(&[root.path().to_owned()]).unwrap().0;
    assert!(Comparison::new(&runs).unwrap().is_vlm4d);
    assert!(!row("R (400)").contains("53.5") && row("R (400)").contains(" 2 "), "{told}");
}

/// What a row of the printed table was trained on.
fn row_name(line: &str) -> &str {
    line.split("  ").nth(1).unwrap_or("").trim()
}

/// Where each seed draws its split, a limit may be reached in one and not in the other.
#[test]
fn seeds_of_one_limit_are_one_row() {
    let root = tempfile::tempdir().unwrap();
    let run = |seed, first| RunFolder {
        seed,
        first,
        split: "",
        data: "max_questions = 1_370",
        ..RunFolder::default()
    };
    limit(&run(1, 0).write(root.path(), "a"), "real", 1_370);
    run(2, 20).write(root.path(), "b");
    let output = program(root.path()).args(["compare", "."]).output().unwrap();
    let told = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: Vec<&str> = told.lines().filter(|line| row_name(line) == "R (1,370)").collect();
    assert!(rows.len() == 1 && rows[0].contains(" 2 "), "{told}");
}
