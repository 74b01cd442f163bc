//! Loss, gradients and optimiser steps against HF transformers + PEFT and PyTorch's AdamW.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use serde_json::Value;
use vlm4d_train::model::norm::LayerNorm;
use vlm4d_train::model::parameters::{self, Named};
use vlm4d_train::model::peft;
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::model::weights::{module_name, transposed};
use vlm4d_train::recipe::{Lora, Loss, Part, Schedule, Train};
use vlm4d_train::train::batches::batches;
use vlm4d_train::train::checkpoint::TrainerState;
use vlm4d_train::train::gradients::{LOGITS_AT_ONCE, Method, Weighted, add_samples};
use vlm4d_train::train::log::{self, Log};
use vlm4d_train::train::loss::label_tokens;
use vlm4d_train::train::optimiser::{AdamW, clip_factor, global_norm};
use vlm4d_train::train::schedule::Course;
use vlm4d_train::train::trainer::{Media, Setup, order};

use crate::support::model::{
    Batch, beside, load, load_as, media, one_batch, setup, values, with_adapter,
};
use crate::support::{
    CHECKPOINTS, Golden, alone, golden, json, max_difference, relative_difference,
};

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

/// The largest relative difference of a tensor, and which it is.
fn worst(model: &QwenVl, got: &Named, want: &Golden, prefix: &str) -> (f64, String) {
    let both = beside(model, got, want, prefix).into_iter();
    let all = both.map(|(name, got, want)| (relative_difference(&got, &want), name));
    all.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

#[test]
fn lora_gradients_equal_peft() {
    for name in CHECKPOINTS {
        let want = Golden::read(&format!("{name}/lora_grads.safetensors"));
        let model = with_adapter(name, &format!("{name}/lora_init.safetensors"));
        let meta = json(&format!("{name}/summary.json"));
        for case in ["text", "video", "batch"] {
            let meta = &meta["forward"][case];
            let file = format!("{name}/forward_{case}.safetensors");
            let batch =
                Batch::read(&model, &file, &strings(&meta["images"]), &strings(&meta["videos"]));
            for recompute in [true, false] {
                let train = one_batch(batch.samples.len(), recompute);
                let (loss, gradients) =
                    setup(&train, &batch.samples, &batch).gradients(&model, 0).unwrap();
                let expected = f64::from(want.f32(&format!("{case}.loss")).0[0]);
                assert!(
                    (loss / expected - 1.0).abs() < 1e-5,
                    "{name} {case}: loss {loss} {expected}"
                );
                let (difference, at) = worst(&model, &gradients, &want, &format!("{case}.grad."));
                assert!(
                    difference < 1e-4,
                    "{name} {case} recompute {recompute}: {difference:e} {at}"
                );
            }
        }
    }
}

#[test]
fn full_gradients_equal_the_reference() {
    for name in CHECKPOINTS {
        let model = load(name);
        let model = model.set_require_grad(true).train();
        let want = Golden::read(&format!("{name}/full_grads_mixed_batch.safetensors"));
        let batch = Batch::read(
            &model,
            &format!("{name}/train_batch_5.safetensors"),
            &["img_b".into()],
            &["vid_up".into(), "vid_one".into(), "vid_odd".into()],
        );
        for recompute in [true, false] {
            let train = one_batch(batch.samples.len(), recompute);
            let (loss, gradients) =
                setup(&train, &batch.samples, &batch).gradients(&model, 0).unwrap();
            let expected = f64::from(want.f32("__loss__").0[0]);
            assert!((loss / expected - 1.0).abs() < 1e-5, "{name}: loss {loss} {expected}");
            let (difference, at) = worst(&model, &gradients, &want, "");
            assert!(difference < 1e-4, "{name} recompute {recompute}: {difference:e} at {at}");
        }
    }
}

const PLAIN: Method = Method { recompute: false, logits_at_once: LOGITS_AT_ONCE, multiple: 1 };

/// Adds the gradients of the samples `which`, a weight for each, which go through the model
/// together; returns their losses.
fn add(
    model: &QwenVl,
    batch: &Batch,
    which: &[(usize, f64)],
    method: Method,
    sums: &mut Named,
) -> Vec<f64> {
    let weighted = which.iter().map(|&(i, weight)| {
        let features = batch.features(model, i).unwrap();
        Weighted { sample: &batch.samples[i], features, weight, dropout_seed: None }
    });
    let weighted: Vec<Weighted> = weighted.collect();
    add_samples(model, &weighted, method, sums).unwrap().read().unwrap()
}

/// Loss and gradients of the batch's first sample.
fn of_first(model: &QwenVl, batch: &Batch, method: Method) -> (f64, Named) {
    let mut sums = Named::new();
    let losses = add(model, batch, &[(0, 1.0)], method, &mut sums);
    (losses[0], sums)
}

fn assert_same_gradients(got: &Named, want: &Named, tolerance: f64) {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (name, want) in want {
        let difference = relative_difference(&values(got[name].clone()), &values(want.clone()));
        assert!(difference < tolerance, "{name}: {difference:e}");
    }
}

#[test]
fn recomputing_cutting_the_logits_and_padding_change_nothing() {
    for name in CHECKPOINTS {
        let adapted = with_adapter(name, &format!("{name}/lora_init.safetensors"));
        let full = load(name).set_require_grad(true).train();
        let file = format!("{name}/forward_video.safetensors");
        let batch = Batch::read(&adapted, &file, &[], &["vid_exact".into()]);
        for model in [&adapted, &full] {
            let (loss, plain) = of_first(model, &batch, PLAIN);
            let recompute = Method { recompute: true, ..PLAIN };
            let multiple = batch.samples[0].input_ids.len() + 7;
            for (method, tolerance) in [
                (recompute, 1e-6),
                // Position by position, so that sums are rounded in another order.
                (Method { logits_at_once: 1, ..recompute }, 3e-6),
                (Method { logits_at_once: 1, ..PLAIN }, 3e-6),
                (Method { multiple, ..PLAIN }, 3e-6),
                (Method { multiple, ..recompute }, 3e-6),
            ] {
                let (other, gradients) = of_first(model, &batch, method);
                assert!((other / loss - 1.0).abs() < 1e-6, "{name}: {other} {loss}");
                assert_same_gradients(&gradients, &plain, tolerance);
            }
        }
    }
}

/// Samples of several lengths, each with a weight of its own, in one pass.
#[test]
fn samples_that_go_together_learn_as_alone() {
    for name in CHECKPOINTS {
        let adapted = with_adapter(name, &format!("{name}/lora_init.safetensors"));
        let full = load(name).set_require_grad(true).train();
        let meta = &json(&format!("{name}/summary.json"))["forward"]["batch"];
        let (images, videos) = (strings(&meta["images"]), strings(&meta["videos"]));
        for model in [&adapted, &full] {
            let file = format!("{name}/forward_batch.safetensors");
            let batch = Batch::read(model, &file, &images, &videos);
            let lengths: Vec<usize> = batch.samples.iter().map(|s| s.input_ids.len()).collect();
            assert!(lengths.iter().any(|t| *t != lengths[0]), "{lengths:?}");
            let weights: Vec<(usize, f64)> =
                (0..lengths.len()).map(|i| (i, 1.0 / (1 + i) as f64)).collect();
            let (mut losses, mut alone) = (vec![], Named::new());
            for one in &weights {
                losses.extend(add(model, &batch, &[*one], PLAIN, &mut alone));
            }
            for (recompute, multiple, logits_at_once) in
                [(false, 1, LOGITS_AT_ONCE), (true, 16, LOGITS_AT_ONCE), (true, 1, 1)]
            {
                let method = Method { recompute, multiple, logits_at_once };
                let mut sums = Named::new();
                let together = add(model, &batch, &weights, method, &mut sums);
                for (together, alone) in together.iter().zip(&losses) {
                    assert!((together / alone - 1.0).abs() < 1e-6, "{name}: {together} {alone}");
                }
                assert_same_gradients(&sums, &alone, 5e-6);
            }
        }
    }
}

/// As on a GPU: what is not f32 on the CPU is batched too.
#[test]
fn a_step_of_batches_has_the_gradients_of_its_samples() {
    let name = "tiny-qwen2-vl";
    let source = golden(&format!("ckpt/{name}"));
    let mut model = load_as(&source, DType::BF16);
    peft::attach(&mut model, &Lora::default(), 0).unwrap();
    let model = model.train();
    let file = format!("{name}/forward_batch.safetensors");
    let batch = Batch::read(&model, &file, &[], &["vid_odd".into(), "vid_down".into()]).repeat(7);
    // B is zero yet, and so is A's gradient: a step first.
    let train = Train { batch_size: 7, grad_accum: 1, shuffle: false, ..Train::default() };
    let setup = setup(&train, &batch.samples, &batch);
    let (_, gradients) = setup.gradients(&model, 0).unwrap();
    let model = AdamW::new(0.0).update(model, |_| 1e-2, &gradients, 1.0);
    let (loss, gradients) = setup.gradients(&model, 0).unwrap();
    let (mut alone, mut sums) = (0.0, Named::new());
    for (i, sample) in batch.samples.iter().enumerate() {
        let weight = 1.0 / (7 * label_tokens(&sample.labels)) as f64;
        alone += weight * add(&model, &batch, &[(i, weight)], PLAIN, &mut sums)[0];
    }
    assert!((loss / alone - 1.0).abs() < 1e-3, "{loss} {alone}");
    assert_same_gradients(&gradients, &sums, 0.03);
    let batches = |model: &QwenVl| setup.batches(model, 0).concat().len();
    assert!(batches(&model) < 7, "some go together");
    // One by one where the tower has a tape for each, and in f32 on the CPU.
    let mut tower = load_as(&source, DType::BF16);
    let scope = Some(vec![Part::Vision]);
    peft::attach(&mut tower, &Lora { scope, ..Lora::default() }, 0).unwrap();
    assert_eq!(batches(&tower.train()), 7);
    assert_eq!(batches(&load(name).train()), 7);
}

#[test]
fn batches_are_of_samples_that_are_about_as_long() {
    let none: Vec<Vec<usize>> = vec![];
    assert_eq!(batches(&[], 8, 8), none);
    // As many as there is room for, the longest first.
    let lengths = [100, 120, 130, 110, 50, 128];
    assert_eq!(batches(&lengths, 1, 390), [vec![2, 5, 1], vec![3, 0], vec![4]]);
    // As many as are asked for, whatever room there is.
    assert_eq!(batches(&lengths, 2, 0), [vec![2, 5], vec![1, 3], vec![0], vec![4]]);
    assert_eq!(batches(&lengths, 1, 0).len(), 6);
    // Three quarters are no padding.
    assert_eq!(batches(&[100, 75, 74], 8, 0), [vec![0, 1], vec![2]]);
}

#[test]
fn what_lies_before_the_first_trained_layer_has_no_tape() {
    for name in CHECKPOINTS {
        let mut model = with_adapter(name, &format!("{name}/lora_init.safetensors")).valid();
        for (layer, linear) in model.linear_layers_mut() {
            if !layer.starts_with("model.layers.1.") {
                linear.lora = None;
            }
        }
        let model = model.train();
        let file = format!("{name}/forward_video.safetensors");
        let batch = Batch::read(&model, &file, &[], &["vid_exact".into()]);
        let features = batch.features(&model, 0).unwrap();
        assert!(!features[0].is_tracked(), "the vision tower is frozen");
        let sample = &batch.samples[0];
        let context = model.context(std::slice::from_ref(&sample.positions), true);
        let embedded = model.embed(&sample.input_ids, &features).unwrap();
        let below = model.model.layers[0].forward(embedded, &context, None);
        assert!(!below.is_tracked(), "layer 0 is frozen");
        assert!(model.model.layers[1].forward(below, &context, None).is_tracked());
        let [(_, plain), (_, recomputed)] =
            [false, true].map(|recompute| of_first(&model, &batch, Method { recompute, ..PLAIN }));
        assert!(plain.keys().all(|key| key.starts_with("model.layers.1.")));
        assert_same_gradients(&recomputed, &plain, 1e-6);
    }
}

#[test]
fn accumulation_does_not_change_the_gradient() {
    let model = with_adapter("tiny-qwen2-vl", "tiny-qwen2-vl/lora_init.safetensors");
    let file = "tiny-qwen2-vl/forward_batch.safetensors";
    let batch = Batch::read(&model, file, &[], &["vid_odd".into(), "vid_down".into()]);
    for loss in [Loss::Sample, Loss::Token] {
        let cuts = [(3, 1), (1, 3), (2, 2)].map(|(batch_size, grad_accum)| {
            let train = Train { batch_size, grad_accum, loss, shuffle: false, ..Train::default() };
            setup(&train, &batch.samples, &batch).gradients(&model, 0).unwrap()
        });
        for (other, gradients) in &cuts[1..] {
            assert!((other / cuts[0].0 - 1.0).abs() < 1e-6, "{loss:?}");
            assert_same_gradients(gradients, &cuts[0].1, 1e-6);
        }
    }
}

/// As the issue that accumulation has had elsewhere: one sample eight times, two four times, or
/// eight at once are the same step.
#[test]
fn steps_do_not_depend_on_how_they_are_cut() {
    let file = "tiny-qwen2-vl/forward_batch.safetensors";
    let init = "tiny-qwen2-vl/lora_init.safetensors";
    let adapters = [(1, 8), (2, 4), (8, 1)].map(|(batch_size, grad_accum)| {
        let mut model = with_adapter("tiny-qwen2-vl", init);
        let rows = Batch::read(&model, file, &[], &["vid_odd".into(), "vid_down".into()]);
        // Eight samples of three lengths; the labels differ in number too.
        let batch = rows.repeat(8);
        let train = Train { batch_size, grad_accum, lr: 1e-3, ..Train::default() };
        let setup = setup(&train, &batch.samples, &batch);
        let mut optimiser = AdamW::new(0.0);
        for step in 0..3 {
            let (_, gradients) = setup.gradients(&model, step).unwrap();
            model = optimiser.update(model, |_| 1e-3, &gradients, 1.0);
        }
        parameters::trained_values(&model).into_values().flat_map(values).collect::<Vec<_>>()
    });
    for other in &adapters[1..] {
        let difference = relative_difference(other, &adapters[0]);
        assert!(difference < 1e-6, "{difference:e}");
    }
}

/// A step's samples go by lanes: the same as each by itself, added, bit for bit each time.
#[test]
fn lanes_add_up_to_the_samples_one_by_one() {
    let name = "tiny-qwen2-vl";
    let file = format!("{name}/forward_batch.safetensors");
    let adapted = with_adapter(name, &format!("{name}/lora_init.safetensors"));
    let full = load(name).set_require_grad(true).train();
    for model in [&adapted, &full] {
        let rows = Batch::read(model, &file, &[], &["vid_odd".into(), "vid_down".into()]);
        let batch = rows.repeat(5);
        let train = Train { batch_size: 5, grad_accum: 1, shuffle: false, ..Train::default() };
        let setup = setup(&train, &batch.samples, &batch);
        let (loss, gradients) = setup.gradients(model, 0).unwrap();
        let (mut alone, mut sums) = (0.0, Named::new());
        for (i, sample) in batch.samples.iter().enumerate() {
            let labels = sample.labels.iter().filter(|label| **label >= 0).count();
            let weight = 1.0 / (5.0 * labels as f64);
            let method = Method { recompute: true, ..PLAIN };
            alone += weight * add(model, &batch, &[(i, weight)], method, &mut sums)[0];
        }
        assert!((loss / alone - 1.0).abs() < 1e-9, "{loss} {alone}");
        assert_same_gradients(&gradients, &sums, 1e-6);
        let (again, same) = setup.gradients(model, 0).unwrap();
        assert_eq!(again.to_bits(), loss.to_bits());
        for (name, gradient) in &gradients {
            assert!(values(gradient.clone()) == values(same[name].clone()), "{name}");
        }
    }
}

#[test]
fn a_loss_that_is_no_number_names_its_sample() {
    let name = "tiny-qwen2-vl";
    let model = with_adapter(name, &format!("{name}/lora_init.safetensors"));
    let broken = parameters::replace(model.clone(), |name, value| {
        let hit = name.ends_with("layers.1.mlp.up_proj.lora_B.weight");
        value.mul_scalar(if hit { f32::NAN } else { 1.0 })
    });
    let file = format!("{name}/forward_video.safetensors");
    let batch = Batch::read(&model, &file, &[], &["vid_exact".into()]);
    let train = one_batch(1, true);
    let mut setup = setup(&train, &batch.samples, &batch);
    let error = setup.gradients(&broken, 4).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with(&format!("step 5: the loss of `{file}` is NaN")), "{text}");
    assert!(text.contains("no checkpoint was saved yet"), "{text}");
    assert_eq!(error.exit_code(), 1);
    // A checkpoint that would give the same again is told from one of earlier weights.
    let dir = tempfile::tempdir().unwrap();
    setup.checkpoints = dir.path().to_owned();
    for (saved, told) in [(3, " (step 3); lower"), (4, " (step 4), whose weights gave this; lower")]
    {
        let last = dir.path().join(format!("step-{saved}"));
        std::fs::create_dir(&last).unwrap();
        let text = setup.gradients(&broken, 4).unwrap_err().to_string();
        let wanted = format!("the last checkpoint is {}{told}", last.display());
        assert!(text.contains(&wanted), "no `{wanted}` in\n{text}");
    }
}

/// A model whose adapter drops three inputs of ten.
fn with_dropout(name: &str) -> QwenVl {
    let mut model = with_adapter(name, &format!("{name}/lora_init.safetensors")).valid();
    for (_, layer) in model.linear_layers_mut() {
        layer.lora.iter_mut().for_each(|lora| lora.dropout = 0.3);
    }
    model.train()
}

#[test]
fn dropout_is_the_same_when_a_layer_is_run_again() {
    let _alone = alone();
    let name = "tiny-qwen2-vl";
    let model = with_dropout(name);
    let file = format!("{name}/forward_video.safetensors");
    let batch = Batch::read(&model, &file, &[], &["vid_exact".into()]);
    let gradients = |recompute: bool, dropout: bool, step: usize| {
        let train = Train { grad_accum: 1, recompute, shuffle: false, ..Train::default() };
        let lora = Lora { dropout: 0.3, ..Lora::default() };
        let lora = dropout.then_some(&lora);
        let setup = Setup { lora, ..setup(&train, &batch.samples, &batch) };
        let (loss, gradients) = setup.gradients(&model, step).unwrap();
        (loss, gradients.into_values().flat_map(values).collect::<Vec<f32>>())
    };
    let (loss, again) = gradients(true, true, 0);
    let (plain_loss, plain) = gradients(false, true, 0);
    let difference = relative_difference(&again, &plain);
    assert!((loss / plain_loss - 1.0).abs() < 1e-6, "{loss} {plain_loss}");
    assert!(difference < 1e-5, "{difference:e}");
    assert_eq!(gradients(true, true, 0).1, again, "the same step draws the same");
    assert!(
        relative_difference(&gradients(true, true, 1).1, &again) > 1e-2,
        "each step draws anew"
    );
}

#[test]
fn rates_follow_transformers_schedules() {
    for row in json("tables/schedules.json").as_array().unwrap() {
        let number = |key: &str| row[key].as_u64().unwrap() as usize;
        let schedule = match row["schedule"].as_str().unwrap() {
            "cosine" => Schedule::Cosine,
            "linear" => Schedule::Linear,
            _ => Schedule::Constant,
        };
        let (max_steps, warmup_steps) = (Some(number("steps")), Some(number("warmup")));
        let train = Train { schedule, max_steps, warmup_steps, ..Train::default() };
        let course = Course::new(&train, 8);
        for (step, want) in row["factors"].as_array().unwrap().iter().enumerate() {
            let (got, want) = (course.factor(step), want.as_f64().unwrap());
            assert!((got - want).abs() < 1e-12, "{schedule:?} step {step}: {got} {want}");
        }
    }
}

#[test]
fn the_last_step_of_an_epoch_ends_it() {
    // 19 samples are steps of 8, 8 and 3.
    let train = Train { batch_size: 2, grad_accum: 4, ..Train::default() };
    let course = Course::new(&train, 19);
    let epochs = [0, 1, 2, 3, 4, 6].map(|steps| course.epoch(steps));
    assert_eq!(epochs, [0.0, 8.0 / 19.0, 16.0 / 19.0, 1.0, 1.0 + 8.0 / 19.0, 2.0]);
}

#[test]
fn a_largest_norm_of_0_clips_nothing() {
    let gradient = Tensor::from_floats([3.0, 4.0], &Device::flex());
    assert_eq!(global_norm(&Named::from([("a".to_owned(), gradient)])).unwrap(), 5.0);
    for (most, want) in [(0.0, 1.0), (5.5, 1.0), (0.5, 0.1)] {
        assert!((clip_factor(5.0, most) - want).abs() < 1e-6);
    }
}

#[test]
fn five_adamw_steps_equal_pytorch() {
    for name in CHECKPOINTS {
        let mut model = with_adapter(name, &format!("{name}/lora_init.safetensors"));
        let log = json(&format!("{name}/train_log.json"));
        let hyper = &log["hyper"];
        let lr = hyper["lr"].as_f64().unwrap();
        let course = Course::new(
            &Train {
                schedule: Schedule::Cosine,
                max_steps: Some(8),
                warmup_steps: Some(2),
                ..Train::default()
            },
            1,
        );
        let mut optimiser = AdamW::new(hyper["weight_decay"].as_f64().unwrap());
        for (i, step) in log["log"].as_array().unwrap().iter().enumerate() {
            let file = format!("{name}/train_batch_{}.safetensors", i + 1);
            let batch =
                Batch::read(&model, &file, &strings(&step["images"]), &strings(&step["videos"]));
            let train = one_batch(batch.samples.len(), true);
            let (loss, gradients) =
                setup(&train, &batch.samples, &batch).gradients(&model, 0).unwrap();
            let norm = global_norm(&gradients).unwrap();
            let clipped = clip_factor(norm, hyper["max_grad_norm"].as_f64().unwrap());
            for (what, got, want) in
                [("loss", loss, &step["loss"]), ("norm", norm, &step["grad_norm"])]
            {
                let want = want.as_f64().unwrap();
                assert!((got / want - 1.0).abs() < 1e-5, "{name} step {i} {what}: {got} {want}");
            }
            let rate = lr * course.factor(i);
            assert!((rate - step["lr"].as_f64().unwrap()).abs() < 1e-12, "{name} step {i}");
            model = optimiser.update(model, |_| rate, &gradients, clipped);
        }
        let want = Golden::read(&format!("{name}/adapter_step_5/adapter_model.safetensors"));
        let state = Golden::read(&format!("{name}/adamw_state_step_5.safetensors"));
        for parameter in parameters::list(&model).iter().filter(|p| p.trained) {
            let turn = |x: &Tensor<1>| {
                transposed(&values(x.clone()), parameter.shape[0], parameter.shape[1])
            };
            let key = format!("base_model.model.{}", module_name(&parameter.name));
            let value = &parameters::trained_values(&model)[&parameter.name];
            let difference = max_difference(&turn(value), want.f32(&key).0);
            assert!(difference < 1e-5, "{name} {key}: {difference:e}");
            for (moment, suffix) in
                optimiser.moments[&parameter.name].iter().zip(["exp_avg", "exp_avg_sq"])
            {
                let want = state.f32(&format!("{key}.{suffix}")).0;
                let difference = relative_difference(&turn(moment), want);
                assert!(difference < 1e-4, "{name} {key}.{suffix}: {difference:e}");
            }
        }
    }
}

/// Numbers of `torch.optim.AdamW(lr=0.1)`, with a weight decay of 0.5 for `weight` alone.
#[test]
fn a_parameter_without_a_gradient_takes_no_step() {
    let one = || Param::from_tensor(Tensor::<1>::from_floats([1.0], &Device::flex()));
    let mut norm = LayerNorm { weight: one(), bias: one(), eps: 0.0 }.train();
    let mut optimiser = AdamW::new(0.5);
    for (weight, bias, want) in [
        (Some(1.0), 1.0, [0.85, 0.9]),
        (None, -2.0, [0.85, 0.936_610_4]),
        (Some(-2.0), 4.0, [0.844_110_37, 0.894_644_86]),
        (Some(4.0), 0.5, [0.759_939_3, 0.854_165_1]),
    ] {
        let gradients = [("weight", weight), ("bias", Some(bias))].into_iter();
        let gradients = gradients.filter_map(|(name, gradient)| {
            Some((name.to_owned(), Tensor::from_floats([gradient?], &Device::flex())))
        });
        norm = optimiser.update(norm, |_| 0.1, &gradients.collect(), 1.0);
        let got = [&norm.weight, &norm.bias].map(|p| values(p.val())[0]);
        assert!(max_difference(&got, &want) < 1e-6, "{got:?} {want:?}");
    }
}

#[test]
fn a_merged_adapter_is_the_same_function() {
    for name in CHECKPOINTS {
        let mut model = load(name);
        peft::load(&mut model, &golden(&format!("{name}/adapter_step_5")), 0.0).unwrap();
        for (_, layer) in model.linear_layers_mut() {
            *layer = layer.clone().merge();
        }
        let file = format!("{name}/forward_video.safetensors");
        let batch = Batch::read(&model, &file, &[], &["vid_exact".into()]);
        let (ids, grids) = (&batch.samples[0].input_ids, &batch.rows[0].grids());
        let features = [model.features(&media("vid_exact").pixel_values, grids[0].grid_thw)];
        let (hidden, _) = model.forward(ids, grids, &features, None).unwrap();
        let logits = values(model.logits(hidden.squeeze_dim::<2>(0)));
        let want = Golden::read(&format!("{name}/merged_check.safetensors"));
        let merged = &model.model.layers[0].self_attn.q_proj.weight;
        let [i, o] = merged.shape();
        let difference = max_difference(
            &transposed(&values(merged.val()), i, o),
            want.f32("model.layers.0.self_attn.q_proj.weight").0,
        );
        assert!(difference < 1e-6, "{name} merged weight: {difference:e}");
        let difference = max_difference(&logits, want.f32("logits_video").0);
        assert!(difference < 2e-4, "{name}: {difference:e}");
    }
}

#[test]
fn steps_take_the_samples_of_their_epoch_in_its_order() {
    let plain: Vec<usize> = (0..50).collect();
    assert_eq!(order(7, 3, 50, false), plain);
    let mut first = order(7, 0, 50, true);
    for other in [&plain, &order(7, 1, 50, true), &order(8, 0, 50, true)] {
        assert_ne!(*other, first);
    }
    first.sort_unstable();
    assert_eq!(first, plain);
    let name = "tiny-qwen2-vl";
    let model = with_adapter(name, &format!("{name}/lora_init.safetensors"));
    let file = format!("{name}/forward_batch.safetensors");
    let batch = Batch::read(&model, &file, &[], &["vid_odd".into(), "vid_down".into()]);
    let losses = |batch_size: usize, shuffle: bool, epochs: &[Vec<usize>], steps: usize| {
        let train = Train { batch_size, grad_accum: 1, shuffle, ..Train::default() };
        let mut setup = setup(&train, &batch.samples, &batch);
        setup.epochs = epochs.to_vec();
        (0..steps).map(|i| setup.gradients(&model, i).unwrap().0).collect::<Vec<f64>>()
    };
    let all = vec![0, 1, 2];
    let one = losses(1, false, std::slice::from_ref(&all), 3);
    let mean = |a: usize, b: usize| f64::midpoint(one[a], one[b]);
    let got = losses(2, false, &[all.clone(), vec![2, 1, 0]], 5);
    for (got, want) in got.iter().zip([mean(0, 1), one[2], mean(2, 1), one[0], mean(0, 1)]) {
        assert!((got / want - 1.0).abs() < 1e-6, "{got} {want}");
    }
    let want: Vec<f64> = (0..5).flat_map(|e| order(0, e, 3, true)).map(|i| one[i]).collect();
    assert_eq!(losses(1, true, &[all], 15), want);
}

#[test]
fn a_run_gives_each_part_its_own_rate() {
    let name = "tiny-qwen2-vl";
    let rates = [(Part::Language, 1e-3), (Part::Vision, 2e-3), (Part::Merger, 3e-3)];
    let [lr, vision_lr, merger_lr] = rates.map(|(_, rate)| rate);
    let train = Train {
        lr,
        vision_lr: Some(vision_lr),
        merger_lr: Some(merger_lr),
        max_steps: Some(1),
        warmup_ratio: 0.0,
        grad_accum: 1,
        ..Train::default()
    };
    for from in 0..rates.len() {
        let trained = &rates[from..];
        let scope = Some(trained.iter().map(|(part, _)| *part).collect());
        let lora = Lora { scope, plus_ratio: Some(4.0), ..Lora::default() };
        let mut model = load(name);
        peft::attach(&mut model, &lora, 0).unwrap();
        let model = model.train();
        let before = parameters::trained_values(&model);
        let file = format!("{name}/forward_video.safetensors");
        let batch = Batch::read(&model, &file, &[], &["vid_exact".into()]);
        let dir = tempfile::tempdir().unwrap();
        let mut setup = setup(&train, &batch.samples, &batch);
        (setup.lora, setup.checkpoints) = (Some(&lora), dir.path().join("checkpoints"));
        let mut log = Log::open(dir.path(), 0, 0).unwrap();
        let model = setup.run(model, TrainerState::default(), &mut log, |_| ()).unwrap().model;
        let after = parameters::trained_values(&model);
        // Adam's first step is as long as the rate.
        for (part, rate) in trained {
            let moved = after
                .iter()
                .filter(|(name, _)| Part::of(name) == *part && name.ends_with("lora_B.weight"))
                .map(|(name, value)| {
                    max_difference(&values(value.clone()), &values(before[name].clone()))
                })
                .fold(0.0, f32::max);
            assert!((f64::from(moved) / (4.0 * rate) - 1.0).abs() < 1e-2, "{part:?}: {moved}");
        }
        // The log tells the first one's.
        assert_eq!(log::read(&dir.path().join("log.jsonl")).unwrap()[0].lr, trained[0].1);
    }
}

#[test]
fn a_gradient_that_is_no_number_ends_the_run_and_saves_nothing() {
    let name = "tiny-qwen2-vl";
    let model = with_adapter(name, &format!("{name}/lora_init.safetensors"));
    // B = 0 keeps the loss finite; the square of B's gradient is not.
    let model = parameters::replace(model, |name, value| {
        value.mul_scalar(match name.strip_prefix("model.layers.1.mlp.up_proj.") {
            Some("lora_A.weight") => 1e30,
            Some(_) => 0.0,
            None => 1.0,
        })
    });
    let file = format!("{name}/forward_video.safetensors");
    let batch = Batch::read(&model, &file, &[], &["vid_exact".into()]);
    let train =
        Train { max_steps: Some(2), save_steps: Some(1), grad_accum: 1, ..Train::default() };
    let dir = tempfile::tempdir().unwrap();
    let mut setup = setup(&train, &batch.samples, &batch);
    setup.checkpoints = dir.path().join("checkpoints");
    let mut log = Log::open(dir.path(), 0, 0).unwrap();
    let error =
        setup.run(model, TrainerState::default(), &mut log, |_| ()).unwrap_err().to_string();
    assert!(error.starts_with("step 1: the gradient's norm is inf (1 of "), "{error}");
    assert!(error.contains("`model.layers.1.mlp.up_proj.lora_B.weight` first"), "{error}");
    assert!(!setup.checkpoints.exists());
}

#[test]
fn each_sample_and_seed_drops_inputs_of_its_own() {
    let _alone = alone();
    let name = "tiny-qwen2-vl";
    let model = with_dropout(name);
    let file = format!("{name}/forward_video.safetensors");
    let Batch { samples, rows } = Batch::read(&model, &file, &[], &["vid_exact".into()]);
    let batch =
        Batch { samples: [samples.clone(), samples].concat(), rows: [rows.clone(), rows].concat() };
    let train = Train { grad_accum: 1, shuffle: false, ..Train::default() };
    let lora = Lora { dropout: 0.3, ..Lora::default() };
    let loss = |seed: u64, i: usize| {
        let mut setup = setup(&train, &batch.samples, &batch);
        (setup.lora, setup.seed, setup.epochs) = (Some(&lora), seed, vec![vec![i]]);
        setup.gradients(&model, 0).unwrap().0
    };
    assert_eq!(loss(0, 0), loss(0, 0));
    assert_ne!(loss(0, 0), loss(0, 1));
    assert_ne!(loss(0, 0), loss(1, 0));
}
