//! Shows whether `plimsoll load --target A --target B --repeat N` tells servers apart rightly.
//!
//! It starts two `peer-epoll` and compares them, many times: equal ones, of which hardly any may be
//! called changed in any row, and pairs of which the second burns some percent more processor time
//! for each message, which is to be found. The extra time is a share of what a message was measured
//! to cost the peer beforehand.

use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use clap::Parser;
use serde_json::Value;

/// Compare equal servers, and a slower one with its equal, and count the right verdicts
#[derive(Parser)]
struct Args {
    /// Comparisons of each kind
    #[arg(long, default_value_t = 20)]
    runs: u32,

    /// Which kinds
    #[arg(long, value_enum, default_value_t = Kinds::Both)]
    kinds: Kinds,

    /// The second server of a slower pair burns so many percent more
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0)]
    more: f64,

    /// Nanoseconds to burn, instead of measuring what a message costs
    #[arg(long, value_name = "NS")]
    burn: Option<u64>,

    /// Repeats of each comparison
    #[arg(long, default_value_t = 10)]
    repeat: u32,

    /// Measured time of each server, as `plimsoll load` takes it
    #[arg(long, default_value = "2s")]
    duration: String,

    /// The seed of the first comparison
    #[arg(long, default_value_t = 1)]
    seed: u32,

    /// The program to test (default: `plimsoll` beside this one)
    #[arg(long)]
    plimsoll: Option<PathBuf>,

    /// More arguments of `plimsoll load`
    #[arg(last = true)]
    load: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kinds {
    Equal,
    Slower,
    Both,
}

/// The row in which a server that burns more must be found.
const CPU: &str = "load.server_cpu_us_per_message";

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(3)
        }
    }
}

/// Whether at most one in twenty of the equal pairs was called changed, and at least nineteen in
/// twenty of the slower ones were found.
fn run(args: &Args) -> io::Result<bool> {
    let mut right = true;
    if args.kinds != Kinds::Slower {
        let calls = compare(args, 0, |rows| rows.iter().any(is_changed))?;
        println!("equal: {calls} of {} called changed in some row", args.runs);
        right &= calls * 20 <= args.runs;
    }
    if args.kinds != Kinds::Equal {
        let burn = match args.burn {
            Some(burn) => burn,
            None => (cost_ns(args)? * args.more / 100.0).round() as u64,
        };
        let found = compare(args, burn, |rows| {
            let more = |row: &Value| row["ratio"].as_f64().is_some_and(|ratio| ratio > 1.0);
            rows.iter().any(|row| row["path"] == CPU && is_changed(row) && more(row))
        })?;
        println!("{burn} ns more: found in {found} of {}", args.runs);
        right &= found * 20 >= args.runs * 19;
    }
    Ok(right)
}

fn is_changed(row: &Value) -> bool {
    row["verdict"] == "changed"
}

/// Compares two peers as often as asked; how often `counts` holds for the rows. Each comparison has
/// servers of its own, since a process can be fast or slow by where its memory lies.
fn compare(args: &Args, burn: u64, counts: impl Fn(&[Value]) -> bool) -> io::Result<u32> {
    let mut counted = 0;
    for number in 0..args.runs {
        let (first, second) = (Peer::start(0)?, Peer::start(burn)?);
        let document = load(args, args.seed + number, &[&first, &second])?;
        let rows = document.pointer("/result/comparison/targets/0/rows");
        let rows = rows.and_then(Value::as_array).ok_or_else(|| wrong("no rows", &document))?;
        counted += u32::from(counts(rows));
        println!("{:>3}  {}", number + 1, rows.iter().map(describe).collect::<Vec<_>>().join("  "));
    }
    Ok(counted)
}

/// `p50 1.012 ±3.1%`, with an exclamation mark where it is called a change.
fn describe(row: &Value) -> String {
    let path = row["path"].as_str().unwrap_or_default();
    let name = path.trim_start_matches("load.").trim_start_matches("latency_us.");
    let name = name.trim_end_matches("_us_per_message").trim_end_matches("_per_second");
    let number = |field: &str| row[field].as_f64();
    let ratio = number("ratio").map_or("?".to_owned(), |ratio| format!("{ratio:.3}"));
    let seen = number("could_have_seen")
        .map_or_else(|| "not judged".to_owned(), |seen| format!("±{:.1}%", seen * 100.0));
    format!("{name} {ratio} {seen}{}", if is_changed(row) { "!" } else { "" })
}

/// What a message costs a peer, in nanoseconds.
fn cost_ns(args: &Args) -> io::Result<f64> {
    let peer = Peer::start(0)?;
    let document = load(args, args.seed, &[&peer])?;
    let cost = document.pointer("/result/server_cpu_us_per_message").and_then(Value::as_f64);
    Ok(cost.ok_or_else(|| wrong("no processor time", &document))? * 1000.0)
}

fn load(args: &Args, seed: u32, peers: &[&Peer]) -> io::Result<Value> {
    let mut command = Command::new(match &args.plimsoll {
        Some(path) => path.clone(),
        None => beside("plimsoll")?,
    });
    command.args(["load", "--json", "--quiet", "--duration", &args.duration]);
    command.args(["--repeat", &args.repeat.to_string(), "--seed", &seed.to_string()]);
    for peer in peers {
        command.args(["--target", &peer.address, "--server-pid", &peer.child.id().to_string()]);
    }
    let output = command.args(&args.load).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("`plimsoll load` ended with {}", output.status)));
    }
    serde_json::from_slice(&output.stdout).map_err(io::Error::other)
}

fn wrong(what: &str, document: &Value) -> io::Error {
    io::Error::other(format!("{what} in {document}"))
}

fn beside(name: &str) -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

/// A running `peer-epoll`; ended when dropped.
struct Peer {
    child: Child,
    address: String,
}

impl Peer {
    fn start(burn: u64) -> io::Result<Self> {
        let mut child = Command::new(beside("peer-epoll")?)
            .args(["--listen", "127.0.0.1:0", "--burn", &burn.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let mut peer = Self { child, address: String::new() };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().strip_prefix("listening ");
        address.unwrap_or_default().clone_into(&mut peer.address);
        Ok(peer)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
