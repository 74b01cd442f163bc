//! What it saves to ask the questions on one video together: `cargo bench --bench eval`.
//!
//! Makes a small checkpoint of Qwen2-VL's architecture and answers as many questions on one video
//! (800 tokens) as videos have in the demo set and, where `VLM4D_QA` names a folder with them, in
//! VLM4D's question files; each question in both formats. Per number of questions four ways are
//! timed in turn: *each alone* (the video is encoded and read for every prompt), *features kept*
//! (it is encoded once, read for every prompt), *together* (encoded once, read once), *batched*
//! (so are as many videos at once as a batch has room for). The totals weigh each by how many videos
//! have that many questions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::{DType, Device, Tensor};
use rand::RngExt as Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::{Value, json};
use vlm4d_train::data::demo::{self, DemoOptions};
use vlm4d_train::eval::generate::{Group, Options, Prompt, generate};
use vlm4d_train::model::config::Config;
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::model::rope::MediaGrid;
use vlm4d_train::model::tensor_files::{TensorFiles, write_tensors};
use vlm4d_train::model::weights;

type Failure = Box<dyn std::error::Error>;

/// 5 temporal patches of 16 × 10 tokens.
const GRID: [usize; 3] = [5, 32, 20];
const ROUNDS: usize = 3;
/// Tokens of a question with its task, and of an answer: a letter with its end, or a few words.
const QUESTION: usize = 60;
const ANSWERS: [usize; 2] = [2, 6];

fn main() -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let model = checkpoint(dir.path())?;
    let demo = dir.path().join("demo");
    demo::render(&demo, &DemoOptions::default(), |_, _| ())?;
    let mut sets = vec![("demo set", demo.join("QA"))];
    match std::env::var_os("VLM4D_QA") {
        Some(folder) => sets.push(("VLM4D", folder.into())),
        None => println!("VLM4D_QA names no folder with VLM4D's question files: left out"),
    }
    let counts: Vec<(&str, BTreeMap<usize, usize>)> = sets
        .into_iter()
        .map(|(name, folder)| Ok((name, questions_per_video(&folder)?)))
        .collect::<Result<_, Failure>>()?;
    let mut seconds: BTreeMap<usize, [f64; 4]> = BTreeMap::new();
    for questions in counts.iter().flat_map(|(_, counts)| counts.keys().copied()) {
        if let std::collections::btree_map::Entry::Vacant(entry) = seconds.entry(questions) {
            entry.insert(measure(&model, questions)?);
        }
    }
    println!(
        "questions  each alone  features kept   together    batched   (seconds for one video)"
    );
    for (questions, [alone, kept, together, batched]) in &seconds {
        println!("{questions:9}  {alone:10.3}  {kept:13.3}  {together:9.3}  {batched:9.3}");
    }
    for (name, counts) in counts {
        let total = |way: usize| -> f64 {
            counts.iter().map(|(n, videos)| *videos as f64 * seconds[n][way]).sum()
        };
        let (videos, questions): (usize, usize) =
            counts.iter().fold((0, 0), |sum, (n, videos)| (sum.0 + videos, sum.1 + n * videos));
        println!(
            "{name}: {questions} questions on {videos} videos: batched {:.2} times as fast as each alone, {:.2} times as with features kept, {:.2} times as together",
            total(0) / total(3),
            total(1) / total(3),
            total(2) / total(3)
        );
    }
    Ok(())
}

/// How many videos have how many questions, in all `*_mc.json` of a folder.
fn questions_per_video(folder: &Path) -> Result<BTreeMap<usize, usize>, Failure> {
    let mut videos: BTreeMap<String, usize> = BTreeMap::new();
    let files = std::fs::read_dir(folder)?.map(|file| file.map(|file| file.path()));
    for file in files.collect::<Result<Vec<PathBuf>, _>>()? {
        if file.to_string_lossy().ends_with("_mc.json") {
            let items: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file)?)?;
            for item in items {
                *videos.entry(item["video"].to_string()).or_default() += 1;
            }
        }
    }
    let mut counts = BTreeMap::new();
    for n in videos.into_values() {
        *counts.entry(n).or_default() += 1;
    }
    Ok(counts)
}

/// The median seconds of each way to answer `questions` questions on one video, in both formats.
fn measure(model: &QwenVl, questions: usize) -> Result<[f64; 4], Failure> {
    let mut rng = ChaCha8Rng::seed_from_u64(questions as u64);
    let grid = MediaGrid { grid_thw: GRID, second_per_grid: Some(1.0) };
    let vision = &model.config.vision;
    let pixels = GRID.iter().product::<usize>() * vision.patch_dim();
    let pixels: Vec<f32> = (0..pixels).map(|_| rng.random_range(-1.7..1.7)).collect();
    let pads = vec![model.config.video_token_id; grid.tokens(vision)];
    let start = [vec![7; 15], pads].concat();
    let prompts: Vec<Prompt> = (0..questions)
        .flat_map(|_| {
            let text: Vec<u32> = (0..QUESTION).map(|_| rng.random_range(100..600)).collect();
            let input_ids = [start.clone(), text].concat();
            ANSWERS.map(|max_new_tokens| Prompt { input_ids: input_ids.clone(), max_new_tokens })
        })
        .collect();
    let options = Options::default();
    let group = |prompts: &[Prompt], features: Vec<Tensor<2>>| Group {
        prompts: prompts.to_vec(),
        media: vec![grid],
        features,
    };
    let encode = || vec![model.features(&pixels, GRID)];
    let answer = |groups: &[Group]| generate(model, groups, &options, None);
    let at_once = (options.batch_size / prompts.len()).max(1);
    let mut seconds: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        for (way, seconds) in seconds.iter_mut().enumerate() {
            let started = Instant::now();
            match way {
                0 | 1 => {
                    let features = encode();
                    for (i, prompt) in prompts.iter().enumerate() {
                        let fresh = if way == 0 && i > 0 { encode() } else { features.clone() };
                        answer(&[group(std::slice::from_ref(prompt), fresh)])?;
                    }
                }
                _ => {
                    let videos = if way == 2 { 1 } else { at_once };
                    let groups = (0..videos).map(|_| group(&prompts, encode()));
                    answer(&groups.collect::<Vec<_>>())?;
                }
            }
            let videos = if way == 3 { at_once } else { 1 };
            seconds.push(started.elapsed().as_secs_f64() / videos as f64);
        }
    }
    Ok(seconds.map(|mut of| {
        of.sort_by(f64::total_cmp);
        of[ROUNDS / 2]
    }))
}

/// A small checkpoint with random weights.
fn checkpoint(dir: &Path) -> Result<QwenVl, Failure> {
    let config = json!({
        "model_type": "qwen2_vl", "hidden_size": 256, "intermediate_size": 1024,
        "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 2048, "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "image_token_id": 652, "video_token_id": 653,
        "vision_config": {"depth": 4, "embed_dim": 192, "num_heads": 4, "hidden_size": 256},
    });
    std::fs::write(dir.join("config.json"), config.to_string())?;
    let config = Config::from_dir(dir)?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let tensors = weights::shapes(&config)?.into_iter().map(|(name, shape)| {
        let n = shape.iter().product();
        let bound = (3.0 / shape[1..].iter().product::<usize>() as f32).sqrt();
        let values = match shape.len() {
            1 => vec![if name.ends_with("bias") { 0.0 } else { 1.0 }; n],
            _ => (0..n).map(|_| bound * rng.random_range(-1.0..1.0)).collect(),
        };
        (name, (values, shape))
    });
    write_tensors(&dir.join("model.safetensors"), &tensors.collect())?;
    Ok(weights::load(&config, &TensorFiles::from_dir(dir)?, DType::F32, None, &Device::flex())?)
}
