//! How deep can the backlog go? A server that listens and never accepts, clients that connect until
//! something ends it, and the kernel's counters that say what.
//!
//! On Linux `listen(n)` grants the smaller of `n` and `net.core.somaxconn`, and the queue admits one
//! connection more than that. A further SYN is dropped without a word: the client's kernel sends it
//! again after 1 s, so that a full queue looks like slowness from outside. Here it is recognised by
//! the listener's own figures (`sock_diag`: depth and limit) together with `ListenOverflows`, some
//! 10 ms after it is full, without waiting for any connect to time out.
//!
//! The clients run in [worker](crate::worker) processes, as many as descriptors ask for, from as many
//! source addresses as ports ask for: the queue is bounded by neither.
//!
//! # What a queued connection costs
//!
//! On one machine both ends are in the same slabs. To tell them apart, the clients *reset* their
//! connections once the queue has been measured: the entries stay (the queue rots), and nothing of
//! the clients is left. What is more than before the run is the server's end: a socket (`TCP`,
//! 2,368 bytes) and its request (`request_sock_TCP`, 320 bytes), without inode, file or dentry, which
//! `accept` makes. `kernel_bytes_per_queued` counts the pages that this takes (13 sockets fill a slab
//! of 32 KiB: 2,521 bytes each); `kernel_objects` has the objects alone. A connection
//! that the client has closed keeps the packet with the FIN as well, and a page of `tcp_mem`.

mod fill;
mod verdict;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use plimsoll_kernel::diag;
use plimsoll_kernel::limits::Limits;
use plimsoll_kernel::slab::Slabs;
use socket2::{Domain, Protocol, Socket, Type};

use crate::evidence::{self, Baseline};
use crate::results::{Backlog, BacklogRun};
use crate::source::{AddressRange, SourcePool};
use crate::worker::{Keep, Request, Workers};
use crate::{Error, Lab, Result, units};
use fill::Fill;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The backlogs to ask for, one run each, `None` for the library's default; empty for a sweep:
    /// default, 1, 16, 1024, 4096 (`SOMAXCONN`), and twice `somaxconn` to show the cap.
    pub backlogs: Vec<Option<i64>>,
    /// Where clients connect from; `None` is `127.0.0.0/8` towards IPv4 loopback, else the route's
    /// address.
    pub sources: Option<AddressRange>,
    /// What clients do once they are connected.
    pub keep: Keep,
    /// End a run at so many connections.
    pub stop_at: Option<u64>,
    /// How long nothing may move before a run ends.
    pub timeout: Duration,
    /// Where to listen: an address of this machine.
    pub address: IpAddr,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backlogs: Vec::new(),
            sources: None,
            keep: Keep::Open,
            stop_at: None,
            timeout: Duration::from_secs(5),
            address: Ipv4Addr::LOCALHOST.into(),
        }
    }
}

/// A larger `somaxconn` than this is not shown to be a cap by the sweep: it would take millions of
/// connections.
const SWEEP_MAX: i64 = 65_536;

/// Runs one listener for each backlog. Returns the result, and whether it was interrupted.
///
/// A run of the usual 4,096 takes a quarter of a second; 300,000 about ten, with one worker for each
/// 19,000 connections under the usual limit on descriptors.
///
/// # Errors
/// [`Error::Usage`] for a backlog that is no C `int` or sources of another family than the address;
/// [`Error::Machine`] when it cannot listen or start workers; [`Error::Incomplete`] when a worker
/// dies.
pub fn run(lab: &Lab, options: &Options) -> Result<(Backlog, bool)> {
    let backlogs = if options.backlogs.is_empty() { sweep() } else { options.backlogs.clone() };
    let mut workers = Workers::new(lab);
    let mut result = Backlog::default();
    for requested in backlogs {
        if lab.is_interrupted() {
            return Ok((result, true));
        }
        let (run, interrupted) = one(lab, options, requested, &mut workers)?;
        result.queued_max = result.queued_max.max(run.queued.unwrap_or(0));
        result.runs.push(run);
        if interrupted {
            return Ok((result, true));
        }
    }
    Ok((result, false))
}

/// The result for a person: one row per run, and what ended each.
pub fn render_text(result: &Backlog) -> String {
    let known = |value: Option<u64>| value.map_or("?".to_owned(), units::count);
    let mut out = format!(
        "{:>12} {:>10} {:>10}  {:<13} {:>12} {:>14}\n",
        "asked", "granted", "queued", "stopped by", "connects/s", "kernel each"
    );
    for run in &result.runs {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:>12} {:>10} {:>10}  {:<13} {:>12} {:>14}",
            run.requested.map_or("default".to_owned(), |asked| asked.to_string()),
            known(run.granted),
            known(run.queued),
            run.stopped_by.name(),
            units::number(run.connects_per_second),
            run.kernel_bytes_per_queued.map_or("?".to_owned(), units::bytes),
        );
    }
    for run in &result.runs {
        let asked = run.requested.map_or("default".to_owned(), |asked| asked.to_string());
        let _ = writeln!(out, "\n{asked}: {}", run.evidence);
    }
    out
}

/// The backlogs that show the default, small ones, the usual constant, and the cap.
fn sweep() -> Vec<Option<i64>> {
    let somaxconn = Limits::read().somaxconn.and_then(|n| i64::try_from(n).ok());
    let mut all = vec![None, Some(1), Some(16), Some(1024), Some(4096)];
    if let Some(twice) = somaxconn.and_then(|n| n.checked_mul(2))
        && twice <= SWEEP_MAX
        && !all.contains(&Some(twice))
    {
        all.push(Some(twice));
    }
    all
}

/// One listener, from `listen` to its end.
fn one(
    lab: &Lab,
    options: &Options,
    requested: Option<i64>,
    workers: &mut Workers,
) -> Result<(BacklogRun, bool)> {
    let listener = listen(options.address, requested)?;
    let address = listener.address;
    let before = Baseline::read();
    let granted = diag::listener(address).ok().flatten().map(|queue| u64::from(queue.limit));
    let sources = SourcePool::new(address, options.sources)?;
    let fill = Fill::new(lab, options, workers, address, granted, &before, sources);
    let filled = fill.run()?;
    let rotten = diag::rotten(address.port()).ok();
    let cost = match (options.keep, &before.slabs) {
        (_, None) => None,
        (Keep::Open, Some(slabs)) => {
            workers.release(&Request::Reset)?;
            settled_slabs().and_then(|after| evidence::queued(slabs, &after, depth(address)))
        }
        (Keep::Close | Keep::Reset, Some(slabs)) => {
            settled_slabs().and_then(|after| evidence::queued(slabs, &after, depth(address)))
        }
    };
    if options.keep == Keep::Open && before.slabs.is_none() {
        workers.release(&Request::Reset)?;
    }
    // The listener's end resets what is left; the next run has a port of its own.
    drop(listener);

    let stop = filled.stop;
    let seconds = Duration::from_micros(filled.tally.last_us).as_secs_f64();
    let run = BacklogRun {
        requested,
        granted,
        queued: granted.map(|_| filled.deepest),
        connects_ok: filled.tally.established,
        stopped_by: stop.by,
        stopped_side: stop.side,
        evidence: stop.evidence,
        overflows: filled.overflows,
        drops: filled.drops,
        rotten: rotten.map(|queue| queue.dead()),
        connects_per_second: filled.tally.established as f64 / seconds.max(1e-6),
        kernel_bytes_per_queued: cost.as_ref().map(|cost| cost.slab_bytes),
        source_addresses: filled.source_addresses,
        errors: filled.tally.errors,
        kernel_objects: cost.map(|cost| cost.objects).unwrap_or_default(),
        samples: filled.samples,
    };
    Ok((run, filled.interrupted))
}

/// The depth now; 0 where it is not known (then there is no cost to divide either).
fn depth(address: SocketAddr) -> u64 {
    diag::listener(address).ok().flatten().map_or(0, |queue| u64::from(queue.depth))
}

/// A listener that never accepts.
struct Deaf {
    address: SocketAddr,
    /// Held for its end: closing it resets the queue.
    _socket: Socket,
}

/// Listens on a port below the range that clients are given ports from: above it, the listener
/// itself would take one of their ports.
fn listen(address: IpAddr, requested: Option<i64>) -> Result<Deaf> {
    let backlog = match requested {
        Some(asked) => Some(i32::try_from(asked).map_err(|_| {
            Error::usage(
                format!("a backlog of {asked} does not fit listen(2)'s int"),
                format!("ask for at most {}", i32::MAX),
            )
        })?),
        None => None,
    };
    let first = Limits::read().local_ports.map_or(32_768, |(first, _)| first);
    let mut refused = None;
    for port in candidates(first) {
        let wanted = SocketAddr::new(address, port);
        match listen_on(wanted, backlog) {
            Ok(socket) => return Ok(Deaf { address: wanted, _socket: socket }),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => refused = Some(error),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let why = refused.map_or_else(|| "no free port".to_owned(), |error| error.to_string());
    Err(Error::machine(
        format!("cannot listen on {address}: {why}"),
        "give an address of this machine, and free a port below net.ipv4.ip_local_port_range",
    ))
}

/// Up to 64 ports below `first`, beginning at one that differs from run to run.
fn candidates(first: u16) -> impl Iterator<Item = u16> {
    use std::hash::{BuildHasher as _, RandomState};
    let low = 1024.min(first.saturating_sub(1)).max(1);
    let size = first.saturating_sub(low).max(1);
    let start = (RandomState::new().hash_one(Instant::now()) % u64::from(size)) as u16;
    (0..64.min(size)).map(move |step| {
        low + (u32::from(start) + u32::from(step) * 7).rem_euclid(u32::from(size)) as u16
    })
}

fn listen_on(address: SocketAddr, backlog: Option<i32>) -> std::io::Result<Socket> {
    let Some(backlog) = backlog else {
        // The library's default, whatever it is.
        return TcpListener::bind(address).map(Socket::from);
    };
    // Not inherited by the workers: socket2 sees to that.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket)
}

/// The slabs once their count of sockets has come to rest (objects are freed after a grace period),
/// or after 2 s.
fn settled_slabs() -> Option<Slabs> {
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut last = Slabs::read().ok()?;
    loop {
        std::thread::sleep(Duration::from_millis(30));
        let now = Slabs::read().ok()?;
        let same = ["TCP", "request_sock_TCP", "filp"].iter().all(|name| {
            now.counting(name).map(|slab| slab.active)
                == last.counting(name).map(|slab| slab.active)
        });
        if same || Instant::now() >= deadline {
            return Some(now);
        }
        last = now;
    }
}
