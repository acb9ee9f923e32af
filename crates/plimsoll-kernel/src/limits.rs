//! The limits a server meets: of its process, of the system, of the namespace.

use crate::source;
use crate::system;
use crate::{Error, Result};

/// A limit of a process, as the kernel has it. [`Rlimit::UNLIMITED`] is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// What is enforced. A process may raise it up to `hard` by itself.
    pub soft: u64,
    /// What `soft` may be raised to; only root raises this one, and for
    /// descriptors not above `fs.nr_open`.
    pub hard: u64,
}

impl Rlimit {
    /// The value that stands for no limit (`RLIM_INFINITY`).
    pub const UNLIMITED: u64 = u64::MAX;
}

/// Three sizes: the least, the one to start with, the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Triple {
    /// Least; of `tcp_mem`: below this there is no pressure.
    pub min: u64,
    /// To start with; of `tcp_mem`: from here on there is pressure.
    pub default: u64,
    /// Most; of `tcp_mem`: beyond this allocations fail.
    pub max: u64,
}

/// Open files of the whole system, from `fs.file-nr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Files {
    /// Open files allocated now; each socket that a process holds is one.
    pub allocated: u64,
    /// The most there may be: `fs.file-max`. Root is not bound by it.
    pub max: u64,
}

/// The limits that bear on connections. What cannot be read is `None`: absent
/// from this kernel, or hidden by a container.
///
/// Names are those of `/proc/sys` (`Documentation/networking/ip-sysctl.rst`,
/// `Documentation/admin-guide/sysctl/`). `net.*` are the calling thread's
/// network namespace's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// `RLIMIT_NOFILE`: one more than the highest descriptor. Bounds a table of
    /// `io_uring` direct descriptors too, per ring.
    pub nofile: Option<Rlimit>,
    /// `RLIMIT_MEMLOCK`, in bytes. Since Linux 5.12 rings are charged to the
    /// cgroup instead; registered buffers still to this.
    pub memlock: Option<Rlimit>,
    /// `RLIMIT_NPROC`, in threads of the user.
    pub nproc: Option<Rlimit>,
    /// `fs.nr_open`: the highest `RLIMIT_NOFILE` there can be.
    pub nr_open: Option<u64>,
    /// `fs.file-nr`.
    pub files: Option<Files>,
    /// `net.core.somaxconn`: caps the backlog of `listen`, at the time of the call.
    pub somaxconn: Option<u64>,
    /// `net.ipv4.tcp_max_syn_backlog`: handshakes in progress, if there are no
    /// SYN cookies.
    pub tcp_max_syn_backlog: Option<u64>,
    /// `net.ipv4.tcp_syncookies`: 0 never, 1 when the queue is full, 2 always.
    pub tcp_syncookies: Option<u64>,
    /// `net.ipv4.tcp_abort_on_overflow`: 1 resets a client whose *last* packet of
    /// the handshake finds the queue full.
    pub tcp_abort_on_overflow: Option<u64>,
    /// `net.ipv4.ip_local_port_range`: first and last port given to clients. On Windows the dynamic
    /// range, as [`TcpSettings`](crate::windows::TcpSettings) has it.
    pub local_ports: Option<(u16, u16)>,
    /// How many of those ports `net.ipv4.ip_local_reserved_ports` takes away.
    pub local_ports_reserved: Option<u32>,
    /// `net.ipv4.tcp_mem`, in pages, over all sockets of the machine. Shown only in
    /// the first network namespace: `None` in a container, though it holds there.
    pub tcp_mem: Option<Triple>,
    /// `net.ipv4.tcp_rmem`, in bytes per socket.
    pub tcp_rmem: Option<Triple>,
    /// `net.ipv4.tcp_wmem`, in bytes per socket.
    pub tcp_wmem: Option<Triple>,
    /// `net.core.rmem_max`: caps `SO_RCVBUF`, in bytes.
    pub rmem_max: Option<u64>,
    /// `net.core.wmem_max`: caps `SO_SNDBUF`, in bytes.
    pub wmem_max: Option<u64>,
    /// `net.ipv4.tcp_max_tw_buckets`: beyond it a `TIME_WAIT` is dropped at once.
    pub tcp_max_tw_buckets: Option<u64>,
    /// `net.ipv4.tcp_max_orphans`: beyond it a closed socket is reset. Like
    /// `tcp_mem`, the machine's, and shown only in the first network namespace.
    pub tcp_max_orphans: Option<u64>,
    /// `net.ipv4.tcp_tw_reuse`: 0 no, 1 yes, 2 on loopback only.
    pub tcp_tw_reuse: Option<u64>,
    /// `net.ipv4.tcp_fin_timeout`, in seconds.
    pub tcp_fin_timeout: Option<u64>,
    /// `net.ipv4.tcp_congestion_control`.
    pub congestion_control: Option<String>,
    /// `net.netfilter.nf_conntrack_max`: connections tracked by the firewall.
    pub nf_conntrack_max: Option<u64>,
    /// `net.netfilter.nf_conntrack_count`: tracked now.
    pub nf_conntrack_count: Option<u64>,
    /// `vm.max_map_count`: mappings of one process.
    pub max_map_count: Option<u64>,
    /// `kernel.io_uring_disabled`: 0 allowed, 1 for the privileged, 2 for nobody.
    pub io_uring_disabled: Option<u64>,
    /// `kernel.threads-max`.
    pub threads_max: Option<u64>,
    /// `kernel.pid_max`.
    pub pid_max: Option<u64>,
    /// Bytes per page.
    pub page_size: Option<u64>,
}

impl Limits {
    /// The limits of this process. Never fails; some 300 µs.
    pub fn read() -> Self {
        let own = source::read_optional("/proc/self/limits").unwrap_or_default();
        Self::with_process(&own)
    }

    /// The limits of process `pid`. Those of the namespace are the caller's.
    ///
    /// # Errors
    /// If the process is not there, or belongs to somebody else.
    pub fn of(pid: u32) -> Result<Self> {
        Ok(Self::with_process(&source::read_process(pid, "limits")?))
    }

    /// Ports that a client may be given from one source address: the range less
    /// what is reserved in it.
    pub fn local_ports_usable(&self) -> Option<u32> {
        let (first, last) = self.local_ports?;
        let range = u32::from(last).checked_sub(u32::from(first))? + 1;
        Some(range.saturating_sub(self.local_ports_reserved.unwrap_or(0)))
    }

    fn with_process(process: &str) -> Self {
        let local_ports = pair("net.ipv4.ip_local_port_range");
        #[cfg(windows)]
        let local_ports = local_ports.or_else(crate::windows::dynamic_ports);
        Self {
            nofile: rlimit(process, "Max open files"),
            memlock: rlimit(process, "Max locked memory"),
            nproc: rlimit(process, "Max processes"),
            nr_open: number("fs.nr_open"),
            files: files(),
            somaxconn: number("net.core.somaxconn"),
            tcp_max_syn_backlog: number("net.ipv4.tcp_max_syn_backlog"),
            tcp_syncookies: number("net.ipv4.tcp_syncookies"),
            tcp_abort_on_overflow: number("net.ipv4.tcp_abort_on_overflow"),
            local_ports,
            local_ports_reserved: reserved(local_ports),
            tcp_mem: triple("net.ipv4.tcp_mem"),
            tcp_rmem: triple("net.ipv4.tcp_rmem"),
            tcp_wmem: triple("net.ipv4.tcp_wmem"),
            rmem_max: number("net.core.rmem_max"),
            wmem_max: number("net.core.wmem_max"),
            tcp_max_tw_buckets: number("net.ipv4.tcp_max_tw_buckets"),
            tcp_max_orphans: number("net.ipv4.tcp_max_orphans"),
            tcp_tw_reuse: number("net.ipv4.tcp_tw_reuse"),
            tcp_fin_timeout: number("net.ipv4.tcp_fin_timeout"),
            congestion_control: sysctl("net.ipv4.tcp_congestion_control").ok(),
            nf_conntrack_max: number("net.netfilter.nf_conntrack_max"),
            nf_conntrack_count: number("net.netfilter.nf_conntrack_count"),
            max_map_count: number("vm.max_map_count"),
            io_uring_disabled: number("kernel.io_uring_disabled"),
            threads_max: number("kernel.threads-max"),
            pid_max: number("kernel.pid_max"),
            page_size: system::page_size(),
        }
    }
}

/// A value of `/proc/sys` by its name with dots (`net.core.somaxconn`), without
/// the end of its line. A dot within a part of the name is written as a slash.
pub fn sysctl(name: &str) -> Result<String> {
    let path = path_of(name)?;
    Ok(source::read(&path)?.trim_end().to_owned())
}

/// A value of `/proc/sys` that is one number, 0 or more.
pub fn sysctl_u64(name: &str) -> Result<u64> {
    let value = sysctl(name)?;
    value.trim().parse().map_err(|_| {
        let why = format!("`{value}` is not one number");
        Error::Malformed { path: path_of(name).unwrap_or_default().into(), why }
    })
}

/// The file of a name. No name leads out of `/proc/sys`.
fn path_of(name: &str) -> Result<String> {
    let swap = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let relative: String = name.chars().map(swap).collect();
    if relative.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(Error::malformed("/proc/sys", format!("`{name}` is not a sysctl's name")));
    }
    Ok(format!("/proc/sys/{relative}"))
}

fn number(name: &str) -> Option<u64> {
    sysctl_u64(name).ok()
}

fn numbers<const N: usize>(name: &str) -> Option<[u64; N]> {
    source::numbers(&sysctl(name).ok()?)
}

fn triple(name: &str) -> Option<Triple> {
    let [min, default, max] = numbers(name)?;
    Some(Triple { min, default, max })
}

fn pair(name: &str) -> Option<(u16, u16)> {
    let [first, last] = numbers(name)?;
    Some((first.try_into().ok()?, last.try_into().ok()?))
}

fn files() -> Option<Files> {
    // The number in the middle is 0 since Linux 2.6.
    let [allocated, _, max] = numbers("fs.file-nr")?;
    Some(Files { allocated, max })
}

fn reserved(range: Option<(u16, u16)>) -> Option<u32> {
    reserved_within(&sysctl("net.ipv4.ip_local_reserved_ports").ok()?, range?)
}

/// Counts the ports of a list such as `8080,9000-9010` that lie in the range.
fn reserved_within(list: &str, range: (u16, u16)) -> Option<u32> {
    let mut count = 0;
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let low = low.parse::<u16>().ok()?.max(range.0);
        let high = high.parse::<u16>().ok()?.min(range.1);
        count += u32::from(high).checked_sub(u32::from(low)).map_or(0, |ports| ports + 1);
    }
    Some(count)
}

/// `RLIMIT_NOFILE` of a process, by one small file.
pub(crate) fn nofile_of(pid: u32) -> Option<Rlimit> {
    rlimit(&source::read_process(pid, "limits").ok()?, "Max open files")
}

/// A line of `/proc/PID/limits`: the name, soft, hard, the unit.
fn rlimit(text: &str, name: &str) -> Option<Rlimit> {
    let mut words = text.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace();
    let mut value = || match words.next()? {
        "unlimited" => Some(Rlimit::UNLIMITED),
        number => number.parse().ok(),
    };
    Some(Rlimit { soft: value()?, hard: value()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_counted_within_the_range() {
        assert_eq!(reserved_within("", (32768, 60999)), Some(0));
        assert_eq!(reserved_within("80,40000,50000-50009", (32768, 60999)), Some(11));
        assert_eq!(reserved_within("30000-32769,60999-65535", (32768, 60999)), Some(3));
        assert_eq!(reserved_within("x", (1, 2)), None);
    }

    #[test]
    fn rlimits_are_read_by_name() {
        let text = "Limit Soft Hard Units\nMax open files   1024  unlimited  files\n";
        let found = rlimit(text, "Max open files");
        assert_eq!(found, Some(Rlimit { soft: 1024, hard: Rlimit::UNLIMITED }));
        assert_eq!(rlimit(text, "Max locked memory"), None);
        assert_eq!(rlimit("Max open files many", "Max open files"), None);
    }

    #[test]
    fn no_name_leads_out_of_proc_sys() {
        for name in ["", ".", "..", "a..b", "//.self", "net.//.//.self", "/.x"] {
            assert!(path_of(name).is_err(), "{name}");
        }
        assert_eq!(path_of("net.conf.eth0/1.x").unwrap(), "/proc/sys/net/conf/eth0.1/x");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_limits() {
        let limits = Limits::read();
        assert_eq!(Limits::of(std::process::id()).unwrap().nofile, limits.nofile);
        assert!(limits.nofile.is_some_and(|limit| limit.soft > 0 && limit.soft <= limit.hard));
        assert!(limits.somaxconn.is_some() && limits.tcp_rmem.is_some());
        assert!(limits.local_ports_usable().is_some_and(|ports| ports > 0));
        assert!(limits.files.is_some_and(|files| files.allocated > 0));
        assert!(limits.page_size.is_some_and(u64::is_power_of_two));
        let error = sysctl("net.there.is.none").unwrap_err().to_string();
        assert!(error.contains("/proc/sys/net/there/is/none"), "{error}");
        assert!(sysctl_u64("net.ipv4.tcp_rmem").is_err());
    }
}
