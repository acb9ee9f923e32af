//! `load`: messages and replies over many connections.
//!
//! The client is the engine itself: a shard that connects, or several for many connections. Closed
//! loop: each connection has `depth` messages outstanding, and sends the next when a reply is there.
//! Open loop: messages are sent by the clock, spread over the connections. Every message that was
//! due is accounted for: `load/account.rs` says how. A connection that ends after whole replies is made
//! anew, and what was not answered is sent again.

mod account;
mod client;
mod conversation;
mod gauge;
mod histogram;
pub mod keystream;
mod lanes;
mod limits;
mod piece;
pub mod repeat;
mod report;
mod server;
mod shared;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use plimsoll::{Limits, Profile, Server};

use self::client::Client;
use self::limits::{Plan, Room};
use self::piece::Piece;
use self::server::Watched;
use self::shared::Shared;
use crate::observe::Ended;
use crate::results::{Load, StoppedBy};
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
    /// Its process, for its processor time; its children's is counted with it. `None`: it is looked
    /// for, where the target is on loopback.
    pub server_pid: Option<u32>,
    /// Connections.
    pub connections: u32,
    /// Smallest and largest message, in bytes; sizes are spread evenly between.
    pub size: (u32, u32),
    /// How messages are paced.
    pub pace: Pace,
    /// The measured time, after all connections are there.
    pub duration: Duration,
    /// Most time for a connect, and for replies after the end of the measured time. A target that
    /// has no connection for as long has gone.
    pub timeout: Duration,
    /// Any request and reply, instead of an echo of `size` bytes.
    pub exchange: Option<Exchange>,
    /// Threads of the client, each with its share of the connections; more are started where the
    /// connections need them.
    pub threads: u32,
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
            threads: 1,
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
        if self.threads == 0 || self.threads > self.connections {
            return Err(Error::usage(
                format!("{} threads for {} connections", self.threads, self.connections),
                "--threads from 1 to the number of connections",
            ));
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
            Pace::Open { rate } if !(1e-6..=1e8).contains(&rate) => Err(Error::usage(
                format!("a rate of {rate} messages per second"),
                "--rate from 0.000001 to 100,000,000",
            )),
            _ => Ok(()),
        }
    }
}

/// The largest message.
const MOST_BYTES: u32 = 16 << 20;
/// The most bytes outstanding on one connection: what the client's outbox holds.
const MOST_OUTSTANDING: u64 = 64 << 20;

/// Loads a server, and says how it took it. The flag tells whether it was interrupted. A result that
/// is not [`complete`](Load::complete) lost messages, or its target went away.
///
/// # Errors
///
/// Nonsensical options; a limit of the client that is too low for them; a target that refuses,
/// closes at once or never answers; an engine that does not start.
pub fn run(lab: &Lab, options: &Options) -> Result<(Load, bool)> {
    let (piece, partial) = measure(lab, options)?;
    Ok((piece.load, partial))
}

/// Loads a server for the whole duration in one piece: as [`run`], with all latencies.
fn measure(lab: &Lab, options: &Options) -> Result<(Piece, bool)> {
    options.check()?;
    let plan = Plan::new(options, &Room::here())?;
    let mut watched = Watched::new(options.target, options.server_pid)?;
    let shared = Arc::new(Shared::new(plan.clients));
    let running = start_clients(options, plan, &shared)?;
    let watch = watch(lab, options, &shared, &running, &mut watched);
    let _ = running.drain(Duration::ZERO);
    let outcome = shared.take().ok_or_else(|| {
        Error::machine(
            "the load's client ended early or stood still",
            "see the log (--verbose) for its reason",
        )
    })?;
    let load = report::load(options, &outcome, &watched, &watch);
    // A client that had no turn to send within a short time says nothing about the target.
    let unsent = load.due == 0 && load.established > 0 && load.errors.is_empty();
    if !unsent {
        blame(options, &load)?;
    }
    let latencies = outcome.account.map(|account| account.latencies);
    Ok((Piece::new(load, latencies), watch.interrupted))
}

/// Starts the clients, a shard each.
fn start_clients(options: &Options, plan: Plan, shared: &Arc<Shared>) -> Result<plimsoll::Running> {
    let mut limits = Limits::default();
    limits.max_outgoing = plan.outgoing();
    // The clients give up connects themselves.
    limits.connect_timeout = None;
    limits.buffer_bytes = usize::try_from(plan.buffer_bytes).unwrap_or(usize::MAX);
    limits.outbox_hard = MOST_OUTSTANDING.min(limits.arena_bytes() as u64) as u32;
    limits.outbox_high = limits.outbox_hard;
    let (own, shared) = (Arc::new(options.clone()), shared.clone());
    Server::builder()
        .profile(Profile::Throughput)
        .limits(limits)
        .shards(plan.clients)
        .spin(options.spin)
        .start(move |number| {
            let connections = plan.connections_of(number);
            Client::new(number, connections, plan.outbox_bytes as usize, &own, shared.clone())
        })
        .map_err(|error| Error::machine(format!("the load's client: {error}"), "see the message"))
}

/// What the caller saw while the clients ran.
#[derive(Debug, Default)]
struct Watch {
    interrupted: bool,
    /// Seconds since the start, and messages answered per second since the sample before.
    timeline: Vec<(f64, f64)>,
    /// How the server's process ended, or one of its processes.
    server_ended: Option<Ended>,
    /// For so long one of the server's processes was seen stopped.
    paused_seconds: f64,
    /// One was when the clients were last looked at.
    is_paused: bool,
}

/// How often the caller looks at the clients, and how often the timeline is sampled.
const LOOK: Duration = Duration::from_millis(50);
const SAMPLE: f64 = 0.1;

/// Waits until the clients are done. Reads the server's figures at the start and the end of the
/// measured time.
fn watch(
    lab: &Lab,
    options: &Options,
    shared: &Shared,
    running: &plimsoll::Running,
    watched: &mut Watched,
) -> Watch {
    // The clients keep time themselves. This ends those that stand still: nothing is waited for
    // longer than the measured time, and the time limit before and after it.
    let longest = options.timeout * 3 + options.duration + Duration::from_secs(5);
    let mut moved = (Instant::now(), 0);
    let mut seen = Watch::default();
    let mut sampled = (0.0, 0);
    while !shared.is_done() && !running.has_ended() && moved.0.elapsed() <= longest {
        let elapsed =
            shared.start_ns().map(|start| client::clock().0 as f64 / 1e9 - start as f64 / 1e9);
        let (open, answered) = shared.figures();
        match elapsed {
            Some(elapsed) if elapsed >= 0.0 => {
                if !watched.has_begun() {
                    watched.begin();
                }
                watched.sample();
                let over = elapsed >= options.duration.as_secs_f64();
                if over && !watched.has_ended() {
                    watched.end();
                }
                if elapsed - sampled.0 >= SAMPLE && !over {
                    let rate = (answered - sampled.1) as f64 / (elapsed - sampled.0);
                    seen.timeline.push((elapsed, rate));
                    sampled = (elapsed, answered);
                }
            }
            Some(_) | None => {}
        }
        if open != moved.1 {
            moved = (Instant::now(), open);
        }
        tell(lab, options, elapsed.unwrap_or(0.0).max(0.0), (open, answered));
        if !seen.interrupted && lab.is_interrupted() {
            seen.interrupted = true;
            shared.stop();
        }
        if !seen.server_ended.as_ref().is_some_and(|ended| ended.is_main) {
            seen.server_ended = watched.server_ended();
            if seen.server_ended.as_ref().is_some_and(|ended| ended.is_main) {
                shared.tell_target_ended();
            }
        }
        seen.is_paused = watched.is_paused();
        let looked = Instant::now();
        shared.wait(next_look(elapsed, options.duration));
        if seen.is_paused && elapsed.is_some_and(|elapsed| elapsed >= 0.0) {
            seen.paused_seconds += looked.elapsed().as_secs_f64();
        }
    }
    if watched.has_begun() && !watched.has_ended() {
        watched.end();
    }
    // A client that found no connection any more may have ended before the process was looked at.
    seen.server_ended = seen.server_ended.or_else(|| watched.server_ended());
    seen
}

/// Until the caller looks again: at the start and the end of the measured time, or a little later.
fn next_look(elapsed: Option<f64>, duration: Duration) -> Duration {
    let Some(elapsed) = elapsed else { return LOOK };
    let next = if elapsed < 0.0 { -elapsed } else { duration.as_secs_f64() - elapsed };
    if next <= 0.0 { LOOK } else { LOOK.min(Duration::from_secs_f64(next)) }
}

fn tell(lab: &Lab, options: &Options, elapsed: f64, (open, answered): (u64, u64)) {
    let total = options.duration.as_secs_f64();
    let line = format!(
        "{} of {} connections, {} messages answered",
        units::count(open),
        units::count(options.connections.into()),
        units::count(answered)
    );
    let waits = if elapsed > total { "; waiting for replies" } else { "" };
    lab.progress.step(
        (elapsed.min(total) * 1000.0) as u64,
        Some((total * 1000.0) as u64),
        &format!("{line}{waits}"),
    );
}

/// A run in which no message was answered is an error, not a result: of the client where a limit of
/// its own kept it from connecting, else of the target.
fn blame(options: &Options, load: &Load) -> Result<()> {
    let target = options.target;
    if load.stopped_by == Some(StoppedBy::Interrupted)
        || load.answered + load.late + load.corrupt > 0
    {
        return Ok(());
    }
    let errors: Vec<String> =
        load.errors.iter().map(|(name, count)| format!("{count} × {name}")).collect();
    let errors = errors.join(", ");
    if let (Some(StoppedBy::Descriptors | StoppedBy::Ports), 0) =
        (load.stopped_by, load.established)
    {
        return Err(Error::machine(
            format!("the client can make no connection to {target}: {}", load.evidence),
            "raise the client's limit that the error names: `plimsoll doctor` lists them",
        ));
    }
    if let Some(said) = load.unexpected_replies.first() {
        return Err(Error::target(
            format!("{target} says \"{}\" instead of the expected reply ({errors})", said.text),
            "a server that is no echo needs --http, or --send and --expect; if this is its limit, ask \
             for fewer connections",
        ));
    }
    let closes = load.errors.keys().any(|name| name.starts_with("peer_") || name == "failed");
    if load.established == 0 && !closes {
        return Err(Error::target(
            format!("{target} cannot be reached: {errors}"),
            "start the server, or check address and port (ss -ltn lists what listens)",
        ));
    }
    if closes {
        return Err(Error::target(
            format!("{target} accepts and then closes: {errors}"),
            "it may be at its own limit, or expect other bytes: see --http, --send and --expect",
        ));
    }
    Err(Error::target(
        format!("{target} accepts and never answers: {errors}"),
        "is it an echo server? for another protocol see --http, --send, --expect and --reply-until",
    ))
}
