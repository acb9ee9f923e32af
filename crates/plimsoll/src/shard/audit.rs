//! The audit: a shard's accounts against what is there. Slots, operations, leases, permits, bytes.

use super::Shard;
use super::operations::Operations;
use crate::driver::{Driver, Kind};
use crate::handler::Handler;
use crate::session::life::{Life, Reading};
use crate::session::wheel::NONE;

/// What is counted by looking at each slot.
#[derive(Debug, Default, PartialEq, Eq)]
struct Census {
    used: u32,
    known: u32,
    outgoing: u32,
    accepted: u32,
    starved: u32,
    /// Blocks in chains.
    chained: u32,
    /// Receives in flight.
    receiving: u32,
}

impl<D: Driver, H: Handler> Shard<D, H> {
    /// Reconciles the accounts, between two turns. O(slots that were ever used).
    ///
    /// # Errors
    ///
    /// What does not agree: a bug in the engine or its driver.
    pub(crate) fn audit(&mut self) -> Result<(), String> {
        let census = self.census()?;
        let hungry = self.count_hungry();
        let limited = self.operations.as_ref().map(Operations::count);
        let operations = limited.map(|count| (self.operations_found(), count)).unwrap_or_default();
        let core = &self.core;
        let posted = if self.provide > 0 { self.provided } else { self.pinned };
        let receiving = if self.provide > 0 { 0 } else { census.receiving };
        for (what, found, account) in [
            ("slots in use", census.used, core.table.used()),
            ("sessions", census.known, core.open),
            ("outgoing", census.outgoing, core.outgoing_most - core.outgoing_left),
            ("waiting for a block", census.starved, hungry),
            ("operations in flight", operations.0, operations.1),
            ("single receives", receiving, self.pinned),
            ("blocks out", census.chained + posted, core.arena.outstanding() as u32),
        ] {
            if found != account {
                let shard = core.shard;
                return Err(format!("shard {shard}: {what}: {found} found, {account} counted"));
            }
        }
        let permits = self.ledger.load_of(core.shard);
        if census.accepted > permits {
            let accepted = census.accepted;
            return Err(format!("shard {}: {accepted} accepted, {permits} permits", core.shard));
        }
        Ok(())
    }

    fn census(&mut self) -> Result<Census, String> {
        let mut census = Census::default();
        for slot in 0..self.core.table.touched() {
            self.count_slot(slot, &mut census)
                .map_err(|what| format!("shard {}, slot {slot}: {what}", self.core.shard))?;
        }
        Ok(census)
    }

    fn count_slot(&mut self, slot: u32, census: &mut Census) -> Result<(), String> {
        let core = &mut self.core;
        let session = core.table.get(slot);
        let flight = session.in_flight;
        let expected = match session.life {
            Life::Free => flight.is_empty() && session.node.due().is_none(),
            Life::Waiting => flight.has(Kind::Accept),
            Life::Connecting => flight.has(Kind::Connect),
            Life::Open | Life::Draining => !flight.has(Kind::Close) && !flight.has(Kind::Accept),
            Life::Closing => flight.has(Kind::Close),
            Life::Recycling => !flight.is_empty() && !flight.has(Kind::Close),
        };
        if !expected {
            return Err(format!("{:?} with {flight:?} in flight", session.life));
        }
        census.chained += session.inbox.audit(&core.links)? + session.outbox.audit(&core.links)?;
        if session.life == Life::Free {
            return if session.inbox.is_empty() && session.outbox.is_empty() {
                Ok(())
            } else {
                Err("free, and it holds bytes".into())
            };
        }
        census.used += 1;
        census.known += u32::from(session.marks.known);
        census.outgoing += u32::from(session.marks.outgoing);
        census.accepted += u32::from(!session.marks.outgoing);
        census.starved += u32::from(session.reading == Reading::Starved);
        census.receiving += u32::from(flight.has(Kind::Receive));
        Ok(())
    }

    fn count_hungry(&mut self) -> u32 {
        let (mut count, mut at) = (0, self.hungry.head);
        while at != NONE {
            count += 1;
            at = self.core.table.get(at).next;
        }
        count
    }
}
