//! The result of `load`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Interleaved, LoadRepeat, LoadTarget, Side, Spread, StoppedBy};

/// Latencies of all messages that were due, in µs: from the moment at which a message was to be sent
/// to the last byte of its reply. A lost message stands there with the time for which it was waited.
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

/// Something that the server said where another reply was expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnexpectedReply {
    /// Its first 200 bytes, with C escapes for what cannot be printed.
    pub text: String,
    /// How often.
    pub count: u64,
}

/// What of the replies was compared with what was expected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verified {
    /// Every byte.
    #[default]
    EveryByte,
    /// The first bytes of each reply, and where it ends.
    Beginning,
    /// The status of each HTTP reply, and where it ends.
    Status,
}

/// Result of `load`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Load {
    /// Connections asked for.
    pub asked: u64,
    /// Connections that were open when the measured time began.
    pub established: u64,
    /// Messages that were due: in an open loop rate × measured time, whatever became of the
    /// connections; in a closed loop those that were sent. `answered` + `late` + `lost`.
    #[serde(default)]
    pub due: u64,
    /// Messages whose reply was whole by the end of the measured time, however slow it was.
    #[serde(default)]
    pub answered: u64,
    /// Messages whose reply was whole after it, within the time limit.
    #[serde(default)]
    pub late: u64,
    /// Messages that had no reply by then.
    #[serde(default)]
    pub lost: u64,
    /// The same as `answered`.
    pub messages: u64,
    /// Their rate.
    pub messages_per_second: f64,
    /// Bytes of replies per second: the same as `bytes_received_per_second`.
    pub bytes_per_second: f64,
    /// Bytes of answered messages' requests, per second.
    #[serde(default)]
    pub bytes_sent_per_second: f64,
    /// Bytes of answered messages' replies, per second.
    #[serde(default)]
    pub bytes_received_per_second: f64,
    /// Bytes of answered messages' replies.
    pub bytes: u64,
    /// What of the replies was compared.
    #[serde(default)]
    pub verified: Verified,
    /// Echoed bytes that were not those that were sent.
    pub corrupt: u64,
    /// Errors by name.
    pub errors: BTreeMap<String, u64>,
    /// What the server said where another reply was expected; counted in `errors` as
    /// `unexpected_reply`.
    #[serde(default)]
    pub unexpected_replies: Vec<UnexpectedReply>,
    /// Connections made anew in place of one that ended after whole replies.
    #[serde(default)]
    pub reconnects: u64,
    /// Latencies; `None` when no message was due.
    pub latency_us: Option<Latency>,
    /// Processor time of the server per message; `None` when its process is not known.
    pub server_cpu_us_per_message: Option<f64>,
    /// Processor time of the client's threads per message; `None` when no message was answered.
    #[serde(default)]
    pub client_cpu_us_per_message: Option<f64>,
    /// The share of one core that the server's busiest thread used; `None` when that is not known.
    #[serde(default)]
    pub server_core_share: Option<f64>,
    /// The share of one core that the client's busiest thread used; `None` where it never sleeps.
    #[serde(default)]
    pub client_core_share: Option<f64>,
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
    /// The time that was to be measured.
    #[serde(default)]
    pub duration_asked: f64,
    /// Whether all of it was measured and no message was lost.
    #[serde(default)]
    pub complete: bool,
    /// What held the load back; `limit` in an open loop that kept its rate. `None` in results of
    /// earlier versions.
    #[serde(default)]
    pub stopped_by: Option<StoppedBy>,
    /// On which side.
    #[serde(default)]
    pub stopped_side: Option<Side>,
    /// The sentence with the figures that prove it.
    #[serde(default)]
    pub evidence: String,
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
