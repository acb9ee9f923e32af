//! The ledger of permits: how many connections there are, and on which shard.
//!
//! A permit is taken before an accept is posted, and given back when its slot is free again: so
//! the limit holds at every moment, whatever the kernel does. Only accept and close touch it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::driver::Wake;

/// Permits, shared by all shards.
pub(crate) struct Ledger {
    limit: u32,
    taken: AtomicU32,
    loads: Box<[AtomicU32]>,
    /// The acceptor found no permit, and is to be woken when there is one.
    starved: AtomicBool,
    acceptor: Arc<dyn Wake>,
}

impl Ledger {
    /// A ledger of `limit` permits for `shards` shards, whose acceptor is woken by `acceptor`.
    pub(crate) fn new(limit: u32, shards: usize, acceptor: Arc<dyn Wake>) -> Self {
        Self {
            limit,
            taken: AtomicU32::new(0),
            loads: (0..shards).map(|_| AtomicU32::new(0)).collect(),
            starved: AtomicBool::new(false),
            acceptor,
        }
    }

    /// Takes a permit and charges it to the least loaded shard, whose number it returns. `None`
    /// where there is none: then a later [`Ledger::release`] wakes the acceptor.
    pub(crate) fn take(&self) -> Option<u32> {
        if !self.try_take() {
            // Sequentially consistent with `release`: either that sees the flag, or this second
            // try sees the permit.
            self.starved.store(true, Ordering::SeqCst);
            if !self.try_take() {
                return None;
            }
            self.starved.store(false, Ordering::SeqCst);
        }
        let shard = self.least_loaded();
        self.loads[shard as usize].fetch_add(1, Ordering::Relaxed);
        Some(shard)
    }

    /// Gives a permit of `shard` back.
    pub(crate) fn release(&self, shard: u32) {
        self.loads[shard as usize].fetch_sub(1, Ordering::Relaxed);
        let before = self.taken.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before > 0, "a permit was given back twice");
        if self.starved.swap(false, Ordering::SeqCst) {
            self.acceptor.wake();
        }
    }

    /// Permits that are out.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> u32 {
        self.taken.load(Ordering::Relaxed)
    }

    fn try_take(&self) -> bool {
        self.taken
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| {
                (taken < self.limit).then_some(taken + 1)
            })
            .is_ok()
    }

    fn least_loaded(&self) -> u32 {
        let load = |shard: &usize| self.loads[*shard].load(Ordering::Relaxed);
        (0..self.loads.len()).min_by_key(load).unwrap_or(0) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn permits_go_to_the_least_loaded_and_end() {
        let wakes = Arc::new(Wakes::default());
        let ledger = Ledger::new(3, 2, wakes.clone());
        assert_eq!([ledger.take(), ledger.take(), ledger.take()], [Some(0), Some(1), Some(0)]);
        assert_eq!(ledger.take(), None);
        ledger.release(0);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        ledger.release(0);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "woken once");
        assert_eq!(ledger.take(), Some(0));
        assert_eq!(ledger.taken(), 2);
    }

    #[test]
    fn the_limit_holds_under_a_race() {
        let ledger = Ledger::new(10, 4, Arc::new(Wakes::default()));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        if let Some(shard) = ledger.take() {
                            assert!(ledger.taken() <= 10);
                            ledger.release(shard);
                        }
                    }
                });
            }
        });
        assert_eq!(ledger.taken(), 0);
    }
}
