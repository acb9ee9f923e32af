//! The table of peers: how many connections each address has.
//!
//! An IPv4 address is a peer; in IPv6 a /64 is, since whoever has one address there has 2⁶⁴ of them
//! (RFC 6177, RFC 4291 §2.5.4). An IPv4 address mapped into IPv6 counts as itself.
//!
//! Shared by all shards behind a lock, since only the beginning and the end of a connection touch
//! it. All memory is taken at start: 24 bytes for twice as many entries as there may be connections.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Connections by peer, and how many each may have.
pub(crate) struct Peers {
    limit: u32,
    table: Mutex<Table>,
}

impl Peers {
    /// A table of at most `connections` at once, of which each peer may have `limit`.
    pub(crate) fn new(limit: u32, connections: u32) -> Self {
        let entries = (connections as usize * 2).next_power_of_two();
        // Two runs of a server need not place alike, two runs of a simulation must.
        let seed = if cfg!(test) { 1 } else { random_seed() };
        let entry = Entry { key: Key::default(), count: 0 };
        Self { limit, table: Mutex::new(Table { entries: vec![entry; entries].into(), seed }) }
    }

    /// Counts a connection of this peer. False where it has as many as it may; then, if `anyway`,
    /// it is counted all the same.
    pub(crate) fn enter(&self, peer: SocketAddr, anyway: bool) -> bool {
        let mut table = self.table();
        let place = table.find(Key::of(peer.ip()));
        let entry = &mut table.entries[place];
        let within = entry.count < self.limit;
        if within || anyway {
            entry.key = Key::of(peer.ip());
            entry.count += 1;
        }
        within
    }

    /// A connection that was counted has ended.
    pub(crate) fn leave(&self, peer: SocketAddr) {
        let mut table = self.table();
        let place = table.find(Key::of(peer.ip()));
        let entry = &mut table.entries[place];
        debug_assert!(entry.count > 0, "{peer} was not counted");
        entry.count = entry.count.saturating_sub(1);
        if entry.count == 0 {
            table.close_gap(place);
        }
    }

    /// Connections counted, of all peers. O(entries).
    #[cfg(test)]
    pub(crate) fn counted(&self) -> u64 {
        self.table().entries.iter().map(|entry| u64::from(entry.count)).sum()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing between lock and unlock panics half-way through a change.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Open addressing, linear probing, never more than half full.
struct Table {
    entries: Box<[Entry]>,
    /// So that nobody can choose addresses that fall into one place.
    seed: u64,
}

/// Empty where the count is 0.
#[derive(Clone, Copy)]
struct Entry {
    key: Key,
    count: u32,
}

/// What is counted as one peer: an IPv4 address (mapped), or the first 64 bits of an IPv6 one.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Key(u64, u32);

impl Key {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(0, v4.to_bits()),
            // No /64 of IPv6 is confused with an IPv4 address: bit 0 of the second word is
            // the only one set, and 0.0.0.1 never connects from outside.
            IpAddr::V6(v6) => Self((v6.to_bits() >> 64) as u64, 1),
        }
    }
}

impl Table {
    fn home(&self, key: Key) -> usize {
        // Multiply and fold twice (the finaliser of SplitMix64), over a secret start.
        let mut word = key.0 ^ self.seed ^ (u64::from(key.1) << 21);
        for _ in 0..2 {
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ self.seed;
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        }
        (word >> 32) as usize & (self.entries.len() - 1)
    }

    /// Where a key is, or the empty place where it would be.
    fn find(&self, key: Key) -> usize {
        let mut place = self.home(key);
        while self.entries[place].count > 0 && self.entries[place].key != key {
            place = (place + 1) & (self.entries.len() - 1);
        }
        place
    }

    /// Moves those behind an entry that has become empty, so that each is still found
    /// (Knuth, The Art of Computer Programming 3, 6.4, algorithm R).
    fn close_gap(&mut self, mut gap: usize) {
        let mask = self.entries.len() - 1;
        let mut place = gap;
        loop {
            place = (place + 1) & mask;
            let entry = self.entries[place];
            if entry.count == 0 {
                return;
            }
            let home = self.home(entry.key);
            // It may fill the gap unless its home lies behind the gap, cyclically.
            if (place.wrapping_sub(home) & mask) >= (place.wrapping_sub(gap) & mask) {
                self.entries[gap] = entry;
                self.entries[place].count = 0;
                gap = place;
            }
        }
    }
}

fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn at(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 9)
    }

    #[test]
    fn a_peer_has_as_many_as_it_may() {
        let peers = Peers::new(2, 8);
        let [a, b] = [at("192.0.2.1"), at("192.0.2.2")];
        assert!(peers.enter(a, false) && peers.enter(a, false) && !peers.enter(a, false));
        assert!(peers.enter(b, false));
        peers.leave(a);
        assert!(peers.enter(a, false));
        assert!(!peers.enter(a, true), "told, and counted");
        assert_eq!(peers.counted(), 4);
        (0..3).for_each(|_| peers.leave(a));
        peers.leave(b);
        assert_eq!(peers.counted(), 0);
    }

    #[test]
    fn one_slash_64_is_one_peer_and_a_mapped_address_is_itself() {
        let peers = Peers::new(1, 8);
        assert!(peers.enter(at("2001:db8:0:1::1"), false));
        assert!(!peers.enter(at("2001:db8:0:1:ffff::2"), false));
        assert!(peers.enter(at("2001:db8:0:2::1"), false));
        assert!(peers.enter(at("::ffff:192.0.2.1"), false));
        assert!(!peers.enter(at("192.0.2.1"), false));
    }

    proptest! {
        /// However peers come and go, the table says the same as a map.
        #[test]
        fn the_table_counts_as_a_map_does(steps in prop::collection::vec((0..40_u8, any::<bool>()), 0..400)) {
            let peers = Peers::new(3, 32);
            let mut model = HashMap::<u8, u32>::new();
            for (number, comes) in steps {
                let peer = SocketAddr::from(([10, 0, 0, number], 1));
                let total: u32 = model.values().sum();
                let count = model.entry(number).or_default();
                if comes && total < 32 {
                    prop_assert_eq!(peers.enter(peer, false), *count < 3);
                    *count = (*count + 1).min(3);
                } else if !comes && *count > 0 {
                    peers.leave(peer);
                    *count -= 1;
                }
                prop_assert_eq!(peers.counted(), model.values().map(|&count| u64::from(count)).sum::<u64>());
            }
        }
    }
}
