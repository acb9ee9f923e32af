//! The `plimsoll` command: arguments, progress, output and exit codes. The experiments themselves
//! are in `plimsoll-lab`.

#![allow(
    clippy::doc_markdown,
    reason = "doc comments of arguments are help texts, printed as they are"
)]

mod args;
mod commands;
mod config;
mod interrupt;
mod metrics;
mod output;
mod progress;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    commands::dispatch(cli)
}
