//! Ranks servers in interleaved slices; see the library's `rank` module.

use std::process::ExitCode;

use clap::Parser;
use plimsoll_peers::rank::{self, Failure, Options};

/// Rank servers by their CPU time for each message or connection, against a baseline
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    match run(&Cli::parse().options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.code())
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let ranking = rank::run(options)?;
    print!("{ranking}");
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{:#}\n", ranking.json())).map_err(|error| {
            Failure::Machine(format!("cannot write {}: {error}", path.display()))
        })?;
    }
    Ok(())
}
