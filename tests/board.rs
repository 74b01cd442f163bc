//! The event files, read by TensorBoard itself.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use vlm4d_train::data::vlm4d::Format;
use vlm4d_train::train::board::Board;
use vlm4d_train::train::log::{Log, Record};
use vlm4d_train::train::validation::{Scores, Validation};

use crate::support::python;
use crate::support::run::{Workplace, demo_data, recipe, text, tiny};

fn record(step: usize, loss: f64) -> Record {
    Record {
        step,
        epoch: step as f64 / 2.0,
        loss,
        lr: 0.5,
        grad_norm: 0.25,
        samples: 4,
        tokens: 64,
        seconds: 2.0,
        memory_bytes: 1 << 20,
    }
}

/// What TensorBoard reads in `dir`.
fn read(python: &str, dir: &Path) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/read_tensorboard.py");
    let output = Command::new(python).arg(script).arg(dir).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn tensorboard_reads_every_event() {
    let Some(python) = python("tensorboard") else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), 0, 0).unwrap();
    log.recipe("seed = 42\n").unwrap();
    for step in 1..=5 {
        log.step(&record(step, step as f64)).unwrap();
    }
    drop(log);
    // Killed, and gone on from the checkpoint of step 3: what it said of 4 and 5 is void. By then
    // the clock had been put back.
    let path = dir.path().read_dir().unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        path.to_string_lossy().contains("tfevents").then_some(path)
    });
    std::fs::rename(path.unwrap(), dir.path().join("events.out.tfevents.9000000000.0.x")).unwrap();
    let mut log = Log::open(dir.path(), 3, 3).unwrap();
    for step in 4..=6 {
        log.step(&record(step, 10.0 * step as f64)).unwrap();
    }
    let scores = Scores { loss: 1.5, accuracy: [(Format::Mc, 0.75)].into() };
    log.validation(&Validation { step: 6, epoch: 3.0, scores, best: true }).unwrap();
    drop(log);
    let mut board = Board::of_accuracies(dir.path()).unwrap();
    board.scalar("accuracy/mc", 0.5, 6).unwrap();
    drop(board);
    let read = read(&python, dir.path());
    let scalars = &read["scalars"];
    let losses = json!([[1, 1.0], [2, 2.0], [3, 3.0], [4, 40.0], [5, 50.0], [6, 60.0]]);
    assert_eq!(scalars["train/loss"], losses);
    for (tag, value) in [
        ("train/lr", 0.5),
        ("train/grad_norm", 0.25),
        ("train/epoch", 3.0),
        ("speed/tokens_per_second", 32.0),
        ("speed/samples_per_second", 2.0),
        ("memory/bytes", f64::from(1 << 20)),
        ("validation/loss", 1.5),
        ("validation/accuracy_mc", 0.75),
        ("accuracy/mc", 0.5),
    ] {
        assert_eq!(scalars[tag].as_array().unwrap().last().unwrap(), &json!([6, value]), "{tag}");
    }
    assert_eq!(read["text"]["recipe"], json!(["```toml\nseed = 42\n```\n"]));
}

#[test]
fn accuracies_stand_once_and_at_the_step_of_their_weights() {
    let Some(python) = python("tensorboard") else { return };
    // The second step spoils what the first, at a rate of 0, has left as it was.
    let train = "max_steps = 2\ngrad_accum = 1\nwarmup_steps = 1\neval_steps = 1\nbest = \"loss\"";
    let recipe = recipe(&tiny(), demo_data(), train)
        .replace("lr = 1e-3", "lr = 1.0")
        .replace("[video]", "[data.split]\nval = 0.2\n[video]");
    let place = Workplace::new(&recipe);
    for _ in 0..2 {
        let output = place.run();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let scalars = read(&python, &place.path(""))["scalars"].take();
        assert_eq!(scalars["train/loss"].as_array().unwrap().len(), 2);
        let accuracies = scalars["accuracy/mc"].as_array().unwrap();
        let steps: Vec<&Value> = accuracies.iter().map(|point| &point[0]).collect();
        assert_eq!(steps, [0, 1]);
        // As if killed in its report.
        std::fs::remove_file(place.path("report.md")).unwrap();
    }
}
