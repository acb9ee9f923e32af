//! The result of `load`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Interleaved, LoadRepeat, LoadTarget, Spread};

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
    /// The parts in which it was measured (`--repeat`): only their spread tells how far a figure
    /// can be trusted. Empty where it was measured in one piece.
    #[serde(default)]
    pub repeats: Vec<LoadRepeat>,
    /// Median and quartiles over the repeats.
    #[serde(default)]
    pub spread: Vec<Spread>,
    /// All targets, where several were loaded in turns; what stands beside this list is the first's.
    #[serde(default)]
    pub targets: Vec<LoadTarget>,
    /// The targets compared with each other, where there are several.
    #[serde(default)]
    pub comparison: Option<Interleaved>,
}
