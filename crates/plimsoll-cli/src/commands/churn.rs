//! `plimsoll churn`.

use std::time::Duration;

use clap::ValueEnum;
use plimsoll_lab::Result;
use plimsoll_lab::experiments::churn::{self, Closes, Options, Pool};

use super::Session;
use crate::args::{OutputArgs, TargetArgs, TimeoutArgs, duration, size};

/// The example that ends the help.
const EXAMPLES: &str = "\
Examples:
  plimsoll churn
        all variants side by side, in turns, against the engine with its pools and without
  plimsoll churn --target 127.0.0.1:7000 --pool both --closes client";

/// Connect, echo, disconnect: with and without reuse of sockets, by who closes first
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Recycle, or make everything anew for each connection: the client its sockets, and the
    /// embedded server what `serve --pool` says
    #[arg(long, value_enum, default_value_t = PoolArg::Both)]
    pool: PoolArg,
    /// Who closes first
    #[arg(long, value_enum, default_value_t = ClosesArg::Both)]
    closes: ClosesArg,
    /// The target closes each connection once it has echoed --size bytes
    #[arg(long, requires = "target")]
    target_closes_first: bool,
    /// The time of all turns together
    #[arg(long, value_name = "T", value_parser = duration, default_value = "5s")]
    duration: Duration,
    /// Connections at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000),
          default_value_t = 16)]
    concurrency: u64,
    /// Bytes of each message
    #[arg(long, value_name = "BYTES", value_parser = size, default_value = "64")]
    size: u64,
    #[command(flatten)]
    timeout: TimeoutArgs,
    #[command(flatten)]
    target: TargetArgs,
}

/// Which pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PoolArg {
    /// Client and server recycle
    On,
    /// Neither does
    Off,
    /// Both, side by side, and between them the server alone
    Both,
}

/// Who closes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClosesArg {
    /// The client, orderly and by reset
    Client,
    /// The server
    Server,
    /// Both, side by side
    Both,
}

pub(crate) fn run(args: &Args, output: OutputArgs) -> Result<u8> {
    let options = Options {
        target: args.target.address()?,
        server_pid: args.target.server_pid,
        target_closes_first: args.target_closes_first,
        pool: match args.pool {
            PoolArg::On => Pool::On,
            PoolArg::Off => Pool::Off,
            PoolArg::Both => Pool::Both,
        },
        closes: match args.closes {
            ClosesArg::Client => Closes::Client,
            ClosesArg::Server => Closes::Server,
            ClosesArg::Both => Closes::Both,
        },
        duration: args.duration,
        concurrency: args.concurrency as usize,
        timeout: args.timeout.timeout,
        // What is too large for the experiment is refused there, with its bound.
        size: usize::try_from(args.size).unwrap_or(usize::MAX),
    };
    let session = Session::new("churn", output)?.measures(args.target.server()?);
    let (result, partial) = churn::run(&session.lab, &options)?;
    session.finish(result, partial, true, churn::render_text)
}
