//! What experiments return, and what the command writes as JSON.
//!
//! The names here are a contract: other tools read them. Adding a field is
//! free, renaming one is not. Sizes are in bytes and times in seconds unless
//! the name says otherwise (`_us`, `_ms`). What could not be known is `None`
//! (`null`), never a guess.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::without_load::{Check, Doctor, Explain, ExplainListener, Pinned, Plan, PlanLimit};

mod without_load;

/// The `schema` field of every document.
pub const SCHEMA: &str = "plimsoll/1";

/// One document: what a command prints with `--json` and writes with `--output`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Document<T> {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The command's name: `backlog`, `capacity`, …
    pub command: String,
    /// The version of the program that wrote it.
    pub version: String,
    /// When it started, RFC 3339 in UTC.
    pub started: String,
    /// How long it took.
    pub seconds: f64,
    /// The machine it ran on.
    pub machine: Machine,
    /// Whether it was interrupted before its end.
    pub partial: bool,
    /// What was found.
    pub result: T,
}

/// The machine a result was measured on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// Operating system: `linux`, `windows`, …
    pub os: String,
    /// Kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// Architecture: `x86_64`, `aarch64`, …
    pub architecture: String,
    /// CPU model.
    pub cpu: Option<String>,
    /// CPUs this process may run on.
    pub cpus: u32,
    /// Memory of the machine.
    pub memory_bytes: Option<u64>,
    /// Bytes in a page.
    pub page_bytes: u64,
    /// Whether it is a virtual machine, where that can be told.
    pub virtualised: Option<bool>,
    /// Limits and settings that bear on the results, by their usual names
    /// (`nofile`, `net.core.somaxconn`, …).
    pub limits: BTreeMap<String, String>,
}

/// What stopped an experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StoppedBy {
    /// The accept queue was full: the kernel dropped SYNs (`ListenOverflows`).
    QueueFull,
    /// Every source address and port was in use.
    Ports,
    /// A limit on descriptors: of a process, or of the machine (`file-max`).
    Descriptors,
    /// Memory of the machine.
    Memory,
    /// The kernel's budget for TCP memory (`net.ipv4.tcp_mem`).
    TcpMem,
    /// A control group's limit.
    Cgroup,
    /// Locked or pinned pages.
    LockedPages,
    /// The connection tracking table.
    Conntrack,
    /// Processor time.
    Cpu,
    /// The server refused (RST to a SYN).
    Refused,
    /// The server's own limit: it accepted and closed, or left clients waiting in its backlog.
    ServerLimit,
    /// No answer in time, and no evidence of anything else.
    Timeout,
    /// What was asked for was reached.
    Limit,
}

impl StoppedBy {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Ports => "ports",
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
            Self::TcpMem => "tcp_mem",
            Self::Cgroup => "cgroup",
            Self::LockedPages => "locked_pages",
            Self::Conntrack => "conntrack",
            Self::Cpu => "cpu",
            Self::Refused => "refused",
            Self::ServerLimit => "server_limit",
            Self::Timeout => "timeout",
            Self::Limit => "limit",
        }
    }
}

/// On which side the limit was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The clients' side (the lab itself).
    Client,
    /// The server's side.
    Server,
    /// Both, as on one machine.
    Both,
}

/// One kind of kernel object that connections use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KernelObject {
    /// The slab cache's name in `/proc/slabinfo`.
    pub name: String,
    /// Objects more than before the experiment.
    pub objects: i64,
    /// Bytes in one object.
    pub object_bytes: u64,
    /// Objects for one connection, one end.
    pub per_connection: f64,
}

/// Result of `backlog`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Backlog {
    /// The largest queue seen in any run.
    pub queued_max: u64,
    /// One run per requested backlog.
    pub runs: Vec<BacklogRun>,
}

/// One listener that never accepts.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct BacklogRun {
    /// The backlog passed to `listen(2)`; `None` for the library's default. On Windows a negative
    /// one is a hint (`SOMAXCONN_HINT`), and 2147483647 is `SOMAXCONN`.
    pub requested: Option<i64>,
    /// What the kernel says it granted; `None` where it does not say (Windows).
    pub granted: Option<u64>,
    /// The largest accept queue seen. On Windows: the most connections seen at the listener's port,
    /// of which none was accepted.
    pub queued: Option<u64>,
    /// Connections the client saw established.
    pub connects_ok: u64,
    /// What ended the run.
    pub stopped_by: StoppedBy,
    /// On which side.
    pub stopped_side: Side,
    /// The sentence with the counters that prove it.
    pub evidence: String,
    /// `ListenOverflows` during the run.
    pub overflows: Option<u64>,
    /// `ListenDrops` during the run.
    pub drops: Option<u64>,
    /// Entries of the queue whose client has gone.
    pub rotten: Option<u64>,
    /// Rate at which connections were made, over the whole run.
    pub connects_per_second: f64,
    /// Kernel memory of one queued connection, the server's end: the pages its objects take, with
    /// the waste of their slabs (`kernel_objects` has the objects alone); `None` below 1,000
    /// connections, where it cannot be told from noise.
    pub kernel_bytes_per_queued: Option<f64>,
    /// Source addresses that were used: the most towards one destination.
    pub source_addresses: u64,
    /// Destination addresses that were connected to.
    #[serde(default)]
    pub destination_addresses: u64,
    /// Failed connects, by error name.
    pub errors: BTreeMap<String, u64>,
    /// The kernel objects behind `kernel_bytes_per_queued`.
    pub kernel_objects: Vec<KernelObject>,
    /// Windows' non-paged pool, the whole machine's, at the end of the run; `null` elsewhere.
    #[serde(default)]
    pub nonpaged_pool_bytes: Option<u64>,
    /// By how much it grew during the run for each queued connection, both ends; `null` below 1,000
    /// connections.
    #[serde(default)]
    pub nonpaged_bytes_per_queued: Option<f64>,
    /// The run over time.
    pub samples: Vec<BacklogSample>,
}

/// A moment of a backlog run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BacklogSample {
    /// Since the run's start.
    pub seconds: f64,
    /// Connections the client saw established.
    pub connects_ok: u64,
    /// The accept queue's depth.
    pub queued: Option<u64>,
    /// Bytes of kernel objects more than at the start.
    pub kernel_bytes: Option<i64>,
}

/// Result of `accept`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Accept {
    /// Rate of a dedicated acceptor that drains a full queue.
    pub accepts_per_second: f64,
    /// The smallest backlog with no drop at this arrival rate, burst, measured service rate and
    /// longest stall; `None` when no arrivals were asked for.
    pub backlog_needed: Option<u64>,
    /// The longest the acceptor was away from the queue.
    pub longest_stall_us: Option<f64>,
    /// Rate at which the clients could connect at most (so that the limit is known to be the
    /// server's).
    pub connects_per_second: Option<f64>,
    /// What was offered: connections per second; `None` for as fast as possible.
    pub rate: Option<f64>,
    /// What was offered at once.
    pub burst: Option<u64>,
    /// Arrivals in the paced part.
    pub arrivals: u64,
    /// The deepest accept queue seen in the paced part.
    pub queued_max: Option<u64>,
    /// `ListenOverflows` during the paced part.
    pub overflows: Option<u64>,
    /// Processor time of the acceptor per accepted connection.
    pub cpu_us_per_accept: Option<f64>,
    /// How each rate was reached: one row per way of accepting.
    pub rates: Vec<AcceptRate>,
    /// What could be said of the longest wait in the queue, over time.
    pub samples: Vec<BacklogSample>,
    /// The backlog of the paced part, as the kernel granted it.
    #[serde(default)]
    pub backlog: Option<u64>,
    /// Whether the same arrivals, again, with a backlog of exactly `backlog_needed`, overflowed
    /// nothing; `None` where that was not tried.
    #[serde(default)]
    pub verified: Option<bool>,
    /// Arrivals of the paced part that were not established when they were given up.
    #[serde(default)]
    pub unanswered: u64,
    /// How the arrivals were spaced, and how `backlog_needed` follows from the figures: a sentence
    /// each.
    #[serde(default)]
    pub reasoning: Vec<String>,
}

/// How fast one way of accepting drains a full queue.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AcceptRate {
    /// The way: `accept4`, `accept4 + close`, …
    pub way: String,
    /// Median over the repetitions.
    pub accepts_per_second: f64,
    /// Each repetition's rate.
    pub repetitions: Vec<f64>,
}

/// Result of `capacity`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Capacity {
    /// Connections asked for; `None` for as many as possible.
    pub asked: Option<u64>,
    /// Connects attempted.
    pub attempted: u64,
    /// Connections the clients saw established.
    pub established: u64,
    /// Of those, how many were still alive at the end (with `--probe`: answered; else: not closed).
    pub alive: u64,
    /// Whether `alive` was proven by an answer on each.
    pub probed: bool,
    /// What ended it.
    pub stopped_by: StoppedBy,
    /// On which side.
    pub stopped_side: Side,
    /// The sentence with the counters that prove it.
    pub evidence: String,
    /// The counter-proof: what happened when the named limit was raised; `None` where it cannot be.
    pub counter_proof: Option<String>,
    /// Growth of the server's resident memory per connection; `None` when the server's process is
    /// not known.
    pub user_bytes_per_connection: Option<f64>,
    /// Kernel memory of one end: active objects × object size.
    pub kernel_bytes_per_connection: Option<f64>,
    /// The objects behind it.
    pub kernel_objects: Vec<KernelObject>,
    /// Growth of Windows' non-paged pool for each connection, both ends where both are here; `null`
    /// elsewhere, and below 1,000 connections.
    #[serde(default)]
    pub nonpaged_bytes_per_connection: Option<f64>,
    /// Connections made per second, over the whole ramp.
    pub connects_per_second: f64,
    /// Failed connects and probes, by error name.
    pub errors: BTreeMap<String, u64>,
    /// Worker processes on the client's side.
    pub workers: u64,
    /// Source addresses that were used.
    pub source_addresses: u64,
    /// The curve.
    pub samples: Vec<CapacitySample>,
}

/// A step of the capacity curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CapacitySample {
    /// Since the start.
    pub seconds: f64,
    /// Connections established.
    pub connections: u64,
    /// The server's resident memory.
    pub server_rss_bytes: Option<u64>,
    /// Memory the machine has left.
    pub available_bytes: Option<u64>,
    /// Kernel objects more than at the start, bytes by slab name, both ends.
    pub kernel_bytes: BTreeMap<String, i64>,
    /// The server's accept queue.
    pub queued: Option<u64>,
}

/// Latencies of a load, from the intended send to the last byte of the reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Largest.
    pub max: f64,
}

/// Result of `load`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Load {
    /// Connections asked for.
    pub asked: u64,
    /// Connections established.
    pub established: u64,
    /// Messages echoed (or replies that matched) in the measured time.
    pub messages: u64,
    /// Their rate.
    pub messages_per_second: f64,
    /// Bytes sent, and echoed, per second (one direction).
    pub bytes_per_second: f64,
    /// Bytes verified.
    pub bytes: u64,
    /// Bytes that came back wrong, or replies that did not match.
    pub corrupt: u64,
    /// Errors by name.
    pub errors: BTreeMap<String, u64>,
    /// Latencies; `None` when no message came back.
    pub latency_us: Option<Latency>,
    /// Processor time of the server per message; `None` when its process is not known.
    pub server_cpu_us_per_message: Option<f64>,
    /// `closed` (a new message when the reply is there) or `open` (by the clock, corrected for
    /// coordinated omission).
    pub loop_kind: String,
    /// Messages per second that were intended (open loop).
    pub rate: Option<f64>,
    /// Message sizes: smallest and largest.
    pub size: (u64, u64),
    /// Messages outstanding per connection.
    pub depth: u64,
    /// The measured time.
    pub duration: f64,
    /// The latency distribution: value in µs, and the share of messages at or below it.
    pub distribution: Vec<(f64, f64)>,
    /// Messages per second over time: seconds since the start, rate.
    pub timeline: Vec<(f64, f64)>,
}

/// Result of `churn`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Churn {
    /// One per combination of pool and closing side.
    pub variants: Vec<ChurnVariant>,
    /// What makes the difference between the variants.
    pub explanation: Vec<String>,
}

/// Connect–echo–disconnect, one way.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ChurnVariant {
    /// Who recycles: `on` (the client its sockets, and the embedded server what it can), `server`
    /// (the embedded server alone), `off` (nobody). Against a target: whether the client does.
    pub pool: String,
    /// Who closes first: `client` or `server`; with how: `client-reset`.
    pub closes: String,
    /// Cycles per second, median over the turns.
    pub cycles_per_second: f64,
    /// Each turn's rate.
    pub turns: Vec<f64>,
    /// Processor time of the server per cycle.
    pub server_cpu_us_per_cycle: Option<f64>,
    /// Processor time of the client per cycle.
    pub client_cpu_us_per_cycle: Option<f64>,
    /// Cycles done in all turns.
    pub cycles: u64,
    /// Errors by name.
    pub errors: BTreeMap<String, u64>,
    /// Most TIME_WAIT sockets seen on the server's end.
    pub time_wait_server: Option<u64>,
    /// Most TIME_WAIT sockets seen on the client's end.
    pub time_wait_client: Option<u64>,
    /// Sockets that the client took from its pool.
    pub pool_hits: u64,
    /// Sockets that the client had to make for want of one in its pool.
    pub pool_misses: u64,
    /// Median time of each part of a cycle: `connect`, `echo`, `disconnect`.
    pub parts_us: BTreeMap<String, f64>,
    /// TIME_WAIT over time: seconds, server's end, client's end.
    pub time_wait_samples: Vec<(f64, u64, u64)>,
    /// Mean time of each part in a turn, median over the turns: unlike medians, the means of one turn
    /// add up to the time of its cycles.
    #[serde(default)]
    pub parts_mean_us: BTreeMap<String, f64>,
    /// What it ran against: the target's address, or `embedded`.
    #[serde(default)]
    pub server: String,
    /// Bytes of each message.
    #[serde(default)]
    pub size: u64,
    /// What the server took ready from the pools that `serve --pool` governs, as it says itself:
    /// buffers, and sockets where it keeps them. `null` for a target.
    #[serde(default)]
    pub server_pool_hits: Option<u64>,
    /// What it had to make or to fault in anew instead. `null` for a target.
    #[serde(default)]
    pub server_pool_misses: Option<u64>,
    /// Each of the server's figures of that kind by its name at `serve --metrics`, over this
    /// variant's turns: `block_hits`, `slot_hits`, `slot_misses`, … `null` for a target.
    #[serde(default)]
    pub server_pools: Option<BTreeMap<String, u64>>,
}

/// Result of `survey`: one object per experiment, and the summary.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Survey {
    /// What was surveyed: `embedded`, or the target's address.
    pub target: String,
    /// The load line: what this machine can take.
    pub load_line: LoadLine,
    /// One sentence per finding, most important first.
    pub summary: Vec<String>,
    /// What breaks first, by experiment, with the command that raises it.
    pub breaks_first: Vec<Finding>,
    /// `doctor`'s result.
    pub doctor: Option<Doctor>,
    /// `backlog`'s result.
    pub backlog: Option<Backlog>,
    /// `accept`'s result.
    pub accept: Option<Accept>,
    /// `capacity`'s result.
    pub capacity: Option<Capacity>,
    /// `load`'s result: the one at the number of connections with the highest rate.
    pub load: Option<Load>,
    /// `load` at several numbers of connections.
    pub load_curve: Vec<Load>,
    /// `churn`'s result.
    pub churn: Option<Churn>,
    /// `plan`'s result, for ten times the connections held.
    pub plan: Option<Plan>,
    /// Experiments that were not run, and why.
    pub skipped: BTreeMap<String, String>,
}

/// What a machine and a server can take, in one line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadLine {
    /// Connections held at once.
    pub connections: Option<u64>,
    /// Messages per second.
    pub messages_per_second: Option<f64>,
    /// Accepts per second.
    pub accepts_per_second: Option<f64>,
    /// Connections queued unaccepted.
    pub queued: Option<u64>,
    /// User memory per connection.
    pub user_bytes_per_connection: Option<f64>,
    /// Kernel memory per connection, one end.
    pub kernel_bytes_per_connection: Option<f64>,
}

/// What broke first in one experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// The experiment's name.
    pub experiment: String,
    /// What stopped it; `None` where the experiment has no break.
    pub stopped_by: Option<StoppedBy>,
    /// The sentence with the counters that prove it.
    pub evidence: String,
    /// The command or setting that raises the limit.
    pub fix: Option<String>,
}
