//! Several devices at once: here copies of the model on the CPU, dealt out to and added up as on GPUs.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use vlm4d_train::error::Error;
use vlm4d_train::eval::generate::{Group, Options, Prompt, Response, generate};
use vlm4d_train::lanes::{self, Lanes};
use vlm4d_train::model::dropout::{self, Row};
use vlm4d_train::model::parameters::{self, Named};
use vlm4d_train::model::peft;
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::recipe::{Lora, Loss, Part, Recipe, Schedule, TargetModules, Train};
use vlm4d_train::train::batches::deal;
use vlm4d_train::train::checkpoint::{self, TrainerState};
use vlm4d_train::train::log::{self, Log};
use vlm4d_train::train::optimiser::AdamW;
use vlm4d_train::train::trainer::Setup;
use vlm4d_train::train::validation::held_out_loss;

use crate::support::golden;
use crate::support::model::{Batch, load, load_as, setup, values, with_adapter};
use crate::support::relative_difference;
use crate::support::run::{Workplace, demo_data, recipe, text, tiny};

const NAME: &str = "tiny-qwen2-vl";

/// What as many devices have.
fn devices(n: usize) -> Lanes {
    Lanes::new(&vec![Device::flex(); n]).unwrap()
}

/// `n` samples of three lengths.
fn samples(model: &QwenVl, n: usize) -> Batch {
    let file = format!("{NAME}/forward_batch.safetensors");
    Batch::read(model, &file, &[], &["vid_odd".into(), "vid_down".into()]).repeat(n)
}

fn adapted() -> QwenVl {
    with_adapter(NAME, &format!("{NAME}/lora_init.safetensors"))
}

/// The tiny model, in training form, with a new adapter that already does something.
fn with_new(recipe: &Lora, dtype: DType) -> QwenVl {
    let mut model = load_as(&golden(&format!("ckpt/{NAME}")), dtype);
    peft::attach(&mut model, recipe, 0).unwrap();
    parameters::replace(model.train(), |name, value| match name.ends_with("lora_B.weight") {
        true => value.clone() + (value.ones_like() * 0.02),
        false => value,
    })
}

/// Losses of three optimiser steps, the gradients of the first, and what is trained behind the last.
fn three_steps(setup: &Setup, mut model: QwenVl) -> (Vec<f64>, Named, Named) {
    let mut optimiser = AdamW::new(0.0);
    let (mut losses, mut first) = (vec![], None);
    for step in 0..3 {
        let (loss, gradients) = setup.gradients(&model, step).unwrap();
        model = optimiser.update(model, |_| 1e-3, &gradients, 1.0);
        losses.push(loss);
        first.get_or_insert(gradients);
    }
    (losses, first.unwrap(), parameters::trained_values(&model))
}

/// All of them as one: by itself the gradient of a key's bias is rounding alone.
fn assert_near(got: &Named, want: &Named, what: &str) {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    let all = |of: &Named| of.values().cloned().flat_map(values).collect::<Vec<f32>>();
    let difference = relative_difference(&all(got), &all(want));
    assert!(difference < 1e-6, "{what}: {difference:e}");
}

fn assert_same_bits(got: &Named, want: &Named) {
    for (name, want) in want {
        assert!(values(got[name].clone()) == values(want.clone()), "{name}");
    }
}

/// Whatever is trained, 1, 2 and 3 devices give the same loss, gradients and, three steps on,
/// parameters; the same bits each time. Steps of five samples leave one device with fewer.
#[test]
fn several_devices_train_as_one() {
    let dropout = Lora { dropout: 0.3, ..Lora::default() };
    let dora = Lora { use_dora: true, ..Lora::default() };
    let tower = Lora {
        dropout: 0.3,
        scope: Some(vec![Part::Language, Part::Vision, Part::Merger]),
        ..Lora::default()
    };
    let head = TargetModules::Names(vec!["lm_head".into(), "q_proj".into()]);
    let head = Lora { dropout: 0.3, target_modules: head, ..Lora::default() };
    let full = || load(NAME).set_require_grad(true).train();
    let cases = vec![
        ("adapter", adapted(), None),
        ("dropout", with_new(&dropout, DType::F32), Some(&dropout)),
        ("DoRA", with_new(&dora, DType::F32), Some(&dora)),
        ("tower", with_new(&tower, DType::F32), Some(&tower)),
        ("head", with_new(&head, DType::F32), Some(&head)),
        ("full", full(), None),
    ];
    for (what, model, lora) in cases {
        let batch = samples(&model, 5);
        let train = Train { batch_size: 1, grad_accum: 5, ..Train::default() };
        let steps = |n: usize| {
            let lanes = devices(n);
            let setup = Setup { lora, lanes: &lanes, ..setup(&train, &batch.samples, &batch) };
            three_steps(&setup, model.clone())
        };
        let (losses, gradients, trained) = steps(1);
        for n in [2, 3] {
            let (got, summed, after) = steps(n);
            for (got, want) in got.iter().zip(&losses) {
                assert!((got / want - 1.0).abs() < 1e-6, "{what}, {n}: {got} {want}");
            }
            assert_near(&summed, &gradients, what);
            assert_near(&after, &trained, what);
            let (again, _, same) = steps(n);
            assert_eq!(again, got);
            assert_same_bits(&same, &after);
        }
    }
}

/// In bf16 samples go through the model together, padded: each draws what it draws alone.
#[test]
fn samples_that_go_together_draw_their_own_dropout() {
    let head = TargetModules::Names(["lm_head", "q_proj", "down_proj"].map(String::from).into());
    let lora = Lora { dropout: 0.5, target_modules: head, ..Lora::default() };
    let model = with_new(&lora, DType::BF16);
    let batch = samples(&model, 4);
    let train = Train { batch_size: 4, grad_accum: 1, shuffle: false, ..Train::default() };
    let gradients = |n: usize, seed: u64| {
        let lanes = devices(n);
        let lanes = &lanes;
        let setup =
            Setup { lora: Some(&lora), seed, lanes, ..setup(&train, &batch.samples, &batch) };
        let together = setup.batches(&model, 0).concat().len();
        let gradients = setup.gradients(&model, 0).unwrap().1;
        (together, gradients.into_values().flat_map(values).collect::<Vec<f32>>())
    };
    let ((batches, joined), (each, alone)) = (gradients(1, 0), gradients(4, 0));
    assert!(batches < each && each == 4, "{batches} {each}");
    let (same, other) =
        (relative_difference(&joined, &alone), relative_difference(&gradients(1, 1).1, &joined));
    assert!(same < 0.03 && other > 10.0 * same, "{same} {other}");
}

/// Beside a longer sample it draws what it draws alone, and nothing for the padding.
#[test]
fn rows_of_a_batch_draw_for_their_own_tokens() {
    let x = |b: usize, t: usize| Tensor::<3>::ones([b, t, 8], (&Device::flex(), DType::F32));
    let drawn = |rows: &[Row], x: &Tensor<3>| {
        dropout::begin(rows.iter().copied());
        [(); 2].map(|()| values(dropout::kept(x, 0.5)))
    };
    let [short, long] = [Row { seed: 1, tokens: 3 }, Row { seed: 2, tokens: 5 }];
    let (together, long) = (drawn(&[short, long], &x(2, 5)), drawn(&[long], &x(1, 5)));
    let short = drawn(&[short], &x(1, 3));
    assert_ne!(together[0], together[1], "each layer draws anew");
    for (together, (short, long)) in together.iter().zip(short.into_iter().zip(long)) {
        assert_eq!(*together, [short, vec![0.0; 2 * 8], long].concat());
    }
}

#[test]
fn a_step_of_fewer_samples_than_devices_is_legal() {
    let model = adapted();
    let batch = samples(&model, 1);
    let train = Train { batch_size: 1, grad_accum: 1, ..Train::default() };
    let of = |n: usize| {
        let lanes = devices(n);
        let setup = Setup { lanes: &lanes, ..setup(&train, &batch.samples, &batch) };
        setup.gradients(&model, 0).unwrap()
    };
    let ((loss, gradients), (other, same)) = (of(1), of(3));
    assert_eq!(loss.to_bits(), other.to_bits());
    assert_same_bits(&same, &gradients);
}

#[test]
fn samples_are_dealt_out_by_their_tokens() {
    assert_eq!(deal(&[10, 10, 10, 30], 2), [vec![3], vec![0, 1, 2]]);
    assert_eq!(deal(&[5, 9, 5, 1], 2), [vec![1, 3], vec![0, 2]]);
    assert_eq!(deal(&[7, 7, 7, 7], 3), [vec![0, 3], vec![1], vec![2]]);
    assert_eq!(deal(&[1], 1), [vec![0]]);
    assert_eq!([1, 8].map(|samples| lanes::number(2, false, samples)), [1, 2]);
    assert_eq!([1, 8].map(|samples| lanes::number(1, true, samples)), [1, 2], "two on a CPU");
    assert_eq!(lanes::number(1, false, 8), 1);
    assert_eq!(lanes::number(3, true, 8), 3);
}

/// Stopped and gone on with, two devices end where they would have ended.
#[test]
fn several_devices_go_on_bit_for_bit() {
    let lora = Lora { dropout: 0.3, ..Lora::default() };
    let start = with_new(&lora, DType::F32);
    let batch = samples(&start, 4);
    let run = |dir: &Path, steps: usize, model: QwenVl, state: TrainerState| {
        let train = Train {
            max_steps: Some(steps),
            grad_accum: 3,
            save_steps: Some(2),
            schedule: Schedule::Constant,
            ..Train::default()
        };
        let lanes = devices(2);
        let setup = Setup {
            lora: Some(&lora),
            lanes: &lanes,
            checkpoints: dir.join("checkpoints"),
            ..setup(&train, &batch.samples, &batch)
        };
        let mut log = Log::open(dir, state.optimiser.step, 0).unwrap();
        setup.run(model, state, &mut log, |_| ()).unwrap().model
    };
    let (straight, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = run(straight.path(), 4, start.clone(), TrainerState::default());
    run(stopped.path(), 2, start.clone(), TrainerState::default());
    let at = stopped.path().join("checkpoints/step-2");
    let (model, state) = checkpoint::load(&at, start.clone(), 0.0).unwrap();
    let gone_on = run(stopped.path(), 4, model, state);
    let [whole, gone_on] = [&whole, &gone_on].map(parameters::trained_values);
    assert_same_bits(&gone_on, &whole);
    let losses = |dir: &Path| {
        let records = log::read(&dir.join("log.jsonl")).unwrap();
        records.into_iter().map(|record| record.loss).collect::<Vec<_>>()
    };
    assert_eq!(losses(stopped.path()), losses(straight.path()));
}

#[test]
fn answers_and_losses_do_not_depend_on_the_devices() {
    let model = adapted();
    let batch = samples(&model, 5);
    let groups: Vec<Group> = (0..5)
        .map(|i| {
            let (input_ids, media, features) = batch.prompt(&model.valid(), i);
            let prompt = Prompt { input_ids, max_new_tokens: 4 + i };
            Group { prompts: vec![prompt], media, features }
        })
        .collect();
    let options = Options { watch: vec![5, 6], ..Options::default() };
    let asked = |lanes: &Lanes| {
        let (mut order, mut all) = (vec![], Vec::<Response>::new());
        let ready = |model: &QwenVl| model.valid().for_inference();
        let work = |fixed: &QwenVl, group: &Group| {
            generate(fixed, std::slice::from_ref(group), &options, None)
        };
        let seen = |i: usize, responses: Vec<Response>| {
            order.push(i);
            all.extend(responses);
            Ok(())
        };
        lanes.deal(&model, &groups, ready, work, seen).unwrap();
        assert_eq!(order, [0, 1, 2, 3, 4]);
        let loss = held_out_loss(&model, lanes, &batch.samples, Loss::Sample, &batch).unwrap();
        (all, loss.to_bits())
    };
    let one = asked(&devices(1));
    assert_eq!(one.0.len(), 5);
    for n in [2, 3, 6] {
        assert_eq!(asked(&devices(n)), one);
    }
}

/// An error on any device ends a step, and what is dealt out.
#[test]
fn an_error_on_any_device_is_told() {
    let model = adapted();
    let lanes = devices(3);
    let (mut seen, begun) = (vec![], AtomicUsize::new(0));
    let work = |(): &(), item: &usize| {
        begun.fetch_add(1, Ordering::Relaxed);
        match item {
            4 => Err(Error::run("the fifth")),
            item => {
                std::thread::sleep(Duration::from_millis(10));
                Ok(*item)
            }
        }
    };
    let told = |_, item| {
        seen.push(item);
        Ok(())
    };
    let items: Vec<usize> = (0..90).collect();
    let error = lanes.deal(&model, &items, |_| (), work, told).unwrap_err();
    assert_eq!(error.to_string(), "the fifth");
    assert!(seen.len() <= 4 && seen == items[..seen.len()], "{seen:?}: in order");
    // The others end what they are at.
    assert!(begun.into_inner() < 20, "a lane has thirty");

    let mut batch = samples(&model, 3);
    for sample in &mut batch.samples[1..2] {
        sample.id = "the broken one".into();
    }
    let nan = parameters::replace(model.clone(), |_, value| value * f32::NAN);
    let train = Train { batch_size: 1, grad_accum: 3, shuffle: false, ..Train::default() };
    let setup = Setup { lanes: &lanes, ..setup(&train, &batch.samples, &batch) };
    let error = setup.gradients(&nan, 0).unwrap_err().to_string();
    assert!(error.starts_with("step 1: the loss of `"), "{error}");
}

/// A copy made of a model that trains something else would be out of date without anybody noticing.
#[test]
fn lanes_are_of_one_model() {
    let (adapted, lanes) = (adapted(), devices(2));
    lanes.run(&adapted, 2, |_, _, _| Ok(())).unwrap();
    let other = lanes.run(&adapted.valid(), 2, |_, _, _| Ok(())).unwrap_err().to_string();
    assert_eq!(other, "a copy of the model trains other parameters than it");
}

#[test]
fn a_list_of_one_device_is_that_one() {
    let device = |device: &str| {
        let text = format!("[model]\npath = \"m\"\ndevice = {device}\n[data]\npath = \"d\"\n");
        Recipe::from_text(&text, "r.toml").unwrap().to_toml().unwrap()
    };
    assert_eq!(device("[\"cpu\"]"), device("\"cpu\""));
    assert!(device("[\"cpu\"]").contains("device = \"cpu\"\n"));
    let two = device("[\"cuda:1\", \"cuda:0\"]");
    assert!(
        two.contains("device = [\n    \"cuda:1\",\n    \"cuda:0\",\n]")
            || two.contains("[\"cuda:1\", \"cuda:0\"]"),
        "{two}"
    );
}

/// `plan` divides the time, not the memory, and tells who waits.
#[test]
fn plans_tell_what_several_gpus_do() {
    let planned = |device: &str, steps: &str| {
        let recipe = recipe(&tiny(), demo_data(), steps);
        let recipe = recipe.replacen("[model]", &format!("[model]\ndevice = {device}"), 1);
        let output = Workplace::new(&recipe).with(&["plan", "recipes/r.toml"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout) + &text(&output.stderr)
    };
    let two = planned("[\"cuda:0\", \"cuda:1\"]", "grad_accum = 3");
    assert!(two.contains("on 2 GPUs") && two.contains("memory is the first GPU's"), "{two}");
    assert!(two.contains("3 samples a step are no multiple of 2 GPUs"), "{two}");
    let idle = planned("[\"cuda:0\", \"cuda:1\"]", "grad_accum = 1");
    assert!(idle.contains("a step of 1 leaves 1 of 2 GPUs idle: raise train.batch_size"), "{idle}");
    let even = planned("[\"cuda:0\", \"cuda:1\"]", "grad_accum = 2");
    assert!(!even.contains("idle") && !even.contains("multiple"), "{even}");
    let one = planned("[\"cuda:0\"]", "grad_accum = 1");
    assert!(one.contains("on a GPU") && !one.contains("idle"), "{one}");
}
