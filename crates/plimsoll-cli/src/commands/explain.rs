//! `plimsoll explain`.

use plimsoll_lab::advice::explain;
use plimsoll_lab::{Error, Result};

use super::Session;
use crate::args::OutputArgs;

/// The example that ends the help.
const EXAMPLES: &str = "\
Example:
  plimsoll explain $(pidof -s nginx)";

/// The invoice of a running server: listeners, connections by state, kernel memory by object
///
/// Reads only; the server is not touched.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The server's process
    #[arg(value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: u32,
}

pub(crate) fn run(args: &Args, output: OutputArgs) -> Result<u8> {
    if cfg!(not(target_os = "linux")) {
        return Err(Error::machine(
            "`explain` reads accept queues and kernel objects by process, and only Linux tells those",
            "on Windows: `plimsoll capacity` and `backlog` try a server's limits instead",
        ));
    }
    let session = Session::new("explain", output)?;
    let result = explain::run(args.pid)?;
    session.finish(result, false, true, explain::render_text)
}
