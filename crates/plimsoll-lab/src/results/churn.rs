//! The result of `churn`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
