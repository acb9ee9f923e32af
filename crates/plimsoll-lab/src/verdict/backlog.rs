//! What ended a backlog run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::machine::{Guard, client_met, ports, short_of_machine};
use super::{Stop, named, words};
use crate::observe::Snapshot;
use crate::results::{Side, StoppedBy};
use crate::worker::Why;
use crate::{errno, units};

/// What a run has seen so far.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The counters before the run, and now.
    pub before: &'a Snapshot,
    /// The counters now.
    pub now: &'a Snapshot,
    /// Somebody asked it to stop.
    pub interrupted: bool,
    /// End at so many connections.
    pub stop_at: Option<u64>,
    /// What the kernel granted; `None` where it does not tell.
    pub granted: Option<u64>,
    /// The accept queue's depth now; `None` where it cannot be seen.
    pub depth: Option<u64>,
    /// The largest depth seen.
    pub deepest: Option<u64>,
    /// Connections that the clients saw established.
    pub established: u64,
    /// Failed connects, by error name.
    pub errors: &'a BTreeMap<String, u64>,
    /// What a worker met that ends the run.
    pub met: Option<Why>,
    /// For how long neither the clients' count nor the depth has moved.
    pub still: Duration,
    /// How long that may last.
    pub patience: Duration,
    /// No source address is left, or the next would give nothing.
    pub no_sources: Option<Sources<'a>>,
}

/// Source addresses that have no port left.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The addresses in words.
    pub named: &'a str,
    /// How many were used.
    pub used: u64,
    /// Towards which destination.
    pub destination: SocketAddr,
    /// Destinations, one after the other.
    pub destinations: u64,
    /// The last addresses, so many in a row, that gave not one connection.
    pub barren: Option<u32>,
}

/// Whether to end the run; `None` to go on. The queue's part of the evidence is added by [`complete`]
/// and [`queue_full`], from the counters at rest.
pub fn after(facts: &Facts<'_>) -> Option<Stop> {
    let established = units::count(facts.established);
    if facts.interrupted {
        let text = format!("interrupted after {established} connections");
        return Some(Stop::new(StoppedBy::Interrupted, None, text));
    }
    let overflowed = facts.overflows().is_some_and(|count| count > 0);
    let full = match (facts.depth, facts.granted) {
        (Some(depth), Some(granted)) => depth > granted,
        // No way to see the queue: its overflow must do, once nothing moves any more.
        _ => facts.still > Duration::from_millis(500),
    };
    if overflowed && full {
        return Some(queue_full(facts));
    }
    if facts.stop_at.is_some_and(|stop_at| facts.established >= stop_at) {
        let text = format!("{established} connections were asked for, and made");
        return Some(Stop::new(StoppedBy::Limit, None, text));
    }
    if let Some(why) = facts.met {
        return Some(met(why, facts));
    }
    if let Some(sources) = &facts.no_sources {
        return Some(out_of_ports(sources, facts));
    }
    if facts.still > facts.patience {
        return Some(silent(facts));
    }
    None
}

/// Whether a limit of the machine is near, that must not be reached.
pub fn guard(now: &Snapshot) -> Option<Stop> {
    Guard::default().check(now)
}

impl Facts<'_> {
    fn overflows(&self) -> Option<u64> {
        self.now.grown(self.before, "ListenOverflows")
    }

    fn drops(&self) -> Option<u64> {
        self.now.grown(self.before, "ListenDrops")
    }
}

fn out_of_ports(sources: &Sources<'_>, facts: &Facts<'_>) -> Stop {
    let limits = &facts.now.limits;
    let mut stop =
        ports(limits, facts.established, sources.named, sources.used, sources.destination);
    if sources.destinations > 1 {
        stop.add(format!("; the same towards {} destinations", sources.destinations));
    }
    if let Some(barren) = sources.barren {
        stop.add(format!("; the last {barren} addresses gave not one connection"));
    }
    stop
}

/// The queue was full, and the kernel dropped SYNs.
pub fn queue_full(facts: &Facts<'_>) -> Stop {
    let counters = format!(
        "ListenOverflows +{}, ListenDrops +{}",
        words(facts.overflows()),
        words(facts.drops())
    );
    let queue = match facts.granted.zip(facts.deepest) {
        Some((granted, depth)) => {
            let deepest = units::count(depth);
            let more = match depth.saturating_sub(granted) {
                0 | 1 => "the one more that the kernel admits".to_owned(),
                // `tcp_v4_syn_recv_sock` looks at the depth without the lock under which
                // `inet_csk_reqsk_queue_add` raises it.
                more => format!(
                    "{more} more: the kernel admits one, and another for each handshake that ends \
                     at the same instant on another processor"
                ),
            };
            let granted = units::count(granted);
            format!("the accept queue held {deepest} connections, granted {granted} and {more}")
        }
        None => "the accept queue was full (this system does not say how deep it is)".to_owned(),
    };
    let cap = match facts.granted {
        Some(granted) if facts.now.limits.somaxconn == Some(granted) => format!(
            "; granted is net.core.somaxconn ({}), the cap on what listen(2) asks for",
            units::count(granted)
        ),
        _ => String::new(),
    };
    let mut evidence = format!("{queue}; {counters}{cap}");
    if let Some(difference) = client_only_established(facts) {
        evidence.push_str(&difference);
    }
    Stop::new(StoppedBy::QueueFull, Side::Server, evidence)
}

/// Clients that see their connection established although it is not in the queue.
fn client_only_established(facts: &Facts<'_>) -> Option<String> {
    facts.granted?;
    let more = facts.established.checked_sub(facts.deepest?).filter(|more| *more > 0)?;
    Some(format!(
        "; {more} more clients see their connection established: the last packet of their handshake \
         was dropped, and the server will send its SYN-ACK again"
    ))
}

/// What a worker met.
fn met(why: Why, facts: &Facts<'_>) -> Stop {
    if let Some(stop) = client_met(why, facts.established, facts.errors, facts.now) {
        return stop;
    }
    let errors = named(facts.errors);
    if facts.errors.contains_key(errno::REFUSED) {
        let text = format!("connects were refused: {errors}");
        return Stop::new(StoppedBy::Refused, Side::Server, text);
    }
    if let Some(mut stop) = short_of_machine(facts.before, facts.now) {
        stop.add(format!("; connects failed: {errors}"));
        return stop;
    }
    if facts.errors.contains_key(errno::TIMED_OUT) {
        let sent_again = sent_again(facts);
        let text = format!("connects were not answered in time: {errors}{sent_again}");
        return Stop::new(StoppedBy::Timeout, None, text);
    }
    let text = format!("connects failed, with no counter of the kernel to say why: {errors}");
    Stop::new(StoppedBy::Unknown, None, text)
}

/// SYNs that were sent again, as the end of a sentence; empty where they are not counted.
fn sent_again(facts: &Facts<'_>) -> String {
    let count = facts.now.grown(facts.before, "TCPSynRetrans");
    count.map_or_else(String::new, |count| format!("; {count} SYNs were sent again"))
}

/// Nothing moves any more, and the queue is not full.
fn silent(facts: &Facts<'_>) -> Stop {
    if let Some(stop) = short_of_machine(facts.before, facts.now) {
        return stop;
    }
    let text = format!(
        "no further connect was answered for {:.1} s{}",
        facts.still.as_secs_f64(),
        sent_again(facts)
    );
    Stop::new(StoppedBy::Timeout, None, text)
}

/// Adds what the queue looked like to a verdict that is not about it.
pub fn complete(mut stop: Stop, facts: &Facts<'_>) -> Stop {
    match (facts.granted, facts.deepest) {
        (Some(granted), deepest) => stop.add(format!(
            "; the queue held {} of {granted}, ListenOverflows +{}",
            words(deepest),
            words(facts.overflows())
        )),
        (None, Some(deepest)) => stop.add(format!(
            "; {} connections stood at the listener's port, and none had been accepted (this \
             system does not tell what it granted)",
            units::count(deepest)
        )),
        (None, None) => {}
    }
    stop
}

/// What came of a counter-proof: some connections were accepted, and one more client tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Whether that client connected.
    pub moved: bool,
    /// What was done and seen.
    pub says: String,
}

/// The verdict where the queue cannot be seen: clients failed, and whether room in the queue helped.
pub fn proven(stop: Stop, facts: &Facts<'_>, proof: &Proof) -> Stop {
    let mut stop = complete(stop, facts);
    if proof.moved {
        stop.by = StoppedBy::QueueFull;
        stop.side = Some(Side::Server);
        stop.evidence = format!("the accept queue was full: {}", stop.evidence);
    }
    stop.add(format!("; counter-proof: {}", proof.says));
    stop
}

#[cfg(test)]
mod tests;
