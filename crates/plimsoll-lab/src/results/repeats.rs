//! Repeats of a load, and what they say of several targets.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Latency, Load};

/// One repeat of a load: the figures of one target in one part of the measured time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadRepeat {
    /// Messages answered.
    pub messages: u64,
    /// The measured time, in seconds.
    pub duration: f64,
    /// Their rate.
    pub messages_per_second: f64,
    /// Latencies; `None` when no message came back.
    pub latency_us: Option<Latency>,
    /// Processor time of the server per message; `None` when its process is not known.
    pub server_cpu_us_per_message: Option<f64>,
    /// Processor time of the client per message; `None` where it was not measured.
    pub client_cpu_us_per_message: Option<f64>,
}

/// One quantity over the repeats of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spread {
    /// The field of a repeat: `messages_per_second`, `latency_us.p99`, …
    pub name: String,
    /// How many repeats have it.
    pub repeats: u32,
    /// The lower quartile.
    pub low: f64,
    /// The median.
    pub median: f64,
    /// The upper quartile.
    pub high: f64,
}

/// One of several targets that were loaded in turns.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct LoadTarget {
    /// Its address.
    pub address: String,
    /// Its process, where that is known.
    pub server_pid: Option<u32>,
    /// What was measured on it.
    pub load: Load,
}

/// Targets that were loaded in turns within one run, each against the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Interleaved {
    /// The first target: the others are divided by it.
    pub baseline: String,
    /// Repeats that were measured on all targets. In each, every target has two slices: there and
    /// back, A B B A.
    pub repeats: u32,
    /// The length of a slice, in seconds, as it was asked for.
    pub slice_seconds: f64,
    /// Of each repeat, the targets' places in the list in the order in which they were loaded first.
    pub orders: Vec<Vec<u32>>,
    /// Of each target, the slices of these repeats in the order in which they were measured, two of
    /// each repeat. Slices at one place were neighbours: their ratios are what is judged.
    pub slices: Vec<Vec<LoadRepeat>>,
    /// The probability that one of `targets` is called changed in any row though it is equal to the
    /// baseline, at most.
    pub level: f64,
    /// The other targets.
    pub targets: Vec<TargetComparison>,
}

/// One target against the baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TargetComparison {
    /// The target's address.
    pub address: String,
    /// One per quantity.
    pub rows: Vec<Row>,
}

/// One number in two results, or of two targets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Row {
    /// Where it is: `churn[pool=on,closes=client].cycles_per_second`.
    pub path: String,
    /// In the first result, over its whole measured time.
    pub first: f64,
    /// In the second.
    pub second: f64,
    /// Second over first; `None` where the first is 0. Where there are repeats it is estimated from
    /// them (Hodges and Lehmann), and lies in `interval`.
    pub ratio: Option<f64>,
    /// The wider of the two quartile ranges of the repeats, relative to its median; `None` where it
    /// was measured once.
    pub spread: Option<f64>,
    /// Whether they differ by more than chance explains; `None` where that cannot be judged.
    pub changed: Option<bool>,
    /// The same in a word.
    pub verdict: RowVerdict,
    /// Why it is not judged.
    pub reason: Option<String>,
    /// The ratios that the repeats do not rule out, from the smallest to the largest.
    pub interval: Option<(f64, f64)>,
    /// The smallest difference that could have been seen, as a share of the first: half of the
    /// interval's width. 0.03 is 3 %.
    pub could_have_seen: Option<f64>,
    /// How probable such a difference is by chance alone, corrected for the number of judged rows.
    pub p_value: Option<f64>,
    /// Repeats in the first that have it; where targets were loaded in turns, their slices.
    pub first_repeats: u32,
    /// Repeats in the second.
    pub second_repeats: u32,
}

/// What repeats say of a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RowVerdict {
    /// The two differ by more than chance explains.
    Changed,
    /// Chance explains the difference.
    NotDistinguishable,
    /// Nothing tells: it was measured once, or too few times.
    #[default]
    NotJudged,
}
