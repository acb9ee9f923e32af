//! What is worth saying beside the verdict: why a ramp took so long, and what the clients cannot see.

use std::fmt::Write as _;
use std::time::Duration;

use super::Facts;
use crate::units;
use crate::verdict::{Stop, server};

/// How much of a ramp the server was waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slowness {
    /// Time in which nothing was done but waiting for the server to empty its accept queue.
    pub waited: Duration,
    /// The largest depth seen.
    pub deepest: u64,
    /// The backlog that the kernel granted.
    pub granted: u64,
}

/// Less time than this says nothing about a server.
const LEAST_WAIT: Duration = Duration::from_millis(200);

/// Why the ramp was slow, as the end of a sentence; `None` where it was not: the server was waited for
/// a third of the time, its queue overflowed, or SYNs had to be sent again.
pub(super) fn slow(facts: &Facts<'_>) -> Option<String> {
    let whole = facts.now.since(facts.before);
    let grown = |name| facts.now.grown(facts.before, name).filter(|count| *count > 0);
    let (overflows, again) = (grown("ListenOverflows"), grown("TCPSynRetrans"));
    let waited = facts.slowness.waited;
    let was_waited_for = waited >= LEAST_WAIT && waited * 3 >= whole;
    if !was_waited_for && overflows.is_none() && again.is_none() {
        return None;
    }
    let mut text = format!("; it took {:.1} s", whole.as_secs_f64());
    if was_waited_for || overflows.is_some() {
        text.push_str(&accept_rate(facts));
        let _ = write!(
            text,
            ", {:.1} s were spent waiting for the server to empty its accept queue ({} of {} at most)",
            waited.as_secs_f64(),
            facts.slowness.deepest,
            facts.slowness.granted
        );
        if let Some(busy) = server::busiest(facts.before, facts.now) {
            let _ = write!(text, ", and its process {} {} (CPU)", busy.pid, busy.text());
        }
    }
    if let Some(count) = overflows {
        let _ = write!(text, ", ListenOverflows +{count}");
    }
    if let Some(count) = again {
        let _ = write!(text, ", {count} SYNs were sent again (TCPSynRetrans, of this namespace)");
    }
    Some(text)
}

/// How fast the server has accepted over the ramp, as the end of a sentence; empty where its queue
/// cannot be seen.
pub(super) fn accept_rate(facts: &Facts<'_>) -> String {
    let (Some(accepted), whole) = (facts.accepted(), facts.now.since(facts.before)) else {
        return String::new();
    };
    if whole.is_zero() {
        return String::new();
    }
    // The first connection was made before the ramp.
    let accepted = accepted.saturating_sub(1);
    format!(
        ", the server accepted {} in {:.1} s ({}/s)",
        units::count(accepted),
        whole.as_secs_f64(),
        units::number(accepted as f64 / whole.as_secs_f64())
    )
}

/// Says what the clients cannot see.
pub fn mention(stop: &mut Stop, established: u64, alive: u64, queued: Option<u64>) {
    if let Some(queued) = queued.filter(|queued| *queued > 0) {
        stop.add(format!(
            "; of {established} connections that clients see established, {queued} still wait in \
             the server's accept queue"
        ));
    }
    if alive < established {
        stop.add(format!("; {alive} are alive"));
    }
}
