//! The pressure as shards see it: one word, read with one load.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use super::Pressure;
use super::cause::Cause;
use crate::driver::{Fault, Nanos};

/// The first pause after the kernel was short of something. nginx waits 500 ms after such an accept
/// and is idle for most of it; this is a hundredth, and doubles.
pub(crate) const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// The longest pause: the next client after the shortage waits no longer than this.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The number of the longest pause: 5, 10, 20, 40, 80, 100 ms.
const LAST_STEP: u64 = 5;

/// The pressure that all shards read. Shared in an `Arc`; nothing in it is locked on the path of a
/// message.
///
/// Two things raise it: what the monitor reads of the kernel ([`Gauge::set`]), and operations that
/// failed for want of the kernel's memory or files ([`Gauge::note`]), which brake for 5 to 100 ms.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    /// Bits 0–1: the level that the monitor set. Bits 2–7: the step of the last pause. The rest: the
    /// time until which faults brake, in nanoseconds, its last 256 ns cut off. One word, so that a
    /// turn needs one load and a note no lock.
    word: AtomicU64,
    /// Shortages noted so far.
    noted: AtomicU64,
    /// The last of them: 0 none, else as [`number`] has it.
    last: AtomicU8,
    /// How often each level was entered, as announced by the monitor.
    entered: [AtomicU64; 3],
    /// Why, as announced by the monitor. Locked when the level changes and when somebody asks.
    cause: Mutex<Option<Cause>>,
    /// The monitor's thread, to be told of a shortage at once.
    monitor: OnceLock<Thread>,
}

/// What a gauge has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct GaugeFigures {
    /// Times that braking began.
    pub braked: u64,
    /// Times that shedding began.
    pub shed: u64,
    /// Times that calm returned.
    pub calmed: u64,
    /// Operations that failed with ENFILE, ENOBUFS, ENOMEM or ENOSPC.
    pub shortages: u64,
}

impl Gauge {
    /// The pressure at `now`, the time of the shard's turn. One relaxed load and a comparison.
    pub(crate) fn pressure(&self, now: Nanos) -> Pressure {
        let word = self.word.load(Ordering::Relaxed);
        let level = level_of(word);
        if now.0 < until_of(word) { level.max(Pressure::Braking) } else { level }
    }

    /// The pressure that the monitor found; pauses after faults are not in it.
    pub(crate) fn level(&self) -> Pressure {
        level_of(self.word.load(Ordering::Relaxed))
    }

    /// Until when faults brake, if they do at `now`: a shard that waits must look again then. Changes
    /// that the monitor makes are told by its callback.
    pub(crate) fn next(&self, now: Nanos) -> Option<Nanos> {
        let until = until_of(self.word.load(Ordering::Relaxed));
        (now.0 < until).then_some(Nanos(until))
    }

    /// An operation failed. A shortage of the kernel's (ENFILE, ENOBUFS, ENOMEM, ENOSPC) brakes all shards,
    /// and gives the time from which the operation may be tried again; any other fault gives `None`
    /// and changes nothing.
    ///
    /// The pause is 5 ms at first. A shortage that comes back within as long as the pause lasted
    /// doubles it, up to 100 ms; for each further such time in which operations went well it
    /// halves. Those that come during the pause, of operations that were in flight, change nothing:
    /// they are one shortage, however many shards met it.
    ///
    /// A stream that found no block ([`Fault::NoBlock`]) is short of the arena's, not of the kernel's.
    pub(crate) fn note(&self, fault: Fault, now: Nanos) -> Option<Nanos> {
        let number = number(fault)?;
        self.last.store(number, Ordering::Relaxed);
        self.noted.fetch_add(1, Ordering::Relaxed);
        Some(self.brake(now))
    }

    /// Brakes all shards as [`Gauge::note`] does, for a failure that is no shortage of the kernel's.
    /// Gives the time until which they brake.
    pub(crate) fn brake(&self, now: Nanos) -> Nanos {
        let raised = self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let until = until_of(word);
            (now.0 >= until).then(|| {
                let step = next_step(word >> 2 & 0x3f, until, now);
                let end = now.after(pause(step)).0;
                // Cut off, it would end up to 256 ns early: nothing to a pause of 5 ms.
                end & UNTIL | step << 2 | word & LEVEL
            })
        });
        if raised.is_ok()
            && let Some(monitor) = self.monitor.get()
        {
            monitor.unpark();
        }
        Nanos(until_of(self.word.load(Ordering::Relaxed)))
    }

    /// Sets the level that the kernel's figures ask for: the monitor's part, or a simulation's.
    /// Returns what it was.
    pub(crate) fn set(&self, level: Pressure) -> Pressure {
        let set = |word| Some(word & !LEVEL | level as u64);
        // `set` never refuses: both arms hold the word before.
        let (Ok(before) | Err(before)) =
            self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, set);
        level_of(before)
    }

    /// Why the pressure is what it is; `None` when calm. Takes a lock: not for the path of a message.
    pub(crate) fn cause(&self) -> Option<Cause> {
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been counted.
    pub(crate) fn figures(&self) -> GaugeFigures {
        let entered = |level: Pressure| self.entered[level as usize].load(Ordering::Relaxed);
        GaugeFigures {
            braked: entered(Pressure::Braking),
            shed: entered(Pressure::Shedding),
            calmed: entered(Pressure::Calm),
            shortages: self.noted.load(Ordering::Relaxed),
        }
    }

    /// The pressure is what it was, and for another cause.
    pub(super) fn explain(&self, cause: Option<Cause>) {
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = cause;
    }

    /// A change that the monitor announces: counted, and its cause kept.
    pub(super) fn announce(&self, level: Pressure, cause: Option<Cause>) {
        self.entered[level as usize].fetch_add(1, Ordering::Relaxed);
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = cause;
    }

    /// How many shortages were noted, and which was the last.
    pub(super) fn shortages(&self) -> (u64, Option<Fault>) {
        let last = fault(self.last.load(Ordering::Relaxed));
        (self.noted.load(Ordering::Relaxed), last)
    }

    /// Who is to be woken by a shortage. The first one stays.
    pub(super) fn wakes(&self, monitor: Thread) {
        let _ = self.monitor.set(monitor);
    }
}

const LEVEL: u64 = 0b11;
const UNTIL: u64 = !0xff;

fn level_of(word: u64) -> Pressure {
    match word & LEVEL {
        0 => Pressure::Calm,
        1 => Pressure::Braking,
        _ => Pressure::Shedding,
    }
}

fn until_of(word: u64) -> u64 {
    word & UNTIL
}

fn pause(step: u64) -> Duration {
    (SHORTEST_PAUSE * (1 << step.min(LAST_STEP))).min(LONGEST_PAUSE)
}

/// The step of the pause that begins at `now`, when the last one, of `step`, ended at `until`.
fn next_step(step: u64, until: u64, now: Nanos) -> u64 {
    if until == 0 {
        return 0;
    }
    let quiet = now.since(Nanos(until)).as_nanos();
    let pauses = u64::try_from(quiet / pause(step).as_nanos()).unwrap_or(u64::MAX);
    match pauses {
        0 => (step + 1).min(LAST_STEP),
        more => step.saturating_sub(more - 1),
    }
}

fn number(fault: Fault) -> Option<u8> {
    match fault {
        Fault::SystemDescriptors => Some(1),
        Fault::Buffers => Some(2),
        Fault::Memory => Some(3),
        Fault::Watches => Some(4),
        // EMFILE is not here: it is of our own making, and over when one of ours is free.
        _ => None,
    }
}

fn fault(number: u8) -> Option<Fault> {
    match number {
        1 => Some(Fault::SystemDescriptors),
        2 => Some(Fault::Buffers),
        3 => Some(Fault::Memory),
        4 => Some(Fault::Watches),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const MS: u64 = 1_000_000;

    /// Notes a shortage at a time in ms; the pause in whole ms.
    fn note(gauge: &Gauge, at: u64) -> u64 {
        let until = gauge.note(Fault::Memory, Nanos(at * MS)).unwrap();
        (until.0 + 256 - at * MS) / MS
    }

    #[test]
    fn a_gauge_that_nobody_set_is_calm() {
        let gauge = Gauge::default();
        assert_eq!(gauge.pressure(Nanos(0)), Pressure::Calm);
        assert_eq!(gauge.next(Nanos(0)), None);
        assert_eq!(gauge.figures(), GaugeFigures::default());
    }

    #[test]
    fn what_comes_back_at_once_pauses_for_longer_up_to_100_ms() {
        let gauge = Gauge::default();
        let mut at = 1000;
        for expected in [5, 10, 20, 40, 80, 100, 100] {
            assert_eq!(note(&gauge, at), expected, "at {at}");
            at += expected;
        }
    }

    #[test]
    fn success_takes_the_pause_back() {
        let gauge = Gauge::default();
        let mut at = 1000;
        for expected in [5, 10, 20, 40] {
            assert_eq!(note(&gauge, at), expected);
            at += expected;
        }
        // As long as the pause again, and then not yet twice: the same.
        assert_eq!(note(&gauge, at + 40), 40);
        at += 80;
        // Three times as long: halved twice.
        assert_eq!(note(&gauge, at + 120), 10);
        assert_eq!(note(&gauge, at + 60_000), 5);
    }

    #[test]
    fn a_burst_is_one_shortage() {
        let gauge = Gauge::default();
        let until = gauge.note(Fault::Buffers, Nanos(1000 * MS)).unwrap();
        for later in 0..4 {
            let again = gauge.note(Fault::SystemDescriptors, Nanos((1000 + later) * MS));
            assert_eq!(again, Some(until));
        }
        assert_eq!(gauge.figures().shortages, 5);
        assert_eq!(gauge.shortages().1, Some(Fault::SystemDescriptors));
        assert_eq!(gauge.pressure(Nanos(1001 * MS)), Pressure::Braking);
        assert_eq!(gauge.next(Nanos(1001 * MS)), Some(until));
        assert_eq!(gauge.pressure(until), Pressure::Calm);
        assert_eq!(gauge.next(until), None);
    }

    #[test]
    fn a_shortage_and_the_monitor_do_not_undo_each_other() {
        let gauge = Gauge::default();
        let now = Nanos(1000 * MS);
        gauge.set(Pressure::Shedding);
        let until = gauge.note(Fault::Memory, now).unwrap();
        assert_eq!(gauge.pressure(now), Pressure::Shedding);
        gauge.set(Pressure::Calm);
        assert_eq!(gauge.pressure(now), Pressure::Braking);
        gauge.set(Pressure::Braking);
        assert_eq!(gauge.pressure(until), Pressure::Braking);
        gauge.set(Pressure::Calm);
        assert_eq!(gauge.pressure(until), Pressure::Calm);
    }

    #[test]
    fn other_faults_are_nobodys_business() {
        let gauge = Gauge::default();
        for fault in [
            Fault::Reset,
            Fault::ProcessDescriptors,
            Fault::NoPorts,
            Fault::WouldBlock,
            Fault::NoBlock,
        ] {
            assert_eq!(gauge.note(fault, Nanos(MS)), None, "{fault:?}");
        }
        assert_eq!(gauge.figures().shortages, 0);
        assert_eq!(gauge.pressure(Nanos(MS)), Pressure::Calm);
    }

    #[test]
    fn shards_that_note_at_once_agree_on_one_pause() {
        let gauge = Arc::new(Gauge::default());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let gauge = gauge.clone();
                std::thread::spawn(move || gauge.note(Fault::Memory, Nanos(1000 * MS)).unwrap())
            })
            .collect();
        let ends: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
        assert_eq!((ends[0].0 + 256) / MS, 1005);
    }
}
