//! Several samples at once on the CPU.
//!
//! A small model's products are too small for all cores: most of the time one works and the others
//! wake up. A lane takes every n-th sample of a step, on its share of the cores. What the lanes
//! sum is added in their order, so nothing depends on which is faster, and since their number is
//! fixed, nothing depends on how many cores there are.

use std::sync::OnceLock;

use burn::module::Module;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};
use crate::model::parameters::{self, Named};
use crate::model::qwen_vl::QwenVl;
use crate::parallel::cores;

/// How many lanes there are where there is more than one.
const LANES: usize = 2;

/// How many of a step's `samples` are worked on at once, by a model that takes the passes of
/// [`cpu`](crate::model::cpu) or not. Dropout's random numbers are the device's, one sample's after
/// the other's.
pub fn number(cpu_passes: bool, dropout: bool, samples: usize) -> usize {
    if cpu_passes && !dropout { samples.clamp(1, LANES) } else { 1 }
}

/// Runs `work` on each of the [`LANES`] with a model of its own, and adds what they return: loss and
/// summed gradients.
///
/// # Errors
/// The first lane's that fails, or where no thread can be started.
pub fn run(
    model: &QwenVl,
    work: impl Fn(&QwenVl, usize) -> Result<(f64, Named)> + Sync,
) -> Result<(f64, Named)> {
    // Models that share leaves share a graph, and a graph is walked by one thread at a time.
    let lane = |lane: usize| work(&model.valid().train(), lane);
    let [here, there] = pools()?;
    let mut second = None;
    let first = there.in_place_scope(|scope| {
        scope.spawn(|_| second = Some(lane(1)));
        here.install(|| lane(0))
    });
    let (mut loss, mut sums) = first?;
    let (other, gradients) = second.ok_or_else(|| Error::run("a lane did not run"))??;
    loss += other;
    for (name, gradient) in gradients {
        parameters::add(&mut sums, name, gradient);
    }
    Ok((loss, sums))
}

/// The lanes' shares of the cores. They are kept: what a thread that ends had of memory stays with
/// the process.
fn pools() -> Result<&'static [ThreadPool; LANES]> {
    static POOLS: OnceLock<Result<[ThreadPool; LANES], String>> = OnceLock::new();
    let pools = POOLS.get_or_init(|| {
        let pool = || ThreadPoolBuilder::new().num_threads((cores() / LANES).max(1)).build();
        let pools = pool().and_then(|first| Ok([first, pool()?]));
        pools.map_err(|e| e.to_string())
    });
    pools.as_ref().map_err(|e| Error::run(format!("cannot start a thread: {e}")))
}
