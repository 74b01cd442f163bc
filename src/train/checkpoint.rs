//! `checkpoints/step-N/`: adapter (or weights), moments and place in the data; enough to go on.
//!
//! A checkpoint is written to a temporary folder and renamed: what is there is whole.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::optimiser::AdamW;
use crate::error::{Error, Result};
use crate::files;
use crate::model::host::{HostTensors, host, write_tensors};
use crate::model::parameters::{self, Named};
use crate::model::qwen_vl::QwenVl;
use crate::model::weights::TensorFiles;

const PREFIX: &str = "step-";

#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// Optimiser steps taken; with the recipe's seed this is the place in the data too.
    step: usize,
}

/// The newest checkpoint in `checkpoints`: its step and folder.
///
/// # Errors
/// Where the folder cannot be read.
pub fn newest(checkpoints: &Path) -> Result<Option<(usize, PathBuf)>> {
    let entries = match std::fs::read_dir(checkpoints) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::run(format!("{}: {e}", checkpoints.display()))),
    };
    let steps = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let step = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
        Some((step, path))
    });
    Ok(steps.max())
}

/// Writes `checkpoints/step-N` and removes the older ones.
///
/// # Errors
/// Where the disk refuses; the last checkpoint is then still there.
pub fn save(checkpoints: &Path, model: &QwenVl, optimiser: &AdamW) -> Result<()> {
    let name = format!("{PREFIX}{}", optimiser.step);
    let temporary = checkpoints.join(format!("{name}.partial"));
    let whole = checkpoints.join(name);
    files::create_dir(&temporary)?;
    let flat = |named: Named| -> Result<HostTensors> {
        named
            .into_iter()
            .map(|(name, tensor)| {
                let values = host(tensor)?;
                let n = values.len();
                Ok((name, (values, vec![n])))
            })
            .collect()
    };
    write_tensors(
        &temporary.join("trained.safetensors"),
        flat(parameters::trained_values(model, ""))?,
    )?;
    for (i, file) in MOMENTS.iter().enumerate() {
        let moment = optimiser.moments.iter().map(|(name, m)| (name.clone(), m[i].clone()));
        write_tensors(&temporary.join(file), flat(moment.collect())?)?;
    }
    let state = serde_json::to_string(&State { step: optimiser.step });
    files::write(&temporary.join("state.json"), state.map_err(|e| Error::run(e.to_string()))?)?;
    files::replace_dir(&temporary, &whole)?;
    remove_all_but(checkpoints, &whole)
}

const MOMENTS: [&str; 2] = ["exp_avg.safetensors", "exp_avg_sq.safetensors"];

fn remove_all_but(checkpoints: &Path, keep: &Path) -> Result<()> {
    let entries = std::fs::read_dir(checkpoints).map_err(|e| files::failed(checkpoints, &e))?;
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path != keep) {
        std::fs::remove_dir_all(&path).map_err(|e| files::failed(&path, &e))?;
    }
    Ok(())
}

/// Puts a checkpoint into a model (in training form) that has the same trained parameters.
///
/// # Errors
/// Where the checkpoint is damaged or was made with another recipe.
pub fn load(dir: &Path, model: QwenVl, weight_decay: f64) -> Result<(QwenVl, AdamW)> {
    let damaged = |what: String| {
        Error::input(format!("{}: {what}", dir.display()))
            .help("remove this checkpoint to start the training anew")
    };
    let path = dir.join("state.json");
    let text = std::fs::read_to_string(&path).map_err(|e| damaged(e.to_string()))?;
    let state: State = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
    let device = model.device();
    let trained = read(&dir.join("trained.safetensors"), &device)?;
    let [first, second] = MOMENTS.map(|file| read(&dir.join(file), &device));
    let (mut first, mut second) = (first?, second?);
    let expected = parameters::list(&model, "");
    let expected = expected.iter().filter(|p| p.trained);
    if !expected.clone().all(|p| trained.get(&p.name).is_some_and(|t| t.dims() == [p.count()]))
        || expected.count() != trained.len()
    {
        return Err(damaged("does not fit the recipe's trained parameters".into()));
    }
    let moments = trained.keys().map(|name| match (first.remove(name), second.remove(name)) {
        (Some(a), Some(b)) => Ok((name.clone(), [a, b])),
        _ => Err(damaged(format!("lacks the moments of `{name}`"))),
    });
    let moments = moments.collect::<Result<_>>()?;
    let model = parameters::replace(model, "", |name, _| trained.get(name).cloned());
    Ok((model, AdamW { weight_decay, step: state.step, moments }))
}

fn read(path: &Path, device: &Device) -> Result<Named> {
    let files = TensorFiles::open([path.to_owned()])?;
    let tensors = files.names().map(|name| {
        let (values, shape) = files.f32(name)?;
        let data = TensorData::new(values, shape);
        Ok((name.to_owned(), Tensor::from_data(data, (device, DType::F32))))
    });
    tensors.collect()
}
