//! Speed and memory of training and evaluation: `cargo bench --bench train`.
//!
//! Makes a small checkpoint of Qwen2-VL's architecture and samples of about 710 tokens (a video of
//! 600 and a question), then trains an adapter (r = 8 on all linear layers of the language model, one
//! sample a step) with the vision features kept or made anew for each sample, and with each layer
//! recomputed in the backward pass or its activations kept. Each case runs in a process of its
//! own, all cases in turn for several rounds. `compare_hf.py` beside this file runs the same
//! checkpoint and samples with transformers and PEFT.
//!
//! `write DIR` only makes the checkpoint and `batches.json`; `measure` runs one case on them and
//! prints one JSON object. A sample's pixels are made from its `pixel_seed`: number `i`, row by
//! row, is `((u >> 40) · 2⁻²⁴ · 2 − 1) · 1.7` with `u` splitmix64's output `i`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use clap::{Parser, Subcommand, ValueEnum};
use rand::RngExt as Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vlm4d_train::eval::generate::{Options, Prompt, generate};
use vlm4d_train::model::config::Config;
use vlm4d_train::model::host::write_tensors;
use vlm4d_train::model::peft;
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::model::rope::{MediaGrid, Positions};
use vlm4d_train::model::weights::{self, TensorFiles};
use vlm4d_train::recipe;
use vlm4d_train::train::gradients::Sample;
use vlm4d_train::train::optimiser::{AdamW, clip};
use vlm4d_train::train::trainer::{Media, Setup};

type Failure = Box<dyn std::error::Error>;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<What>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
    /// Rounds of all cases.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(Subcommand)]
enum What {
    /// Makes a checkpoint and samples.
    Write {
        dir: PathBuf,
        /// Temporal patches of a video, of 150 tokens each.
        #[arg(long, default_value_t = 4)]
        frames: usize,
        /// Number of samples, each with a video of its own.
        #[arg(long, default_value_t = 12)]
        samples: usize,
    },
    /// Runs one case.
    Measure(Case),
}

/// A checkpoint folder, its samples, and what to do with them.
#[derive(clap::Args, Clone)]
struct Case {
    model: PathBuf,
    batches: PathBuf,
    #[arg(long, value_enum, default_value = "train")]
    task: Task,
    /// An adapter to start from, in PEFT's format.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Make the vision features anew for each sample.
    #[arg(long)]
    fresh_features: bool,
    /// Recompute each layer in the backward pass.
    #[arg(long)]
    recompute: bool,
    #[arg(long, default_value_t = 10)]
    steps: usize,
    #[arg(long, default_value_t = 2)]
    warmup: usize,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Task {
    Train,
    /// Sixteen tokens, greedily.
    Freeform,
    /// The first token.
    Letter,
}

#[derive(Serialize, Deserialize)]
struct Batches {
    samples: Vec<Entry>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    pixel_seed: u64,
    video_grid_thw: [usize; 3],
    second_per_grid_ts: f64,
    prompt_len: usize,
    input_ids: Vec<u32>,
    labels: Vec<i64>,
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(What::Write { dir, frames, samples }) => write(&dir, frames, samples),
        Some(What::Measure(case)) => {
            println!("{}", measure(&case)?);
            Ok(())
        }
        None => table(arguments.rounds),
    }
}

/// The cases of the table: title and arguments.
const CASES: [(&str, &[&str]); 6] = [
    ("train, features kept, activations kept", &[]),
    ("train, features kept, recomputed by layer", &["--recompute"]),
    ("train, features anew, activations kept", &["--fresh-features"]),
    ("train, features anew, recomputed by layer", &["--fresh-features", "--recompute"]),
    ("answer freely (16 tokens), features kept", &["--task", "freeform"]),
    ("answer a letter, features kept", &["--task", "letter"]),
];

fn table(rounds: usize) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    write(dir.path(), 4, 12)?;
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

/// Runs one case.
fn measure(case: &Case) -> Result<Value, Failure> {
    let config = Config::from_dir(&case.model)?;
    let files = TensorFiles::from_dir(&case.model)?;
    let mut model = weights::load(&config, &files, DType::F32, &Device::flex())?;
    match &case.adapter {
        Some(dir) => drop(peft::load(&mut model, dir, 0.0)?),
        None => drop(peft::attach(&mut model, &recipe::Lora::default(), 0)?),
    }
    let batches: Batches = serde_json::from_str(&std::fs::read_to_string(&case.batches)?)?;
    let entries: Vec<Entry> =
        batches.samples.into_iter().cycle().take(case.warmup + case.steps).collect();
    let loaded = memory("VmRSS:")?;
    let videos = Videos::new(&model, &entries, case.fresh_features);
    let (seconds, losses) = match case.task {
        Task::Train => train(&model, &entries, &videos, case)?,
        task => (answer(&model, &entries, &videos, task)?, vec![]),
    };
    let seconds = &seconds[case.warmup..];
    let total: f64 = seconds.iter().sum();
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let tokens: usize = entries[case.warmup..].iter().map(|e| e.input_ids.len()).sum();
    Ok(json!({
        "samples_per_s": seconds.len() as f64 / total,
        "tokens_per_s": tokens as f64 / total,
        "median_step_s": sorted[sorted.len() / 2],
        "losses": losses,
        "loaded_bytes": loaded,
        "peak_bytes": memory("VmHWM:")?,
    }))
}

/// Seconds of each step, and the losses.
fn train(
    model: &QwenVl,
    entries: &[Entry],
    videos: &Videos,
    case: &Case,
) -> Result<(Vec<f64>, Vec<f64>), Failure> {
    let mut model = model.clone().train();
    let samples: Result<Vec<Sample>, Failure> = entries
        .iter()
        .map(|entry| {
            Ok(Sample {
                id: entry.pixel_seed.to_string(),
                input_ids: entry.input_ids.clone(),
                labels: entry.labels.clone(),
                positions: Positions::new(&model.config, &entry.input_ids, &[entry.grid()])?,
            })
        })
        .collect();
    let samples = samples?;
    let settings = recipe::Train {
        grad_accum: 1,
        shuffle: false,
        recompute: case.recompute,
        ..recipe::Train::default()
    };
    let setup = Setup {
        train: &settings,
        seed: 0,
        lora: None,
        samples: &samples,
        epochs: vec![(0..samples.len()).collect()],
        media: videos,
        checkpoints: PathBuf::new(),
        validator: None,
    };
    let mut optimiser = AdamW::new(0.0);
    let (mut seconds, mut losses) = (vec![], vec![]);
    for step in 0..entries.len() {
        let start = Instant::now();
        let (loss, mut gradients) = setup.gradients(&model, step)?;
        clip(&mut gradients, 1.0)?;
        model = optimiser.update(model, |_| 1e-4, &gradients);
        seconds.push(start.elapsed().as_secs_f64());
        losses.push(loss);
    }
    Ok((seconds, losses))
}

/// Seconds of each answer.
fn answer(
    model: &QwenVl,
    entries: &[Entry],
    videos: &Videos,
    task: Task,
) -> Result<Vec<f64>, Failure> {
    let max_new_tokens = if task == Task::Letter { 1 } else { 16 };
    let options = Options::default();
    let mut seconds = vec![];
    for (i, entry) in entries.iter().enumerate() {
        let start = Instant::now();
        let input_ids = entry.input_ids[..entry.prompt_len].to_vec();
        let prompt = Prompt { input_ids, max_new_tokens };
        let features = videos.features(model, i)?;
        generate(model, &[prompt], &[entry.grid()], &features, &options, |_, _| ())?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// The videos of all samples: their pixels, or the features that were made of them before.
struct Videos {
    frozen: QwenVl,
    pixels: BTreeMap<u64, Vec<f32>>,
    kept: BTreeMap<u64, Tensor<2>>,
    of_sample: Vec<(u64, [usize; 3])>,
}

impl Videos {
    fn new(model: &QwenVl, entries: &[Entry], fresh: bool) -> Self {
        let frozen = model.clone();
        let (mut pixels, mut kept) = (BTreeMap::new(), BTreeMap::new());
        for entry in entries {
            let values = || pixels_of(entry, model.config.vision.patch_dim());
            if fresh {
                pixels.entry(entry.pixel_seed).or_insert_with(values);
            } else {
                kept.entry(entry.pixel_seed)
                    .or_insert_with(|| frozen.features(&values(), entry.video_grid_thw));
            }
        }
        let of_sample = entries.iter().map(|e| (e.pixel_seed, e.video_grid_thw)).collect();
        Self { frozen, pixels, kept, of_sample }
    }
}

impl Media for Videos {
    fn features(&self, _: &QwenVl, i: usize) -> vlm4d_train::error::Result<Vec<Tensor<2>>> {
        let (seed, grid_thw) = self.of_sample[i];
        Ok(vec![match self.kept.get(&seed) {
            Some(features) => features.clone(),
            None => self.frozen.features(&self.pixels[&seed], grid_thw),
        }])
    }
}

impl Entry {
    fn grid(&self) -> MediaGrid {
        MediaGrid { grid_thw: self.video_grid_thw, second_per_grid: Some(self.second_per_grid_ts) }
    }
}

fn pixels_of(entry: &Entry, patch_dim: usize) -> Vec<f32> {
    let n = entry.video_grid_thw.iter().product::<usize>() * patch_dim;
    let mut state = entry.pixel_seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..n).map(|_| ((next() >> 40) as f32 * 2.0_f32.powi(-24) * 2.0 - 1.0) * 1.7).collect()
}

/// The line of `/proc/self/status` that starts with `key`, in bytes.
fn memory(key: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).ok_or("no such line")?;
    let kib: u64 = line.split_whitespace().next().ok_or("no number")?.parse()?;
    Ok(kib * 1024)
}

/// Writes a checkpoint of 6 layers of width 256 behind a vision tower of 4 layers of width 192,
/// and samples for it.
fn write(dir: &Path, frames: usize, samples: usize) -> Result<(), Failure> {
    std::fs::create_dir_all(dir)?;
    let config = json!({
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl",
        "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "tie_word_embeddings": false, "hidden_act": "silu", "torch_dtype": "float32",
        "bos_token_id": 640, "eos_token_id": 642, "vision_start_token_id": 649,
        "vision_end_token_id": 650, "vision_token_id": 651, "image_token_id": 652,
        "video_token_id": 653, "use_sliding_window": false,
        "vision_config": {
            "depth": 4, "embed_dim": 192, "mlp_ratio": 4, "num_heads": 4, "in_chans": 3,
            "hidden_size": 256, "patch_size": 14, "spatial_merge_size": 2,
            "spatial_patch_size": 14, "temporal_patch_size": 2
        }
    });
    std::fs::write(dir.join("config.json"), config.to_string())?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let shapes = weights::shapes(&Config::from_dir(dir)?)?;
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let n = shape.iter().product();
        // Uniform with the spread of PyTorch's linear layers.
        let bound = match () {
            () if name.ends_with("bias") => 0.0,
            () if name.contains("embed_tokens") => 0.5,
            () => (3.0 / shape[1..].iter().product::<usize>() as f32).sqrt(),
        };
        let values = match shape.len() == 1 && name.ends_with("weight") {
            true => vec![1.0; n],
            false => (0..n).map(|_| bound * rng.random_range(-1.0..1.0)).collect(),
        };
        (name, (values, shape))
    });
    write_tensors(&dir.join("model.safetensors"), &tensors.collect())?;
    let entries = (0..samples).map(|i| {
        let mut text = |n: usize| (0..n).map(|_| rng.random_range(100..600)).collect::<Vec<u32>>();
        let video = [vec![649], vec![653; frames * 150], vec![650]].concat();
        let prompt = [text(15), video, text(85)].concat();
        let answer = text(8);
        Entry {
            pixel_seed: 1000 + i as u64,
            video_grid_thw: [frames, 20, 30],
            second_per_grid_ts: 1.0,
            prompt_len: prompt.len(),
            labels: [vec![-100; prompt.len()], answer.iter().map(|id| i64::from(*id)).collect()]
                .concat(),
            input_ids: [prompt, answer].concat(),
        }
    });
    let batches = Batches { samples: entries.collect() };
    std::fs::write(dir.join("batches.json"), serde_json::to_string(&batches)?)?;
    Ok(())
}
