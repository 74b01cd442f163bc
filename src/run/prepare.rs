//! Everything that is read and checked before a run starts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;

use super::check::counts;
use super::encoder::{Encoder, Examples, Grids, outlines};
use super::questions::Questions;
use crate::data::cache::Cache;
use crate::data::chat::Chat;
use crate::data::entry::{self, Entry};
use crate::data::reader::{RULES, Reader};
use crate::data::split::Split;
use crate::data::stats::Stats;
use crate::device::{self, Chosen};
use crate::error::{Error, Result};
use crate::eval::judge;
use crate::eval::predict::{Ask, Evaluator, Prediction};
use crate::eval::rounds::Round;
use crate::eval::view::View;
use crate::features::Videos;
use crate::hash;
use crate::lanes::Lanes;
use crate::model::config::Config;
use crate::model::parameters::count_by_part;
use crate::model::peft::{self, AdapterConfig};
use crate::model::qwen_vl::QwenVl;
use crate::model::tensor_files::TensorFiles;
use crate::model::weights;
use crate::places::{self, Place};
use crate::recipe::{Provenance, Recipe, is_of_training};
use crate::report::terminal::{self, Terminal};

/// Everything that is read before a run starts, but the model.
pub struct Prepared {
    pub recipe: Recipe,
    pub chat: Chat,
    pub eos_token_ids: Vec<u32>,
    /// Folder of the checkpoint.
    pub checkpoint: PathBuf,
    /// None in full fine-tuning.
    pub adapter: Option<AdapterConfig>,
    pub split: BTreeMap<String, Split>,
    pub stats: Stats,
    /// What is asked before and after.
    pub rounds: Vec<Round>,
    pub videos: Videos,
    pub training: Examples,
    /// By epoch, which of the training samples it is made of.
    pub epochs: Vec<Vec<usize>>,
    /// The questions that validate while the run trains, and their answers as samples.
    pub val: Vec<Entry>,
    pub held_back: Examples,
    /// What trains and asks at once.
    pub lanes: Lanes,
}

impl Prepared {
    /// Answers the questions of `batches`, groups of indices of `asks`, with `model` in training form;
    /// `seen` is told each batch's number and predictions, in their order.
    ///
    /// # Errors
    /// As [`Evaluator::answer`], or that of `seen`.
    pub fn answer(
        &self,
        model: &QwenVl,
        asks: &[Ask],
        batches: &[Vec<Vec<usize>>],
        view: &View,
        seen: impl FnMut(usize, Vec<Prediction>) -> Result<()> + Send,
    ) -> Result<()> {
        let answer = |evaluator: &Evaluator, batch: &Vec<_>| evaluator.answer(asks, batch, view);
        self.lanes.deal(model, batches, |model| self.evaluator(model), answer, seen)
    }

    fn evaluator(&self, model: &QwenVl) -> Evaluator<'_> {
        let model = model.valid();
        Evaluator {
            fixed: model.for_inference(),
            model,
            chat: &self.chat,
            videos: &self.videos,
            recipe: &self.recipe.eval,
            eos_token_ids: self.eos_token_ids.clone(),
        }
    }
}

/// What the preparation is for.
#[derive(Clone, Copy)]
pub enum Purpose<'a> {
    /// A whole run.
    Run,
    /// An evaluation alone, with this adapter or none.
    Evaluation(Option<&'a Path>),
}

impl<'a> Purpose<'a> {
    /// Whether the result depends on the recipe's `key`; the adapter that is asked has a hash.
    pub fn depends_on(self, key: &str) -> bool {
        matches!(self, Self::Run) || !is_of_training(key)
    }

    /// Checks from shapes alone what it has of adapters and learning rates.
    fn check(self, recipe: &Recipe, config: &Config) -> Result<()> {
        match self {
            Self::Run => counts(recipe, config).map(drop),
            Self::Evaluation(Some(dir)) => check_adapter(dir, config),
            Self::Evaluation(None) => Ok(()),
        }
    }

    /// The adapter that is read, where there is one.
    fn adapter(self, recipe: &'a Recipe) -> Option<&'a Path> {
        match self {
            Self::Run => recipe.lora.as_ref()?.from.as_deref(),
            Self::Evaluation(adapter) => adapter,
        }
    }
}

pub fn prepare(
    mut recipe: Recipe,
    purpose: Purpose,
    terminal: &Terminal,
) -> Result<(QwenVl, Prepared)> {
    let chosen = device::choose(&recipe.model)?;
    judge::check(&recipe.eval.judge)?;
    if let Some(note) = &chosen.note {
        terminal.note(note);
    }
    let Place { dir: checkpoint, path, .. } = places::checkpoint(&recipe.model.path, terminal)?;
    recipe.model.path = path;
    let (config, chat, reader) = read_checkpoint(&checkpoint, &recipe)?;
    purpose.check(&recipe, &config)?;
    let questions = Questions::read(&recipe, matches!(purpose, Purpose::Run), terminal)?;
    recipe.data.path.clone_from(&questions.path);
    let (outlined, _) = outlines(&reader, &questions.dir, &questions.shown, terminal)?;
    let encode = |grids: &Grids| {
        Encoder { recipe: &recipe, config: &config, chat: &chat, grids, terminal }.all(&questions)
    };
    let mut examples = encode(&outlined)?;
    let (model, adapter) = load(&recipe, purpose, &config, &checkpoint, &chosen, terminal)?;
    let parts = &questions.parts;
    terminal::data(&recipe, &questions.entries, &parts.split, parts.all(), terminal);
    questions.notes.iter().for_each(|note| terminal.note(note));
    terminal::mirrored(&recipe, questions.learned(), terminal);
    let lanes = Lanes::new(&chosen.devices)?;
    let videos = read_videos(&model, &lanes, &reader, &questions, &recipe, terminal)?;
    // Where a header is wrong, what was read counts.
    let media = questions.shown.iter().map(|shown| shown.medium.clone());
    let read: Grids = media.zip(videos.grids(&questions.shown)?).collect();
    if read != outlined {
        examples = encode(&read)?;
    }
    terminal::videos(&videos, questions.medium(), questions.uses(&recipe), terminal);
    let provenance =
        provenance(&recipe, purpose, chosen.name, &checkpoint, &questions.dir, &videos)?;
    recipe.provenance = Some(provenance);
    let [training, held_back] = examples;
    let Questions { entries, parts, rounds, samples, .. } = questions;
    let prepared = Prepared {
        recipe,
        eos_token_ids: eos_token_ids(&checkpoint, &chat)?,
        chat,
        checkpoint,
        adapter,
        split: parts.split,
        stats: Stats::new(&entries),
        rounds,
        videos,
        training,
        epochs: samples.epochs,
        val: parts.val,
        held_back,
        lanes,
    };
    Ok((model, prepared))
}

/// Reads all that `questions` show.
fn read_videos(
    model: &QwenVl,
    lanes: &Lanes,
    reader: &Reader,
    questions: &Questions,
    recipe: &Recipe,
    terminal: &Terminal,
) -> Result<Videos> {
    let Questions { dir, shown, .. } = questions;
    let bar = terminal.bar(&format!("{}s", questions.medium()), shown.len());
    let cache = Cache::new(&recipe.data.cache, recipe.data.cache_bytes());
    let videos = Videos::read(model, lanes, reader, dir, shown, cache, |done| bar.set(done));
    bar.finish();
    videos
}

/// What the run is made from.
fn provenance(
    recipe: &Recipe,
    purpose: Purpose,
    device: String,
    checkpoint: &Path,
    data: &Path,
    videos: &Videos,
) -> Result<Provenance> {
    let of_adapter = |dir| hash::files(dir, &[".safetensors", ".json"]);
    Ok(Provenance {
        version: env!("CARGO_PKG_VERSION").into(),
        rules: RULES,
        device,
        model_sha256: hash::files(checkpoint, hash::CHECKPOINT)?,
        data_sha256: entry::sha256(data, &recipe.data.subsets())?,
        videos_sha256: videos.sha256(),
        adapter_sha256: purpose.adapter(recipe).map(of_adapter).transpose()?,
    })
}

/// What a checkpoint holds beside its weights, of which all must be of one model.
pub fn read_checkpoint(checkpoint: &Path, recipe: &Recipe) -> Result<(Config, Chat, Reader)> {
    let config = Config::from_dir(checkpoint)?;
    let chat = Chat::load(checkpoint)?;
    for (key, id, token) in [
        ("image_token_id", config.image_token_id, "<|image_pad|>"),
        ("video_token_id", config.video_token_id, "<|video_pad|>"),
    ] {
        let own = chat.tokenizer.token_id(token)?;
        if own != id {
            let path = checkpoint.join("config.json");
            let what = format!("`{key}` is {id}, and the tokenizer's `{token}` {own}");
            return Err(Error::input(format!("{}: {what}", path.display()))
                .help("config.json and the tokenizer come from different models"));
        }
    }
    let reader = Reader::new(&recipe.video, &recipe.image, checkpoint, &config.vision)?;
    Ok((config, chat, reader))
}

/// Checks the questions of a recipe whose data are on this machine, and what they show, and that they
/// fit the model where its `checkpoint` is here too. Returns the questions.
pub fn check_data(
    recipe: &Recipe,
    checkpoint: Option<(Config, Chat, Reader)>,
    terminal: &Terminal,
) -> Result<Questions> {
    let questions = Questions::read(recipe, true, terminal)?;
    let Some((config, chat, reader)) = checkpoint else { return Ok(questions) };
    let (grids, _) = outlines(&reader, &questions.dir, &questions.shown, terminal)?;
    let encoder = Encoder { recipe, config: &config, chat: &chat, grids: &grids, terminal };
    encoder.all(&questions)?;
    Ok(questions)
}

/// An adapter to start from decides rank, scale, kind and layers, whatever the recipe says; returns
/// what the user should know of that.
pub fn adopt_adapter(recipe: &mut Recipe) -> Result<Option<String>> {
    let Some(lora) = &mut recipe.lora else { return Ok(None) };
    let Some(dir) = &lora.from else { return Ok(None) };
    let adapter = AdapterConfig::from_dir(dir).map_err(|e| e.of_key("lora.from"))?;
    (lora.r, lora.alpha) = (adapter.r, Some(adapter.lora_alpha));
    (lora.use_rslora, lora.use_dora) = (adapter.use_rslora, adapter.use_dora);
    lora.scope = None;
    if let Ok(layers) = serde_json::from_value(adapter.target_modules) {
        lora.target_modules = layers;
    }
    Ok(Some(format!(
        "r {}, alpha {}, use_rslora {}, use_dora {} and the layers are those of {}",
        lora.r,
        adapter.lora_alpha,
        lora.use_rslora,
        lora.use_dora,
        dir.display()
    )))
}

/// Loads the checkpoint, in training form: for a run as `recipe` trains it, for an evaluation with
/// its adapter, nothing of which is trained.
fn load(
    recipe: &Recipe,
    purpose: Purpose,
    config: &Config,
    checkpoint: &Path,
    chosen: &Chosen,
    terminal: &Terminal,
) -> Result<(QwenVl, Option<AdapterConfig>)> {
    let files = TensorFiles::from_dir(checkpoint)?;
    let quantize = recipe.model.quantize;
    let mut model = weights::load(config, &files, chosen.dtype, quantize, &chosen.devices[0])?;
    let (model, adapter) = match purpose {
        Purpose::Run => adapt(model, recipe)?,
        Purpose::Evaluation(None) => (model, None),
        Purpose::Evaluation(Some(dir)) => {
            let adapter = peft::load(&mut model, dir, 0.0)?;
            (model, Some(adapter))
        }
    };
    let model = model.train();
    let (name, counts) = (places::name(&recipe.model.path), count_by_part(&model));
    terminal::model(&name, &counts, &recipe.model.held(&chosen.name), terminal);
    Ok((model, adapter))
}

/// The model with what `recipe` trains: an adapter, or its own weights.
fn adapt(mut model: QwenVl, recipe: &Recipe) -> Result<(QwenVl, Option<AdapterConfig>)> {
    let Some(lora) = &recipe.lora else {
        return Ok((model.train_all_but(&recipe.train.frozen()), None));
    };
    let base = places::name(&recipe.model.path);
    let adapter = if let Some(dir) = &lora.from {
        let loaded = peft::load(&mut model, dir, lora.dropout)?;
        let base_model_name_or_path = Some(base);
        AdapterConfig { base_model_name_or_path, lora_dropout: lora.dropout, ..loaded }
    } else {
        peft::attach(&mut model, lora, recipe.seed)?;
        AdapterConfig::new(lora, &base)
    };
    Ok((model, Some(adapter)))
}

fn check_adapter(dir: &Path, config: &Config) -> Result<()> {
    if dir.join("config.json").is_file() && !dir.join("adapter_config.json").is_file() {
        return Err(Error::input(format!("{}: is a checkpoint, no adapter", dir.display()))
            .help("give it as model.path of the recipe"));
    }
    peft::check_fits(dir, config)
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
