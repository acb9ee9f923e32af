//! `plimsoll backlog`.

use std::net::IpAddr;

use clap::ValueEnum;
use plimsoll_lab::experiments::backlog::{self, Options};
use plimsoll_lab::worker::Keep;
use plimsoll_lab::worker::source::AddressRange;
use plimsoll_lab::{Error, Result};

use super::Session;
use crate::args::{OutputArgs, TimeoutArgs, count};

/// The example that ends the help.
const EXAMPLES: &str = "\
Examples:
  plimsoll backlog
        a sweep: what each backlog asked for was granted, and what was really queued
  plimsoll backlog --backlog 128,4096,65535 --json
  plimsoll backlog --backlog default,somaxconn,hint:16000
        on Windows, where a hint goes beyond SOMAXCONN
  plimsoll backlog --backlog 1000000 --keep reset --stop-at 300000
        deeper than one address has ports, where net.core.somaxconn allows it";

/// A listener that never accepts, and clients that connect until something ends it
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Backlogs to ask for, one run each: numbers, `default` (the library's own), `somaxconn`, or on
    /// Windows `hint:N` (SOMAXCONN_HINT, 200 to 65535) [default: a sweep]
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = requested,
          allow_negative_numbers = true)]
    backlog: Vec<Requested>,
    /// Where clients connect from: ADDRESS or ADDRESS/PREFIX
    /// [default: 127.0.0.0/8 towards IPv4 loopback, else the route's address]
    #[arg(long, value_name = "CIDR")]
    sources: Option<AddressRange>,
    /// Where clients connect to, one address after the other as ports run out; the listener takes all
    /// addresses of this machine then, which needs --allow-remote [default: the listener's own]
    #[arg(long, value_name = "CIDR", requires = "allow_remote", conflicts_with = "address")]
    destinations: Option<AddressRange>,
    /// What the client does once it is connected
    #[arg(long, value_enum, default_value_t = KeepArg::Open)]
    keep: KeepArg,
    /// End a run at N connections [default: when the kernel ends it]
    #[arg(long, value_name = "N", value_parser = count)]
    stop_at: Option<u64>,
    /// The address to listen on: one of this machine's
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    address: IpAddr,
    /// Allow an address that is not loopback
    #[arg(long)]
    allow_remote: bool,
    #[command(flatten)]
    timeout: TimeoutArgs,
}

/// What the client does after connecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeepArg {
    /// Keep the connection
    Open,
    /// Close it (FIN): the entry stays in the queue
    Close,
    /// Reset it (RST): the entry stays in the queue
    Reset,
}

/// A backlog to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Requested(Option<i64>);

fn requested(text: &str) -> Result<Requested, String> {
    // clap says which argument it is; the cure is part of the text.
    backlog::parse(text).map(Requested).map_err(|error| error.to_string())
}

pub(crate) fn run(args: &Args, output: OutputArgs) -> Result<u8> {
    if !args.address.to_canonical().is_loopback() && !args.allow_remote {
        return Err(Error::usage(
            format!("{} is not on loopback: others could connect to the listener", args.address),
            "add --allow-remote if that is meant",
        ));
    }
    let options = Options {
        backlogs: args.backlog.iter().map(|requested| requested.0).collect(),
        sources: args.sources,
        destinations: args.destinations,
        keep: match args.keep {
            KeepArg::Open => Keep::Open,
            KeepArg::Close => Keep::Close,
            KeepArg::Reset => Keep::Reset,
        },
        stop_at: args.stop_at,
        timeout: args.timeout.timeout,
        address: args.address,
    };
    let session = Session::new("backlog", output)?;
    let (result, partial) = backlog::run(&session.lab, &options)?;
    session.finish(result, partial, true, backlog::render_text)
}
