//! Sessions that wait for a block, oldest first.

use super::Shard;
use crate::driver::Driver;
use crate::handler::Handler;
use crate::session::life::Reading;
use crate::session::table::Table;
use crate::session::wheel::NONE;

/// A list of slots, linked through their sessions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hungry {
    pub(super) head: u32,
    tail: u32,
}

impl Default for Hungry {
    fn default() -> Self {
        Self { head: NONE, tail: NONE }
    }
}

impl Hungry {
    pub(super) fn is_empty(self) -> bool {
        self.head == NONE
    }

    pub(super) fn push<S>(&mut self, table: &mut Table<S>, slot: u32) {
        table.get(slot).next = NONE;
        match self.tail {
            NONE => self.head = slot,
            tail => table.get(tail).next = slot,
        }
        self.tail = slot;
    }

    pub(super) fn pop<S>(&mut self, table: &mut Table<S>) -> Option<u32> {
        if self.head == NONE {
            return None;
        }
        let slot = self.head;
        self.head = std::mem::replace(&mut table.get(slot).next, NONE);
        if self.head == NONE {
            self.tail = NONE;
        }
        Some(slot)
    }

    /// Takes a slot out, wherever it is: when its session ends while it waits. O(waiting).
    pub(super) fn remove<S>(&mut self, table: &mut Table<S>, slot: u32) {
        let mut kept = Self::default();
        while let Some(other) = self.pop(table) {
            if other != slot {
                kept.push(table, other);
            }
        }
        *self = kept;
    }
}

impl<D: Driver, H: Handler> Shard<D, H> {
    /// Has a session wait for a block.
    pub(super) fn starve(&mut self, slot: u32) {
        self.core.counters.starved.add(1);
        self.core.table.get(slot).reading = Reading::Starved;
        self.hungry.push(&mut self.core.table, slot);
    }
}
