//! The embedded servers that variants run against: with and without their pools, and of each kind
//! one that leaves closing to its clients and one that closes first.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::embedded::{self, Embedded};
use crate::observe::family;
use crate::{Lab, Result};

use super::{End, Options, Variant};

/// Sessions beyond those of the ring: a server may still be closing when the next has come.
const SESSIONS_MIN: u64 = 1000;

/// Sockets that came back to the server's pool, those that took too long, and the most that were on
/// their way at once.
pub(super) const RETURNED: &str = "sockets_returned";
pub(super) const EXPIRED: &str = "sockets_expired";
pub(super) const LIMBO: &str = "sockets_in_limbo_high_water";

/// Those that are running; dropping it ends them.
#[derive(Default)]
pub(super) struct Servers {
    running: Vec<Running>,
}

/// One server, and what it was started as.
struct Running {
    recycles: bool,
    closes_first: bool,
    server: Embedded,
}

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(usize);

impl Servers {
    /// The server of a variant, started now where it is not running yet: `plimsoll serve` with one
    /// shard, since the client is one thread too.
    pub(super) fn of(&mut self, lab: &Lab, variant: Variant, options: &Options) -> Result<Place> {
        let (recycles, closes_first) = (variant.server_recycles(), variant.end == End::Server);
        let same = |one: &Running| (one.recycles, one.closes_first) == (recycles, closes_first);
        if let Some(place) = self.running.iter().position(same) {
            return Ok(Place(place));
        }
        let sessions = SESSIONS_MIN.max(options.concurrency as u64 * 5 / 4);
        let server = Embedded::start(
            lab,
            &embedded::Options {
                shards: Some(1),
                max_connections: Some(sessions),
                pool: Some(recycles),
                close_after: closes_first.then_some(options.size as u64),
                metrics: true,
                ..embedded::Options::default()
            },
        )?;
        self.running.push(Running { recycles, closes_first, server });
        Ok(Place(self.running.len() - 1))
    }

    pub(super) fn address(&self, place: Place) -> SocketAddr {
        self.running[place.0].server.address()
    }

    /// Its processor time so far.
    pub(super) fn cpu_time(&self, place: Place) -> Option<Duration> {
        family::cpu_time(self.running[place.0].server.pid())
    }

    /// What it has taken from its pools so far: its figures that end in `_hits` and `_misses`, and
    /// those of sockets on their way back to a pool.
    pub(super) fn pools(&self, place: Place) -> Option<BTreeMap<String, u64>> {
        let mut figures = self.running[place.0].server.figures()?;
        figures.retain(|name, _| {
            let of_pool = ["_hits", "_misses"].iter().any(|ending| name.ends_with(ending));
            of_pool || [RETURNED, EXPIRED, LIMBO].contains(&name.as_str())
        });
        Some(figures)
    }
}

/// How much each figure has grown (a high-water mark: where it is); `None` where one of the readings is
/// missing.
pub(super) fn growth(
    before: Option<BTreeMap<String, u64>>,
    after: Option<BTreeMap<String, u64>>,
) -> Option<BTreeMap<String, u64>> {
    let (before, mut after) = before.zip(after)?;
    for (name, value) in after.iter_mut().filter(|(name, _)| *name != LIMBO) {
        *value = value.saturating_sub(before.get(name).copied().unwrap_or(0));
    }
    Some(after)
}

/// Adds one turn's figures to a variant's.
pub(super) fn add(sum: &mut BTreeMap<String, u64>, turn: &BTreeMap<String, u64>) {
    for (name, count) in turn {
        let sum = sum.entry(name.clone()).or_insert(0);
        *sum = if name == LIMBO { (*sum).max(*count) } else { *sum + count };
    }
}

/// What was taken from the pools that `serve --pool` governs, and what had to be made: the sum over
/// figures with this ending. Slots are a table that is there in either case.
pub(super) fn sum(pools: &BTreeMap<String, u64>, ending: &str) -> u64 {
    pools
        .iter()
        .filter(|(name, _)| name.ends_with(ending) && !name.starts_with("slot_"))
        .map(|(_, count)| count)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(list: &[(&str, u64)]) -> BTreeMap<String, u64> {
        list.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn what_grew_is_the_difference_of_two_readings() {
        let before = figures(&[("block_hits", 3), ("slot_hits", 5)]);
        let after = figures(&[("block_hits", 10), ("slot_hits", 5), ("socket_hits", 2)]);
        let grown = growth(Some(before), Some(after.clone())).unwrap();
        assert_eq!(grown, figures(&[("block_hits", 7), ("slot_hits", 0), ("socket_hits", 2)]));
        assert_eq!(growth(None, Some(after)), None, "what is not known is not zero");
    }

    #[test]
    fn a_high_water_mark_is_not_summed() {
        let turn = figures(&[(LIMBO, 5), (RETURNED, 3)]);
        let grown = growth(Some(figures(&[(LIMBO, 5), (RETURNED, 1)])), Some(turn)).unwrap();
        assert_eq!(grown, figures(&[(LIMBO, 5), (RETURNED, 2)]));
        let mut sum = grown.clone();
        add(&mut sum, &grown);
        assert_eq!(sum, figures(&[(LIMBO, 5), (RETURNED, 4)]));
    }

    #[test]
    fn slots_are_no_part_of_the_sum() {
        let pools = figures(&[("block_hits", 7), ("slot_hits", 9), ("socket_hits", 2)]);
        assert_eq!((sum(&pools, "_hits"), sum(&pools, "_misses")), (9, 0));
    }
}
