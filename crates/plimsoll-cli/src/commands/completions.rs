//! `plimsoll completions`.

use clap::CommandFactory as _;
use clap_complete::Shell;
use plimsoll_lab::Result;

use crate::args::Cli;
use crate::output;

/// Print the script that completes this command in a shell
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Example:
  plimsoll completions bash > /etc/bash_completion.d/plimsoll")]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "plimsoll", &mut script);
    output::result(&String::from_utf8_lossy(&script))?;
    Ok(super::OK)
}
