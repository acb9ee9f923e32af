//! Filling a queue: workers connect, the listener is watched, until something ends it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use plimsoll_kernel::netstat::Netstat;
use plimsoll_kernel::slab::Slabs;

use super::Options;
use super::queue::{self, NonAcceptingListener};
use crate::observe::{Depth, Snapshot};
use crate::results::{BacklogSample, StoppedBy};
use crate::verdict::backlog::{self as verdict, Facts};
use crate::verdict::cost::LEAST_FOR_COST;
use crate::verdict::{Stop, machine};
use crate::worker::source::{Source, SourcePool};
use crate::worker::{Connect, Connected, Keep, Report, Request, Tally, Why, Workers};
use crate::{Lab, Result};

/// Time between two looks at the listener, in the first second and later.
const TICKS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(50));
/// Time between two looks at what is dearer to read: slabs, memory.
const SLOW_TICK: Duration = Duration::from_millis(250);
/// Connects in flight in one worker. On loopback they are over at once; a full queue keeps them.
const IN_FLIGHT: usize = 16;
/// How many connections before the queue is full the last stretch begins.
const LAST_STRETCH: u64 = 64;
/// So many failures in a row end a run.
const FAILURES: u32 = 16;
/// So many source addresses in a row that gave not one connection: the next would not either.
const BARREN_MAX: u32 = 8;

/// What came of it.
pub(super) struct Filled {
    pub(super) stop: Stop,
    pub(super) interrupted: bool,
    pub(super) tally: Tally,
    /// The largest queue seen; `None` where it cannot be.
    pub(super) deepest: Option<u64>,
    pub(super) overflows: Option<u64>,
    pub(super) drops: Option<u64>,
    pub(super) source_addresses: u64,
    pub(super) destination_addresses: u64,
    /// The non-paged pool when the queue was full, and its growth for each queued connection.
    pub(super) nonpaged: Option<u64>,
    pub(super) nonpaged_each: Option<f64>,
    pub(super) samples: Vec<BacklogSample>,
}

/// One worker's part in it.
#[derive(Default)]
struct Part {
    /// At work: how many it was asked for, when, and how far it is.
    at_work: Option<(u64, Duration, Tally)>,
    /// The source it may go on with.
    source: Option<Source>,
    /// Connections from that source so far.
    from_source: u64,
    held: u64,
    full: bool,
}

pub(super) struct Fill<'a> {
    lab: &'a Lab,
    options: &'a Options,
    workers: &'a mut Workers,
    listener: &'a NonAcceptingListener,
    address: SocketAddr,
    granted: Option<u64>,
    before: &'a Snapshot,
    sources: SourcePool,
    /// Source addresses in a row that gave no connection.
    barren: u32,
    /// The number of the destination, and the most sources that one has had.
    destination: u64,
    sources_most: u64,
    parts: Vec<Part>,
    parallel: usize,
    started: Instant,
    /// Of the requests that have ended.
    ended: Tally,
    /// Something that a worker met and that ends the run.
    met: Option<Why>,
    deepest: Option<u64>,
    /// The counters of the last look; those of the machine as of the last slow one.
    now: Snapshot,
    samples: Vec<BacklogSample>,
    slow_at: Option<Instant>,
    /// Whether the last look was a slow one.
    slow_look: bool,
    /// When something last moved, and what it was then.
    moved: (Instant, u64, u64),
}

impl<'a> Fill<'a> {
    pub(super) fn new(
        lab: &'a Lab,
        options: &'a Options,
        workers: &'a mut Workers,
        listener: &'a NonAcceptingListener,
        granted: Option<u64>,
        before: &'a Snapshot,
        sources: SourcePool,
    ) -> Self {
        let parallel = std::thread::available_parallelism().map_or(1, usize::from);
        let now = Instant::now();
        Self {
            lab,
            options,
            parts: workers.rooms().map(|_| Part::default()).collect(),
            workers,
            listener,
            address: listener.address,
            granted,
            before,
            sources,
            barren: 0,
            destination: 0,
            sources_most: 0,
            parallel,
            started: now,
            ended: Tally::default(),
            met: None,
            deepest: None,
            now: before.clone(),
            samples: Vec::new(),
            slow_at: None,
            slow_look: false,
            moved: (now, 0, 0),
        }
    }

    /// Fills the queue until something ends it, then waits until it is at rest.
    pub(super) fn run(mut self) -> Result<Filled> {
        let stop = loop {
            self.next_destination()?;
            self.dispatch()?;
            self.hear(Instant::now() + self.tick())?;
            let depth = self.look(false);
            if let Some(stop) = self.decide(depth) {
                break stop;
            }
        };
        let interrupted = self.lab.is_interrupted();
        self.halt()?;
        self.rest();
        self.now = Snapshot::read(Depth::Quick);
        let tally = self.tally();
        let nonpaged = self.now.nonpaged;
        let stop = self.judge(stop, &tally, interrupted);
        let nonpaged_each = self
            .before
            .nonpaged
            .zip(nonpaged)
            .zip(self.deepest.filter(|deepest| *deepest >= LEAST_FOR_COST))
            .map(|((before, now), deepest)| (now as f64 - before as f64) / deepest as f64);
        Ok(Filled {
            stop,
            interrupted,
            deepest: self.deepest,
            overflows: self.grown("ListenOverflows"),
            drops: self.grown("ListenDrops"),
            source_addresses: self.sources_most.max(self.sources.used()),
            destination_addresses: self.destination + 1,
            nonpaged,
            nonpaged_each,
            samples: self.samples,
            tally,
        })
    }

    /// The verdict in full, from the counters at rest. Where the queue cannot be seen, and clients
    /// failed while it was not their ports, whether it was the queue is tried.
    fn judge(&self, stop: Stop, tally: &Tally, interrupted: bool) -> Stop {
        let sources = self.sources.describe();
        let facts = self.facts(tally, None, &sources);
        let silent = matches!(stop.by, StoppedBy::Refused | StoppedBy::Timeout);
        if stop.by == StoppedBy::QueueFull {
            return verdict::queue_full(&facts);
        }
        if silent && self.granted.is_none() && tally.established > 0 && !interrupted {
            let proof = self.listener.make_room(self.target(), self.options.timeout);
            return verdict::proven(stop, &facts, &proof);
        }
        verdict::complete(stop, &facts)
    }

    /// What has been seen so far. `sources` are the addresses in words.
    fn facts<'b>(&'b self, tally: &'b Tally, depth: Option<u64>, sources: &'b str) -> Facts<'b> {
        let is_out = self.at_work() == 0 && self.no_sources() && !self.more_destinations();
        Facts {
            before: self.before,
            now: &self.now,
            interrupted: self.lab.is_interrupted(),
            stop_at: self.options.stop_at,
            granted: self.granted,
            depth,
            deepest: self.deepest,
            established: tally.established,
            errors: &tally.errors,
            met: self.met,
            still: self.moved.0.elapsed(),
            patience: self.patience(),
            no_sources: is_out.then(|| verdict::Sources {
                named: sources,
                used: self.sources.used(),
                destination: self.target(),
                destinations: self.destination + 1,
                barren: (self.barren >= BARREN_MAX).then_some(BARREN_MAX),
            }),
        }
    }

    /// How long nothing may move: a connect's time limit, and a second for what the kernel sends again.
    fn patience(&self) -> Duration {
        self.options.timeout + Duration::from_secs(1)
    }

    fn tick(&self) -> Duration {
        if self.started.elapsed() < Duration::from_secs(1) { TICKS.0 } else { TICKS.1 }
    }

    /// All counts so far: of what has ended and of what is at work.
    fn tally(&self) -> Tally {
        let mut sum = self.ended.clone();
        for (_, since, tally) in self.parts.iter().filter_map(|part| part.at_work.as_ref()) {
            sum.add(&shifted(tally, *since));
        }
        sum
    }

    /// How far it is, and once nothing has moved for a second, what is waited for.
    fn progress_line(&self, connects_ok: u64, depth: Option<u64>) -> String {
        let queued = depth.map_or_else(String::new, |depth| format!(", {depth} queued"));
        let still = self.moved.0.elapsed();
        let waits = if still > Duration::from_secs(1) {
            format!(
                "; nothing has moved for {:.0} s, it ends after {:.0} s",
                still.as_secs_f64(),
                self.patience().as_secs_f64()
            )
        } else {
            String::new()
        };
        format!("{connects_ok} connected{queued}{waits}")
    }

    fn grown(&self, name: &str) -> Option<u64> {
        self.now.grown(self.before, name)
    }

    fn at_work(&self) -> usize {
        self.parts.iter().filter(|part| part.at_work.is_some()).count()
    }

    /// Gives work to as many workers as there are CPUs: to those with room, then to new ones. The
    /// last stretch before the queue is full is one worker's, on one CPU: two handshakes that end
    /// at the same instant would both see the last place free, and the queue hold one too many.
    fn dispatch(&mut self) -> Result<()> {
        let wanted = self.options.stop_at.unwrap_or(u64::MAX);
        let brink = self.granted.map_or(wanted, |granted| granted.saturating_sub(LAST_STRETCH));
        while self.at_work() < self.parallel && self.met.is_none() {
            let asked: u64 =
                self.parts.iter().filter_map(|part| part.at_work.as_ref()).map(|work| work.0).sum();
            let begun = self.ended.established + asked;
            let last_stretch = begun >= brink.min(wanted);
            if last_stretch && self.at_work() > 0 {
                return Ok(());
            }
            let left = if last_stretch { wanted } else { brink.min(wanted) }.saturating_sub(begun);
            if left == 0 {
                return Ok(());
            }
            let idle = self.parts.iter().position(|part| part.at_work.is_none() && !part.full);
            let worker = match idle {
                Some(worker) => worker,
                // Not before it is known that there is a source for it.
                None if self.no_sources() => return Ok(()),
                None => {
                    let worker = self.workers.add()?;
                    self.parts.push(Part::default());
                    worker
                }
            };
            let source = match self.parts[worker].source.take() {
                Some(source) => source,
                None if self.no_sources() => return Ok(()),
                None => match self.sources.take() {
                    Some(source) => {
                        self.parts[worker].from_source = 0;
                        source
                    }
                    None => return Ok(()),
                },
            };
            let hands = if last_stretch { 1 } else { self.parallel - self.at_work() };
            let room = match self.options.keep {
                Keep::Open => self.workers.room(worker).saturating_sub(self.parts[worker].held),
                Keep::Close | Keep::Reset => u64::MAX,
            };
            let count = left.div_ceil(hands as u64).min(room);
            self.workers.ask(
                worker,
                &Request::Connect(Connect {
                    target: self.target(),
                    source,
                    count,
                    keep: self.options.keep,
                    in_flight: IN_FLIGHT,
                    timeout_ms: self.options.timeout.as_millis() as u64,
                    failures: FAILURES,
                    one_cpu: last_stretch,
                }),
            )?;
            let part = &mut self.parts[worker];
            part.at_work = Some((count, self.started.elapsed(), Tally::default()));
            part.source = Some(source);
        }
        Ok(())
    }

    /// Listens to the workers until `deadline`, or until one of them has ended its work.
    fn hear(&mut self, deadline: Instant) -> Result<()> {
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            match self.workers.next(patience)? {
                Some((worker, Report::Progress(tally))) => {
                    if let Some(work) = &mut self.parts[worker].at_work {
                        work.2 = tally;
                    }
                }
                Some((worker, Report::Connected(connected))) => {
                    self.has_ended(worker, &connected);
                    return Ok(());
                }
                Some(_) => {}
                None => return Ok(()),
            }
        }
    }

    fn has_ended(&mut self, worker: usize, connected: &Connected) {
        let part = &mut self.parts[worker];
        let since = part.at_work.take().map_or(Duration::ZERO, |work| work.1);
        let mut tally = shifted(&connected.tally, since);
        tally.in_flight = 0;
        self.ended.add(&tally);
        if self.options.keep == Keep::Open {
            part.held += tally.established;
            part.full = part.held >= self.workers.room(worker);
        }
        part.from_source += tally.established;
        match machine::short_of(connected.why, part.from_source, &self.now.limits) {
            Why::Done | Why::Stopped => self.barren = 0,
            Why::Ports => {
                self.barren = if part.from_source == 0 { self.barren + 1 } else { 0 };
                part.source = None;
                self.sources.exhausted(connected.source);
            }
            // Its own descriptors: the next worker goes on.
            Why::Descriptors => part.full = true,
            why @ (Why::Files | Why::Memory | Why::Failing) => self.met = Some(why),
        }
    }

    /// Where clients connect to now.
    fn target(&self) -> SocketAddr {
        let ip = self.options.destinations.and_then(|all| all.nth(self.destination));
        SocketAddr::new(ip.unwrap_or(self.address.ip()), self.address.port())
    }

    fn more_destinations(&self) -> bool {
        self.options.destinations.is_some_and(|all| self.destination + 1 < all.count())
    }

    /// Goes on to the next destination, where there is one and no source has a port left towards
    /// this one.
    fn next_destination(&mut self) -> Result<()> {
        if !self.more_destinations() || self.at_work() > 0 || !self.no_sources() {
            return Ok(());
        }
        self.destination += 1;
        self.barren = 0;
        self.sources_most = self.sources_most.max(self.sources.used());
        self.sources = SourcePool::new(self.target(), self.options.sources)?;
        self.parts.iter_mut().for_each(|part| part.source = None);
        Ok(())
    }

    /// Whether no source address is left, or the next would give nothing.
    fn no_sources(&self) -> bool {
        self.sources.is_empty() || self.barren >= BARREN_MAX
    }

    /// Looks at the listener and the counters; returns the depth.
    fn look(&mut self, at_rest: bool) -> Option<u64> {
        let slow = self.slow_at.is_none_or(|at| at.elapsed() >= SLOW_TICK);
        // The whole table of sockets is dear to read: in between the last look holds.
        let depth = match self.samples.last() {
            Some(last) if cfg!(windows) && !slow && !at_rest => last.queued,
            _ => queue::depth(self.address),
        };
        self.deepest = self.deepest.max(depth);
        self.now.netstat = Netstat::read().ok();
        let kernel_bytes = match (&self.before.slabs, slow) {
            (Some(before), true) => Slabs::read()
                .ok()
                .map(|now| now.tcp_delta(before).iter().map(|delta| delta.bytes).sum()),
            _ => None,
        };
        let connects_ok = self.tally().established;
        self.slow_look = slow;
        if slow {
            self.slow_at = Some(Instant::now());
            self.lab.progress.step(
                connects_ok,
                self.options.stop_at.or(self.granted.map(|granted| granted + 1)),
                &self.progress_line(connects_ok, depth),
            );
        }
        if (connects_ok, depth.unwrap_or(0)) != (self.moved.1, self.moved.2) {
            self.moved = (Instant::now(), connects_ok, depth.unwrap_or(0));
        }
        self.samples.push(BacklogSample {
            seconds: self.started.elapsed().as_secs_f64(),
            connects_ok,
            queued: depth,
            kernel_bytes,
        });
        depth
    }

    /// Whether to end. The machine's counters are read anew where the verdict may rest on them.
    fn decide(&mut self, depth: Option<u64>) -> Option<Stop> {
        let tally = self.tally();
        let is_late = self.met.is_some() || self.moved.0.elapsed() > self.patience();
        if is_late || self.slow_look {
            self.now = Snapshot::read(Depth::Quick);
        }
        let sources = self.sources.describe();
        let stop = verdict::after(&self.facts(&tally, depth, &sources));
        stop.or_else(|| self.slow_look.then(|| verdict::guard(&self.now)).flatten())
    }

    /// Stops all who are at work, and hears their last counts.
    fn halt(&mut self) -> Result<()> {
        for worker in 0..self.parts.len() {
            if self.parts[worker].at_work.is_some() {
                self.workers.ask(worker, &Request::Stop)?;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.at_work() > 0 && Instant::now() < deadline {
            self.hear(deadline)?;
        }
        Ok(())
    }

    /// Waits until the depth is the same twice, 30 ms apart: the largest must not be missed.
    fn rest(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut last = self.look(true);
        while Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(30));
            let now = self.look(true);
            if now == last {
                break;
            }
            last = now;
        }
    }
}

/// A worker's counts with its clock set to the run's.
fn shifted(tally: &Tally, since: Duration) -> Tally {
    let mut tally = tally.clone();
    if tally.established > 0 {
        tally.last_us += since.as_micros() as u64;
    }
    tally
}
