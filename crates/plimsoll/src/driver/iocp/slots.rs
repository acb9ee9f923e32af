//! What the driver knows of a slot.

use std::collections::VecDeque;
use std::os::windows::io::OwnedSocket;

use crate::buffer::Lease;
use crate::driver::kinds::Kinds;
use crate::driver::{Kind, Token};

/// It stands in the driver's queue.
const QUEUED: u8 = 1 << 0;
/// The connection was accepted on this driver's listener.
pub(super) const ACCEPTED: u8 = 1 << 1;
/// The connection was made by us, from no address in particular.
pub(super) const CONNECTED: u8 = 1 << 2;
/// The socket is of IPv6.
pub(super) const V6: u8 = 1 << 3;

/// A slot's state.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) socket: Option<OwnedSocket>,
    /// Of the last operation begun.
    generation: u32,
    /// The lease of the receive in flight.
    pub(super) lease: Option<Lease>,
    /// Results of operations that are over: of connect or half-close, park, receive, send.
    results: [i32; 4],
    /// What the caller waits for.
    in_flight: Kinds,
    /// Those of which the `OVERLAPPED` is the kernel's.
    kernel: Kinds,
    /// Those that are over, and whose caller has not been told.
    over: Kinds,
    flags: u8,
}

impl Slot {
    fn result(kind: Kind) -> usize {
        match kind {
            Kind::Park => 1,
            Kind::Receive => 2,
            Kind::Send => 3,
            // Never in flight together.
            Kind::Connect | Kind::HalfClose => 0,
            Kind::Accept | Kind::HandOver | Kind::Close => unreachable!("told otherwise"),
        }
    }

    #[inline]
    pub(super) fn begin(&mut self, token: Token) {
        self.generation = token.generation();
        self.in_flight.begin(token.kind());
    }

    #[inline]
    pub(super) fn end(&mut self, kind: Kind) {
        self.in_flight.end(kind);
        self.over.remove(kind);
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

    /// Whether nothing is, but for a close.
    pub(super) fn is_over(&self) -> bool {
        self.in_flight == Kinds::of(&[Kind::Close])
    }

    /// Operations in flight, accepts not counted.
    #[cfg(test)]
    pub(super) fn in_flight_count(&self) -> usize {
        self.in_flight.len() - usize::from(self.is_in_flight(Kind::Accept))
    }

    /// The kernel has the `OVERLAPPED` of this kind from now on.
    #[inline]
    pub(super) fn post(&mut self, kind: Kind) {
        self.kernel.begin(kind);
    }

    /// The kernel is done with it.
    #[inline]
    pub(super) fn unpost(&mut self, kind: Kind) {
        self.kernel.end(kind);
    }

    /// Whether the kernel has the `OVERLAPPED` of this kind.
    #[inline]
    pub(super) fn is_posted(&self, kind: Kind) -> bool {
        self.kernel.contains(kind)
    }

    /// Whether the kernel has any.
    #[inline]
    pub(super) fn has_posted(&self) -> bool {
        !self.kernel.is_empty()
    }

    /// An operation in flight is over: a count, or a negative code.
    #[inline]
    pub(super) fn finish(&mut self, kind: Kind, result: i32) {
        debug_assert!(self.is_in_flight(kind) && !self.is_posted(kind));
        self.results[Self::result(kind)] = result;
        self.over.insert(kind);
    }

    /// An operation that is over, and its result.
    #[inline]
    pub(super) fn finished(&self) -> Option<(Kind, i32)> {
        self.over.first().map(|kind| (kind, self.results[Self::result(kind)]))
    }

    #[inline]
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Puts the slot, whose number this is, into the queue, unless it stands there.
    #[inline]
    pub(super) fn enqueue(&mut self, number: u32, queue: &mut VecDeque<u32>) {
        if !self.has(QUEUED) {
            self.flags |= QUEUED;
            queue.push_back(number);
        }
    }

    /// It was taken from the queue.
    #[inline]
    pub(super) fn dequeued(&mut self) {
        self.flags &= !QUEUED;
    }

    /// A connection comes in.
    pub(super) fn install(&mut self, socket: OwnedSocket, flags: u8) {
        debug_assert!(self.socket.is_none(), "a slot with two connections");
        self.flags = self.flags & QUEUED | flags;
        self.socket = Some(socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_forty_bytes() {
        assert_eq!(size_of::<Slot>(), 40);
    }

    #[test]
    fn what_is_over_is_told_once() {
        let mut slot = Slot::default();
        let send = Token::new(Kind::Send, 3, 0);
        slot.begin(send);
        slot.begin(send.with(Kind::Park));
        slot.post(Kind::Park);
        slot.finish(Kind::Send, 17);
        assert_eq!(slot.finished(), Some((Kind::Send, 17)));
        slot.end(Kind::Send);
        assert_eq!(slot.finished(), None);
        assert!(slot.has_posted() && slot.is_posted(Kind::Park));
        slot.unpost(Kind::Park);
        slot.finish(Kind::Park, -1);
        assert_eq!(slot.finished(), Some((Kind::Park, -1)));
    }

    #[test]
    fn a_slot_stands_in_the_queue_once() {
        let (mut slot, mut queue) = (Slot::default(), VecDeque::new());
        slot.enqueue(4, &mut queue);
        slot.enqueue(4, &mut queue);
        assert_eq!(queue, [4]);
        slot.dequeued();
        slot.enqueue(4, &mut queue);
        assert_eq!(queue, [4, 4]);
    }
}
