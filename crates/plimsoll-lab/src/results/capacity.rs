//! The result of `capacity`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KernelObject, Side, StoppedBy};

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
    /// On which side; `None` where nothing stopped it (what was asked for was reached, or it was
    /// interrupted), and where nothing tells.
    pub stopped_side: Option<Side>,
    /// The sentence with the counters that prove it.
    pub evidence: String,
    /// The counter-proof: what happened when the named limit was raised; `None` where it cannot be.
    pub counter_proof: Option<String>,
    /// Growth of the server's resident memory per connection; `None` when the server's process is
    /// not known.
    pub user_bytes_per_connection: Option<f64>,
    /// Why `user_bytes_per_connection` is `null`; else `null`.
    #[serde(default)]
    pub user_bytes_reason: Option<String>,
    /// Kernel memory of one end: active objects × object size. `None` where the count of sockets
    /// contradicts it, and where it cannot be read.
    pub kernel_bytes_per_connection: Option<f64>,
    /// Why `kernel_bytes_per_connection` is `null`; else `null`.
    #[serde(default)]
    pub kernel_bytes_reason: Option<String>,
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
    /// Connections that one of them can hold: its limit on descriptors, less what it keeps for itself.
    #[serde(default)]
    pub connections_per_worker: u64,
    /// The server's process, where it was given or found.
    #[serde(default)]
    pub server_pid: Option<u32>,
    /// Descriptors open at the end in the server's process that has least room for more.
    #[serde(default)]
    pub server_descriptors: Option<u64>,
    /// How many that process may open (`RLIMIT_NOFILE`).
    #[serde(default)]
    pub server_descriptors_limit: Option<u64>,
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
