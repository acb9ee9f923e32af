//! Counters that a shard owns, summed when asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::budget::DryRun;
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

/// Places in [`Metrics::turn_times`]: up to a second, and longer.
pub const TURN_TIMES: usize = 22;

impl Counters {
    /// A turn took so long.
    pub(crate) fn count_turn(&self, took: Duration) {
        self.turn_nanos.add(took.as_nanos() as u64);
        let micros = took.as_micros() as u64;
        let place = (u64::BITS - micros.leading_zeros()) as usize;
        self.turn_times[place.min(TURN_TIMES - 1)].add(1);
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// The counters of one shard.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
            pub(crate) ended: [Counter; Reason::COUNT],
            pub(crate) dry_run: [Counter; DryRun::NAMES.len()],
            pub(crate) turn_times: [Counter; TURN_TIMES],
        }

        /// What shards have counted, summed at one moment.
        ///
        /// Each figure is exact; two figures may be a few operations apart in time.
        #[derive(Debug, Default, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Metrics {
            $($(#[doc = $doc])* pub $name: u64,)*
            /// Times that the pressure rose to [`crate::Pressure::Braking`].
            pub braked: u64,
            /// Times that it rose to [`crate::Pressure::Shedding`].
            pub shed: u64,
            /// Times that it fell to [`crate::Pressure::Calm`].
            pub calmed: u64,
            /// Sessions that ended, and connections that were refused, by [`Reason::number`].
            pub ended: [u64; Reason::COUNT],
            /// What limits in dry run would have ended, refused or made wait, in the order of
            /// [`DryRun::NAMES`].
            pub dry_run: [u64; DryRun::NAMES.len()],
            /// Turns by how long they took: in place `n` those below 2ⁿ µs and not below half of
            /// that; in the last all that took longer. A turn is what a shard does between two
            /// waits: the handler's callbacks are most of it.
            pub turn_times: [u64; TURN_TIMES],
        }

        impl Metrics {
            /// Name and value of each figure, but for those by reason.
            pub fn figures(&self) -> Vec<(&'static str, u64)> {
                vec![
                    $((stringify!($name), self.$name),)*
                    ("braked", self.braked),
                    ("shed", self.shed),
                    ("calmed", self.calmed),
                ]
            }

            fn add(&mut self, shard: &Counters) {
                $(self.$name += shard.$name.get();)*
                for (sum, counter) in self.ended.iter_mut().zip(&shard.ended) {
                    *sum += counter.get();
                }
                for (sum, counter) in self.dry_run.iter_mut().zip(&shard.dry_run) {
                    *sum += counter.get();
                }
                for (sum, counter) in self.turn_times.iter_mut().zip(&shard.turn_times) {
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
    /// Of these, connections whose client had gone before they were accepted: no handler heard of
    /// them.
    dead_in_backlog,
    /// Sessions now: open ones, and those that are being closed. Accepts that are posted, and connects
    /// that are not made yet, are none.
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
    /// Operations in flight now, closes not counted; 0 where [`crate::Limits::max_operations`] does
    /// not bound them.
    operations,
    /// The most of them in flight at once, summed over shards.
    operations_high_water,
    /// Times that a session waited for a block of the arena.
    starved,
    /// Times that an outbox passed its high mark.
    over_high,
    /// Times that a session waited for its turn in the service set.
    queued_for_service,
    /// Times that accepts waited for the rate's next token.
    rate_limited,
    /// Times that the kernel had no memory for an operation of a session, or no room for a connection
    /// that had been accepted for another shard.
    shortages,
    /// Slots taken that were there before: used, or made ahead.
    slot_hits,
    /// Slots that were made when they were taken.
    slot_misses,
    /// Blocks taken from the arenas whose pages were there before.
    block_hits,
    /// Blocks whose pages were touched for the first time when they were taken.
    block_misses,
    /// Sockets that were there when an accept or a connect needed one: made ahead, or used before.
    /// Only a driver with a pool of sockets counts these: [`crate::driver::PoolFigures`].
    socket_hits,
    /// Sockets that were made then.
    socket_misses,
    /// Sockets that came back from a connection, to be used again.
    sockets_returned,
    /// Sockets that took too long on their way back, and were reset.
    sockets_expired,
    /// Sockets ready to be used now.
    sockets_idle,
    /// The most of them at once, summed over shards.
    sockets_high_water,
    /// Sockets on their way back now.
    sockets_in_limbo,
    /// The most of them at once, summed over shards.
    sockets_in_limbo_high_water,
    /// The most sessions at once, summed over shards.
    sessions_high_water,
    /// Completions whose session had gone.
    stale,
    /// Messages from outside for a session that had gone.
    mail_gone,
    /// Times that [`crate::Handler::on_turn`] asked for a turn in the past.
    turns_in_the_past,
    /// Turns of the shards.
    turns,
    /// Nanoseconds in turns: what the shards worked, waits and the kernel's part left out.
    turn_nanos,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_counted_by_powers_of_two() {
        let counters = Counters::default();
        for micros in [0, 1, 2, 3, 4, 1 << 30] {
            counters.count_turn(Duration::from_micros(micros));
        }
        let mut sum = Metrics::default();
        sum.add(&counters);
        assert_eq!(sum.turn_times[..4], [1, 1, 2, 1]);
        assert_eq!(sum.turn_times[TURN_TIMES - 1], 1);
    }
}
