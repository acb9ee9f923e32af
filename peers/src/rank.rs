//! Ranks servers by the CPU time that a message (or a connection's short
//! life) costs them.
//!
//! A machine has fast and slow phases, so one program after another cannot be
//! compared. All servers are up at once, each pinned to the same CPU, with its
//! connections open; in a *sweep* each is loaded for one short *slice* while
//! the others idle, in an order shuffled anew; and a server's cost is divided
//! by the baseline's *of the same sweep*. What is reported are medians and
//! quartiles of these ratios. A slice in which other processes took more than
//! a set share of the CPUs in use is dropped, counted, and tried again a few
//! times.
//!
//! The load of a slice is a closed loop of echoes, connections that come and go
//! (`--churn`), or an open loop at a steady rate (`--rate`). A slice in which
//! the generator did not keep the rate is dropped like a disturbed one, and the
//! table says so.
//!
//! The time is the kernel's own account of the server's threads, in
//! nanoseconds; work that it does in soft interrupts on the server's behalf
//! while another thread runs is not in it.

mod churn;
mod clients;
mod echo;
mod paced;
mod print;
mod schedule;
mod servers;
mod table;
mod usage;

use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;

use crate::sys;
use servers::Server;
use usage::Watch;

pub use servers::Spec;
pub use table::{Dropped, Ranking, Ratios, Row, Slice};

/// How long a server gets to go back to sleep before its time is read.
const SETTLE: Duration = Duration::from_micros(500);

/// Percentage of the messages of a slice that may be late before it is no longer the load that was
/// asked for.
const LATE_PERCENT_MAX: f64 = 1.0;

/// What to compare, and how.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// A server: NAME=COMMAND with {listen} for its address, or a built-in
    /// peer (epoll, ring, tokio; when built: mio, monoio, compio, go); may be
    /// repeated
    #[arg(long = "server", value_name = "SPEC", required = true)]
    pub servers: Vec<Spec>,

    /// The server that the others are divided by
    #[arg(long, value_name = "NAME", default_value = "epoll")]
    pub baseline: String,

    /// Another server to divide all by, in a table of its own; may be repeated
    #[arg(long, value_name = "NAME")]
    pub against: Vec<String>,

    /// The load.
    #[command(flatten)]
    pub scenario: Scenario,

    /// Sweeps over all servers, after one that is not counted
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub sweeps: u32,

    /// Length of a slice in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 150,
          value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub slice: u64,

    /// Drop slices in which other processes ran for more than this part of the time
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    pub foreign: f64,

    /// Try a dropped slice again so many times within its sweep
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub retries: u32,

    /// Fixes the order within the sweeps
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// CPU of the servers (default: the last one allowed)
    #[arg(long, value_name = "N")]
    pub server_cpu: Option<usize>,

    /// Write every slice to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// The load that every server gets in its slices.
#[derive(Clone, Debug, Args)]
pub struct Scenario {
    /// Connections to each server; with --churn, cycles at the same time
    #[arg(long, default_value_t = 50, value_parser = parse_count)]
    pub connections: usize,

    /// Bytes of a message
    #[arg(long, default_value_t = 64, value_parser = parse_count)]
    pub size: usize,

    /// Messages outstanding on each connection
    #[arg(long, default_value_t = 1, value_parser = parse_count)]
    pub depth: usize,

    /// Send so many messages per second over all connections, whether or not
    /// replies have come, instead of one for each reply
    #[arg(long, value_name = "N", conflicts_with_all = ["depth", "churn"],
          value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub rate: Option<u64>,

    /// Where the generator runs
    #[arg(long, value_enum, default_value_t = Placement::OneCore)]
    pub placement: Placement,

    /// Connect, echo once, close, instead of echoes on open connections
    #[arg(long, value_enum, value_name = "WHO CLOSES")]
    pub churn: Option<Closes>,
}

impl Scenario {
    /// A generator on a CPU of its own must spin: waking it would be charged
    /// to the server.
    fn spins(&self) -> bool {
        self.placement == Placement::TwoCores
    }
}

/// Where the load generator runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Placement {
    /// On the server's CPU, sleeping while there is nothing to do: compares code
    OneCore,
    /// On another CPU, spinning: what a user sees, cache traffic included
    TwoCores,
}

/// Who ends a connection of a churn cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Closes {
    /// The client, by a RST
    Reset,
    /// The client, by a FIN
    Client,
    /// The server, when it has echoed one message (built-in peers are told to)
    Server,
}

/// Why there is no ranking.
#[derive(Debug)]
#[non_exhaustive]
pub enum Failure {
    /// The flags do not fit together. Exit code 2.
    Usage(String),
    /// This machine lacks something. Exit code 3.
    Machine(String),
    /// A server did not start, failed, or stopped answering. Exit code 4.
    Server(String),
    /// A server sent back something else than it received. Exit code 1.
    Wrong(String),
}

impl Failure {
    /// The exit code of a process that fails for this reason.
    pub fn code(&self) -> u8 {
        match self {
            Self::Wrong(_) => 1,
            Self::Usage(_) => 2,
            Self::Machine(_) => 3,
            Self::Server(_) => 4,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(why) | Self::Machine(why) | Self::Server(why) | Self::Wrong(why) => {
                f.write_str(why)
            }
        }
    }
}

impl std::error::Error for Failure {}

/// The work of one slice.
#[derive(Clone, Debug)]
struct Work {
    /// Messages echoed, or cycles completed.
    units: u64,
    elapsed: Duration,
    /// Of an open loop only.
    pace: Option<Pace>,
}

/// How an open loop went.
#[derive(Clone, Debug)]
struct Pace {
    /// Messages that the generator sent late ([`schedule::Schedule::late_ns`]).
    late: u64,
    /// From when a message was due to when it had come back, in nanoseconds.
    latency: Histogram<u64>,
}

/// A load that can be put on one server.
trait Load {
    /// Loads the server for about `duration`, waits for the last reply, and
    /// says what was done.
    fn slice(&mut self, duration: Duration) -> Result<Work, Failure>;
}

/// Starts all servers, runs all sweeps, ends the servers.
///
/// Must be called from the main thread, or at least one that lives on: the
/// servers are told to die with the thread that started them.
///
/// # Errors
/// A [`Failure`]; the servers are ended in that case too.
pub fn run(options: &Options) -> Result<Ranking, Failure> {
    let (server_cpu, client_cpu) = prepare(options)?;
    let scenario = &options.scenario;
    // Before the threads that read what servers print are started: they are not to run on the
    // servers' CPU either.
    sys::pin(client_cpu)
        .map_err(|error| Failure::Machine(format!("cannot run on CPU {client_cpu}: {error}")))?;
    let extra = ["--close-after".to_owned(), scenario.size.to_string()];
    let mut rivals = Vec::new();
    for spec in &options.servers {
        let told = spec.built_in && scenario.churn == Some(Closes::Server);
        let mut server = Server::start(spec, if told { &extra } else { &[] }, server_cpu)?;
        let load = open(&server, scenario).map_err(|failure| server.explain(failure))?;
        rivals.push((server, load));
    }
    // The servers have been started with the kernel's default.
    sys::set_timer_slack(1)
        .map_err(|error| Failure::Machine(format!("cannot set the timer slack: {error}")))?;
    let watch = Watch::new(scenario, server_cpu, client_cpu)?;
    let mut ranking = Ranking::new(options);
    let mut order: Vec<usize> = (0..rivals.len()).collect();
    let mut chance = options.seed;
    // The first sweep warms caches and connections and is not counted.
    for sweep in 0..=options.sweeps {
        shuffle(&mut order, &mut chance);
        for &index in &order {
            let (server, load) = &mut rivals[index];
            for _ in 0..=options.retries {
                let (slice, pace) = measure(&watch, server, load.as_mut(), options, sweep)
                    .map_err(|failure| server.explain(failure))?;
                let kept = slice.dropped.is_none();
                if sweep > 0 {
                    ranking.add(index, slice, pace.as_ref().map(|pace| &pace.latency));
                }
                if kept || sweep == 0 {
                    break;
                }
            }
        }
    }
    Ok(ranking)
}

fn open(server: &Server, scenario: &Scenario) -> Result<Box<dyn Load>, Failure> {
    Ok(match (scenario.churn, scenario.rate) {
        (Some(closes), _) => Box::new(churn::ChurnLoad::new(server, scenario, closes)?),
        (None, Some(rate)) => Box::new(paced::PacedLoad::open(server, scenario, rate)?),
        (None, None) => Box::new(echo::EchoLoad::open(server, scenario)?),
    })
}

/// Checks the options against each other and the machine, raises the limit of
/// descriptors; returns the CPUs of servers and generator.
fn prepare(options: &Options) -> Result<(usize, usize), Failure> {
    let names: Vec<_> = options.servers.iter().map(|spec| &spec.name).collect();
    let divisors = [&options.baseline].into_iter().chain(&options.against);
    if let Some(unknown) = divisors.into_iter().find(|name| !names.contains(name)) {
        return Err(Failure::Usage(format!(
            "the baseline {unknown:?} is none of the servers; add --server or choose another \
             --baseline or --against"
        )));
    }
    if (1..names.len()).any(|at| names[..at].contains(&names[at])) {
        return Err(Failure::Usage("two servers have the same name".into()));
    }
    if let Some(rate) = options.scenario.rate.filter(|rate| rate * options.slice < 1000) {
        return Err(Failure::Usage(format!(
            "a slice of {} ms is shorter than the time between two messages at {rate}/s; use a \
             longer --slice",
            options.slice
        )));
    }
    let machine = |error: std::io::Error| Failure::Machine(error.to_string());
    sys::raise_descriptor_limit().map_err(machine)?;
    let limit = sys::descriptor_limit().map_err(machine)?;
    let needed = (options.servers.len() * options.scenario.connections) as u64 + 100;
    if needed > limit {
        return Err(Failure::Machine(format!(
            "{needed} descriptors are needed, {limit} are allowed: fewer --connections, or a \
             higher `ulimit -n`"
        )));
    }
    let cpus = sys::allowed_cpus().map_err(machine)?;
    let server_cpu = options.server_cpu.or(cpus.last().copied()).unwrap_or(0);
    let client_cpu = match options.scenario.placement {
        Placement::OneCore => Some(server_cpu),
        Placement::TwoCores => cpus.iter().copied().find(|&cpu| cpu != server_cpu),
    };
    let client_cpu = client_cpu.ok_or_else(|| {
        Failure::Machine("--placement two-cores needs two CPUs, and one is allowed".into())
    })?;
    Ok((server_cpu, client_cpu))
}

/// One slice of one server.
fn measure(
    watch: &Watch,
    server: &Server,
    load: &mut dyn Load,
    options: &Options,
    sweep: u32,
) -> Result<(Slice, Option<Pace>), Failure> {
    // Sleeping lets the kernel bring our own account up to date as well.
    thread::sleep(SETTLE);
    let before = watch.read(server.pid())?;
    let work = load.slice(Duration::from_millis(options.slice))?;
    thread::sleep(SETTLE);
    let spent = watch.spent(before, watch.read(server.pid())?, work.elapsed);
    let seconds = work.elapsed.as_secs_f64();
    let foreign_percent = spent.foreign.map(|foreign| foreign as f64 / 1e9 / seconds * 100.0);
    let units = work.units.max(1) as f64;
    let late_percent = work.pace.as_ref().map(|pace| pace.late as f64 / units * 100.0);
    // A hypervisor that takes the CPU away may swallow a short slice whole.
    let disturbed = foreign_percent.is_some_and(|percent| percent > options.foreign);
    let dropped = if disturbed || spent.server == 0 {
        Some(Dropped::Disturbed)
    } else if late_percent.is_some_and(|percent| percent > LATE_PERCENT_MAX) {
        Some(Dropped::Late)
    } else {
        None
    };
    let latency = |quantile| {
        work.pace.as_ref().map(|pace| pace.latency.value_at_quantile(quantile) as f64 / 1000.0)
    };
    let slice = Slice {
        sweep,
        units: work.units,
        seconds,
        server_ns: spent.server as f64 / units,
        soft_ns: spent.soft as f64 / units,
        foreign_percent,
        late_percent,
        p50_us: latency(0.5),
        p99_us: latency(0.99),
        dropped,
    };
    Ok((slice, work.pace))
}

/// Fisher–Yates.
fn shuffle(order: &mut [usize], chance: &mut u64) {
    for last in (1..order.len()).rev() {
        order.swap(last, (splitmix(chance) % (last as u64 + 1)) as usize);
    }
}

/// One step of splitmix64.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1_048_576) => Ok(count),
        _ => Err("expected a number from 1 to 1048576".into()),
    }
}
