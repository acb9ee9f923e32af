//! Counters that a shard owns, summed when asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::reason::Reason;

/// A counter with one writer: its shard. Adding costs a load and a store, no locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds. Only the shard that owns the counter may call this.
    pub(crate) fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Sets. Only the shard that owns the counter may call this.
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// The counters of one shard.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
            pub(crate) ended: [Counter; Reason::COUNT],
        }

        /// What shards have counted, summed at one moment.
        ///
        /// Each figure is exact; two figures may be a few operations apart in time.
        #[derive(Debug, Default, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Metrics {
            $($(#[doc = $doc])* pub $name: u64,)*
            /// Sessions that ended, by [`Reason::number`].
            pub ended: [u64; Reason::COUNT],
        }

        impl Metrics {
            /// Name and value of each figure, but for those by reason.
            pub fn figures(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }

            fn add(&mut self, shard: &Counters) {
                $(self.$name += shard.$name.get();)*
                for (sum, counter) in self.ended.iter_mut().zip(&shard.ended) {
                    *sum += counter.get();
                }
            }
        }
    };
}

counters! {
    /// Connections accepted.
    accepted,
    /// Connections made by us.
    connected,
    /// Accepts that failed (the client had gone, or the system was short of something).
    accept_errors,
    /// Sessions now: open ones, and those that are being closed.
    sessions,
    /// Times that bytes were shown to a handler.
    received_messages,
    /// Bytes received.
    received_bytes,
    /// Bytes that the kernel took.
    sent_bytes,
    /// Blocks of the arenas in use now, those lent to the kernel included.
    blocks,
    /// The most blocks in use at once, summed over shards.
    blocks_high_water,
    /// Times that a session waited for a block of the arena.
    starved,
    /// Times that an outbox passed its high mark.
    over_high,
    /// Completions whose session had gone.
    stale,
    /// Messages from outside for a session that had gone.
    mail_gone,
    /// Turns of the shards.
    turns,
}

/// The counters of all shards.
#[derive(Debug, Clone)]
pub(crate) struct AllCounters(pub(crate) Arc<[Arc<Counters>]>);

impl AllCounters {
    /// Their sum, now.
    pub(crate) fn sum(&self) -> Metrics {
        let mut metrics = Metrics::default();
        for shard in self.0.iter() {
            metrics.add(shard);
        }
        metrics
    }
}
