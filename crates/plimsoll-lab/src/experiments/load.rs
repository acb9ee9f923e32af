//! `load`: messages and replies over many connections, every byte verified.
//!
//! The client is the engine itself: one shard that connects. Closed loop: each connection has
//! `depth` messages outstanding, and sends the next when a reply is there. Open loop: messages are
//! sent by the clock, spread over the connections, and latency counts from the *intended* moment,
//! so that a server that stalls is charged for every message that it made wait (no coordinated
//! omission).

mod client;
mod conversation;
mod histogram;
pub mod keystream;
mod piece;
pub mod repeat;
mod report;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use plimsoll::{Limits, Profile, Server};

use crate::experiments::load::client::{Client, Shared};
use crate::experiments::load::piece::Piece;
use crate::results::Load;
use crate::worker::exchange::Exchange;
use crate::{Error, Lab, Result, units};

pub use report::render_text;

/// How messages are paced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// As soon as a reply is there: this many outstanding on each connection, at least 1.
    Closed {
        /// Messages outstanding per connection.
        depth: u32,
    },
    /// By the clock: messages per second, over all connections.
    Open {
        /// Messages per second.
        rate: f64,
    },
}

/// What to load, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub target: SocketAddr,
    /// Its process, for its processor time; its children's is counted with it.
    pub server_pid: Option<u32>,
    /// Connections.
    pub connections: u32,
    /// Smallest and largest message, in bytes; sizes are spread evenly between.
    pub size: (u32, u32),
    /// How messages are paced.
    pub pace: Pace,
    /// The measured time, after all connections are there.
    pub duration: Duration,
    /// Most time for connecting, and for one reply.
    pub timeout: Duration,
    /// Any request and reply, instead of an echo of `size` bytes.
    pub exchange: Option<Exchange>,
    /// The client never sleeps: it does not make the server pay for waking it.
    pub spin: bool,
    /// Source addresses, used in turn: one gives about 28,000 connections.
    pub sources: Vec<IpAddr>,
    /// Seed of sizes and contents.
    pub seed: u64,
}

impl Options {
    /// An echo of 64 bytes on 50 connections for two seconds.
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            server_pid: None,
            connections: 50,
            size: (64, 64),
            pace: Pace::Closed { depth: 1 },
            duration: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
            exchange: None,
            spin: false,
            sources: Vec::new(),
            seed: 1,
        }
    }

    fn check(&self) -> Result<()> {
        let (least, most) = self.size;
        if self.connections == 0 {
            return Err(Error::usage("0 connections carry no load", "--connections 1 or more"));
        }
        if least == 0 || least > most || most > MOST_BYTES {
            return Err(Error::usage(
                format!("message sizes {least}..{most}"),
                format!("--size from 1 to {MOST_BYTES} bytes, the smaller first"),
            ));
        }
        match self.pace {
            Pace::Closed { depth: 0 } => {
                Err(Error::usage("a depth of 0 sends nothing", "--depth 1 or more"))
            }
            Pace::Closed { depth } if u64::from(depth) * u64::from(most) > MOST_OUTSTANDING => {
                Err(Error::usage(
                    format!("{depth} messages of {most} bytes outstanding on one connection"),
                    format!("--depth × --size of at most {MOST_OUTSTANDING} bytes"),
                ))
            }
            Pace::Open { rate } if !(rate > 0.0 && rate <= 1e8) => Err(Error::usage(
                format!("a rate of {rate} messages per second"),
                "--rate above 0, at most 100,000,000",
            )),
            _ => Ok(()),
        }
    }
}

/// The largest message.
const MOST_BYTES: u32 = 16 << 20;
/// The most bytes outstanding on one connection: what the client's outbox holds.
const MOST_OUTSTANDING: u64 = 64 << 20;

/// Loads a server, and says how it took it. The flag tells whether it was interrupted.
///
/// # Errors
///
/// Nonsensical options; a target that refuses, closes at once or never answers; an engine that
/// does not start.
pub fn run(lab: &Lab, options: &Options) -> Result<(Load, bool)> {
    let (piece, partial) = measure(lab, options)?;
    Ok((piece.load, partial))
}

/// Loads a server for the whole duration in one piece: as [`run`], with all latencies.
fn measure(lab: &Lab, options: &Options) -> Result<(Piece, bool)> {
    options.check()?;
    let shared = Arc::new(Shared::default());
    let running = start_client(options, shared.clone())?;
    let partial = watch(lab, options, &shared, &running);
    let _ = running.drain(Duration::ZERO);
    let outcome = shared.take().ok_or_else(|| {
        Error::machine(
            "the load's client ended early or stood still",
            "see the log (--verbose) for its reason",
        )
    })?;
    let load = report::load(options, &outcome);
    blame_the_target(options, &load, partial)?;
    Ok((Piece { load, latencies: outcome.latencies }, partial))
}

/// Starts the client's shard.
fn start_client(options: &Options, shared: Arc<Shared>) -> Result<plimsoll::Running> {
    let mut limits = Limits::default();
    limits.max_outgoing = options.connections;
    limits.outbox_hard = MOST_OUTSTANDING as u32;
    limits.outbox_high = MOST_OUTSTANDING as u32;
    let outstanding = match options.pace {
        Pace::Closed { depth } => u64::from(depth) * u64::from(options.size.1),
        Pace::Open { .. } => u64::from(options.size.1) * 4,
    };
    let need = (outstanding + 32 * 1024) * u64::from(options.connections);
    limits.buffer_bytes = usize::try_from(need.clamp(64 << 20, 4 << 30)).unwrap_or(64 << 20);
    if matches!(options.pace, Pace::Closed { .. }) {
        limits.idle_timeout = Some(options.timeout);
    }
    let (own, spin) = (options.clone(), options.spin);
    Server::builder()
        .profile(Profile::Throughput)
        .limits(limits)
        .shards(1)
        .spin(spin)
        .start(move |_shard| Client::new(&own, shared.clone()))
        .map_err(|error| Error::machine(error.to_string(), "see the message"))
}

/// Waits until the client is done. Returns whether it was interrupted.
fn watch(lab: &Lab, options: &Options, shared: &Shared, running: &plimsoll::Running) -> bool {
    let total = options.duration.as_secs_f64();
    // The client keeps time itself. This ends one that stands still: nothing is waited for longer
    // than the measured time, and the timeout before and after it.
    let longest = options.timeout * 3 + options.duration + Duration::from_secs(5);
    let mut moved = (Instant::now(), 0);
    let mut interrupted = false;
    while !shared.is_done() && !running.has_ended() && moved.0.elapsed() <= longest {
        shared.wait(Duration::from_millis(50));
        let progress = shared.progress();
        if progress.established != moved.1 {
            moved = (Instant::now(), progress.established);
        }
        lab.progress.step(
            (progress.seconds * 1000.0) as u64,
            Some((total * 1000.0) as u64),
            &format!(
                "{} of {} connections, {} messages",
                units::count(progress.established),
                units::count(options.connections.into()),
                units::count(progress.messages)
            ),
        );
        if !interrupted && lab.is_interrupted() {
            interrupted = true;
            shared.stop();
        }
    }
    interrupted
}

/// A target that did nothing at all is an error, not a result.
fn blame_the_target(options: &Options, load: &Load, partial: bool) -> Result<()> {
    let target = options.target;
    let errors = |errors: &BTreeMap<String, u64>| {
        errors
            .iter()
            .map(|(name, count)| format!("{count} × {name}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    if partial || load.messages > 0 || load.corrupt > 0 {
        return Ok(());
    }
    let closes = load.errors.keys().any(|name| name.starts_with("peer_") || name == "failed");
    if load.established == 0 && !closes {
        return Err(Error::target(
            format!("{target} cannot be reached: {}", errors(&load.errors)),
            "start the server, or check address and port (ss -ltn lists what listens)",
        ));
    }
    if closes {
        return Err(Error::target(
            format!("{target} accepts and then closes: {}", errors(&load.errors)),
            "it may be at its own limit, or expect other bytes: see --send and --expect",
        ));
    }
    Err(Error::target(
        format!("{target} accepts and never answers: {}", errors(&load.errors)),
        "is it an echo server? for another protocol see --send, --expect and --reply-until",
    ))
}
