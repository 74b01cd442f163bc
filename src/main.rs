//! `vlm4d-train recipe.toml`

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use vlm4d_train::cli::Cli;
use vlm4d_train::report::terminal;

/// A step allocates thousands of tensors: with glibc's allocator it takes longer, or where threads
/// have heaps of their own, holds more.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match Cli::parse().execute().and_then(|()| terminal::written()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever reads it may have gone away.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
