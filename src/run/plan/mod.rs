//! `plan`: what a run would need, from headers alone: parameters, tokens, steps, memory and time.
//!
//! Neither weights nor frames are read, and no accelerator is touched.

mod facts;
mod phases;

use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor};

use self::facts::{Facts, gather};
use self::phases::Phase;
use super::folder;
use super::prepare::adopt_adapter;
use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::number::{clock, size};
use crate::recipe::Recipe;
use crate::report::terminal::Terminal;

/// Share of the speed of one large matrix product that a whole pass reaches on the CPU.
const CPU_SHARE: f64 = 0.5;
/// What is assumed of a GPU: an H100's 989 TFLOP/s in bf16, and 40 % of them.
const GPU_FLOPS: f64 = 0.4 * 989e12;
/// Likewise of its 3.35 TB/s, at which the weights come for each token of a batch of answers.
const GPU_READS: f64 = 0.7 * 3.35e12;

/// Prints what the recipe at `path` would need. `memory` is what there is, in bytes; on the CPU
/// that of this machine where left out.
///
/// # Errors
/// Wrong input, or a run that does not fit.
pub fn plan(path: &Path, runs: &Path, memory: Option<usize>, terminal: &Terminal) -> Result<()> {
    let mut recipe = Recipe::from_file(path)?;
    let note = adopt_adapter(&mut recipe)?;
    terminal.line(&format!(
        "{} → {} (a plan: nothing is run)",
        path.display(),
        folder(runs, path).display()
    ));
    note.iter().for_each(|note| terminal.note(note));
    let facts = gather(recipe, terminal)?;
    let phases = facts.phases();
    facts.print_sizes(terminal);
    let (speed, reads) = match facts.on_cpu {
        true => (CPU_SHARE * matrix_speed(&facts.config)?, f64::INFINITY),
        false => (GPU_FLOPS, GPU_READS),
    };
    terminal.line("phase        memory      time");
    for phase in &phases {
        let seconds = phase.share * (phase.flops / speed + phase.reads / reads);
        let time = clock(Duration::from_secs_f64(seconds));
        let memory = size(phase.bytes() as u64);
        terminal.line(&format!("{:<10} {memory:>8} {time:>9}   {}", phase.name, phase.times));
    }
    let assumed = match facts.on_cpu {
        true => format!("{:.0} GFLOP/s, half of what a matrix product reaches here", speed / 1e9),
        false => {
            "40 % of an H100's 989 TFLOP/s, and 70 % of its 3.35 TB/s for each token of answers"
                .into()
        }
    };
    terminal.note(&format!(
        "times are of arithmetic at {assumed}; reading {}s adds to them",
        facts.medium
    ));
    if facts.devices > 1 {
        note_devices(&facts, terminal);
    }
    let Some(peak) = phases.iter().max_by_key(|phase| phase.bytes()) else { return Ok(()) };
    let memory = memory.or_else(|| if facts.on_cpu { available_bytes() } else { None });
    verdict(peak, memory, terminal)
}

/// What is worth telling of several devices.
fn note_devices(facts: &Facts, terminal: &Terminal) {
    let (devices, samples) = (facts.devices, facts.recipe.train.samples_per_step());
    terminal.note("memory is the first GPU's, which has the optimiser too; the others need less");
    if samples < devices {
        let idle = devices - samples;
        terminal.note(&format!(
            "a step of {samples} leaves {idle} of {devices} GPUs idle: raise train.batch_size or \
             train.grad_accum"
        ));
    } else if !samples.is_multiple_of(devices) {
        terminal.note(&format!(
            "{samples} samples a step are no multiple of {devices} GPUs: some wait for the others"
        ));
    }
}

/// Says whether the largest phase fits, and what to lower where it does not.
fn verdict(peak: &Phase, memory: Option<usize>, terminal: &Terminal) -> Result<()> {
    terminal.line(&format!("peak   {}", peak.describe()));
    let need = size(peak.bytes() as u64);
    let Some(memory) = memory else {
        terminal.note("how much memory the device has is not known here; --memory GIB says");
        return Ok(());
    };
    let have = size(memory as u64);
    if peak.bytes() <= memory {
        terminal.line(&format!("fits   {need} of {have}"));
        return Ok(());
    }
    let what =
        format!("the run needs about {need} of memory in `{}`, and there are {have}", peak.name);
    Err(Error::input(what).help(peak.lower()))
}

/// What to lower where the recipe at `path` did not fit: what its largest phase was expected to
/// need, and what makes that smaller. `trains` says whether training was part of it.
///
/// # Errors
/// As [`plan`].
pub fn relief(path: &Path, trains: bool, terminal: &Terminal) -> Result<String> {
    let mut recipe = Recipe::from_file(path)?;
    adopt_adapter(&mut recipe)?;
    terminal.note("the memory is full; what the recipe was expected to need:");
    let phases = gather(recipe, terminal)?.phases();
    let asked = |phase: &&Phase| trains || !["training", "validation"].contains(&phase.name);
    let peak = phases.iter().filter(asked).max_by_key(|phase| phase.bytes());
    let peak = peak.ok_or_else(|| Error::run("a run without phases"))?;
    Ok(format!("`plan` expects {}; {}", peak.describe(), peak.lower()))
}

/// Floating-point operations a second of a product of the model's own size on this CPU.
fn matrix_speed(config: &Config) -> Result<f64> {
    let device = Device::flex();
    let (t, i, o) = (512, config.text.hidden_size, config.text.intermediate_size);
    let ones = |shape: [usize; 2]| Tensor::<2>::ones(shape, (&device, DType::F32));
    let (x, w) = (ones([t, i]), ones([i, o]));
    let product =
        || crate::model::host::host(x.clone().matmul(w.clone()).narrow(0, 0, 1)).map(drop);
    product()?;
    let (start, mut n) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_millis(200) {
        product()?;
        n += 1;
    }
    Ok(2.0 * (n * t * i * o) as f64 / start.elapsed().as_secs_f64())
}

/// Bytes that a new process can have on this machine.
fn available_bytes() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.split_whitespace().next()?.parse().ok()?;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|limit| limit.trim().parse().ok()).unwrap_or(usize::MAX);
    Some(limit.min(1024 * kib))
}
