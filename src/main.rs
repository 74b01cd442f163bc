//! `vlm4d-train recipe.toml`

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use vlm4d_train::cli::Cli;

/// A step allocates thousands of tensors: with glibc's allocator it takes longer, or where threads
/// have heaps of their own, holds more.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match Cli::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
