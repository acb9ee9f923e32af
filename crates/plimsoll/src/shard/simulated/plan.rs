//! What a seed decides before a ship sails: the machine, the limits, the crew's and the passengers' moods.

use std::time::Duration;

use crate::budget::{DryRun, Limits, WhenFull};
use crate::driver::MAX_HANDED;
use crate::driver::sim::random::Random;
use crate::driver::sim::{SimOptions, SimSystem};
use crate::shard::Profile;

/// What those who are refused are told, where they are: no byte of an echo.
pub(super) const FULL: &[u8] = &[0xff; 5];

/// How one voyage is made up.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    /// Nothing fails and nobody misbehaves: no byte may be lost.
    pub(super) calm: bool,
    /// Handlers send to others' sessions, and broadcast.
    pub(super) chatty: bool,
    pub(super) options: SimOptions,
    pub(super) profile: Profile,
    pub(super) limits: Limits,
    pub(super) shards: usize,
    /// Slots of each shard, and how many of them its handler may connect.
    pub(super) slots: u32,
    pub(super) outgoing: u32,
    /// Blocks of each shard's arena.
    pub(super) blocks: u32,
    /// Clients at once.
    pub(super) clients: usize,
    /// How long the drain may take; an hour is as good as for ever.
    pub(super) drain: Duration,
    /// Whether it begins before the last step, at a step in so many of all.
    pub(super) drain_early: Option<u64>,
}

impl Plan {
    /// The plan of a seed: a quarter of them calm.
    pub(super) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x0070_1a9e);
        let calm = random.chance(250_000);
        let shards = random.within(1, 4) as usize;
        let slots = random.within(2, 8) as u32;
        let outgoing = random.within(0, u64::from(slots) / 2) as u32;
        let profile =
            if random.chance(500_000) { Profile::Connections } else { Profile::Throughput };
        let drains = [0, 20, 500, 3_600_000];
        let longest = if calm { 3_600_000 } else { drains[random.below(4) as usize] };
        Self {
            seed,
            calm,
            chatty: !calm && random.chance(500_000),
            options: options(&mut random, seed, calm),
            profile,
            limits: limits(&mut random, calm, shards, slots, outgoing),
            shards,
            slots,
            outgoing,
            blocks: random.within(8, 32) as u32,
            clients: random.within(2, 24) as usize,
            drain: Duration::from_millis(longest),
            drain_early: (!calm && random.chance(250_000)).then(|| random.within(2, 10)),
        }
    }

    /// A calm plan of streams, on a machine that is short of nothing, with few blocks to lend to them.
    pub(super) fn of_few_blocks(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (shards, slots) = (1, 8);
        Self {
            calm: true,
            chatty: false,
            options: SimOptions { held_clock: true, streams: true, ..SimOptions::rough(seed) },
            profile: Profile::Throughput,
            limits: limits(&mut random, true, shards, slots, 0),
            shards,
            slots,
            outgoing: 0,
            blocks: 8,
            clients: slots as usize,
            drain: Duration::from_secs(3600),
            drain_early: None,
            seed,
        }
    }
}

fn options(random: &mut Random, seed: u64, calm: bool) -> SimOptions {
    let mut options = if calm { SimOptions::rough(seed) } else { SimOptions::stormy(seed) };
    options.held_clock = true;
    if random.chance(300_000) {
        options.system = SimSystem::windows_workstation(1 << 30);
    }
    if calm {
        return options;
    }
    if random.chance(500_000) {
        options.stale_per_million = random.within(0, 200_000) as u32;
    }
    // A machine that is short of something.
    let system = &mut options.system;
    match random.below(6) {
        0 => system.descriptors = random.within(1, 12) as u32,
        1 => system.files = random.within(2, 30) as u32,
        2 => {
            system.pool.bytes = random.within(2_000, 60_000);
            (system.pool.connected, system.pool.accepted) = (2048, 1536);
            system.pool.operation = 500;
        }
        3 => system.pinned_bytes = 4096 * random.within(1, 12),
        4 => system.ports = 50_000..=50_000 + random.within(1, 10) as u16,
        _ => {}
    }
    options
}

fn limits(random: &mut Random, calm: bool, shards: usize, slots: u32, outgoing: u32) -> Limits {
    // As the server plans it: every permit finds a slot.
    let most = shards as u32 * (slots - outgoing);
    let mut limits = Limits {
        max_connections: random.within(u64::from(most).div_ceil(2), u64::from(most)) as u32,
        outbox_low: 1000,
        outbox_high: 8000,
        outbox_hard: 64 << 10,
        backlog: random.within(0, 8) as u32,
        ..Limits::default()
    };
    if calm {
        return limits;
    }
    let mut at_times = |most: u64| random.chance(500_000).then(|| random.within(1, most));
    limits.idle_timeout = at_times(4_000).map(Duration::from_millis);
    limits.first_byte_timeout = at_times(600).map(Duration::from_millis);
    limits.message_timeout = at_times(500).map(Duration::from_millis);
    limits.max_per_peer = at_times(6).map(|most| most as u32);
    limits.max_accept_rate = at_times(2_000).map(|rate| rate as u32);
    limits.drain_rate = at_times(3_000).map(|rate| rate as u32);
    limits.pinned_bytes = at_times(40).map(|blocks| (blocks as usize).max(shards) * 4096);
    limits.service_set = at_times(u64::from(most)).map(|set| (set as u32).max(shards as u32));
    for name in DryRun::NAMES {
        if at_times(4) == Some(1) {
            limits.dry_run.add(name);
        }
    }
    let sends = at_times(4).map(|sends| 2 * shards as u32 + sends as u32);
    limits.max_operations = sends.map(|sends| shards as u32 * slots + MAX_HANDED + sends);
    limits.service_time = Duration::from_millis(random.within(1, 300));
    limits.when_full = match random.below(3) {
        0 => WhenFull::Reset,
        1 => WhenFull::Tell(FULL.to_vec()),
        _ => WhenFull::Wait,
    };
    let allowed = random.within(1, 5_000);
    limits.connect_timeout = random.chance(500_000).then(|| Duration::from_millis(allowed));
    limits
}
