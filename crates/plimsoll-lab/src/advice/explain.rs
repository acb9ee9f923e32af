//! `explain PID`: what a running server costs the kernel now, and what it will run out of first.
//!
//! # Which sockets are its own
//!
//! Listeners are found by the socket inodes below `/proc/PID/fd`, of the process and of those
//! children that share a listener with it (nginx's and other servers' workers), or, if it has none,
//! of all its descendants. Connections are found by the listeners' addresses and ports, whoever
//! serves them: accepted connections that are direct descriptors of an `io_uring` appear below no
//! `/proc/PID/fd`, those in the accept queue or in `TIME_WAIT` belong to no process, and one port's
//! connections are one server's in practice. Connections that the processes themselves have made
//! are found by inode, and counted under `outgoing_…`.
//!
//! # What is counted
//!
//! Objects are connections × the sizes of `/proc/slabinfo` (root only; without it the kernel's
//! bytes are not known), by what the kernel keeps in each state. Items of epoll are counted from
//! `/proc/PID/fdinfo`, rings of `io_uring` and polls armed in them too. Buffers are what
//! `INET_DIAG_SKMEMINFO` reports. Costs a dump of all the sockets of the network namespace, about
//! 1 µs each, and 2 µs for each descriptor of the processes.

mod invoice;
mod watchers;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use plimsoll_kernel::cgroup::Cgroup;
use plimsoll_kernel::diag::{self, Connection, Filter, State, States};
use plimsoll_kernel::limits::{Limits, Rlimit};
use plimsoll_kernel::meminfo::Meminfo;
use plimsoll_kernel::process::{self, Process};
use plimsoll_kernel::slab::Slabs;
use plimsoll_kernel::sockstat::Sockstat;

use crate::results::{Explain, ExplainListener};
use crate::{Error, Result, units};

use invoice::Tally;
use watchers::Watchers;

/// Most processes of one server that are looked at.
const PROCESSES_MAX: usize = 1024;

/// Looks at a process once.
///
/// # Errors
///
/// [`Error::Target`] if there is no such process, [`Error::Machine`] if it belongs to somebody else
/// or lives in another network namespace.
pub fn run(pid: u32) -> Result<Explain> {
    let process = Process::of(pid).map_err(|error| refused(pid, error))?;
    same_namespace(pid)?;
    let all = diag::listeners()?;
    let family = Family::find(pid, &all)?;
    let listeners: Vec<&diag::Listener> =
        all.iter().filter(|one| family.inodes.contains(&u64::from(one.inode))).collect();
    let mut tally = Tally {
        queued: listeners.iter().map(|one| u64::from(one.depth)).sum(),
        ..Tally::default()
    };
    diag::connections(&Filter::default().states(States::ALL).with_memory(), |one| {
        let served = listeners.iter().any(|listener| serves(listener, one.local));
        if served || family.inodes.contains(&u64::from(one.inode)) {
            tally.add(one, served);
        }
    })?;
    let watchers = Watchers::of(&family.pids);
    // A master that only holds the listener for its workers gives no descriptor to connections.
    let serving: Vec<u32> =
        family.pids.iter().copied().filter(|pid| Watchers::of(&[*pid]).watch()).collect();
    let serving = if serving.is_empty() { family.pids.clone() } else { serving };
    let slabs = Slabs::read().ok();
    let objects = slabs.as_ref().map(|slabs| invoice::objects(&tally, &watchers, slabs));
    let kernel_bytes = objects.as_ref().map(|objects| {
        let held: u64 =
            objects.iter().map(|one| one.objects.max(0) as u64 * one.object_bytes).sum();
        held + tally.buffer_bytes()
    });
    let mut result = Explain {
        pid,
        name: process.name,
        rss_bytes: sum(&family.pids, |pid| process::rss(pid).ok()),
        descriptors: sum(&serving, |pid| process::descriptors(pid).ok()),
        descriptors_limit: sum(&serving, |pid| Some(Limits::of(pid).ok()?.nofile?.soft)),
        listeners: listeners.iter().map(|one| describe(one)).collect(),
        connections: tally.states.clone(),
        buffer_bytes: tally.buffers.clone(),
        objects: objects.unwrap_or_default(),
        kernel_bytes,
        first_limit: None,
        headroom: Vec::new(),
    };
    if serves_nothing(&result) {
        result.kernel_bytes = None;
        result.first_limit = Some(SERVES_NOTHING.to_owned());
        return Ok(result);
    }
    result.headroom = headroom(&result, &tally, &watchers, pid);
    result.first_limit = first_limit(&result);
    Ok(result)
}

/// What is said of a process whose connections cost nothing, since there are none.
const SERVES_NOTHING: &str = "It has no TCP sockets and listens on nothing: there is no connection \
                              whose cost could be told, and none that it could run out of.";

/// Whether there is nothing to explain: no listener, and no connection.
fn serves_nothing(result: &Explain) -> bool {
    result.listeners.is_empty() && result.connections.is_empty()
}

/// The result as a plain table for a person, at most 100 columns wide.
pub fn render_text(result: &Explain) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "process {} ({})", result.pid, result.name);
    let size = |value: Option<u64>| value.map_or("unknown".to_owned(), |n| units::bytes(n as f64));
    let whole = |value: Option<u64>| match value {
        Some(Rlimit::UNLIMITED) => "unlimited".to_owned(),
        Some(value) => units::count(value),
        None => "unknown".to_owned(),
    };
    let _ = writeln!(out, "{:<34} {:>14}", "resident memory", size(result.rss_bytes));
    let _ = writeln!(
        out,
        "{:<34} {:>14} of {}",
        "descriptors",
        whole(result.descriptors),
        whole(result.descriptors_limit)
    );
    for one in &result.listeners {
        let rotten =
            one.rotten.map_or(String::new(), |n| format!(", {} of them rotten", units::count(n)));
        let _ = writeln!(
            out,
            "{:<34} {:>14} of {} wait to be accepted{rotten}",
            format!("listens at {}", one.address),
            units::count(one.depth),
            units::count(one.limit)
        );
    }
    for (state, number) in &result.connections {
        let _ =
            writeln!(out, "{:<34} {:>14}", format!("connections, {state}"), units::count(*number));
    }
    for (kind, held) in result.buffer_bytes.iter().filter(|(_, held)| **held > 0) {
        let _ = writeln!(out, "{:<34} {:>14}", format!("buffers, {kind}"), size(Some(*held)));
    }
    for one in &result.objects {
        let total = one.objects.max(0) as u64 * one.object_bytes;
        let _ = writeln!(
            out,
            "{:<34} {:>14} = {} × {} B",
            one.name,
            size(Some(total)),
            units::count(one.objects.max(0) as u64),
            one.object_bytes
        );
    }
    if serves_nothing(result) {
        for line in units::wrap(SERVES_NOTHING, 100) {
            let _ = writeln!(out, "{line}");
        }
        return out;
    }
    let why =
        if result.kernel_bytes.is_none() { " (reading /proc/slabinfo needs root)" } else { "" };
    let _ = writeln!(out, "{:<34} {:>14}{why}", "kernel memory in all", size(result.kernel_bytes));
    for (name, allowed) in &result.headroom {
        let _ = writeln!(out, "{:<34} {:>14}", format!("{name} allow"), units::count(*allowed));
    }
    if let Some(first) = &result.first_limit {
        for line in units::wrap(first, 100) {
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

fn refused(pid: u32, error: plimsoll_kernel::Error) -> Error {
    match error {
        plimsoll_kernel::Error::NoProcess { .. } => Error::target(
            error.to_string(),
            "give the number of a running server: `ss -ltnp` lists listeners and their processes",
        ),
        other => Error::machine(
            format!("process {pid} cannot be looked at: {other}"),
            "run as root, or as the user the process runs as",
        ),
    }
}

/// Sockets are listed for the caller's network namespace only.
fn same_namespace(pid: u32) -> Result<()> {
    let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/net")).ok();
    match (of("self"), of(&pid.to_string())) {
        (Some(ours), Some(theirs)) if ours != theirs => Err(Error::machine(
            format!(
                "process {pid} lives in another network namespace, whose sockets are not visible from here"
            ),
            format!("nsenter -t {pid} -n plimsoll explain {pid}"),
        )),
        _ => Ok(()),
    }
}

/// The processes of one server, and the sockets they hold.
struct Family {
    pids: Vec<u32>,
    inodes: BTreeSet<u64>,
}

impl Family {
    fn find(pid: u32, listeners: &[diag::Listener]) -> Result<Self> {
        let listening: BTreeSet<u64> = listeners.iter().map(|one| u64::from(one.inode)).collect();
        let own: BTreeSet<u64> =
            process::socket_inodes(pid).map_err(|error| refused(pid, error))?.into_iter().collect();
        let shared: BTreeSet<u64> = own.intersection(&listening).copied().collect();
        let mut family = Self { pids: vec![pid], inodes: own };
        let mut next = 0;
        let mut waiting = process::children(pid).unwrap_or_default();
        while let Some(child) = waiting.get(next).copied() {
            next += 1;
            // A child that has ended meanwhile, or is not ours to look at, is not counted.
            let Ok(inodes) = process::socket_inodes(child) else { continue };
            let inodes: BTreeSet<u64> = inodes.into_iter().collect();
            let belongs = if shared.is_empty() {
                !inodes.is_disjoint(&listening)
            } else {
                !inodes.is_disjoint(&shared)
            };
            if belongs {
                family.pids.push(child);
                family.inodes.extend(inodes);
            }
            if waiting.len() < PROCESSES_MAX {
                waiting.extend(process::children(child).unwrap_or_default());
            }
        }
        Ok(family)
    }
}

/// The sum over the processes; `None` if it is not known of one. No limit stays no limit.
fn sum(pids: &[u32], figure: impl Fn(u32) -> Option<u64>) -> Option<u64> {
    pids.iter().map(|pid| figure(*pid)).try_fold(0_u64, |sum, one| Some(sum.saturating_add(one?)))
}

/// Whether a connection with this local address came in by the listener.
fn serves(listener: &diag::Listener, local: SocketAddr) -> bool {
    let at = listener.local.ip();
    let any = match (at, local.ip()) {
        (IpAddr::V4(at), IpAddr::V4(_)) => at.is_unspecified(),
        (IpAddr::V6(at), IpAddr::V6(_)) => at.is_unspecified(),
        (IpAddr::V6(at), IpAddr::V4(_)) => at.is_unspecified() && listener.dual,
        (IpAddr::V4(_), IpAddr::V6(_)) => false,
    };
    listener.local.port() == local.port() && (any || at == local.ip())
}

fn describe(listener: &diag::Listener) -> ExplainListener {
    // The rot is counted by port: where several listeners share it, it is nobody's own.
    let alone = diag::listeners_on(listener.local.port()).is_ok_and(|all| all.len() == 1);
    ExplainListener {
        address: listener.local.to_string(),
        depth: listener.depth.into(),
        limit: listener.limit.into(),
        rotten: if alone {
            diag::rotten(listener.local.port()).ok().map(|queue| queue.dead())
        } else {
            None
        },
    }
}

/// How many connections in all each limit allows, fewest first.
///
/// Memory is what is available over what a connection costs now: its kernel bytes, and from 1,000
/// connections on the server's resident memory per connection too, which errs on the high side.
fn headroom(result: &Explain, tally: &Tally, watchers: &Watchers, pid: u32) -> Vec<(String, u64)> {
    let held = tally.held;
    let limits = Limits::of(pid).unwrap_or_else(|_| Limits::read());
    let mut rows: Vec<(String, u64)> = Vec::new();
    let mut add = |name: &str, more: Option<u64>| {
        rows.extend(more.map(|more| (name.to_owned(), held.saturating_add(more))));
    };
    // Direct descriptors are bounded per ring, and their number is the server's to choose.
    if watchers.direct_files == 0 {
        let limit = result.descriptors_limit.filter(|limit| *limit < Rlimit::UNLIMITED);
        add(
            "descriptors",
            limit.zip(result.descriptors).map(|(limit, used)| limit.saturating_sub(used)),
        );
    }
    add(
        "files of the machine (fs.file-max)",
        limits.files.map(|files| files.max.saturating_sub(files.allocated)),
    );
    if let Some(cost) = cost(result, held) {
        add("memory", Meminfo::read().ok().map(|memory| memory.available / cost));
        let group =
            Cgroup::of(pid).ok().and_then(|group| group.memory).and_then(|memory| memory.room());
        add("memory of the control group", group.map(|room| room / cost));
    }
    let pages = limits
        .tcp_mem
        .zip(Sockstat::read().ok())
        .map(|(limit, now)| limit.max.saturating_sub(now.memory_pages));
    let page = limits.page_size.unwrap_or(4096);
    // Idle connections hold none; one page each is the least that one with data holds.
    let each = (tally.buffer_bytes() / held.max(1)).div_ceil(page).max(1);
    add("pages of TCP buffers (tcp_mem)", pages.map(|pages| pages / each));
    let tracked = limits.nf_conntrack_max.zip(limits.nf_conntrack_count);
    add("tracked connections (conntrack)", tracked.map(|(max, now)| max.saturating_sub(now)));
    rows.sort_by_key(|(_, allowed)| *allowed);
    rows
}

/// Bytes of one connection now; `None` without connections or without the kernel's figures.
fn cost(result: &Explain, held: u64) -> Option<u64> {
    let kernel = result.kernel_bytes?.checked_div(held)?;
    let user = if held >= 1000 { result.rss_bytes.unwrap_or(0) / held } else { 0 };
    Some((kernel + user).max(1))
}

fn first_limit(result: &Explain) -> Option<String> {
    if let Some(full) = result.listeners.iter().find(|one| one.depth > one.limit) {
        return Some(format!(
            "The accept queue of {} is full now: {} wait, {} are admitted, and further clients are dropped.",
            full.address,
            units::count(full.depth),
            units::count(full.limit + 1)
        ));
    }
    let (name, allowed) = result.headroom.first()?;
    Some(format!("First to run out: {name}, at {} connections.", units::count(*allowed)))
}

/// The name of a state in the result.
fn state_name(state: State) -> &'static str {
    match state {
        State::Established => "established",
        State::SynSent => "syn_sent",
        State::SynRecv => "syn_recv",
        State::FinWait1 => "fin_wait1",
        State::FinWait2 => "fin_wait2",
        State::TimeWait => "time_wait",
        State::Close => "close",
        State::CloseWait => "close_wait",
        State::LastAck => "last_ack",
        State::Listen => "listen",
        State::Closing => "closing",
    }
}

/// Adds to a named figure.
fn count_in(map: &mut BTreeMap<String, u64>, name: &str, more: u64) {
    *map.entry(name.to_owned()).or_insert(0) += more;
}

impl Tally {
    fn add(&mut self, one: &Connection, served: bool) {
        let name = state_name(one.state);
        let name = if served { name.to_owned() } else { format!("outgoing_{name}") };
        count_in(&mut self.states, &name, 1);
        let six = usize::from(one.v6_socket);
        match one.state {
            State::TimeWait => self.time_wait[six] += 1,
            State::SynRecv => self.requests[six] += 1,
            _ => {
                self.sockets[six] += 1;
                self.held += u64::from(one.inode != 0);
            }
        }
        if let Some(memory) = one.memory {
            for (kind, held) in [
                ("receive", memory.rmem),
                ("send", memory.wmem_queued),
                ("reserved", memory.fwd_alloc),
                ("options", memory.optmem),
                ("backlog", memory.backlog),
            ] {
                count_in(&mut self.buffers, kind, held.into());
            }
        }
    }

    /// All of the buffers.
    fn buffer_bytes(&self) -> u64 {
        self.buffers.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(local: &str, dual: bool) -> diag::Listener {
        diag::Listener { local: local.parse().unwrap(), depth: 0, limit: 0, inode: 0, uid: 0, dual }
    }

    #[test]
    fn a_listener_serves_its_address_and_port() {
        for (at, dual, local, expected) in [
            ("127.0.0.1:80", false, "127.0.0.1:80", true),
            ("127.0.0.1:80", false, "127.0.0.2:80", false),
            ("0.0.0.0:80", false, "127.0.0.2:80", true),
            ("0.0.0.0:80", false, "127.0.0.2:81", false),
            ("0.0.0.0:80", false, "[::1]:80", false),
            ("[::]:80", true, "127.0.0.2:80", true),
            ("[::]:80", false, "127.0.0.2:80", false),
            ("[::]:80", false, "[::1]:80", true),
        ] {
            assert_eq!(
                serves(&listener(at, dual), local.parse().unwrap()),
                expected,
                "{at} {local}"
            );
        }
    }
}
