//! How many connections does this server hold, and what ends it?
//!
//! Connections are added in steps, made by [worker](crate::worker) processes that hold them with
//! nothing watching, from as many source addresses and processes as it takes; after each step the
//! server's side is looked at: its accept queue, its memory, its descriptors. So a connection that
//! sits in the backlog is not taken for one that is served, and the lab's own limits are not taken
//! for the server's: where the clients' ports or descriptors end, further addresses and processes
//! are used, and the result says so.
//!
//! # What a connection costs
//!
//! Kernel memory is the growth of the slabs between the first connection and the last, by kind of
//! object, for one end: see [`cost::one_end`](crate::verdict::cost::one_end). It is checked against the number of sockets. User memory is the growth of the server's
//! resident memory (with its child processes') over the same connections. Both need the server on
//! this machine; the second its process.

mod clients;
mod knock;
mod measure;
mod proof;
mod ramp;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use crate::embedded::{self, Embedded};
use crate::observe::Server;
use crate::results::{Capacity, Side};
use crate::worker::exchange::Exchange;
use crate::worker::source::AddressRange;
use crate::{Lab, Result, units};
use ramp::Ramp;

/// The server to measure.
#[derive(Debug, Clone)]
pub enum Target {
    /// A `plimsoll serve` of its own. With a number of connections and without a limit of its own,
    /// the limit is that number.
    Embedded(embedded::Options),
    /// A server that runs.
    Address {
        /// Where it listens.
        address: SocketAddr,
        /// Its process; `None` to look for the owner of the listening socket. Its children's memory
        /// and descriptors are counted with it.
        pid: Option<u32>,
    },
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub target: Target,
    /// Stop at so many; `None` for as many as possible.
    pub connections: Option<u64>,
    /// How many to add between two looks; `None` for a fiftieth, and then never more than half of the
    /// server's backlog, so that a server that accepts drops no client.
    pub step: Option<u64>,
    /// Where clients connect from; `None` is `127.0.0.0/8` towards IPv4 loopback, else the route's
    /// address.
    pub sources: Option<AddressRange>,
    /// Whether each held connection must answer at the end.
    pub probe: bool,
    /// The request and the reply of a probe.
    pub exchange: Exchange,
    /// Stop before so many percent of memory (the machine's, or the control group's) are in use.
    pub stop_before: f64,
    /// How long one connect may take, and how long the server may leave its queue untouched: a pause
    /// that is shorter ends nothing.
    pub timeout: Duration,
}

impl Options {
    /// As many connections as `target` takes, not probed, up to 90 % of memory, 5 s of patience.
    pub fn new(target: Target) -> Self {
        let timeout = Duration::from_secs(5);
        Self {
            target,
            connections: None,
            step: None,
            sources: None,
            probe: false,
            exchange: Exchange::echo(timeout),
            stop_before: 90.0,
            timeout,
        }
    }
}

/// Ramps up until something ends it. Returns the result, and whether it was interrupted.
///
/// About 25 µs a connection, and a second for the rest; a probe about 20 µs each.
///
/// # Errors
/// [`Error::Target`](crate::Error::Target) when the first connection is refused, not answered, closed at
/// once, or (with `probe`) gets no reply or a wrong one, and when the server accepts none at all;
/// [`Error::Machine`](crate::Error::Machine) when the embedded server or a worker cannot be started, or
/// the clients' side has no descriptors for connections;
/// [`Error::Incomplete`](crate::Error::Incomplete) when a worker dies.
pub fn run(lab: &Lab, options: &Options) -> Result<(Capacity, bool)> {
    clients::check(lab, options.connections)?;
    let mut server = match &options.target {
        Target::Embedded(how) => {
            let mut how = how.clone();
            how.max_connections = how.max_connections.or(options.connections);
            // It is asked for its pressure where it takes no more.
            how.metrics = true;
            Server::embedded(Embedded::start(lab, &how)?)
        }
        Target::Address { address, pid } => Server::running(*address, *pid)?,
    };
    let mut ramp = Ramp::begin(lab, options, &mut server)?;
    let (stop, _) = ramp.climb()?;
    let result = ramp.measure(stop)?;
    server.end();
    Ok(result)
}

/// The result for a person.
pub fn render_text(result: &Capacity) -> String {
    let mut out = String::new();
    let asked = result.asked.map_or("as many as possible".to_owned(), units::count);
    let alive = if result.probed { "answered at the end" } else { "not closed at the end" };
    // Writing to a String cannot fail.
    for (value, what) in [
        (asked, "asked"),
        (units::count(result.attempted), "attempted"),
        (units::count(result.established), "established"),
        (units::count(result.alive), alive),
    ] {
        let _ = writeln!(out, "  {value:>19}  {what}");
    }
    let side = match result.stopped_side {
        Some(Side::Client) => " on the clients' side",
        Some(Side::Server) => " on the server's side",
        Some(Side::Both) => " on both sides",
        None => "",
    };
    let _ = writeln!(out, "stopped by {}{side}: {}", result.stopped_by.name(), result.evidence);
    if let Some(proof) = &result.counter_proof {
        let _ = writeln!(out, "counter-proof: {proof}");
    }
    let bytes = |value: Option<f64>| value.map_or("unknown".to_owned(), units::bytes);
    let _ = writeln!(
        out,
        "per connection: {} in the server itself, {} in the kernel (one end)",
        bytes(result.user_bytes_per_connection),
        bytes(result.kernel_bytes_per_connection)
    );
    for (what, reason) in [
        ("in the server itself", &result.user_bytes_reason),
        ("in the kernel", &result.kernel_bytes_reason),
    ] {
        if let Some(reason) = reason {
            let _ = writeln!(out, "  {what}: unknown, since {reason}");
        }
    }
    let _ = writeln!(out, "{}", descriptors(result));
    if let Some(pool) = result.nonpaged_bytes_per_connection {
        let _ = writeln!(
            out,
            "the non-paged pool grew by {} for each connection, both ends",
            units::bytes(pool)
        );
    }
    for object in &result.kernel_objects {
        let _ = writeln!(
            out,
            "  {:>6} × {:>9}  {}",
            units::number(object.per_connection),
            units::bytes(object.object_bytes as f64),
            object.name
        );
    }
    for (name, count) in &result.errors {
        let _ = writeln!(out, "error: {name} × {}", units::count(*count));
    }
    out
}

/// Which side needs descriptors, in words: the clients' are spread over processes; the server's count
/// only where they are known.
fn descriptors(result: &Capacity) -> String {
    let processes = if result.workers == 1 { "process" } else { "processes" };
    let clients = format!(
        "descriptors: {} {processes} on the clients' side, each for {} connections at most",
        units::count(result.workers),
        units::count(result.connections_per_worker)
    );
    match (result.server_descriptors, result.server_descriptors_limit) {
        (Some(used), Some(limit)) => {
            let direct = if used < result.alive {
                " (direct descriptors of an io_uring are not among them)"
            } else {
                ""
            };
            let (used, limit) = (units::count(used), units::count(limit));
            format!("{clients}; {used} of {limit} open in the server's process{direct}")
        }
        _ => clients,
    }
}
