//! What a shard does under pressure ([`crate::Pressure`]): braking, it accepts nobody; shedding, it
//! also gives sessions up, a few at a time, until the pressure is gone.

use std::collections::BinaryHeap;
use std::time::Duration;

use super::Shard;
use crate::budget::{Dry, Shed};
use crate::driver::{Driver, Nanos};
use crate::handler::Handler;
use crate::monitor::Pressure;
use crate::reason::Reason;
use crate::session::table::Table;
use crate::session::wheel::Tick;

/// Between two sheddings: time for the kernel to give memory back, and for the monitor to see it
/// (it reads every 100 ms then).
const EVERY: Duration = Duration::from_millis(100);
/// Of a shard's sessions one in so many is given up at once, at least one: half of them within
/// 2.2 s, where there are no more than 8,192.
const ONE_IN: u32 = 32;
/// And no more than so many, so that the shard's other sessions do not wait for long.
const MOST: u32 = 256;

/// How soon a session is given up: the smallest goes first.
type Rank = (u64, i64);

/// What a shard keeps to know whom to give up.
pub(super) struct Shedding {
    policy: Shed,
    /// When to go on.
    next: Option<Nanos>,
    /// The worst sessions found, the least bad of them on top.
    worst: BinaryHeap<(Rank, u32)>,
    /// The order of the sessions' coming, by slot, where that is asked for.
    born: Vec<u64>,
    births: u64,
}

impl Shedding {
    /// For a shard of so many slots: all memory is taken here.
    pub(super) fn new(policy: Shed, slots: u32) -> Self {
        let born = if policy == Shed::Newest { vec![0; slots as usize] } else { Vec::new() };
        let worst = BinaryHeap::with_capacity(MOST as usize + 1);
        Self { policy, next: None, worst, born, births: 0 }
    }

    /// A session begins.
    pub(super) fn note_birth(&mut self, slot: u32) {
        if let Some(born) = self.born.get_mut(slot as usize) {
            self.births += 1;
            *born = self.births;
        }
    }

    /// Finds the sessions that are to be given up first, so many at most. O(slots ever used).
    fn find<S>(&mut self, table: &mut Table<S>, now: Tick, most: usize) {
        self.worst.clear();
        for slot in 0..table.touched() {
            let session = table.get(slot);
            if !session.is_alive() || session.marks.abort {
                continue;
            }
            let idle = -now.since(session.active);
            let rank = match self.policy {
                Shed::LongestIdle => (0, idle),
                Shed::SlowestReader => (u64::from(u32::MAX - session.outbox.len()), idle),
                Shed::Newest => (u64::MAX - self.born[slot as usize], 0),
            };
            if self.worst.len() < most {
                self.worst.push((rank, slot));
            } else if let Some(mut least_bad) = self.worst.peek_mut()
                && (rank, slot) < *least_bad
            {
                *least_bad = (rank, slot);
            }
        }
    }
}

impl<D: Driver, H: Handler> Shard<D, H> {
    /// Until when to wait at most for the pressure's sake.
    pub(super) fn pressure_deadline(&self) -> Option<Nanos> {
        let brakes = self.acceptor.as_ref().and_then(|_| self.gauge.next(self.core.now));
        [brakes, self.shedding.next].into_iter().flatten().min()
    }

    /// Gives up some sessions where the pressure asks for it.
    pub(super) fn shed(&mut self) {
        if self.gauge.pressure(self.core.now) < Pressure::Shedding {
            self.shedding.next = None;
            return;
        }
        if self.shedding.next.is_some_and(|next| next > self.core.now) {
            return;
        }
        self.shedding.next = Some(self.core.now.after(EVERY));
        let count = self.core.open.div_ceil(ONE_IN).min(MOST) as usize;
        self.shedding.find(&mut self.core.table, Tick::at(self.core.now), count);
        while let Some((_, slot)) = self.shedding.worst.pop() {
            if !self.core.is_dry(Dry::Shed) {
                self.core.table.get(slot).end(Reason::Shed);
                self.core.abort(slot);
            }
        }
        self.settle();
    }
}
