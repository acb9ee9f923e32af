//! The sentences that say what ended a run.

use super::queue::Proof;
use crate::errno;
use crate::evidence::{self, Baseline, Stop, why_silent, words};
use crate::results::{Side, StoppedBy};
use crate::units;
use crate::worker::{Tally, Why};

/// What is known at the end of a run.
pub(super) struct Facts<'a> {
    pub(super) granted: Option<u64>,
    /// The largest queue seen; `None` where it cannot be.
    pub(super) deepest: Option<u64>,
    pub(super) overflows: Option<u64>,
    pub(super) drops: Option<u64>,
    pub(super) tally: &'a Tally,
}

/// The queue was full, and the kernel dropped SYNs.
pub(super) fn queue_full(facts: &Facts<'_>) -> Stop {
    let counters =
        format!("ListenOverflows +{}, ListenDrops +{}", words(facts.overflows), words(facts.drops));
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
    let fix = match facts.granted {
        Some(granted) if plimsoll_kernel::limits::Limits::read().somaxconn == Some(granted) => {
            format!(
                "; granted is net.core.somaxconn ({}), the cap on what listen(2) asks for",
                units::count(granted)
            )
        }
        _ => String::new(),
    };
    let mut evidence = format!("{queue}; {counters}{fix}");
    if let Some(difference) = believers(facts) {
        evidence.push_str(&difference);
    }
    Stop::new(StoppedBy::QueueFull, Side::Server, evidence)
}

/// Clients that believe they are connected and are not in the queue.
fn believers(facts: &Facts<'_>) -> Option<String> {
    facts.granted?;
    let more = facts.tally.established.checked_sub(facts.deepest?).filter(|more| *more > 0)?;
    Some(format!(
        "; {more} more clients believe they are connected: the last packet of their handshake was \
         dropped, and the server will send its SYN-ACK again"
    ))
}

/// What a worker met.
pub(super) fn met(why: Why, tally: &Tally, before: &Baseline) -> Stop {
    let errors = || {
        let named: Vec<String> =
            tally.errors.iter().map(|(name, count)| format!("{name} × {count}")).collect();
        named.join(", ")
    };
    match why {
        Why::Files => Stop::new(
            StoppedBy::Descriptors,
            Side::Client,
            format!("ENFILE after {} connections: fs.file-max is reached", tally.established),
        ),
        Why::Memory => Stop::new(
            StoppedBy::Memory,
            Side::Client,
            format!(
                "the kernel had no memory for a socket: {}{}",
                errors(),
                evidence::nonpaged_pool()
            ),
        ),
        _ if tally.errors.contains_key(errno::REFUSED) => Stop::new(
            StoppedBy::Refused,
            Side::Server,
            format!("connects were refused: {}", errors()),
        ),
        _ if cfg!(windows) && tally.errors.contains_key(errno::TIMED_OUT) => Stop::new(
            StoppedBy::Timeout,
            Side::Server,
            format!("connects were not answered in time: {}", errors()),
        ),
        _ => {
            let mut stop = why_silent(before, 0.0);
            if stop.by == StoppedBy::Timeout {
                stop.evidence = format!(
                    "connects failed, with no counter of the kernel to say why: {}",
                    errors()
                );
            }
            stop
        }
    }
}

/// Adds what the queue looked like to a verdict that is not about it.
pub(super) fn complete(mut stop: Stop, facts: &Facts<'_>) -> Stop {
    match (facts.granted, facts.deepest) {
        (Some(granted), deepest) => stop.add(format!(
            "; the queue held {} of {granted}, ListenOverflows +{}",
            words(deepest),
            words(facts.overflows)
        )),
        (None, Some(deepest)) => stop.add(format!(
            "; {} connections stood at the listener's port, and nobody had accepted any (this \
             system does not tell what it granted)",
            units::count(deepest)
        )),
        (None, None) => {}
    }
    stop
}

/// The verdict where the queue cannot be seen: clients failed, and whether room in the queue helped.
pub(super) fn proven(stop: Stop, facts: &Facts<'_>, proof: &Proof) -> Stop {
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
mod tests {
    use super::*;

    fn facts(tally: &Tally, granted: Option<u64>, deepest: Option<u64>) -> Facts<'_> {
        Facts { granted, deepest, overflows: None, drops: None, tally }
    }

    #[test]
    fn a_refusal_is_the_queue_when_room_in_it_helps() {
        let mut tally = Tally { established: 200, ..Tally::default() };
        tally.errors.insert(errno::REFUSED.to_owned(), 16);
        let before = Baseline::default();
        let refused = met(Why::Failing, &tally, &before);
        assert_eq!(refused.by, StoppedBy::Refused);
        let proof = Proof { moved: true, says: "the next client connected".to_owned() };
        let full = proven(refused.clone(), &facts(&tally, None, Some(200)), &proof);
        assert_eq!((full.by, full.side), (StoppedBy::QueueFull, Some(Side::Server)));
        for part in ["full", errno::REFUSED, "200 connections stood", "next client connected"] {
            assert!(full.evidence.contains(part), "{part}: {}", full.evidence);
        }
        let proof = Proof { moved: false, says: "the next client failed still".to_owned() };
        let not = proven(refused, &facts(&tally, None, Some(200)), &proof);
        assert_eq!(not.by, StoppedBy::Refused);
        assert!(not.evidence.contains("failed still"), "{}", not.evidence);
    }
}
