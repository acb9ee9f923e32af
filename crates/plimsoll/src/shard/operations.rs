//! Operations in flight, where the limits bound them ([`Limits::max_operations`]).
//!
//! Each slot has one operation at most that is no send and no close: an accept or a connect, then what
//! it reads with. Those, and the accepts that hand over, always find a place. What is left is for
//! sends and half-closes; who finds none waits in a line, first come first served. A close takes no
//! place: it waits for nobody, and ends what its session has in flight.
//!
//! Half of the places at least is for sends that the kernel carries out at once, and that are over
//! after the next wait: peers that do not read keep nobody's answer back.

use std::collections::VecDeque;

use super::Shard;
use crate::acceptor::Acceptor;
use crate::budget::Limits;
use crate::driver::{Driver, Kind, Token};
use crate::handler::Handler;
use crate::session::core::Slow;
use crate::session::table::Table;

/// A shard's part of the operations that may be in flight.
#[derive(Debug)]
pub(super) struct Operations {
    /// In flight, closes not counted.
    count: u32,
    high_water: u32,
    /// Places for sends that are free, and those taken by sends that wait for their peer.
    free: u32,
    patient: u32,
    patient_most: u32,
    /// Who waits for a place: to send at once, and to send when the peer has room.
    line: Line,
    patient_line: Line,
}

/// Those who wait, by slot and generation. One that has ended leaves its entry behind, which is
/// passed over.
#[derive(Debug)]
struct Line(VecDeque<(u32, u64)>);

impl Line {
    /// For so many slots: a slot may be used again while its last session's entry is still there.
    fn new(slots: u32) -> Self {
        Self(VecDeque::with_capacity(slots as usize * 2))
    }

    fn push<S>(&mut self, table: &mut Table<S>, slot: u32) {
        if self.0.len() == self.0.capacity() {
            self.0.retain(|waiter| waits(table, *waiter));
        }
        let session = table.get(slot);
        session.marks.waits_to_send = true;
        let generation = session.generation;
        self.0.push_back((slot, generation));
    }

    fn pop<S>(&mut self, table: &mut Table<S>) -> Option<u32> {
        loop {
            let waiter = self.0.pop_front()?;
            if waits(table, waiter) {
                table.get(waiter.0).marks.waits_to_send = false;
                return Some(waiter.0);
            }
        }
    }
}

fn waits<S>(table: &mut Table<S>, (slot, generation): (u32, u64)) -> bool {
    let session = table.get(slot);
    session.generation == generation && session.marks.waits_to_send && session.is_alive()
}

impl Operations {
    /// The part of one of so many shards, each of so many slots: all memory is taken here.
    pub(super) fn new(limits: &Limits, shards: u32, slots: u32) -> Option<Self> {
        let free = limits.sends_in_flight(shards, slots)?;
        Some(Self {
            count: 0,
            high_water: 0,
            free,
            patient: 0,
            patient_most: free / 2,
            line: Line::new(slots),
            patient_line: Line::new(slots),
        })
    }

    /// In flight now, closes not counted.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// The most that ever were.
    pub(super) fn high_water(&self) -> u32 {
        self.high_water
    }

    /// One was posted.
    pub(super) fn begin(&mut self, kind: Kind) {
        if kind != Kind::Close {
            self.count += 1;
            self.high_water = self.high_water.max(self.count);
        }
    }

    /// One has completed: of a session whose outbox was blocked, or was not, when it was posted.
    pub(super) fn complete(&mut self, kind: Kind, blocked: bool) {
        self.count -= u32::from(kind != Kind::Close);
        if matches!(kind, Kind::Send | Kind::HalfClose) {
            self.free += 1;
            self.patient -= u32::from(blocked && kind == Kind::Send);
        }
    }

    fn take_place(&mut self, patient: bool) -> bool {
        let may = self.free > 0 && !(patient && self.patient == self.patient_most);
        if may {
            self.free -= 1;
            self.patient += u32::from(patient);
        }
        may
    }

    /// Whether nobody holds a place or waits for one.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self, places: u32) -> bool {
        (self.count, self.patient, self.free) == (0, 0, places)
    }
}

impl<D: Driver, H: Handler> Shard<D, H> {
    /// The token of an operation of a session that is posted now.
    pub(super) fn begin_operation(&mut self, kind: Kind, slot: u32) -> Token {
        let session = self.core.table.get(slot);
        session.in_flight.post(kind);
        if let Some(operations) = &mut self.operations {
            operations.begin(kind);
        }
        Token::new(kind, session.generation, slot)
    }

    /// Whether a session may post a send or a half-close now; where not, it waits in the line. A
    /// patient one waits for its peer in the kernel.
    pub(super) fn may_send(&mut self, slot: u32, patient: bool) -> bool {
        let Some(operations) = &mut self.operations else { return true };
        let line = if patient { &operations.patient_line } else { &operations.line };
        if line.0.is_empty() && operations.take_place(patient) {
            return true;
        }
        let line = if patient { &mut operations.patient_line } else { &mut operations.line };
        line.push(&mut self.core.table, slot);
        // It is not its peer that is slow.
        if let Some(slow) = self.core.slow.get_mut(slot as usize) {
            *slow = Slow::default();
        }
        false
    }

    /// Lets those send who waited for a place, in their order.
    pub(super) fn serve_senders(&mut self) {
        for patient in [true, false] {
            while let Some(operations) = &mut self.operations {
                if !operations.take_place(patient) {
                    break;
                }
                let line =
                    if patient { &mut operations.patient_line } else { &mut operations.line };
                let next = line.pop(&mut self.core.table);
                let posted = next.is_some_and(|slot| self.write_in_turn(slot));
                if !posted && let Some(operations) = &mut self.operations {
                    operations.free += 1;
                    operations.patient -= u32::from(patient);
                }
                if next.is_none() {
                    break;
                }
            }
        }
    }

    /// Operations in flight as the sessions and the acceptor know them, closes not counted.
    /// O(slots ever used).
    pub(super) fn operations_found(&mut self) -> u32 {
        let table = &mut self.core.table;
        let sessions: u32 =
            (0..table.touched()).map(|slot| table.get(slot).in_flight.count_but_close()).sum();
        sessions + self.acceptor.as_ref().map_or(0, Acceptor::handing_over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_peer_leaves_places_for_the_others() {
        let limits = Limits { max_operations: Some(10 + 5), ..Limits::default() };
        let mut operations = Operations::new(&limits, 1, 10).unwrap();
        assert!(operations.take_place(true) && operations.take_place(true));
        assert!(!operations.take_place(true), "half of five");
        assert!((0..3).all(|_| operations.take_place(false)) && !operations.take_place(false));
        operations.begin(Kind::Send);
        operations.complete(Kind::Send, true);
        assert!(operations.take_place(true) && !operations.take_place(false));
    }
}
