//! Everything that is read and checked before a run starts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Module;

use super::encoder::{Encoder, Examples, Grids, outlines};
use crate::data::augment::{Augment, Samples};
use crate::data::cache::Cache;
use crate::data::chat::Chat;
use crate::data::entry::{self, Entry};
use crate::data::medium;
use crate::data::reader::Reader;
use crate::data::split::{self, Split};
use crate::data::stats::Stats;
use crate::data::variant::Shown;
use crate::data::vlm4d::Format;
use crate::device::{self, Chosen};
use crate::error::{Error, Result};
use crate::eval::predict::Evaluator;
use crate::eval::rounds::{Round, rounds};
use crate::features::Videos;
use crate::hash;
use crate::model::config::Config;
use crate::model::parameters::count_by_part;
use crate::model::peft::{self, AdapterConfig};
use crate::model::qwen_vl::QwenVl;
use crate::model::tensor_files::TensorFiles;
use crate::model::weights;
use crate::places::{self, Place};
use crate::recipe::{Provenance, Recipe};
use crate::report::terminal::{self, Terminal};
use crate::train::schedule::Course;

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
}

impl Prepared {
    /// What asks `model`, which has no tape.
    pub fn evaluator<'a>(&'a self, model: &'a QwenVl) -> Evaluator<'a> {
        Evaluator {
            model,
            fixed: model.for_inference(),
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
    if let Some(note) = &chosen.note {
        terminal.note(note);
    }
    let Place { dir: checkpoint, path, .. } = places::checkpoint(&recipe.model.path, terminal)?;
    recipe.model.path = path;
    let (config, chat, reader) = read_checkpoint(&checkpoint, &recipe)?;
    let place = places::questions(&recipe.data.path, terminal)?;
    recipe.data.path.clone_from(&place.path);
    let data = place.dir.clone();
    let (entries, mut notes) = entry::read(&data, &recipe.data.subsets())?;
    let Divided { split, train, val, test, notes: of_split } = divide(&recipe, &entries)?;
    notes.extend(of_split);
    notes.extend(freeform_note(&recipe, &entries));
    notes.extend(controls_note(&recipe, &test));
    let rounds = rounds(&recipe, &test, &train)?;
    let [learned, validating] = match purpose {
        Purpose::Run => [&train[..], &val[..]],
        Purpose::Evaluation(_) => [&train[..0], &val[..0]],
    };
    let used = || {
        let asked = rounds.iter().flat_map(|round| &round.asks).map(|ask| &ask.entry);
        learned.iter().chain(validating).chain(asked)
    };
    place.media(used(), terminal)?;
    entry::check_media(&data, used())?;
    let planned = match purpose {
        Purpose::Run => plan_samples(&recipe, &train)?,
        Purpose::Evaluation(_) => Samples::default(),
    };
    let encode = |grids: &Grids| {
        let encoder = Encoder { recipe: &recipe, config: &config, chat: &chat, grids, terminal };
        encoder.all(&rounds, &planned.distinct, validating)
    };
    let shown = all_shown(&planned, &rounds, validating);
    let (outlined, _) = outlines(&reader, &data, &shown, terminal)?;
    let mut examples = encode(&outlined)?;
    let (model, adapter) = load(&recipe, purpose, &config, &checkpoint, &chosen, terminal)?;
    terminal::data(&recipe, &entries, [&train, &val, &test], terminal);
    notes.iter().for_each(|note| terminal.note(note));
    terminal::mirrored(&recipe, learned, terminal);
    let medium = medium::name(shown.iter().map(|shown| &shown.medium));
    let bar = terminal.bar(&format!("{medium}s"), shown.len());
    let cache = Cache::new(&recipe.data.cache, recipe.data.cache_bytes());
    let videos = Videos::read(&model, &reader, &data, &shown, cache, |done| bar.set(done));
    bar.finish();
    let videos = videos?;
    // Where a header is wrong, what was read counts.
    let media = shown.iter().map(|shown| shown.medium.clone());
    let read: Grids = media.zip(videos.grids(&shown)?).collect();
    if read != outlined {
        examples = encode(&read)?;
    }
    let [training, held_back] = examples;
    let epochs = planned.epochs;
    let per_epoch = epochs.first().map_or(0, Vec::len);
    terminal::videos(&videos, medium, uses(&recipe, per_epoch, &rounds), terminal);
    let provenance = provenance(&recipe, purpose, chosen.name, &checkpoint, &data, &videos)?;
    recipe.provenance = Some(provenance);
    let eos_token_ids = eos_token_ids(&checkpoint, &chat)?;
    let stats = Stats::new(&entries);
    let prepared = Prepared {
        recipe,
        chat,
        eos_token_ids,
        checkpoint,
        adapter,
        split,
        stats,
        rounds,
        videos,
        training,
        epochs,
        val,
        held_back,
    };
    Ok((model, prepared))
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

/// Every video and image that is needed, once for each way in which it is shown.
pub fn all_shown(training: &Samples, rounds: &[Round], validating: &[Entry]) -> Vec<Shown> {
    let trained_on = training.distinct.iter().flat_map(|(entry, _)| entry.shown());
    let asked = rounds.iter().flat_map(|r| r.asks.iter().flat_map(|ask| r.view.shown(&ask.entry)));
    let asked = asked.chain(validating.iter().flat_map(Entry::shown));
    trained_on.chain(asked).collect::<BTreeSet<Shown>>().into_iter().collect()
}

/// How often the run needs a video or image: for each training sample of each epoch, and for each
/// question before and after. Without the cache each of these would be a decoding and a pass of the
/// tower.
fn uses(recipe: &Recipe, per_epoch: usize, rounds: &[Round]) -> usize {
    let trained = (recipe.train.epochs * per_epoch as f64).ceil() as usize;
    let per_step = recipe.train.samples_per_step();
    let most = recipe.train.max_steps.map_or(usize::MAX, |steps| steps.saturating_mul(per_step));
    let asked: usize = rounds.iter().filter(|r| r.view.has_video()).map(|r| r.asks.len()).sum();
    trained.min(most) + 2 * asked
}

/// Checks the questions of a recipe whose data are on this machine, and what they show, and that they
/// fit the model where its `checkpoint` is here too.
pub fn check_data(
    recipe: &Recipe,
    checkpoint: Option<(Config, Chat, Reader)>,
    terminal: &Terminal,
) -> Result<()> {
    let dir = places::questions(&recipe.data.path, terminal)?.dir;
    let (entries, _) = entry::read(&dir, &recipe.data.subsets())?;
    let Divided { train, val, test, .. } = divide(recipe, &entries)?;
    let rounds = rounds(recipe, &test, &train)?;
    entry::check_media(&dir, train.iter().chain(&val).chain(&test))?;
    let planned = plan_samples(recipe, &train)?;
    let Some((config, chat, reader)) = checkpoint else { return Ok(()) };
    let (grids, _) = outlines(&reader, &dir, &all_shown(&planned, &rounds, &val), terminal)?;
    let encoder = Encoder { recipe, config: &config, chat: &chat, grids: &grids, terminal };
    encoder.all(&rounds, &planned.distinct, &val).map(drop)
}

/// A split, and the entries of its parts.
pub struct Divided {
    pub split: BTreeMap<String, Split>,
    pub train: Vec<Entry>,
    pub val: Vec<Entry>,
    pub test: Vec<Entry>,
    /// What is worth telling of the split.
    pub notes: Vec<String>,
}

pub fn divide(recipe: &Recipe, entries: &[Entry]) -> Result<Divided> {
    let shares = &recipe.data.split;
    let (split, notes) = if let Some(file) = &shares.file {
        split::read(file, entries)?
    } else {
        let seed = recipe.split_seed();
        (split::split(entries, seed, shares.test, shares.val, shares.by)?, vec![])
    };
    let (mut train, mut val, mut test) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (subset, parts) in &split {
        if recipe.data.train.contains(subset) {
            train.extend(&parts.train);
            val.extend(&parts.val);
        }
        if recipe.data.test_subsets().contains(subset) {
            test.extend(&parts.test);
        }
    }
    let of = |ids: &BTreeSet<&String>| -> Vec<Entry> {
        entries.iter().filter(|e| ids.contains(&e.id)).cloned().collect()
    };
    let (train, val, test) = (of(&train), of(&val), of(&test));
    if let (Some(file), true) = (&shares.file, val.is_empty() && recipe.train.is_validated()) {
        return Err(Error::input(format!("{}: holds nothing back to validate", file.display()))
            .help("leave train.best, patience and eval_steps out, or take a split with `val`"));
    }
    Ok(Divided { split, train, val, test, notes })
}

/// Conversations have no choices: a recipe that wants multiple choice alone gets something else.
fn freeform_note(recipe: &Recipe, entries: &[Entry]) -> Option<String> {
    let without = [&recipe.data.formats, &recipe.eval.formats];
    let without = without.iter().any(|formats| !formats.contains(&Format::Ff));
    let conversations = entries.iter().any(Entry::is_conversation);
    let note = "conversations are freeform, whatever data.formats and eval.formats say";
    (without && conversations).then(|| note.to_owned())
}

/// A control changes what the video shows.
fn controls_note(recipe: &Recipe, test: &[Entry]) -> Option<String> {
    let idle = !recipe.eval.controls.is_empty() && !test.is_empty();
    let note = "no test question has a video: eval.controls have nothing to change";
    (idle && !test.iter().any(Entry::has_video)).then(|| note.to_owned())
}

/// An adapter to start from decides rank, scale, kind and layers, whatever the recipe says; returns
/// what the user should know of that.
pub fn adopt_adapter(recipe: &mut Recipe) -> Result<Option<String>> {
    let Some(lora) = &mut recipe.lora else { return Ok(None) };
    let Some(dir) = &lora.from else { return Ok(None) };
    let adapter = AdapterConfig::from_dir(dir)?;
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
    // What is wrong with the adapter is told before the checkpoint is read.
    if let Purpose::Evaluation(Some(dir)) = purpose {
        check_adapter(dir)?;
    }
    let files = TensorFiles::from_dir(checkpoint)?;
    let mut model = weights::load(config, &files, chosen.dtype, &chosen.device)?;
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
    terminal::model(&name, &counts, &chosen.name, terminal);
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

fn check_adapter(dir: &Path) -> Result<()> {
    if dir.join("config.json").is_file() && !dir.join("adapter_config.json").is_file() {
        return Err(Error::input(format!("{}: is a checkpoint, no adapter", dir.display()))
            .help("give it as model.path of the recipe"));
    }
    AdapterConfig::from_dir(dir).map(drop)
}

/// What the run will train on, epoch by epoch.
pub fn plan_samples(recipe: &Recipe, entries: &[Entry]) -> Result<Samples> {
    let data = &recipe.data;
    let (shuffle_choices, mirror) = (data.shuffle_choices, data.mirror);
    let augment = Augment { seed: recipe.seed, shuffle_choices, mirror };
    if shuffle_choices && entries.iter().all(|entry| entry.choices.is_empty()) {
        return Err(Error::input("data.shuffle_choices: no training question has choices")
            .help("leave it out: a data set of conversations has no choices to put in order"));
    }
    let per_epoch = entries.iter().map(|entry| entry.formats(&data.formats).len()).sum();
    if per_epoch == 0 {
        return Err(
            Error::input("there is nothing to train on").help("check data.train and data.split")
        );
    }
    let course = Course::new(&recipe.train, per_epoch);
    let epochs = course.steps.div_ceil(course.steps_per_epoch);
    Ok(augment.samples(entries, &data.formats, epochs))
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
