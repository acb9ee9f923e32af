//! The marks: from which figure on which pressure, and why there.
//!
//! | figure | braking from | until below | shedding from | until below |
//! |---|---|---|---|---|
//! | pages of TCP, machine-wide, against `tcp_mem` (min, pressure, max) | pressure | min | ¾ of the way to max | ¼ of the way |
//! | memory of the control group: limit, v2 `memory.high` too; and of the machine | room for 15 %, at most 1 GiB | 25 %, 1.5 GiB | 5 %, 256 MiB | 10 %, 512 MiB |
//! | v1 `memory.kmem.tcp` | 85 % | 75 % | 95 % | 90 % |
//! | time lost waiting for memory (PSI), `some avg10` | 30 % | 15 % | | |
//! | the same, `full avg10` | 10 % | 5 % | 40 % | 20 % |
//! | out-of-memory events of the control group | | | each | 2 s after it |
//! | open files against `fs.file-max` | room for 10 %, at most 20,000 | twice that | | |
//!
//! Marks are compared with what is *held*: less the cache of files that the kernel gives up before
//! anything fails.

use plimsoll_kernel::watch::{MemoryStalls, TcpPages, Usage};

use super::Pressure;

/// Where a figure changes the level. `None`: it never sheds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    /// Braking from here on.
    pub brake: u64,
    /// Braking ends below this.
    pub unbrake: u64,
    /// Shedding from here on, and the end of it below the second.
    pub shed: Option<(u64, u64)>,
    /// What all this is to stay below.
    pub limit: u64,
}

impl Marks {
    /// What a value asks for, whatever was before.
    pub(super) fn level(&self, value: u64) -> Pressure {
        match self.shed {
            Some((shed, _)) if value >= shed => Pressure::Shedding,
            _ if value >= self.brake => Pressure::Braking,
            _ => Pressure::Calm,
        }
    }

    /// Below which a level ends.
    pub(super) fn lower(&self, level: Pressure) -> u64 {
        match (level, self.shed) {
            (Pressure::Shedding, Some((_, unshed))) => unshed,
            _ => self.unbrake,
        }
    }

    /// From which on there is this level.
    pub(super) fn mark(&self, level: Pressure) -> u64 {
        match (level, self.shed) {
            (Pressure::Shedding, Some((shed, _))) => shed,
            _ => self.brake,
        }
    }
}

const MIB: u64 = 1 << 20;

/// Memory against a limit: marks are of the room that is left.
///
/// Shares for small limits, bytes for large ones: 15 % of 256 GiB is no shortage. 1 GiB is what
/// one core fills between two readings 100 ms apart, if it does nothing but copy (some 10 GB/s);
/// 256 MiB, where shedding begins, is above the 100 MiB at which kubelet evicts
/// (`memory.available<100Mi`), and 5 % is where earlyoom sends SIGKILL: sessions go before the
/// process does. What is held is counted without the cache of files that the kernel would drop
/// instead ([`Usage::reclaimable`]): a group that reads files is at its limit for ever, and healthy.
///
/// `memory.high` has the same marks: beyond it the kernel puts whoever allocates to sleep, for up to
/// 2 s at a time, and a shard is one thread (`mm/memcontrol.c`, `MEMCG_MAX_HIGH_DELAY_JIFFIES`).
pub(super) fn of_memory(usage: Usage) -> (u64, Marks) {
    let limit = usage.limit;
    let below = |percent: u64, most_mib: u64| limit - share(limit, percent).min(most_mib * MIB);
    let shed = Some((below(5, 256), below(10, 512)));
    let marks = Marks { brake: below(15, 1024), unbrake: below(25, 1536), shed, limit };
    (usage.held(), marks)
}

/// TCP buffers of a control group of version 1: shares of the limit. What the kernel
/// does at the limit stands in [`super`]; nothing is reclaimed there but by closing sessions.
pub(super) fn of_share(usage: Usage) -> (u64, Marks) {
    let of = |percent| share(usage.limit, percent);
    let shed = Some((of(95), of(90)));
    (usage.used, Marks { brake: of(85), unbrake: of(75), shed, limit: usage.limit })
}

/// Pages of TCP: the kernel's own marks. From `pressure` on it stops windows from growing, and goes
/// back below `min` (`__sk_mem_raise_allocated` in `net/core/sock.c`). At `max` it drops what arrives
/// and resets orphans (`tcp_out_of_memory`): sessions are to go before.
pub(super) fn of_pages(tcp: TcpPages) -> (u64, Marks) {
    let between = tcp.max.saturating_sub(tcp.pressure);
    // A limit that is written upside down has no room between.
    let part =
        |quarters: u64| tcp.pressure + (u128::from(between) * u128::from(quarters) / 4) as u64;
    let unbrake = tcp.min.min(tcp.pressure);
    let shed = Some((part(3), part(1)));
    (tcp.pages, Marks { brake: tcp.pressure, unbrake, shed, limit: tcp.max })
}

/// Files of the whole machine. They never shed: a machine without files refuses the next client, and
/// costs those already here nothing. Root may pass `file-max`; the other programs may not.
pub(super) fn of_files(files: Usage) -> (u64, Marks) {
    let room = (files.limit / 10).min(20_000);
    let marks = Marks {
        brake: files.limit - room,
        unbrake: files.limit - 2 * room,
        shed: None,
        limit: files.limit,
    };
    (files.used, marks)
}

/// Some task waited for memory. Alone it only brakes: the task may be another's.
pub(super) fn of_some(stalls: MemoryStalls) -> (u64, Marks) {
    (hundredths(stalls.some), Marks { brake: 30_00, unbrake: 15_00, shed: None, limit: 10_000 })
}

/// All tasks waited for memory at once: a shard among them, and nobody was served. systemd-oomd kills
/// a group at 60 % for 30 s (`oomd.conf(5)`, `DefaultMemoryPressureLimit`): sessions go before.
pub(super) fn of_full(stalls: MemoryStalls) -> Option<(u64, Marks)> {
    let shed = Some((40_00, 20_00));
    Some((hundredths(stalls.full?), Marks { brake: 10_00, unbrake: 5_00, shed, limit: 10_000 }))
}

fn share(whole: u64, percent: u64) -> u64 {
    (u128::from(whole) * u128::from(percent) / 100) as u64
}

fn hundredths(percent: f64) -> u64 {
    // A negative or absurd number saturates.
    (percent * 100.0).round() as u64
}
