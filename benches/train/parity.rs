//! What this program computes, as files that another can be compared with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{DType, Int, Tensor, TensorData};
use serde_json::{Value, json};
use vlm4d_train::files;
use vlm4d_train::lanes::Lanes;
use vlm4d_train::model::host::host;
use vlm4d_train::model::linear::cast;
use vlm4d_train::model::parameters::{self, Named};
use vlm4d_train::model::peft;
use vlm4d_train::model::qwen_vl::QwenVl;
use vlm4d_train::model::tensor_files::{HostTensors, write_tensors};
use vlm4d_train::model::weights::{module_name, to_hub};
use vlm4d_train::train::gradients::Sample;
use vlm4d_train::train::loss::predictions;
use vlm4d_train::train::optimiser::{AdamW, clip_factor, global_norm};
use vlm4d_train::train::trainer::Media;

use super::samples::{Batches, Entry, Videos};
use super::{Failure, Model, Way, training};

#[derive(clap::Args, Clone)]
pub struct Parity {
    #[command(flatten)]
    model: Model,
    /// Folder to make.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    way: Way,
    /// Optimiser steps.
    #[arg(long, default_value_t = 20)]
    steps: usize,
}

/// Writes into `out`: `forward.safetensors` (of the first sample: the vision tower's `features`
/// and the `logits` at its labelled positions), `gradients.safetensors` (of the first step's loss,
/// by PEFT's names), and `parity.json` (the loss and gradient norm of each of the first steps).
pub fn write(parity: &Parity) -> Result<Value, Failure> {
    let (model, chosen) = parity.model.load()?;
    let batches = Batches::read(&parity.model.batches)?;
    let n = parity.steps * parity.way.samples();
    let entries: Vec<Entry> = batches.samples.into_iter().cycle().take(n).collect();
    let videos = Videos::new(&model, &entries, parity.way.fresh_features);
    let samples: Vec<Sample> =
        entries.iter().map(|entry| entry.sample(&model)).collect::<Result<_, Failure>>()?;
    files::create_dir(&parity.out)?;
    let features = videos.features(&model, 0)?;
    let logits = logits(&model, &entries[0], &features)?;
    let tensors = [("features", features[0].clone()), ("logits", logits)].map(|(name, tensor)| {
        let shape = tensor.dims().to_vec();
        Ok((name.to_owned(), (host(cast(tensor, DType::F32))?, shape)))
    });
    let tensors: HostTensors = tensors.into_iter().collect::<Result<_, Failure>>()?;
    write_tensors(&parity.out.join("forward.safetensors"), &tensors)?;

    let mut model = model.train();
    let settings = parity.way.settings();
    let lanes = Lanes::new(&[model.device()])?;
    let setup = training(&settings, &samples, &videos, &lanes);
    let mut optimiser = AdamW::new(0.0);
    let (mut losses, mut norms) = (vec![], vec![]);
    let start = Instant::now();
    for step in 0..parity.steps {
        let (loss, gradients) = setup.gradients(&model, step)?;
        if step == 0 {
            write_gradients(&model, &gradients, &parity.out)?;
        }
        let norm = global_norm(&gradients)?;
        if !norm.is_finite() {
            return Err(format!("step {}: the gradient's norm is {norm}", step + 1).into());
        }
        model = optimiser.update(model, |_| 1e-4, &gradients, clip_factor(norm, 1.0));
        losses.push(loss);
        norms.push(norm);
    }
    let written = json!({
        "device": chosen.name, "dtype": format!("{:?}", chosen.dtype),
        "note": chosen.note, "recompute": parity.way.recompute, "losses": losses, "grad_norms": norms,
        "seconds": start.elapsed().as_secs_f64(),
    });
    std::fs::write(parity.out.join("parity.json"), written.to_string())?;
    Ok(written)
}

/// Logits at the labelled positions of `entry`: `[n, vocab]`.
fn logits(model: &QwenVl, entry: &Entry, features: &[Tensor<2>]) -> Result<Tensor<2>, Failure> {
    let (hidden, _) = model.forward(&entry.input_ids, &[entry.grid()], features, None)?;
    let (rows, _) = predictions(&entry.labels);
    let n = rows.len();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [n]), &model.device());
    Ok(model.logits(hidden.select(1, rows).squeeze_dim(0)))
}

fn write_gradients(model: &QwenVl, gradients: &Named, out: &Path) -> Result<(), Failure> {
    let shapes: BTreeMap<String, Vec<usize>> =
        parameters::list(model).into_iter().map(|p| (p.name, p.shape)).collect();
    let tensors = gradients.iter().map(|(name, gradient)| {
        let shape = &shapes[name];
        let values = to_hub(name, shape, host(gradient.clone())?);
        let name = format!("{}{}", peft::PREFIX, module_name(name));
        Ok((name, (values, shape.iter().rev().copied().collect())))
    });
    let tensors = tensors.collect::<Result<HostTensors, Failure>>()?;
    Ok(write_tensors(&out.join("gradients.safetensors"), &tensors)?)
}
