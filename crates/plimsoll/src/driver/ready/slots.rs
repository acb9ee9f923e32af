//! What the driver knows of a slot: forty bytes.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use crate::buffer::{Lease, Span};
use crate::driver::kinds::Kinds;
use crate::driver::{Kind, Token};

/// There may be something to read: bytes, an end, an error.
pub(super) const READABLE: u8 = 1 << 0;
/// Whether there still is, only asking the kernel can tell.
pub(super) const DOUBTFUL: u8 = 1 << 1;
/// An end, an error or urgent data was seen: a short receive proves nothing.
pub(super) const UNPROVABLE: u8 = 1 << 2;
/// The kernel has no room for bytes to send, or has not connected yet, and will tell.
pub(super) const FULL: u8 = 1 << 3;
/// The kernel was asked to tell when there is room.
pub(super) const WATCHES_WRITE: u8 = 1 << 4;
/// The send or connect in flight is over; the result is its.
const OVER: u8 = 1 << 5;
/// It stands in the driver's queue.
const QUEUED: u8 = 1 << 6;
/// The receive in flight is to be carried out at once, and ends if there is nothing to read.
pub(super) const AT_ONCE: u8 = 1 << 7;

/// A slot's state.
pub(super) struct Slot {
    pub(super) socket: Option<OwnedFd>,
    /// Of the last operation begun.
    generation: u32,
    /// Counts the slot's connections, so that events of an earlier one are known.
    pub(super) incarnation: u32,
    /// The lease of the [`Driver::receive`](crate::driver::Driver::receive) in flight, none for a
    /// stream.
    pub(super) lease: Option<Lease>,
    /// Where in its block it puts the bytes.
    pub(super) start: u32,
    /// What the send in flight waits to send.
    pub(super) outgoing: Span,
    /// Of the send or connect that is [`OVER`]: they are never in flight together.
    result: i32,
    in_flight: Kinds,
    /// Those that were cancelled.
    cancelled: Kinds,
    flags: u8,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            socket: None,
            generation: 0,
            incarnation: 0,
            lease: None,
            start: 0,
            outgoing: Span { block: 0, start: 0, len: 0 },
            result: 0,
            in_flight: Kinds::default(),
            cancelled: Kinds::default(),
            flags: 0,
        }
    }
}

impl Slot {
    #[inline]
    pub(super) fn begin(&mut self, token: Token) {
        self.generation = token.generation();
        self.in_flight.begin(token.kind());
    }

    #[inline]
    pub(super) fn end(&mut self, kind: Kind) {
        self.in_flight.end(kind);
        self.cancelled.remove(kind);
    }

    /// The token of the operation of this kind in flight, of slot `number`.
    #[inline]
    pub(super) fn token(&self, kind: Kind, number: u32) -> Token {
        Token::new(kind, u64::from(self.generation), number)
    }

    #[inline]
    pub(super) fn is_in_flight(&self, kind: Kind) -> bool {
        self.in_flight.contains(kind)
    }

    /// Whether anything is.
    #[inline]
    pub(super) fn is_busy(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether nothing is, but for a close.
    pub(super) fn is_over(&self) -> bool {
        self.in_flight == Kinds::of(&[Kind::Close])
    }

    /// Operations in flight, accepts not counted.
    #[cfg(test)]
    pub(super) fn in_flight_count(&self) -> usize {
        self.in_flight.len() - usize::from(self.is_in_flight(Kind::Accept))
    }

    /// Cancels the operation of this kind, if one is in flight that is not over. Whether it was.
    pub(super) fn cancel(&mut self, kind: Kind) -> bool {
        let over = self.has(OVER) && matches!(kind, Kind::Send | Kind::Connect);
        let cancels = self.is_in_flight(kind) && !over;
        if cancels {
            self.cancelled.insert(kind);
        }
        cancels
    }

    /// An operation that was cancelled, and whose caller has not been told.
    #[inline]
    pub(super) fn cancelled(&self) -> Option<Kind> {
        self.cancelled.first()
    }

    /// The send or connect in flight is over.
    #[inline]
    pub(super) fn finish(&mut self, result: i32) {
        self.result = result;
        self.flags |= OVER;
    }

    /// What of those is over, and its result, once.
    #[inline]
    pub(super) fn finished(&mut self) -> Option<(Kind, i32)> {
        if !self.has(OVER) {
            return None;
        }
        self.unset(OVER);
        let connects = self.is_in_flight(Kind::Connect);
        Some((if connects { Kind::Connect } else { Kind::Send }, self.result))
    }

    /// Whether one of these flags is set.
    #[inline]
    pub(super) fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    #[inline]
    pub(super) fn set(&mut self, flags: u8) {
        self.flags |= flags;
    }

    /// Sets the flags, or unsets them.
    #[inline]
    pub(super) fn put(&mut self, flags: u8, set: bool) {
        if set { self.set(flags) } else { self.unset(flags) }
    }

    #[inline]
    pub(super) fn unset(&mut self, flags: u8) {
        self.flags &= !flags;
    }

    #[inline]
    pub(super) fn may_be_readable(&self) -> bool {
        self.has(READABLE)
    }

    /// A receive brought less than there was room for (`short`), or as much.
    #[inline]
    pub(super) fn was_read(&mut self, short: bool) {
        if short && SHORT_IS_ALL && !self.has(UNPROVABLE) {
            self.unset(READABLE | DOUBTFUL);
        } else {
            self.set(DOUBTFUL);
        }
    }

    /// Puts the slot, whose number this is, into the queue, unless it stands there.
    #[inline]
    pub(super) fn enqueue(&mut self, number: u32, queue: &mut VecDeque<u32>) {
        if !self.has(QUEUED) {
            self.set(QUEUED);
            queue.push_back(number);
        }
    }

    /// It was taken from the queue.
    #[inline]
    pub(super) fn dequeued(&mut self) {
        self.unset(QUEUED);
    }

    /// A connection comes in, of which nothing is known yet.
    pub(super) fn install(&mut self, socket: OwnedFd) {
        debug_assert!(self.socket.is_none(), "a slot with two connections");
        self.flags &= QUEUED;
        self.socket = Some(socket);
    }

    /// Takes the connection out: events of it mean nothing any more.
    pub(super) fn remove(&mut self) -> Option<OwnedFd> {
        self.incarnation = self.incarnation.wrapping_add(1);
        self.flags &= QUEUED | OVER;
        self.socket.take()
    }
}

/// Whether a receive that brought less than there was room for says that nothing is left, where
/// no end, error or urgent data was seen. On Linux urgent data is; elsewhere it cuts receives short
/// unseen.
const SHORT_IS_ALL: bool = cfg!(target_os = "linux");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_forty_bytes() {
        assert_eq!(size_of::<Slot>(), 40);
    }

    #[test]
    fn what_is_over_is_not_cancelled() {
        let mut slot = Slot::default();
        let send = Token::new(Kind::Send, 3, 0);
        slot.begin(send);
        slot.begin(send.with(Kind::Park));
        slot.finish(17);
        assert!(!slot.cancel(Kind::Send) && slot.cancel(Kind::Park));
        assert!(!slot.cancel(Kind::Receive), "none is in flight");
        assert_eq!(slot.cancelled(), Some(Kind::Park));
        assert_eq!(slot.finished(), Some((Kind::Send, 17)));
        assert_eq!(slot.finished(), None);
    }

    #[test]
    fn a_slot_stands_in_the_queue_once() {
        let (mut slot, mut queue) = (Slot::default(), VecDeque::new());
        slot.enqueue(4, &mut queue);
        slot.remove();
        slot.enqueue(4, &mut queue);
        assert_eq!(queue, [4]);
    }
}
