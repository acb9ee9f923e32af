//! The first connection: whether anybody is there at all, and serves it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::ramp::Ramp;
use crate::verdict::capacity::Step;
use crate::verdict::{named, quote};
use crate::worker::{Ended, Probed, Tally};
use crate::{Error, Result, errno};

/// How long the first connection is watched for a server that closes at once.
const WATCHED: Duration = Duration::from_millis(250);

impl Ramp<'_> {
    /// Makes the first connection, and makes sure that somebody serves it.
    pub(super) fn knock(&mut self) -> Result<()> {
        let address = self.server.address();
        let step = self.step(1, 1)?;
        if self.tally.established == 0 {
            return Err(unreachable(address, &step, &self.tally));
        }
        let begun = Instant::now();
        while begun.elapsed() < WATCHED && !self.lab.is_interrupted() {
            let ended = &self.look(true)?.ended;
            if ended.count > 0 {
                return Err(closes_at_once(address, ended));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if !self.options.probe {
            return Ok(());
        }
        self.say_waits("the first connection's answer");
        let probed = self.workers.probe(&self.options.exchange, |_| true)?;
        match probed.errors.keys().next() {
            None => Ok(()),
            Some(name) => Err(probe_failed(address, name, &probed)),
        }
    }
}

/// The first connection was not made.
fn unreachable(address: SocketAddr, step: &Step, tally: &Tally) -> Error {
    let errors = &tally.errors;
    if errors.contains_key(errno::REFUSED) {
        return Error::target(
            format!("nobody listens on {address} ({})", errno::REFUSED),
            "start the server, or check address and port: `ss -ltn` lists who listens",
        );
    }
    if errors.contains_key(errno::TIMED_OUT) {
        return Error::target(
            format!("{address} does not answer a connect ({})", errno::TIMED_OUT),
            "a firewall drops it, the host is down, or its accept queue is full: see `ss -ltn` there",
        );
    }
    if *step == Step::NoPorts {
        return Error::machine(
            format!(
                "no source address has a port left towards {address} ({})",
                errno::NO_PORT.join(", ")
            ),
            "give source addresses that this machine has, or wait for TIME_WAIT (60 s) to pass",
        );
    }
    Error::target(
        format!("{address} cannot be reached: {}", named(errors)),
        "check the address, the route to it, and the source addresses",
    )
}

/// The first connection was ended within a moment.
fn closes_at_once(address: SocketAddr, ended: &Ended) -> Error {
    let told = match ended.said.as_slice() {
        [] => String::new(),
        said => format!(", and says {} before", quote(said)),
    };
    Error::target(
        format!("{address} accepts a connection and closes it at once{told}"),
        "see the server's log: a limit on connections or peers, a list of addresses it lets in, or \
         TLS with a client that must speak first",
    )
}

/// The first connection gave no reply, or a wrong one.
fn probe_failed(address: SocketAddr, error: &str, probed: &Probed) -> Error {
    let said = match probed.wrong_reply.as_slice() {
        [] => String::new(),
        said => format!(": it says {}", quote(said)),
    };
    let (what, cure) = match error {
        "no_reply" => (
            "accepts a connection and never answers the probe",
            "see whether the server still accepts (`ss -ltn`), and whether it answers what is sent: \
             --send and --expect say what",
        ),
        "wrong_reply" => (
            "answers the probe, but not as expected",
            "a server that is no echo needs --send and --expect, such as --send 'PING\\r\\n' \
             --expect '+PONG'",
        ),
        "closed" | "ECONNRESET" | "EPIPE" => (
            "closes the connection instead of answering the probe",
            "a server that is no echo needs --send and --expect; see its log",
        ),
        _ => ("fails the probe", "see the server's log"),
    };
    Error::target(format!("{address} {what} ({error}){said}"), cure)
}

/// Connections were made, and the server never took one of them out of its queue.
pub(super) fn never_served(
    address: SocketAddr,
    established: u64,
    errors: &BTreeMap<String, u64>,
) -> Error {
    Error::target(
        format!(
            "of {established} connections to {address} the server accepted none: all wait in its \
             accept queue ({})",
            named(errors)
        ),
        "see the server's log: it listens and accepts nothing",
    )
}
