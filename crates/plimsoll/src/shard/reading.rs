//! Bytes from the driver, on their way to the handler.

use super::shortage::is_shortage;
use super::{Profile, Shard, call};
use crate::buffer::Lease;
use crate::driver::{Completion, Driver, Failure, Fault, Kind};
use crate::handler::{Context, Handler};
use crate::monitor::SHORTEST_PAUSE;
use crate::reason::Reason;
use crate::session::core::Shown;
use crate::session::life::{Life, Reading};
use crate::session::wheel::Tick;

impl<D: Driver, H: Handler> Shard<D, H> {
    /// Whether a session's handler should be shown bytes now.
    pub(super) fn wants_bytes(&mut self, slot: u32) -> bool {
        let session = self.core.table.get(slot);
        let marks = session.marks;
        session.life == Life::Open
            && !(marks.over_high
                || marks.held_by_handler
                || marks.unserved
                || marks.abort
                || marks.close)
    }

    /// Starts, goes on or stops reading, as the session's state wants it.
    pub(super) fn read(&mut self, slot: u32) {
        if !self.wants_bytes(slot) {
            return self.stop_reading(slot);
        }
        let session = self.core.table.get(slot);
        if !session.inbox.is_empty() && !session.marks.wants_more {
            self.show_inbox(slot);
            if !self.wants_bytes(slot) {
                return self.stop_reading(slot);
            }
        }
        let session = self.core.table.get(slot);
        if session.marks.end_owed {
            session.marks.end_owed = false;
            self.call(slot, "on_end", H::on_end);
            return;
        }
        let in_flight = session.in_flight.has(Kind::Receive) || session.in_flight.has(Kind::Park);
        if session.reading == Reading::Paused && !in_flight && !session.marks.short {
            self.start_reading(slot);
        }
    }

    fn start_reading(&mut self, slot: u32) {
        // Receives posted ahead, which an idle peer never completes, take no more than half of the
        // blocks: the others serve outboxes, and those who park.
        let blocks = self.core.arena.available();
        let ahead = self.profile == Profile::Throughput
            && blocks * 2 > self.memory.blocks() as usize
            && (self.pinned + 1) * 2 <= self.pinned_most;
        if self.provide > 0 {
            self.core.table.get(slot).reading = Reading::Receiving;
            let token = self.begin_operation(Kind::Receive, slot);
            self.driver.stream(token);
        } else if ahead {
            self.post_receive(slot, false);
        } else {
            self.core.table.get(slot).reading = Reading::Parked;
            let token = self.begin_operation(Kind::Park, slot);
            self.driver.park(token);
        }
    }

    /// Posts a single receive, or has the session wait for a block. With `at_once` the block comes
    /// back at once where there is nothing to read.
    fn post_receive(&mut self, slot: u32, at_once: bool) {
        if self.pinned == self.pinned_most {
            return self.starve(slot);
        }
        let Some(lease) = self.core.arena.lease() else { return self.starve(slot) };
        self.pinned += 1;
        self.core.table.get(slot).reading = Reading::Receiving;
        let token = self.begin_operation(Kind::Receive, slot);
        self.driver.receive(token, lease, 0, at_once);
    }

    /// A stream is stopped. A park or a single receive stays: it brings one block at most, which is
    /// kept, and the peer is stopped by TCP's window.
    fn stop_reading(&mut self, slot: u32) {
        let session = self.core.table.get(slot);
        if session.reading == Reading::Receiving && session.in_flight.has(Kind::Receive) {
            session.reading = Reading::Paused;
            // A close has cancelled it already.
            if self.provide > 0 && session.is_alive() {
                let token = self.token(Kind::Receive, slot);
                self.driver.stop(token);
            }
        }
    }

    /// A park completed.
    pub(super) fn readable(&mut self, slot: u32, result: Result<u32, Failure>) {
        let wanted = self.wants_bytes(slot);
        let session = self.core.table.get(slot);
        if session.reading == Reading::Parked {
            session.reading = Reading::Paused;
        }
        match result {
            _ if !session.is_alive() => self.release_if_over(slot),
            // The receive that follows tells an end from an error; and from an urgent byte, for
            // which there is nothing to read: it must not pin a block then.
            Ok(_) if wanted => self.post_receive(slot, true),
            Ok(_) => {}
            Err(Failure { fault: Fault::Cancelled, .. }) => self.core.touch(slot),
            Err(failure) if is_shortage(failure.fault) => self.back_off(slot, failure.fault),
            Err(failure) => self.fail(slot, Reason::of(failure)),
        }
    }

    /// A receive completed, or a stream brought something.
    pub(super) fn received(&mut self, slot: u32, completion: Completion) {
        let Completion { result, lease, more, .. } = completion;
        if lease.is_some() {
            // It was the kernel's: of a stream, or of a single receive.
            let account = if self.provide > 0 { &mut self.provided } else { &mut self.pinned };
            *account -= 1;
        }
        let session = self.core.table.get(slot);
        if !more && session.reading == Reading::Receiving {
            session.reading = Reading::Paused;
        }
        if session.life != Life::Open {
            self.give_back(lease);
            return self.release_if_over(slot);
        }
        match (result, lease) {
            (Ok(0), lease) => {
                self.give_back(lease);
                // The handler is told once it has been shown all that came before.
                let session = self.core.table.get(slot);
                session.reading = Reading::Ended;
                session.marks.end_owed = true;
                self.core.touch(slot);
            }
            (Ok(count), Some(lease)) => {
                session.active = Tick::not_before(self.core.now);
                session.marks.heard = true;
                self.core.counters.received_bytes.add(u64::from(count));
                self.take_in(slot, lease, count);
                if !more {
                    self.core.touch(slot);
                }
            }
            // A driver returns the lease with the bytes: without one there are none.
            (Ok(_), None) => self.core.touch(slot),
            (Err(failure), lease) => {
                self.give_back(lease);
                self.receive_failed(slot, failure);
            }
        }
    }

    fn receive_failed(&mut self, slot: u32, failure: Failure) {
        match failure.fault {
            // WouldBlock: it was told that there is something to read, and there was nothing.
            Fault::Cancelled | Fault::WouldBlock => self.core.touch(slot),
            Fault::NoBlock => self.without_block(slot),
            fault if is_shortage(fault) => self.back_off(slot, fault),
            _ => self.fail(slot, Reason::of(failure)),
        }
    }

    /// A stream found no block: it goes on when one is lent. Those that are lent now hold bytes, of
    /// which we may not have been told yet: going on at once would be a hot loop.
    fn without_block(&mut self, slot: u32) {
        self.lent_since = 0;
        // One may have been lent since it failed, and all be well: so we do not wait for ever.
        self.feed_at.get_or_insert(self.core.now.after(SHORTEST_PAUSE));
        self.starve(slot);
    }

    /// Shows received bytes to the handler, or keeps them where it may not be shown any now.
    fn take_in(&mut self, slot: u32, lease: Lease, count: u32) {
        let wanted = self.wants_bytes(slot);
        if !wanted || !self.core.table.get(slot).inbox.is_empty() {
            self.keep(slot, lease, count);
            if wanted {
                self.show_inbox(slot);
            }
            return;
        }
        let consumed = self.show(slot, &lease, 0, count);
        if consumed == 0 {
            self.core.want_more(slot);
            if count as usize == self.memory.block_bytes() {
                self.too_long(slot);
            }
        } else if consumed < count {
            // It may want the rest at once: whoever consumes is shown what is left.
            self.core.touch(slot);
        }
        self.after_shown(slot, lease, (consumed, count));
    }

    /// Puts received bytes behind those that are held: into the room of the last block first.
    fn keep(&mut self, slot: u32, lease: Lease, count: u32) {
        let session = self.core.table.get(slot);
        session.marks.wants_more = false;
        let bytes = &lease.bytes(&self.memory)[..count as usize];
        let start = session.inbox.fill_tail(&mut self.core.links, &self.memory, bytes) as u32;
        if start == count {
            self.core.arena.give_back(lease);
        } else {
            session.inbox.push_lease(&mut self.core.links, lease, start, count);
        }
    }

    /// Shows what is held, block by block, until the handler wants more than there is.
    fn show_inbox(&mut self, slot: u32) {
        while self.wants_bytes(slot) {
            let session = self.core.table.get(slot);
            let Some((lease, start, end)) = session.inbox.pop_front(&mut self.core.links) else {
                return;
            };
            let consumed = self.show(slot, &lease, start, end);
            if consumed > 0 {
                self.after_shown(slot, lease, (start + consumed, end));
                continue;
            }
            self.copy_sent(slot);
            match self.join(slot, lease, start, end) {
                Joined::More => {}
                Joined::NoMore => {
                    self.core.want_more(slot);
                    return;
                }
                Joined::Full => return self.too_long(slot),
            }
        }
    }

    /// Moves held bytes to their block's start, and those of the next block behind them.
    fn join(&mut self, slot: u32, mut lease: Lease, start: u32, end: u32) -> Joined {
        let session = self.core.table.get(slot);
        let Some((next, next_start, next_end)) = session.inbox.pop_front(&mut self.core.links)
        else {
            let full = (end - start) as usize == self.memory.block_bytes();
            // Room is made at the end, so that what comes next fits behind.
            lease.bytes_mut(&self.memory).copy_within(start as usize..end as usize, 0);
            session.inbox.push_front(&mut self.core.links, lease, 0, end - start);
            return if full { Joined::Full } else { Joined::NoMore };
        };
        let held = (end - start) as usize;
        let block = lease.bytes_mut(&self.memory);
        block.copy_within(start as usize..end as usize, 0);
        let more = &next.bytes(&self.memory)[next_start as usize..next_end as usize];
        let moved = more.len().min(block.len() - held);
        block[held..held + moved].copy_from_slice(&more[..moved]);
        let next_start = next_start + moved as u32;
        if next_start < next_end {
            session.inbox.push_front(&mut self.core.links, next, next_start, next_end);
        } else {
            self.core.arena.give_back(next);
        }
        let session = self.core.table.get(slot);
        session.inbox.push_front(&mut self.core.links, lease, 0, (held + moved) as u32);
        if moved == 0 { Joined::Full } else { Joined::More }
    }

    /// Calls the handler with bytes of a block. Returns how many it consumed.
    fn show(&mut self, slot: u32, lease: &Lease, start: u32, end: u32) -> u32 {
        self.core.counters.received_messages.add(1);
        self.core.shown = Some(Shown { slot, block: lease.block(), sent: None });
        let bytes = &lease.bytes(&self.memory)[start as usize..end as usize];
        let callback =
            |handler: &mut H, cx: &mut Context<'_, H::State>| handler.on_receive(cx, bytes);
        self.core.called.note("on_receive");
        let consumed = call(&mut self.handler, &mut self.core, slot, callback).unwrap_or(0);
        if consumed > 0 {
            self.core.note_progress(slot);
        }
        consumed.min(bytes.len()) as u32
    }

    /// What becomes of a block that was shown: what the handler sent of it goes to the outbox,
    /// what it did not consume stays in the inbox, and with neither the block is free.
    fn after_shown(&mut self, slot: u32, lease: Lease, rest: (u32, u32)) {
        let held = rest.0 < rest.1;
        if held {
            self.copy_sent(slot);
        }
        let sent = self.core.shown.take().and_then(|shown| shown.sent);
        let session = self.core.table.get(slot);
        match sent {
            _ if held => {
                session.inbox.push_front(&mut self.core.links, lease, rest.0, rest.1);
            }
            Some(span) => {
                let end = span.start + span.len;
                session.outbox.push_lease(&mut self.core.links, lease, span.start, end);
            }
            None => self.core.arena.give_back(lease),
        }
    }

    /// Copies what the handler sent of the block that it was shown, which is still held, to the
    /// outbox.
    fn copy_sent(&mut self, slot: u32) {
        if !self.core.copy_shown(slot) {
            self.core.table.get(slot).end(Reason::NoBuffer);
            self.core.abort(slot);
        }
        self.core.shown = None;
    }

    /// Nothing was consumed of a whole block. Whoever has paused, or has a full outbox, may do so
    /// when it is shown again.
    fn too_long(&mut self, slot: u32) {
        if self.wants_bytes(slot) {
            self.core.table.get(slot).end(Reason::MessageTooLong);
            self.core.abort(slot);
        }
    }

    fn give_back(&mut self, lease: Option<Lease>) {
        if let Some(lease) = lease {
            self.core.arena.give_back(lease);
        }
    }

    /// Lends blocks to the streams again.
    pub(super) fn top_up(&mut self) {
        while self.provided < self.provide {
            let Some(lease) = self.core.arena.lease() else { return };
            self.provided += 1;
            self.lent_since = self.lent_since.saturating_add(1);
            self.driver.provide(lease);
        }
    }

    /// How many receives find a block now.
    pub(super) fn may_post(&self) -> usize {
        if self.provide > 0 {
            return self.provided.min(self.lent_since) as usize;
        }
        let pinned = (self.pinned_most - self.pinned) as usize;
        self.core.arena.available().min(pinned)
    }

    /// Lets those read that waited for a block, in their order, while there are blocks.
    pub(super) fn feed(&mut self) {
        if self.provide > 0 {
            self.top_up();
            if self.hungry.is_empty() {
                self.feed_at = None;
            } else if self.feed_at.is_some_and(|at| at <= self.core.now) {
                self.feed_at = None;
                self.lent_since = self.provided;
            }
        }
        let mut blocks = self.may_post();
        while blocks > 0 {
            let Some(slot) = self.hungry.pop(&mut self.core.table) else { return };
            blocks -= 1;
            self.core.table.get(slot).reading = Reading::Paused;
            if self.provide > 0 {
                self.core.touch(slot);
            } else {
                self.post_receive(slot, true);
            }
        }
    }
}

/// What became of bytes that the handler wants more behind.
enum Joined {
    /// There are more behind them now.
    More,
    /// There are none to be had yet.
    NoMore,
    /// They fill a block: there is no room for more.
    Full,
}
