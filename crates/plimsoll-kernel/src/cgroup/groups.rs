//! The groups of one process, found once and read again and again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Bound, chain, memory_groups, tightest};
use crate::Result;
use crate::source;
use crate::watch;

/// The folders of the control groups that a process lives in. They stay when the process has ended,
/// so that what its groups count can be read after its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups {
    /// Whether memory is bounded by groups of version 1.
    memory_of_version_1: bool,
    memory: Vec<PathBuf>,
    pids: Vec<PathBuf>,
    cpu: Vec<PathBuf>,
}

/// What a process's groups allow and have counted, at one moment. `None`: no such controller, or a
/// kernel that does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupFigures {
    /// Bytes of memory, in the group with the least room.
    pub memory: Option<Bound>,
    /// Bytes of it that cache files and can be given back at once: a group that reads files is at its
    /// limit all the time, and nothing is short.
    pub memory_reclaimable: Option<u64>,
    /// How often that group has met its limit: `memory.failcnt` of version 1, `max` of version 2's
    /// `memory.events`. The page cache counts too, where it had to be given back.
    pub memory_limit_hits: Option<u64>,
    /// Processes killed for want of memory: `oom_kill` of `memory.oom_control` (version 1, the
    /// process's own group) or of `memory.events` (version 2, with the groups below).
    pub oom_kills: Option<u64>,
    /// Whether processes of the group wait for memory now; version 1 only, with the killer disabled.
    pub under_oom: Option<bool>,
    /// Bytes of TCP buffers: `memory.kmem.tcp.*`, version 1 only.
    pub tcp_memory: Option<Bound>,
    /// Processes and threads, in the group with the least room.
    pub pids: Option<Bound>,
    /// How often a process or a thread was refused: `max` of `pids.events`, the largest among the
    /// groups.
    pub pids_refused: Option<u64>,
    /// Time that threads of the group were held back by a quota of CPU time (`cpu.stat`).
    pub cpu_throttled: Option<Duration>,
}

impl GroupFigures {
    /// Memory that is held and cannot be given back at once, against its limit, in bytes; `None` where
    /// no group sets a limit.
    pub fn memory_held(&self) -> Option<(u64, u64)> {
        let memory = self.memory.as_ref()?;
        let held = memory.current.saturating_sub(self.memory_reclaimable.unwrap_or(0));
        Some((held, memory.limit?))
    }
}

impl Groups {
    /// The groups of this process.
    ///
    /// # Errors
    /// Only if `/proc` cannot be read.
    pub fn own() -> Result<Self> {
        Ok(Self::with_membership(&source::read("/proc/self/cgroup")?))
    }

    /// The groups of process `pid`; two files.
    ///
    /// # Errors
    /// If the process is not there.
    pub fn of(pid: u32) -> Result<Self> {
        Ok(Self::with_membership(&source::read_process(pid, "cgroup")?))
    }

    fn with_membership(membership: &str) -> Self {
        let mounts = source::read_optional("/proc/self/mountinfo").unwrap_or_default();
        let either = |controller| {
            let one = chain(membership, &mounts, Some(controller));
            if one.is_empty() { chain(membership, &mounts, None) } else { one }
        };
        let (memory_of_version_1, memory) = memory_groups(membership, &mounts);
        Self { memory_of_version_1, memory, pids: either("pids"), cpu: either("cpu") }
    }

    /// Reads the figures; some ten small files, about 60 µs.
    pub fn read(&self) -> GroupFigures {
        let mut found = if self.memory_of_version_1 {
            memory_v1(&self.memory)
        } else {
            memory_v2(&self.memory)
        };
        found.memory_reclaimable = found
            .memory
            .as_ref()
            .and_then(|bound| text(&bound.group, "memory.stat"))
            .map(|stat| watch::reclaimable(&stat));
        found.pids = tightest(&self.pids, "pids.max", "pids.current");
        found.pids_refused = self
            .pids
            .iter()
            .filter_map(|group| source::keyed(&text(group, "pids.events")?, "max"))
            .max();
        found.cpu_throttled = self.cpu.first().and_then(|group| throttled(group));
        found
    }
}

fn memory_v1(groups: &[PathBuf]) -> GroupFigures {
    let memory = tightest(groups, "memory.limit_in_bytes", "memory.usage_in_bytes");
    let control = groups.first().and_then(|group| text(group, "memory.oom_control"));
    let keyed = |key| source::keyed(control.as_deref()?, key);
    GroupFigures {
        memory_limit_hits: memory
            .as_ref()
            .and_then(|bound| source::number(bound.group.join("memory.failcnt"))),
        memory,
        oom_kills: keyed("oom_kill"),
        under_oom: keyed("under_oom").map(|flag| flag != 0),
        tcp_memory: tightest(
            groups,
            "memory.kmem.tcp.limit_in_bytes",
            "memory.kmem.tcp.usage_in_bytes",
        ),
        ..GroupFigures::default()
    }
}

fn memory_v2(groups: &[PathBuf]) -> GroupFigures {
    let memory = tightest(groups, "memory.max", "memory.current");
    let events = |group: &Path, key| source::keyed(&text(group, "memory.events")?, key);
    GroupFigures {
        memory_limit_hits: memory.as_ref().and_then(|bound| events(&bound.group, "max")),
        memory,
        oom_kills: groups.first().and_then(|group| events(group, "oom_kill")),
        ..GroupFigures::default()
    }
}

/// `throttled_time` in nanoseconds (version 1), or `throttled_usec` (version 2).
fn throttled(group: &Path) -> Option<Duration> {
    let text = text(group, "cpu.stat")?;
    let nanos = source::keyed(&text, "throttled_time").map(Duration::from_nanos);
    nanos.or_else(|| source::keyed(&text, "throttled_usec").map(Duration::from_micros))
}

fn text(group: &Path, file: &str) -> Option<String> {
    source::read_optional(group.join(file))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// A folder with recorded files, that goes with the test.
    struct Recorded(PathBuf);

    impl Recorded {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let name = format!("plimsoll-{name}-{}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&folder).unwrap();
            for (file, text) in files {
                std::fs::write(folder.join(file), text).unwrap();
            }
            Self(folder)
        }

        fn groups(&self, memory_of_version_1: bool) -> Groups {
            let one = vec![self.0.clone()];
            Groups { memory_of_version_1, memory: one.clone(), pids: one.clone(), cpu: one }
        }
    }

    impl Drop for Recorded {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn files_of_version_2_are_understood() {
        let folder = Recorded::new(
            "groups-2",
            &[
                ("memory.max", "67108864\n"),
                ("memory.current", "67100672\n"),
                ("memory.stat", "anon 5\ninactive_file 7000\nactive_file 4000\nfile_mapped 0\n"),
                ("memory.events", "low 0\nhigh 0\nmax 41\noom 1\noom_kill 1\noom_group_kill 0\n"),
                ("pids.max", "20\n"),
                ("pids.current", "20\n"),
                ("pids.events", "max 7\n"),
                ("cpu.stat", "usage_usec 9\nnr_periods 4\nnr_throttled 2\nthrottled_usec 1500\n"),
            ],
        );
        let found = folder.groups(false).read();
        let memory = found.memory.clone().unwrap();
        assert_eq!((memory.limit, memory.current), (Some(67_108_864), 67_100_672));
        assert_eq!(found.memory_held(), Some((67_100_672 - 11_000, 67_108_864)));
        assert_eq!((found.memory_limit_hits, found.oom_kills), (Some(41), Some(1)));
        assert_eq!((found.under_oom, found.tcp_memory.is_none()), (None, true));
        assert_eq!((found.pids.unwrap().room(), found.pids_refused), (Some(0), Some(7)));
        assert_eq!(found.cpu_throttled, Some(Duration::from_micros(1500)));
    }

    #[test]
    fn files_of_version_1_are_understood() {
        let folder = Recorded::new(
            "groups-1",
            &[
                ("memory.limit_in_bytes", "67108864\n"),
                ("memory.usage_in_bytes", "67108864\n"),
                ("memory.failcnt", "12\n"),
                ("memory.oom_control", "oom_kill_disable 1\nunder_oom 1\noom_kill 3\n"),
                ("memory.kmem.tcp.limit_in_bytes", "9223372036854771712\n"),
                ("memory.kmem.tcp.usage_in_bytes", "4096\n"),
                ("cpu.stat", "nr_periods 4\nnr_throttled 2\nthrottled_time 1500\n"),
            ],
        );
        let found = folder.groups(true).read();
        assert_eq!(found.memory.unwrap().room(), Some(0));
        assert_eq!((found.memory_limit_hits, found.oom_kills), (Some(12), Some(3)));
        assert_eq!(found.under_oom, Some(true));
        assert_eq!(found.tcp_memory.unwrap().limit, None);
        assert_eq!((found.pids, found.pids_refused), (None, None));
        assert_eq!(found.cpu_throttled, Some(Duration::from_nanos(1500)));
    }

    #[test]
    fn without_groups_nothing_is_known() {
        assert_eq!(Groups::default().read(), GroupFigures::default());
        assert_eq!(Groups::of(std::process::id()).unwrap(), Groups::own().unwrap());
    }
}
