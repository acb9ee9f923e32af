//! What stopped an experiment, from what the kernel counts.
//!
//! An errno says that something is short, not what: `EADDRNOTAVAIL` is a port
//! range that is used up or an address that is not there, a connect that times
//! out is a full queue, a full connection tracking table or a lost packet. So
//! every verdict here is made of counters read before and after, and says them.

use plimsoll_kernel::cgroup::Cgroup;
use plimsoll_kernel::limits::Limits;
use plimsoll_kernel::meminfo::Meminfo;
use plimsoll_kernel::netstat::Netstat;
use plimsoll_kernel::slab::Slabs;
use plimsoll_kernel::sockstat::Sockstat;
use plimsoll_kernel::windows::Performance;

use crate::errno;
use crate::results::{KernelObject, Side, StoppedBy};
use crate::worker::Why;

pub use crate::verdict::{Stop, words};

/// The kernel's counters at one moment, to be compared with a later one.
#[derive(Debug, Clone, Default)]
pub struct Baseline {
    /// `TcpExt` and `Tcp`; `None` where they cannot be read.
    pub netstat: Option<Netstat>,
    /// Kernel objects; `None` for anybody but root.
    pub slabs: Option<Slabs>,
    /// Bytes of the non-paged pool; `None` but on Windows.
    pub nonpaged: Option<u64>,
}

impl Baseline {
    /// Reads them. About 2 ms.
    pub fn read() -> Self {
        let nonpaged = Performance::read().ok().and_then(|now| now.nonpaged_pool);
        Self { netstat: Netstat::read().ok(), slabs: Slabs::read().ok(), nonpaged }
    }

    /// By how much a counter has grown since; `None` where it is not known.
    pub fn grown(&self, now: Option<&Netstat>, name: &str) -> Option<u64> {
        now?.delta(self.netstat.as_ref()?, name).map(|delta| delta.max(0) as u64)
    }
}

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
    /// Whether one of the limits is near: memory, a control group's memory, open files, tracked
    /// connections. About 0.5 ms.
    pub fn check(self) -> Option<Stop> {
        let limits = Limits::read();
        self.memory().or_else(|| self.cgroup()).or_else(|| files(&limits)).or_else(|| {
            conntrack(&limits).filter(|_| limits.nf_conntrack_count >= limits.nf_conntrack_max)
        })
    }

    fn memory(self) -> Option<Stop> {
        let memory = Meminfo::read().ok()?;
        let used = memory.total.saturating_sub(memory.available);
        let percent = share(used, memory.total);
        (percent >= self.memory_percent).then(|| {
            Stop::new(
                StoppedBy::Memory,
                Side::Both,
                format!(
                    "{percent:.1} % of the machine's {} MiB are in use (MemAvailable {} MiB); it \
                     stops before {} %",
                    memory.total >> 20,
                    memory.available >> 20,
                    self.memory_percent
                ),
            )
        })
    }

    fn cgroup(self) -> Option<Stop> {
        let memory = Cgroup::read().ok()?.memory?;
        let limit = memory.limit?;
        let percent = share(memory.current, limit);
        (percent >= self.memory_percent).then(|| {
            Stop::new(
                StoppedBy::Cgroup,
                Side::Both,
                format!(
                    "the control group {} uses {percent:.1} % of its {} MiB; it stops before {} %",
                    memory.group.display(),
                    limit >> 20,
                    self.memory_percent
                ),
            )
        })
    }
}

/// Fewer files than this left in the machine: stop. Root may pass `file-max`; other programs may not.
const FILES_LEFT: u64 = 20_000;

fn files(limits: &Limits) -> Option<Stop> {
    let files = limits.files?;
    (files.allocated.saturating_add(FILES_LEFT.min(files.max / 10)) >= files.max).then(|| {
        Stop::new(
            StoppedBy::Descriptors,
            Side::Both,
            format!(
                "{} of fs.file-max {} files are open: each connection of both ends is two",
                files.allocated, files.max
            ),
        )
    })
}

fn conntrack(limits: &Limits) -> Option<Stop> {
    let (count, max) = (limits.nf_conntrack_count?, limits.nf_conntrack_max?);
    Some(Stop::new(
        StoppedBy::Conntrack,
        Side::Both,
        format!("nf_conntrack_count is {count} of nf_conntrack_max {max}"),
    ))
}

/// What makes connects time out, when it is not the accept queue: a tracking table that is full, or
/// TCP's memory; else nothing is known but the time.
pub fn why_silent(before: &Baseline, seconds: f64) -> Stop {
    let limits = Limits::read();
    if limits.nf_conntrack_count >= limits.nf_conntrack_max
        && let Some(stop) = conntrack(&limits)
    {
        return stop;
    }
    tcp_memory(before, &limits).unwrap_or_else(|| {
        let now = Netstat::read().ok();
        let retransmitted = before.grown(now.as_ref(), "TCPSynRetrans");
        let text = if cfg!(windows) {
            format!("no connect was answered for {seconds:.1} s")
        } else {
            format!(
                "no connect was answered for {seconds:.1} s ({} SYNs sent again), and neither the \
                 accept queue nor TCP's memory nor connection tracking was at its limit",
                words(retransmitted)
            )
        };
        Stop::new(StoppedBy::Timeout, Side::Server, text)
    })
}

/// Whether TCP's memory is at its limit: pages against `tcp_mem`.
pub fn tcp_memory(before: &Baseline, limits: &Limits) -> Option<Stop> {
    let pages = Sockstat::read().ok()?.memory_pages;
    let most = limits.tcp_mem?.max;
    let now = Netstat::read().ok();
    let aborted = before.grown(now.as_ref(), "TCPAbortOnMemory");
    (pages >= most).then(|| {
        Stop::new(
            StoppedBy::TcpMem,
            Side::Both,
            format!(
                "TCP uses {pages} pages, and net.ipv4.tcp_mem allows {most} (TCPAbortOnMemory +{})",
                words(aborted)
            ),
        )
    })
}

/// The verdict for sources without ports.
///
/// `taken` is the number of connections that took them, `sources` the addresses in words, `how_many`
/// their number.
pub fn ports(taken: u64, sources: &str, how_many: u64, destination: std::net::SocketAddr) -> Stop {
    let limits = Limits::read();
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
pub(crate) fn short_of(why: Why, from_source: u64) -> Why {
    let ports = || Limits::read().local_ports_usable().map(u64::from);
    match why {
        Why::Memory if cfg!(windows) => ports_or_memory(ports(), from_source),
        why => why,
    }
}

/// What Windows' non-paged pool holds, as the end of a sentence; empty elsewhere. How much it may hold
/// is not told.
pub(crate) fn nonpaged_pool() -> String {
    let pool = Performance::read().ok().and_then(|now| now.nonpaged_pool);
    pool.map_or_else(String::new, |bytes| {
        format!("; the non-paged pool holds {} MiB, and what it may hold is not told", bytes >> 20)
    })
}

/// The port range is not always known: then it stays memory, as the system says.
pub(crate) fn ports_or_memory(ports: Option<u64>, from_source: u64) -> Why {
    match ports {
        Some(ports) if from_source >= ports - ports / 20 => Why::Ports,
        _ => Why::Memory,
    }
}

/// Kernel memory by kind of object.
#[derive(Debug, Clone, Default)]
pub struct Cost {
    /// The objects.
    pub objects: Vec<KernelObject>,
    /// Active objects × object size, for one connection.
    pub bytes: f64,
    /// The same with the waste of their slabs: objects × (bytes of a slab / objects in it).
    pub slab_bytes: f64,
}

/// Fewer connections than this drown in the noise of other programs and of what each CPU holds back
/// (measured: some hundred objects of the small kinds).
pub const LEAST_FOR_COST: u64 = 1_000;

/// What one entry of an accept queue costs at the server's end.
///
/// `after` must be read when the clients have *reset* their connections: the entries keep their
/// place in the queue, and nothing of the clients is left to be told apart. The socket and its
/// request (`request_sock_TCP`, freed by accept) remain; what holds a FIN keeps its packet too.
pub fn queued(before: &Slabs, after: &Slabs, entries: u64) -> Option<Cost> {
    const SERVER: &[&str] = &[
        "TCP",
        "TCPv6",
        "request_sock_TCP",
        "request_sock_TCPv6",
        "skbuff_head_cache",
        "skbuff_fclone_cache",
        "skbuff_small_head",
    ];
    cost(before, after, entries, |name| SERVER.contains(&name).then_some((1.0, 1.0)))
}

/// What one end of a connection costs, when both ends are on this machine, the clients are watched by
/// nothing, and all are idle.
///
/// Half of what both ends have (socket, inode, file, dentry, security blobs), and the whole of what
/// only a server has: the objects that watch a connection. The bind buckets are the clients' (one
/// per port); where SLUB has merged them with `eventpoll_epi`, that is counted by `eventpoll_pwq`,
/// of which a watched socket has as many. Of `dentry` and `lsm_inode_cache` those are left out that
/// belong to `proc_inode_cache`: whoever lists `/proc/PID/fd` makes one per descriptor.
pub fn one_end(before: &Slabs, after: &Slabs, connections: u64) -> Option<Cost> {
    const SHARED: &[&str] = &[
        "TCP",
        "TCPv6",
        "sock_inode_cache",
        "filp",
        "dentry",
        "lsm_inode_cache",
        "lsm_file_cache",
    ];
    const WATCHERS: &[&str] = &["eventpoll_epi", "eventpoll_pwq", "ep_head", "io_kiocb"];
    cost(before, after, connections, |name| {
        if SHARED.contains(&name) {
            Some((0.5, 1.0))
        } else {
            WATCHERS.contains(&name).then_some((1.0, f64::INFINITY))
        }
    })
}

/// Sums the objects for which `share` gives the part of them that counts, and how many of them one
/// connection has at most: what there is beyond that belongs to other programs.
fn cost(
    before: &Slabs,
    after: &Slabs,
    connections: u64,
    share: impl Fn(&str) -> Option<(f64, f64)>,
) -> Option<Cost> {
    if connections < LEAST_FOR_COST {
        return None;
    }
    let mut cost = Cost::default();
    for name in plimsoll_kernel::slab::TCP_OBJECTS {
        let (Some((part, most)), Some(slab)) = (share(name), after.counting(name)) else {
            continue;
        };
        let objects = grown(before, after, name);
        let per_connection = (objects as f64 * part / connections as f64).min(most);
        // Less than one object for ten connections is not the connections'.
        if per_connection < 0.1 {
            continue;
        }
        let page = crate::sys::page_bytes();
        let with_waste = (slab.pages_per_slab * page) as f64 / slab.objects_per_slab.max(1) as f64;
        cost.bytes += per_connection * slab.object_size as f64;
        cost.slab_bytes += per_connection * with_waste;
        cost.objects.push(KernelObject {
            name: (*name).to_owned(),
            objects,
            object_bytes: slab.object_size,
            per_connection,
        });
    }
    Some(cost)
}

/// By how many objects of this name there are more, as far as they can be told from others.
fn grown(before: &Slabs, after: &Slabs, name: &str) -> i64 {
    let raw = |name: &str| {
        let now = after.counting(name).map_or(0, |slab| slab.active as i64);
        now - before.counting(name).map_or(0, |slab| slab.active as i64)
    };
    match name {
        "dentry" | "lsm_inode_cache" => raw(name) - raw("proc_inode_cache"),
        "eventpoll_epi"
            if after.merged_with(name).iter().any(|other| other.starts_with("tcp_bind")) =>
        {
            raw("eventpoll_pwq").min(raw(name))
        }
        _ => raw(name),
    }
}

/// The bytes of all kinds of objects that connections use, by name, more than `before`.
pub fn kernel_bytes(before: &Slabs, after: &Slabs) -> std::collections::BTreeMap<String, i64> {
    after.tcp_delta(before).into_iter().map(|delta| (delta.name, delta.bytes)).collect()
}

fn share(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_buffers_is_ports_when_the_range_is_nearly_taken() {
        assert_eq!(ports_or_memory(Some(16_384), 16_300), Why::Ports);
        assert_eq!(ports_or_memory(Some(16_384), 9_000), Why::Memory);
        assert_eq!(ports_or_memory(None, 16_384), Why::Memory);
        assert_eq!(short_of(Why::Files, 1 << 20), Why::Files);
    }
}
