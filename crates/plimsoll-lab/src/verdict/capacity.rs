//! What ended a ramp of connections, from the server's side and the clients'.
//!
//! The order in which causes are looked for is the order of their certainty: what a counter or a
//! process's state proves first, what only the pattern of the connections tells after that.

mod findings;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use super::machine::{NoMoreWorkers, client_met, no_more_workers, ports, short_of_machine};
use super::{Stop, named, quote, server, words};
use crate::observe::{self, Snapshot};
use crate::results::{Side, StoppedBy};
use crate::worker::{Checked, Ended, Why};
use crate::{errno, units};

pub use findings::{Slowness, mention};

/// How one step of the ramp ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// As asked, or as far as one worker or one source goes: there is more.
    More,
    /// No source has a port left.
    NoPorts,
    /// A worker ended for this reason.
    Met(Why),
    /// The clients' side can hold no more connections.
    NoWorkers(NoMoreWorkers),
}

/// An accept queue that has stopped moving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stuck {
    /// Connections in it.
    pub depth: u64,
    /// For how long it has not become shorter.
    pub still: Duration,
}

/// The limit of the embedded server, which is this tool's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// Connections that it serves at most.
    pub limit: u64,
    /// How far it brakes for want of memory, files or `tcp_mem`: 0 not at all; `None` where it does not
    /// answer.
    pub pressure: Option<u64>,
}

/// What a ramp has seen after a step.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The counters before the ramp.
    pub before: &'a Snapshot,
    /// The counters before the last step.
    pub step_began: &'a Snapshot,
    /// The counters now.
    pub now: &'a Snapshot,
    /// Somebody asked it to stop.
    pub interrupted: bool,
    /// Stop at so many connections.
    pub asked: Option<u64>,
    /// Connections that the clients saw established, in all.
    pub established: u64,
    /// Of those, made in the last step.
    pub made: u64,
    /// How the last step ended.
    pub step: &'a Step,
    /// Failed connects, by error name.
    pub errors: &'a BTreeMap<String, u64>,
    /// The longest time that connects were in flight without one being answered, in the last step.
    pub unanswered: Duration,
    /// Source addresses in words, and how many were used.
    pub sources: (&'a str, u64),
    /// Where the server listens.
    pub target: SocketAddr,
    /// How the server ended, or a process of it.
    pub ended: Option<&'a observe::Ended>,
    /// What became of the held connections; `ended` are those since the step before.
    pub held: &'a Checked,
    /// Connections that ended while nothing was made any more, to see whether time alone ends them.
    pub waited: Option<&'a Ended>,
    /// The accept queue, where the server has stopped emptying it.
    pub stuck: Option<Stuck>,
    /// The embedded server's own limit.
    pub own: Option<Own>,
    /// How much of the ramp the server was waited for.
    pub slowness: Slowness,
}

/// The verdict after a step; `None` to go on.
pub fn after(facts: &Facts<'_>) -> Option<Stop> {
    let established = facts.established;
    if facts.interrupted {
        let text = format!("interrupted after {} connections", units::count(established));
        return Some(Stop::new(StoppedBy::Interrupted, None, text));
    }
    if let Some(end) = facts.ended
        && (end.is_main || facts.is_troubled())
    {
        return Some(server::ended(end, established));
    }
    match facts.step {
        Step::NoPorts => {
            let (sources, used) = facts.sources;
            return Some(ports(&facts.now.limits, established, sources, used, facts.target));
        }
        Step::NoWorkers(why) => {
            return Some(no_more_workers(why, established, facts.before, facts.now));
        }
        Step::Met(why) => {
            if let Some(stop) = client_met(*why, established, facts.errors, facts.now) {
                return Some(stop);
            }
        }
        Step::More => {}
    }
    if facts.is_troubled() {
        return Some(trouble(facts));
    }
    facts.asked.is_some_and(|asked| established >= asked).then(|| reached(facts))
}

/// What was asked for was reached: at once, or slowly, because of something.
fn reached(facts: &Facts<'_>) -> Stop {
    let made = units::count(facts.established);
    let text = format!("{made} connections were asked for, and made");
    let mut stop = Stop::new(StoppedBy::Limit, None, text);
    stop.add(findings::slow(facts).unwrap_or_default());
    stop
}

impl Facts<'_> {
    /// Whether something keeps the ramp from going on: connections that the server has ended, a queue
    /// that it does not empty, or connects that fail.
    fn is_troubled(&self) -> bool {
        self.has_lost() || self.stuck.is_some() || matches!(self.step, Step::Met(_))
    }

    /// Whether the server ends connections about as fast as they are made, or after a time.
    fn has_lost(&self) -> bool {
        let lost = self.held.ended.count;
        lost > 0 && (lost * 2 >= self.made || self.ends_by_time().is_some())
    }

    /// Whether those that ended had been quiet for longer than all that live: the oldest ones.
    pub fn oldest_ended(&self) -> bool {
        is_oldest(self.held)
    }

    /// For how long connections had been quiet when the server ended them, in milliseconds, where time
    /// alone ends them: the oldest did, and while nothing was made any more, further ones did after
    /// about the same time.
    fn ends_by_time(&self) -> Option<(u64, u64)> {
        let waited = self.waited.filter(|waited| waited.count > 0)?;
        let first = self.held.ended.shortest_quiet_ms?;
        let (shortest, longest) = (waited.shortest_quiet_ms?, waited.longest_quiet_ms?);
        // A look finds an end as late as the time between two looks.
        let slack = self.held.since_last_look_ms + first / 4 + 50;
        let alike = shortest + slack >= first && longest <= first + 2 * slack;
        (self.oldest_ended() && alike).then_some((shortest, longest))
    }

    /// Connections that the server has accepted, as far as its queue can be seen.
    fn accepted(&self) -> Option<u64> {
        Some(self.established.saturating_sub(self.now.listener?.depth))
    }

    fn refused(&self) -> bool {
        self.errors.contains_key(errno::REFUSED)
    }
}

/// Whether those that ended had been quiet for at least as long as all that live, as far as looks that
/// are some time apart can tell.
pub fn is_oldest(held: &Checked) -> bool {
    let Some(shortest) = held.ended.shortest_quiet_ms else { return false };
    held.longest_quiet_alive_ms.is_none_or(|alive| alive <= shortest + held.since_last_look_ms)
}

/// Something keeps the ramp from going on: which, and why.
fn trouble(facts: &Facts<'_>) -> Stop {
    let seen = seen(facts);
    let (before, now) = (facts.before, facts.now);
    let waits = facts.stuck.is_some() || facts.errors.contains_key(errno::TIMED_OUT);
    if let Some(process) = server::paused(now).filter(|_| waits && !facts.has_lost()) {
        let text = format!("{seen}: {}", server::paused_text(process));
        return Stop::new(StoppedBy::Timeout, Side::Server, text);
    }
    let proven = server::group(before, now)
        .or_else(|| server::out_of_descriptors(now))
        .or_else(|| short_of_machine(before, now));
    if let Some(mut stop) = proven {
        stop.evidence = format!("{seen}: {}", stop.evidence);
        return stop;
    }
    if facts.has_lost() {
        return lost(facts, &seen);
    }
    if matches!(facts.step, Step::Met(_)) {
        return failing(facts, &seen);
    }
    stuck(facts, &seen)
}

/// What was seen of the trouble, as the beginning of a sentence.
fn seen(facts: &Facts<'_>) -> String {
    let mut parts = Vec::new();
    if facts.has_lost() {
        let ended = &facts.held.ended;
        let live =
            if facts.made > 0 { format!(" while {} were made", facts.made) } else { String::new() };
        let mut part = format!("the server ended {} connections{live}", ended.count);
        if ended.with_words > 0 {
            let _ = write!(part, " and told {} of them {}", ended.with_words, quote(&ended.said));
        }
        parts.push(part);
    }
    if matches!(facts.step, Step::Met(_)) {
        let unanswered = match facts.unanswered.as_secs_f64() {
            seconds if seconds >= 0.1 && facts.errors.contains_key(errno::TIMED_OUT) => {
                format!(", none was answered for {seconds:.1} s")
            }
            _ => String::new(),
        };
        parts.push(format!(
            "after {} connections further connects failed{unanswered} ({})",
            facts.established,
            named(facts.errors)
        ));
    }
    if let Some(stuck) = facts.stuck {
        parts.push(format!(
            "the server leaves {} connections in its accept queue and has accepted none of them for \
             {:.1} s",
            stuck.depth,
            stuck.still.as_secs_f64()
        ));
    }
    parts.join("; ")
}

/// The server ended connections.
fn lost(facts: &Facts<'_>, seen: &str) -> Stop {
    if facts.held.alive == 0 && facts.refused() {
        let text = format!(
            "{seen}: all connections have ended, and nothing listens any more ({})",
            named(facts.errors)
        );
        return Stop::new(StoppedBy::ServerEnded, Side::Server, text);
    }
    if facts.held.alive == 0 && facts.held.closed + facts.held.reset >= facts.established {
        let text = format!("{seen}: all that there were, and nothing that was read tells why");
        return Stop::new(StoppedBy::Unknown, Side::Server, text);
    }
    if let Some((shortest, longest)) = facts.ends_by_time() {
        let from = facts.held.ended.shortest_quiet_ms.map_or(shortest, |first| first.min(shortest));
        let text = format!(
            "{seen}, the oldest ones; with no more made, others followed: each had been quiet for \
             {:.2} to {:.2} s",
            from as f64 / 1e3,
            longest as f64 / 1e3
        );
        return Stop::new(StoppedBy::IdleTimeout, Side::Server, text);
    }
    limit_of_its_own(facts, seen)
}

/// Connects fail, and neither a counter nor a process's state has told why.
fn failing(facts: &Facts<'_>, seen: &str) -> Stop {
    if facts.refused() {
        let mut text =
            format!("{seen}: nothing listens any more, or a firewall answers with a reset");
        if cfg!(windows) {
            text.push_str("; on Windows a server whose accept queue is full refuses, too");
        }
        return Stop::new(StoppedBy::Refused, Side::Server, text);
    }
    let overflows = facts.now.grown(facts.step_began, "ListenOverflows").filter(|count| *count > 0);
    if overflows.is_some() {
        return not_accepting(facts, seen);
    }
    if facts.errors.keys().any(|name| errno::is_reset(name)) {
        return limit_of_its_own(facts, seen);
    }
    if facts.errors.contains_key(errno::TIMED_OUT) {
        let again = facts.now.grown(facts.step_began, "TCPSynRetrans");
        let again = again.map_or_else(String::new, |count| {
            format!(": {count} SYNs were sent again (TCPSynRetrans)")
        });
        return Stop::new(StoppedBy::Timeout, None, format!("{seen}{again}"));
    }
    Stop::new(StoppedBy::Unknown, None, seen.to_owned())
}

/// The queue does not move, and neither a counter nor a process's state has told why.
fn stuck(facts: &Facts<'_>, seen: &str) -> Stop {
    not_accepting(facts, seen)
}

/// So many accepts would have come in the time that the queue has not moved, had the server gone on as
/// before: then it has stopped.
const MISSED_ACCEPTS: f64 = 5.0;

/// The server does not empty its queue: it has no processor for it, is slow, or has stopped.
fn not_accepting(facts: &Facts<'_>, seen: &str) -> Stop {
    if is_own_limit(facts) || facts.own.is_some_and(|own| own.pressure > Some(0)) {
        return limit_of_its_own(facts, seen);
    }
    let overflows = facts.now.grown(facts.step_began, "ListenOverflows");
    let queue = facts.now.listener.map_or_else(String::new, |queue| {
        format!(", its accept queue holds {} of {}", queue.depth, queue.granted)
    });
    let counters = format!("ListenOverflows +{}{queue}", words(overflows));
    if let Some(busy) = server::busiest(facts.step_began, facts.now).filter(|busy| busy.is_full()) {
        let text = format!(
            "{seen}: its process {} {}, and could not accept as fast; {counters}",
            busy.pid,
            busy.text()
        );
        return Stop::new(StoppedBy::Cpu, Side::Server, text);
    }
    if has_stopped_accepting(facts) {
        return limit_of_its_own(facts, seen);
    }
    let rate = findings::accept_rate(facts);
    let text =
        format!("{seen}: it empties its queue more slowly than clients arrive{rate}; {counters}");
    Stop::new(StoppedBy::QueueFull, Side::Server, text)
}

/// Whether the stillness of the queue is out of proportion to how fast the server has accepted before:
/// it has stopped accepting, and is not just slow.
fn has_stopped_accepting(facts: &Facts<'_>) -> bool {
    let (Some(stuck), Some(accepted)) = (facts.stuck, facts.accepted()) else { return false };
    let moving = facts.now.since(facts.before).saturating_sub(stuck.still);
    let rate = accepted.saturating_sub(1) as f64 / moving.as_secs_f64().max(1e-3);
    accepted <= 1 || rate * stuck.still.as_secs_f64() >= MISSED_ACCEPTS
}

/// Whether the embedded server holds as many connections as its limit allows.
fn is_own_limit(facts: &Facts<'_>) -> bool {
    match (facts.own, facts.accepted()) {
        (Some(own), Some(accepted)) => {
            let live = accepted.saturating_sub(facts.held.closed + facts.held.reset);
            live >= own.limit
        }
        _ => false,
    }
}

/// The server takes no more, and nothing of the machine's binds: a limit of its own.
fn limit_of_its_own(facts: &Facts<'_>, seen: &str) -> Stop {
    let text = if is_own_limit(facts) {
        format!(
            "{seen}: the embedded server serves {} connections, which is the limit that this tool has \
             given it; --connections N raises it (`plimsoll serve --max-connections` for a server of \
             your own)",
            facts.own.map_or(0, |own| own.limit)
        )
    } else if let Some(level) = facts.own.and_then(|own| own.pressure).filter(|level| *level > 0) {
        format!(
            "{seen}: the embedded engine itself brakes (its pressure is {level}: 1 braking, 2 \
             shedding), since memory, open files or TCP's pages are near their limits; \
             `plimsoll doctor` names them"
        )
    } else {
        format!("{seen}{}: a limit of its own", server::descriptors_left(facts.now))
    };
    Stop::new(StoppedBy::ServerLimit, Side::Server, text)
}

#[cfg(test)]
mod tests;
