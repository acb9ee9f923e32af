//! What is read of the server and of the kernel while a load runs.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use plimsoll_kernel::limits::Limits;
use plimsoll_kernel::netstat::Netstat;
use plimsoll_kernel::sockstat::Sockstat;
use plimsoll_kernel::{diag, process};

use crate::observe::family;
use crate::observe::threads::{self, Usage};
use crate::verdict::load::{Core, Counted};

/// The server's process, and the kernel's counters, from before the first connect on.
#[derive(Debug)]
pub(super) struct Watched {
    pid: Option<u32>,
    before_connects: Option<Netstat>,
    begun: Option<Reading>,
    ended: Option<Reading>,
    tcp_pages: Option<u64>,
    was_there: bool,
}

/// All that is read at one moment.
#[derive(Debug)]
struct Reading {
    at: Instant,
    cpu: Option<Duration>,
    threads: Vec<(u32, Usage)>,
    netstat: Option<Netstat>,
}

impl Reading {
    fn of(pid: Option<u32>) -> Self {
        Self {
            at: Instant::now(),
            cpu: pid.and_then(family::cpu_time),
            threads: pid.map(family::members).map(threads::of_processes).unwrap_or_default(),
            netstat: Netstat::read().ok(),
        }
    }
}

impl Watched {
    /// The server behind `target`: the process that is given, or the one that holds the listener,
    /// where that can be seen.
    pub(super) fn new(target: SocketAddr, pid: Option<u32>) -> Self {
        let pid = pid.or_else(|| listens(target));
        Self {
            pid,
            before_connects: Netstat::read().ok(),
            begun: None,
            ended: None,
            tcp_pages: None,
            was_there: pid.is_some_and(|pid| state(pid).is_some()),
        }
    }

    /// The measured time begins.
    pub(super) fn begin(&mut self) {
        self.begun = Some(Reading::of(self.pid));
    }

    /// The measured time ends.
    pub(super) fn end(&mut self) {
        self.ended = Some(Reading::of(self.pid));
    }

    /// Whether the measured time has begun, and ended.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Looks at what changes: the pages of TCP's memory. Some 20 µs.
    pub(super) fn sample(&mut self) {
        let pages = Sockstat::read().ok().map(|now| now.memory_pages);
        self.tcp_pages = self.tcp_pages.max(pages);
    }

    /// How the server's process ended, where it was there and is not any more.
    pub(super) fn process_ended(&self) -> Option<String> {
        let pid = self.pid.filter(|_| self.was_there)?;
        match state(pid) {
            Some('Z' | 'X') | None => Some(format!("the server's process {pid} ended")),
            Some(_) => None,
        }
    }

    /// Whether the server's process is stopped now, by a signal or a debugger.
    pub(super) fn is_paused(&self) -> bool {
        matches!(self.pid.and_then(state), Some('T' | 't'))
    }

    /// Processor time of the server in the measured time, for so many seconds of it.
    pub(super) fn cpu_seconds(&self, measured: f64) -> Option<f64> {
        let (begun, ended) = (self.begun.as_ref()?, self.ended.as_ref()?);
        let cpu = ended.cpu?.saturating_sub(begun.cpu?).as_secs_f64();
        let between = ended.at.duration_since(begun.at).as_secs_f64();
        (between > 0.0).then(|| cpu * measured / between)
    }

    /// The share of a core of its busiest thread.
    pub(super) fn core(&self) -> Option<Core> {
        let (begun, ended) = (self.begun.as_ref()?, self.ended.as_ref()?);
        let seconds = ended.at.duration_since(begun.at).as_secs_f64();
        let usage = threads::busiest(&begun.threads, &ended.threads)?;
        Some(core(usage, seconds))
    }

    /// What the kernel counted.
    pub(super) fn counted(&self) -> Counted {
        let then = self.begun.as_ref().and_then(|reading| reading.netstat.as_ref());
        let now = self.ended.as_ref().and_then(|reading| reading.netstat.as_ref());
        let grown = |then: Option<&Netstat>, name: &str| {
            now?.delta(then?, name).map(|delta| delta.max(0) as u64)
        };
        Counted {
            retransmitted: grown(then, "RetransSegs"),
            memory_pressures: grown(then, "TCPMemoryPressures"),
            pruned: grown(then, "PruneCalled"),
            listen_overflows: grown(self.before_connects.as_ref(), "ListenOverflows"),
            tcp_pages: self.tcp_pages,
            tcp_mem: Limits::read().tcp_mem,
        }
    }
}

/// A thread's usage as shares of a core.
pub(super) fn core(usage: Usage, seconds: f64) -> Core {
    let share = |time: Duration| if seconds > 0.0 { time.as_secs_f64() / seconds } else { 0.0 };
    Core { used: share(usage.cpu), waited: usage.waited.map(share) }
}

/// The process that holds the listener at this address: where several do, the one that the others
/// descend from.
fn listens(target: SocketAddr) -> Option<u32> {
    if !target.ip().to_canonical().is_loopback() {
        return None;
    }
    let listener = diag::listener(target).ok().flatten()?;
    let holders = process::holders(listener.inode.into()).ok()?;
    let parent_of_another = |pid: &u32| {
        process::children(*pid)
            .is_ok_and(|children| children.iter().any(|one| holders.contains(one)))
    };
    holders.iter().copied().find(parent_of_another).or_else(|| holders.first().copied())
}

/// A process' state as `/proc/PID/stat` has it; `None` where there is no such process.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which is in brackets and may hold anything.
    stat.rsplit_once(") ")?.1.chars().next()
}
