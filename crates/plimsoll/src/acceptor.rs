//! Who gets in: one listener, one place that decides. A role of shard 0.
//!
//! Accepts are posted ahead, each against a permit and for the shard that was the least loaded
//! then. How many follows the arrivals: when every one posted has completed within a turn there are
//! twice as many the next time, up to [`MOST_AHEAD`]. Out of permits nothing is posted, and the
//! backlog holds those who come.

use std::time::Duration;

use crate::driver::{Fault, MAX_HANDED, Nanos};

pub(crate) mod ledger;

/// The most accepts in flight for slots of the acceptor's own shard.
pub(crate) const MOST_AHEAD: u32 = 256;
const FEWEST_AHEAD: u32 = 4;

const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What the acceptor keeps between turns.
#[derive(Debug)]
pub(crate) struct Acceptor {
    posted: u32,
    /// How many should be posted.
    ahead: u32,
    /// Completed since the last look.
    completed: u32,
    /// Numbers for accepts that are handed to other shards, and the shard each is for.
    free_numbers: Vec<u32>,
    targets: [u32; MAX_HANDED as usize],
    /// Short of something: nothing is posted until then.
    paused_until: Option<Nanos>,
    pause: Duration,
    pub closed: bool,
}

impl Acceptor {
    pub(crate) fn new() -> Self {
        Self {
            posted: 0,
            ahead: FEWEST_AHEAD,
            completed: 0,
            free_numbers: (0..MAX_HANDED).rev().collect(),
            targets: [0; MAX_HANDED as usize],
            paused_until: None,
            pause: SHORTEST_PAUSE,
            closed: false,
        }
    }

    /// How many accepts to post now.
    pub(crate) fn wanted(&mut self, now: Nanos) -> u32 {
        if self.closed || self.paused_until.is_some_and(|until| until > now) {
            return 0;
        }
        self.paused_until = None;
        if self.posted == 0 && self.completed >= self.ahead {
            self.ahead = (self.ahead * 2).min(MOST_AHEAD);
        } else if self.completed == 0 && self.ahead > FEWEST_AHEAD {
            self.ahead -= 1;
        }
        self.completed = 0;
        self.ahead.saturating_sub(self.posted)
    }

    /// When to look again, while paused.
    pub(crate) fn next(&self) -> Option<Nanos> {
        self.paused_until.filter(|_| !self.closed)
    }

    /// A number for an accept that is for another shard; `None` where all are in flight.
    pub(crate) fn number_for(&mut self, shard: u32) -> Option<u32> {
        let number = self.free_numbers.pop()?;
        self.targets[number as usize] = shard;
        Some(number)
    }

    /// The shard that an accept's number was for; the number is free again.
    pub(crate) fn target_of(&mut self, number: u32) -> u32 {
        // Within the capacity that `new` gave it: no allocation.
        self.free_numbers.push(number);
        self.targets[number as usize]
    }

    /// An accept was posted.
    pub(crate) fn post(&mut self) {
        self.posted += 1;
    }

    /// An accept completed with a connection.
    pub(crate) fn succeed(&mut self) {
        self.posted -= 1;
        self.completed += 1;
        self.pause = SHORTEST_PAUSE;
    }

    /// An accept failed. Returns whether a log line is due: once per pause that grows.
    pub(crate) fn fail(&mut self, fault: Fault, now: Nanos) -> bool {
        self.posted -= 1;
        match fault {
            // The client had gone, and the next one may be there already; or we closed the listener.
            Fault::Aborted | Fault::Reset | Fault::Cancelled => false,
            // Short of descriptors, files, buffers or memory, or something new: asking again at
            // once would be a hot loop.
            _ => {
                let first = self.paused_until.is_none();
                if first {
                    self.paused_until = Some(now.after(self.pause));
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                }
                first
            }
        }
    }

    /// Accepts in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        self.posted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_ahead_follow_the_arrivals() {
        let mut acceptor = Acceptor::new();
        let mut ahead = Vec::new();
        for _ in 0..8 {
            let wanted = acceptor.wanted(Nanos(0));
            ahead.push(wanted);
            (0..wanted).for_each(|_| acceptor.post());
            (0..wanted).for_each(|_| acceptor.succeed());
        }
        assert_eq!(ahead, [4, 8, 16, 32, 64, 128, 256, 256]);
        for _ in 0..300 {
            acceptor.wanted(Nanos(0));
        }
        assert_eq!(acceptor.wanted(Nanos(0)), FEWEST_AHEAD);
    }

    #[test]
    fn a_shortage_pauses_longer_and_longer_and_a_success_forgets_it() {
        let mut acceptor = Acceptor::new();
        let mut now = Nanos(0);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert!(acceptor.wanted(now) > 0);
            acceptor.post();
            acceptor.post();
            assert!(acceptor.fail(Fault::SystemDescriptors, now));
            assert!(!acceptor.fail(Fault::SystemDescriptors, now), "one line per pause");
            let until = acceptor.next().unwrap();
            assert_eq!(acceptor.wanted(now), 0);
            pauses.push(until.since(now).as_millis());
            now = until;
        }
        assert_eq!(pauses[0], 5);
        assert!(pauses.windows(2).all(|pair| pair[1] >= pair[0]));
        assert_eq!(*pauses.last().unwrap(), 100);
        acceptor.wanted(now);
        acceptor.post();
        acceptor.post();
        acceptor.succeed();
        assert_eq!(acceptor.pause, SHORTEST_PAUSE);
        acceptor.fail(Fault::SystemDescriptors, now);
        acceptor.closed = true;
        assert_eq!(acceptor.next(), None, "nothing to wake for after the end");
    }
}
