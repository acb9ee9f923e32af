//! The account of messages: which are due, and what became of each.
//!
//! Nothing here reads a clock, a socket or the kernel. Times are nanoseconds on one clock, given by
//! the caller; the properties are tested against a model that computes every message by itself.
//!
//! A message is *answered* when its reply is whole by the end of the measured time, *late* when it is
//! whole after it but within the time limit, and *lost* otherwise. Its latency counts from the moment
//! at which it was *intended* to be sent, so that a server that stalls is charged for every message
//! that had to wait (no coordinated omission). A lost message stands in the histogram with the time
//! for which it was waited.

use std::time::Duration;

use super::histogram::Latencies;

/// Nanoseconds in a second, and millionths of a message: the unit of [`Schedule`]'s arithmetic.
const SCALE: u128 = 1_000_000_000 * 1_000_000;

/// The messages of an open loop. Message `n` is intended `n / rate` seconds after the start, rounded
/// down to a nanosecond; those are due that are intended before the end of the measured time.
///
/// Several clients share one schedule: client `place` of `clients` sends the messages `place`,
/// `place + clients`, and so on. Here they are numbered from 0 again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Schedule {
    /// Messages per second, in millionths; at least 1.
    rate_millionths: u64,
    duration_ns: u64,
    place: u64,
    clients: u64,
}

impl Schedule {
    /// A schedule for one client. The rate counts in millionths of a message per second, at least
    /// one of them.
    pub(super) fn new(rate: f64, duration: Duration) -> Self {
        let rate_millionths = ((rate * 1e6).round() as u64).max(1);
        let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self { rate_millionths, duration_ns, place: 0, clients: 1 }
    }

    /// The part of client `place` of `clients`.
    pub(super) fn of_client(self, place: u64, clients: u64) -> Self {
        debug_assert!(place < clients, "clients are numbered from 0");
        Self { place, clients, ..self }
    }

    /// The same messages, with an end that came earlier.
    pub(super) fn cut_to(self, duration_ns: u64) -> Self {
        Self { duration_ns: self.duration_ns.min(duration_ns), ..self }
    }

    /// How many messages are due in all.
    pub(super) fn due(self) -> u64 {
        self.part(self.intended_before(self.duration_ns))
    }

    /// How many are to have been sent when so many nanoseconds have passed; never more than are due.
    pub(super) fn due_by(self, elapsed_ns: u64) -> u64 {
        self.part(self.intended_before(elapsed_ns.saturating_add(1).min(self.duration_ns)))
    }

    /// When a message is intended, in nanoseconds since the start.
    pub(super) fn intended_ns(self, number: u64) -> u64 {
        let number = u128::from(number) * u128::from(self.clients) + u128::from(self.place);
        u64::try_from(number * SCALE / u128::from(self.rate_millionths)).unwrap_or(u64::MAX)
    }

    /// Messages of all clients that are intended before this moment.
    fn intended_before(self, ns: u64) -> u64 {
        let messages = (u128::from(ns) * u128::from(self.rate_millionths)).div_ceil(SCALE);
        u64::try_from(messages).unwrap_or(u64::MAX)
    }

    /// Of the first messages of all clients, how many are this client's.
    fn part(self, all: u64) -> u64 {
        (all.saturating_add(self.clients - 1).saturating_sub(self.place)) / self.clients
    }
}

/// What became of the messages of one client.
#[derive(Debug)]
pub(super) struct Account {
    /// The end of the measured time.
    end_ns: u64,
    /// Until when a reply is waited for.
    deadline_ns: u64,
    pub(super) answered: u64,
    pub(super) late: u64,
    pub(super) lost: u64,
    /// Messages that were on their way, or not sent, in the middle of the measured time: intended
    /// before it, and without a whole reply by then.
    pub(super) at_middle: u64,
    middle_ns: u64,
    pub(super) latencies: Latencies,
    /// When messages were intended whose reply can never come. They are lost once the time limit
    /// has passed, and stand in the histogram with the whole time.
    hopeless: Vec<u64>,
}

impl Account {
    /// An account of a measured time from `start_ns` on, and of replies for `timeout` after it.
    pub(super) fn new(start_ns: u64, duration: Duration, timeout: Duration) -> Self {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let end_ns = start_ns.saturating_add(nanos(duration));
        Self {
            end_ns,
            deadline_ns: end_ns.saturating_add(nanos(timeout)),
            answered: 0,
            late: 0,
            lost: 0,
            at_middle: 0,
            middle_ns: start_ns.saturating_add(nanos(duration / 2)),
            latencies: Latencies::up_to(duration.saturating_add(timeout)),
            hopeless: Vec::new(),
        }
    }

    /// Until when a reply is waited for.
    pub(super) fn deadline_ns(&self) -> u64 {
        self.deadline_ns
    }

    /// The end of the measured time.
    pub(super) fn end_ns(&self) -> u64 {
        self.end_ns
    }

    /// Ends the measured time at `now_ns`, before its planned end, and waits for no more replies.
    pub(super) fn cut_to(&mut self, now_ns: u64) {
        self.end_ns = self.end_ns.min(now_ns);
        self.deadline_ns = self.deadline_ns.min(now_ns);
    }

    /// The reply to a message was whole at `now_ns`. Whether it counts as answered.
    pub(super) fn reply(&mut self, intended_ns: u64, now_ns: u64) -> bool {
        self.was_waited_for(intended_ns, now_ns);
        if now_ns <= self.end_ns {
            self.answered += 1;
        } else if now_ns <= self.deadline_ns {
            self.late += 1;
        } else {
            self.lost += 1;
        }
        now_ns <= self.end_ns
    }

    /// A message was waited for from the one moment to the other.
    fn was_waited_for(&mut self, intended_ns: u64, until_ns: u64) {
        self.latencies.record(until_ns.saturating_sub(intended_ns));
        self.at_middle += u64::from((intended_ns..until_ns).contains(&self.middle_ns));
    }

    /// The reply to a message can never come: its connection ended, or said something else.
    pub(super) fn give_up(&mut self, intended_ns: u64) {
        self.hopeless.push(intended_ns);
    }

    /// How many messages were given up, and are not counted as lost yet.
    pub(super) fn given_up(&self) -> u64 {
        self.hopeless.len() as u64
    }

    /// The time limit has passed. `missing` are the moments at which messages were intended that
    /// still have no reply.
    pub(super) fn close(&mut self, missing: impl IntoIterator<Item = u64>) {
        for intended_ns in std::mem::take(&mut self.hopeless).into_iter().chain(missing) {
            self.lost += 1;
            self.was_waited_for(intended_ns, self.deadline_ns);
        }
    }

    /// Messages accounted for.
    pub(super) fn total(&self) -> u64 {
        self.answered + self.late + self.lost
    }

    /// Joins another client's account of the same run.
    pub(super) fn join(&mut self, other: &Self) {
        self.answered += other.answered;
        self.late += other.late;
        self.lost += other.lost;
        self.at_middle += other.at_middle;
        self.latencies.join(&other.latencies);
    }
}

#[cfg(test)]
mod tests;
