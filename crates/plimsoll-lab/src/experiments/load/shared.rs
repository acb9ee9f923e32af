//! What the clients of one load and the caller that waits for them share.
//!
//! Each client is a shard's thread. All begin to send at one moment, once each has its connections
//! or has given some up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::account::Account;
use crate::observe::threads::Usage;

/// Time between the last connect and the first message. A server that is at its limit accepts and
/// then says so, or closes: that comes before the first message, and costs none.
const SETTLE: Duration = Duration::from_millis(50);

/// What clients and caller share.
#[derive(Debug)]
pub(super) struct Shared {
    cells: Box<[Cell]>,
    gate: Mutex<Gate>,
    changed: Condvar,
    stop: AtomicBool,
    target_ended: AtomicBool,
}

/// Figures of one client that change all the time.
#[derive(Debug, Default)]
struct Cell {
    open: AtomicU64,
    answered: AtomicU64,
}

#[derive(Debug)]
struct Gate {
    /// For each client its connections, once it is ready to begin.
    ready: Vec<Option<u64>>,
    /// When all begin, on the shards' clock.
    start_ns: Option<u64>,
    outcomes: Vec<Outcome>,
}

/// A client's part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// When all begin.
    pub(super) start_ns: u64,
    /// Its place among the clients that have connections.
    pub(super) place: u64,
    /// How many clients have connections.
    pub(super) clients: u64,
}

/// What one client found, or several together.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// How many clients these are.
    pub(super) clients: u64,
    pub(super) established: u64,
    /// `None` where no connection was there to send on.
    pub(super) account: Option<Account>,
    /// Messages that were due.
    pub(super) due: u64,
    /// Bytes of the requests and of the replies of answered messages.
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) corrupt: u64,
    pub(super) reconnects: u64,
    pub(super) errors: BTreeMap<String, u64>,
    /// What the server said where another reply was expected, and how often.
    pub(super) said: BTreeMap<Vec<u8>, u64>,
    /// The measured time.
    pub(super) seconds: f64,
    /// Why it ended before its time.
    pub(super) cut: Option<Cut>,
    /// Processor time of the client's thread in the measured time, one for each client.
    pub(super) usage: Vec<Usage>,
    /// No connection was open at the end of the measured time, and for so long none had been.
    pub(super) down_seconds: Option<f64>,
}

/// Why a run ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cut {
    /// Somebody asked for it.
    Interrupted,
    /// No connection was open, and none could be made.
    TargetGone,
}

impl Shared {
    pub(super) fn new(clients: u32) -> Self {
        Self {
            cells: (0..clients).map(|_| Cell::default()).collect(),
            gate: Mutex::new(Gate {
                ready: vec![None; clients as usize],
                start_ns: None,
                outcomes: Vec::new(),
            }),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            target_ended: AtomicBool::new(false),
        }
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client has its connections, so many, or has given up the others. Returns its part of the
    /// run, once all clients are ready.
    pub(super) fn ready(&self, client: u32, established: u64, now_ns: u64) -> Option<Part> {
        let mut gate = self.gate();
        gate.ready[client as usize] = Some(established);
        if gate.ready.contains(&None) {
            return None;
        }
        let start_ns = *gate.start_ns.get_or_insert_with(|| {
            self.changed.notify_all();
            now_ns + SETTLE.as_nanos() as u64
        });
        let taking_part = |ready: &[Option<u64>]| {
            ready.iter().filter(|count| count.is_some_and(|count| count > 0)).count() as u64
        };
        Some(Part {
            start_ns,
            place: taking_part(&gate.ready[..client as usize]),
            clients: taking_part(&gate.ready),
        })
    }

    /// When all begin; `None` before that is known.
    pub(super) fn start_ns(&self) -> Option<u64> {
        self.gate().start_ns
    }

    /// A client has ended.
    pub(super) fn finish(&self, outcome: Outcome) {
        self.gate().outcomes.push(outcome);
        self.changed.notify_all();
    }

    /// Whether all clients have ended.
    pub(super) fn is_done(&self) -> bool {
        self.gate().outcomes.len() == self.cells.len()
    }

    /// What all clients found together; `None` where one has not ended.
    pub(super) fn take(&self) -> Option<Outcome> {
        let mut gate = self.gate();
        if gate.outcomes.len() < self.cells.len() {
            return None;
        }
        gate.outcomes.drain(..).reduce(Outcome::join)
    }

    /// Waits for so long, or until a client has ended or all begin.
    pub(super) fn wait(&self, most: Duration) {
        let gate = self.gate();
        if gate.outcomes.len() < self.cells.len() {
            drop(self.changed.wait_timeout(gate, most));
        }
    }

    /// Has the clients end now, with what they have.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Whether the clients are to end now.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The target's process has ended: whoever has no connection need not try again.
    pub(super) fn tell_target_ended(&self) {
        self.target_ended.store(true, Ordering::Release);
    }

    /// Whether the target's process has ended.
    pub(super) fn has_target_ended(&self) -> bool {
        self.target_ended.load(Ordering::Acquire)
    }

    /// A client's figures of this moment.
    pub(super) fn tell(&self, client: u32, open: u64, answered: u64) {
        let cell = &self.cells[client as usize];
        cell.open.store(open, Ordering::Relaxed);
        cell.answered.store(answered, Ordering::Relaxed);
    }

    /// Connections that are open, and messages answered.
    pub(super) fn figures(&self) -> (u64, u64) {
        let sum = |of: fn(&Cell) -> &AtomicU64| {
            self.cells.iter().map(|cell| of(cell).load(Ordering::Relaxed)).sum()
        };
        (sum(|cell| &cell.open), sum(|cell| &cell.answered))
    }
}

impl Outcome {
    /// Joins what two clients of one run found.
    fn join(mut self, other: Self) -> Self {
        self.clients += other.clients;
        self.established += other.established;
        self.account = match (self.account, other.account) {
            (Some(mut one), Some(other)) => {
                one.join(&other);
                Some(one)
            }
            (one, other) => one.or(other),
        };
        self.due += other.due;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.corrupt += other.corrupt;
        self.reconnects += other.reconnects;
        for (name, count) in other.errors {
            *self.errors.entry(name).or_default() += count;
        }
        for (text, count) in other.said {
            *self.said.entry(text).or_default() += count;
        }
        self.seconds = self.seconds.max(other.seconds);
        self.cut = self.cut.max(other.cut);
        self.usage.extend(other.usage);
        // One client with an open connection is enough for the target to be there.
        self.down_seconds =
            self.down_seconds.zip(other.down_seconds).map(|(one, other)| one.min(other));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_clients_with_connections_begin_at_once() {
        let shared = Shared::new(3);
        assert_eq!(shared.ready(0, 5, 100), None);
        assert_eq!(shared.ready(1, 0, 200), None);
        let last = shared.ready(2, 7, 300).expect("all are ready");
        let start_ns = 300 + SETTLE.as_nanos() as u64;
        assert_eq!(last, Part { start_ns, place: 1, clients: 2 });
        let first = shared.ready(0, 5, 400).expect("all are ready");
        assert_eq!(first, Part { start_ns, place: 0, clients: 2 });
        assert_eq!(shared.start_ns(), Some(start_ns));
    }

    #[test]
    fn outcomes_are_joined_once_all_are_there() {
        let shared = Shared::new(2);
        let outcome = |name: &str, established| Outcome {
            established,
            errors: BTreeMap::from([(name.to_owned(), 1)]),
            down_seconds: (established == 0).then_some(2.0),
            ..Outcome::default()
        };
        shared.finish(outcome("peer_reset", 3));
        assert!(!shared.is_done() && shared.take().is_none());
        shared.finish(outcome("peer_reset", 0));
        let both = shared.take().expect("all have ended");
        assert_eq!((both.established, both.errors["peer_reset"]), (3, 2));
        assert_eq!(both.down_seconds, None);
    }
}
