//! When the device's memory is full: what the run was planned to need, and what to lower.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use super::plan;
use crate::error::{Error, Kind, Result};
use crate::report::terminal::Terminal;

/// Does `work` for the recipe at `path`; `trains` says whether it is a whole run or an evaluation.
///
/// # Errors
/// Those of `work`; one of full memory says what the recipe needs by `plan`, and what to lower.
pub fn explained<T>(
    path: &Path,
    trains: bool,
    terminal: &Terminal,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    match caught(work) {
        Err(e) if e.kind() == Kind::OutOfMemory => {
            // The recipe was read and its data were found before: what fails now adds nothing.
            Err(match plan::relief(path, trains, terminal) {
                Ok(help) => e.help(help),
                Err(_) => e,
            })
        }
        other => other,
    }
}

/// `work`, whose panics of full memory are errors: burn panics where a call cannot return one.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let error = Error::device(message(&*panic));
        if error.kind() == Kind::OutOfMemory { Err(error) } else { resume_unwind(panic) }
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default()
}
