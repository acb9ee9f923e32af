//! `plimsoll accept`.

use std::time::Duration;

use plimsoll_lab::Result;
use plimsoll_lab::experiments::accept::{self, Options};

use super::Session;
use crate::args::{OutputArgs, TimeoutArgs, count, duration, rate};

/// The example that ends the help.
const EXAMPLES: &str = "\
Examples:
  plimsoll accept
        how fast one dedicated acceptor empties a full queue
  plimsoll accept --rate 3000 --burst 500
        and the smallest backlog with no drop for such arrivals";

/// The accept rate of a dedicated acceptor, and the accept queue against arrivals
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Let R connections a second arrive, at random times [default: none]
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// Let N connections arrive at once, three times, on top of the rate [default: none]
    #[arg(long, value_name = "N", value_parser = count)]
    burst: Option<u64>,
    /// How long the arrivals last
    #[arg(long, value_name = "T", value_parser = duration, default_value = "2s")]
    duration: Duration,
    /// The backlog while they arrive [default: as deep as net.core.somaxconn allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    backlog: Option<u32>,
    /// How often each way of accepting is timed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000),
          default_value_t = 5)]
    repetitions: u32,
    #[command(flatten)]
    timeout: TimeoutArgs,
}

pub(crate) fn run(args: &Args, output: OutputArgs) -> Result<u8> {
    let options = Options {
        rate: args.rate,
        burst: args.burst,
        duration: args.duration,
        backlog: args.backlog,
        timeout: args.timeout.timeout,
        repetitions: args.repetitions,
    };
    let session = Session::new("accept", output)?;
    let (result, partial) = accept::run(&session.lab, &options)?;
    session.finish(result, partial, true, accept::render_text)
}
