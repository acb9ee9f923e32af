//! The load of a paced slice: an open loop, in which messages are sent when they are due, whatever
//! has become of those before them.
//!
//! A reply's latency counts from the moment at which its message was due, so that a message that
//! was held up, by the server or by this generator, is not taken for a quick one.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::clients::{Clients, DRAIN, EVENTS};
use super::schedule::Schedule;
use super::servers::Server;
use super::{Failure, Load, Pace, Scenario, Work};
use crate::sys;

/// Longest latency that is told apart: the longest slice, and the wait after it.
const LONGEST: Duration = Duration::from_secs(20);

/// Messages at a steady rate over all connections to one server.
pub(super) struct PacedLoad {
    clients: Clients,
    schedule: Schedule,
    /// Messages of this slice that have come back, by connection.
    answered: Vec<u64>,
    /// See [`Schedule::late_ns`].
    late_ns: u64,
    /// On a CPU of our own; otherwise we sleep until something is due or comes back.
    spin: bool,
}

/// What has happened in a slice so far.
struct Progress {
    started: Instant,
    planned: u64,
    sent: u64,
    answered: u64,
    late: u64,
    /// Nanoseconds.
    latency: Histogram<u64>,
}

impl PacedLoad {
    /// Opens all connections.
    pub(super) fn open(server: &Server, scenario: &Scenario, rate: u64) -> Result<Self, Failure> {
        let clients = Clients::open(server, scenario.connections, scenario.size)?;
        // The order of the connections is the same for all servers.
        let schedule = Schedule::new(rate, scenario.connections, 1);
        let answered = vec![0; scenario.connections];
        let (late_ns, spin) = (Schedule::late_ns(rate), scenario.spins());
        Ok(Self { clients, schedule, answered, late_ns, spin })
    }

    /// Sends the next message if it is due. At most one, so that replies are taken in between
    /// however far behind we are.
    fn send_due(&mut self, progress: &mut Progress) -> Result<(), Failure> {
        if progress.sent == progress.planned {
            return Ok(());
        }
        let (due, now) = (self.schedule.due_ns(progress.sent), progress.now_ns());
        if now < due {
            return Ok(());
        }
        progress.late += u64::from(now - due >= self.late_ns);
        self.clients.send(self.schedule.connection(progress.sent), 1)?;
        progress.sent += 1;
        Ok(())
    }

    /// Takes what has come back on one connection.
    fn take(&mut self, index: usize, progress: &mut Progress) -> Result<(), Failure> {
        let complete = self.clients.receive(index)?;
        let now = progress.now_ns();
        for _ in 0..complete {
            let message = self.schedule.message(index, self.answered[index]);
            progress.latency.saturating_record(now.saturating_sub(self.schedule.due_ns(message)));
            self.answered[index] += 1;
        }
        progress.answered += complete;
        // What the kernel did not take at first.
        self.clients.send(index, 0)
    }

    /// How long nothing needs to be done, unless a reply comes.
    fn patience(&self, progress: &Progress) -> Duration {
        if self.spin {
            Duration::ZERO
        } else if progress.sent < progress.planned {
            let due = self.schedule.due_ns(progress.sent);
            Duration::from_nanos(due.saturating_sub(progress.now_ns()))
        } else {
            Duration::from_millis(100)
        }
    }
}

impl Progress {
    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }
}

impl Load for PacedLoad {
    fn slice(&mut self, duration: Duration) -> Result<Work, Failure> {
        let mut events = vec![sys::NO_EVENT; EVENTS];
        let planned = self.schedule.count(duration);
        self.answered.fill(0);
        let latency = Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3)
            .map_err(|error| Failure::Machine(format!("no histogram: {error}")))?;
        let started = Instant::now();
        let mut progress = Progress { started, planned, sent: 0, answered: 0, late: 0, latency };
        let give_up = duration + DRAIN;
        while progress.answered < planned {
            self.send_due(&mut progress)?;
            let count = self.clients.wait(&mut events, self.patience(&progress))?;
            if started.elapsed() >= give_up {
                return Err(self.clients.missing(planned - progress.answered));
            }
            for event in &events[..count] {
                self.take(event.u64 as usize, &mut progress)?;
                self.send_due(&mut progress)?;
            }
        }
        let elapsed = started.elapsed();
        self.schedule.advance(planned);
        let Progress { late, latency, .. } = progress;
        Ok(Work { units: planned, elapsed, pace: Some(Pace { late, latency }) })
    }
}
