//! The same work on many things, on all cores.

use std::sync::{Mutex, mpsc};
use std::thread::{available_parallelism, scope};

use crate::error::Result;

/// Does `work` on each of `items`, one thread to each; `seen` is told each result as it comes, with
/// how many there are by then.
///
/// # Errors
/// That of `seen`, after which nothing new is begun.
pub fn each<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
    mut seen: impl FnMut(usize, R) -> Result<()>,
) -> Result<()> {
    let queue = Mutex::new(items.iter());
    let (sender, receiver) = mpsc::sync_channel(0);
    let workers = available_parallelism().map_or(1, usize::from);
    scope(|scope| {
        for _ in 0..workers {
            let (queue, work, sender) = (&queue, &work, sender.clone());
            scope.spawn(move || {
                let next = || queue.lock().ok().and_then(|mut queue| queue.next());
                while let Some(item) = next() {
                    // Nobody listens any more after an error.
                    if sender.send(work(item)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        receiver.into_iter().enumerate().try_for_each(|(i, result)| seen(i + 1, result))
    })
}
