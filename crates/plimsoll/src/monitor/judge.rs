//! Readings in, pressure out: what rises at once, what falls when, and what keeps it from flapping.
//!
//! A figure rises at once, past as many marks as it likes. It falls by one level at a time: when it
//! has been below the mark of its level for a *dwell* and is below the lower mark ([`marks`]); or when it has been below the mark of its level for [`PATIENCE`], since a
//! process whose memory simply stays between the two would brake for ever. So a figure that swings
//! around a mark changes the pressure once in [`PATIENCE`], not once a reading.

use std::time::Duration;

use plimsoll_kernel::watch::Readings;

use super::Pressure;
use super::cause::{Cause, Figure};
use super::marks::{self, Marks};
use crate::driver::Nanos;

/// Braking lasts at least this long: accepts that are posted and taken back at every reading would
/// be worse than either.
pub(crate) const DWELL: Duration = Duration::from_secs(1);
/// Shedding lasts at least this long. Two readings: what a closed session held is given back with a
/// delay (RCU, per-CPU stocks), yet every session that is closed needlessly is somebody's loss, and
/// braking still holds when shedding ends.
pub(crate) const DWELL_SHEDDING: Duration = Duration::from_millis(200);
/// Below its mark for this long, though not below the lower one, a figure gives way.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// How long an out-of-memory event sheds: it names no amount, so something has to go.
const OOM_HOLDS: Duration = Duration::from_secs(2);

/// A verdict on one set of readings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Verdict {
    /// The highest that any figure asks for.
    pub pressure: Pressure,
    /// The figure that asks for it; `None` when calm.
    pub cause: Option<Cause>,
    /// Whether any figure is above half of its mark for braking: to be read again soon.
    pub near: bool,
}

/// Turns readings into pressure. No clock and no file of its own.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    tcp: Track,
    group_memory: Track,
    group_high: Track,
    group_tcp: Track,
    oom: Events,
    some: Track,
    full: Track,
    system: Track,
    files: Track,
}

impl Judge {
    /// Judges what was read at `now`. A figure that is `None` asks for nothing. O(1), no allocation.
    pub(crate) fn judge(&mut self, readings: &Readings, now: Nanos) -> Verdict {
        use Figure::{
            Files, GroupHigh, GroupMemory, GroupTcp, StallsFull, StallsSome, SystemMemory, TcpPages,
        };
        let mut sum = Sum::default();
        let read = readings;
        sum.add(self.oom.follow(read.group_oom, now));
        sum.add(self.group_tcp.follow(GroupTcp, read.group_tcp.map(marks::of_share), now));
        sum.add(self.group_memory.follow(
            GroupMemory,
            read.group_memory.map(marks::of_memory),
            now,
        ));
        sum.add(self.group_high.follow(GroupHigh, read.group_high.map(marks::of_memory), now));
        sum.add(self.system.follow(SystemMemory, read.system_memory.map(marks::of_memory), now));
        sum.add(self.tcp.follow(TcpPages, read.tcp.map(marks::of_pages), now));
        sum.add(self.some.follow(StallsSome, read.stalls.map(marks::of_some), now));
        sum.add(self.full.follow(StallsFull, read.stalls.and_then(marks::of_full), now));
        sum.add(self.files.follow(Files, read.files.map(marks::of_files), now));
        sum.0
    }
}

/// The level of one figure over time.
#[derive(Debug, Default)]
struct Track {
    level: Pressure,
    /// Since when it has been below the mark of its level.
    below: Option<Nanos>,
}

/// What one figure asks for.
type Asked = (Pressure, Option<Cause>, bool);

impl Track {
    fn follow(&mut self, figure: Figure, value: Option<(u64, Marks)>, now: Nanos) -> Asked {
        let Some((value, marks)) = value else {
            *self = Self::default();
            return (Pressure::Calm, None, false);
        };
        self.step(value, &marks, now);
        let near = self.level > Pressure::Calm || value >= marks.brake / 2;
        let mark = marks.mark(self.level);
        let cause = Cause::Past { figure, value, mark, limit: marks.limit };
        (self.level, (self.level > Pressure::Calm).then_some(cause), near)
    }

    fn step(&mut self, value: u64, marks: &Marks, now: Nanos) {
        let level = marks.level(value);
        if level >= self.level {
            *self = Self { level, below: None };
            return;
        }
        let since = *self.below.get_or_insert(now);
        let quiet = now.since(since);
        let (dwell, next) = match self.level {
            Pressure::Shedding => (DWELL_SHEDDING, Pressure::Braking),
            _ => (DWELL, Pressure::Calm),
        };
        let low = value < marks.lower(self.level);
        if (low && quiet >= dwell) || quiet >= PATIENCE {
            // The next level is to be left for its own reasons, from now on.
            *self = Self { level: next, below: None };
        }
    }
}

/// The counter of out-of-memory events, each of which sheds for [`OOM_HOLDS`].
#[derive(Debug, Default)]
struct Events {
    seen: Option<u64>,
    until: Option<Nanos>,
    /// How many, in the spell that lasts.
    count: u64,
}

impl Events {
    fn follow(&mut self, counter: Option<u64>, now: Nanos) -> Asked {
        if self.until.is_some_and(|until| now >= until) {
            (self.until, self.count) = (None, 0);
        }
        // What had been counted before the first look is nobody's of today.
        let new = counter.map_or(0, |now| now.saturating_sub(self.seen.unwrap_or(now)));
        self.seen = counter.or(self.seen);
        if new > 0 {
            self.count = self.count.saturating_add(new);
            self.until = Some(now.after(OOM_HOLDS));
        }
        if self.until.is_none() {
            return (Pressure::Calm, None, false);
        }
        let figure = Figure::GroupOom;
        let cause = Cause::Past { figure, value: self.count, mark: 1, limit: 1 };
        (Pressure::Shedding, Some(cause), true)
    }
}

/// The highest of what the figures ask for; of equals the first.
struct Sum(Verdict);

impl Default for Sum {
    fn default() -> Self {
        Self(Verdict { pressure: Pressure::Calm, cause: None, near: false })
    }
}

impl Sum {
    fn add(&mut self, (pressure, cause, near): Asked) {
        self.0.near |= near;
        if pressure > self.0.pressure {
            self.0.pressure = pressure;
            self.0.cause = cause;
        }
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_kernel::watch::{MemoryStalls, TcpPages, Usage};
    use proptest::prelude::*;

    use super::*;
    use Pressure::{Braking, Calm, Shedding};

    const MS: u64 = 1_000_000;
    const MIB: u64 = 1 << 20;

    /// Readings of one figure, of which a value is given.
    type OfOne = fn(u64) -> Readings;

    /// A time in ms, a value, what it leads to.
    type Step = (u64, u64, Pressure);

    fn usage(used: u64, limit: u64) -> Usage {
        Usage { used, limit, reclaimable: 0 }
    }

    fn group(mib: u64) -> Readings {
        Readings { group_memory: Some(usage(mib * MIB, 100 * MIB)), ..Readings::default() }
    }

    fn high(mib: u64) -> Readings {
        Readings { group_high: Some(usage(mib * MIB, 100 * MIB)), ..Readings::default() }
    }

    fn group_tcp(mib: u64) -> Readings {
        Readings { group_tcp: Some(usage(mib * MIB, 100 * MIB)), ..Readings::default() }
    }

    fn large(free_mib: u64) -> Readings {
        let limit = 100 << 30;
        let used = limit - free_mib * MIB;
        Readings { system_memory: Some(usage(used, limit)), ..Readings::default() }
    }

    fn pages(pages: u64) -> Readings {
        let tcp = TcpPages { pages, min: 300, pressure: 400, max: 800 };
        Readings { tcp: Some(tcp), ..Readings::default() }
    }

    fn some(percent: u64) -> Readings {
        let stalls = MemoryStalls { some: percent as f64, full: Some(0.0), of_group: true };
        Readings { stalls: Some(stalls), ..Readings::default() }
    }

    fn full(percent: u64) -> Readings {
        let full = percent as f64;
        let stalls = MemoryStalls { some: 0.0, full: Some(full), of_group: false };
        Readings { stalls: Some(stalls), ..Readings::default() }
    }

    fn files(left: u64) -> Readings {
        Readings { files: Some(usage(2_000_000 - left, 2_000_000)), ..Readings::default() }
    }

    fn oom(count: u64) -> Readings {
        Readings { group_oom: Some(count), ..Readings::default() }
    }

    /// Judges values at times in ms, and compares.
    fn follow(name: &str, readings: OfOne, steps: &[Step]) {
        let mut judge = Judge::default();
        for (at, value, expected) in steps {
            let verdict = judge.judge(&readings(*value), Nanos(at * MS));
            assert_eq!(verdict.pressure, *expected, "{name} at {at} ms, {value}: {verdict:?}");
            assert_eq!(verdict.cause.is_some(), *expected > Calm, "{name} at {at} ms");
        }
    }

    /// Memory in percent of a small limit.
    const SHARES: &[Step] = &[
        (0, 84, Calm),
        (100, 85, Braking),
        (200, 94, Braking),
        (300, 95, Shedding),
        // Below the mark of shedding, not yet below where it ends: 90.
        (400, 91, Shedding),
        (700, 91, Shedding),
        (800, 89, Braking),
        (900, 80, Braking),
        (1800, 74, Braking),
        // Below the mark of braking since 900 ms, and below 75.
        (1900, 74, Calm),
    ];

    /// Ramps of each figure, up and down.
    const RAMPS: &[(&str, OfOne, &[Step])] = &[
        ("group", group, SHARES),
        ("high", high, SHARES),
        (
            "group tcp",
            group_tcp,
            &[
                (0, 84, Calm),
                (100, 85, Braking),
                (200, 96, Shedding),
                (300, 89, Shedding),
                (500, 89, Braking),
                (600, 10, Braking),
                (1600, 10, Calm),
            ],
        ),
        // Limits of many GiB have marks in bytes of room.
        (
            "large",
            large,
            &[
                (0, 1025, Calm),
                (100, 1024, Braking),
                (200, 257, Braking),
                (300, 256, Shedding),
                (400, 500, Shedding),
                (500, 513, Shedding),
                (600, 513, Braking),
                (700, 1600, Braking),
                (1700, 1600, Calm),
            ],
        ),
        (
            "pages",
            pages,
            &[
                (0, 399, Calm),
                (100, 400, Braking),
                (200, 699, Braking),
                (300, 700, Shedding),
                (400, 500, Shedding),
                (600, 499, Braking),
                (700, 300, Braking),
                (1700, 300, Braking),
                (1800, 299, Calm),
            ],
        ),
        (
            "some",
            some,
            &[
                (0, 29, Calm),
                (100, 30, Braking),
                (200, 100, Braking),
                (300, 15, Braking),
                (1300, 15, Braking),
                (1400, 14, Calm),
            ],
        ),
        (
            "full",
            full,
            &[
                (0, 9, Calm),
                (100, 10, Braking),
                (200, 40, Shedding),
                (300, 20, Shedding),
                (500, 19, Braking),
                (600, 4, Braking),
                (1600, 4, Calm),
            ],
        ),
        (
            "files",
            files,
            &[
                (0, 20_001, Calm),
                (100, 20_000, Braking),
                (200, 0, Braking),
                (300, 40_000, Braking),
                (1400, 40_001, Calm),
            ],
        ),
        (
            "oom",
            oom,
            &[
                // What was counted before is nothing new.
                (0, 7, Calm),
                (100, 8, Shedding),
                (2000, 8, Shedding),
                (2100, 8, Calm),
                (2200, 9, Shedding),
            ],
        ),
    ];

    #[test]
    fn each_figure_goes_up_and_down_at_its_marks() {
        for (name, readings, steps) in RAMPS {
            follow(name, *readings, steps);
        }
    }

    #[test]
    fn one_reading_may_pass_both_marks() {
        follow("group", group, &[(0, 10, Calm), (100, 99, Shedding), (200, 10, Shedding)]);
    }

    #[test]
    fn a_value_that_stays_between_the_marks_is_let_go_in_the_end() {
        follow(
            "group",
            group,
            &[
                (0, 86, Braking),
                (100, 80, Braking),
                (10_000, 80, Braking),
                (10_100, 80, Calm),
                (10_200, 80, Calm),
                (10_300, 85, Braking),
            ],
        );
        follow(
            "group",
            group,
            &[(0, 96, Shedding), (100, 92, Shedding), (10_100, 92, Braking), (60_000, 92, Braking)],
        );
    }

    #[test]
    fn a_value_that_swings_around_a_mark_does_not_flap() {
        let mut judge = Judge::default();
        let (mut changes, mut last) = (0, Calm);
        for step in 0..600 {
            let value = if step % 2 == 0 { 86 } else { 80 };
            let pressure = judge.judge(&group(value), Nanos(step * 100 * MS)).pressure;
            changes += u32::from(pressure != last);
            last = pressure;
        }
        assert_eq!((changes, last), (1, Braking));
    }

    #[test]
    fn what_can_no_longer_be_read_asks_for_nothing() {
        let mut judge = Judge::default();
        assert_eq!(judge.judge(&group(99), Nanos(0)).pressure, Shedding);
        let verdict = judge.judge(&Readings::default(), Nanos(100 * MS));
        assert_eq!(verdict, Verdict { pressure: Calm, cause: None, near: false });
    }

    #[test]
    fn the_cache_of_files_is_not_held() {
        let limit = 100 * MIB;
        let full = Usage { used: limit, limit, reclaimable: 60 * MIB };
        let readings = Readings { group_memory: Some(full), ..Readings::default() };
        let verdict = Judge::default().judge(&readings, Nanos(0));
        assert_eq!((verdict.pressure, verdict.near), (Calm, false));
    }

    #[test]
    fn the_worst_figure_counts_and_is_named() {
        let mut readings = group(96);
        readings.files = files(0).files;
        readings.tcp = pages(500).tcp;
        let verdict = Judge::default().judge(&readings, Nanos(0));
        assert_eq!(verdict.pressure, Shedding);
        let text = verdict.cause.unwrap().to_string();
        assert_eq!(
            text,
            "the control group holds 96 MiB of its limit of 100 MiB, the mark is 95 MiB"
        );
    }

    #[test]
    fn half_of_a_mark_is_near() {
        let near = |readings: Readings| Judge::default().judge(&readings, Nanos(0)).near;
        assert!(!near(Readings::default()) && !near(group(42)) && near(group(43)));
        assert!(!near(pages(199)) && near(pages(200)));
        assert!(!near(some(14)) && near(some(15)) && near(full(5)));
    }

    proptest! {
        /// Whatever the kernel says, a judge neither panics nor stays up for ever: a figure below
        /// its lower marks for a while is calm.
        #[test]
        fn any_readings_end_calm(
            steps in proptest::collection::vec(
                (any::<u64>(), any::<u64>(), any::<u64>(), any::<f64>(), 0..5000_u64),
                1..40,
            )
        ) {
            let mut judge = Judge::default();
            let mut at = 0;
            for (used, limit, other, percent, gap) in steps {
                at += gap;
                let usage = Some(Usage { used, limit, reclaimable: other });
                let tcp = Some(TcpPages { pages: used, min: other, pressure: limit, max: used });
                let stalls = MemoryStalls { some: percent, full: Some(-percent), of_group: true };
                let readings = Readings {
                    tcp,
                    group_memory: usage,
                    group_high: usage,
                    group_tcp: usage,
                    group_oom: Some(other),
                    stalls: Some(stalls),
                    system_memory: usage,
                    files: usage,
                };
                let verdict = judge.judge(&readings, Nanos(at * MS));
                prop_assert_eq!(verdict.cause.is_some(), verdict.pressure > Calm);
                let _ = verdict.cause.map(|cause| cause.to_string());
            }
            let idle = Readings { group_oom: Some(u64::MAX), tcp: pages(0).tcp, ..group(0) };
            for step in 0..50 {
                judge.judge(&idle, Nanos((at + step * 100) * MS));
            }
            prop_assert_eq!(judge.judge(&idle, Nanos((at + 5000) * MS)).pressure, Calm);
        }
    }
}
