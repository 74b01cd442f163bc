//! Several lanes at once, each with a model of its own: one for each GPU of a run, or two on a CPU.
//!
//! What a lane works on depends on nothing but what there is to do and how many lanes there are, and
//! what they return is taken in their order: nothing depends on which is faster. On a CPU there are two
//! for training, on half of the cores each, however many these are: a small model's products are too
//! small for all of them, and most of the time one works and the others wake up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::Module;
use burn::tensor::Device;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::device::memory_bytes;
use crate::error::{Error, Kind, Result};
use crate::interrupt;
use crate::model::cpu;
use crate::model::host::on_host;
use crate::model::parameters::{self, Named};
use crate::model::qwen_vl::QwenVl;
use crate::parallel::{cores, refused};

/// How many lanes a CPU has for training, of samples that each take the passes of
/// [`cpu`](crate::model::cpu).
const ON_CPU: usize = 2;

/// How many lanes `samples` of a step are dealt out to.
pub fn number(devices: usize, cpu_passes: bool, samples: usize) -> usize {
    let lanes = if devices == 1 && cpu_passes { ON_CPU } else { devices };
    samples.clamp(1, lanes)
}

/// The lanes of a run, for one model, whose frozen weights stay as they are.
pub struct Lanes(Vec<Lane>);

struct Lane {
    /// Where its model is.
    device: Device,
    /// Its threads; none where the caller's will do.
    threads: Option<Arc<ThreadPool>>,
    /// On a device of its own the model as it was the last time.
    copy: Option<Mutex<Option<QwenVl>>>,
}

impl Lanes {
    /// One for each of `devices`, at least one, of which the first has the model itself; of a single
    /// CPU those that training has.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn new(devices: &[Device]) -> Result<Self> {
        let on_cpu = devices.iter().cloned().all(cpu::is);
        let n = if on_cpu && devices.len() == 1 { ON_CPU } else { devices.len() };
        let lanes = (0..n).map(|i| {
            let threads = match i {
                _ if on_cpu => Some(threads(i, (cores() / n).max(1))?),
                0 => None,
                // What is made on a GPU belongs to the thread that made it: always the same one.
                _ => Some(threads(i, 1)?),
            };
            let own = devices.get(i);
            let copy = own.filter(|_| i > 0).map(|_| Mutex::default());
            Ok(Lane { device: own.unwrap_or(&devices[0]).clone(), threads, copy })
        });
        lanes.collect::<Result<_>>().map(Self)
    }

    /// How many devices they are on.
    fn devices(&self) -> usize {
        1 + self.0.iter().filter(|lane| lane.copy.is_some()).count()
    }

    /// How many `samples` of a step are dealt out to; `model` takes the passes of
    /// [`cpu`](crate::model::cpu) or not.
    pub fn number(&self, cpu_passes: bool, samples: usize) -> usize {
        number(self.devices(), cpu_passes, samples)
    }

    /// How many `pieces` of work without training are dealt out to: one for each device.
    pub fn on_devices(&self, pieces: usize) -> usize {
        self.number(false, pieces)
    }

    /// Bytes that this process holds of the memory of the device of which it holds most.
    pub fn memory_bytes(&self) -> u64 {
        let devices = self.0.iter().take(self.devices());
        devices.map(|lane| memory_bytes(&lane.device)).max().unwrap_or(0)
    }

    /// What `work` returns on each of the first `n` lanes, which it is told the number of, at once,
    /// with a model of its own: `model`, which is in training form, or what is the same. It asks
    /// [`Others`] before it begins something new.
    ///
    /// # Errors
    /// The first lane's that fails by itself; or where the device fails.
    pub fn run<R: Send>(
        &self,
        model: &QwenVl,
        n: usize,
        work: impl Fn(&QwenVl, usize, &Others) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let others = Others::default();
        if n <= 1 {
            return Ok(vec![work(model, 0, &others)?]);
        }
        let lanes = &self.0[..n];
        let copies = lanes.iter().any(|lane| lane.copy.is_some());
        let trained = if copies { parameters::trained_values(model) } else { Named::new() };
        let trained = on_host(trained)?;
        let in_lane = |i: usize| {
            others.told_unless_ok(|| work(&lanes[i].model(model, &trained)?, i, &others))
        };
        let mut results: Vec<Option<Result<R>>> = lanes.iter().map(|_| None).collect();
        at_once(lanes, &mut results, &in_lane);
        let missing = || Err(Error::run("a lane did not run"));
        let mut results: Vec<Result<R>> =
            results.into_iter().map(|result| result.unwrap_or_else(missing)).collect();
        // Those that only stopped come last.
        let own = |result: &Result<R>| matches!(result, Err(e) if e.kind() != Kind::Interrupted);
        if let Some(failed) = results.iter().position(own) {
            results.swap(0, failed);
        }
        results.into_iter().collect()
    }

    /// `work` on each of `items`, dealt out in turn to the lanes of several devices, of which each
    /// makes `ready` what it works with of its model in training form; `seen` is told each item's
    /// number and result, in the items' order.
    ///
    /// # Errors
    /// The first lane's that fails, or that of `seen`; nothing new is begun then.
    pub fn deal<T: Sync, M, R: Send>(
        &self,
        model: &QwenVl,
        items: &[T],
        ready: impl Fn(&QwenVl) -> M + Sync,
        work: impl Fn(&M, &T) -> Result<R> + Sync,
        seen: impl FnMut(usize, R) -> Result<()> + Send,
    ) -> Result<()> {
        let n = self.on_devices(items.len());
        let seen = Mutex::new(InOrder::new(seen));
        self.run(model, n, |model, lane, others| {
            let ready = ready(model);
            items.iter().enumerate().skip(lane).step_by(n).try_for_each(|(i, item)| {
                others.check()?;
                let result = work(&ready, item)?;
                locked(&seen).take(i, result)
            })
        })?;
        Ok(())
    }
}

/// Whether one of the lanes that work at once has failed.
#[derive(Debug, Default)]
pub struct Others(AtomicBool);

impl Others {
    /// An error where a lane has failed: what this one does would be for nothing.
    ///
    /// # Errors
    /// Just that.
    pub fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(interrupt::stopped("as another device failed")),
            false => Ok(()),
        }
    }

    /// What `work` returns; the others are told where that is an error, or nothing as it panicked.
    fn told_unless_ok<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let tell = Tell(self);
        let result = work();
        if result.is_ok() {
            std::mem::forget(tell);
        }
        result
    }
}

/// Tells the others when it is dropped.
struct Tell<'a>(&'a Others);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl Lane {
    /// Its model: `model` as it is now, of which `trained` holds what is trained, on the host.
    fn model(&self, model: &QwenVl, trained: &Named) -> Result<QwenVl> {
        // Models that share leaves share a graph, and a graph is walked by one thread at a time.
        let Some(copy) = &self.copy else { return Ok(model.valid().train()) };
        let mut copy = locked(copy);
        let now = self.device.memory_persistent_allocations(copy.take(), |last| {
            let last = last.map_or_else(|| parameters::copied(model, &self.device), Ok)?;
            if !parameters::trained_values(&last).keys().eq(trained.keys()) {
                return Err(Error::run("a copy of the model trains other parameters than it"));
            }
            Ok(parameters::replace(last, |name, value| match trained.get(name) {
                Some(new) => new.clone().to_device(&self.device),
                None => value,
            }))
        });
        Ok(copy.insert(now?).clone())
    }
}

/// Has each of `lanes` do `work`, with its number; returns when all are done.
fn at_once<R: Send>(
    lanes: &[Lane],
    results: &mut [Option<R>],
    work: &(impl Fn(usize) -> R + Sync),
) {
    let (Some((last, lanes)), Some((result, results))) =
        (lanes.split_last(), results.split_last_mut())
    else {
        return;
    };
    let mut work_here = || *result = Some(work(lanes.len()));
    match &last.threads {
        Some(threads) if lanes.is_empty() => threads.install(work_here),
        None => work_here(),
        Some(threads) => threads.in_place_scope(|scope| {
            scope.spawn(|_| work_here());
            at_once(lanes, results, work);
        }),
    }
}

/// What takes the results of several lanes as they come, and hands them on in the items' order.
struct InOrder<R, F> {
    seen: F,
    /// The item whose result is handed on next.
    next: usize,
    waiting: BTreeMap<usize, R>,
}

impl<R, F> InOrder<R, F> {
    fn new(seen: F) -> Self {
        Self { seen, next: 0, waiting: BTreeMap::new() }
    }

    /// Takes the result of item `i`.
    fn take(&mut self, i: usize, result: R) -> Result<()>
    where
        F: FnMut(usize, R) -> Result<()>,
    {
        self.waiting.insert(i, result);
        while let Some(result) = self.waiting.remove(&self.next) {
            (self.seen)(self.next, result)?;
            self.next += 1;
        }
        Ok(())
    }
}

/// The threads of lane `lane`. They are kept for later lanes of that number: what a thread that ends
/// had of memory stays with the process, and what it had of a GPU's with the GPU.
fn threads(lane: usize, number: usize) -> Result<Arc<ThreadPool>> {
    static THREADS: Mutex<BTreeMap<(usize, usize), Arc<ThreadPool>>> = Mutex::new(BTreeMap::new());
    let mut kept = locked(&THREADS);
    if let Some(threads) = kept.get(&(lane, number)) {
        return Ok(threads.clone());
    }
    let made = ThreadPoolBuilder::new().num_threads(number).build();
    let made = Arc::new(made.map_err(|e| refused(&e))?);
    Ok(kept.entry((lane, number)).or_insert(made).clone())
}

/// What a mutex holds; what panicked with it ends the run anyway.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
