//! A worker process alone, for the lab's own tests. The `plimsoll` command has the same behind a
//! hidden subcommand.

use std::process::ExitCode;

fn main() -> ExitCode {
    plimsoll_lab::worker::main()
}
