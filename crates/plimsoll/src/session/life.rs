//! The life of a session, on three axes, and what is in flight.
//!
//! | life | means | goes to |
//! |---|---|---|
//! | `Free` | nobody's | `Waiting` (an accept is posted for it), `Connecting`, `Open` (adopted) |
//! | `Waiting` | an accept is in flight | `Open`, `Free` (the accept failed) |
//! | `Connecting` | a connect is in flight | `Open`, `Free` (it failed), `Closing` (given up) |
//! | `Open` | served | `Draining` (close asked for), `Closing` (aborted, failed) |
//! | `Draining` | sends what its outbox holds, reads no more | `Closing` |
//! | `Closing` | a close or abort is in flight | `Recycling` |
//! | `Recycling` | closed; other operations are still in flight | `Free` |
//!
//! A slot is free again when its life is over *and* nothing of it is in flight.

use crate::driver::Kind;

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Life {
    #[default]
    Free,
    Waiting,
    Connecting,
    Open,
    Draining,
    Closing,
    Recycling,
}

impl Life {
    /// Every one, in order.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 7] = [
        Self::Free,
        Self::Waiting,
        Self::Connecting,
        Self::Open,
        Self::Draining,
        Self::Closing,
        Self::Recycling,
    ];

    /// Whether the table above has an arrow from `self` to `next`.
    pub(crate) fn may_become(self, next: Self) -> bool {
        use Life::{Closing, Connecting, Draining, Free, Open, Recycling, Waiting};
        #[allow(clippy::unnested_or_patterns, reason = "a row of the table is a line")]
        let may = matches!(
            (self, next),
            (Free, Waiting | Connecting | Open)
                | (Waiting | Connecting, Open | Free)
                | (Connecting | Open, Closing)
                | (Open, Draining)
                | (Draining, Closing)
                | (Closing, Recycling)
                | (Recycling, Free)
        );
        may
    }
}

/// What a session does about bytes from its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Reading {
    /// Nothing: it has not begun, or its outbox is over the high mark, or its handler said so.
    #[default]
    Paused,
    /// It waits for readiness, and holds no buffer.
    Parked,
    /// It is ready, and waits for a block of the arena.
    Starved,
    /// It receives into a block, or as a stream.
    Receiving,
    /// The peer has ended its stream.
    Ended,
}

/// What a session does about bytes to its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Writing {
    /// Nothing is in flight.
    #[default]
    Idle,
    /// A send is in flight.
    Sending,
    /// Our end of stream has been sent.
    Shut,
}

/// Which kinds of operation are in flight, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct InFlight(u8);

impl InFlight {
    /// Whether an operation of this kind is in flight.
    pub(crate) fn has(self, kind: Kind) -> bool {
        self.0 & Self::bit(kind) != 0
    }

    /// One was posted.
    pub(crate) fn post(&mut self, kind: Kind) {
        debug_assert!(!self.has(kind), "a second {kind:?} in flight");
        self.0 |= Self::bit(kind);
    }

    /// It completed.
    pub(crate) fn complete(&mut self, kind: Kind) {
        debug_assert!(self.has(kind), "no {kind:?} in flight");
        self.0 &= !Self::bit(kind);
    }

    /// How many are, a close not counted.
    pub(crate) fn count_but_close(self) -> u32 {
        (self.0 & !Self::bit(Kind::Close)).count_ones()
    }

    /// Whether none is.
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn bit(kind: Kind) -> u8 {
        1 << (kind as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the module's documentation, read back.
    #[test]
    fn the_transitions_are_those_of_the_table() {
        let table = include_str!("life.rs");
        let name = |life: Life| format!("`{life:?}`");
        for life in Life::ALL {
            let row = table
                .lines()
                .find(|line| line.starts_with(&format!("//! | {} |", name(life))))
                .expect("each life has a row");
            let goes_to = row.split('|').nth(3).expect("three columns");
            for next in Life::ALL {
                let written = goes_to.contains(&name(next));
                assert_eq!(written, life.may_become(next), "{life:?} → {next:?}");
            }
        }
    }

    #[test]
    fn in_flight_counts_each_kind_once() {
        let mut in_flight = InFlight::default();
        for kind in Kind::ALL.into_iter().take(Kind::OF_SLOTS) {
            assert!(!in_flight.has(kind));
            in_flight.post(kind);
            assert!(in_flight.has(kind));
        }
        for kind in Kind::ALL.into_iter().take(Kind::OF_SLOTS) {
            in_flight.complete(kind);
        }
        assert!(in_flight.is_empty());
    }
}
