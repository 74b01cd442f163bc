//! `vlm4d-train recipe.toml`

use std::process::ExitCode;

use clap::Parser;
use vlm4d_train::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
