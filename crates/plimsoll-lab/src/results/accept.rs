//! The result of `accept`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::BacklogSample;

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
