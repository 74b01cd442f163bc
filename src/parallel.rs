//! The same work on many things, on all cores.

use std::fmt::Display;
use std::sync::{Mutex, mpsc};
use std::thread::{Builder, Scope, available_parallelism, scope};

use rayon::ThreadPoolBuilder;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// How many threads can run at once.
pub fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Starts the threads that [`map`] and the passes on the CPU share.
///
/// # Errors
/// Where the system refuses.
pub fn start() -> Result<()> {
    ThreadPoolBuilder::new().build_global().map_err(|e| refused(&e))
}

/// The results of `work` on each of `items`, in their order.
///
/// # Errors
/// That of the first item that has one.
pub fn map<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let results: Vec<Result<R>> = items.par_iter().map(&work).collect();
    results.into_iter().collect()
}

/// Does `work` on each of `items`, one thread to each; `seen` is told each result as it comes, with
/// how many there are by then.
///
/// # Errors
/// That of `seen`, after which nothing new is begun; or where no thread can be started.
pub fn each<'a, T: Sync, R: Send>(
    items: &'a [T],
    work: impl Fn(&'a T) -> R + Sync,
    seen: impl FnMut(usize, R) -> Result<()>,
) -> Result<()> {
    each_ahead(items, cores(), 0, work, seen)
}

/// As [`each`], by as many threads as `workers`, of whose results `ahead` may wait for `seen`.
///
/// # Errors
/// As [`each`].
pub fn each_ahead<'a, T: Sync, R: Send>(
    items: &'a [T],
    workers: usize,
    ahead: usize,
    work: impl Fn(&'a T) -> R + Sync,
    mut seen: impl FnMut(usize, R) -> Result<()>,
) -> Result<()> {
    let queue = Mutex::new(items.iter());
    let (sender, receiver) = mpsc::sync_channel(ahead);
    scope(|scope| {
        for _ in 0..workers {
            let (queue, work, sender) = (&queue, &work, sender.clone());
            let work = move || {
                let next = || queue.lock().ok().and_then(|mut queue| queue.next());
                while let Some(item) = next() {
                    // Nobody listens any more after an error.
                    if sender.send(work(item)).is_err() {
                        break;
                    }
                }
            };
            spawn(scope, work)?;
        }
        drop(sender);
        receiver.into_iter().enumerate().try_for_each(|(i, result)| seen(i + 1, result))
    })
}

/// Starts a thread of `scope`.
///
/// # Errors
/// Where the system refuses.
pub fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() + Send + 'scope,
) -> Result<()> {
    Builder::new().spawn_scoped(scope, work).map(drop).map_err(|e| refused(&e))
}

/// The error where a thread cannot be started.
pub fn refused(why: &impl Display) -> Error {
    Error::run(format!("no thread can be started: {why}"))
        .help("raise the limit on processes (ulimit -u), then start the same command again")
}
