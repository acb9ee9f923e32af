//! The ramp: connections in steps, and a look at both sides after each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Options, Target};
use crate::observe::{Depth, Ended, Server, Snapshot};
use crate::results::CapacitySample;
use crate::verdict::capacity::{self as verdict, Facts, Own, Slowness, Step, Stuck};
use crate::verdict::machine::{Guard, short_of};
use crate::verdict::{Stop, cost};
use crate::worker::source::{Source, SourcePool};
use crate::worker::{self, Checked, Connect, Keep, Report, Request, Tally, Why, Workers};
use crate::{Lab, Result, errno};

/// Connects in flight at once.
const IN_FLIGHT: usize = 64;
/// So many failures in a row end a ramp; the first connection has one try.
const FAILURES: u32 = 16;
/// Time between two samples.
const SAMPLE_EVERY: Duration = Duration::from_millis(50);
/// Time between two looks at all held connections, at least.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Time that a server may take from its first close of a connection that is too many to the last.
const CLOSES_PATIENCE: Duration = Duration::from_secs(1);
/// Time that a process may take from closing its sockets to its end.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// What the ramp has counted, and what it holds.
pub(super) struct Ramp<'a> {
    pub(super) lab: &'a Lab,
    pub(super) options: &'a Options,
    pub(super) server: &'a mut Server,
    pub(super) workers: Workers,
    pub(super) sources: SourcePool,
    source: Option<Source>,
    /// Connections from that source so far.
    from_source: u64,
    /// Connections of each worker.
    pub(super) held: Vec<u64>,
    /// The last look at each worker's connections.
    pub(super) looks: Vec<Checked>,
    /// When all workers were looked at, and how long that took.
    looked_at_all: (Instant, Duration),
    /// What has ended since the step began.
    news: Checked,
    pub(super) before: Snapshot,
    pub(super) started: Instant,
    pub(super) tally: Tally,
    /// Failed connects of the last step, by error name.
    step_errors: BTreeMap<String, u64>,
    /// Time in which connects were in flight.
    pub(super) busy: Duration,
    unanswered: Duration,
    slowness: Slowness,
    pub(super) ended: Option<Ended>,
    pub(super) samples: Vec<CapacitySample>,
    sampled: Option<Instant>,
}

impl<'a> Ramp<'a> {
    /// Makes the first connection, and makes sure that somebody serves it.
    pub(super) fn begin(
        lab: &'a Lab,
        options: &'a Options,
        server: &'a mut Server,
    ) -> Result<Self> {
        let sources = SourcePool::new(server.address(), options.sources)?;
        let now = Instant::now();
        let mut ramp = Self {
            lab,
            options,
            before: server.snapshot(Depth::Full),
            server,
            workers: Workers::new(lab),
            sources,
            source: None,
            from_source: 0,
            held: Vec::new(),
            looks: Vec::new(),
            looked_at_all: (now, Duration::ZERO),
            news: Checked::default(),
            started: now,
            tally: Tally::default(),
            step_errors: BTreeMap::new(),
            busy: Duration::ZERO,
            unanswered: Duration::ZERO,
            slowness: Slowness::default(),
            ended: None,
            samples: Vec::new(),
            sampled: None,
        };
        ramp.knock()?;
        // What the first connection woke up in the server is not a connection's cost.
        ramp.before = ramp.server.snapshot(Depth::Full);
        ramp.started = Instant::now();
        ramp.busy = Duration::ZERO;
        ramp.slowness = Slowness::default();
        Ok(ramp)
    }

    /// Steps until something ends it. Returns the verdict and the counters at its end.
    pub(super) fn climb(&mut self) -> Result<(Stop, Snapshot)> {
        self.sample(true);
        let mut step_began = self.before.clone();
        let mut made_before = self.tally.established;
        let mut outcome = Step::More;
        let mut stuck = None;
        loop {
            let seen = (&outcome, made_before, stuck);
            let (stop, now) = self.judge(seen, &step_began)?;
            if let Some(stop) = stop {
                self.sample(true);
                return Ok((stop, now));
            }
            step_began = now;
            made_before = self.tally.established;
            self.news = Checked::default();
            self.step_errors.clear();
            let left = self.options.connections.map(|all| all - made_before);
            let count = self.step_size().min(left.unwrap_or(u64::MAX));
            outcome = self.step(count, FAILURES)?;
            stuck = self.drain()?;
            self.sample(false);
        }
    }

    /// Looks at both sides after a step, and judges what is seen: the verdict, if there is one, and the
    /// counters now.
    fn judge(
        &mut self,
        (outcome, made_before, stuck): (&Step, u64, Option<Stuck>),
        step_began: &Snapshot,
    ) -> Result<(Option<Stop>, Snapshot)> {
        self.look(false)?;
        self.let_ends_come()?;
        let waited = self.wait_where_time_may_tell()?;
        self.wait_for_end();
        let now = self.server.snapshot(Depth::Quick);
        let sources = self.sources.describe();
        let facts = Facts {
            before: &self.before,
            step_began,
            now: &now,
            interrupted: self.lab.is_interrupted(),
            asked: self.options.connections,
            established: self.tally.established,
            made: self.tally.established - made_before,
            step: outcome,
            errors: &self.step_errors,
            unanswered: self.unanswered,
            sources: (&sources, self.sources.used()),
            target: self.server.address(),
            ended: self.ended.as_ref(),
            held: &self.news,
            waited: waited.as_ref(),
            stuck,
            own: self.own(stuck.is_some() || *outcome != Step::More),
            slowness: self.slowness,
        };
        let guard = Guard { memory_percent: self.options.stop_before };
        let stop = verdict::after(&facts).or_else(|| guard.check(&now));
        Ok((stop, now))
    }

    /// The embedded server's own limit; it is asked for its pressure where there is trouble.
    fn own(&self, is_troubled: bool) -> Option<Own> {
        let Target::Embedded(options) = &self.options.target else { return None };
        let limit = options.max_connections.or(self.options.connections);
        let default = plimsoll::Limits::default().max_connections;
        let figures = is_troubled.then(|| self.server.figures()).flatten();
        Some(Own {
            limit: limit.unwrap_or(u64::from(default)),
            pressure: figures.and_then(|figures| figures.get("pressure").copied()),
        })
    }

    /// How many to add: where nobody says how many, never so many that a server that accepts has its
    /// queue overflow.
    fn step_size(&self) -> u64 {
        if let Some(asked) = self.options.step {
            return asked.max(1);
        }
        let wanted = self.options.connections.map_or(2_000, |all| all / 50).clamp(50, 2_000);
        match self.server.queue() {
            Some(queue) => wanted.min(queue.granted.div_ceil(2)).max(1),
            None => wanted,
        }
    }

    /// Has the last worker connect `count` times, or as often as it and its source can.
    pub(super) fn step(&mut self, count: u64, failures: u32) -> Result<Step> {
        let is_full = self.held.last().is_none_or(|held| {
            let worker = self.held.len() - 1;
            *held >= self.workers.room(worker)
        });
        if is_full {
            if let Some(why) = self.another_worker()? {
                return Ok(Step::NoWorkers(why));
            }
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
                target: self.server.address(),
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
        Ok(self.ended_step(&connected))
    }

    /// Counts what a worker has made, and says how its step ended.
    fn ended_step(&mut self, connected: &worker::Connected) -> Step {
        let mut tally = connected.tally.clone();
        tally.in_flight = 0;
        self.from_source += tally.established;
        let why = short_of(connected.why, self.from_source, &self.before.limits);
        // A source without ports is not a failure while there are others.
        if why == Why::Ports {
            let misses: u64 =
                errno::NO_PORT.iter().filter_map(|name| tally.errors.remove(*name)).sum();
            tally.attempted = tally.attempted.saturating_sub(misses);
            self.sources.exhausted(connected.source);
            self.source = None;
        }
        self.tally.add(&tally);
        self.step_errors = tally.errors;
        match why {
            Why::Ports if self.sources.is_empty() => Step::NoPorts,
            Why::Done | Why::Stopped | Why::Descriptors | Why::Ports => Step::More,
            why => Step::Met(why),
        }
    }

    /// Waits for the end of a worker's connects; tells it to stop on Ctrl-C. Measures for how long none
    /// of those in flight was answered.
    fn connected(&mut self, worker: usize) -> Result<worker::Connected> {
        let mut told = false;
        let mut moved = (Instant::now(), 0);
        self.unanswered = Duration::ZERO;
        loop {
            let report = self.workers.next(Duration::from_millis(20))?;
            match report {
                Some((_, Report::Connected(connected))) => {
                    if connected.tally.established <= moved.1 {
                        self.unanswered = self.unanswered.max(moved.0.elapsed());
                    }
                    return Ok(connected);
                }
                Some((_, Report::Progress(tally))) => {
                    if tally.established > moved.1 {
                        self.unanswered = self.unanswered.max(moved.0.elapsed());
                        moved = (Instant::now(), tally.established);
                    }
                    self.show(self.tally.established + tally.established, moved.0.elapsed());
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

    /// Waits until the server has emptied its accept queue. Returns what is left of it where the server
    /// has not taken one out of it for as long as one connect may take; `None` when it is empty or
    /// cannot be seen.
    fn drain(&mut self) -> Result<Option<Stuck>> {
        let begun = Instant::now();
        // When the queue last became shorter, and its depth at the last look: meanwhile it may grow by
        // clients whose packets are sent again.
        let (mut moved, mut last) = (begun, u64::MAX);
        let mut looked = begun;
        // A queue that is filled as fast as it is emptied keeps its depth: then the server's
        // descriptors tell that it accepts.
        let mut open = self.server_descriptors();
        let stuck = loop {
            let Some(queue) = self.server.queue() else { break None };
            self.slowness.deepest = self.slowness.deepest.max(queue.depth);
            self.slowness.granted = queue.granted;
            if queue.depth == 0 || self.lab.is_interrupted() {
                break None;
            }
            if queue.depth < last {
                moved = Instant::now();
            }
            last = queue.depth;
            let still = moved.elapsed();
            if still >= self.options.timeout {
                break Some(Stuck { depth: queue.depth, still });
            }
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                let now_open = self.server_descriptors();
                if now_open > open {
                    moved = looked;
                }
                open = now_open;
                self.look(true)?;
                self.show_waiting(queue.depth, still);
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        self.slowness.waited += begun.elapsed();
        Ok(stuck)
    }

    /// Descriptors that the server's processes have open; `None` where they are not known.
    fn server_descriptors(&self) -> Option<u64> {
        let family = self.server.family(Depth::Quick)?;
        family.processes.iter().map(|one| one.descriptors).sum()
    }

    /// Looks at held connections: at the last worker's, and at all where one of those has ended, or
    /// where it is time to. What has ended is added to the step's news, which are returned.
    pub(super) fn look(&mut self, all: bool) -> Result<&Checked> {
        let Some(last) = self.held.len().checked_sub(1) else { return Ok(&self.news) };
        let mut sum = self.workers.check_one(last)?;
        self.looks[last] = sum.clone();
        let has_news = sum.ended.count > 0 || self.news.ended.count > 0;
        let (at, took) = self.looked_at_all;
        let is_time = at.elapsed() >= LOOK_EVERY.max(took * 20);
        if last > 0 && (has_news || is_time || (all && at.elapsed() >= LOOK_EVERY)) {
            let begun = Instant::now();
            for worker in 0..last {
                let found = self.workers.check_one(worker)?;
                sum.add(&found);
                self.looks[worker] = found;
            }
            self.looked_at_all = (begun, begun.elapsed());
            self.server.watch();
        }
        sum.ended.add(&self.news.ended);
        // An end is found as late as the rarest look.
        sum.since_last_look_ms = sum.since_last_look_ms.max(self.news.since_last_look_ms);
        let total = |of: fn(&Checked) -> u64| self.looks.iter().map(of).sum();
        sum.alive = total(|one| one.alive);
        sum.closed = total(|one| one.closed);
        sum.reset = total(|one| one.reset);
        self.news = sum;
        Ok(&self.news)
    }

    /// Where the server ends new connections, waits until it has ended those that it will: those that
    /// it has not come to yet, and those whose end is still on its way, would be counted as alive. Of
    /// the oldest, ever more may end while time passes.
    fn let_ends_come(&mut self) -> Result<()> {
        if verdict::is_oldest(&self.news) {
            return Ok(());
        }
        let begun = Instant::now();
        let (mut count, mut moved) = (self.news.ended.count, begun);
        while count > 0
            && moved.elapsed() < LOOK_EVERY
            && begun.elapsed() < CLOSES_PATIENCE
            && !self.lab.is_interrupted()
        {
            std::thread::sleep(Duration::from_millis(20));
            let found = self.look(false)?.ended.count;
            if found > count {
                (count, moved) = (found, Instant::now());
            }
        }
        Ok(())
    }

    /// Where the oldest connections have ended: makes no more for a while, and sees whether others
    /// follow. Time alone ends those; a server that has too many would be content.
    fn wait_where_time_may_tell(&mut self) -> Result<Option<worker::Ended>> {
        let first = self.news.clone();
        if first.ended.count == 0 || first.alive == 0 || !verdict::is_oldest(&first) {
            return Ok(None);
        }
        self.wait_for_end();
        let quiet = Duration::from_millis(first.ended.longest_quiet_ms.unwrap_or(0));
        let patience = self.options.timeout.min(quiet + LOOK_EVERY * 4);
        let begun = Instant::now();
        let mut others = worker::Ended::default();
        while begun.elapsed() < patience && self.ended.is_none() && !self.lab.is_interrupted() {
            std::thread::sleep(Duration::from_millis(20));
            let found = self.workers.check()?;
            others.add(&found.ended);
            if others.count > 0 {
                break;
            }
            self.say_waits("whether time alone ends connections");
        }
        for worker in 0..self.held.len() {
            self.looks[worker] = self.workers.check_one(worker)?;
        }
        self.looked_at_all.0 = Instant::now();
        Ok(Some(others))
    }

    /// Waits a moment for the end of the server's process where it looks as if it had ended: a process
    /// closes its sockets before it ends.
    fn wait_for_end(&mut self) {
        self.ended = self.ended.take().or_else(|| self.server.ended());
        let refused = self.step_errors.contains_key(errno::REFUSED);
        let lost = self.news.ended.count;
        let looks_ended = refused || lost > 0 && lost >= self.news.alive;
        if self.server.pid().is_none() || !looks_ended {
            return;
        }
        let deadline = Instant::now() + END_PATIENCE;
        while self.ended.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            self.ended = self.server.ended();
        }
    }

    fn show(&self, connections: u64, still: Duration) {
        let queued = self.server.queue().map_or(0, |queue| queue.depth);
        let waits = if still > Duration::from_secs(1) {
            format!(
                "; no connect was answered for {:.0} s, each may take {:.0} s",
                still.as_secs_f64(),
                self.options.timeout.as_secs_f64()
            )
        } else {
            String::new()
        };
        let line = format!("{connections} connections, {queued} waiting to be accepted{waits}");
        self.lab.progress.step(connections, self.options.connections, &line);
    }

    fn show_waiting(&self, depth: u64, still: Duration) {
        let made = self.tally.established;
        let line = format!(
            "{made} connections, {depth} waiting to be accepted; the server has accepted none for \
             {:.1} s, {:.0} s are waited for",
            still.as_secs_f64(),
            self.options.timeout.as_secs_f64()
        );
        self.lab.progress.step(made, self.options.connections, &line);
    }

    /// Says what is waited for.
    pub(super) fn say_waits(&self, what: &str) {
        let made = self.tally.established;
        let line = format!("{made} connections; waiting for {what}");
        self.lab.progress.step(made, self.options.connections, &line);
    }

    fn sample(&mut self, always: bool) {
        if !always && self.sampled.is_some_and(|at| at.elapsed() < SAMPLE_EVERY) {
            return;
        }
        self.sampled = Some(Instant::now());
        self.show(self.tally.established, Duration::ZERO);
        let now = self.server.snapshot(Depth::Full);
        let slabs = self.before.slabs.as_ref().zip(now.slabs.as_ref());
        self.samples.push(CapacitySample {
            seconds: self.started.elapsed().as_secs_f64(),
            connections: self.tally.established,
            server_rss_bytes: now.server.as_ref().and_then(crate::observe::ProcessFamily::rss),
            available_bytes: now.memory.map(|memory| memory.available),
            kernel_bytes: slabs
                .map(|(before, now)| cost::kernel_bytes(before, now))
                .unwrap_or_default(),
            queued: now.listener.map(|queue| queue.depth),
        });
    }
}
