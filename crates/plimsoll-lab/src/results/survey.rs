//! The result of `survey`: one object per experiment, and the summary.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Accept, Backlog, Capacity, Churn, Doctor, Load, Plan, StoppedBy};

/// Result of `survey`: one object per experiment, and the summary.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Survey {
    /// What was surveyed: `embedded`, or the target's address.
    pub target: String,
    /// The load line: what this machine can take.
    pub load_line: LoadLine,
    /// One sentence per finding, most important first.
    pub summary: Vec<String>,
    /// What breaks first, by experiment, with the command that raises it.
    pub breaks_first: Vec<Finding>,
    /// `doctor`'s result.
    pub doctor: Option<Doctor>,
    /// `backlog`'s result.
    pub backlog: Option<Backlog>,
    /// `accept`'s result.
    pub accept: Option<Accept>,
    /// `capacity`'s result.
    pub capacity: Option<Capacity>,
    /// `load`'s result: the one at the number of connections with the highest rate.
    pub load: Option<Load>,
    /// `load` at several numbers of connections.
    pub load_curve: Vec<Load>,
    /// `churn`'s result.
    pub churn: Option<Churn>,
    /// `plan`'s result, for ten times the connections held.
    pub plan: Option<Plan>,
    /// Experiments that were not run, and why.
    pub skipped: BTreeMap<String, String>,
}

/// What a machine and a server can take, in one line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadLine {
    /// Connections held at once.
    pub connections: Option<u64>,
    /// Messages per second.
    pub messages_per_second: Option<f64>,
    /// Accepts per second.
    pub accepts_per_second: Option<f64>,
    /// Connections queued unaccepted.
    pub queued: Option<u64>,
    /// User memory per connection.
    pub user_bytes_per_connection: Option<f64>,
    /// Kernel memory per connection, one end.
    pub kernel_bytes_per_connection: Option<f64>,
}

/// What broke first in one experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// The experiment's name.
    pub experiment: String,
    /// What stopped it; `None` where the experiment has no break.
    pub stopped_by: Option<StoppedBy>,
    /// The sentence with the counters that prove it.
    pub evidence: String,
    /// The command or setting that raises the limit.
    pub fix: Option<String>,
}
