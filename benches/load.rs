//! Peak memory of loading a sharded checkpoint: `cargo bench --bench load`.
//!
//! Writes a checkpoint of about 1 GB (f32, four shards) with Qwen2.5-VL's architecture to a
//! temporary folder, loads it in a process of its own, and prints that process's peak against the
//! bytes of the weights. 1.0 would be the weights alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use burn::tensor::{DType, Device};
use serde_json::json;
use vlm4d_train::model::config::Config;
use vlm4d_train::model::tensor_files::{TensorFiles, write_tensors};
use vlm4d_train::model::weights;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    match std::env::args().nth(1).filter(|arg| !arg.starts_with("--")) {
        Some(dir) => load(Path::new(&dir)),
        None => measure(),
    }
}

fn measure() -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let bytes = write_checkpoint(dir.path())?;
    let child = Command::new(std::env::current_exe()?).arg(dir.path()).output()?;
    let peak: usize = String::from_utf8(child.stdout)?.trim().parse()?;
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!(
        "weights {:.0} MiB, peak of loading {:.0} MiB, ratio {:.3}",
        mib(bytes),
        mib(peak),
        peak as f64 / bytes as f64
    );
    Ok(())
}

/// Writes config and shards; returns the bytes of all weights.
fn write_checkpoint(dir: &Path) -> Result<usize, Failure> {
    let config = json!({
        "model_type": "qwen2_5_vl", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": 32_000, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {"depth": 4, "hidden_size": 512, "intermediate_size": 1024, "num_heads": 8},
    });
    std::fs::write(dir.join("config.json"), config.to_string())?;
    let shapes = weights::shapes(&Config::from_dir(dir)?)?;
    let names: Vec<&String> = shapes.keys().collect();
    let (mut map, mut bytes) = (BTreeMap::new(), 0);
    for (i, names) in names.chunks(names.len().div_ceil(4)).enumerate() {
        let file = format!("model-{:05}-of-00004.safetensors", i + 1);
        let tensors = names.iter().map(|name| {
            let n: usize = shapes[*name].iter().product();
            bytes += 4 * n;
            map.insert((*name).clone(), file.clone());
            ((*name).clone(), (vec![0.01; n], shapes[*name].clone()))
        });
        write_tensors(&dir.join(&file), &tensors.collect())?;
    }
    let index = json!({ "metadata": { "total_size": bytes }, "weight_map": map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string())?;
    Ok(bytes)
}

/// Loads the checkpoint and prints this process's peak of resident memory, in bytes.
fn load(dir: &Path) -> Result<(), Failure> {
    let config = Config::from_dir(dir)?;
    let files = TensorFiles::from_dir(dir)?;
    let model = weights::load(&config, &files, DType::F32, None, &Device::flex())?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    let kib: usize = peak.split_whitespace().next().ok_or("no number")?.parse()?;
    println!("{}", kib * 1024);
    drop(model);
    Ok(())
}
