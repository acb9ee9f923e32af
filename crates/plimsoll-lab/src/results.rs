//! What experiments return, and what the command writes as JSON.
//!
//! The names here are a contract: other tools read them. Adding a field is
//! free, renaming one is not. Sizes are in bytes and times in seconds unless
//! the name says otherwise (`_us`, `_ms`). What could not be known is `None`
//! (`null`), never a guess.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::accept::{Accept, AcceptRate};
pub use self::advice::{Check, Doctor, Explain, ExplainListener, Pinned, Plan, PlanLimit};
pub use self::backlog::{Backlog, BacklogRun, BacklogSample};
pub use self::capacity::{Capacity, CapacitySample};
pub use self::churn::{Churn, ChurnVariant};
pub use self::load::{Latency, Load, UnexpectedReply, Verified};
pub use self::repeats::{
    Interleaved, LoadRepeat, LoadTarget, Row, RowVerdict, Spread, TargetComparison,
};
pub use self::survey::{Compared, Finding, LoadLine, Survey, SurveyedServer};

pub mod document;
pub mod schema;

mod accept;
mod advice;
mod backlog;
mod capacity;
mod churn;
mod load;
mod repeats;
mod survey;

/// The `schema` field of every document.
pub const SCHEMA: &str = "plimsoll/1";

/// One document: what a command prints with `--json` and writes with `--output`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Document<T> {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The command's name: `backlog`, `capacity`, …
    pub command: String,
    /// The command line as it was given, without the program's name: `plimsoll` with these arguments
    /// runs the same again. What is not UTF-8 is replaced by U+FFFD.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// The server that was measured; `None` for the embedded engine, and for commands that measure
    /// no server.
    #[serde(default)]
    pub target: Option<TargetServer>,
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

/// The running server that a command was pointed at with `--target`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TargetServer {
    /// Its address, as it was connected to: `IP:port`.
    pub address: String,
    /// Its process; `None` where it is not known.
    pub pid: Option<u32>,
    /// What the server says of itself (a banner, a `Server:` header), or else the name of its process;
    /// `None` where neither is known.
    pub name: Option<String>,
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
    /// The memory limit of a control group.
    Cgroup,
    /// The limit on processes and threads: of a control group, of a user, or of the machine.
    Pids,
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
    /// The server ended: it crashed, was killed, or went away.
    ServerEnded,
    /// The server closes connections that say nothing for a while.
    IdleTimeout,
    /// No answer in time, and no evidence of anything else.
    Timeout,
    /// What was asked for was reached.
    Limit,
    /// Ctrl-C, SIGINT or SIGTERM.
    Interrupted,
    /// Something stopped it, and no counter that was read tells what.
    Unknown,
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
            Self::Pids => "pids",
            Self::LockedPages => "locked_pages",
            Self::Conntrack => "conntrack",
            Self::Cpu => "cpu",
            Self::Refused => "refused",
            Self::ServerLimit => "server_limit",
            Self::ServerEnded => "server_ended",
            Self::IdleTimeout => "idle_timeout",
            Self::Timeout => "timeout",
            Self::Limit => "limit",
            Self::Interrupted => "interrupted",
            Self::Unknown => "unknown",
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

impl Side {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Both => "both",
        }
    }
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
