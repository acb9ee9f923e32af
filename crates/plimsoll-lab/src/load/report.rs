//! From what the client counted to the result.

use super::client::Outcome;
use super::{Options, Pace};
use crate::results::Load;

/// The result of a load.
pub(super) fn load(options: &Options, outcome: &Outcome) -> Load {
    let seconds = outcome.seconds;
    let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let (loop_kind, rate, depth) = match options.pace {
        Pace::Closed { depth } => ("closed", None, u64::from(depth)),
        Pace::Open { rate } => ("open", Some(rate), 1),
    };
    let cpu = outcome.server_cpu.filter(|_| outcome.messages > 0);
    Load {
        asked: u64::from(options.connections),
        established: outcome.established,
        messages: outcome.messages,
        messages_per_second: per_second(outcome.messages),
        bytes_per_second: per_second(outcome.bytes),
        bytes: outcome.bytes,
        corrupt: outcome.corrupt,
        errors: outcome.errors.clone(),
        latency_us: outcome.latencies.summary(),
        server_cpu_us_per_message: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / outcome.messages as f64),
        loop_kind: loop_kind.into(),
        rate,
        size: (u64::from(options.size.0), u64::from(options.size.1)),
        depth,
        duration: seconds,
        distribution: outcome.latencies.distribution(),
        timeline: outcome.timeline.clone(),
    }
}
