//! Ctrl-C: the first asks the run to stop at the next place where nothing is lost, the second ends
//! the program.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::parallel::refused;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Catches Ctrl-C from now on.
///
/// # Errors
/// Where the system refuses.
pub fn catch() -> Result<()> {
    let handler = || {
        if REQUESTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(stopped("").exit_code()));
        }
        // A progress bar may stand on the line.
        let line = if std::io::stderr().is_terminal() { "\n" } else { "" };
        let text = "stopping as soon as nothing is lost; press Ctrl-C again to stop at once";
        let _ = writeln!(std::io::stderr(), "{line}{text}");
    };
    ctrlc::set_handler(handler).map_err(|e| match e {
        // It waits for Ctrl-C in a thread.
        ctrlc::Error::System(why) if why.kind() == ErrorKind::WouldBlock => refused(&why),
        e => Error::run(format!("Ctrl-C cannot be caught: {e}")),
    })
}

/// Whether the user asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// An error where the user asked to stop; `during` says in what.
///
/// # Errors
/// Just that.
pub fn check(during: &str) -> Result<()> {
    match requested() {
        true => Err(stopped(&format!("during {during}"))),
        false => Ok(()),
    }
}

/// The error of a run that the user stopped; `at` says where it stands.
pub fn stopped(at: &str) -> Error {
    Error::interrupted(format!("stopped {at}")).help("start the same command again to go on")
}
