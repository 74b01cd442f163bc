//! Greedy responses against HF's, and the cache against the uncached forward.

use serde_json::Value;
use vlm4d_train::eval::generate::{Options, generate};
use vlm4d_train::model::qwen_vl::QwenVl;

use crate::model::{load, rows, values};
use crate::support::{CHECKPOINTS, Golden, golden, max_difference};

const CASES: [&str; 4] = ["text", "video", "video_long", "batch_left"];

/// The part of `golden` that belongs to `case`, with the names of a batch.
fn case_rows(model: &QwenVl, file: &Golden, meta: &Value, case: &str) -> Vec<crate::model::Row> {
    let list = |key: &str| -> Vec<String> {
        let names = meta[key].as_array().unwrap().iter();
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    rows(&model.config, &file.part(case), (&list("images"), &list("videos")))
}

/// The checkpoint, its recorded generations and what they were made from.
fn recorded(name: &str) -> (QwenVl, Golden, Value) {
    let text = std::fs::read_to_string(golden(&format!("{name}/generate.json"))).unwrap();
    let file = Golden::read(&format!("{name}/generate.safetensors"));
    (load(name), file, serde_json::from_str(&text).unwrap())
}

#[test]
fn greedy_ids_and_logits_equal_the_reference() {
    for name in CHECKPOINTS {
        let (model, file, meta) = recorded(name);
        let vocab = model.config.text.vocab_size;
        for case in CASES {
            for (variant, repetition_penalty) in [("plain", None), ("rep_penalty_1.05", Some(1.05))]
            {
                let (want, shape) = file.i64(&format!("{case}.{variant}.new_ids"));
                let rows = case_rows(&model, &file, &meta[case], case);
                for (b, row) in rows.iter().enumerate() {
                    let options = Options {
                        max_new_tokens: 32,
                        eos_token_ids: vec![642, 640],
                        repetition_penalty,
                        watch: vec![],
                    };
                    let mut logits = Vec::new();
                    let grids = row.grids();
                    let features = row.features(&model);
                    let got = generate(&model, &row.input_ids, &grids, &features, &options, |l| {
                        logits.push(l.to_vec());
                    });
                    let want: Vec<u32> = want[b * shape[1]..(b + 1) * shape[1]]
                        .iter()
                        .map(|id| *id as u32)
                        .collect();
                    let got = got.unwrap().ids;
                    assert_eq!(got, want[..got.len()], "{name} {case} {variant} row {b}");
                    assert!(want[got.len()..].iter().all(|id| *id == 640), "ended too early");
                    let key = format!("{case}.{variant}.logits");
                    if !file.has(&key) {
                        continue;
                    }
                    let (golden, shape) = file.f32(&key);
                    for (step, got) in logits.iter().enumerate().take(shape[1]) {
                        let at = (b * shape[1] + step) * vocab;
                        let difference = max_difference(got, &golden[at..at + vocab]);
                        assert!(difference < 2e-4, "{name} {case} step {step}: {difference:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_cache_changes_nothing() {
    for name in CHECKPOINTS {
        let (model, file, meta) = recorded(name);
        let row = &case_rows(&model, &file, &meta["video_long"], "video_long")[0];
        let (grids, features) = (row.grids(), row.features(&model));
        let options = Options { max_new_tokens: 8, ..Options::default() };
        let mut cached = Vec::new();
        let response = generate(&model, &row.input_ids, &grids, &features, &options, |logits| {
            cached.push(logits.to_vec());
        });
        let mut ids = row.input_ids.clone();
        for (logits, next) in cached.iter().zip(response.unwrap().ids) {
            let (hidden, _) = model.forward(&ids, &grids, &features, None).unwrap();
            let last = hidden.narrow(1, ids.len() - 1, 1).squeeze_dim::<2>(1);
            let difference = max_difference(logits, &values(model.logits(last)));
            assert!(difference < 1e-5, "{name}: {difference:e}");
            ids.push(next);
        }
    }
}
