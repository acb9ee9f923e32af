//! Limits of the machine, the namespace and the clients: what binds both ends, or the clients alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use plimsoll_kernel::limits::Limits;

use super::{Stop, named, share, words};
use crate::errno;
use crate::observe::Snapshot;
use crate::results::{Side, StoppedBy};
use crate::worker::Why;

/// Limits of the machine that must not be reached: an experiment that runs into them takes other
/// programs with it.
#[derive(Debug, Clone, Copy)]
pub struct Guard {
    /// Share of memory that may be in use, in percent.
    pub memory_percent: f64,
}

impl Default for Guard {
    fn default() -> Self {
        Self { memory_percent: 90.0 }
    }
}

impl Guard {
    /// Whether one of the limits is near: memory, the clients' control group's memory, open files,
    /// tracked connections.
    pub fn check(self, now: &Snapshot) -> Option<Stop> {
        self.memory(now)
            .or_else(|| self.group(now))
            .or_else(|| files(now))
            .or_else(|| conntrack(now))
    }

    fn memory(self, now: &Snapshot) -> Option<Stop> {
        let memory = now.memory?;
        let percent = share(memory.total.saturating_sub(memory.available), memory.total);
        (percent >= self.memory_percent).then(|| {
            Stop::new(
                StoppedBy::Memory,
                Side::Both,
                format!(
                    "{percent:.1} % of the machine's {} MiB of memory are in use (MemAvailable {} \
                     MiB); the experiment stops before {} %",
                    memory.total >> 20,
                    memory.available >> 20,
                    self.memory_percent
                ),
            )
        })
    }

    fn group(self, now: &Snapshot) -> Option<Stop> {
        let group = now.client_group.as_ref()?;
        let (held, limit) = group.memory_held()?;
        let percent = share(held, limit);
        (percent >= self.memory_percent).then(|| {
            Stop::new(
                StoppedBy::Cgroup,
                Side::Both,
                format!(
                    "the clients' control group {} holds {percent:.1} % of its {} MiB of memory; \
                     the experiment stops before {} %",
                    group
                        .memory
                        .as_ref()
                        .map_or_else(String::new, |bound| bound.group.display().to_string()),
                    limit >> 20,
                    self.memory_percent
                ),
            )
        })
    }
}

/// Fewer files than this left in the machine: stop. Root may pass `file-max`; other programs may not.
const FILES_LEFT: u64 = 20_000;

fn files(now: &Snapshot) -> Option<Stop> {
    let files = now.limits.files?;
    (files.allocated.saturating_add(FILES_LEFT.min(files.max / 10)) >= files.max).then(|| {
        Stop::new(
            StoppedBy::Descriptors,
            Side::Both,
            format!(
                "{} of fs.file-max {} files of the machine are open: each connection of both ends \
                 is two",
                files.allocated, files.max
            ),
        )
    })
}

/// The connection tracking table, where it is full.
pub fn conntrack(now: &Snapshot) -> Option<Stop> {
    let (count, max) = (now.limits.nf_conntrack_count?, now.limits.nf_conntrack_max?);
    (count >= max).then(|| {
        Stop::new(
            StoppedBy::Conntrack,
            Side::Both,
            format!("nf_conntrack_count is {count} of nf_conntrack_max {max}"),
        )
    })
}

/// Whether TCP's memory is at its limit: pages against `tcp_mem`.
pub fn tcp_memory(before: &Snapshot, now: &Snapshot) -> Option<Stop> {
    let (pages, most) = (now.sockstat.as_ref()?.memory_pages, now.limits.tcp_mem?.max);
    (pages >= most).then(|| {
        Stop::new(
            StoppedBy::TcpMem,
            Side::Both,
            format!(
                "TCP uses {pages} pages, and net.ipv4.tcp_mem allows {most} (TCPAbortOnMemory +{}, \
                 TCPMemoryPressures +{})",
                words(now.grown(before, "TCPAbortOnMemory")),
                words(now.grown(before, "TCPMemoryPressures"))
            ),
        )
    })
}

/// What makes connects or answers fail to come although the server does nothing wrong: TCP's memory or
/// the tracking table is full.
pub fn short_of_machine(before: &Snapshot, now: &Snapshot) -> Option<Stop> {
    conntrack(now).or_else(|| tcp_memory(before, now))
}

/// A worker met a limit of the machine: no file, or no memory for a socket.
pub fn client_met(
    why: Why,
    established: u64,
    errors: &BTreeMap<String, u64>,
    now: &Snapshot,
) -> Option<Stop> {
    match why {
        Why::Files => {
            let files = now.limits.files.map_or_else(String::new, |files| {
                format!(": {} of fs.file-max {} are open", files.allocated, files.max)
            });
            Some(Stop::new(
                StoppedBy::Descriptors,
                Side::Both,
                format!(
                    "ENFILE after {established} connections, no file is left in the machine{files}"
                ),
            ))
        }
        Why::Memory => Some(Stop::new(
            StoppedBy::Memory,
            Side::Client,
            format!(
                "the kernel had no memory for a socket: {}{}",
                named(errors),
                nonpaged_pool(now)
            ),
        )),
        _ => None,
    }
}

/// The process that runs the experiment cannot start another worker process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoMoreWorkers {
    /// It has no descriptors left for its pipes.
    Descriptors {
        /// Descriptors open in it.
        used: u64,
        /// Connections that one worker can hold.
        room: u64,
        /// Workers that it has.
        workers: u64,
    },
    /// The system refused, with this error.
    Refused {
        /// Its name, such as `EAGAIN`.
        error: String,
        /// Workers that it has.
        workers: u64,
    },
}

/// The clients' side can hold no more connections.
pub fn no_more_workers(
    why: &NoMoreWorkers,
    established: u64,
    before: &Snapshot,
    now: &Snapshot,
) -> Stop {
    match why {
        NoMoreWorkers::Descriptors { used, room, workers } => {
            let limit = now.limits.nofile.map(|limit| limit.soft);
            Stop::new(
                StoppedBy::Descriptors,
                Side::Client,
                format!(
                    "the clients' side holds {established} connections in {workers} processes of \
                     {room} each, and can start no further one: this process has {used} \
                     descriptors open of RLIMIT_NOFILE {}; raise it with `ulimit -n`",
                    words(limit)
                ),
            )
        }
        NoMoreWorkers::Refused { error, workers } => {
            let refused = client_pids_refused(before, now);
            let by = if refused.is_some() { StoppedBy::Pids } else { StoppedBy::Unknown };
            Stop::new(
                by,
                Side::Client,
                format!(
                    "the clients' side holds {established} connections in {workers} processes, and \
                     the system refused another one ({error}){}",
                    refused.unwrap_or_default()
                ),
            )
        }
    }
}

fn client_pids_refused(before: &Snapshot, now: &Snapshot) -> Option<String> {
    let (then, now) = (before.client_group.as_ref()?, now.client_group.as_ref()?);
    let refused = now.pids_refused?.saturating_sub(then.pids_refused?);
    let bound = now.pids.as_ref().filter(|_| refused > 0)?;
    Some(format!(
        ": pids.events max +{refused} in its control group, {} of pids.max {} are used",
        bound.current,
        words(bound.limit)
    ))
}

/// The verdict for sources without ports.
///
/// `taken` is the number of connections that took them, `sources` the addresses in words, `how_many`
/// their number.
pub fn ports(
    limits: &Limits,
    taken: u64,
    sources: &str,
    how_many: u64,
    destination: SocketAddr,
) -> Stop {
    let name =
        if cfg!(windows) { "the dynamic port range" } else { "net.ipv4.ip_local_port_range" };
    let range = match (limits.local_ports, limits.local_ports_usable()) {
        (Some((first, last)), Some(usable)) => format!(
            "{name} {first}–{last} gives {usable} ports to one source address and one destination"
        ),
        _ => format!("the size of {name} cannot be read"),
    };
    let short = limits.local_ports_usable().map(|usable| u64::from(usable) * how_many);
    let missing = short.map_or(0, |all| all.saturating_sub(taken));
    let which = if how_many == 1 {
        "the only source address".to_owned()
    } else {
        format!("all {how_many} source addresses")
    };
    let name = errno::NO_PORT.join(" or ");
    let text = format!("{name} on {which}: {taken} connections from {sources}; {range}");
    let mut stop = Stop::new(StoppedBy::Ports, Side::Client, text);
    if missing > 0 && missing < 1000 {
        stop.add(format!(
            "; the other {missing} are taken by other sockets (a listener, a TIME_WAIT of an \
             earlier run)"
        ));
    }
    if destination.is_ipv6() && destination.ip().is_loopback() {
        stop.add("; IPv6 has one loopback address only, ::1");
    }
    stop
}

/// Why a worker ended, whose source address has made so many connections. Windows answers
/// `WSAENOBUFS` both for want of kernel memory and of ports: where the source holds nearly as many
/// connections as there are dynamic ports, it is the ports.
pub(crate) fn short_of(why: Why, from_source: u64, limits: &Limits) -> Why {
    match why {
        Why::Memory if cfg!(windows) => {
            ports_or_memory(limits.local_ports_usable().map(u64::from), from_source)
        }
        why => why,
    }
}

/// The port range is not always known: then it stays memory, as the system says.
pub(crate) fn ports_or_memory(ports: Option<u64>, from_source: u64) -> Why {
    match ports {
        Some(ports) if from_source >= ports - ports / 20 => Why::Ports,
        _ => Why::Memory,
    }
}

/// What Windows' non-paged pool holds, as the end of a sentence; empty elsewhere. How much it may hold
/// is not told.
fn nonpaged_pool(now: &Snapshot) -> String {
    now.nonpaged.map_or_else(String::new, |bytes| {
        format!("; the non-paged pool holds {} MiB, and what it may hold is not told", bytes >> 20)
    })
}
