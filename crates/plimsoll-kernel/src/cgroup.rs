//! The limits of the control groups a process lives in, versions 1 and 2.
//!
//! A group's limit holds for all below it too, so each figure is looked for
//! from the process's own group up to the root that is visible, and the one
//! with the least room is reported. Inside a container the visible root is
//! usually the container's own group.
//!
//! Kernel texts: `Documentation/admin-guide/cgroup-v1/memory.rst`,
//! `Documentation/admin-guide/cgroup-v2.rst`.

mod groups;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Result;
use crate::source;

pub use groups::{GroupFigures, Groups};

/// From here on it is no limit: version 1 writes "none" as the largest whole
/// number of pages, and nothing real comes near 2⁶² bytes.
pub(crate) const UNLIMITED: u64 = 1 << 62;

/// A bounded figure of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The limit, or `None` if no group on the way sets one.
    pub limit: Option<u64>,
    /// What is used now, in the group that is reported.
    pub current: u64,
    /// The folder of that group: where the limit is to be raised.
    pub group: PathBuf,
}

impl Bound {
    /// What is left, or `None` if there is no limit.
    pub fn room(&self) -> Option<u64> {
        Some(self.limit?.saturating_sub(self.current))
    }
}

/// A share of the CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuQuota {
    /// CPU time granted in each period, over all CPUs.
    pub quota: Duration,
    /// The period.
    pub period: Duration,
}

impl CpuQuota {
    /// The quota as a number of CPUs.
    pub fn cpus(&self) -> f64 {
        self.quota.as_secs_f64() / self.period.as_secs_f64()
    }
}

/// Parts of a group's memory, in bytes; version 2 only (`memory.stat`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryParts {
    /// Buffers of sockets.
    pub sock: Option<u64>,
    /// All of the kernel's memory: slabs, stacks, page tables, buffers.
    pub kernel: Option<u64>,
    /// Slabs: sockets, inodes, files.
    pub slab: Option<u64>,
}

/// How often a group's memory has hit its limits; version 2 only
/// (`memory.events`). Counts since the group was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// Times `memory.high` was exceeded and the group was slowed down.
    pub high: Option<u64>,
    /// Times `memory.max` was about to be exceeded.
    pub max: Option<u64>,
    /// Times an allocation was about to fail.
    pub oom: Option<u64>,
    /// Processes killed for it.
    pub oom_kill: Option<u64>,
}

/// What the control groups allow a process. `None`: no such controller here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Bytes of memory: `memory.max` or `memory.limit_in_bytes`.
    pub memory: Option<Bound>,
    /// Bytes from which on the group is slowed down: `memory.high`, version 2.
    pub memory_high: Option<Bound>,
    /// Bytes of TCP buffers: `memory.kmem.tcp.*`, version 1 only.
    pub tcp_memory: Option<Bound>,
    /// Bytes of the kernel's memory: `memory.kmem.usage_in_bytes`, version 1;
    /// version 2 has it in `parts`.
    pub kernel_memory: Option<u64>,
    /// Parts of the process's own group.
    pub parts: Option<MemoryParts>,
    /// Events of the process's own group, those of the groups below included.
    pub events: Option<MemoryEvents>,
    /// Threads: `pids.max`.
    pub pids: Option<Bound>,
    /// CPU time, if some group bounds it: the tightest.
    pub cpu: Option<CpuQuota>,
}

impl Cgroup {
    /// What applies to this process. Some 20 small files: about 200 µs.
    ///
    /// # Errors
    /// Only if `/proc` cannot be read.
    pub fn read() -> Result<Self> {
        let membership = source::read("/proc/self/cgroup")?;
        Ok(Self::with_membership(&membership))
    }

    /// What applies to process `pid`.
    pub fn of(pid: u32) -> Result<Self> {
        Ok(Self::with_membership(&source::read_process(pid, "cgroup")?))
    }

    fn with_membership(membership: &str) -> Self {
        let mounts = source::read_optional("/proc/self/mountinfo").unwrap_or_default();
        let v1 = |controller| chain(membership, &mounts, Some(controller));
        let v2 = chain(membership, &mounts, None);
        let (one, memory) = memory_groups(membership, &mounts);
        let mut found = if one { memory_v1(&memory) } else { memory_v2(&memory) };
        found.pids = tightest(&v1("pids"), "pids.max", "pids.current")
            .or_else(|| tightest(&v2, "pids.max", "pids.current"));
        found.cpu = v1("cpu")
            .iter()
            .filter_map(|group| cpu_v1(group))
            .chain(v2.iter().filter_map(|group| cpu_v2(group)))
            .min_by(|one, other| one.cpus().total_cmp(&other.cpus()));
        found
    }
}

/// The groups that bound a process's memory, its own first, and whether they are of version 1.
pub(crate) fn memory_groups(membership: &str, mounts: &str) -> (bool, Vec<PathBuf>) {
    let one = chain(membership, mounts, Some("memory"));
    if one.is_empty() { (false, chain(membership, mounts, None)) } else { (true, one) }
}

fn memory_v1(groups: &[PathBuf]) -> Cgroup {
    let leaf = groups.first();
    Cgroup {
        memory: tightest(groups, "memory.limit_in_bytes", "memory.usage_in_bytes"),
        tcp_memory: tightest(
            groups,
            "memory.kmem.tcp.limit_in_bytes",
            "memory.kmem.tcp.usage_in_bytes",
        ),
        kernel_memory: leaf
            .and_then(|group| source::number(group.join("memory.kmem.usage_in_bytes"))),
        ..Cgroup::default()
    }
}

fn memory_v2(groups: &[PathBuf]) -> Cgroup {
    let leaf = |file: &str| source::read_optional(groups.first()?.join(file));
    Cgroup {
        memory: tightest(groups, "memory.max", "memory.current"),
        memory_high: tightest(groups, "memory.high", "memory.current"),
        parts: leaf("memory.stat").map(|text| MemoryParts {
            sock: source::keyed(&text, "sock"),
            kernel: source::keyed(&text, "kernel"),
            slab: source::keyed(&text, "slab"),
        }),
        events: leaf("memory.events").map(|text| MemoryEvents {
            high: source::keyed(&text, "high"),
            max: source::keyed(&text, "max"),
            oom: source::keyed(&text, "oom"),
            oom_kill: source::keyed(&text, "oom_kill"),
        }),
        ..Cgroup::default()
    }
}

/// The figure of the group with the least room; of the first if none is bound.
fn tightest(groups: &[PathBuf], limit: &str, current: &str) -> Option<Bound> {
    let bounds = groups.iter().filter_map(|group| {
        // The root of version 2 has neither file.
        let limit = parse_limit(&source::read_optional(group.join(limit))?)?;
        let limit = Some(limit).filter(|limit| *limit < UNLIMITED);
        let current = source::number(group.join(current))?;
        Some(Bound { limit, current, group: group.clone() })
    });
    bounds.min_by_key(|bound| bound.room().unwrap_or(u64::MAX))
}

/// A number, or `max`; `None` is not understood.
pub(crate) fn parse_limit(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(UNLIMITED),
        number => number.parse().ok(),
    }
}

fn cpu_v1(group: &Path) -> Option<CpuQuota> {
    // −1 is "no quota", and does not parse as a u64.
    let quota = source::number(group.join("cpu.cfs_quota_us"))?;
    quota_of(quota, source::number(group.join("cpu.cfs_period_us"))?)
}

fn cpu_v2(group: &Path) -> Option<CpuQuota> {
    let text = source::read_optional(group.join("cpu.max"))?;
    let (quota, period) = text.trim().split_once(' ')?;
    quota_of(quota.parse().ok()?, period.parse().ok()?)
}

fn quota_of(quota_us: u64, period_us: u64) -> Option<CpuQuota> {
    let (quota, period) = (Duration::from_micros(quota_us), Duration::from_micros(period_us));
    (period_us > 0).then_some(CpuQuota { quota, period })
}

/// The folders of a process's group and of those above it, the own one first,
/// for a controller of version 1 or (`None`) for version 2. Empty: not mounted.
fn chain(membership: &str, mounts: &str, controller: Option<&str>) -> Vec<PathBuf> {
    let Some(path) = membership.lines().find_map(|line| group_path(line, controller)) else {
        return Vec::new();
    };
    let Some((root, point)) = mounts.lines().find_map(|line| mount(line, controller)) else {
        return Vec::new();
    };
    // A mount may show only a part of the tree (a container's own group): what
    // lies outside is not visible, and the mount point is the nearest group.
    let relative = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    let own = Path::new(&point).join(relative);
    let own = if own.exists() { own } else { PathBuf::from(&point) };
    own.ancestors().take_while(|folder| folder.starts_with(&point)).map(Path::to_owned).collect()
}

/// The path in a line `4:memory:/path`, or `0::/path` for version 2.
fn group_path<'a>(line: &'a str, controller: Option<&str>) -> Option<&'a str> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let matches = match controller {
        Some(name) => controllers.split(',').any(|other| other == name),
        None => controllers.is_empty(),
    };
    matches.then_some(path)
}

/// Root and mount point in a line of mountinfo (`man 5 proc_pid_mountinfo`):
/// `31 23 0:28 root point options … - type source super-options`.
fn mount<'a>(line: &'a str, controller: Option<&str>) -> Option<(&'a str, String)> {
    let (first, second) = line.split_once(" - ")?;
    let mut first = first.split(' ').skip(3);
    let mut second = second.split(' ');
    let (root, point) = (first.next()?, first.next()?);
    let (kind, options) = (second.next()?, second.nth(1)?);
    let matches = match controller {
        Some(name) => kind == "cgroup" && options.split(',').any(|other| other == name),
        None => kind == "cgroup2",
    };
    // A space in a path is written \040.
    matches.then(|| (root, point.replace("\\040", " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        35 31 0:32 / /nowhere/memory rw,relatime - cgroup cgroup rw,memory\n\
        41 31 0:38 /box /nowhere/my\\040v2 rw,relatime shared:1 - cgroup2 cgroup2 rw\n";

    #[test]
    fn membership_and_mounts_are_matched() {
        assert_eq!(group_path("4:cpu,memory:/a/b", Some("memory")), Some("/a/b"));
        assert_eq!(group_path("4:cpu,memory:/a/b", None), None);
        assert_eq!(group_path("0::/a:b", None), Some("/a:b"));
        assert_eq!(group_path("broken", None), None);
        let found = MOUNTS.lines().find_map(|line| mount(line, None));
        assert_eq!(found, Some(("/box", "/nowhere/my v2".to_owned())));
        let found = MOUNTS.lines().find_map(|line| mount(line, Some("memory")));
        assert_eq!(found, Some(("/", "/nowhere/memory".to_owned())));
        assert_eq!(mount("broken - ", None), None);
    }

    #[test]
    fn a_group_that_cannot_be_seen_is_replaced_by_the_visible_root() {
        let groups = chain("4:memory:/a/b\n", MOUNTS, Some("memory"));
        assert_eq!(groups, [PathBuf::from("/nowhere/memory")]);
        assert!(chain("", MOUNTS, None).is_empty());
        assert!(chain("0::/\n", "", None).is_empty());
    }

    #[test]
    fn limits_of_both_versions_are_understood() {
        assert_eq!(parse_limit("max\n"), Some(UNLIMITED));
        assert!(parse_limit("9223372036854771712\n") >= Some(UNLIMITED));
        assert_eq!(parse_limit("4096\n"), Some(4096));
        assert_eq!(parse_limit("x"), None);
        assert!((quota_of(150_000, 100_000).unwrap().cpus() - 1.5).abs() < 1e-9);
        assert_eq!(quota_of(1, 0), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_tightest_group_is_reported() {
        let folder = std::env::temp_dir().join(format!("plimsoll-cgroup-{}", std::process::id()));
        let below = folder.join("below");
        std::fs::create_dir_all(&below).unwrap();
        for (group, limit, current) in [(&folder, "100", "90"), (&below, "max", "50")] {
            std::fs::write(group.join("memory.max"), limit).unwrap();
            std::fs::write(group.join("memory.current"), current).unwrap();
        }
        let bound = tightest(&[below, folder.clone()], "memory.max", "memory.current");
        std::fs::remove_dir_all(&folder).unwrap();
        let bound = bound.unwrap();
        assert_eq!((bound.room(), bound.group), (Some(10), folder));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn reading_this_process_gives_what_is_mounted() {
        let own = Cgroup::read().unwrap();
        assert_eq!(Cgroup::of(std::process::id()).unwrap().pids.is_some(), own.pids.is_some());
        if let Some(memory) = own.memory {
            assert!(memory.current > 0 && memory.group.is_dir());
        }
    }
}
