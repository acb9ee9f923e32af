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
//! Windows tells neither what it grants nor how deep a queue is, and it *refuses* a client that finds
//! the queue full: it answers with a reset, and the client's own system tries a few times more. There
//! `granted` is not known, `queued` counts the table's connections at the listener's port, and that it
//! was the queue that was full is shown by a counter-proof: some are accepted, and then the next
//! client connects. A client without a port left fails otherwise ("only one usage of each socket
//! address …").
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
//!
//! Windows has one figure for all of the kernel, the non-paged pool: its growth is that of both ends,
//! and of whatever else was done meanwhile.

mod fill;
mod queue;
mod requested;
#[cfg(test)]
mod workstation;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use plimsoll_kernel::diag;
use plimsoll_kernel::slab::Slabs;

use crate::observe::{Depth, Snapshot};
use crate::results::{Backlog, BacklogRun};
use crate::verdict::cost;
use crate::worker::source::{AddressRange, SourcePool};
use crate::worker::{Keep, Request, Workers};
use crate::{Lab, Result, units};
use fill::Fill;
use queue::{NonAcceptingListener, depth};
pub use requested::{name, parse};

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The backlogs to ask for, one run each, `None` for the library's default; see [`parse`]. Empty
    /// for a sweep: default, 1, 16, 1024, 4096 (`SOMAXCONN`), and twice `somaxconn` to show the cap;
    /// on Windows default, 1, 16, `SOMAXCONN`, and hints of 200, 1,000, 4,000 and 16,000.
    pub backlogs: Vec<Option<i64>>,
    /// Where clients connect from; `None` is `127.0.0.0/8` towards IPv4 loopback, else the route's
    /// address.
    pub sources: Option<AddressRange>,
    /// Where clients connect to, one address after the other as ports run out: a source port can serve
    /// every one of them. The listener takes all addresses of this machine then. `None` is its own.
    pub destinations: Option<AddressRange>,
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
            destinations: None,
            keep: Keep::Open,
            stop_at: None,
            timeout: Duration::from_secs(5),
            address: Ipv4Addr::LOCALHOST.into(),
        }
    }
}

/// Runs one listener for each backlog. Returns the result, and whether it was interrupted.
///
/// A run of the usual 4,096 takes a quarter of a second; 300,000 about ten, with one worker for each
/// 19,000 connections under the usual limit on descriptors.
///
/// # Errors
/// [`Error::Usage`](crate::Error::Usage) for a backlog that is no C `int` or sources of another family than the address;
/// [`Error::Machine`](crate::Error::Machine) when it cannot listen or start workers;
/// [`Error::Incomplete`](crate::Error::Incomplete) when a worker
/// dies.
pub fn run(lab: &Lab, options: &Options) -> Result<(Backlog, bool)> {
    let backlogs =
        if options.backlogs.is_empty() { requested::sweep() } else { options.backlogs.clone() };
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
            name(run.requested),
            known(run.granted),
            known(run.queued),
            run.stopped_by.name(),
            units::number(run.connects_per_second),
            run.kernel_bytes_per_queued.map_or("?".to_owned(), units::bytes),
        );
    }
    for run in &result.runs {
        let _ = writeln!(out, "\n{}: {}", name(run.requested), run.evidence);
        if let Some(pool) = run.nonpaged_bytes_per_queued {
            let each = units::bytes(pool);
            let _ = writeln!(out, "the non-paged pool grew by {each} for each, both ends");
        }
    }
    out
}

/// One listener, from `listen` to its end.
fn one(
    lab: &Lab,
    options: &Options,
    requested: Option<i64>,
    workers: &mut Workers,
) -> Result<(BacklogRun, bool)> {
    let first = options.destinations.and_then(|all| all.nth(0));
    let listener = match first {
        None => NonAcceptingListener::listen(options.address, requested)?,
        Some(IpAddr::V4(_)) => {
            NonAcceptingListener::listen(Ipv4Addr::UNSPECIFIED.into(), requested)?
        }
        Some(IpAddr::V6(_)) => {
            NonAcceptingListener::listen(Ipv6Addr::UNSPECIFIED.into(), requested)?
        }
    };
    let address = listener.address;
    let target = SocketAddr::new(first.unwrap_or(address.ip()), address.port());
    let before = Snapshot::read(Depth::Full);
    let granted = queue::granted(address);
    let sources = SourcePool::new(target, options.sources)?;
    let fill = Fill::new(lab, options, workers, &listener, granted, &before, sources);
    let filled = fill.run()?;
    let rotten = diag::rotten(address.port()).ok();
    let queued_cost = match (options.keep, &before.slabs) {
        (_, None) => None,
        (Keep::Open, Some(slabs)) => {
            workers.release(&Request::Reset)?;
            settled_slabs()
                .and_then(|after| cost::queued(slabs, &after, depth(address).unwrap_or(0)))
        }
        (Keep::Close | Keep::Reset, Some(slabs)) => settled_slabs()
            .and_then(|after| cost::queued(slabs, &after, depth(address).unwrap_or(0))),
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
        queued: filled.deepest,
        connects_ok: filled.tally.established,
        stopped_by: stop.by,
        stopped_side: stop.side,
        evidence: stop.evidence,
        overflows: filled.overflows,
        drops: filled.drops,
        rotten: rotten.map(|queue| queue.dead()),
        connects_per_second: filled.tally.established as f64 / seconds.max(1e-6),
        kernel_bytes_per_queued: queued_cost.as_ref().map(|cost| cost.slab_bytes),
        source_addresses: filled.source_addresses,
        destination_addresses: filled.destination_addresses,
        errors: filled.tally.errors,
        kernel_objects: queued_cost.map(|cost| cost.objects).unwrap_or_default(),
        nonpaged_pool_bytes: filled.nonpaged,
        nonpaged_bytes_per_queued: filled.nonpaged_each,
        samples: filled.samples,
    };
    Ok((run, filled.interrupted))
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
