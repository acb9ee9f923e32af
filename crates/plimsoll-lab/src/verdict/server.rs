//! The server's side: its end, its pause, its control group, its descriptors, its CPU.

use std::fmt::Write as _;

use super::{Stop, words};
use crate::observe::{Ended, How, Process, Snapshot};
use crate::results::{Side, StoppedBy};

/// The server has ended, or one of its processes has been ended by a signal.
pub fn ended(end: &Ended, established: u64) -> Stop {
    let name = end.name.as_deref().map_or_else(String::new, |name| format!(" ({name})"));
    let who = if end.is_main {
        format!("the server's process {}{name}", end.pid)
    } else {
        format!("process {} of the server{name}", end.pid)
    };
    let how = match end.how {
        Some(How::Signal(number)) => format!("was ended by {}", signal(number)),
        Some(How::Code(code)) => format!("ended with exit code {code}"),
        None => "is gone".to_owned(),
    };
    let mut text = format!("after {established} connections {who} {how}");
    if let Some(kills) = end.oom_kills.filter(|kills| *kills > 0) {
        let _ = write!(text, "; its control group ran out of memory: oom_kill +{kills}");
    }
    if let Some(line) = &end.last_line {
        let _ = write!(text, "; its last line was: {line}");
    }
    Stop::new(StoppedBy::ServerEnded, Side::Server, text)
}

/// The name of a signal that ends processes, with its number.
fn signal(number: i32) -> String {
    let names = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (13, "SIGPIPE"),
        (15, "SIGTERM"),
        (24, "SIGXCPU"),
        (31, "SIGSYS"),
    ];
    match names.iter().find(|(known, _)| *known == number) {
        Some((_, name)) => format!("{name} (signal {number})"),
        None => format!("signal {number}"),
    }
}

/// A process of the server that is stopped now, by a signal or by a debugger.
pub fn paused(now: &Snapshot) -> Option<&Process> {
    let processes = &now.server.as_ref()?.processes;
    processes.iter().find(|one| one.state.is_some_and(plimsoll_kernel::process::State::is_paused))
}

/// The sentence about a process that is paused.
pub fn paused_text(process: &Process) -> String {
    let letter = process.state.map_or('T', plimsoll_kernel::process::State::letter);
    format!("the server's process {} is stopped (state {letter})", process.pid)
}

/// Something that the server's control group has counted since `before`: a kill, processes refused,
/// memory at its limit. `None` where nothing of this binds.
pub fn group(before: &Snapshot, now: &Snapshot) -> Option<Stop> {
    let (then, group) = (before.server_group.as_ref()?, now.server_group.as_ref()?);
    let grown = |now: Option<u64>, then: Option<u64>| Some(now?.saturating_sub(then?));
    let kills = grown(group.oom_kills, then.oom_kills).filter(|kills| *kills > 0);
    let hits = grown(group.memory_limit_hits, then.memory_limit_hits);
    let memory = group.memory_held().zip(group.memory.as_ref());
    let is_at_its_limit = memory.is_some_and(|((held, limit), _)| held + limit / 50 >= limit);
    let waits = group.under_oom == Some(true);
    if kills.is_some() || waits || (is_at_its_limit && hits.is_some_and(|hits| hits > 0)) {
        let mut text = match memory {
            Some(((held, limit), bound)) => format!(
                "the server's control group {} holds {} of its {} MiB of memory, and met that limit \
                 {} times meanwhile",
                bound.group.display(),
                held >> 20,
                limit >> 20,
                words(hits)
            ),
            None => "the server's control group ran out of memory".to_owned(),
        };
        if let Some(kills) = kills {
            let _ = write!(text, "; processes of it were killed: oom_kill +{kills}");
        }
        if waits {
            text.push_str("; processes of it wait for memory now (under_oom)");
        }
        return Some(Stop::new(StoppedBy::Cgroup, Side::Server, text));
    }
    let refused = grown(group.pids_refused, then.pids_refused).filter(|count| *count > 0)?;
    let bound = group.pids.as_ref()?;
    Some(Stop::new(
        StoppedBy::Pids,
        Side::Server,
        format!(
            "the server's control group {} has {} of pids.max {} processes and threads, and refused \
             {refused} more meanwhile (pids.events)",
            bound.group.display(),
            bound.current,
            words(bound.limit)
        ),
    ))
}

/// The process of the server that has no descriptors left. Servers keep a few for themselves.
pub fn out_of_descriptors(now: &Snapshot) -> Option<Stop> {
    let process = now.server.as_ref()?.shortest_of_descriptors()?;
    let (used, limit) = (process.descriptors?, process.descriptors_limit?);
    (used + 4 + limit / 256 >= limit).then(|| {
        Stop::new(
            StoppedBy::Descriptors,
            Side::Server,
            format!(
                "the server's process {} has {used} descriptors open of RLIMIT_NOFILE {limit}",
                process.pid
            ),
        )
    })
}

/// Descriptors of the server, where they are known, as the end of a sentence.
pub fn descriptors_left(now: &Snapshot) -> String {
    let process = now.server.as_ref().and_then(|family| family.shortest_of_descriptors());
    match process.and_then(|one| one.descriptors.zip(one.descriptors_limit)) {
        Some((used, limit)) => format!(", with {used} of {limit} descriptors in use"),
        None => String::new(),
    }
}

/// What the busiest process of a server did between two moments.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Busy {
    /// The process.
    pub pid: u32,
    /// How many cores it used, on average.
    pub cores: f64,
    /// How many of its threads were ready to run and had no core, on average; `None` where the kernel
    /// does not count it.
    pub waiting: Option<f64>,
}

impl Busy {
    /// Whether it could not have done more: one core full, the time that it had to wait for one
    /// counted as used.
    pub fn is_full(self) -> bool {
        self.cores + self.waiting.unwrap_or(0.0).min(1.0) >= 0.9 && self.cores >= 0.3
    }

    /// In words: `used 0.98 of a core`.
    pub fn text(self) -> String {
        let waiting = match self.waiting {
            Some(waiting) if waiting >= 0.05 => {
                format!(" and waited for one {waiting:.2} of the time")
            }
            _ => String::new(),
        };
        format!("used {:.2} of a core{waiting}", self.cores)
    }
}

/// The process of the server that used most CPU time from `before` to `now`; `None` where none is
/// known, or no time has passed.
pub fn busiest(before: &Snapshot, now: &Snapshot) -> Option<Busy> {
    let elapsed = now.since(before).as_secs_f64();
    if elapsed <= 0.0 {
        return None;
    }
    let (then, family) = (before.server.as_ref()?, now.server.as_ref()?);
    let each = family.processes.iter().filter_map(|one| {
        let earlier = then.processes.iter().find(|other| other.pid == one.pid);
        // A process that has been started meanwhile has used nothing before.
        let (cpu, delay) = match earlier {
            Some(earlier) => (earlier.cpu?, earlier.run_delay),
            None => Default::default(),
        };
        let delay = one.run_delay.and_then(|now| now.checked_sub(delay.unwrap_or_default()));
        Some(Busy {
            pid: one.pid,
            cores: one.cpu?.checked_sub(cpu)?.as_secs_f64() / elapsed,
            waiting: delay.map(|delay| delay.as_secs_f64() / elapsed),
        })
    });
    each.max_by(|one, other| one.cores.total_cmp(&other.cores))
}
