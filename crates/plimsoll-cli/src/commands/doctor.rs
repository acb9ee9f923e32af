//! `plimsoll doctor`.

use plimsoll_lab::Result;
use plimsoll_lab::advice::doctor::{self, Facts};

use super::Session;
use crate::args::{OutputArgs, count};

/// The example that ends the help.
const EXAMPLES: &str = "\
Examples:
  plimsoll doctor
        every limit, and whether it is lower than usual
  plimsoll doctor --connections 1M
        exits 1 where a limit stands in the way of a million connections";

/// Every limit of this machine that matters, what it allows, the command that raises it
///
/// Nothing is changed: the commands are printed, never run.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Check against a goal: N connections of one server [default: what is usual]
    #[arg(long, value_name = "N", value_parser = count)]
    connections: Option<u64>,
}

pub(crate) fn run(args: &Args, output: OutputArgs) -> Result<u8> {
    let session = Session::new("doctor", output)?;
    let result = doctor::examine(&Facts::read().with_ring(), args.connections);
    // Without a goal a low limit is a remark, not a failure.
    let holds = args.connections.is_none() || doctor::is_met(&result);
    session.finish(result, false, holds, doctor::render_text)
}
