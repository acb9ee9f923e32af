//! What the driver knows of a slot: twelve bytes.

use crate::buffer::Lease;
use crate::driver::{Kind, Token};

/// A close was posted; nothing new is begun on its own account.
pub(super) const CLOSING: u8 = 1 << 0;
/// The kernel has closed it, and the completion waits for those of the other operations.
pub(super) const CLOSED: u8 = 1 << 1;
/// A half-close waits until the send in flight has completed.
pub(super) const HALF_CLOSE_WAITS: u8 = 1 << 2;

/// A slot's state.
#[derive(Default)]
pub(super) struct Slot {
    /// The lease of the [`Driver::receive`](crate::driver::Driver::receive) in flight.
    pub(super) lease: Option<Lease>,
    /// Of the last operation begun.
    generation: u32,
    /// A bit for each [`Kind`] in flight.
    in_flight: u8,
    flags: u8,
    /// While an accept is in flight or not taken: the place of its address. While a failed
    /// connect is tidied up: its error number.
    pub(super) extra: u16,
}

impl Slot {
    fn bit(kind: Kind) -> u8 {
        1 << (kind as u8)
    }

    pub(super) fn begin(&mut self, token: Token) {
        debug_assert!(!self.is_in_flight(token.kind()), "two operations of one kind: {token:?}");
        self.generation = token.generation();
        self.in_flight |= Self::bit(token.kind());
    }

    /// The token of the operation of this kind in flight, of slot `number`.
    pub(super) fn token(&self, kind: Kind, number: u32) -> Token {
        Token::new(kind, u64::from(self.generation), number)
    }

    pub(super) fn end(&mut self, kind: Kind) {
        debug_assert!(self.is_in_flight(kind), "{kind:?} completed twice");
        self.in_flight &= !Self::bit(kind);
    }

    pub(super) fn is_in_flight(&self, kind: Kind) -> bool {
        self.in_flight & Self::bit(kind) != 0
    }

    /// Operations in flight.
    #[cfg(test)]
    pub(super) fn in_flight_count(&self) -> usize {
        self.in_flight.count_ones() as usize
    }

    /// Whether an operation in flight may touch memory of ours.
    pub(super) fn lends_memory(&self) -> bool {
        self.in_flight
            & (Self::bit(Kind::Accept) | Self::bit(Kind::Receive) | Self::bit(Kind::Send))
            != 0
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn set(&mut self, flag: u8) {
        self.flags |= flag;
    }

    pub(super) fn unset(&mut self, flag: u8) {
        self.flags &= !flag;
    }

    /// Whether the kernel has closed it and only the close's own completion is outstanding.
    pub(super) fn is_over(&self) -> bool {
        self.flags & CLOSED != 0 && self.in_flight == Self::bit(Kind::Close)
    }

    /// Forgets the use that has ended.
    pub(super) fn recycle(&mut self) {
        debug_assert!(self.lease.is_none(), "a lease was left behind");
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_twelve_bytes() {
        assert_eq!(size_of::<Slot>(), 12);
    }

    #[test]
    fn a_slot_is_over_when_nothing_but_the_close_is_left() {
        let mut slot = Slot::default();
        slot.begin(Token::new(Kind::Receive, 5, 0));
        slot.begin(Token::new(Kind::Close, 5, 0));
        slot.set(CLOSED);
        assert!(!slot.is_over() && slot.lends_memory());
        slot.end(Kind::Receive);
        assert!(slot.is_over() && !slot.lends_memory());
    }
}
