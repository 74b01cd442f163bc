//! Greedy responses against HF's, and the cache against the uncached forward.

use std::path::Path;

use serde_json::Value;
use vlm4d_train::data::chat::{Chat, Content, Message};
use vlm4d_train::data::vlm4d::{Format, PromptStyle, prompt};
use vlm4d_train::eval::generate::{Group, Options, Prompt, Response, generate, packs};
use vlm4d_train::eval::letters::Letters;
use vlm4d_train::eval::predict::media_tokens;
use vlm4d_train::model::qwen_vl::QwenVl;

use crate::support::model::{Row, load, rows, values};
use crate::support::{CHECKPOINTS, Golden, golden, max_difference};

const CASES: [&str; 4] = ["text", "video", "video_long", "batch_left"];

/// The part of `golden` that belongs to `case`, with the names of a batch.
fn case_rows(model: &QwenVl, file: &Golden, meta: &Value, case: &str) -> Vec<Row> {
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
                        eos_token_ids: vec![642, 640],
                        repetition_penalty,
                        ..Options::default()
                    };
                    let prompt = Prompt { input_ids: row.input_ids.clone(), max_new_tokens: 32 };
                    let (mut got, mut logits) = answer(&model, row, &[prompt], &options);
                    let (got, logits) = (got.remove(0).ids, logits.remove(0));
                    let want: Vec<u32> = want[b * shape[1]..(b + 1) * shape[1]]
                        .iter()
                        .map(|id| *id as u32)
                        .collect();
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
        let prompt = Prompt { input_ids: row.input_ids.clone(), max_new_tokens: 8 };
        let (response, cached) = answer(&model, row, &[prompt], &Options::default());
        let mut ids = row.input_ids.clone();
        for (logits, next) in cached[0].iter().zip(&response[0].ids) {
            let (hidden, _) = model.forward(&ids, &grids, &features, None).unwrap();
            let last = hidden.narrow(1, ids.len() - 1, 1).squeeze_dim::<2>(1);
            let difference = max_difference(logits, &values(model.logits(last)));
            // The passes of the CPU sum in another order over a part than over the whole.
            assert!(difference < 1e-4, "{name}: {difference:e}");
            ids.push(*next);
        }
    }
}

/// Prompts on what `row` shows.
fn group(model: &QwenVl, row: &Row, prompts: &[Prompt]) -> Group {
    Group { prompts: prompts.to_vec(), media: row.grids(), features: row.features(model) }
}

/// Responses to all prompts of `groups`, and the logits of each step.
fn answer_groups(
    model: &QwenVl,
    groups: &[Group],
    options: &Options,
) -> (Vec<Response>, Vec<Vec<Vec<f32>>>) {
    let mut logits = vec![vec![]; groups.iter().map(|group| group.prompts.len()).sum()];
    let mut see = |i: usize, l: &[f32]| logits[i].push(l.to_vec());
    let responses = generate(model, groups, options, Some(&mut see)).unwrap();
    (responses, logits)
}

/// The same of prompts on what `row` shows.
fn answer(
    model: &QwenVl,
    row: &Row,
    prompts: &[Prompt],
    options: &Options,
) -> (Vec<Response>, Vec<Vec<Vec<f32>>>) {
    answer_groups(model, &[group(model, row, prompts)], options)
}

/// Prompts on one video: behind the video tokens, each has questions of its own length.
fn prompts_on_one_video(row: &Row, video: u32) -> Vec<Prompt> {
    let behind = row.input_ids.iter().rposition(|id| *id == video).unwrap() + 2;
    let (head, tail) = row.input_ids.split_at(behind);
    let question = |i: usize| -> Vec<u32> {
        let words = (0..[3, 11, 1, 6, 7, 2][i]).map(|k| (37 * k + 61 * i + 5) as u32 % 600);
        [head, &words.collect::<Vec<_>>(), &tail[tail.len() - 3..]].concat()
    };
    let most = [12, 1, 7, 12, 3, 9];
    (0..6).map(|i| Prompt { input_ids: question(i), max_new_tokens: most[i] }).collect()
}

#[test]
fn questions_on_one_video_together_equal_one_at_a_time() {
    for name in CHECKPOINTS {
        let (model, file, meta) = recorded(name);
        let row = &case_rows(&model, &file, &meta["video_long"], "video_long")[0];
        let prompts = prompts_on_one_video(row, model.config.video_token_id);
        for (batch_size, repetition_penalty) in [(16, None), (4, None), (16, Some(1.05))] {
            let watch = vec![3, 200];
            // Token 331 ends some of the responses early.
            let options = Options {
                batch_size,
                repetition_penalty,
                watch,
                watch_every_step: true,
                eos_token_ids: vec![331],
            };
            let (together, logits) = answer(&model, row, &prompts, &options);
            for (i, prompt) in prompts.iter().enumerate() {
                let one = std::slice::from_ref(prompt);
                let (alone, steps) = answer(&model, row, one, &options);
                assert_eq!(together[i].ids, alone[0].ids, "{name} prompt {i}");
                assert_eq!(logits[i].len(), steps[0].len());
                for (step, (got, want)) in logits[i].iter().zip(&steps[0]).enumerate() {
                    let difference = max_difference(got, want);
                    assert!(difference < 1e-4, "{name} prompt {i} step {step}: {difference:e}");
                }
                for (got, want) in together[i].watched.iter().zip(&alone[0].watched) {
                    assert!(max_difference(got, want) < 1e-4);
                }
                assert_eq!(together[i].watched.len(), logits[i].len());
            }
        }
    }
}

/// Questions on several videos, of several lengths, and on none.
#[test]
fn questions_on_several_videos_at_once_equal_one_video_at_a_time() {
    for name in CHECKPOINTS {
        let (model, file, meta) = recorded(name);
        let video = model.config.video_token_id;
        let of = |case: &str| case_rows(&model, &file, &meta[case], case).remove(0);
        let mut groups: Vec<Group> = ["video_long", "video"]
            .map(of)
            .iter()
            .map(|row| group(&model, row, &prompts_on_one_video(row, video)))
            .collect();
        let text = of("text");
        let prompt = Prompt { input_ids: text.input_ids.clone(), max_new_tokens: 9 };
        groups.insert(1, group(&model, &text, &[prompt]));
        // All at once; two and one; none with another, the questions on a video in two parts.
        for batch_size in [16, 7, 5] {
            let options = Options {
                batch_size,
                watch: vec![3, 200],
                watch_every_step: true,
                eos_token_ids: vec![331],
                ..Options::default()
            };
            let (together, logits) = answer_groups(&model, &groups, &options);
            let unseen = generate(&model, &groups, &options, None).unwrap();
            assert_eq!(unseen, together, "{name}: chosen on the device and on the host");
            let mut first = 0;
            for group in &groups {
                let (alone, steps) = answer_groups(&model, std::slice::from_ref(group), &options);
                for (i, (alone, steps)) in (first..).zip(alone.iter().zip(&steps)) {
                    assert_eq!(together[i].ids, alone.ids, "{name} prompt {i}");
                    let watched = together[i].watched.iter().zip(&alone.watched);
                    for (got, want) in logits[i].iter().zip(steps).chain(watched) {
                        let difference = max_difference(got, want);
                        assert!(difference < 1e-4, "{name} prompt {i}: {difference:e}");
                    }
                }
                first += group.prompts.len();
            }
            assert_eq!(together.len(), first);
        }
    }
}

#[test]
fn neighbours_fill_a_batch_in_order() {
    let packs = packs([4, 4, 8, 1, 20, 1, 15, 1].into_iter(), 16);
    assert_eq!(packs, [0..3, 3..4, 4..5, 5..7, 7..8]);
}

/// The log-probability of a watched token is that of the softmax over the logits; a prompt with
/// no room for tokens is only looked at.
#[test]
fn watched_tokens_have_their_log_probabilities() {
    let (model, file, meta) = recorded(CHECKPOINTS[0]);
    let row = &case_rows(&model, &file, &meta["video"], "video")[0];
    let prompt = Prompt { input_ids: row.input_ids.clone(), max_new_tokens: 0 };
    let options = Options { watch: vec![7, 0], ..Options::default() };
    let (response, logits) = answer(&model, row, &[prompt], &options);
    assert!(response[0].ids.is_empty() && logits[0].len() == 1);
    let total: f64 = logits[0][0].iter().map(|l| f64::from(*l).exp()).sum();
    for (id, got) in [7, 0].into_iter().zip(&response[0].watched[0]) {
        let want = f64::from(logits[0][0][id]) - total.ln();
        assert!((f64::from(*got) - want).abs() < 1e-5, "{got} {want}");
    }
}

/// Whether tokens are generated or only looked at.
#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let (mut model, file, meta) = recorded(CHECKPOINTS[0]);
    let row = &case_rows(&model, &file, &meta["text"], "text")[0];
    let weight = model.model.norm.weight.val().mul_scalar(f32::NAN);
    model.model.norm.weight = burn::module::Param::from_tensor(weight);
    for (max_new_tokens, watch) in [(0, vec![7, 0]), (1, vec![])] {
        let prompt = Prompt { input_ids: row.input_ids.clone(), max_new_tokens };
        let options = Options { watch, ..Options::default() };
        let group = group(&model, row, &[prompt]);
        let error = generate(&model, &[group], &options, None).unwrap_err();
        assert!(error.to_string().starts_with("the model's logits are no numbers"), "{error}");
    }
}

/// Prompts with nothing in common, or with media at different places, are answered too.
#[test]
fn prompts_that_share_nothing_are_answered_alone() {
    let (model, file, meta) = recorded(CHECKPOINTS[1]);
    let row = &case_rows(&model, &file, &meta["text"], "text")[0];
    let other: Vec<u32> = row.input_ids.iter().skip(1).copied().collect();
    let of = |input_ids: Vec<u32>| Prompt { input_ids, max_new_tokens: 4 };
    let prompts = [of(row.input_ids.clone()), of(other), of(vec![5])];
    let options = Options::default();
    let (both, _) = answer(&model, row, &prompts[..2], &options);
    for i in 0..2 {
        assert_eq!(both[i], answer(&model, row, &prompts[i..=i], &options).0[0]);
    }
    let one_token = generate(&model, &[group(&model, row, &prompts[2..])], &options, None);
    assert!(one_token.unwrap_err().to_string().contains("two tokens"));
}

#[test]
fn answers_to_the_benchmarks_prompts_equal_the_reference() {
    for name in CHECKPOINTS {
        let (model, file, meta) = recorded(name);
        let text = std::fs::read_to_string(golden(&format!("{name}/predictions.json"))).unwrap();
        let answers: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(answers.len(), 8);
        let chat = Chat::load(&golden(&format!("ckpt/{name}"))).unwrap();
        let row = &case_rows(&model, &file, &meta["video_long"], "video_long")[0];
        let grids = row.grids();
        let tokens = media_tokens(&model.config.vision, &grids);
        let numbers = |value: &Value| -> Vec<f64> {
            value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect()
        };
        let ids = |value: &Value| -> Vec<u32> {
            numbers(value).into_iter().map(|id| id as u32).collect()
        };
        let prompts = answers.iter().map(|answer| {
            let format = if answer["format"] == "mc" { Format::Mc } else { Format::Ff };
            let style = if answer["style"] == "do" { PromptStyle::Do } else { PromptStyle::Cot };
            let question = answer["question"].as_str().unwrap();
            let choices = answer["choices"].as_array().unwrap().iter();
            let choices: Vec<String> = choices.map(|c| c.as_str().unwrap().to_owned()).collect();
            let text = Content::Text(prompt(question, &choices, format, style));
            let messages = [Message::new("user", [Content::Video, text])];
            let input_ids = chat.encode_prompt(&messages, &tokens).unwrap();
            assert_eq!(input_ids, ids(&answer["input_ids"]), "{name}: another prompt");
            Prompt { input_ids, max_new_tokens: 32 }
        });
        let prompts: Vec<Prompt> = prompts.collect();
        let letters = Letters::new(&chat.tokenizer, 4, PromptStyle::Do).unwrap();
        let options = Options {
            eos_token_ids: vec![642, 640],
            watch: letters.tokens(),
            ..Options::default()
        };
        // All eight at once here, one at a time there.
        let got = generate(&model, &[group(&model, row, &prompts)], &options, None).unwrap();
        for (i, (got, answer)) in got.iter().zip(&answers).enumerate() {
            assert_eq!(got.ids, ids(&answer["new_ids"]), "{name} answer {i}");
            let text = chat.tokenizer.decode(&got.ids, true).unwrap();
            assert_eq!(text, answer["text"].as_str().unwrap(), "{name} answer {i}");
            let want = numbers(&answer["letter_logprobs"]);
            for (got, want) in letters.at_start(got, 4).values().zip(want) {
                assert!((f64::from(*got) - want).abs() < 2e-4, "{name} {i}: {got} {want}");
            }
        }
    }
}

/// With a chain of thought the letters are looked at where the answer stands.
#[test]
fn letters_are_found_where_the_answer_stands() {
    // Its tokenizer has ` A` to ` D` too.
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/nano");
    let chat = Chat::load(&nano).unwrap();
    let letters = Letters::new(&chat.tokenizer, 4, PromptStyle::Cot).unwrap();
    let watched = letters.tokens();
    assert_eq!(watched.len(), 8);
    let (b, c) = (watched[1], watched[2]);
    // Each step's numbers tell the step and the token.
    let step = |s: usize| (0..watched.len()).map(|i| -((100 * s + i) as f32)).collect();
    let response = Response { ids: vec![b, 5, c, 9, b, 7], watched: (0..6).map(step).collect() };
    let at = |answer: &str| letters.at_answer(&response, 4, Some(&answer.to_owned()));
    let values = |s: usize| (0..4).map(|i| -((100 * s + i) as f32)).collect::<Vec<_>>();
    assert_eq!(at("B").unwrap().into_values().collect::<Vec<_>>(), values(4));
    assert_eq!(at("C").unwrap().into_values().collect::<Vec<_>>(), values(2));
    assert!(at("D").is_none());
    assert!(letters.at_answer(&response, 4, None).is_none());
    let spelled = Response { ids: vec![b, watched[5]], watched: (0..2).map(step).collect() };
    let found = letters.at_answer(&spelled, 4, Some(&"B".to_owned())).unwrap();
    assert_eq!(found[&'B'], -105.0);
}
