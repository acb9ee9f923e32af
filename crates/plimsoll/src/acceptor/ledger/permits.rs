//! The ledger of permits: how many connections there are, and on which shard.
//!
//! A permit is taken before an accept is posted, and given back when its slot is free again: so
//! the limit holds at every moment, whatever the kernel does. Only accept and close touch it.
//!
//! One thread takes, the acceptor's; any gives back. The atomics come from the parent module, so
//! that this file can be built a second time on those of `shuttle`.

use std::sync::Arc;

use super::sync::{AtomicBool, AtomicU32, Ordering};
use crate::driver::Wake;

/// Permits, shared by all shards.
pub(crate) struct Ledger {
    limit: u32,
    taken: AtomicU32,
    loads: Box<[AtomicU32]>,
    /// The acceptor found no permit, and is to be woken when there is one.
    starved: AtomicBool,
    /// No accept is in flight, and none will be.
    closed: AtomicBool,
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
            closed: AtomicBool::new(true),
            acceptor,
        }
    }

    /// An acceptor begins: shards end only when it has.
    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// The acceptor has ended: nothing is handed over any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Whether nothing will be handed over any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Takes a permit and charges it to the least loaded shard, whose number it returns. `None`
    /// where there is none: then a later [`Ledger::release`] wakes the acceptor.
    pub(crate) fn take(&self) -> Option<u32> {
        self.take_for(None)
    }

    /// The same, charged to the shard that is named, if one is.
    pub(crate) fn take_for(&self, shard: Option<u32>) -> Option<u32> {
        if !self.try_take() {
            // Sequentially consistent with `release`: either that sees the flag, or this second
            // try sees the permit.
            self.starved.store(true, Ordering::SeqCst);
            if !self.try_take() {
                return None;
            }
            self.starved.store(false, Ordering::SeqCst);
        }
        let shard = shard.unwrap_or_else(|| self.least_loaded());
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

    /// Gives back a permit of `shard` that brought nobody. Called by the acceptor, which looks for
    /// permits again in the same turn: so nobody is woken, and no session has ended.
    pub(crate) fn put_back(&self, shard: u32) {
        self.loads[shard as usize].fetch_sub(1, Ordering::Relaxed);
        let before = self.taken.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before > 0, "a permit was given back twice");
    }

    /// Has the next [`Ledger::release`] wake the acceptor, whatever it waits for.
    pub(crate) fn watch(&self) {
        self.starved.store(true, Ordering::SeqCst);
    }

    /// Whether nothing was released since [`Ledger::watch`], or since a permit was not to be had.
    pub(crate) fn is_watched(&self) -> bool {
        self.starved.load(Ordering::SeqCst)
    }

    /// Permits that are charged to a shard: of its connections, and of accepts posted for it.
    pub(crate) fn load_of(&self, shard: u32) -> u32 {
        self.loads[shard as usize].load(Ordering::Relaxed)
    }

    /// Whether all permits are out.
    pub(crate) fn is_full(&self) -> bool {
        self.taken.load(Ordering::SeqCst) == self.limit
    }

    /// Permits that are out.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> u32 {
        self.taken.load(Ordering::Relaxed)
    }

    /// The loads of all shards together: equal to those taken, when nobody is between the two.
    #[cfg(test)]
    pub(crate) fn loads(&self) -> u32 {
        self.loads.iter().map(|load| load.load(Ordering::Relaxed)).sum()
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
