//! When a server cuts what is left of it: one moment for all shards, on their drivers' clock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::driver::Nanos;

/// No drain has been asked for.
const NEVER: u64 = u64::MAX;

/// The end of a drain, once one has been asked for. Shards read it in each turn; who sets it rings
/// them, since one that sleeps looks at nothing.
#[derive(Debug)]
pub(crate) struct Deadline(AtomicU64);

impl Deadline {
    /// The deadline of a server for which no drain has been asked.
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(NEVER))
    }

    /// Asks for a drain that ends at `at`, or earlier where that was asked for before.
    pub(crate) fn set(&self, at: Nanos) {
        self.0.fetch_min(at.0.min(NEVER - 1), Ordering::AcqRel);
    }

    /// When the drain ends; `None` where none has been asked for. A thread that sees a deadline also sees
    /// every message that was put into its mailbox before the deadline was set.
    pub(crate) fn get(&self) -> Option<Nanos> {
        let at = self.0.load(Ordering::Acquire);
        (at != NEVER).then_some(Nanos(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_moment_asked_for_counts() {
        let deadline = Deadline::new();
        assert_eq!(deadline.get(), None);
        deadline.set(Nanos(u64::MAX));
        assert_eq!(deadline.get(), Some(Nanos(u64::MAX - 1)));
        deadline.set(Nanos(7));
        deadline.set(Nanos(9));
        assert_eq!(deadline.get(), Some(Nanos(7)));
    }
}
