//! `plimsoll load`.

use std::time::Duration;

use plimsoll_lab::embedded::{self, Embedded};
use plimsoll_lab::experiments::load::{self, Options, Pace, repeat};
use plimsoll_lab::results::TargetServer;
use plimsoll_lab::survey;
use plimsoll_lab::worker::source::AddressRange;
use plimsoll_lab::{Error, Result};

use super::{INCOMPLETE, OK, Session};
use crate::args::{
    ExchangeArgs, OutputArgs, TargetsArgs, TimeoutArgs, count, duration, rate, size_range,
};

/// The example that ends the help.
const EXAMPLES: &str = "\
Examples:
  plimsoll load --connections 1000 --size 64..4KiB --duration 10s
        random sizes to the embedded engine; every byte is verified
  plimsoll load --target 127.0.0.1:7000 --rate 50k
        open loop: latency counts from the moment at which a message was due
  plimsoll load --target 127.0.0.1:80 --http /
        a web server: GET over connections that are kept, each status verified
  plimsoll load --target 127.0.0.1:6379 --send 'PING\\r\\n' --expect '+PONG\\r\\n'
        any request and reply
  plimsoll load --target 127.0.0.1:7000 --target 127.0.0.1:7001 --repeat 10
        which is faster: both in turns, A B B A ten times, and what differs by more than chance";

/// Repeats of a run with several targets, unless said otherwise: the fewest that can tell the six
/// figures of two targets apart.
const REPEATS: u32 = 10;

/// Messages per second and latency; every message is accounted for
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Connections
    #[arg(long, value_name = "N", value_parser = count, default_value = "50")]
    connections: u64,
    /// Bytes of a message, or a range of which sizes are drawn evenly
    #[arg(long, value_name = "BYTES[..BYTES]", value_parser = size_range, default_value = "64")]
    size: (u64, u64),
    /// Closed loop: messages outstanding on each connection
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..),
          default_value_t = 1, conflicts_with = "rate")]
    depth: u32,
    /// Open loop: R messages per second over all connections, by the clock
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// The measured time of each target, once all connections are there; repeats divide it
    #[arg(long, value_name = "T", value_parser = duration, default_value = "10s")]
    duration: Duration,
    /// Divide the measured time into N parts: their spread tells how far a figure can be trusted,
    /// and `compare` needs it. With several targets each part takes them there and back, A B B A;
    /// parts of 0.3 to 1 s for each target are best where a machine has slow and fast phases
    /// [default: 1; 10 with several targets]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(repeat::REPEATS_MOST)))]
    repeat: Option<u32>,
    /// Never sleep: the client does not make the server pay for waking it, and takes a whole CPU
    #[arg(long)]
    spin: bool,
    /// Where clients connect from: ADDRESS or ADDRESS/PREFIX
    /// [default: 127.0.0.0/8 towards IPv4 loopback, else the route's address]
    #[arg(long, value_name = "CIDR")]
    sources: Option<AddressRange>,
    /// Seed of sizes and contents: the same seed sends the same bytes
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    timeout: TimeoutArgs,
    #[command(flatten)]
    target: TargetsArgs,
    #[command(flatten)]
    exchange: ExchangeArgs,
}

pub(crate) fn run(args: &Args, output: OutputArgs) -> Result<u8> {
    let too_large = |what: &str, value: u64| {
        Error::usage(format!("{what} {value} is more than the lab can ask for"), "ask for less")
    };
    let narrow = |what: &str, value: u64| u32::try_from(value).map_err(|_| too_large(what, value));
    let connections = narrow("--connections", args.connections)?;
    let size = (narrow("--size", args.size.0)?, narrow("--size", args.size.1)?);
    let asked = args.target.addresses()?;
    let texts = &args.target.target;
    let exchange = |number: usize| {
        args.exchange.exchange(texts.get(number).map(String::as_str), args.timeout.timeout)
    };
    // What is wrong with it is said before a server is started.
    exchange(0)?;
    let first = asked.first().map(|&(address, pid)| TargetServer::new(address, pid));
    let session = Session::new("load", output)?.measures(first);
    let server = match asked.as_slice() {
        [] => Some(Embedded::start(
            &session.lab,
            &embedded::Options {
                max_connections: Some(args.connections),
                ..embedded::Options::default()
            },
        )?),
        _ => None,
    };
    let targets = match &server {
        Some(server) => vec![(server.address(), Some(server.pid()))],
        None => asked,
    };
    let options = |(number, (target, server_pid))| -> Result<Options> {
        Ok(Options {
            server_pid,
            connections,
            size,
            pace: match args.rate {
                Some(rate) => Pace::Open { rate },
                None => Pace::Closed { depth: args.depth },
            },
            duration: args.duration,
            timeout: args.timeout.timeout,
            exchange: exchange(number)?,
            spin: args.spin,
            sources: survey::load_sources(target, args.sources, args.connections)?,
            seed: args.seed,
            ..Options::new(target)
        })
    };
    let repeats = args.repeat.unwrap_or(if targets.len() > 1 { REPEATS } else { 1 });
    let options = targets.into_iter().enumerate().map(options).collect::<Result<Vec<_>>>()?;
    let (result, partial) = repeat::run(&session.lab, &options, repeats)?;
    if let Some(server) = server {
        server.stop();
    }
    let loads = || std::iter::once(&result).chain(result.targets.iter().map(|one| &one.load));
    let whole = loads().all(|load| load.corrupt == 0);
    let complete = loads().all(|load| load.complete);
    let code = session.finish(result, partial, whole, load::render_text)?;
    Ok(if code == OK && !complete { INCOMPLETE } else { code })
}
