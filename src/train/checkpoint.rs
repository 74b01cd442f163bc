//! `checkpoints/step-N/`: adapter (or weights), moments and place in the data; enough to go on.
//!
//! A checkpoint is written beside its place and renamed: what is there is whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::optimiser::AdamW;
use super::validation::Track;
use crate::error::{Error, Result};
use crate::files;
use crate::hash;
use crate::model::host::{host, resident};
use crate::model::linear::cast;
use crate::model::parameters::{self, Named};
use crate::model::qwen_vl::QwenVl;
use crate::model::tensor_files::{Outline, TensorFiles, f32_bytes, write_file};

const PREFIX: &str = "step-";

/// Where a run stands, beside the model's weights.
#[derive(Clone, Debug, Default)]
pub struct TrainerState {
    /// Steps taken, and moments.
    pub optimiser: AdamW,
    /// How the validations have gone.
    pub track: Track,
}

/// What `state.json` holds of it.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    /// Optimiser steps taken; with the recipe's seed this is the place in the data too.
    step: usize,
    /// Those of each parameter that has moments.
    steps: BTreeMap<String, usize>,
    track: Track,
    /// Of each file of tensors beside it.
    sha256: BTreeMap<String, String>,
}

/// The newest checkpoint in `checkpoints`: its step and folder.
///
/// # Errors
/// Where the folder cannot be read.
pub fn newest(checkpoints: &Path) -> Result<Option<(usize, PathBuf)>> {
    Ok(steps(checkpoints)?.into_iter().max())
}

/// Step and folder of every whole checkpoint.
fn steps(checkpoints: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let entries = match std::fs::read_dir(checkpoints) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::run(format!("{}: {e}", checkpoints.display()))),
    };
    let steps = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let step = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
        Some((step, path))
    });
    Ok(steps.collect())
}

/// Where the checkpoint of `step` stands.
pub fn path(checkpoints: &Path, step: usize) -> PathBuf {
    checkpoints.join(format!("{PREFIX}{step}"))
}

/// Writes `checkpoints/step-N`; removes the older ones but for the newest `keep_last` and the best.
///
/// # Errors
/// Where the disk refuses; the last checkpoint is then still there.
pub fn save(
    checkpoints: &Path,
    model: &QwenVl,
    state: &TrainerState,
    keep_last: usize,
) -> Result<()> {
    files::write_dir(&path(checkpoints, state.optimiser.step), |dir| write(dir, model, state))?;
    let mut kept = steps(checkpoints)?;
    kept.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    kept.truncate(keep_last);
    kept.extend(state.track.best.iter().map(|(step, _)| (*step, path(checkpoints, *step))));
    remove_all_but(checkpoints, &kept.into_iter().map(|(_, path)| path).collect::<Vec<_>>())
}

/// Writes a checkpoint into the folder `dir`.
fn write(dir: &Path, model: &QwenVl, state: &TrainerState) -> Result<()> {
    let optimiser = &state.optimiser;
    let mut trained = parameters::trained_values(model);
    trained.extend(optimiser.masters.clone());
    write_tensors(&dir.join(TRAINED), &trained)?;
    for (i, file) in MOMENTS.iter().enumerate() {
        let moment = optimiser.moments.iter().map(|(name, m)| (name.clone(), m[i].clone()));
        write_tensors(&dir.join(file), &moment.collect())?;
    }
    let (steps, track) = (optimiser.steps.clone(), state.track.clone());
    let sha256 = hashes(dir, &TENSORS)?;
    let stored = Stored { step: optimiser.step, steps, track, sha256 };
    let stored = serde_json::to_string(&stored).map_err(|e| Error::run(e.to_string()))?;
    files::write(&dir.join(STATE), stored)
}

const STATE: &str = "state.json";
const TRAINED: &str = "trained.safetensors";
const MOMENTS: [&str; 2] = ["exp_avg.safetensors", "exp_avg_sq.safetensors"];
const TENSORS: [&str; 3] = [TRAINED, MOMENTS[0], MOMENTS[1]];

/// The SHA-256 of each of `files`.
fn hashes(dir: &Path, files: &[&str]) -> Result<BTreeMap<String, String>> {
    files.iter().map(|file| Ok(((*file).to_owned(), hash::file(&dir.join(file))?))).collect()
}

fn remove_all_but(checkpoints: &Path, keep: &[PathBuf]) -> Result<()> {
    let entries = std::fs::read_dir(checkpoints).map_err(|e| files::failed(checkpoints, &e))?;
    for path in
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| !keep.contains(path))
    {
        files::remove_dir(&path)?;
    }
    Ok(())
}

/// Puts a checkpoint into a model (in training form) that has the same trained parameters.
///
/// # Errors
/// Where the checkpoint is damaged, put together from several, or was made with another recipe.
pub fn load(dir: &Path, model: QwenVl, weight_decay: f64) -> Result<(QwenVl, TrainerState)> {
    let Stored { step, steps, track, .. } = stored(dir, &TENSORS)?;
    let device = model.device();
    let [first, second] = MOMENTS.map(|file| read(&dir.join(file), &device));
    let (mut first, mut second) = (first?, second?);
    let names = parameters::list(&model).into_iter().filter(|p| p.trained).map(|p| p.name);
    let moments = names.filter_map(|name| {
        match (first.remove(&name), second.remove(&name), steps.get(&name)) {
            (Some(a), Some(b), Some(_)) => Some(Ok((name, [a, b]))),
            // What has had no gradient has none: a vision tower before the first video.
            (None, None, None) => None,
            _ => Some(Err(damaged(dir, &format!("lacks a moment or the steps of `{name}`")))),
        }
    });
    let moments = moments.collect::<Result<_>>()?;
    let (model, masters) = put_weights(dir, model)?;
    let optimiser = AdamW { weight_decay, step, steps, moments, masters };
    Ok((model, TrainerState { optimiser, track }))
}

/// Puts the weights of a checkpoint into a model (in training form) that has the same trained
/// parameters; returns the f32 values of those that the model holds in another type.
///
/// # Errors
/// As [`load`].
pub fn load_weights(dir: &Path, model: QwenVl) -> Result<(QwenVl, Named)> {
    let loaded = stored(dir, &[TRAINED]).and_then(|_| put_weights(dir, model));
    loaded.map_err(|e| e.help("remove the folder `checkpoints`: the training starts anew"))
}

/// The state of the checkpoint in `dir`, which is of that step and has those of `files` that it
/// was saved with.
fn stored(dir: &Path, files: &[&str]) -> Result<Stored> {
    let advised = |e: Error| e.help(ADVICE);
    let stored: Stored = files::read_json(&dir.join(STATE)).map_err(advised)?;
    if dir.file_name() != path(Path::new(""), stored.step).file_name() {
        return Err(damaged(dir, &format!("{STATE} is of step {}", stored.step)));
    }
    let there = hashes(dir, files).map_err(advised)?;
    match there.iter().find(|(file, sha256)| stored.sha256.get(*file) != Some(*sha256)) {
        None => Ok(stored),
        Some((file, _)) => Err(damaged(dir, &format!("{file} is not the one that was saved"))),
    }
}

fn put_weights(dir: &Path, model: QwenVl) -> Result<(QwenVl, Named)> {
    let trained = read(&dir.join(TRAINED), &model.device())?;
    let expected = parameters::list(&model);
    let expected = expected.iter().filter(|p| p.trained);
    if !expected.clone().all(|p| trained.get(&p.name).is_some_and(|t| t.dims() == [p.count()]))
        || expected.count() != trained.len()
    {
        return Err(damaged(dir, "does not fit the recipe's trained parameters"));
    }
    let mut masters = Named::new();
    let model = parameters::replace(model, |name, value| {
        let Some(master) = trained.get(name) else { return value };
        let dtype = value.dtype();
        if dtype != DType::F32 {
            masters.insert(name.to_owned(), master.clone());
        }
        cast(master.clone(), dtype)
    });
    // What they took the place of is not needed again.
    model.device().memory_cleanup();
    Ok((model, masters))
}

const ADVICE: &str = "remove this checkpoint: the training goes on from the one before, or anew";

fn damaged(dir: &Path, what: &str) -> Error {
    Error::input(format!("{}: {what}", dir.display())).help(ADVICE)
}

/// Writes flat f32 tensors, one at a time.
fn write_tensors(path: &Path, tensors: &Named) -> Result<()> {
    let outline = |(name, tensor): (&String, &Tensor<1>)| Outline::f32(name, &tensor.dims());
    let outlines: Vec<Outline> = tensors.iter().map(outline).collect();
    write_file(path, &outlines, |outline| Ok(f32_bytes(&host(tensors[&outline.name].clone())?)))
}

fn read(path: &Path, device: &Device) -> Result<Named> {
    let files = TensorFiles::open([path.to_owned()])?;
    let tensors = files.names().map(|name| {
        let (values, shape) = files.f32(name)?;
        let data = TensorData::new(values, shape);
        Ok((name.to_owned(), resident(data, device, DType::F32)))
    });
    tensors.collect()
}
