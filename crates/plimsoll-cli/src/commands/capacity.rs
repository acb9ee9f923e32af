//! `plimsoll capacity`.

use plimsoll_lab::Result;
use plimsoll_lab::embedded;
use plimsoll_lab::experiments::capacity::{self, Options, Target};
use plimsoll_lab::worker::exchange::Exchange;
use plimsoll_lab::worker::source::AddressRange;

use super::Session;
use crate::args::{ExchangeArgs, OutputArgs, TargetArgs, TimeoutArgs, count};

/// The example that ends the help.
const EXAMPLES: &str = "\
Examples:
  plimsoll capacity --connections 15000 --probe
        15,000 connections to the embedded engine, each of which must answer at the end
  plimsoll capacity --target 127.0.0.1:6379 --probe --send 'PING\\r\\n' --expect '+PONG\\r\\n'
        as many as that server takes, and what stops it";

/// Connections held at once, up to the break: what they cost, and what stops them
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Stop at N connections [default: as many as possible]
    #[arg(long, value_name = "N", value_parser = count)]
    connections: Option<u64>,
    /// Add N connections between two looks at the server, whatever its accept queue takes
    /// [default: a fiftieth of those asked for, and at most half of the queue]
    #[arg(long, value_name = "N", value_parser = count)]
    step: Option<u64>,
    /// Where clients connect from: ADDRESS or ADDRESS/PREFIX
    /// [default: 127.0.0.0/8 towards IPv4 loopback, else the route's address]
    #[arg(long, value_name = "CIDR")]
    sources: Option<AddressRange>,
    /// At the end, each held connection must still answer
    #[arg(long)]
    probe: bool,
    /// Stop before this share of memory is in use: the machine's, or the control group's
    #[arg(long, value_name = "PERCENT", default_value = "90",
          value_parser = clap::value_parser!(u8).range(1..=99))]
    stop_before: u8,
    #[command(flatten)]
    timeout: TimeoutArgs,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    exchange: ExchangeArgs,
}

pub(crate) fn run(args: &Args, output: OutputArgs) -> Result<u8> {
    let timeout = args.timeout.timeout;
    let target = match args.target.address()? {
        Some(address) => Target::Address { address, pid: args.target.server_pid },
        None => Target::Embedded(embedded::Options::default()),
    };
    let exchange = args.exchange.exchange(args.target.target.as_deref(), timeout)?;
    let options = Options {
        connections: args.connections,
        step: args.step,
        sources: args.sources,
        // Who says what must come back wants to know whether it does.
        probe: args.probe || exchange.is_some(),
        exchange: exchange.unwrap_or_else(|| Exchange::echo(timeout)),
        stop_before: f64::from(args.stop_before),
        timeout,
        ..Options::new(target)
    };
    let session = Session::new("capacity", output)?.measures(args.target.server()?);
    let (result, partial) = capacity::run(&session.lab, &options)?;
    session.finish(result, partial, true, capacity::render_text)
}
