//! One thread that reads the kernel, and tells all shards the pressure.
//!
//! Accounts are exact only for what is ours. The kernel's memory, the control group's limit and the
//! system's files are shared with others, and known only by asking: that is done here, off the path
//! of messages, and shards read the answer with one load a turn ([`Gauge::pressure`]).
//!
//! | pressure | what shards do |
//! |---|---|
//! | [`Pressure::Calm`] | all there is to do |
//! | [`Pressure::Braking`] | nothing is accepted; sessions are served as ever |
//! | [`Pressure::Shedding`] | as braking, and sessions are closed by policy until it is over |
//!
//! What is read and from where stands in [`plimsoll_kernel::watch`], which figure means what in
//! [`marks`]. An operation that failed with ENFILE, ENOBUFS or ENOMEM brakes too, at once and without
//! this thread: [`Gauge::note`].
//!
//! Every change is one log line, with the numbers that caused it, and one counter. A reading costs
//! some 30 µs of one core, and allocates nothing: 0.03 % while something is near its mark, a tenth of
//! that else.
//!
//! # What the kernel does at its limits
//!
//! Measured on Linux 6.18, with control groups of version 1:
//!
//! - At `memory.kmem.tcp.limit_in_bytes` no operation fails: neither ENOMEM nor ENOBUFS was seen. A
//!   send takes nothing (EAGAIN; a blocking one waits), what arrives is dropped for want of room
//!   (`TCPRcvQDrop`) and comes again at the sender's timer, and windows go to zero. So the errno tells
//!   nothing, and usage against the limit is what is read here.
//! - That limit is no ceiling: each socket is granted a minimum whatever is used. 20 connections that
//!   nobody read used 944 KiB of 256 KiB, 50 of them 5.1 MiB of 4 MiB. New connections are made,
//!   and get their data through if they read it (4 MiB in 10 to 43 ms; 3 ms without pressure).
//! - Its `memory.kmem.tcp.failcnt` stays 0 all the while: the kernel counts failures of
//!   `memory.limit_in_bytes` only (`track_failcnt` in `mm/memcontrol.c`). It is not read here.
//! - It counts sockets that were made after a limit had been set, and `memory.usage_in_bytes` does not
//!   contain it: two limits, two figures. (In version 2 `memory.current` holds the buffers too.)
//! - At `memory.limit_in_bytes` nothing fails either: a process that opened one connection after the
//!   other was killed at 16 MiB, between its 5,000th and 6,000th socket (2.6 KB of it each); connect
//!   and accept had not returned one error. Shedding has to begin before.

mod cause;
mod gauge;
mod judge;
mod marks;

#[cfg(all(test, target_os = "linux"))]
mod grouped;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use plimsoll_kernel::watch::Watch;

use crate::driver::Nanos;
use cause::Cause;
pub(crate) use gauge::{Gauge, SHORTEST_PAUSE};
use judge::{Judge, Verdict};

/// How short the system is of memory or files.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
#[repr(u8)]
pub enum Pressure {
    /// There is room.
    #[default]
    Calm = 0,
    /// Little room is left: nothing is accepted until it is calm. Sessions are served as ever.
    Braking = 1,
    /// Next to nothing is left: sessions are closed by policy until it is calm.
    Shedding = 2,
}

impl Pressure {
    /// The name, as metrics and logs spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Braking => "braking",
            Self::Shedding => "shedding",
        }
    }
}

/// Between readings while everything is below half of its mark.
pub(crate) const FAR: Duration = Duration::from_secs(1);
/// Between readings while anything is above half of its mark.
pub(crate) const NEAR: Duration = Duration::from_millis(100);
/// Shortages of operations that come within this time are one spell: announced once.
const SPELL: Duration = Duration::from_secs(1);

/// The thread that watches. Dropping it ends it, within one reading (some 0.1 ms), and leaves the
/// gauge calm.
#[derive(Debug)]
pub(crate) struct Monitor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Starts it. `changed` is called on its thread after each change, to wake shards that sleep:
    /// with what the gauge shows from then on.
    ///
    /// # Errors
    ///
    /// Where the system gives no thread.
    pub(crate) fn start(
        gauge: &Arc<Gauge>,
        changed: impl FnMut(Pressure) + Send + 'static,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, watch) = (stop.clone(), Watch::open());
        let watched = watch.sources();
        tracing::debug!(%watched, "the monitor watches");
        let mut teller = Teller::new(gauge.clone(), changed);
        let body = move || run(watch, &mut teller, &stopped);
        let thread = std::thread::Builder::new().name("monitor".into()).spawn(body)?;
        gauge.wakes(thread.thread().clone());
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic there has been reported by its hook, and the gauge was left calm.
            let _ = thread.join();
        }
    }
}

fn run<F: FnMut(Pressure)>(mut watch: Watch, teller: &mut Teller<F>, stop: &AtomicBool) {
    let start = Instant::now();
    let mut judge = Judge::default();
    while !stop.load(Ordering::Acquire) {
        let readings = watch.read();
        let now = Nanos(start.elapsed().as_nanos() as u64);
        let verdict = judge.judge(&readings, now);
        teller.tell(&verdict, now);
        let near = verdict.near || teller.in_spell();
        std::thread::park_timeout(if near { NEAR } else { FAR });
    }
}

/// Sets the gauge, and announces each change once.
struct Teller<F: FnMut(Pressure)> {
    gauge: Arc<Gauge>,
    changed: F,
    told: Pressure,
    /// Shortages of operations, as last seen, and until when they are one spell.
    shortages: u64,
    spell: Option<Nanos>,
}

impl<F: FnMut(Pressure)> Teller<F> {
    fn new(gauge: Arc<Gauge>, changed: F) -> Self {
        let shortages = gauge.shortages().0;
        Self { gauge, changed, told: Pressure::Calm, shortages, spell: None }
    }

    fn in_spell(&self) -> bool {
        self.spell.is_some()
    }

    /// Takes a verdict. No allocation, unless something has changed and is logged.
    fn tell(&mut self, verdict: &Verdict, now: Nanos) {
        let before = self.gauge.set(verdict.pressure);
        let shortage = self.shortage(now);
        let (pressure, cause) = match (verdict.cause, shortage) {
            (None, Some(cause)) => (Pressure::Braking, Some(cause)),
            (cause, _) => (verdict.pressure, cause),
        };
        if pressure == self.told {
            if before != verdict.pressure {
                // A shortage keeps it braking, or a figure does in a shortage's place: who sleeps
                // for the one must look at the other.
                self.gauge.explain(cause);
                (self.changed)(pressure);
            }
            return;
        }
        let was = std::mem::replace(&mut self.told, pressure);
        self.gauge.announce(pressure, cause);
        match cause {
            Some(cause) => {
                tracing::warn!(was = was.name(), "{}: {cause}", pressure.name());
            }
            None => tracing::info!(was = was.name(), "calm: nothing is past its mark any more"),
        }
        (self.changed)(pressure);
    }

    /// Whether operations have met shortages within the last [`SPELL`].
    fn shortage(&mut self, now: Nanos) -> Option<Cause> {
        let (count, last) = self.gauge.shortages();
        if count != self.shortages {
            self.shortages = count;
            self.spell = Some(now.after(SPELL));
        }
        if self.spell.is_some_and(|end| now >= end) {
            self.spell = None;
        }
        self.spell.and(last).map(|fault| Cause::Shortage { fault, count })
    }
}

impl<F: FnMut(Pressure)> Drop for Teller<F> {
    /// Nobody would take the level back any more.
    fn drop(&mut self) {
        self.gauge.set(Pressure::Calm);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::driver::Fault;
    use cause::Figure;

    const MS: u64 = 1_000_000;

    fn verdict(pressure: Pressure) -> Verdict {
        let cause = Cause::Past { figure: Figure::GroupMemory, value: 9, mark: 8, limit: 10 };
        let cause = (pressure > Pressure::Calm).then_some(cause);
        Verdict { pressure, cause, near: cause.is_some() }
    }

    #[test]
    fn each_change_is_told_and_counted_once() {
        use Pressure::{Braking, Calm, Shedding};
        let gauge = Arc::new(Gauge::default());
        let (sender, told) = mpsc::channel();
        let mut teller = Teller::new(gauge.clone(), move |pressure| sender.send(pressure).unwrap());
        let steps = [Calm, Braking, Braking, Shedding, Shedding, Braking, Calm, Calm, Shedding];
        for (step, pressure) in (0..).zip(steps) {
            teller.tell(&verdict(pressure), Nanos(step * 100 * MS));
            assert_eq!(gauge.pressure(Nanos(0)), pressure);
            assert_eq!(gauge.cause().is_some(), pressure > Calm);
        }
        let expected = [Braking, Shedding, Braking, Calm, Shedding];
        assert_eq!(told.try_iter().collect::<Vec<_>>(), expected);
        let figures = gauge.figures();
        assert_eq!((figures.braked, figures.shed, figures.calmed), (2, 2, 1));
        drop(teller);
        assert_eq!(gauge.pressure(Nanos(0)), Calm);
    }

    #[test]
    fn shortages_that_come_again_and_again_are_announced_once() {
        let gauge = Arc::new(Gauge::default());
        let mut teller = Teller::new(gauge.clone(), |_| {});
        let mut now = Nanos(1000 * MS);
        for _ in 0..50 {
            now = gauge.note(Fault::Memory, now).unwrap();
            now = Nanos(now.0 + 256);
            teller.tell(&verdict(Pressure::Calm), now);
        }
        assert_eq!(gauge.figures().braked, 1);
        assert_eq!(gauge.figures().calmed, 0);
        let text = gauge.cause().unwrap().to_string();
        assert!(text.contains("ENOMEM") && text.contains("1 so far"), "{text}");
        teller.tell(&verdict(Pressure::Calm), now.after(SPELL));
        assert_eq!(gauge.figures().calmed, 1);
        assert_eq!(gauge.cause(), None);
    }

    #[test]
    fn a_shortage_is_announced_at_once_and_the_end_of_the_thread_is_prompt() {
        let gauge = Arc::new(Gauge::default());
        let (sender, told) = mpsc::channel();
        let changed = move |pressure| {
            let _ = sender.send(pressure);
        };
        let monitor = Monitor::start(&gauge, changed).unwrap();
        // Long past the first reading the thread sleeps for a second, unless it is woken.
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "pressure on this machine");
        let start = Instant::now();
        gauge.note(Fault::Buffers, Nanos(MS)).unwrap();
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(Pressure::Braking));
        println!("announced after {:?}", start.elapsed());
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(Pressure::Calm));
        let start = Instant::now();
        drop(monitor);
        let took = start.elapsed();
        println!("ended after {took:?}");
        assert!(took < Duration::from_millis(900), "{took:?}");
        assert!(told.try_iter().next().is_none());
    }
}
