//! Validation while training: which checkpoint is the result, early stopping, what is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use vlm4d_train::data::vlm4d::Format;
use vlm4d_train::error::{Error, Result};
use vlm4d_train::model::parameters::{self, Named};
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::recipe::{Best, Loss, Train};
use vlm4d_train::train::checkpoint::{self, TrainerState};
use vlm4d_train::train::log::{self, Log};
use vlm4d_train::train::optimiser::AdamW;
use vlm4d_train::train::trainer::{Setup, Trained};
use vlm4d_train::train::validation::{Scores, Track, Validator, held_out_loss};

use crate::support::model::{Batch, ONE_DEVICE, setup, values, with_adapter};

const NAME: &str = "tiny-qwen2-vl";

/// Hands out accuracies from a list, one after the other.
struct Listed<'a> {
    accuracies: &'a [f64],
    asked: AtomicUsize,
    /// Answers with Ctrl-C at this call.
    interrupted: Option<usize>,
}

impl<'a> Listed<'a> {
    fn from(accuracies: &'a [f64], asked: usize) -> Self {
        Self { accuracies, asked: AtomicUsize::new(asked), interrupted: None }
    }
}

impl Validator for Listed<'_> {
    fn validate(&self, _: &QwenVl) -> Result<Scores> {
        let i = self.asked.fetch_add(1, Ordering::Relaxed);
        if self.interrupted == Some(i) {
            return Err(Error::interrupted("stopped"));
        }
        Ok(Scores { loss: 1.0, accuracy: [(Format::Mc, self.accuracies[i])].into() })
    }
}

fn batch(model: &QwenVl) -> Batch {
    let file = format!("{NAME}/forward_video.safetensors");
    Batch::read(model, &file, &[], &["vid_exact".into()])
}

fn model() -> QwenVl {
    with_adapter(NAME, &format!("{NAME}/lora_init.safetensors"))
}

/// A run of at most 6 steps with a validation after every second one.
fn train() -> Train {
    Train {
        max_steps: Some(6),
        grad_accum: 1,
        lr: 1e-3,
        eval_steps: Some(2),
        save_steps: Some(1),
        ..Train::default()
    }
}

fn run(dir: &Path, train: &Train, validator: &Listed, from: Option<PathBuf>) -> Result<Trained> {
    let model = model();
    let batch = batch(&model);
    let mut setup: Setup = setup(train, &batch.samples, &batch);
    setup.checkpoints = dir.join("checkpoints");
    setup.validator = Some(validator);
    let (model, start) = match from {
        None => (model, TrainerState::default()),
        Some(at) => checkpoint::load(&at, model, 0.0).unwrap(),
    };
    let mut log = Log::open(dir, start.optimiser.step, start.track.last).unwrap();
    setup.run(model, start, &mut log, |_| ())
}

fn adapter(model: &QwenVl) -> Vec<f32> {
    parameters::trained_values(model).into_values().flat_map(values).collect()
}

/// Names in the folder of checkpoints.
fn kept(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir.join("checkpoints")).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_best_checkpoint_is_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let train = train();
    let trained = run(dir.path(), &train, &Listed::from(&[0.2, 0.6, 0.4], 0), None).unwrap();
    assert_eq!((trained.step, trained.best.unwrap().0), (6, 4));
    assert_eq!(kept(dir.path()), ["step-4".to_owned(), "step-6".to_owned()].into());
    // What is returned is what a run of four steps leaves.
    let short = tempfile::tempdir().unwrap();
    let four =
        Train { schedule: vlm4d_train::recipe::Schedule::Constant, warmup_ratio: 0.0, ..train };
    let six = run(short.path(), &four, &Listed::from(&[0.2, 0.6, 0.4], 0), None).unwrap();
    let short = tempfile::tempdir().unwrap();
    let four = Train { max_steps: Some(4), ..four };
    let four = run(short.path(), &four, &Listed::from(&[0.2, 0.6], 0), None).unwrap();
    assert_eq!(adapter(&six.model), adapter(&four.model));
    let lines = log::read_validations(dir.path()).unwrap();
    let flags: Vec<_> = lines.iter().map(|v| (v.step, v.best)).collect();
    assert_eq!(flags, [(2, true), (4, true), (6, false)]);
}

#[test]
fn patience_ends_a_run_early() {
    let dir = tempfile::tempdir().unwrap();
    let train = Train { max_steps: Some(20), patience: Some(2), keep_last: 2, ..train() };
    let accuracies = [0.2, 0.6, 0.6, 0.5, 0.9];
    let trained = run(dir.path(), &train, &Listed::from(&accuracies, 0), None).unwrap();
    // The third is as good as the second, not better.
    assert_eq!((trained.step, trained.best.as_ref().unwrap().0), (8, 4));
    assert_eq!(kept(dir.path()), ["step-4", "step-7", "step-8"].map(str::to_owned).into());
    // Started again, it is over.
    let newest = checkpoint::newest(&dir.path().join("checkpoints")).unwrap().unwrap().1;
    let again = run(dir.path(), &train, &Listed::from(&[], 0), Some(newest)).unwrap();
    assert_eq!((again.step, again.best), (trained.step, trained.best));
    assert_eq!(adapter(&again.model), adapter(&trained.model));
}

#[test]
fn a_resumed_run_validates_as_the_whole_one() {
    let accuracies = [0.2, 0.6, 0.4];
    let [whole, cut] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let train = train();
    let expected = run(whole.path(), &train, &Listed::from(&accuracies, 0), None).unwrap();
    // Ctrl-C in the second validation: its step is saved, the validation is made up for.
    let interrupted = Listed { interrupted: Some(1), ..Listed::from(&accuracies, 0) };
    let error = run(cut.path(), &train, &interrupted, None).unwrap_err();
    assert_eq!(error.exit_code(), 130);
    let newest = checkpoint::newest(&cut.path().join("checkpoints")).unwrap().unwrap();
    assert_eq!(newest.0, 4);
    let resumed = run(cut.path(), &train, &Listed::from(&accuracies, 1), Some(newest.1)).unwrap();
    assert_eq!(resumed.best, expected.best);
    assert_eq!(adapter(&resumed.model), adapter(&expected.model));
    let read = |dir: &Path| std::fs::read_to_string(dir.join("validation.jsonl")).unwrap();
    assert_eq!(read(cut.path()), read(whole.path()));
    let losses = |dir: &Path| -> Vec<f64> {
        log::read(&dir.join("log.jsonl")).unwrap().iter().map(|r| r.loss).collect()
    };
    assert_eq!(losses(cut.path()), losses(whole.path()));
}

#[test]
fn how_validations_went_is_read_back_to_the_last_bit() {
    // 9/41 is one of the shares that a parser may read one bit off: no tie any more.
    for (right, n) in (1..200).flat_map(|n| (0..n).map(move |right| (right, n))) {
        let share = f64::from(right) / f64::from(n);
        let scores = Scores { loss: 1.0 / f64::from(n), accuracy: [(Format::Mc, share)].into() };
        let track = Track { last: 2, best: Some((2, scores)), waited: 0 };
        let read: Track = serde_json::from_str(&serde_json::to_string(&track).unwrap()).unwrap();
        assert_eq!(read, track);
    }
}

#[test]
fn a_checkpoint_is_whole_before_any_gradient() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint::save(dir.path(), &model(), &TrainerState::default(), 1).unwrap();
    let (read, TrainerState { optimiser, .. }) =
        checkpoint::load(&checkpoint::path(dir.path(), 0), model(), 0.0).unwrap();
    assert_eq!((optimiser.step, optimiser.moments.len()), (0, 0));
    assert_eq!(adapter(&read), adapter(&model()));
}

#[test]
fn a_checkpoint_knows_the_steps_of_each_parameter() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = model();
    let ones = parameters::trained_values(&model).into_iter();
    let mut gradients: Named = ones.map(|(name, value)| (name, value.ones_like())).collect();
    let mut optimiser = AdamW::new(0.0);
    model = optimiser.update(model, |_| 1e-3, &gradients, 1.0);
    let (once, _) = gradients.pop_first().unwrap();
    model = optimiser.update(model, |_| 1e-3, &gradients, 1.0);
    let state = TrainerState { optimiser, track: Track::default() };
    checkpoint::save(dir.path(), &model, &state, 1).unwrap();
    let at = checkpoint::path(dir.path(), 2);
    let restored = checkpoint::load(&at, self::model(), 0.0).unwrap().1.optimiser;
    assert_eq!((restored.step, restored.steps[&once]), (2, 1));
    assert_eq!(restored.steps, state.optimiser.steps);
}

#[test]
fn the_best_is_by_accuracy_or_by_loss() {
    let scores =
        |accuracy: f64, loss: f64| Scores { loss, accuracy: [(Format::Ff, accuracy)].into() };
    let mut track = Track::default();
    assert!(track.see(1, scores(0.5, 2.0), Best::Accuracy));
    assert!(!track.see(2, scores(0.4, 1.0), Best::Accuracy));
    assert!(track.see(3, scores(0.5, 1.5), Best::Accuracy), "of equal ones the smaller loss");
    assert!(!track.is_over(Some(1)));
    assert!(track.see(4, scores(0.1, 1.0), Best::Loss));
    assert!(!track.see(5, Scores { loss: f64::NAN, accuracy: BTreeMap::new() }, Best::Loss));
    assert!(track.is_over(Some(1)) && !track.is_over(None));
    // Of several formats the mean.
    let both = |mc, ff| Scores { loss: 1.0, accuracy: [(Format::Mc, mc), (Format::Ff, ff)].into() };
    let mut track = Track::default();
    track.see(1, both(0.5, 0.1), Best::Accuracy);
    assert!(track.see(2, both(0.5, 0.2), Best::Accuracy));
    assert!(track.see(3, both(0.4, 0.4), Best::Accuracy));
}

#[test]
fn the_held_out_loss_is_that_of_training() {
    let model = model();
    let file = format!("{NAME}/forward_batch.safetensors");
    let batch = Batch::read(&model, &file, &[], &["vid_odd".into(), "vid_down".into()]);
    for loss in [Loss::Sample, Loss::Token] {
        let train = Train { batch_size: 3, grad_accum: 1, loss, ..Train::default() };
        let (trained, _) = setup(&train, &batch.samples, &batch).gradients(&model, 0).unwrap();
        let held_out = held_out_loss(&model, &ONE_DEVICE, &batch.samples, loss, &batch).unwrap();
        assert!((held_out / trained - 1.0).abs() < 1e-6, "{loss:?} {held_out} {trained}");
    }
}

#[test]
fn without_numbers_of_steps_each_epoch_is_validated_and_saved() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let batch = batch(&model).repeat(2);
    let train = Train { eval_steps: None, save_steps: None, keep_last: 9, ..train() };
    // Equally good ones, so that none but the first is saved as the best.
    let validator = Listed::from(&[0.2; 3], 0);
    let mut setup = setup(&train, &batch.samples, &batch);
    setup.checkpoints = dir.path().join("checkpoints");
    setup.validator = Some(&validator);
    let mut log = Log::open(dir.path(), 0, 0).unwrap();
    setup.run(model, TrainerState::default(), &mut log, |_| ()).unwrap();
    assert_eq!(kept(dir.path()), ["step-2", "step-4", "step-6"].map(str::to_owned).into());
    let steps: Vec<usize> =
        log::read_validations(dir.path()).unwrap().iter().map(|v| v.step).collect();
    assert_eq!(steps, [2, 4, 6]);
}

#[test]
fn a_resumed_optimiser_decays_on() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint::save(dir.path(), &model(), &TrainerState::default(), 1).unwrap();
    let at = checkpoint::path(dir.path(), 0);
    assert_eq!(checkpoint::load(&at, model(), 0.1).unwrap().1.optimiser.weight_decay, 0.1);
}

#[test]
fn a_checkpoint_is_not_put_together_from_several() {
    let dir = tempfile::tempdir().unwrap();
    let saved = |steps: usize| {
        let (mut model, mut optimiser) = (model(), AdamW::new(0.0));
        for _ in 0..steps {
            let ones = parameters::trained_values(&model).into_iter();
            let gradients = ones.map(|(name, value)| (name, value.ones_like())).collect();
            model = optimiser.update(model, |_| 1e-3, &gradients, 1.0);
        }
        let state = TrainerState { optimiser, track: Track::default() };
        checkpoint::save(dir.path(), &model, &state, 9).unwrap();
        checkpoint::path(dir.path(), steps)
    };
    let [one, two] = [saved(1), saved(2)];
    let refused = |told: &str| {
        let error = checkpoint::load(&two, model(), 0.0).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains("help: remove this checkpoint"), "{error}");
    };
    for file in ["trained.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors"] {
        let own = std::fs::read(two.join(file)).unwrap();
        std::fs::copy(one.join(file), two.join(file)).unwrap();
        refused(&format!("{file} is not the one that was saved"));
        std::fs::write(two.join(file), own).unwrap();
    }
    assert!(checkpoint::load(&two, model(), 0.0).is_ok());
    std::fs::remove_file(two.join("exp_avg.safetensors")).unwrap();
    refused("exp_avg.safetensors: cannot be read");
    std::fs::remove_dir_all(&two).unwrap();
    std::fs::rename(&one, &two).unwrap();
    refused("state.json is of step 1");
}
