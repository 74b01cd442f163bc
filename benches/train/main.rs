//! Speed and memory of training and evaluation: `cargo bench --bench train`.
//!
//! Makes a small checkpoint of Qwen2-VL's architecture and samples of about 710 tokens (a video of
//! 600 and a question), then trains an adapter (r = 8 on all linear layers of the language model, one
//! sample a step) with the vision features kept or made anew for each sample, and with each layer
//! recomputed in the backward pass or its activations kept. Each case runs in a process of its
//! own, all cases in turn for several rounds. `compare_hf.py` beside this folder runs the same
//! checkpoint and samples with transformers and PEFT, and `gpu.sh` both on a GPU.
//!
//! `write DIR` only makes a checkpoint (of Qwen's shapes too), an adapter for it and
//! `batches.json`; `measure` runs one case on them and prints one JSON object; `parity` writes
//! what is computed: features, logits, gradients and losses. A sample's pixels are made from its
//! `pixel_seed`: number `i`, row by row, is `((u >> 40) · 2⁻²⁴ · 2 − 1) · 1.7` with `u` splitmix64's
//! output `i`.

mod checkpoint;
mod parity;
mod samples;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use burn::module::Module;
use clap::{Parser, Subcommand, ValueEnum};
use mimalloc::MiMalloc;
use serde_json::{Value, json};
use vlm4d_train::device::{self, Chosen};
use vlm4d_train::error::Error;
use vlm4d_train::eval::generate::{Group, Options, Prompt, generate};
use vlm4d_train::lanes::Lanes;
use vlm4d_train::model::config::Config;
use vlm4d_train::model::peft;
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::model::tensor_files::TensorFiles;
use vlm4d_train::model::weights;
use vlm4d_train::recipe;
use vlm4d_train::train::gradients::Sample;
use vlm4d_train::train::optimiser::{AdamW, clip_factor, global_norm};
use vlm4d_train::train::trainer::{Media, Setup};

use self::checkpoint::Shape;
use self::samples::{Batches, Entry, Profile, Videos, Wanted};

type Failure = Box<dyn std::error::Error>;

/// The program's.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<What>,
    /// What cargo adds.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    /// Rounds of all cases.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(Subcommand)]
enum What {
    /// Makes a checkpoint, an adapter and samples.
    Write {
        dir: PathBuf,
        #[arg(long, value_enum, default_value = "nano")]
        shape: Shape,
        /// Type of the weights.
        #[arg(long, value_enum, default_value = "f32")]
        dtype: Dtype,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Makes samples alone.
    Samples {
        file: PathBuf,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Runs one case.
    Measure(Case),
    /// Writes features, logits, gradients and losses.
    Parity(parity::Parity),
}

/// What to run, and where.
#[derive(clap::Args, Clone)]
struct Model {
    /// Checkpoint folder.
    #[arg(value_name = "MODEL")]
    path: PathBuf,
    /// Samples.
    batches: PathBuf,
    /// An adapter to start from, in PEFT's format.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// As a recipe's `model.device`.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// As a recipe's `model.dtype`.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// As a recipe's `model.quantize = "nf4"`.
    #[arg(long)]
    nf4: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

/// How gradients are computed.
#[derive(clap::Args, Clone)]
struct Way {
    /// Make the vision features anew for each sample.
    #[arg(long)]
    fresh_features: bool,
    /// Recompute each layer in the backward pass.
    #[arg(long)]
    recompute: bool,
    /// Samples of a micro-batch, or questions that are answered at once.
    #[arg(long, default_value_t = 1)]
    batch_size: usize,
    /// Micro-batches of an optimiser step.
    #[arg(long, default_value_t = 1)]
    accumulate: usize,
}

/// A checkpoint folder, its samples, and what to do with them.
#[derive(clap::Args, Clone)]
struct Case {
    #[command(flatten)]
    model: Model,
    #[arg(long, value_enum, default_value = "train")]
    task: Task,
    #[command(flatten)]
    way: Way,
    /// Optimiser steps, or batches of answers.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    #[arg(long, default_value_t = 2)]
    warmup: usize,
}

/// Tokens of a freeform answer and of a letter.
const ANSWERS: [usize; 2] = [16, 1];

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Task {
    Train,
    /// [`ANSWERS`], greedily.
    Freeform,
    Letter,
    /// All samples: both kinds of answer, training for `steps`, both kinds of answer again.
    Experiment,
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(What::Write { dir, shape, dtype, wanted }) => write(&dir, shape, dtype, &wanted),
        Some(What::Samples { file, wanted }) => write_samples(&file, &wanted),
        Some(What::Measure(case)) => {
            println!("{}", measure(&case)?);
            Ok(())
        }
        Some(What::Parity(parity)) => {
            println!("{}", parity::write(&parity)?);
            Ok(())
        }
        None => table(arguments.rounds),
    }
}

/// The cases of the table: title and arguments.
const CASES: [(&str, &[&str]); 8] = [
    ("train, features kept, activations kept", &[]),
    ("train, features kept, recomputed by layer", &["--recompute"]),
    ("train, recomputed, linear layers in NF4", &["--recompute", "--nf4"]),
    ("train, features anew, activations kept", &["--fresh-features"]),
    ("train, features anew, recomputed by layer", &["--fresh-features", "--recompute"]),
    ("answer freely (16 tokens), features kept", &["--task", "freeform"]),
    ("answer freely, linear layers in NF4", &["--task", "freeform", "--nf4"]),
    ("answer a letter, features kept", &["--task", "letter"]),
];

fn table(rounds: usize) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let wanted =
        Wanted { profile: Profile::Vlm4d, frames: None, samples: 12, questions: 1, vary: false };
    write(dir.path(), Shape::Nano, Dtype::F32, &wanted)?;
    let mut results: Vec<Vec<Value>> = vec![vec![]; CASES.len()];
    for _ in 0..rounds {
        for ((_, arguments), results) in CASES.iter().zip(&mut results) {
            let child = Command::new(std::env::current_exe()?)
                .arg("measure")
                .arg(dir.path())
                .arg(dir.path().join("batches.json"))
                .args(*arguments)
                .output()?;
            if !child.status.success() {
                return Err(String::from_utf8_lossy(&child.stderr).into());
            }
            results.push(serde_json::from_slice(&child.stdout)?);
        }
    }
    println!("{:<44}{:>24}{:>10}{:>10}", "", "samples/s (min, max)", "tokens/s", "peak MiB");
    for ((title, _), results) in CASES.iter().zip(&results) {
        let of = |key: &str| {
            let mut values: Vec<f64> = results.iter().filter_map(|r| r[key].as_f64()).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let speed = of("samples_per_s");
        println!(
            "{title:<44}{:>10.2} ({:>4.2}, {:>4.2}){:>10.0}{:>10.0}",
            speed[rounds / 2],
            speed[0],
            speed[rounds - 1],
            of("tokens_per_s")[rounds / 2],
            of("peak_bytes")[rounds / 2] / f64::from(1 << 20),
        );
    }
    Ok(())
}

impl Model {
    /// The model with its adapter, and where it is.
    fn load(&self) -> Result<(QwenVl, Chosen), Failure> {
        let quantize = self.nf4.then_some(recipe::Quantize::Nf4);
        let chosen = device::choose(&recipe::Model {
            path: self.path.display().to_string(),
            dtype: if self.dtype == Dtype::F32 { recipe::Dtype::F32 } else { recipe::Dtype::Bf16 },
            device: self.device.clone().into(),
            quantize,
        })?;
        let config = Config::from_dir(&self.path)?;
        let files = TensorFiles::from_dir(&self.path)?;
        let mut model = weights::load(&config, &files, chosen.dtype, quantize, &chosen.devices[0])?;
        match &self.adapter {
            Some(dir) => drop(peft::load(&mut model, dir, 0.0)?),
            None => drop(peft::attach(&mut model, &recipe::Lora::default(), 0)?),
        }
        Ok((model, chosen))
    }
}

impl Way {
    fn settings(&self) -> recipe::Train {
        recipe::Train {
            batch_size: self.batch_size,
            grad_accum: self.accumulate,
            shuffle: false,
            recompute: self.recompute,
            ..recipe::Train::default()
        }
    }

    /// Samples of an optimiser step.
    fn samples(&self) -> usize {
        self.batch_size * self.accumulate
    }
}

/// A training on `samples` in their order.
fn training<'a>(
    settings: &'a recipe::Train,
    samples: &'a [Sample],
    media: &'a dyn Media,
    lanes: &'a Lanes,
) -> Setup<'a> {
    Setup {
        train: settings,
        seed: 0,
        lora: None,
        samples,
        epochs: vec![(0..samples.len()).collect()],
        media,
        lanes,
        checkpoints: PathBuf::new(),
        validator: None,
    }
}

/// Runs one case.
fn measure(case: &Case) -> Result<Value, Failure> {
    let start = Instant::now();
    let (model, chosen) = case.model.load()?;
    chosen.devices[0].sync().map_err(|e| Error::device(&format!("{e:?}")))?;
    let load_s = start.elapsed().as_secs_f64();
    let batches = Batches::read(&case.model.batches)?;
    let loaded = memory("VmRSS:")?;
    let mut result = match case.task {
        Task::Experiment => experiment(&model, &batches.samples, case)?,
        task => repeated(&model, batches.samples, task, case)?,
    };
    result["device"] = chosen.name.as_str().into();
    result["dtype"] = format!("{:?}", chosen.dtype).into();
    result["note"] = chosen.note.into();
    result["load_s"] = load_s.into();
    result["total_s"] = start.elapsed().as_secs_f64().into();
    result["loaded_bytes"] = loaded.into();
    result["peak_bytes"] = memory("VmHWM:")?.into();
    // What the allocator holds: it gives nothing back while a run lasts.
    let held = chosen.devices[0].memory_pool_usage().map(|usage| usage.bytes_reserved);
    result["device_bytes"] = held.into();
    Ok(result)
}

/// One task over and over, after a warm-up.
fn repeated(
    model: &QwenVl,
    samples: Vec<Entry>,
    task: Task,
    case: &Case,
) -> Result<Value, Failure> {
    let of_step = if task == Task::Train { case.way.samples() } else { case.way.batch_size };
    let n = (case.warmup + case.steps) * of_step;
    let entries: Vec<Entry> = samples.into_iter().cycle().take(n).collect();
    let videos = Videos::new(model, &entries, case.way.fresh_features);
    let (all, losses) = match task {
        Task::Train => {
            let (_, seconds, losses) = train(model, &entries, &videos, case)?;
            (seconds, losses)
        }
        _ => (answer(model, &entries, &videos, case)?, vec![]),
    };
    let seconds = &all[case.warmup..];
    let total: f64 = seconds.iter().sum();
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let measured = &entries[case.warmup * of_step..];
    let tokens: usize = measured.iter().map(|e| e.input_ids.len()).sum();
    Ok(json!({
        "samples_per_s": measured.len() as f64 / total,
        "tokens_per_s": tokens as f64 / total,
        "median_step_s": sorted[sorted.len() / 2],
        "first_step_s": all[0],
        "warmup_s": all[..case.warmup].iter().sum::<f64>(),
        "losses": losses,
    }))
}

/// Both kinds of answer to all samples, training, both kinds of answer again.
fn experiment(model: &QwenVl, entries: &[Entry], case: &Case) -> Result<Value, Failure> {
    let start = Instant::now();
    let videos = Videos::new(model, entries, false);
    model.device().sync().map_err(|e| Error::device(&format!("{e:?}")))?;
    let features_s = start.elapsed().as_secs_f64();
    let before_s = ask_all(model, entries, &videos)?;
    let n = case.steps * case.way.samples();
    let trained: Vec<Entry> = entries.iter().cloned().cycle().take(n).collect();
    let (model, seconds, losses) = train(model, &trained, &videos.of_samples(&trained), case)?;
    let after_s = ask_all(&model.valid(), entries, &videos)?;
    Ok(json!({
        "features_s": features_s, "before_s": before_s, "train_s": seconds.iter().sum::<f64>(),
        "after_s": after_s, "questions": 4 * entries.len(), "losses": losses,
        "experiment_s": start.elapsed().as_secs_f64(),
    }))
}

/// Seconds for both kinds of answer to all samples, as many at once as an evaluation takes.
fn ask_all(model: &QwenVl, entries: &[Entry], videos: &Videos) -> Result<f64, Failure> {
    let (start, options) = (Instant::now(), Options::default());
    let fixed = model.for_inference();
    let n = options.batch_size / ANSWERS.len();
    for (i, batch) in entries.chunks(n).enumerate() {
        let groups = groups(model, batch, videos, i * n, &ANSWERS)?;
        generate(&fixed, &groups, &options, None)?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Prompts of `entries`, those of one video together, for answers of so many tokens each; `first` is
/// the place of the first entry among all.
fn groups(
    model: &QwenVl,
    entries: &[Entry],
    videos: &Videos,
    mut first: usize,
    answers: &[usize],
) -> Result<Vec<Group>, Failure> {
    let groups = entries.chunk_by(|a, b| a.pixel_seed == b.pixel_seed).map(|of_video| {
        let prompts = of_video.iter().flat_map(|entry| {
            let input_ids = entry.input_ids[..entry.prompt_len].to_vec();
            let prompt = |n: &usize| Prompt { input_ids: input_ids.clone(), max_new_tokens: *n };
            answers.iter().map(prompt).collect::<Vec<_>>()
        });
        let features = videos.features(model, first)?;
        first += of_video.len();
        Ok(Group { prompts: prompts.collect(), media: vec![of_video[0].grid()], features })
    });
    groups.collect()
}

/// The trained model, seconds of each step, and the losses.
fn train(
    model: &QwenVl,
    entries: &[Entry],
    videos: &Videos,
    case: &Case,
) -> Result<(QwenVl, Vec<f64>, Vec<f64>), Failure> {
    let mut model = model.clone().train();
    let samples: Result<Vec<Sample>, Failure> =
        entries.iter().map(|entry| entry.sample(&model)).collect();
    let (samples, settings) = (samples?, case.way.settings());
    let lanes = Lanes::new(&[model.device()])?;
    let setup = training(&settings, &samples, videos, &lanes);
    let mut optimiser = AdamW::new(0.0);
    let (mut seconds, mut losses) = (vec![], vec![]);
    for step in 0..entries.len() / case.way.samples() {
        let start = Instant::now();
        let (loss, gradients) = setup.gradients(&model, step)?;
        let factor = clip_factor(global_norm(&gradients)?, 1.0);
        model = optimiser.update(model, |_| 1e-4, &gradients, factor);
        model.device().sync().map_err(|e| Error::device(&format!("{e:?}")))?;
        seconds.push(start.elapsed().as_secs_f64());
        losses.push(loss);
    }
    Ok((model, seconds, losses))
}

/// Seconds of each batch of answers.
fn answer(
    model: &QwenVl,
    entries: &[Entry],
    videos: &Videos,
    case: &Case,
) -> Result<Vec<f64>, Failure> {
    let [freeform, letter] = ANSWERS;
    let tokens = if case.task == Task::Letter { letter } else { freeform };
    let n = case.way.batch_size;
    let options = Options { batch_size: n, ..Options::default() };
    let fixed = model.for_inference();
    let mut seconds = vec![];
    for (i, batch) in entries.chunks(n).enumerate() {
        let start = Instant::now();
        let groups = groups(model, batch, videos, i * n, &[tokens])?;
        generate(&fixed, &groups, &options, None)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// The line of `/proc/self/status` that starts with `key`, in bytes.
fn memory(key: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).ok_or("no such line")?;
    let kib: u64 = line.split_whitespace().next().ok_or("no number")?.parse()?;
    Ok(kib * 1024)
}

/// Writes a random checkpoint, an adapter for it in `adapter/`, and samples.
fn write(dir: &Path, shape: Shape, dtype: Dtype, wanted: &Wanted) -> Result<(), Failure> {
    let parameters = checkpoint::write(dir, shape, dtype == Dtype::Bf16)?;
    eprintln!("{}: {parameters} parameters", dir.display());
    write_samples(&dir.join("batches.json"), wanted)
}

fn write_samples(file: &Path, wanted: &Wanted) -> Result<(), Failure> {
    Ok(std::fs::write(file, serde_json::to_string(&Batches::make(wanted))?)?)
}
