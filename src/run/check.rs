//! What can be told of a recipe before a weight is loaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::prepare::{self, Purpose, adopt_adapter, read_checkpoint};
use super::{adopt_pins, folder, is_finished, whole};
use crate::data::chat::Chat;
use crate::data::hub::Repo;
use crate::data::reader::Reader;
use crate::device;
use crate::error::{Error, Result};
use crate::eval::judge;
use crate::files::{self, absolute};
use crate::model::config::Config;
use crate::model::parameters::PartCount;
use crate::model::tensor_files::TensorFiles;
use crate::model::{peft, weights};
use crate::places;
use crate::recipe::{Part, Recipe};
use crate::report::finished::Finished;
use crate::report::terminal::Terminal;

/// Checks the recipe at `path` as far as that goes before the `earlier` runs, of which it may take
/// something, are done: what it names on this machine, whether its adapter has a place in the model,
/// and whether its folder is free. From the hub come the small files of the checkpoint. Returns the
/// run as a comparison sees it: finished, or with its test questions, where these are here.
///
/// # Errors
/// Wrong input.
pub fn check(
    path: &Path,
    runs: &Path,
    earlier: &BTreeMap<PathBuf, &PathBuf>,
    terminal: &Terminal,
) -> Result<Option<Finished>> {
    let mut recipe = Recipe::from_file(path)?;
    let dir = folder(runs, path);
    // What is damaged there too: an earlier run makes it anew.
    let is_made = |place: &Path| {
        let mut above = earlier.keys().filter(|dir| absolute(place).starts_with(absolute(dir)));
        above.any(|dir| !place.exists() || whole(dir).is_none())
    };
    let from = recipe.lora.as_ref().and_then(|lora| lora.from.clone());
    let is_known = !from.is_some_and(|from| is_made(&from));
    if is_known {
        adopt_adapter(&mut recipe)?;
        adopt_pins(&mut recipe, &dir)?;
        if is_finished(&dir, &recipe, Purpose::Run)?
            && let Some(finished) = whole(&dir)
        {
            return Ok(Some(finished));
        }
        files::check_writable(&dir)?;
    }
    device::choose(&recipe.model)?;
    judge::check(&recipe.eval.judge)?;
    let checkpoint = match is_made(Path::new(&recipe.model.path)) {
        true => None,
        false => Some(check_model(&recipe, is_known, terminal)?),
    };
    let split = recipe.data.split.file.as_ref();
    let data = &recipe.data.path;
    if Repo::parse(data).is_some()
        || is_made(Path::new(data))
        || split.is_some_and(|file| is_made(file))
    {
        return Ok(None);
    }
    let questions = prepare::check_data(&recipe, checkpoint, terminal)?;
    let asks = questions.rounds.into_iter().next().map(|round| round.asks).unwrap_or_default();
    Ok(Some(Finished::expected(dir, recipe, &questions.parts.split, &asks)))
}

/// Reads what the checkpoint holds beside its weights, and checks these; the adapter too where it
/// `is_known`.
fn check_model(
    recipe: &Recipe,
    is_known: bool,
    terminal: &Terminal,
) -> Result<(Config, Chat, Reader)> {
    let place = places::checkpoint_without_weights(&recipe.model.path, terminal)?;
    let checkpoint = read_checkpoint(&place.dir, recipe)?;
    let (config, ..) = &checkpoint;
    if is_known {
        counts(recipe, config)?;
    }
    check_weights(recipe, &place.dir, config)?;
    Ok(checkpoint)
}

/// Checks the headers of the weights in the folder `checkpoint`; those from the hub come when they are
/// loaded.
pub fn check_weights(recipe: &Recipe, checkpoint: &Path, config: &Config) -> Result<()> {
    match Repo::parse(&recipe.model.path) {
        Some(_) => Ok(()),
        None => weights::check(config, &TensorFiles::from_dir(checkpoint)?),
    }
}

/// Parameters of each part, an adapter's too, from shapes alone.
///
/// # Errors
/// Where the adapter has no place in the model, or a learning rate nothing that is trained.
pub fn counts(recipe: &Recipe, config: &Config) -> Result<BTreeMap<Part, PartCount>> {
    let mut counts = BTreeMap::<Part, PartCount>::new();
    let frozen = recipe.train.frozen();
    for (name, shape) in weights::shapes(config)? {
        let (part, n) = (Part::of(&name), shape.iter().product::<usize>());
        let count = counts.entry(part).or_default();
        count.all += n;
        let trained = recipe.lora.is_none() && !frozen.contains(&part);
        count.trained += if trained { n } else { 0 };
    }
    let adapter = recipe.lora.as_ref().map(|lora| peft::sizes(lora, config)).transpose()?;
    for (name, n) in adapter.into_iter().flatten() {
        let count = counts.entry(Part::of(&name)).or_default();
        count.all += n;
        count.trained += n;
    }
    check_rates(recipe, &counts)?;
    Ok(counts)
}

/// A part's own learning rate only has a meaning where something of the part is trained.
fn check_rates(recipe: &Recipe, counts: &BTreeMap<Part, PartCount>) -> Result<()> {
    let rates = [
        (Part::Vision, recipe.train.vision_lr, "train.vision_lr"),
        (Part::Merger, recipe.train.merger_lr, "train.merger_lr"),
    ];
    let is_idle = |part| counts.get(part).is_none_or(|count| count.trained == 0);
    match rates.iter().find(|(part, rate, _)| rate.is_some() && is_idle(part)) {
        None => Ok(()),
        Some((_, _, key)) => {
            let from = recipe.lora.as_ref().and_then(|lora| lora.from.as_ref());
            Err(Error::input(format!("`{key}` is set, and no layer of the part has an adapter"))
                .of_key(key)
                .help(match from {
                    Some(_) => "the layers are those of lora.from: leave the rate out",
                    None => "name one in lora.target_modules, or leave the rate out",
                }))
        }
    }
}
