//! `plimsoll plan`.

use std::path::PathBuf;

use plimsoll_lab::Result;
use plimsoll_lab::advice::doctor::Facts;
use plimsoll_lab::advice::plan::{self, Costs, Options};
use plimsoll_lab::survey;

use super::Session;
use crate::args::{OutputArgs, count, rate};

/// The example that ends the help.
const EXAMPLES: &str = "\
Examples:
  plimsoll plan --connections 100k --from plimsoll-report/results.json
        from what a survey has measured
  plimsoll plan --connections 100k --arrivals 3000 --burst 500
        measures first (some ten seconds), then plans; exits 1 where it does not fit";

/// What a number of connections will need, from measured costs
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Connections of one server
    #[arg(long, value_name = "N", value_parser = count)]
    connections: u64,
    /// Arrivals per second [default: none]
    #[arg(long, value_name = "R", value_parser = rate)]
    arrivals: Option<f64>,
    /// Arrivals at once [default: none]
    #[arg(long, value_name = "N", value_parser = count)]
    burst: Option<u64>,
    /// Take the costs from what survey or capacity wrote [default: measure them now]
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// The clients are on this machine too: kernel memory and files count twice
    #[arg(long)]
    both_ends: bool,
    /// The server keeps connections as io_uring's direct descriptors, which RLIMIT_NOFILE does not
    /// bound (the engine does)
    #[arg(long)]
    direct_descriptors: bool,
}

pub(crate) fn run(args: &Args, output: OutputArgs) -> Result<u8> {
    let options = Options {
        connections: args.connections,
        arrivals: args.arrivals,
        burst: args.burst,
        both_ends: args.both_ends,
        direct_descriptors: args.direct_descriptors,
    };
    let session = Session::new("plan", output)?;
    let costs = match &args.from {
        Some(file) => Costs::from_file(file)?,
        None => {
            let needs_rate = args.arrivals.is_some() || args.burst.is_some();
            survey::measure_costs(&session.lab, needs_rate)?
        }
    };
    let result = plan::plan(&options, &costs, &Facts::read())?;
    let fits = result.fits;
    session.finish(result, false, fits, plan::render_text)
}
