//! All counters of one moment.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use plimsoll_kernel::cgroup::{GroupFigures, Groups};
use plimsoll_kernel::limits::Limits;
use plimsoll_kernel::meminfo::Meminfo;
use plimsoll_kernel::netstat::Netstat;
pub use plimsoll_kernel::process::Figures as Process;
use plimsoll_kernel::slab::Slabs;
use plimsoll_kernel::sockstat::Sockstat;
use plimsoll_kernel::windows::Performance;

/// The counters of one moment: of the machine, of this network namespace, of the clients' control
/// groups, and of the server as far as it can be seen. Plain data, so that a verdict can be tested on
/// a recorded or invented one.
///
/// What could not be read, or was not asked for (see [`Depth`]), is `None`.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// When: since this process took its first snapshot.
    pub at: Duration,
    /// `TcpExt`, `Tcp` and the other groups of counters of the namespace.
    pub netstat: Option<Netstat>,
    /// Sockets of the namespace, and TCP's pages (the whole machine's).
    pub sockstat: Option<Sockstat>,
    /// Kernel objects; for anybody but root `None`, and with [`Depth::Quick`].
    pub slabs: Option<Slabs>,
    /// Limits of this process, of the namespace and of the machine; among them open files and tracked
    /// connections with their maxima. The clients' workers inherit the hard limit on descriptors and
    /// raise their soft one to it.
    pub limits: Limits,
    /// The machine's memory.
    pub memory: Option<Memory>,
    /// Bytes of the non-paged pool; `None` but on Windows.
    pub nonpaged: Option<u64>,
    /// The control groups of the clients' processes, which are those of this process.
    pub client_group: Option<GroupFigures>,
    /// The control groups of the server's process.
    pub server_group: Option<GroupFigures>,
    /// The server's processes, first the one that all others descend from.
    pub server: Option<ProcessFamily>,
    /// The server's accept queue.
    pub listener: Option<Queue>,
}

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All but slabs and the exact resident memory of the server's processes; about 1 ms.
    Quick,
    /// Everything; about 3 ms, and more for a server with gigabytes of memory or many processes.
    Full,
}

/// Memory of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it, in bytes.
    pub total: u64,
    /// What could be had without swapping, in bytes.
    pub available: u64,
}

/// A listener's accept queue. Where several listeners share the address (`SO_REUSEPORT`), the sums
/// of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Connections that wait to be accepted.
    pub depth: u64,
    /// The backlog that the kernel granted: the queue takes one more than that.
    pub granted: u64,
    /// How many listeners share the address.
    pub listeners: u64,
    /// Whether one of these queues is full, so that the kernel drops the next client.
    pub full: bool,
}

/// The processes of one server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessFamily {
    /// First the process that was named or found, then those that descend from it or share its
    /// listener. A process that could not be looked at is left out.
    pub processes: Vec<Process>,
}

impl ProcessFamily {
    /// The process that was named or found.
    pub fn main(&self) -> Option<&Process> {
        self.processes.first()
    }

    /// CPU time of all; `None` when it is not known of the first.
    pub fn cpu(&self) -> Option<Duration> {
        self.sum(|one| one.cpu)
    }

    /// Time that all have waited for a CPU while they were ready to run.
    pub fn run_delay(&self) -> Option<Duration> {
        self.sum(|one| one.run_delay)
    }

    /// Resident memory of all, in bytes. Pages that processes share count in each.
    pub fn rss(&self) -> Option<u64> {
        self.sum(|one| one.rss)
    }

    /// Threads of all.
    pub fn threads(&self) -> Option<u64> {
        self.sum(|one| one.threads)
    }

    /// The process with the least room for descriptors, among those whose limit is known.
    pub fn shortest_of_descriptors(&self) -> Option<&Process> {
        let room = |one: &Process| Some(one.descriptors_limit?.saturating_sub(one.descriptors?));
        let known = self.processes.iter().filter_map(|one| Some((room(one)?, one)));
        known.min_by_key(|(room, _)| *room).map(|(_, one)| one)
    }

    fn sum<T: std::iter::Sum>(&self, of: impl Fn(&Process) -> Option<T>) -> Option<T> {
        let own = of(self.main()?)?;
        let others = self.processes.iter().skip(1).filter_map(of);
        Some(std::iter::once(own).chain(others).sum())
    }
}

impl Snapshot {
    /// What is to be seen without a server: the machine, the namespace, the clients' group. A server's
    /// part is added by [`Server::snapshot`](super::Server::snapshot).
    pub fn read(depth: Depth) -> Self {
        // The groups of this process change only when somebody moves it.
        static OWN_GROUPS: OnceLock<Groups> = OnceLock::new();
        let groups = OWN_GROUPS.get_or_init(|| Groups::own().unwrap_or_default());
        Self {
            at: since_the_first(),
            netstat: Netstat::read().ok(),
            sockstat: Sockstat::read().ok(),
            slabs: (depth == Depth::Full).then(|| Slabs::read().ok()).flatten(),
            limits: Limits::read(),
            memory: Meminfo::read()
                .ok()
                .map(|memory| Memory { total: memory.total, available: memory.available }),
            nonpaged: Performance::read().ok().and_then(|now| now.nonpaged_pool),
            client_group: Some(groups.read()),
            server_group: None,
            server: None,
            listener: None,
        }
    }

    /// Time that has passed from `earlier` to this one.
    pub fn since(&self, earlier: &Self) -> Duration {
        self.at.saturating_sub(earlier.at)
    }

    /// By how much a counter has grown since `earlier`; `None` where it is not known. A gauge that has
    /// fallen has grown by 0.
    pub fn grown(&self, earlier: &Self, name: &str) -> Option<u64> {
        let delta = self.netstat.as_ref()?.delta(earlier.netstat.as_ref()?, name)?;
        Some(u64::try_from(delta).unwrap_or(0))
    }

    /// How many cores the server has used since `earlier`, on average: 0.5 is half of one. `None`
    /// where its CPU time is not known, or no time has passed.
    pub fn server_cores(&self, earlier: &Self) -> Option<f64> {
        let used = self.server.as_ref()?.cpu()?.checked_sub(earlier.server.as_ref()?.cpu()?)?;
        self.per_second(earlier, used)
    }

    /// How many threads of the server, on average since `earlier`, were ready to run and had no CPU.
    pub fn server_waiting_for_cpu(&self, earlier: &Self) -> Option<f64> {
        let (now, before) = (self.server.as_ref()?, earlier.server.as_ref()?);
        self.per_second(earlier, now.run_delay()?.checked_sub(before.run_delay()?)?)
    }

    fn per_second(&self, earlier: &Self, time: Duration) -> Option<f64> {
        let elapsed = self.since(earlier);
        (!elapsed.is_zero()).then(|| time.as_secs_f64() / elapsed.as_secs_f64())
    }
}

/// The monotonic clock, from this process's first call on.
fn since_the_first() -> Duration {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    FIRST.get_or_init(Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, used: u64, limit: u64, cpu_ms: u64) -> Process {
        Process {
            pid,
            descriptors: Some(used),
            descriptors_limit: Some(limit),
            cpu: Some(Duration::from_millis(cpu_ms)),
            ..Process::default()
        }
    }

    #[test]
    fn a_counter_is_compared_by_name_and_unknown_ones_stay_unknown() {
        let counted = |value| Snapshot {
            netstat: Some([("ListenOverflows", value)].into_iter().collect()),
            ..Snapshot::default()
        };
        assert_eq!(counted(9).grown(&counted(4), "ListenOverflows"), Some(5));
        assert_eq!(counted(4).grown(&counted(9), "ListenOverflows"), Some(0));
        assert_eq!(counted(9).grown(&counted(4), "TCPSynRetrans"), None);
        assert_eq!(counted(9).grown(&Snapshot::default(), "ListenOverflows"), None);
    }

    #[test]
    fn a_family_is_summed_and_its_shortest_member_found() {
        let at = |seconds, cpu_ms| Snapshot {
            at: Duration::from_secs(seconds),
            server: Some(ProcessFamily {
                processes: vec![process(1, 10, 1024, cpu_ms), process(2, 60, 64, cpu_ms)],
            }),
            ..Snapshot::default()
        };
        let cores = at(12, 1_500).server_cores(&at(10, 500)).expect("both are known");
        assert!((cores - 1.0).abs() < 1e-9, "{cores}");
        assert_eq!(at(10, 1).server_cores(&at(10, 0)), None);
        assert_eq!(at(11, 1).server_waiting_for_cpu(&at(10, 0)), None);
        let family = at(0, 0).server.expect("it was given");
        assert_eq!(family.shortest_of_descriptors().map(|one| one.pid), Some(2));
        assert_eq!((family.rss(), ProcessFamily::default().cpu()), (None, None));
    }

    #[test]
    fn time_passes_from_one_snapshot_to_the_next() {
        let first = Snapshot::read(Depth::Quick);
        let second = Snapshot::read(Depth::Full);
        assert!(second.since(&first) > Duration::ZERO);
        assert_eq!(first.since(&second), Duration::ZERO);
        assert!(first.slabs.is_none() && first.server.is_none() && first.listener.is_none());
        if cfg!(target_os = "linux") {
            assert!(first.netstat.is_some() && first.sockstat.is_some() && first.memory.is_some());
            assert!(second.grown(&first, "ListenOverflows").is_some());
        }
    }
}
