//! One run from recipe to report: before → train → after.
//!
//! All input is read and checked before the run's folder is made. What a run has already written
//! is not done again: started once more, it goes on from its last checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Tensor;

use crate::data::chat::Chat;
use crate::data::entry::{self, Entry};
use crate::data::split::{self, Split};
use crate::device::{self, Chosen};
use crate::error::{Error, Result};
use crate::eval::metrics::metrics;
use crate::eval::predict::{self, Evaluator, Prediction, media_tokens};
use crate::features::{Reader, Videos};
use crate::model::config::Config;
use crate::model::peft::{self, AdapterConfig};
use crate::model::qwen_vl::QwenVl;
use crate::model::rope::Positions;
use crate::model::weights::{self, TensorFiles};
use crate::recipe::{Control, Provenance, Recipe};
use crate::report::markdown;
use crate::report::terminal::{self, Terminal};
use crate::train::checkpoint;
use crate::train::gradients::Sample;
use crate::train::log::Log;
use crate::train::loss::label_tokens;
use crate::train::optimiser::AdamW;
use crate::train::trainer::{Media, Setup, counts};
use crate::{files, hash};

/// Folder of a run: `runs/` and the recipe's path without `recipes/` and `.toml`.
pub fn folder(runs: &Path, recipe: &Path) -> PathBuf {
    let stem = recipe.with_extension("");
    let parts: Vec<_> = stem.components().map(|c| c.as_os_str().to_owned()).collect();
    let start = parts.iter().rposition(|part| part == "recipes").map(|at| at + 1);
    let relative: PathBuf = match start {
        Some(start) if start < parts.len() => parts[start..].iter().collect(),
        _ => stem.file_name().map_or_else(|| "run".into(), PathBuf::from),
    };
    runs.join(relative)
}

/// Everything that is read before a run starts.
struct Prepared {
    recipe: Recipe,
    chat: Chat,
    eos_token_ids: Vec<u32>,
    model: QwenVl,
    adapter: AdapterConfig,
    split: BTreeMap<String, Split>,
    test: Vec<Entry>,
    videos: Videos,
    samples: Vec<Sample>,
    sample_videos: Vec<Vec<PathBuf>>,
}

/// Runs the recipe at `path`; its folder goes under `runs`. Returns the folder.
///
/// # Errors
/// Wrong input, before anything is written; or what broke on the way.
pub fn run(path: &Path, runs: &Path, terminal: &Terminal) -> Result<PathBuf> {
    let mut recipe = Recipe::from_file(path)?;
    adopt_adapter(&mut recipe)?;
    let dir = folder(runs, path);
    terminal.line(&format!("{} → {}", path.display(), dir.display()));
    if is_finished(&dir, &recipe)? {
        terminal.line("done before; its results:");
        terminal::results(&dir, terminal)?;
        return Ok(dir);
    }
    let prepared = prepare(recipe, terminal)?;
    check_same_inputs(&dir, &prepared.recipe)?;
    write_inputs(&dir, &prepared)?;
    let before =
        evaluate(&prepared, &prepared.model.valid(), &dir.join("before"), "before", terminal)?;
    let trained = train(&prepared, &dir, terminal)?;
    peft::save(&trained, &prepared.adapter, &dir.join("adapter"))?;
    let after = evaluate(&prepared, &trained.valid(), &dir.join("after"), "after", terminal)?;
    terminal::change(&before, &after, prepared.recipe.seed, terminal);
    log_accuracies(&prepared, &dir, [&before, &after])?;
    markdown::write(&dir, &prepared.recipe, &before, &after)?;
    terminal.line(&format!(
        "adapter {}   report {}",
        dir.join("adapter").display(),
        dir.join("report.md").display()
    ));
    Ok(dir)
}

/// Whether `dir` holds the finished run of just this recipe.
fn is_finished(dir: &Path, recipe: &Recipe) -> Result<bool> {
    let path = dir.join("recipe.toml");
    if !path.exists() {
        return Ok(false);
    }
    let mut earlier = Recipe::from_file(&path)?;
    earlier.provenance = None;
    if earlier.to_toml()? != recipe.to_toml()? {
        return Err(Error::input(format!("{}: holds a run of another recipe", dir.display()))
            .help("move that folder away, or give another root with --runs"));
    }
    Ok(dir.join("report.md").exists())
}

/// A run that goes on must have the model and data that it began with.
fn check_same_inputs(dir: &Path, recipe: &Recipe) -> Result<()> {
    let path = dir.join("recipe.toml");
    if !path.exists() || Recipe::from_file(&path)?.provenance == recipe.provenance {
        return Ok(());
    }
    Err(Error::input(format!(
        "{}: was begun with another model, data, device or version of this program",
        dir.display()
    ))
    .help("move that folder away to start anew"))
}

fn prepare(mut recipe: Recipe, terminal: &Terminal) -> Result<Prepared> {
    let chosen = device::choose(&recipe.model)?;
    let checkpoint = PathBuf::from(&recipe.model.path);
    if !checkpoint.is_dir() {
        return Err(Error::input(format!("{}: no such folder", checkpoint.display()))
            .help("model.path is a checkpoint folder in hub layout, relative to where you start"));
    }
    let config = Config::from_dir(&checkpoint)?;
    let chat = Chat::load(&checkpoint)?;
    let reader = Reader::new(&recipe.video, &checkpoint)?;
    let data = PathBuf::from(&recipe.data.path);
    let (entries, notes) = entry::read(&data, &recipe.data.subsets())?;
    let Divided { split, train, test } = divide(&recipe, &entries)?;
    entry::check_videos(&data, train.iter().chain(&test))?;
    let (model, adapter) = load_model(&recipe, &config, &checkpoint, &chosen, terminal)?;
    terminal::data(&recipe, &entries, &train, &test, terminal);
    notes.iter().for_each(|note| terminal.line(&format!("note   {note}")));
    let unique: BTreeSet<PathBuf> =
        train.iter().chain(&test).flat_map(|e| e.videos.clone()).collect();
    let unique: Vec<PathBuf> = unique.into_iter().collect();
    let bar = terminal.bar("videos", unique.len());
    let videos = Videos::read(&model, &reader, &data, &unique, |done| bar.set(done))?;
    bar.finish();
    let (samples, sample_videos) = training_samples(&recipe, &config, &chat, &videos, &train)?;
    check_prompts(&recipe, &config, &chat, &videos, &test)?;
    recipe.provenance = Some(Provenance {
        version: env!("CARGO_PKG_VERSION").into(),
        device: chosen.name,
        model_sha256: hash::files(&checkpoint, &[".safetensors", ".json", ".txt", ".jinja"])?,
        data_sha256: hash::files(&questions_dir(&data), &[".json", ".jsonl"])?,
    });
    let eos_token_ids = eos_token_ids(&checkpoint, &chat)?;
    Ok(Prepared {
        recipe,
        chat,
        eos_token_ids,
        model,
        adapter,
        split,
        test,
        videos,
        samples,
        sample_videos,
    })
}

fn questions_dir(data: &Path) -> PathBuf {
    let qa = data.join("QA");
    if qa.is_dir() { qa } else { data.to_owned() }
}

/// A split, and the entries to train on and to test.
struct Divided {
    split: BTreeMap<String, Split>,
    train: Vec<Entry>,
    test: Vec<Entry>,
}

fn divide(recipe: &Recipe, entries: &[Entry]) -> Result<Divided> {
    let items: Vec<_> = entries.iter().map(Entry::item).collect();
    let shares = &recipe.data.split;
    let split = split::split(&items, recipe.seed, shares.test, shares.val, shares.by)?;
    let (mut train, mut test) = (BTreeSet::new(), BTreeSet::new());
    for (subset, parts) in &split {
        if recipe.data.train.contains(subset) {
            train.extend(&parts.train);
        }
        if recipe.data.test_subsets().contains(subset) {
            test.extend(&parts.test);
        }
    }
    let of =
        |ids: &BTreeSet<&String>| entries.iter().filter(|e| ids.contains(&e.id)).cloned().collect();
    let (train, test) = (of(&train), of(&test));
    Ok(Divided { split, train, test })
}

/// An adapter to start from decides rank and scale, whatever the recipe says.
fn adopt_adapter(recipe: &mut Recipe) -> Result<()> {
    let Some(lora) = &mut recipe.lora else { return Ok(()) };
    let Some(dir) = &lora.from else { return Ok(()) };
    let adapter = AdapterConfig::from_dir(dir)?;
    (lora.r, lora.alpha) = (adapter.r, Some(adapter.lora_alpha));
    Ok(())
}

/// Loads the checkpoint and attaches the adapter.
fn load_model(
    recipe: &Recipe,
    config: &Config,
    checkpoint: &Path,
    chosen: &Chosen,
    terminal: &Terminal,
) -> Result<(QwenVl, AdapterConfig)> {
    let Some(lora) = &recipe.lora else {
        return Err(Error::input(
            "the recipe has no [lora]: full fine-tuning is not available yet",
        )
        .help("add [lora]; its defaults are r = 8, alpha = 16"));
    };
    let files = TensorFiles::from_dir(checkpoint)?;
    let mut model = weights::load(config, &files, chosen.dtype, &chosen.device)?;
    let adapter = if let Some(dir) = &lora.from {
        peft::load(&mut model, dir, lora.dropout)?
    } else {
        peft::attach(&mut model, lora, recipe.seed)?;
        AdapterConfig::new(lora, &recipe.model.path)
    };
    let model = model.train();
    terminal::model(checkpoint, counts(&model), &chosen.name, terminal);
    Ok((model, adapter))
}

/// Samples to train on, with the videos of each.
fn training_samples(
    recipe: &Recipe,
    config: &Config,
    chat: &Chat,
    videos: &Videos,
    entries: &[Entry],
) -> Result<(Vec<Sample>, Vec<Vec<PathBuf>>)> {
    let mut samples = Vec::new();
    for entry in entries {
        for format in entry.formats(&recipe.data.formats) {
            let grids = videos.grids(&entry.videos)?;
            let tokens = media_tokens(&config.vision, &grids);
            let encoded = chat.encode_sft(&entry.training(format), &tokens)?;
            check_length(config, &entry.id, encoded.input_ids.len())?;
            if label_tokens(&encoded.labels) == 0 {
                return Err(Error::input(format!(
                    "`{}`: has nothing to learn: its answer is empty",
                    entry.id
                )));
            }
            let positions = Positions::new(config, &encoded.input_ids, &grids)?;
            let (input_ids, labels) = (encoded.input_ids, encoded.labels);
            samples.push((
                Sample { id: entry.id.clone(), input_ids, labels, positions },
                entry.videos.clone(),
            ));
        }
    }
    match samples.is_empty() {
        true => {
            Err(Error::input("there is nothing to train on")
                .help("check data.train and data.split"))
        }
        false => Ok(samples.into_iter().unzip()),
    }
}

/// Every test prompt must fit before the run starts.
fn check_prompts(
    recipe: &Recipe,
    config: &Config,
    chat: &Chat,
    videos: &Videos,
    entries: &[Entry],
) -> Result<()> {
    for entry in entries {
        for format in entry.formats(&recipe.eval.formats) {
            let tokens = media_tokens(&config.vision, &videos.grids(&entry.videos)?);
            let prompt =
                chat.encode_prompt(&entry.prompt(format, recipe.eval.prompt, true), &tokens)?;
            check_length(config, &entry.id, prompt.len() + recipe.eval.max_new_tokens())?;
        }
    }
    Ok(())
}

fn check_length(config: &Config, id: &str, tokens: usize) -> Result<()> {
    let most = config.text.max_position_embeddings;
    if tokens <= most {
        return Ok(());
    }
    Err(Error::input(format!("`{id}`: needs {tokens} tokens, the model takes {most}"))
        .help("lower video.max_frames or video.max_pixels; nothing is ever cut off"))
}

/// Tokens that end a response: `generation_config.json`'s, else the tokenizer's.
fn eos_token_ids(checkpoint: &Path, chat: &Chat) -> Result<Vec<u32>> {
    let path = checkpoint.join("generation_config.json");
    let json: Option<serde_json::Value> =
        std::fs::read_to_string(path).ok().and_then(|text| serde_json::from_str(&text).ok());
    let listed = json.as_ref().and_then(|json| json.get("eos_token_id"));
    let single = listed.map_or(&[][..], std::slice::from_ref);
    let ids = listed.and_then(|ids| ids.as_array()).map_or(single, Vec::as_slice);
    let listed: Vec<u32> = ids.iter().filter_map(|id| id.as_u64().map(|id| id as u32)).collect();
    if listed.is_empty() {
        return Ok(vec![
            chat.tokenizer.token_id("<|im_end|>")?,
            chat.tokenizer.token_id("<|endoftext|>")?,
        ]);
    }
    Ok(listed)
}

fn write_inputs(dir: &Path, prepared: &Prepared) -> Result<()> {
    files::create_dir(dir)?;
    let json =
        serde_json::to_string_pretty(&prepared.split).map_err(|e| Error::run(e.to_string()))?;
    files::write(&dir.join("split.json"), json + "\n")?;
    files::write(&dir.join("recipe.toml"), prepared.recipe.to_toml()?)
}

/// Asks all test questions, and again under each control; writes predictions and metrics. What is
/// already there is read instead.
fn evaluate(
    prepared: &Prepared,
    model: &QwenVl,
    dir: &Path,
    name: &str,
    terminal: &Terminal,
) -> Result<Vec<Prediction>> {
    let done = dir.join("predictions.jsonl");
    if done.exists() {
        let predictions = predict::read(&done)?;
        terminal::accuracy(name, &predictions, prepared.recipe.seed, terminal);
        return Ok(predictions);
    }
    files::create_dir(dir)?;
    let recipe = &prepared.recipe.eval;
    let entries: Vec<&Entry> = prepared.test.iter().collect();
    let questions: usize = entries.iter().map(|e| e.formats(&recipe.formats).len()).sum();
    let evaluator = Evaluator {
        model,
        chat: &prepared.chat,
        videos: &prepared.videos,
        recipe,
        eos_token_ids: prepared.eos_token_ids.clone(),
    };
    let ask = |label: &str, video: bool| {
        let bar = terminal.bar(label, questions);
        let predictions = evaluator.run(&entries, video, |done| bar.set(done));
        bar.finish();
        predictions
    };
    let predictions = ask(name, true)?;
    let mut controls = BTreeMap::new();
    for control in &recipe.controls {
        let Control::NoVideo = control;
        let blind = ask(&format!("{name}, no video"), false)?;
        predict::write(&dir.join("predictions_no_video.jsonl"), &blind)?;
        controls.insert("no_video".to_owned(), blind);
    }
    let metrics = metrics(&predictions, &controls, prepared.recipe.seed);
    let json = serde_json::to_string_pretty(&metrics).map_err(|e| Error::run(e.to_string()))?;
    files::write(&dir.join("metrics.json"), json + "\n")?;
    predict::write(&done, &predictions)?;
    terminal::accuracy(name, &predictions, prepared.recipe.seed, terminal);
    Ok(predictions)
}

/// The training samples' vision features.
struct SampleMedia<'a>(&'a Prepared);

impl Media for SampleMedia<'_> {
    fn features(&self, model: &QwenVl, i: usize) -> Result<Vec<Tensor<2>>> {
        self.0.videos.features(model, &self.0.sample_videos[i])
    }
}

fn train(prepared: &Prepared, dir: &Path, terminal: &Terminal) -> Result<QwenVl> {
    let recipe = &prepared.recipe;
    let checkpoints = dir.join("checkpoints");
    let weight_decay = recipe.train.weight_decay;
    let (model, optimiser) = match checkpoint::newest(&checkpoints)? {
        Some((step, at)) => {
            terminal.line(&format!("note   goes on from {} (step {step})", at.display()));
            checkpoint::load(&at, prepared.model.clone(), weight_decay)?
        }
        None => (prepared.model.clone(), AdamW::new(weight_decay)),
    };
    let setup = Setup {
        train: &recipe.train,
        seed: recipe.seed,
        dropout: recipe.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0),
        samples: &prepared.samples,
        media: &SampleMedia(prepared),
        checkpoints,
    };
    let mut log = Log::open(dir, optimiser.step)?;
    let course = setup.course();
    let progress = terminal.steps(&course, optimiser.step);
    let trained = setup.run(model, optimiser, &mut log, |record| progress.step(record));
    progress.finish();
    trained
}

fn log_accuracies(prepared: &Prepared, dir: &Path, stages: [&[Prediction]; 2]) -> Result<()> {
    let steps = checkpoint::newest(&dir.join("checkpoints"))?.map_or(0, |(step, _)| step);
    let mut log = Log::open(dir, steps)?;
    for (predictions, step) in stages.into_iter().zip([0, steps]) {
        let metrics = metrics(predictions, &BTreeMap::new(), prepared.recipe.seed);
        for (format, of) in metrics.formats {
            let tag = format!("accuracy/{}", terminal::format_name(format));
            log.accuracy(&tag, of.overall.accuracy, step);
        }
    }
    Ok(())
}
