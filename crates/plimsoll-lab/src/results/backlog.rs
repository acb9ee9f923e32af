//! The result of `backlog`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KernelObject, Side, StoppedBy};

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
    /// On which side; `None` where nothing stopped it (what was asked for was reached, or it was
    /// interrupted), and where nothing tells.
    pub stopped_side: Option<Side>,
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
