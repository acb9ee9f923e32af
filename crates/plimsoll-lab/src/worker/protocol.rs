//! What a worker is asked, and what it reports: one JSON object a line.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::worker::exchange::Exchange;
use crate::worker::source::Source;

/// What a worker is asked to do. One at a time: the next one after the report of the last, except
/// [`Request::Stop`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Make connections. Reports [`Report::Progress`] while at it, [`Report::Connected`] at the end.
    Connect(Connect),
    /// End a [`Request::Connect`] or [`Request::Probe`] early: what is in flight is given up. Without
    /// one it does nothing.
    Stop,
    /// Look at every held connection. Reports [`Report::Checked`].
    Check,
    /// A request and a reply on every held connection. Reports [`Report::Probed`].
    Probe(Exchange),
    /// Close every held connection (FIN). Reports [`Report::Released`].
    Close,
    /// Reset every held connection (RST). Reports [`Report::Released`].
    Reset,
}

/// What a worker says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// It runs, and can hold so many connections.
    Ready {
        /// Descriptors that are left for connections.
        room: u64,
    },
    /// How far a [`Request::Connect`] is; about every 25 ms.
    Progress(Tally),
    /// A [`Request::Connect`] has ended.
    Connected(Connected),
    /// The answer to [`Request::Check`].
    Checked(Checked),
    /// The answer to [`Request::Probe`].
    Probed(Probed),
    /// The answer to [`Request::Close`] and [`Request::Reset`].
    Released {
        /// Connections that were held.
        connections: u64,
    },
}

/// What becomes of a connection once it is established.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// It is held.
    #[default]
    Open,
    /// It is closed at once, with a FIN.
    Close,
    /// It is reset at once.
    Reset,
}

/// Connections to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connect {
    /// Where to.
    pub target: SocketAddr,
    /// From which address.
    pub source: Source,
    /// How many.
    pub count: u64,
    /// What becomes of them.
    pub keep: Keep,
    /// Connects in flight at once, at most.
    pub in_flight: usize,
    /// How long one connect may take.
    pub timeout_ms: u64,
    /// So many failures in a row end it. Two time limits of a connect without an answer do, too.
    pub failures: u32,
    /// Whether all of it happens on one CPU. On loopback a handshake is carried out where its
    /// packets are sent: from one CPU no two end at the same instant.
    pub one_cpu: bool,
}

/// Counts of one [`Request::Connect`], so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Connects begun.
    pub attempted: u64,
    /// Established, as the client sees it.
    pub established: u64,
    /// Begun and not ended.
    pub in_flight: u64,
    /// When the last one was established, in microseconds since the request came.
    pub last_us: u64,
    /// Failures by error name (`ECONNREFUSED`, …; `ETIMEDOUT` for the own limit too).
    pub errors: BTreeMap<String, u64>,
}

/// The end of a [`Request::Connect`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connected {
    /// The counts. What is still in flight was given up.
    pub tally: Tally,
    /// Why it ended.
    pub why: Why,
    /// The source it was asked to connect from.
    pub source: Source,
}

/// Why a [`Request::Connect`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// All were made.
    Done,
    /// [`Request::Stop`] came.
    Stopped,
    /// The source address has no port left (`EADDRNOTAVAIL`).
    Ports,
    /// This worker has no descriptor left (`EMFILE`).
    Descriptors,
    /// The machine has no file left (`ENFILE`, `fs.file-max`).
    Files,
    /// The kernel had no memory (`ENOBUFS`, `ENOMEM`).
    Memory,
    /// As many connects failed in a row as were allowed, or none was answered for two time limits.
    Failing,
}

/// What [`Request::Check`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Open in both directions.
    pub alive: u64,
    /// The other end has sent a FIN.
    pub closed: u64,
    /// Reset by the other end, or failed otherwise.
    pub reset: u64,
    /// Those that have ended since the last look.
    pub ended: Ended,
    /// Of those alive, the longest time since anything was sent on one.
    pub longest_quiet_alive_ms: Option<u64>,
    /// Time since the last look: an end may have come at any moment of it.
    pub since_last_look_ms: u64,
}

/// Connections that the other end has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How many.
    pub count: u64,
    /// The shortest time that one of them had been quiet when its end was seen.
    pub shortest_quiet_ms: Option<u64>,
    /// The longest.
    pub longest_quiet_ms: Option<u64>,
    /// How many had been sent something before.
    pub with_words: u64,
    /// What the first of those was sent; at most 256 bytes.
    pub said: Vec<u8>,
}

/// What [`Request::Probe`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// Connections that answered as expected.
    pub alive: u64,
    /// The others, by error name; `closed` for an end without the whole reply, `wrong_reply`
    /// for other bytes than expected, `no_reply` for none in time.
    pub errors: BTreeMap<String, u64>,
    /// The beginning of the first reply that was other than expected; at most 256 bytes.
    pub wrong_reply: Vec<u8>,
}

impl Checked {
    /// Adds what another worker has found.
    pub fn add(&mut self, other: &Self) {
        self.alive += other.alive;
        self.closed += other.closed;
        self.reset += other.reset;
        self.ended.add(&other.ended);
        self.longest_quiet_alive_ms = self.longest_quiet_alive_ms.max(other.longest_quiet_alive_ms);
        self.since_last_look_ms = self.since_last_look_ms.max(other.since_last_look_ms);
    }
}

impl Ended {
    /// Adds what another look has found.
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        let shortest = [self.shortest_quiet_ms, other.shortest_quiet_ms];
        self.shortest_quiet_ms = shortest.into_iter().flatten().min();
        self.longest_quiet_ms = self.longest_quiet_ms.max(other.longest_quiet_ms);
        self.with_words += other.with_words;
        if self.said.is_empty() {
            self.said.clone_from(&other.said);
        }
    }
}

impl Probed {
    /// Adds what another worker has found.
    pub fn add(&mut self, other: Self) {
        self.alive += other.alive;
        for (name, count) in other.errors {
            *self.errors.entry(name).or_default() += count;
        }
        if self.wrong_reply.is_empty() {
            self.wrong_reply = other.wrong_reply;
        }
    }
}

impl Tally {
    /// Adds another's counts to this one; `last_us` becomes the later of both.
    pub fn add(&mut self, other: &Self) {
        self.attempted += other.attempted;
        self.established += other.established;
        self.in_flight += other.in_flight;
        self.last_us = self.last_us.max(other.last_us);
        for (name, count) in &other.errors {
            *self.errors.entry(name.clone()).or_default() += count;
        }
    }
}
