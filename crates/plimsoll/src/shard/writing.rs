//! A session's outbox, on its way to the driver.

use super::Shard;
use super::shortage::is_shortage;
use crate::driver::{Driver, Failure, Fault, Kind};
use crate::handler::Handler;
use crate::reason::Reason;
use crate::session::life::{Life, Writing};
use crate::session::wheel::Tick;

impl<D: Driver, H: Handler> Shard<D, H> {
    /// Posts what a session has to send, or what comes after its last byte.
    pub(super) fn write(&mut self, slot: u32) {
        let session = self.core.table.get(slot);
        let marks = session.marks;
        if session.writing == Writing::Sending || marks.short || marks.waits_to_send {
            return;
        }
        if !session.outbox.is_empty() {
            if self.may_send(slot, marks.blocked) {
                self.post_send(slot);
            }
            return;
        }
        let (life, idle) = (session.life, session.writing == Writing::Idle);
        if life == Life::Draining && !session.in_flight.has(Kind::HalfClose) {
            self.finish(slot, false);
        } else if life == Life::Open && marks.half_close && idle && self.may_send(slot, false) {
            self.post_half_close(slot);
        }
    }

    /// The same, of a session that has waited for a place and has it now. Whether it made use of
    /// it.
    pub(super) fn write_in_turn(&mut self, slot: u32) -> bool {
        let session = self.core.table.get(slot);
        if session.marks.short {
            // It comes again when that is over.
            return false;
        }
        if session.outbox.is_empty() {
            self.post_half_close(slot);
        } else {
            self.post_send(slot);
            self.core.watch_drain(slot, 0);
        }
        true
    }

    fn post_send(&mut self, slot: u32) {
        let session = self.core.table.get(slot);
        let count = session.outbox.spans(&self.core.links, &mut self.spans);
        session.writing = Writing::Sending;
        let at_once = !session.marks.blocked;
        let token = self.begin_operation(Kind::Send, slot);
        self.driver.send(token, &self.spans[..count], at_once);
    }

    fn post_half_close(&mut self, slot: u32) {
        self.core.table.get(slot).writing = Writing::Shut;
        let token = self.begin_operation(Kind::HalfClose, slot);
        self.driver.half_close(token);
    }

    /// A send completed.
    pub(super) fn sent(&mut self, slot: u32, result: Result<u32, Failure>) {
        let session = self.core.table.get(slot);
        if session.writing == Writing::Sending {
            session.writing = Writing::Idle;
        }
        if !session.is_alive() {
            return self.release_if_over(slot);
        }
        match result {
            Ok(taken) => {
                session.outbox.consume(&mut self.core.links, &mut self.core.arena, taken);
                // What we send does not put off the deadline for the peer's first byte.
                let heard = session.marks.heard || session.marks.outgoing;
                if heard || self.core.limits.first_byte_timeout.is_none() {
                    session.active = Tick::not_before(self.core.now);
                }
                session.marks.blocked = !session.outbox.is_empty();
                if session.marks.blocked && !session.marks.known {
                    return self.finish(slot, true);
                }
                let marks = session.marks;
                self.core.counters.sent_bytes.add(u64::from(taken));
                self.core.watch_drain(slot, taken);
                if marks.blocked || marks.ask_for_more() {
                    self.core.touch(slot);
                    self.fell_below(slot);
                }
            }
            // The kernel has no room: the next send waits for some.
            Err(Failure { fault: Fault::WouldBlock, .. }) => {
                if !session.marks.known {
                    return self.finish(slot, true);
                }
                session.marks.blocked = true;
                self.core.watch_drain(slot, 0);
                self.core.touch(slot);
            }
            Err(failure) if is_shortage(failure.fault) => self.back_off(slot, failure.fault),
            Err(failure) => self.fail(slot, Reason::of(failure)),
        }
    }

    /// Tells the handler when an outbox that was over its high mark is below its low one.
    fn fell_below(&mut self, slot: u32) {
        let low = self.core.limits.outbox_low;
        let session = self.core.table.get(slot);
        if session.marks.over_high && session.outbox.len() <= low {
            session.marks.over_high = false;
            session.marks.wants_more = false;
            if session.life == Life::Open {
                self.call(slot, "on_writable", H::on_writable);
            }
        }
    }

    /// A half-close completed. One that failed is no loss: the connection is failing, and the
    /// receive says how.
    pub(super) fn half_closed(&mut self, slot: u32, _result: Result<u32, Failure>) {
        self.core.touch(slot);
        self.release_if_over(slot);
    }
}
