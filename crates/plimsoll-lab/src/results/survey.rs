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
    /// What gives way first, at what load, and what raises it: one sentence.
    #[serde(default)]
    pub headline: String,
    /// What could be read of the target; `None` for the embedded engine.
    #[serde(default)]
    pub server: Option<SurveyedServer>,
    /// How the replies were compared.
    #[serde(default)]
    pub compared: Option<Compared>,
    /// The experiment that was interrupted; `None` where none was.
    #[serde(default)]
    pub interrupted: Option<String>,
    /// The load line: what this machine can take. What was not measured is `None`, and `skipped` says
    /// why.
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
    /// Experiments that were not run, and figures that were not measured, each with the reason.
    pub skipped: BTreeMap<String, String>,
}

/// How replies were compared with what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compared {
    /// An echo: every byte with the byte that was sent.
    EveryByte,
    /// The whole reply with the text that was expected.
    WholeReply,
    /// The beginning of the reply with the text that was expected.
    Beginning,
    /// The status of the HTTP reply, which had to be one of success.
    Status,
    /// The end of the reply was found, and nothing compared.
    Nothing,
}

/// A running server, as far as it can be seen from outside. Everything but its address is known only
/// where it runs on this machine, and mostly only to root or to its own user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SurveyedServer {
    /// Where it was connected to.
    pub address: String,
    /// What it says of itself: the first line that it sends unasked, or the `Server` header of its
    /// reply.
    pub says: Option<String>,
    /// Its process, the one that all others of it descend from.
    pub pid: Option<u32>,
    /// The name of that process.
    pub process: Option<String>,
    /// Its processes.
    pub processes: Option<u64>,
    /// Listeners that share the address (`SO_REUSEPORT`).
    pub listeners: Option<u64>,
    /// The backlog that the kernel granted to its listeners, in all: the argument that the server gave
    /// to listen(2), or `net.core.somaxconn`, whichever is smaller.
    pub granted: Option<u64>,
    /// Connections that waited to be accepted before the survey began.
    pub depth: Option<u64>,
    /// Descriptors that the process with the least room had open before the survey began.
    pub descriptors: Option<u64>,
    /// That process' limit on them.
    pub descriptors_limit: Option<u64>,
    /// Resident memory of all its processes before the survey began.
    pub memory_bytes: Option<u64>,
    /// The memory limit of its control group; `None` also where there is none.
    pub group_memory_limit_bytes: Option<u64>,
    /// The limit on processes and threads of its control group; `None` also where there is none.
    pub group_pids_limit: Option<u64>,
    /// Whether it may run on the same processors as the survey's clients.
    pub shares_processors: Option<bool>,
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
