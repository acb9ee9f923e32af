//! Misbehaves towards a server, and prints a table of what that did to it.
//!
//! | part | who | what is printed |
//! |---|---|---|
//! | `readers` | peers that send and never read | memory of the server and of the kernel for it, beside the sum of the caps; and what is given back |
//! | `loris` | peers that connect and say nothing, and come again | when each was closed, against its deadline; a good client's latency beside them |
//! | `flood` | one of a hundred peers that sends without end | the others' latency beside it |
//! | `churn` | connections that come and go as fast as they can | memory, descriptors and accounts as time goes on |
//!
//! The server is a program of its own, in a network namespace that it shares with nobody but us
//! (where we are root). Latencies are compared in pairs of slices, without and with the trouble,
//! seconds apart: only their ratios mean anything, and those only on a machine where nothing else
//! runs; `chrt -f 10 trouble flood --foreign 10` keeps others out where there are any (the kernel
//! leaves them 5 %, `kernel.sched_rt_runtime_us`).

mod churn;
mod flood;
mod good;
mod loris;
mod readers;
mod reading;
mod server;

use std::process::{Command, ExitCode};

use clap::{Parser, ValueEnum};
use plimsoll_peers::sys;

/// Misbehave towards a server, and print what that did to it
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// What to do [default: all]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// The sizes to report: some minutes. Without it: about ten seconds a part
    #[arg(long)]
    full: bool,
    /// Length of the churn in seconds [default: 10, or 120 with --full]
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Drop pairs of slices in which others had more than this percentage of our time
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    foreign: f64,
    /// The program that has `serve`; looked for beside this one first
    #[arg(long, value_name = "PROGRAM", default_value = "plimsoll")]
    server: String,
    /// Further arguments of `serve`, separated by spaces
    #[arg(long, value_name = "ARGS", default_value = "", allow_hyphen_values = true)]
    with: String,
}

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Peers that never read
    Readers,
    /// Peers that say nothing
    Loris,
    /// A peer that sends without end
    Flood,
    /// Connections that come and go
    Churn,
}

/// What went wrong with the measurement: a sentence.
pub(crate) type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Says that we are in the namespace already.
const INSIDE: &str = "PLIMSOLL_TROUBLE_INSIDE";

fn main() -> ExitCode {
    let options = Options::parse();
    let run = match enter_namespace() {
        Ok(Some(code)) => return code,
        Ok(None) => run(&options),
        Err(error) => Err(error),
    };
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(4)
        }
    }
}

fn run(options: &Options) -> Result<()> {
    sys::raise_descriptor_limit()?;
    let parts = if options.parts.is_empty() { Part::value_variants() } else { &options.parts };
    for part in parts {
        match part {
            Part::Readers => readers::run(options)?,
            Part::Loris => pinned(|| loris::run(options))?,
            Part::Flood => pinned(|| flood::run(options))?,
            Part::Churn => churn::run(options)?,
        }
    }
    Ok(())
}

/// Runs a part that pins its thread on a thread of its own: the other parts, and their servers, have
/// all processors.
fn pinned(part: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| {
        let part = scope.spawn(|| part().map_err(|error| error.to_string()));
        part.join().expect("a part does not panic").map_err(Into::into)
    })
}

/// Runs this program again in a network namespace, which ends with it. `None`: we are inside, or
/// go on without.
fn enter_namespace() -> Result<Option<ExitCode>> {
    if std::env::var_os(INSIDE).is_some() {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
        return if up.success() { Ok(None) } else { Err("ip(8) cannot bring loopback up".into()) };
    }
    let inner = Command::new("unshare")
        .args(["--net", "--"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status();
    match inner {
        Ok(status) if status.success() => Ok(Some(ExitCode::SUCCESS)),
        Ok(status) if status.code() == Some(4) => Ok(Some(ExitCode::from(4))),
        _ => {
            eprintln!(
                "no network namespace of our own (that needs root): other traffic is counted too"
            );
            Ok(None)
        }
    }
}

/// Bytes in the unit that suits them.
pub(crate) fn size(bytes: i64) -> String {
    const KIB: f64 = 1024.0;
    match bytes as f64 {
        small if small.abs() < 10.0 * KIB => format!("{bytes} B"),
        middle if middle.abs() < 10.0 * KIB * KIB => format!("{:.0} KiB", middle / KIB),
        large => format!("{:.1} MiB", large / KIB / KIB),
    }
}
