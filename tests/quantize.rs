//! Runs over a model in four bits, as their users start them.

use std::fs;
use std::path::Path;

use serde_json::Value;
use vlm4d_train::model::peft;

use crate::support::model::{load, values};
use crate::support::run::{Workplace, copy_dir, demo_data, recipe, text, tiny};
use crate::support::{Golden, golden, max_difference};

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
fn an_adapter_is_merged_into_the_checkpoints_own_weights() {
    let place = Workplace::new(&quantised());
    assert!(place.run().status.success());
    let exported = place.with(&["export", "runs/r", "--to", "merged", "--merge", "--dtype", "f32"]);
    assert!(exported.status.success(), "{}", text(&exported.stderr));
    let merged = Golden::open(&place.0.path().join("merged/model.safetensors"));
    let mut model = load("tiny-qwen2.5-vl");
    peft::load(&mut model, &place.path("adapter"), 0.0).unwrap();
    let layer = model.model.layers[0].self_attn.q_proj.clone().merge();
    let want = values(layer.weight.val().transpose());
    let got = merged.f32("model.layers.0.self_attn.q_proj.weight").0;
    assert!(max_difference(got, &want) < 1e-6);
}

#[test]
fn a_card_says_how_the_base_was_held() {
    let place = Workplace::new(&quantised());
    assert!(place.run().status.success());
    for (to, merge) in [("adapter", None), ("merged", Some("--merge"))] {
        let args = ["export", "runs/r", "--to", to].into_iter().chain(merge);
        let exported = place.with(&args.collect::<Vec<_>>());
        assert!(exported.status.success(), "{}", text(&exported.stderr));
        let card = fs::read_to_string(place.0.path().join(to).join("README.md")).unwrap();
        assert!(card.contains("linear layers in NF4 (four bits)"), "{card}");
        let loads = card.contains("bnb_4bit_compute_dtype=\"float32\"");
        assert_eq!(loads, merge.is_none(), "{card}");
    }
    let report = fs::read_to_string(place.path("report.md")).unwrap();
    assert!(report.contains("with linear layers in NF4 trained on real"), "{report}");
}

#[test]
fn a_weight_that_is_no_number_is_refused() {
    let place = Workplace::new("");
    let model = place.0.path().join("model");
    copy_dir(&golden("ckpt/tiny-qwen2-vl"), &model);
    let (file, name) = (model.join("model.safetensors"), "visual.merger.mlp.2.weight");
    let mut bytes = fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let at = 8 + header + tensors[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, &bytes).unwrap();
    let recipe = recipe(&model, demo_data(), "max_steps = 1").replacen("[data]", NF4, 1);
    fs::write(place.0.path().join("recipes/r.toml"), recipe).unwrap();
    let output = place.run();
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(error.contains(&format!("`{name}` has NaN among its numbers")), "{error}");
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
