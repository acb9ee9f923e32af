//! Provokes each limit on purpose, and checks what `plimsoll` says of it.
//!
//! A case ([`case`], listed in [`cases`]) is data: conditions, the flags of `faulty`, the
//! command line of `plimsoll`, and what is right to say by the command's contract. Each run
//! starts a server and the command as child processes; the JSON that the command prints, its
//! exit code and its messages are judged ([`judge`]). Nothing is shared with the lab.
//!
//! Conditions ([`place`]) are network namespaces, control groups of version 1, firewall rules,
//! limits of processes and, in cases that run alone, limits of the machine. All of them are
//! removed or restored when a run ends, also by a panic, SIGINT, SIGTERM or SIGHUP; limits of
//! the machine also when this program is killed.

mod case;
mod cases;
mod client;
mod interrupt;
mod judge;
mod place;
mod run;
mod server;
mod table;

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use plimsoll_peers::sys::{self, child};
use serde_json::json;

use case::{Case, Kind};
use interrupt::Interrupt;
use run::Programs;
use table::Row;

/// Provoke each limit on purpose, and check what plimsoll says of it
///
/// Exits 1 where any verdict is wrong. What cannot be provoked here is skipped, with the reason.
#[derive(Debug, Parser)]
struct Args {
    /// Run each case N times
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only the cases whose name contains NAME; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Only the quick cases, which touch nothing but their own processes, namespaces and groups
    #[arg(long)]
    quick: bool,
    /// List the cases, and run none
    #[arg(long)]
    list: bool,
    /// The command to check [default: `plimsoll` beside this program]
    #[arg(long, value_name = "PATH")]
    plimsoll: Option<PathBuf>,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

/// Why a run has no finding.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The case cannot be provoked here, for this reason.
    Skipped(String),
    /// This program was asked to end.
    Interrupted,
}

impl Halt {
    pub(crate) fn skip(reason: impl Into<String>) -> Self {
        Self::Skipped(reason.into())
    }
}

impl fmt::Display for Halt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skipped(reason) => formatter.write_str(reason),
            Self::Interrupted => formatter.write_str("interrupted"),
        }
    }
}

pub(crate) type Result<T, E = Halt> = std::result::Result<T, E>;

/// Exit codes: a wrong verdict, wrong usage, this machine cannot run it, interrupted.
const WRONG: u8 = 1;
const USAGE: u8 = 2;
const MACHINE: u8 = 3;
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let args = Args::parse();
    let cases: Vec<Case> = cases::all().into_iter().filter(|case| is_asked(&args, case)).collect();
    if args.list {
        println!("{}", table::head());
        for case in &cases {
            println!("{:<28} {:<62} {}", case.name, case.provokes, case.verdict());
        }
        return ExitCode::SUCCESS;
    }
    if cases.is_empty() {
        eprintln!("no such case; --list shows all");
        return ExitCode::from(USAGE);
    }
    ExitCode::from(match prepare(&args) {
        Ok((programs, interrupt)) => check(&args, &cases, &programs, &interrupt),
        Err(error) => {
            eprintln!("{error}");
            MACHINE
        }
    })
}

fn is_asked(args: &Args, case: &Case) -> bool {
    let is_named = args.only.is_empty() || args.only.iter().any(|name| case.name.contains(name));
    is_named && (!args.quick || case.kind == Kind::Quick)
}

/// Finds the programs, and gets ready to be interrupted.
fn prepare(args: &Args) -> Result<(Programs, Interrupt), Box<dyn std::error::Error>> {
    let own = std::env::current_exe()?;
    let folder = own.parent().ok_or("this program is in no folder")?;
    let plimsoll = args.plimsoll.clone().unwrap_or_else(|| folder.join("plimsoll"));
    let faulty = folder.join("faulty");
    for program in [&plimsoll, &faulty] {
        if !program.exists() {
            return Err(format!("{} is not there: build it first", program.display()).into());
        }
    }
    sys::raise_descriptor_limit()?;
    Ok((Programs { plimsoll, faulty }, Interrupt::watch()?))
}

/// Runs the cases, prints what they showed, and returns the exit code.
fn check(args: &Args, cases: &[Case], programs: &Programs, interrupt: &Interrupt) -> u8 {
    if !args.json {
        println!("{}", table::head());
    }
    let mut rows = Vec::new();
    for case in cases {
        let Some(row) = row(case, args.runs, programs, interrupt) else { break };
        if !args.json {
            print!("{}", row.text());
        }
        rows.push(row);
    }
    if args.json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        println!("{}", json!({ "partial": rows.len() < cases.len(), "cases": rows }));
    } else {
        println!("{}", table::sum(&rows));
    }
    if interrupt.has_come() {
        return INTERRUPTED;
    }
    if rows.iter().any(|row| row.wrong() > 0) { WRONG } else { 0 }
}

/// Runs a case as often as asked; `None` where that was interrupted.
fn row(case: &Case, runs: u32, programs: &Programs, interrupt: &Interrupt) -> Option<Row> {
    let mut row = Row { case: *case, findings: Vec::new(), skipped: None };
    // Two of these programs at once would restore each other's limits.
    let _alone = case.is_machine_wide().then(alone);
    for _ in 0..runs {
        match run::once(case, programs, interrupt) {
            Ok(finding) => row.findings.push(finding),
            Err(Halt::Skipped(reason)) => {
                row.skipped = Some(reason);
                break;
            }
            Err(Halt::Interrupted) => return None,
        }
    }
    Some(row)
}

/// Waits until no other process of this program changes a limit of the machine.
fn alone() -> Option<File> {
    let file = File::create(std::env::temp_dir().join("plimsoll-truth.lock")).ok()?;
    child::lock(&file).ok()?;
    Some(file)
}
