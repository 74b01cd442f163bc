//! Runs over a model in four bits, as their users start them.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::Golden;
use crate::support::model::{load, values};
use crate::support::run::{Workplace, demo_data, recipe, text, tiny};

const NF4: &str = "quantize = \"nf4\"\n[data]";

fn quantised() -> String {
    let plain = recipe(&tiny(), demo_data(), "max_steps = 2\ngrad_accum = 2");
    plain.replacen("[data]", NF4, 1)
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_over_four_bits_ends_in_an_adapter_that_answers_the_same() {
    let place = Workplace::new(&quantised());
    let output = place.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("on cpu with linear layers in NF4"));
    let count = |output: &[u8]| {
        let told = text(output);
        let line = told.lines().find(|line| line.starts_with("model ")).unwrap();
        line.split(',').next().unwrap().to_owned()
    };
    let plain = Workplace::new(&recipe(&tiny(), demo_data(), "max_steps = 2\ngrad_accum = 2"));
    let of_plain = plain.run();
    assert_eq!(count(&output.stdout), count(&of_plain.stdout));
    assert_ne!(place.losses(), plain.losses(), "other weights");
    // With its adapter the checkpoint answers as the run did in the end, in four bits alone.
    let adapter = place.path("adapter");
    let asked =
        place.with(&["eval", "recipes/r.toml", "--adapter", "runs/r/adapter", "--out", "e"]);
    assert!(asked.status.success(), "{}", text(&asked.stderr));
    let answers = |path: &Path| {
        let answers = lines(path).into_iter();
        answers.map(|p| (p["id"].clone(), p["letter_logprobs"].clone())).collect::<Vec<_>>()
    };
    let after = answers(&place.path("after/predictions.jsonl"));
    assert_eq!(answers(&place.0.path().join("e/predictions.jsonl")), after);
    assert!(adapter.join("adapter_model.safetensors").is_file());
}

#[test]
fn what_is_merged_is_the_checkpoint_itself() {
    let place = Workplace::new(&quantised());
    assert!(place.run().status.success());
    let exported = place.with(&["export", "runs/r", "--to", "merged", "--merge", "--dtype", "f32"]);
    assert!(exported.status.success(), "{}", text(&exported.stderr));
    let merged = Golden::open(&place.0.path().join("merged/model.safetensors"));
    let (model, name) = (load("tiny-qwen2.5-vl"), "visual.blocks.0.attn.proj.weight");
    let [i, o] = model.visual.blocks[0].attn.proj.shape();
    let weight = model.visual.blocks[0].attn.proj.weight.val();
    let own = values(weight.transpose());
    assert_eq!(merged.f32(name), (&own[..], &[o, i][..]));
}

#[test]
fn a_run_goes_on_only_with_as_many_bits() {
    let place = Workplace::new(&quantised());
    assert!(place.run().status.success());
    let plain = recipe(&tiny(), demo_data(), "max_steps = 2\ngrad_accum = 2");
    fs::write(place.0.path().join("recipes/r.toml"), plain).unwrap();
    let output = place.run();
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(error.contains("`model.quantize` is nf4 there and not set here"), "{error}");
}

#[test]
fn four_bits_are_not_trained() {
    let place = Workplace::new(&quantised().replacen("[lora]\n", "", 1));
    let output = place.run();
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(
        error.contains("recipes/r.toml:3:1: `quantize` is set, and there is no [lora]"),
        "{error}"
    );
}

#[test]
fn plan_advises_four_bits_and_counts_them() {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/nano");
    let dense = recipe(&nano, demo_data(), "");
    // Memory of the first phase, and what to do about too little of it.
    let plan = |recipe: &str| {
        let place = Workplace::new(recipe);
        let output = place.with(&["plan", "recipes/r.toml", "--memory", "0.01"]);
        let told = text(&output.stdout);
        let line = told.lines().find_map(|line| line.strip_prefix("before ")).unwrap();
        let mib: f64 = line.split_whitespace().next().unwrap().parse().unwrap();
        (mib, text(&output.stderr))
    };
    let ((dense, advice), (quantised, other)) =
        (plan(&dense), plan(&dense.replacen("[data]", NF4, 1)));
    assert!(advice.contains("set model.quantize = \"nf4\""), "{advice}");
    assert!(!other.contains("nf4"), "{other}");
    // 2.2 M of 2.5 M numbers take 4.13 bits in place of 32.
    let spared = 2.2e6 * (32.0 - 4.13) / 8.0 / f64::from(1 << 20);
    assert!((dense - quantised - spared).abs() < 0.5, "{dense} {quantised} {spared}");
}
