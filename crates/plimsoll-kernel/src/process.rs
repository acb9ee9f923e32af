//! What a process is and what it uses.

mod figures;
mod handle;
mod schedstat;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use crate::source;
use crate::system;
use crate::{Error, Result};

pub use figures::{Figures, State, executable, name, parent};
pub use handle::{Exit, Fate, Handle};
pub use schedstat::Schedstat;

/// One look at a process; the figures are read one after the other.
///
/// Those of another user's process may be hidden: what needs ownership or root
/// is an `Option`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its short name (`/proc/PID/comm`), at most 15 bytes.
    pub name: String,
    /// Its arguments; empty for a thread of the kernel.
    pub command: Vec<String>,
    /// The process that started it.
    pub parent: u32,
    /// Memory it has in RAM, in bytes: see [`rss`].
    pub rss: u64,
    /// CPU time in user space, in steps of 10 ms; threads that ended included.
    pub user: Duration,
    /// CPU time in the kernel, likewise. Work that the kernel does for it in
    /// interrupts is not charged to it reliably.
    pub system: Duration,
    /// CPU time in all, to the nanosecond where the kernel gives it: see [`cpu_time`].
    pub cpu: Duration,
    /// Threads alive.
    pub threads: u64,
    /// Open descriptors; direct descriptors of an `io_uring` are not among them.
    pub descriptors: Option<u64>,
}

impl Process {
    /// Looks at process `pid`. Costs five small files, one walk over its memory
    /// map (10 µs to ms) and, before Linux 6.2, one over its descriptors.
    pub fn of(pid: u32) -> Result<Self> {
        let stat = Stat::read(pid)?;
        let name = source::read_process(pid, "comm")?.trim_end().to_owned();
        let command = source::read_process(pid, "cmdline")?;
        let command = command.split_terminator('\0').map(str::to_owned).collect();
        Ok(Self {
            pid,
            name,
            command,
            parent: stat.parent,
            rss: rss(pid)?,
            user: stat.user,
            system: stat.system,
            cpu: cpu_time(pid)?,
            threads: stat.threads,
            descriptors: descriptors(pid).ok(),
        })
    }

    /// Looks at this process.
    pub fn own() -> Result<Self> {
        Self::of(std::process::id())
    }
}

/// The CPU time of all threads of a process since it started, those that have
/// ended included.
///
/// From the process's CPU clock (`clock_getcpuclockid(3)`): nanoseconds, some
/// 1 µs for few threads, and right for a thread that runs at this moment. Where
/// that is refused, the sum over `/proc/PID/task/*/schedstat` (nanoseconds;
/// threads that have ended are missing), and last `/proc/PID/stat` (10 ms).
pub fn cpu_time(pid: u32) -> Result<Duration> {
    if let Some(time) = system::process_cpu_clock(pid).or_else(|| schedstat(pid)) {
        return Ok(time);
    }
    if cfg!(windows) {
        return Err(Error::NoProcess { pid });
    }
    let stat = Stat::read(pid)?;
    Ok(stat.user + stat.system)
}

/// Resident memory of a process, in bytes: `Rss` of `/proc/PID/smaps_rollup`,
/// which walks the page tables and is exact; 10 µs to ms with the size of the
/// process. Where that is not allowed, the second number of `/proc/PID/statm`,
/// which may be off by some dozen pages per CPU (kernels since 6.2 keep it in
/// per-CPU counters, earlier ones per thread).
///
/// On Windows the working set, exact.
pub fn rss(pid: u32) -> Result<u64> {
    #[cfg(windows)]
    if cfg!(windows) {
        return system::windows::working_set(pid).ok_or(Error::NoProcess { pid });
    }
    let exact = source::read_optional(format!("/proc/{pid}/smaps_rollup"))
        .and_then(|text| source::keyed(&text, "Rss"));
    if let Some(kib) = exact {
        return Ok(kib.saturating_mul(1024));
    }
    let statm = source::read_process(pid, "statm")?;
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
    match (pages, system::page_size()) {
        (Some(pages), Some(bytes)) => Ok(pages.saturating_mul(bytes)),
        _ => Err(Error::malformed(&format!("/proc/{pid}/statm"), format!("`{}`", statm.trim()))),
    }
}

/// Memory of a process that the kernel has pinned for others than its page tables, in bytes: `VmPin`
/// of `/proc/PID/status`, which `io_uring`'s registered buffers count in. Some 10 µs; Linux only.
pub fn pinned(pid: u32) -> Result<u64> {
    let status = source::read_process(pid, "status")?;
    source::keyed(&status, "VmPin")
        .map(|kib| kib.saturating_mul(1024))
        .ok_or_else(|| Error::malformed(&format!("/proc/{pid}/status"), "no `VmPin`"))
}

/// How many descriptors a process has open. Since Linux 6.2 the size of the
/// folder `/proc/PID/fd`, one `stat(2)`; before, a walk over it.
///
/// Direct descriptors of an `io_uring` are no descriptors: they are not counted
/// here, nor by `RLIMIT_NOFILE`'s use, but they are in `fs.file-nr`.
///
/// On Windows its handles, of every kind.
pub fn descriptors(pid: u32) -> Result<u64> {
    #[cfg(windows)]
    if cfg!(windows) {
        return system::windows::handles(pid).ok_or(Error::NoProcess { pid });
    }
    let folder = format!("/proc/{pid}/fd");
    let entries = read_dir(pid, &folder)?;
    match fs::metadata(&folder) {
        Ok(folder) if folder.len() > 0 => Ok(folder.len()),
        _ => Ok(entries.count() as u64),
    }
}

/// The inodes of the sockets a process holds, as
/// [`Listener::inode`](crate::diag::Listener::inode) has them, ascending.
///
/// Sockets held only as direct descriptors of an `io_uring` are not visible here.
/// Costs some 2 µs a descriptor, and the kernel keeps an inode and a dentry for
/// each that was looked at (0.9 KB, reclaimable).
pub fn socket_inodes(pid: u32) -> Result<Vec<u64>> {
    let mut inodes: Vec<u64> = read_dir(pid, &format!("/proc/{pid}/fd"))?
        .flatten()
        .filter_map(|entry| {
            // A descriptor closed meanwhile has no link any more.
            let target = fs::read_link(entry.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect();
    inodes.sort_unstable();
    inodes.dedup();
    Ok(inodes)
}

/// The processes that hold a socket, by its inode, ascending. Walks the
/// descriptors of all processes that it may look at: for a listener or two, not
/// for each connection.
pub fn holders(inode: u64) -> Result<Vec<u32>> {
    holders_of(&BTreeSet::from([inode]))
}

/// The processes that hold one of several sockets, by their inodes, ascending: one
/// walk over the descriptors of all processes that it may look at.
pub fn holders_of(inodes: &BTreeSet<u64>) -> Result<Vec<u32>> {
    let holds =
        |pid| socket_inodes(pid).is_ok_and(|held| held.iter().any(|one| inodes.contains(one)));
    let mut found: Vec<u32> = all()?.into_iter().filter(|pid| holds(*pid)).collect();
    found.sort_unstable();
    Ok(found)
}

/// The children of a process, ascending; by `/proc/PID/task/*/children`, or
/// (without `CONFIG_PROC_CHILDREN`) by asking every process for its parent.
///
/// On Windows by a snapshot of all processes (about 1 ms); one whose parent has ended may name a
/// stranger who was given its number since.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    #[cfg(windows)]
    if cfg!(windows) {
        let all = system::windows::parents().ok_or(Error::NoProcess { pid })?;
        let mut found: Vec<u32> = all
            .into_iter()
            .filter(|(child, parent)| *parent == pid && *child != pid)
            .map(|(child, _)| child)
            .collect();
        found.sort_unstable();
        return Ok(found);
    }
    let folder = format!("/proc/{pid}/task");
    let mut found = Vec::new();
    for entry in read_dir(pid, &folder)?.flatten() {
        match source::read_optional(entry.path().join("children")) {
            Some(text) => found
                .extend(text.split_ascii_whitespace().filter_map(|word| word.parse::<u32>().ok())),
            // The thread has ended, or the file is not there for any.
            None if entry.path().exists() => return children_by_parent(pid),
            None => {}
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn children_by_parent(pid: u32) -> Result<Vec<u32>> {
    let mut found = all()?;
    found.retain(|child| Stat::read(*child).is_ok_and(|stat| stat.parent == pid));
    found.sort_unstable();
    Ok(found)
}

/// All processes that are visible here.
fn all() -> Result<Vec<u32>> {
    let entries = list("/proc")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

fn read_dir(pid: u32, path: &str) -> Result<fs::ReadDir> {
    list(path).map_err(|error| source::gone(pid, error))
}

fn list(path: &str) -> Result<fs::ReadDir> {
    if !cfg!(target_os = "linux") {
        return Err(Error::Unknown { what: path.to_owned() });
    }
    fs::read_dir(path).map_err(|cause| Error::Unreadable {
        path: path.into(),
        cause,
        cure: "run this as root or as the process's owner",
    })
}

/// The time on a processor of all threads that are there.
fn schedstat(pid: u32) -> Option<Duration> {
    let threads = list(&format!("/proc/{pid}/task")).ok()?.flatten();
    threads.map(|thread| Some(Schedstat::of(&thread.path())?.cpu)).sum()
}

/// What is needed of `/proc/PID/stat` (`man 5 proc_pid_stat`).
struct Stat {
    state: char,
    parent: u32,
    user: Duration,
    system: Duration,
    threads: u64,
    /// In ticks since boot.
    started: u64,
    /// As `wait(2)` reports it; 0 for whoever may not see it, and of a process that runs.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "only Linux has descriptors of processes")
    )]
    exit_code: i32,
}

impl Stat {
    fn read(pid: u32) -> Result<Self> {
        let text = source::read_process(pid, "stat")?;
        Self::parse(&text).ok_or_else(|| {
            Error::malformed(&format!("/proc/{pid}/stat"), format!("`{}`", text.trim()))
        })
    }

    fn parse(text: &str) -> Option<Self> {
        // The name stands in parentheses and may hold spaces and parentheses.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Fields count from 1 in the manual; the state, the third, is first here.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = |number| {
            let micros = field(number)?.checked_mul(1_000_000)?;
            Some(Duration::from_micros(micros / system::clock_ticks_per_second()))
        };
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: field(4)?.try_into().ok()?,
            user: ticks(14)?,
            system: ticks(15)?,
            threads: field(20)?,
            started: field(22)?,
            exit_code: fields.get(52 - 3).and_then(|word| word.parse().ok()).unwrap_or(0),
        })
    }

    /// How it ended: of a process that has ended and was not waited for, where it may be seen. The
    /// kernel writes 0 for a process that may not see it, so that 0 says nothing.
    #[cfg(target_os = "linux")]
    fn exit(&self) -> Option<i32> {
        Some(self.exit_code).filter(|code| *code != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b (c)) S 3 7 7 0 -1 0 0 0 0 0 100 50 0 0 20 0 4 0 99";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.parent, stat.threads, stat.started), ('S', 3, 4, 99));
        assert!(stat.user > stat.system);
        for text in ["", "7 (a", "7 (a) S", "7 (a) S x 7 7 0 -1 0 0 0 0 0 100 50 0 0 20 0 4"] {
            assert!(Stat::parse(text).is_none(), "{text}");
        }
    }

    #[cfg(target_os = "linux")]
    mod linux {
        use super::*;
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::MetadataExt;
        use std::time::Instant;

        #[test]
        fn this_process_is_seen() {
            let own = Process::own().unwrap();
            assert!(own.rss > 0 && own.threads >= 1 && own.cpu > Duration::ZERO, "{own:?}");
            assert!(!own.name.is_empty() && !own.command.is_empty());
            assert!(own.descriptors.is_some_and(|open| open >= 3));
        }

        #[test]
        fn cpu_time_moves_in_steps_below_a_millisecond() {
            let pid = std::process::id();
            // Other tests run beside this one: some steps are theirs, and long.
            let deadline = Instant::now() + Duration::from_secs(20);
            let mut before = cpu_time(pid).unwrap();
            loop {
                let now = cpu_time(pid).unwrap();
                let step = now.saturating_sub(before);
                if !step.is_zero() && step < Duration::from_millis(1) {
                    break;
                }
                assert!(Instant::now() < deadline, "the last step was {step:?}");
                before = now;
            }
            assert!(schedstat(pid).unwrap() > Duration::ZERO);
        }

        #[test]
        fn a_sockets_inode_is_held_here() {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let link = format!("/proc/self/fd/{}", listener.as_raw_fd());
            let inode = fs::metadata(link).unwrap().ino();
            let pid = std::process::id();
            assert!(socket_inodes(pid).unwrap().contains(&inode));
            assert!(holders(inode).unwrap().contains(&pid));
        }

        #[test]
        fn a_child_is_seen_and_a_dead_one_named() {
            let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
            let found = children(std::process::id());
            let by_parent = children_by_parent(std::process::id());
            let seen = Process::of(child.id());
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(found.unwrap().contains(&child.id()));
            assert!(by_parent.unwrap().contains(&child.id()));
            assert_eq!(seen.unwrap().parent, std::process::id());
            assert!(matches!(Process::of(child.id()), Err(Error::NoProcess { .. })));
            assert!(matches!(cpu_time(child.id()), Err(Error::NoProcess { .. })));
        }
    }
}
