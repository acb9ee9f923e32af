//! The few figures that say whether memory or files run short, read again and again.
//!
//! The other modules answer one question and close their files. Here the files stay open, one buffer
//! serves all of them, and nothing is allocated after [`Watch::open`]: what reads the kernel because
//! memory is short must not need any.
//!
//! | reading | source |
//! |---|---|
//! | [`Readings::tcp`] | `/proc/net/sockstat` (`mem`), `net.ipv4.tcp_mem` |
//! | [`Readings::group_memory`] | v2 `memory.max`, `memory.current`; v1 `memory.limit_in_bytes`, `memory.usage_in_bytes`; `memory.stat` |
//! | [`Readings::group_high`] | v2 `memory.high`, `memory.current`; `memory.stat` |
//! | [`Readings::group_tcp`] | v1 `memory.kmem.tcp.limit_in_bytes`, `memory.kmem.tcp.usage_in_bytes` |
//! | [`Readings::group_oom`] | v2 `memory.events`, v1 `memory.oom_control` |
//! | [`Readings::stalls`] | v2 `memory.pressure`; `/proc/pressure/memory` |
//! | [`Readings::system_memory`] | `/proc/meminfo`; on Windows `GlobalMemoryStatusEx` |
//! | [`Readings::files`] | `fs.file-nr` |
//!
//! The group is the one that the process lives in when the watch is opened; limits that are changed
//! later are seen, a process that is moved is not. Network figures are those of the namespace of the
//! thread that opens it.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::cgroup::{self, UNLIMITED};
use crate::{pressure, sockstat, source};

/// Something that is used up to a limit. Bytes, or files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// What is used now, all kinds together.
    pub used: u64,
    /// The limit.
    pub limit: u64,
    /// The part of `used` that the kernel gives up before anything fails: pages of files that no
    /// process has mapped. Read only where more than half of the limit is used, else 0.
    ///
    /// Slabs that `memory.stat` calls reclaimable are not in it: the inodes and directory entries of
    /// open sockets are among them, and stay as long as the sockets (`SLAB_RECLAIM_ACCOUNT` in
    /// `net/socket.c`).
    pub reclaimable: u64,
}

impl Usage {
    /// What is used and not given up easily.
    pub fn held(&self) -> u64 {
        self.used.saturating_sub(self.reclaimable)
    }

    /// What is left until the limit.
    pub fn room(&self) -> u64 {
        self.limit.saturating_sub(self.held())
    }
}

/// TCP's pages, machine-wide, against the three numbers of `net.ipv4.tcp_mem`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpPages {
    /// Pages of buffers now; each CPU keeps up to 1 MiB of changes to itself.
    pub pages: u64,
    /// Below this the kernel's own pressure ends.
    pub min: u64,
    /// From here on windows do not grow.
    pub pressure: u64,
    /// From here on allocations are refused, and orphans are reset.
    pub max: u64,
}

/// Shares of the last ten seconds lost in waiting for memory, in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MemoryStalls {
    /// Some task was waiting.
    pub some: f64,
    /// All tasks that were not idle were waiting.
    pub full: Option<f64>,
    /// Whether these are the group's own (version 2), not the machine's.
    pub of_group: bool,
}

/// What was read at one moment. `None`: no such file here, no limit, or not to be read.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Readings {
    /// TCP's pages. `None` in any but the first network namespace, which alone shows `tcp_mem`.
    pub tcp: Option<TcpPages>,
    /// Bytes of memory of the control group, of the one on the way up that leaves least
    /// room for its limit.
    pub group_memory: Option<Usage>,
    /// The same against the mark at which version 2 slows the group down.
    pub group_high: Option<Usage>,
    /// Bytes of TCP buffers of the group, version 1: likewise. Of sockets that
    /// were made when a limit had been set, and usage may pass it (see `mem_cgroup_charge_skmem`).
    pub group_tcp: Option<Usage>,
    /// Processes killed in the group for want of memory, and in version 2 the times that an
    /// allocation was about to fail; since the group was made.
    pub group_oom: Option<u64>,
    /// Time lost in waiting for memory.
    pub stalls: Option<MemoryStalls>,
    /// Memory of the machine: all that is not `MemAvailable`, against `MemTotal`. On Windows all
    /// that is not `ullAvailPhys`, against `ullTotalPhys`.
    pub system_memory: Option<Usage>,
    /// Open files of the machine, against `fs.file-max`.
    pub files: Option<Usage>,
}

/// Open files, and a buffer to read them into.
#[derive(Debug)]
pub struct Watch {
    sockstat: Option<File>,
    tcp_mem: Option<File>,
    meminfo: Option<File>,
    file_nr: Option<File>,
    stalls: Option<File>,
    stalls_of_group: bool,
    groups: Vec<Group>,
    events: Option<File>,
    version: Option<Version>,
    own: Option<PathBuf>,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The files of one group on the way up.
#[derive(Debug)]
struct Group {
    memory: Pair,
    /// The same usage, against `memory.high`.
    high: Option<File>,
    stat: Option<File>,
    tcp: Pair,
}

/// A limit and what is used of it.
#[derive(Debug)]
struct Pair {
    limit: Option<File>,
    used: Option<File>,
}

/// The longest files are `memory.stat` and `/proc/meminfo`, of 1 to 4 KB; one that fills the buffer is
/// not parsed.
const BUFFER: usize = 16 << 10;

impl Watch {
    /// Opens what there is. Some 15 files, kept open; about 0.3 ms. On systems other than Linux
    /// there is nothing to open; Windows tells its memory by a call.
    pub fn open() -> Self {
        let membership = source::read_optional("/proc/self/cgroup").unwrap_or_default();
        let mounts = source::read_optional("/proc/self/mountinfo").unwrap_or_default();
        Self::with_groups(cgroup::memory_groups(&membership, &mounts))
    }

    fn with_groups((one, folders): (bool, Vec<PathBuf>)) -> Self {
        let version = if one { Version::One } else { Version::Two };
        let own = folders.first();
        let events = match version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let of_own = |name: &str| open(&own?.join(name));
        let mut buffer = vec![0; BUFFER];
        // Where pressure is not accounted the file may be there, and fails when it is read.
        let group_stalls =
            of_own("memory.pressure").filter(|file| text(file, &mut buffer).is_some());
        let stalls_of_group = group_stalls.is_some();
        Self {
            sockstat: open(Path::new("/proc/thread-self/net/sockstat")),
            tcp_mem: open(Path::new("/proc/sys/net/ipv4/tcp_mem")),
            meminfo: open(Path::new("/proc/meminfo")),
            file_nr: open(Path::new("/proc/sys/fs/file-nr")),
            stalls: group_stalls.or_else(|| open(Path::new("/proc/pressure/memory"))),
            stalls_of_group,
            events: of_own(events),
            version: own.map(|_| version),
            own: own.cloned(),
            groups: folders.iter().map(|folder| Group::open(folder, version)).collect(),
            buffer,
        }
    }

    /// Reads all of it. No allocation.
    ///
    /// 25 to 31 µs with one group above the process's (measured, Linux 6.18): 10 reads of 2 to 6 µs
    /// each. Each further group on the way adds 2 to 7 µs, and `memory.stat` 12 µs where more than
    /// half of a group's limit is used.
    pub fn read(&mut self) -> Readings {
        let buffer = &mut self.buffer;
        let mut readings = Readings {
            tcp: tcp(self.sockstat.as_ref(), self.tcp_mem.as_ref(), buffer),
            system_memory: match &self.meminfo {
                Some(file) => text(file, buffer).and_then(system_memory),
                None => physical_memory(),
            },
            files: self.file_nr.as_ref().and_then(|file| {
                // The number in the middle is 0 since Linux 2.6.
                let [used, _, limit] = source::numbers(text(file, buffer)?)?;
                Some(Usage { used, limit, reclaimable: 0 })
            }),
            stalls: self.stalls.as_ref().and_then(|file| {
                let found = pressure::parse(text(file, buffer)?)?;
                let full = found.full.map(|full| full.avg10);
                Some(MemoryStalls { some: found.some.avg10, full, of_group: self.stalls_of_group })
            }),
            group_oom: self.events.as_ref().and_then(|file| {
                let text = text(file, buffer)?;
                let killed = source::keyed(text, "oom_kill")?;
                Some(killed + source::keyed(text, "oom").unwrap_or(0))
            }),
            ..Readings::default()
        };
        for group in &self.groups {
            group.read(&mut readings, buffer);
        }
        readings
    }

    /// What is watched, in words, for a log.
    pub fn sources(&self) -> Sources<'_> {
        Sources(self)
    }
}

impl Group {
    fn open(folder: &Path, version: Version) -> Self {
        let open = |name: &str| open(&folder.join(name));
        match version {
            Version::One => Self {
                memory: Pair {
                    limit: open("memory.limit_in_bytes"),
                    used: open("memory.usage_in_bytes"),
                },
                high: None,
                stat: open("memory.stat"),
                tcp: Pair {
                    limit: open("memory.kmem.tcp.limit_in_bytes"),
                    used: open("memory.kmem.tcp.usage_in_bytes"),
                },
            },
            Version::Two => Self {
                memory: Pair { limit: open("memory.max"), used: open("memory.current") },
                high: open("memory.high"),
                stat: open("memory.stat"),
                tcp: Pair { limit: None, used: None },
            },
        }
    }

    /// Puts this group's figures where they are tighter than those found so far.
    fn read(&self, readings: &mut Readings, buffer: &mut [u8]) {
        let max = self.memory.limit.as_ref().and_then(|file| limit(file, buffer));
        let high = self.high.as_ref().and_then(|file| limit(file, buffer));
        if let Some(least) = max.into_iter().chain(high).min()
            && let Some(used) = self.memory.used.as_ref().and_then(|file| number(file, buffer))
        {
            let reclaimable = if used > least / 2 { self.reclaimable(buffer) } else { 0 };
            let usage = |limit| Usage { used, limit, reclaimable };
            tighten(&mut readings.group_memory, max.map(usage));
            tighten(&mut readings.group_high, high.map(usage));
        }
        let tcp = self.tcp.limit.as_ref().and_then(|file| limit(file, buffer)).and_then(|limit| {
            let used = number(self.tcp.used.as_ref()?, buffer)?;
            Some(Usage { used, limit, reclaimable: 0 })
        });
        tighten(&mut readings.group_tcp, tcp);
    }

    fn reclaimable(&self, buffer: &mut [u8]) -> u64 {
        let Some(text) = self.stat.as_ref().and_then(|file| text(file, buffer)) else { return 0 };
        reclaimable(text)
    }
}

/// Of version 1 the lines with `total_`, which count the groups below too, as the usage does.
pub(crate) fn reclaimable(stat: &str) -> u64 {
    let of = |one: &str, two: &str| {
        source::keyed(stat, one).or_else(|| source::keyed(stat, two)).unwrap_or(0)
    };
    let cached =
        of("total_inactive_file", "inactive_file") + of("total_active_file", "active_file");
    cached.saturating_sub(of("total_mapped_file", "file_mapped"))
}

/// Takes the tighter figure: the one with less room for its limit. A limit above [`AMPLE`] counts as
/// that, since 1 GiB left is the same to a process whether of 10 or of 100.
fn tighten(found: &mut Option<Usage>, other: Option<Usage>) {
    let slack = |usage: &Usage| {
        let of = usage.limit.clamp(1, AMPLE);
        u128::from(usage.room()) * 10_000 / u128::from(of)
    };
    *found = found.iter().copied().chain(other).min_by_key(slack);
}

/// Limits above this (6 GiB) leave room in bytes, not in shares.
const AMPLE: u64 = 6 << 30;

fn tcp(sockstat: Option<&File>, tcp_mem: Option<&File>, buffer: &mut [u8]) -> Option<TcpPages> {
    let [min, pressure, max] = source::numbers(text(tcp_mem?, buffer)?)?;
    let pages = sockstat::field(text(sockstat?, buffer)?, "TCP", "mem")?;
    Some(TcpPages { pages, min, pressure, max })
}

fn system_memory(text: &str) -> Option<Usage> {
    // Both are printed in KiB.
    let bytes = |name| Some(source::keyed(text, name)?.saturating_mul(1024));
    let (limit, available) = (bytes("MemTotal")?, bytes("MemAvailable")?);
    // What is available is what the caches would give up too: nothing is left to be deducted.
    Some(Usage { used: limit.saturating_sub(available), limit, reclaimable: 0 })
}

/// Windows has no such file, and a call.
#[cfg(windows)]
fn physical_memory() -> Option<Usage> {
    let (available, limit) = crate::system::physical_memory()?;
    Some(Usage { used: limit.saturating_sub(available), limit, reclaimable: 0 })
}

#[cfg(not(windows))]
fn physical_memory() -> Option<Usage> {
    None
}

fn open(path: &Path) -> Option<File> {
    if cfg!(target_os = "linux") { File::open(path).ok() } else { None }
}

/// The whole text of a file; `None` if it cannot be read, or is longer than the buffer.
fn text<'a>(file: &File, buffer: &'a mut [u8]) -> Option<&'a str> {
    let count = read_start(file, buffer)?;
    if count == buffer.len() {
        return None;
    }
    std::str::from_utf8(&buffer[..count]).ok()
}

/// One read suffices: each of these files is a single record of `seq_file`, which grows its own
/// buffer until the record fits, and gives as much of it as is asked for.
#[cfg(unix)]
fn read_start(file: &File, buffer: &mut [u8]) -> Option<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, 0).ok()
}

#[cfg(not(unix))]
fn read_start(_: &File, _: &mut [u8]) -> Option<usize> {
    None
}

fn number(file: &File, buffer: &mut [u8]) -> Option<u64> {
    text(file, buffer)?.trim().parse().ok()
}

/// A limit, if it is one.
fn limit(file: &File, buffer: &mut [u8]) -> Option<u64> {
    cgroup::parse_limit(text(file, buffer)?).filter(|limit| *limit < UNLIMITED)
}

/// What a watch reads. Displays as a list of names.
#[derive(Debug)]
pub struct Sources<'a>(&'a Watch);

impl Sources<'_> {
    /// Whether there is nothing to read here.
    pub fn is_empty(&self) -> bool {
        self.names().next().is_none()
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        let watch = self.0;
        let (one, two) = (Some(Version::One), Some(Version::Two));
        let all = [
            ("TCP's pages", watch.sockstat.is_some() && watch.tcp_mem.is_some()),
            ("the machine's memory", watch.meminfo.is_some()),
            ("open files", watch.file_nr.is_some()),
            ("the group's time lost for memory", watch.stalls.is_some() && watch.stalls_of_group),
            ("time lost for memory", watch.stalls.is_some() && !watch.stalls_of_group),
            ("a memory control group of version 1", watch.version == one),
            ("a control group of version 2", watch.version == two),
        ];
        all.into_iter().filter_map(|(name, there)| there.then_some(name))
    }
}

impl fmt::Display for Sources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        for (number, name) in self.names().enumerate() {
            f.write_str(if number == 0 { "" } else { ", " })?;
            f.write_str(name)?;
        }
        match &self.0.own {
            Some(own) => write!(f, " ({})", own.display()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_less_the_cache_of_files() {
        let one = "inactive_file 1\nactive_file 1\nmapped_file 1\ntotal_inactive_file 70\n\
                   total_active_file 40\ntotal_mapped_file 10\n";
        let two = "anon 5\ninactive_file 70\nactive_file 40\nfile_mapped 10\nslab_reclaimable 99\n";
        assert_eq!((reclaimable(one), reclaimable(two), reclaimable("")), (100, 100, 0));
        assert_eq!(reclaimable("file_mapped 3\ninactive_file 1\n"), 0);
        let usage = Usage { used: 120, limit: 200, reclaimable: 100 };
        assert_eq!((usage.held(), usage.room()), (20, 180));
    }

    #[test]
    fn the_tighter_of_two_is_taken() {
        let usage = |used, limit| Usage { used, limit, reclaimable: 0 };
        let small = usage(60 << 20, 64 << 20);
        let large = usage((100 << 30) - (300 << 20), 100 << 30);
        for (one, other, expected) in [
            (usage(50, 100), usage(60, 100), usage(60, 100)),
            // 4 of 64 MiB are more to their group than 100 of 4096 MiB.
            (small, usage(3996 << 20, 4096 << 20), usage(3996 << 20, 4096 << 20)),
            // 300 MiB of 100 GiB are as 300 MiB of 6.
            (large, usage(90, 100), large),
            (small, usage(0, 0), usage(0, 0)),
        ] {
            let mut found = Some(one);
            tighten(&mut found, Some(other));
            assert_eq!(found, Some(expected), "{one:?} {other:?}");
            let mut found = Some(other);
            tighten(&mut found, Some(one));
            assert_eq!(found, Some(expected), "{other:?} {one:?}");
            tighten(&mut found, None);
            assert_eq!(found, Some(expected));
        }
    }

    #[cfg(target_os = "linux")]
    mod linux {
        use std::fs;

        use super::*;

        /// Folders with files as a control group has them, removed when dropped.
        struct Folders(PathBuf);

        impl Folders {
            fn new(name: &str, files: &[(&str, &str)]) -> Self {
                let own = format!("plimsoll-watch-{name}-{}", std::process::id());
                let folders = Self(std::env::temp_dir().join(own));
                for (file, text) in files {
                    folders.write(file, text);
                }
                folders
            }

            fn write(&self, file: &str, text: &str) {
                let path = self.0.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }

            fn watch(&self, one: bool) -> Watch {
                Watch::with_groups((one, vec![self.0.join("own"), self.0.clone()]))
            }
        }

        impl Drop for Folders {
            fn drop(&mut self) {
                let _ = fs::remove_dir_all(&self.0);
            }
        }

        #[test]
        fn a_group_of_version_two_is_read() {
            let folders = Folders::new(
                "two",
                &[
                    ("own/memory.max", "max\n"),
                    ("own/memory.high", "1000\n"),
                    ("own/memory.current", "400\n"),
                    ("own/memory.stat", "inactive_file 300\nfile_mapped 0\n"),
                    (
                        "own/memory.events",
                        "low 0\nhigh 9\nmax 8\noom 2\noom_kill 1\noom_group_kill 0\n",
                    ),
                    (
                        "own/memory.pressure",
                        "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\n\
                     full avg10=0.50 avg60=0.00 avg300=0.00 total=3\n",
                    ),
                    ("memory.max", "2000\n"),
                    ("memory.high", "max\n"),
                    ("memory.current", "1900\n"),
                    ("memory.stat", "anon 9\ninactive_file 100\nactive_file 60\nfile_mapped 10\n"),
                ],
            );
            let mut watch = folders.watch(false);
            let readings = watch.read();
            let above = Usage { used: 1900, limit: 2000, reclaimable: 150 };
            assert_eq!(readings.group_memory, Some(above));
            // Less than half is used: its cache is not asked for.
            let high = Usage { used: 400, limit: 1000, reclaimable: 0 };
            assert_eq!(readings.group_high, Some(high));
            assert_eq!((readings.group_oom, readings.group_tcp), (Some(3), None));
            let stalls = MemoryStalls { some: 1.5, full: Some(0.5), of_group: true };
            assert_eq!(readings.stalls, Some(stalls));
            // The files stay open, and what changes in them is seen.
            folders.write("own/memory.max", "500\n");
            let own = Usage { used: 400, limit: 500, reclaimable: 300 };
            let readings = watch.read();
            assert_eq!(readings.group_memory, Some(above), "less room for its limit");
            folders.write("memory.current", "200\n");
            assert_eq!(watch.read().group_memory, Some(own));
            let text = watch.sources().to_string();
            assert!(text.contains("version 2") && text.contains("the group's time"), "{text}");
        }

        #[test]
        fn a_group_of_version_one_is_read() {
            let folders = Folders::new(
                "one",
                &[
                    ("own/memory.limit_in_bytes", "9223372036854771712\n"),
                    ("own/memory.usage_in_bytes", "40\n"),
                    ("own/memory.kmem.tcp.limit_in_bytes", "100\n"),
                    ("own/memory.kmem.tcp.usage_in_bytes", "130\n"),
                    ("own/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
                    ("memory.limit_in_bytes", "1000\n"),
                    ("memory.usage_in_bytes", "40\n"),
                    ("memory.kmem.tcp.limit_in_bytes", "9223372036854771712\n"),
                ],
            );
            let readings = folders.watch(true).read();
            let memory = Usage { used: 40, limit: 1000, reclaimable: 0 };
            let tcp = Usage { used: 130, limit: 100, reclaimable: 0 };
            assert_eq!(readings.group_memory, Some(memory));
            assert_eq!((readings.group_tcp, tcp.room()), (Some(tcp), 0));
            assert_eq!((readings.group_oom, readings.group_high), (Some(4), None));
        }

        #[test]
        fn nonsense_and_nothing_are_none() {
            let folders = Folders::new(
                "nonsense",
                &[
                    ("own/memory.max", "many\n"),
                    ("own/memory.current", "1\n"),
                    ("own/memory.events", "\u{fffd}\n"),
                    ("own/memory.pressure", "some\n"),
                    ("memory.max", "100\n"),
                ],
            );
            let readings = folders.watch(false).read();
            assert_eq!((readings.group_memory, readings.group_high), (None, None));
            assert_eq!((readings.group_oom, readings.stalls), (None, None));
            let mut none = Watch::with_groups((false, Vec::new()));
            assert_eq!(none.read().group_memory, None);
            assert!(!none.sources().to_string().contains("control group"));
        }

        #[test]
        fn the_readings_agree_with_the_other_modules() {
            let mut watch = Watch::open();
            let readings = watch.read();
            let info = crate::meminfo::Meminfo::read().unwrap();
            let memory = readings.system_memory.unwrap();
            assert_eq!(memory.limit, info.total);
            assert!(memory.used > 0 && memory.used < memory.limit);
            let limits = crate::limits::Limits::read();
            let files = readings.files.unwrap();
            assert_eq!(files.limit, limits.files.unwrap().max);
            assert!(files.used > 0);
            let mem = limits.tcp_mem.map(|mem| (mem.min, mem.default, mem.max));
            assert_eq!(readings.tcp.map(|tcp| (tcp.min, tcp.pressure, tcp.max)), mem);
            let group = crate::cgroup::Cgroup::read().unwrap();
            let limit = group.memory.and_then(|memory| memory.limit);
            assert_eq!(readings.group_memory.is_some(), limit.is_some());
            assert!(!watch.sources().is_empty());
            println!("{}: {readings:?}", watch.sources());
        }
    }
}
