//! Verdicts: what stopped an experiment, from what was counted and seen.
//!
//! An errno says that something is short, not what: `EADDRNOTAVAIL` is a port range that is used up or
//! an address that is not there; a connect that times out is a full queue, a full connection tracking
//! table or a lost packet. So a verdict is made of counters that were read before and after, and says
//! them.
//!
//! Everything here is pure: [`Snapshot`](crate::observe::Snapshot)s and the experiment's facts go in,
//! a [`Stop`] comes out. Nothing reads the kernel or a clock, and every number in the evidence comes
//! from the arguments. So each verdict is tested on invented machines, those included that nobody can
//! build for a test.

pub mod backlog;
pub mod capacity;
pub mod cost;
pub(crate) mod load;
pub mod machine;
pub mod server;

mod quote;

use std::collections::BTreeMap;

pub use quote::quote;

use crate::results::{Side, StoppedBy};

/// A verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// What it was.
    pub by: StoppedBy,
    /// On which side; `None` where nothing stopped it (what was asked for was reached, or it was
    /// interrupted), and where nothing tells.
    pub side: Option<Side>,
    /// The sentence with the counters that prove it.
    pub evidence: String,
}

impl Stop {
    /// A verdict.
    pub fn new(by: StoppedBy, side: impl Into<Option<Side>>, evidence: impl Into<String>) -> Self {
        Self { by, side: side.into(), evidence: evidence.into() }
    }

    /// Adds to the evidence, as it is.
    pub fn add(&mut self, more: impl AsRef<str>) {
        self.evidence.push_str(more.as_ref());
    }
}

/// A count in words, `unknown` where it is not known.
pub fn words(count: Option<u64>) -> String {
    count.map_or_else(|| "unknown".to_owned(), |count| count.to_string())
}

/// Errors by name, in words.
pub fn named(errors: &BTreeMap<String, u64>) -> String {
    if errors.is_empty() {
        return "no error".to_owned();
    }
    let all: Vec<String> = errors.iter().map(|(name, count)| format!("{name} × {count}")).collect();
    all.join(", ")
}

/// What share of the whole a part is, in percent.
fn share(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}
