//! Which connections are still alive at the end, and what each costs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use plimsoll_kernel::sockstat::Sockstat;

use super::ramp::Ramp;
use super::{knock, proof};
use crate::observe::{Depth, Snapshot};
use crate::results::{Capacity, StoppedBy};
use crate::verdict::capacity::mention;
use crate::verdict::cost::{self, Cost};
use crate::verdict::{Stop, quote};
use crate::worker::Request;
use crate::{Error, Result};

/// How long the machine's sockets may take to come to rest once connections are released.
const REST: Duration = Duration::from_secs(3);

/// Connections whose cost is measured.
#[derive(Debug, Clone, Copy)]
struct Counted {
    /// Both ends are there.
    whole: u64,
    /// The server has ended them; the clients' end is still there.
    halves: u64,
    /// Of the whole ones, those that wait to be accepted; `None` where the queue cannot be seen.
    queued: Option<u64>,
}

impl Counted {
    /// Sockets of both ends.
    fn sockets(self) -> u64 {
        self.whole * 2 + self.halves
    }

    /// Connections that the sockets amount to.
    fn connections(self) -> u64 {
        self.whole + self.halves / 2
    }
}

impl Ramp<'_> {
    /// Measures what is held, and ends the ramp. Returns the result, and whether it was interrupted.
    pub(super) fn measure(mut self, mut stop: Stop) -> Result<(Capacity, bool)> {
        let now = self.server.snapshot(Depth::Full);
        let queued = now.listener.map(|queue| queue.depth);
        let found = self.workers.check()?;
        let halves = found.closed + found.reset;
        let counted = Counted {
            // The first connection was made before the figures were read.
            whole: (self.tally.established - 1).saturating_sub(halves + queued.unwrap_or(0)),
            halves,
            queued,
        };
        let kernel = kernel_cost(&self.before, &now, counted);
        let user = cost::user_bytes(&self.before, &now, counted.whole);
        let nonpaged = self
            .before
            .nonpaged
            .zip(now.nonpaged)
            .filter(|_| counted.whole >= cost::LEAST_FOR_COST)
            .map(|(before, now)| (now as f64 - before as f64) / counted.whole as f64);
        let mut errors = std::mem::take(&mut self.tally.errors);
        let (alive, probed) = self.alive(queued.unwrap_or(0), &mut errors, &mut stop)?;
        self.nobody_was_served(&stop, alive, queued, &errors)?;
        mention(&mut stop, self.tally.established, alive, queued);
        let counter_proof = proof::counter_proof(&mut self, &stop)?;
        let kernel = match kernel {
            Err(Reason::Disturbed(_)) => self.measure_by_release(counted),
            other => other,
        };
        let descriptors =
            now.server.as_ref().and_then(|one| one.shortest_of_descriptors().copied());
        let (cost, kernel_reason) = known_or_reason(kernel.map_err(Reason::text));
        let (user, user_reason) = known_or_reason(user);
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
            user_bytes_reason: user_reason,
            kernel_bytes_per_connection: cost.as_ref().map(|cost| cost.bytes),
            kernel_bytes_reason: kernel_reason,
            kernel_objects: cost.map(|cost| cost.objects).unwrap_or_default(),
            nonpaged_bytes_per_connection: nonpaged,
            connects_per_second: (self.tally.established - 1) as f64
                / self.busy.as_secs_f64().max(1e-6),
            errors,
            workers: self.workers.len() as u64,
            connections_per_worker: self.workers.rooms().next().unwrap_or(0),
            server_pid: self.server.pid(),
            server_descriptors: descriptors.and_then(|one| one.descriptors),
            server_descriptors_limit: descriptors.and_then(|one| one.descriptors_limit),
            source_addresses: self.sources.used(),
            samples: self.samples,
        };
        Ok((capacity, self.lab.is_interrupted()))
    }

    /// An error where the server has never taken a connection out of its queue: then nothing was
    /// measured.
    fn nobody_was_served(
        &self,
        stop: &Stop,
        alive: u64,
        queued: Option<u64>,
        errors: &BTreeMap<String, u64>,
    ) -> Result<()> {
        let all_wait = queued.is_some_and(|queued| queued >= self.tally.established);
        let is_news = !matches!(stop.by, StoppedBy::ServerEnded | StoppedBy::Interrupted);
        if alive == 0 && all_wait && is_news {
            let address = self.server.address();
            return Err(knock::never_served(address, self.tally.established, errors));
        }
        Ok(())
    }

    /// The second try, where other programs disturbed the first: what becomes free when all connections
    /// are reset.
    fn measure_by_release(&mut self, counted: Counted) -> Result<Cost, Reason> {
        let failed = |error: Error| Reason::Known(error.to_string());
        self.say_waits("the kernel's objects to come to rest");
        let before = self.server.snapshot(Depth::Full);
        // Now the first connection is one of them, and those of a counter-proof.
        let found = self.workers.check().map_err(failed)?;
        let queued = before.listener.map(|queue| queue.depth);
        let counted = Counted {
            whole: found.alive.saturating_sub(queued.unwrap_or(0)),
            halves: found.closed + found.reset,
            queued: queued.or(counted.queued),
        };
        self.workers.release(&Request::Reset).map_err(failed)?;
        rest();
        let after = self.server.snapshot(Depth::Full);
        kernel_cost(&after, &before, counted)
    }

    /// How many are alive, and whether they were probed: an interrupted probe says nothing of those
    /// it did not come to, so that all are looked at instead.
    fn alive(
        &mut self,
        queued: u64,
        errors: &mut BTreeMap<String, u64>,
        stop: &mut Stop,
    ) -> Result<(u64, bool)> {
        let is_over = stop.by == StoppedBy::ServerEnded || self.lab.is_interrupted();
        if self.options.probe && !is_over {
            let (lab, made) = (self.lab, self.tally.established);
            let workers = self.workers.len();
            let probed = self.workers.probe(&self.options.exchange, |done| {
                let line = format!(
                    "{made} connections; waiting for each to answer, {done} of {workers} client \
                     processes done"
                );
                lab.progress.step(made, None, &line);
                !lab.is_interrupted()
            })?;
            if !lab.is_interrupted() {
                if !probed.wrong_reply.is_empty() {
                    stop.add(format!("; a wrong reply was {}", quote(&probed.wrong_reply)));
                }
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

/// The kernel's cost of one end, from figures before and after connections were made. Only where
/// both ends are here, and the server's is whole: what waits to be accepted has no inode yet.
fn kernel_cost(before: &Snapshot, after: &Snapshot, counted: Counted) -> Result<Cost, Reason> {
    let known = |reason: &str| Reason::Known(reason.to_owned());
    if !cfg!(target_os = "linux") {
        return Err(known("only Linux tells what its kernel's objects take"));
    }
    let Some(queued) = counted.queued else {
        return Err(known(
            "the server's end is not seen: it listens on another machine, in another network \
             namespace, or no more",
        ));
    };
    let connections = counted.connections();
    if queued * 100 > connections {
        return Err(Reason::Known(format!(
            "{queued} of {connections} connections wait to be accepted, and have no file yet"
        )));
    }
    if connections < cost::LEAST_FOR_COST {
        return Err(Reason::Known(format!(
            "{connections} connections are too few: below {} the kernel's objects of other \
             programs outweigh theirs",
            cost::LEAST_FOR_COST
        )));
    }
    let (Some(then), Some(now)) = (&before.slabs, &after.slabs) else {
        return Err(known("the kernel's objects cannot be read: /proc/slabinfo needs root"));
    };
    let sockets = counted.sockets() + 2 * queued;
    cost::agrees(before, after, sockets).map_err(Reason::Disturbed)?;
    cost::one_end(then, now, connections).ok_or_else(|| known("too few connections"))
}

/// Why the kernel's cost is not known.
enum Reason {
    /// Other programs moved the figures: another try may succeed.
    Disturbed(String),
    /// It cannot be known.
    Known(String),
}

impl Reason {
    fn text(self) -> String {
        match self {
            Self::Disturbed(text) | Self::Known(text) => text,
        }
    }
}

fn known_or_reason<T>(found: Result<T, String>) -> (Option<T>, Option<String>) {
    match found {
        Ok(value) => (Some(value), None),
        Err(reason) => (None, Some(reason)),
    }
}

/// Waits until the machine's count of TCP sockets is the same three times, 30 ms apart, or for 3 s.
fn rest() {
    let deadline = Instant::now() + REST;
    let count = || Sockstat::read().ok().map(|now| now.allocated);
    let mut last = (count(), 0);
    while last.1 < 3 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(30));
        let now = count();
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
    }
}
