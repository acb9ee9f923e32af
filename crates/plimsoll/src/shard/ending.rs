//! How sessions end, and how their slots become free.

use super::Shard;
use crate::budget::Dry;
use crate::driver::{Driver, Kind, Nanos};
use crate::handler::Handler;
use crate::reason::Reason;
use crate::session::core::Slow;
use crate::session::life::{Life, Reading};
use crate::session::table::Marks;
use crate::session::wheel::Tick;

impl<D: Driver, H: Handler> Shard<D, H> {
    /// Posts a session's close or abort, and tells its handler.
    pub(super) fn finish(&mut self, slot: u32, abort: bool) {
        let session = self.core.table.get(slot);
        if session.reading == Reading::Starved {
            session.reading = Reading::Paused;
            self.hungry.remove(&mut self.core.table, slot);
        }
        let session = self.core.table.get(slot);
        session.become_(Life::Closing);
        session.end(if abort { Reason::Aborted } else { Reason::Closed });
        let outgoing = session.marks.outgoing;
        let known = session.marks.known || outgoing;
        let reason = session.reason.expect("set above");
        self.leave_service(slot);
        if let Some(slow) = self.core.slow.get_mut(slot as usize) {
            *slow = Slow::default();
        }
        self.core.note_progress(slot);
        self.core.wheel.disarm(&mut self.core.table, slot);
        let token = self.begin_operation(Kind::Close, slot);
        if abort {
            self.driver.abort(token);
        } else {
            self.driver.close(token);
        }
        self.core.counters.ended[reason.number()].add(1);
        if known {
            self.call(slot, "on_disconnect", |handler, cx| handler.on_disconnect(cx, reason));
        }
    }

    /// An operation of a session failed: it ends. A connection that the peer has reset needs no
    /// reset from us.
    pub(super) fn fail(&mut self, slot: u32, reason: Reason) {
        let session = self.core.table.get(slot);
        if !session.is_alive() {
            return;
        }
        session.end(reason);
        self.finish(slot, reason != Reason::PeerReset);
    }

    /// A close or abort completed. Whatever the kernel says of it, the slot stands for no
    /// connection any more.
    pub(super) fn closed(&mut self, slot: u32) {
        self.core.table.get(slot).become_(Life::Recycling);
        self.release_if_over(slot);
    }

    /// Frees a slot whose life is over and of which nothing is in flight.
    pub(super) fn release_if_over(&mut self, slot: u32) {
        let session = self.core.table.get(slot);
        if !session.is_over() {
            return;
        }
        session.inbox.clear(&mut self.core.links, &mut self.core.arena);
        session.outbox.clear(&mut self.core.links, &mut self.core.arena);
        let Marks { outgoing, known, .. } = session.marks;
        let peer = session.peer;
        self.core.open -= u32::from(known);
        if session.marks.touched {
            self.core.touched.retain(|touched| *touched != slot);
        }
        self.core.wheel.disarm(&mut self.core.table, slot);
        self.core.table.release(slot);
        if outgoing {
            self.core.outgoing_left += 1;
        } else {
            if known {
                self.uncount_peer(peer);
            }
            self.ledger.release(self.core.shard);
        }
    }

    /// A session has neither sent nor received for too long.
    pub(super) fn silent_too_long(&mut self, slot: u32) {
        let first_byte = self.core.limits.first_byte_timeout.is_some();
        let session = self.core.table.get(slot);
        let unheard = !session.marks.heard && !session.marks.outgoing;
        let (reason, limit) = if unheard && first_byte {
            (Reason::FirstByteTimeout, Dry::FirstByteTimeout)
        } else {
            (Reason::IdleTimeout, Dry::IdleTimeout)
        };
        if self.core.is_dry(limit) {
            self.core.table.get(slot).active = Tick::not_before(self.core.now);
            return;
        }
        self.core.table.get(slot).end(reason);
        // What its outbox holds has not moved for as long: it never will.
        self.core.abort(slot);
    }

    /// A session's handler has waited too long for the rest of a message.
    pub(super) fn unfinished_too_long(&mut self, slot: u32) {
        let wanted = self.wants_bytes(slot);
        let session = self.core.table.get(slot);
        let is_read = wanted && session.reading != Reading::Starved && !session.marks.short;
        if !is_read || self.core.is_dry(Dry::MessageTimeout) {
            self.core.unfinished[slot as usize] = Some(Tick::not_before(self.core.now));
            return;
        }
        self.core.table.get(slot).end(Reason::MessageTimeout);
        self.core.abort(slot);
    }

    /// Stops accepting, tells every session, and cuts what is left at `cut_at`: called again, at the
    /// earlier of the two.
    pub(super) fn drain(&mut self, cut_at: Nanos) {
        if self.core.draining {
            self.cut_at = self.cut_at.map(|before| before.min(cut_at));
            return;
        }
        self.core.draining = true;
        self.cut_at = Some(cut_at);
        if let Some(acceptor) = &mut self.acceptor {
            acceptor.closed = true;
            self.driver.close_listener();
        }
        // Those who wait to be adopted are let go.
        self.adopt_handed();
        for slot in 0..self.core.table.touched() {
            match self.core.table.get(slot).life {
                Life::Open => drop(self.call(slot, "on_drain", H::on_drain)),
                Life::Connecting => self.core.close(slot, Reason::Drained),
                _ => {}
            }
            self.settle();
        }
    }

    /// Cuts what is left when the drain's deadline has come.
    pub(super) fn cut_when_due(&mut self) {
        if self.was_cut || self.cut_at.is_none_or(|cut_at| cut_at > self.core.now) {
            return;
        }
        self.was_cut = true;
        self.cut_at = None;
        for slot in 0..self.core.table.touched() {
            let session = self.core.table.get(slot);
            if session.is_alive() {
                // The deadline is the reason now, whatever had been asked for before.
                session.reason = Some(Reason::CutByDrain);
                self.core.abort(slot);
            }
            self.settle();
        }
    }
}
