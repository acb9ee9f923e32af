//! What the driver knows of a slot: twelve bytes.

use crate::buffer::Lease;
use crate::driver::kinds::Kinds;
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
    in_flight: Kinds,
    flags: u8,
    /// While an accept is in flight or not taken: the place of its address. While a failed
    /// connect is tidied up: its error number.
    pub(super) extra: u16,
}

impl Slot {
    pub(super) fn begin(&mut self, token: Token) {
        self.generation = token.generation();
        self.in_flight.begin(token.kind());
    }

    /// The token of the operation of this kind in flight, of slot `number`.
    pub(super) fn token(&self, kind: Kind, number: u32) -> Token {
        Token::new(kind, u64::from(self.generation), number)
    }

    pub(super) fn end(&mut self, kind: Kind) {
        self.in_flight.end(kind);
    }

    pub(super) fn is_in_flight(&self, kind: Kind) -> bool {
        self.in_flight.contains(kind)
    }

    /// Operations in flight.
    #[cfg(test)]
    pub(super) fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether an operation in flight may touch memory of ours.
    pub(super) fn lends_memory(&self) -> bool {
        self.in_flight.meets(const { Kinds::of(&[Kind::Accept, Kind::Receive, Kind::Send]) })
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
        self.flags & CLOSED != 0 && self.in_flight == Kinds::of(&[Kind::Close])
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
