//! What is said without load: `doctor` of a machine, `explain` of a running server, `plan` of one
//! that is to be.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KernelObject, Side};

/// Result of `plan`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// Connections planned for.
    pub connections: u64,
    /// Arrivals per second planned for.
    pub arrivals: Option<f64>,
    /// Burst planned for.
    pub burst: Option<u64>,
    /// Kernel memory of the server's end.
    pub kernel_bytes: u64,
    /// The server's resident memory.
    pub user_bytes: u64,
    /// Descriptors (files) the server's end takes.
    pub descriptors: u64,
    /// Source addresses that clients need on one destination address and port.
    pub source_addresses: u64,
    /// Backlog for the arrivals and the burst; `None` when neither was given.
    pub backlog: Option<u64>,
    /// Whether this machine can hold it as it is set now.
    pub fits: bool,
    /// Each limit against the need.
    pub limits: Vec<PlanLimit>,
    /// Where the costs come from: `measured now`, or the file.
    pub costs_from: String,
}

/// One limit against the plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanLimit {
    /// The limit's name.
    pub name: String,
    /// What `needed` and `available` count: `bytes`, `descriptors`, `files`, `pages`, `entries`,
    /// `addresses` or `connections`.
    #[serde(default)]
    pub unit: String,
    /// The side whose limit it is.
    #[serde(default)]
    pub side: Option<Side>,
    /// What the plan needs of it.
    pub needed: u64,
    /// What there is; `None` where it is not known or unbounded.
    pub available: Option<u64>,
    /// Whether it suffices; `true` where there is no bound.
    pub ok: bool,
    /// The command that raises it, where it does not suffice.
    pub fix: Option<String>,
    /// Which process needs it, and how a server can do without it, where that is not plain.
    #[serde(default)]
    pub note: Option<String>,
}

/// Result of `doctor`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Doctor {
    /// The goal that was checked against.
    pub connections: Option<u64>,
    /// One per limit.
    pub checks: Vec<Check>,
    /// What buffers pin, by how they lie. Measured on Linux where a ring can be had; empty elsewhere.
    #[serde(default)]
    pub pinned: Vec<Pinned>,
    /// Why that is not known; null where it is.
    #[serde(default)]
    pub pinned_reason: Option<String>,
}

/// What the kernel pins for buffers that lie in one way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pinned {
    /// How they lie: `whole_pages`, `own_page` (one at the start of each page), `straddling` (each on
    /// two pages), `packed` (one after the other).
    pub layout: String,
    /// Bytes of each.
    pub buffer_bytes: u64,
    /// How many there were.
    pub buffers: u64,
    /// What the kernel pinned for all of them (`VmPin` of `proc_pid_status(5)`).
    pub pinned_bytes: u64,
    /// Bytes pinned for each byte of a buffer.
    pub amplification: f64,
}

/// One limit of this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// The limit's name, as the system calls it.
    pub name: String,
    /// Its value, as the system prints it; `None` where it cannot be read.
    pub value: Option<String>,
    /// What it allows, in a few words.
    pub allows: String,
    /// Whether it meets the goal; without a goal, whether it is no lower than usual.
    pub ok: bool,
    /// The command that raises it; `None` where nothing need or can be done.
    pub fix: Option<String>,
}

/// Result of `explain`: the invoice of a running server.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Explain {
    /// The process.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Resident memory.
    pub rss_bytes: Option<u64>,
    /// Open descriptors.
    pub descriptors: Option<u64>,
    /// The limit on them.
    pub descriptors_limit: Option<u64>,
    /// Its listeners.
    pub listeners: Vec<ExplainListener>,
    /// Its connections by state.
    pub connections: BTreeMap<String, u64>,
    /// Bytes in the kernel's buffers of its connections: `receive`, `send`, `reserved`, …
    pub buffer_bytes: BTreeMap<String, u64>,
    /// Kernel objects that its connections take, with their bytes.
    pub objects: Vec<KernelObject>,
    /// Kernel memory of its connections; `None` also where it has no TCP sockets at all.
    pub kernel_bytes: Option<u64>,
    /// What it will run out of first, and at how many connections; or that it serves nothing.
    pub first_limit: Option<String>,
    /// Every limit considered, nearest first: name, connections it allows in all.
    pub headroom: Vec<(String, u64)>,
}

/// One listener of a server.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ExplainListener {
    /// Its address.
    pub address: String,
    /// Connections waiting in the accept queue now.
    pub depth: u64,
    /// The backlog that the kernel granted.
    pub limit: u64,
    /// Waiting connections whose client has gone.
    pub rotten: Option<u64>,
}
