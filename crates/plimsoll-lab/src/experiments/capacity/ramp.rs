//! The ramp: connections in steps, and a look at the server after each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use plimsoll_kernel::meminfo::Meminfo;
use plimsoll_kernel::netstat::Netstat;
use plimsoll_kernel::slab::Slabs;

use super::server::Server;
use super::{Options, verdict};
use crate::evidence::{self, Baseline, Cost, Guard, Stop};
use crate::results::{Capacity, CapacitySample, Side, StoppedBy};
use crate::statistics::user_bytes_per_connection;
use crate::worker::source::{Source, SourcePool};
use crate::worker::{Connect, Keep, Report, Request, Tally, Why, Workers};
use crate::{Error, Lab, Result, errno, units};

/// Connects in flight at once.
const IN_FLIGHT: usize = 64;
/// So many failures in a row end a ramp; the first connection has one try.
const FAILURES: u32 = 16;
/// How long a connection is watched for a server that closes at once.
const WATCHED: Duration = Duration::from_millis(250);
/// Time between two samples.
const SAMPLE_EVERY: Duration = Duration::from_millis(50);

/// How one step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// As asked, or as far as one worker or one source goes: there is more.
    More,
    /// No source has a port left.
    NoPorts,
    /// A worker ended for this reason.
    Met(Why),
}

pub(super) struct Ramp<'a> {
    pub(super) lab: &'a Lab,
    pub(super) options: &'a Options,
    pub(super) server: &'a mut Server,
    pub(super) workers: Workers,
    pub(super) sources: SourcePool,
    source: Option<Source>,
    /// Connections from that source so far.
    from_source: u64,
    held: Vec<u64>,
    /// Dead connections of each worker, known so far.
    dead: Vec<u64>,
    pub(super) before: Baseline,
    rss_before: Option<u64>,
    started: Instant,
    pub(super) tally: Tally,
    busy: Duration,
    pub(super) netstat: Option<Netstat>,
    samples: Vec<CapacitySample>,
    sampled: Option<Instant>,
}

impl<'a> Ramp<'a> {
    /// Makes the first connection, and makes sure that somebody serves it.
    pub(super) fn begin(
        lab: &'a Lab,
        options: &'a Options,
        server: &'a mut Server,
    ) -> Result<Self> {
        let sources = SourcePool::new(server.address, options.sources)?;
        let mut ramp = Self {
            lab,
            options,
            server,
            workers: Workers::new(lab),
            sources,
            source: None,
            from_source: 0,
            held: Vec::new(),
            dead: Vec::new(),
            before: Baseline::read(),
            rss_before: None,
            started: Instant::now(),
            tally: Tally::default(),
            busy: Duration::ZERO,
            netstat: None,
            samples: Vec::new(),
            sampled: None,
        };
        ramp.knock()?;
        // What the first connection woke up in the server is not a connection's cost.
        ramp.before = Baseline::read();
        ramp.rss_before = ramp.server.rss();
        ramp.started = Instant::now();
        ramp.busy = Duration::ZERO;
        Ok(ramp)
    }

    fn knock(&mut self) -> Result<()> {
        let address = self.server.address;
        let step = self.step(1, 1)?;
        if self.tally.established == 0 {
            return Err(verdict::unreachable(address, step, &self.tally));
        }
        let deadline = Instant::now() + WATCHED;
        while Instant::now() < deadline && !self.lab.is_interrupted() {
            if self.newly_dead(0)? > 0 {
                return Err(Error::target(
                    format!("{address} accepts a connection and closes it at once"),
                    "see the server's log: a limit on connections or peers, a list of addresses it \
                     lets in, or TLS with a client that must speak first",
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if !self.options.probe {
            return Ok(());
        }
        let probed = self.workers.probe(&self.options.exchange, || true)?;
        match probed.errors.keys().next() {
            None => Ok(()),
            Some(name) => Err(verdict::speechless(address, name)),
        }
    }

    /// Steps until something ends it, then measures what is held.
    pub(super) fn run(mut self) -> Result<(Capacity, bool)> {
        self.sample(true);
        let stop = loop {
            if self.lab.is_interrupted() {
                let text = format!(
                    "interrupted after {} connections",
                    units::count(self.tally.established)
                );
                break Stop::new(StoppedBy::Limit, Side::Client, text);
            }
            let left =
                self.options.connections.map(|all| all.saturating_sub(self.tally.established));
            if left == Some(0) {
                let text = format!(
                    "{} connections were asked for, and made",
                    units::count(self.tally.established)
                );
                break Stop::new(StoppedBy::Limit, Side::Client, text);
            }
            let cpu = (Instant::now(), self.server.cpu());
            let made_before = self.tally.established;
            let count = self.step_size().min(left.unwrap_or(u64::MAX));
            let step = self.step(count, FAILURES)?;
            let made = self.tally.established - made_before;
            let stuck = self.drain();
            let dead = match self.held.len() {
                0 => 0,
                workers => self.newly_dead(workers - 1)?,
            };
            self.sample(false);
            if let Some(stop) = verdict::after(&mut self, step, made, dead, stuck, cpu) {
                break stop;
            }
            let guard = Guard { memory_percent: self.options.stop_before };
            if let Some(stop) = guard.check() {
                break stop;
            }
        };
        self.sample(true);
        self.measure(stop)
    }

    /// How many to add: never so many that a server that accepts has its queue overflow.
    fn step_size(&self) -> u64 {
        let wanted = self.options.step.unwrap_or_else(|| {
            self.options.connections.map_or(2_000, |all| all / 50).clamp(50, 2_000)
        });
        match self.server.queue() {
            Some(queue) => wanted.min(u64::from(queue.limit).div_ceil(2)).max(1),
            None => wanted.max(1),
        }
    }

    /// Has the last worker connect `count` times, or as often as it and its source can.
    fn step(&mut self, count: u64, failures: u32) -> Result<Step> {
        let full = |ramp: &Self| {
            ramp.held.last().is_none_or(|held| *held >= ramp.workers.room(ramp.held.len() - 1))
        };
        if full(self) {
            self.workers.add()?;
            self.held.push(0);
            self.dead.push(0);
            // A fresh address, if there is one.
            self.source = None;
        }
        let worker = self.held.len() - 1;
        if self.source.is_none() {
            self.from_source = 0;
        }
        let Some(source) = self.source.or_else(|| self.sources.take()) else {
            return Ok(Step::NoPorts);
        };
        self.source = Some(source);
        let begun = Instant::now();
        self.workers.ask(
            worker,
            &Request::Connect(Connect {
                target: self.server.address,
                source,
                count: count.min(self.workers.room(worker) - self.held[worker]),
                keep: Keep::Open,
                in_flight: IN_FLIGHT,
                timeout_ms: self.options.timeout.as_millis() as u64,
                failures,
                one_cpu: false,
            }),
        )?;
        let connected = self.connected(worker)?;
        self.busy += begun.elapsed();
        self.held[worker] += connected.tally.established;
        let mut tally = connected.tally;
        tally.in_flight = 0;
        self.from_source += tally.established;
        let why = evidence::short_of(connected.why, self.from_source);
        // A source without ports is not a failure while there are others.
        if why == Why::Ports {
            let misses: u64 =
                errno::NO_PORT.iter().filter_map(|name| tally.errors.remove(*name)).sum();
            tally.attempted = tally.attempted.saturating_sub(misses);
            self.sources.exhausted(source);
            self.source = None;
        }
        self.tally.add(&tally);
        Ok(match why {
            Why::Ports if self.sources.is_empty() => Step::NoPorts,
            Why::Done | Why::Stopped | Why::Descriptors | Why::Ports => Step::More,
            why => Step::Met(why),
        })
    }

    /// Waits for the end of a worker's connects; tells it to stop on Ctrl-C.
    fn connected(&mut self, worker: usize) -> Result<crate::worker::Connected> {
        let mut told = false;
        loop {
            match self.workers.next(Duration::from_millis(20))? {
                Some((_, Report::Connected(connected))) => return Ok(connected),
                Some((_, Report::Progress(tally))) => {
                    self.show(self.tally.established + tally.established);
                }
                _ => {}
            }
            // The first connection is waited for: without it there is nothing to report.
            if self.lab.is_interrupted() && !told && self.tally.established > 0 {
                self.workers.ask(worker, &Request::Stop)?;
                told = true;
            }
        }
    }

    /// Waits until the server has emptied its accept queue. Returns the depth at which it stopped
    /// doing so, `None` when it is empty or cannot be seen.
    fn drain(&mut self) -> Option<u64> {
        let mut moved = (Instant::now(), u32::MAX);
        loop {
            let depth = self.server.queue()?.depth;
            if depth == 0 || self.lab.is_interrupted() {
                return None;
            }
            if depth < moved.1 {
                moved = (Instant::now(), depth);
            }
            if moved.0.elapsed() >= self.options.timeout.min(Duration::from_secs(2)) {
                return Some(u64::from(depth));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Connections of one worker that the server has ended since the last look.
    fn newly_dead(&mut self, worker: usize) -> Result<u64> {
        let found = self.workers.check_one(worker)?;
        let dead = found.closed + found.reset;
        let new = dead.saturating_sub(self.dead[worker]);
        self.dead[worker] = dead;
        Ok(new)
    }

    fn show(&self, connections: u64) {
        let queued = self.server.queue().map_or(0, |queue| queue.depth);
        let line = format!("{connections} connections, {queued} waiting to be accepted");
        self.lab.progress.step(connections, self.options.connections, &line);
    }

    fn sample(&mut self, always: bool) {
        self.netstat = Netstat::read().ok();
        if !always && self.sampled.is_some_and(|at| at.elapsed() < SAMPLE_EVERY) {
            return;
        }
        self.sampled = Some(Instant::now());
        self.show(self.tally.established);
        let slabs = self.before.slabs.as_ref().zip(Slabs::read().ok());
        self.samples.push(CapacitySample {
            seconds: self.started.elapsed().as_secs_f64(),
            connections: self.tally.established,
            server_rss_bytes: self.server.rss(),
            available_bytes: Meminfo::read().ok().map(|memory| memory.available),
            kernel_bytes: slabs
                .map(|(before, now)| evidence::kernel_bytes(before, &now))
                .unwrap_or_default(),
            queued: self.server.queue().map(|queue| u64::from(queue.depth)),
        });
    }

    /// Who is still alive, and what they cost.
    fn measure(mut self, mut stop: Stop) -> Result<(Capacity, bool)> {
        let queued = self.server.queue().map(|queue| u64::from(queue.depth));
        // The first connection was made before the figures were read.
        let measured = (self.tally.established - 1).saturating_sub(queued.unwrap_or(0));
        // Of a connection that the server has ended, the client's end is still there: half of both.
        let dead: u64 = self.dead.iter().sum();
        let cost = self.cost(queued, measured.saturating_sub(dead / 2));
        let measured = measured.saturating_sub(dead);
        let nonpaged = self
            .before
            .nonpaged
            .zip(Baseline::read().nonpaged)
            .filter(|_| measured >= evidence::LEAST_FOR_COST)
            .map(|(before, now)| (now as f64 - before as f64) / measured as f64);
        let user = self
            .rss_before
            .zip(self.server.rss())
            .and_then(|(before, now)| user_bytes_per_connection(before, now, measured));
        let mut errors = std::mem::take(&mut self.tally.errors);
        let (alive, probed) = self.alive(queued.unwrap_or(0), &mut errors)?;
        if alive == 0 && !self.lab.is_interrupted() {
            return Err(verdict::nobody_alive(
                self.server.address,
                self.tally.established,
                &errors,
            ));
        }
        verdict::mention(&mut stop, self.tally.established, alive, queued);
        let counter_proof = verdict::counter_proof(&mut self, &stop)?;
        let capacity = Capacity {
            asked: self.options.connections,
            attempted: self.tally.attempted,
            established: self.tally.established,
            alive,
            probed,
            stopped_by: stop.by,
            stopped_side: stop.side,
            evidence: stop.evidence,
            counter_proof,
            user_bytes_per_connection: user,
            kernel_bytes_per_connection: cost.as_ref().map(|cost| cost.bytes),
            kernel_objects: cost.map(|cost| cost.objects).unwrap_or_default(),
            nonpaged_bytes_per_connection: nonpaged,
            connects_per_second: (self.tally.established - 1) as f64
                / self.busy.as_secs_f64().max(1e-6),
            errors,
            workers: self.workers.len() as u64,
            source_addresses: self.sources.used(),
            samples: self.samples,
        };
        Ok((capacity, self.lab.is_interrupted()))
    }

    /// Only where both ends are here, and the server's is whole: what waits to be accepted has no
    /// inode yet.
    fn cost(&self, queued: Option<u64>, measured: u64) -> Option<Cost> {
        let waiting = queued?;
        if waiting * 100 > measured {
            return None;
        }
        evidence::one_end(self.before.slabs.as_ref()?, &Slabs::read().ok()?, measured)
    }

    /// How many are alive, and whether they were probed: an interrupted probe says nothing of those
    /// it did not come to, so that all are looked at instead.
    fn alive(&mut self, queued: u64, errors: &mut BTreeMap<String, u64>) -> Result<(u64, bool)> {
        if self.options.probe && !self.lab.is_interrupted() {
            let lab = self.lab;
            let probed = self.workers.probe(&self.options.exchange, || !lab.is_interrupted())?;
            if !lab.is_interrupted() {
                for (name, count) in probed.errors {
                    *errors.entry(name).or_default() += count;
                }
                return Ok((probed.alive, true));
            }
        }
        let found = self.workers.check()?;
        for (name, count) in [("closed", found.closed), ("reset", found.reset)] {
            if count > 0 {
                *errors.entry(name.to_owned()).or_default() += count;
            }
        }
        Ok((found.alive.saturating_sub(queued), false))
    }
}
