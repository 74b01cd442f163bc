//! Several samples at once on the CPU.
//!
//! A small model's products are too small for all cores: most of the time one works and the others
//! wake up. A lane takes every n-th sample of a step, on its share of the cores. What the lanes
//! sum is added in their order, so nothing depends on which is faster, and since their number is
//! fixed, nothing depends on how many cores there are.

use std::panic::resume_unwind;
use std::thread::{available_parallelism, scope};

use burn::module::Module;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};
use crate::model::parameters::Named;
use crate::model::qwen_vl::QwenVl;

/// How many lanes there are where there is more than one.
const LANES: usize = 2;

/// How many of a step's `samples` are worked on at once. Dropout's random numbers are the device's,
/// one sample's after the other's.
pub fn number(on_cpu: bool, dropout: bool, samples: usize) -> usize {
    if on_cpu && !dropout { samples.clamp(1, LANES) } else { 1 }
}

/// Runs `work` on each of `lanes` with a model of its own, and adds what they return: loss and
/// summed gradients.
///
/// # Errors
/// The first lane's that fails, or where no thread can be started.
pub fn run(
    model: &QwenVl,
    lanes: usize,
    work: impl Fn(&QwenVl, usize) -> Result<(f64, Named)> + Sync,
) -> Result<(f64, Named)> {
    let lane = |lane: usize| -> Result<(f64, Named)> {
        // Models that share leaves share a graph, and a graph is walked by one thread at a time.
        let model = model.valid().train();
        pool(lanes)?.install(|| work(&model, lane))
    };
    let sums = scope(|scope| {
        let lane = &lane;
        let others: Vec<_> = (1..lanes).map(|i| scope.spawn(move || lane(i))).collect();
        let mut sums = vec![lane(0)];
        sums.extend(
            others.into_iter().map(|other| other.join().unwrap_or_else(|e| resume_unwind(e))),
        );
        sums
    });
    let mut sums = sums.into_iter();
    let (mut loss, mut total) = sums.next().ok_or_else(|| Error::run("no lane"))??;
    for sum in sums {
        let (other, gradients) = sum?;
        loss += other;
        for (name, gradient) in gradients {
            let sum = match total.remove(&name) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            total.insert(name, sum);
        }
    }
    Ok((loss, total))
}

/// A lane's share of the cores.
fn pool(lanes: usize) -> Result<ThreadPool> {
    let cores = available_parallelism().map_or(1, usize::from);
    ThreadPoolBuilder::new()
        .num_threads((cores / lanes).max(1))
        .build()
        .map_err(|e| Error::run(format!("cannot start a thread: {e}")))
}
