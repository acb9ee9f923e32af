//! What the kernel says about who used a processor, in nanoseconds, from
//! `/proc/PID/task/TID/schedstat`: the time that a thread ran, and the time
//! that it was ready and had to wait (Documentation/scheduler/sched-stats.rst).
//! `/proc/stat` counts in ticks, of which a slice holds fifteen: too coarse.

use std::fs;
use std::io;
use std::time::Duration;

use super::{Failure, Placement, Scenario};
use crate::sys;

/// Where control groups of version 1 say, in nanoseconds, how long each CPU ran any task at all.
const BUSY: [&str; 2] = [
    "/sys/fs/cgroup/cpuacct/cpuacct.usage_percpu",
    "/sys/fs/cgroup/cpu,cpuacct/cpuacct.usage_percpu",
];

/// Whose time is read.
#[derive(Debug)]
pub(super) struct Watch {
    others: Others,
    /// `ksoftirqd/N` of the CPUs in use: network work that the kernel charges
    /// to nobody, and so not to be mistaken for another process.
    soft: Vec<u32>,
}

/// How it is known what other processes ran.
#[derive(Debug)]
enum Others {
    /// Generator and server share a CPU, and one of them always has something to do: what neither
    /// they nor the soft interrupts used went to others.
    Rest,
    /// The generator spins on its CPU, and so shows who took it; of the server's CPU the kernel
    /// says how long it was busy. Where it does not, the server, alone on its CPU, shows how long
    /// others made it wait: too much if it has several threads, which wait for each other.
    Spin(Option<Busy>),
    /// Generator and server share a CPU that idles in between: the kernel says how long it was
    /// busy.
    Busy(Busy),
    /// As `Busy`, on a kernel that does not say it.
    Unknown,
}

/// Where the time for which a CPU ran anything is read.
#[derive(Clone, Copy, Debug)]
struct Busy {
    path: &'static str,
    cpu: usize,
}

/// Counters at one moment; only differences mean anything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    server: Time,
    soft: Time,
    own: Time,
    /// Nanoseconds for which the server's CPU ran anything; 0 where it is not known or not needed.
    busy: u64,
}

/// Nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Time {
    ran: u64,
    waited: u64,
}

/// What happened between two readings, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spent {
    /// By the server's threads.
    pub(super) server: u64,
    /// By the soft-interrupt threads of the CPUs in use.
    pub(super) soft: u64,
    /// By anybody else, where it was in our way; `None` where the kernel does not say.
    pub(super) foreign: Option<u64>,
}

impl Watch {
    /// Finds the soft-interrupt threads of the CPUs in use.
    pub(super) fn new(
        scenario: &Scenario,
        server_cpu: usize,
        client_cpu: usize,
    ) -> Result<Self, Failure> {
        let others = match (scenario.placement, scenario.rate) {
            (Placement::TwoCores, _) => Others::Spin(Busy::find(server_cpu)),
            (Placement::OneCore, None) => Others::Rest,
            (Placement::OneCore, Some(_)) => {
                Busy::find(server_cpu).map_or(Others::Unknown, Others::Busy)
            }
        };
        let names = [server_cpu, client_cpu].map(|cpu| format!("ksoftirqd/{cpu}"));
        let mut soft = Vec::new();
        let listing = fs::read_dir("/proc")
            .map_err(|error| Failure::Machine(format!("cannot list /proc: {error}")))?;
        for entry in listing.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A process may end while we look: then it is none of these.
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if names.iter().any(|name| name == comm.trim_end()) {
                soft.push(pid);
            }
        }
        Ok(Self { others, soft })
    }

    /// Costs some tens of microseconds.
    pub(super) fn read(&self, server: u32) -> Result<Reading, Failure> {
        let process = |pid| {
            process_time(pid).map_err(|error| {
                Failure::Machine(format!(
                    "cannot read /proc/{pid}/task/*/schedstat: {error}; the process has ended, or \
                     the kernel was built without CONFIG_SCHED_INFO"
                ))
            })
        };
        let mut soft = Time::default();
        for pid in &self.soft {
            soft.ran += process(*pid)?.ran;
        }
        let own = thread_time(&format!("/proc/self/task/{}/schedstat", sys::thread_id()))
            .map_err(|error| Failure::Machine(format!("cannot read our own time: {error}")))?;
        let busy = match self.others {
            Others::Busy(busy) | Others::Spin(Some(busy)) => busy
                .read()
                .map_err(|error| Failure::Machine(format!("cannot read {}: {error}", busy.path)))?,
            Others::Rest | Others::Spin(None) | Others::Unknown => 0,
        };
        Ok(Reading { server: process(server)?, soft, own, busy })
    }

    /// What happened between two readings that enclose a slice which took `elapsed`.
    pub(super) fn spent(&self, before: Reading, after: Reading, elapsed: Duration) -> Spent {
        let server = after.server.ran.saturating_sub(before.server.ran);
        let soft = after.soft.ran - before.soft.ran;
        let own = after.own.ran - before.own.ran;
        let elapsed = elapsed.as_nanos() as u64;
        let waited = after.server.waited.saturating_sub(before.server.waited);
        let beside = (after.busy - before.busy).saturating_sub(server);
        let foreign = match self.others {
            Others::Rest => Some(elapsed.saturating_sub(server + own + soft)),
            Others::Spin(busy) => {
                let on_server = if busy.is_some() { beside } else { waited };
                Some((elapsed.saturating_sub(own) + on_server).saturating_sub(soft))
            }
            Others::Busy(_) => Some(beside.saturating_sub(own + soft)),
            Others::Unknown => None,
        };
        Spent { server, soft, foreign }
    }
}

/// The time of all threads of a process. A thread that ends takes its time
/// with it; servers that are compared here start none while loaded.
fn process_time(pid: u32) -> io::Result<Time> {
    let mut sum = Time::default();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let time = thread_time(&thread?.path().join("schedstat").to_string_lossy())?;
        sum.ran += time.ran;
        sum.waited += time.waited;
    }
    Ok(sum)
}

fn thread_time(path: &str) -> io::Result<Time> {
    let text = fs::read_to_string(path)?;
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(ran)), Some(Ok(waited))) => Ok(Time { ran, waited }),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

impl Busy {
    /// `None` where the kernel does not say.
    fn find(cpu: usize) -> Option<Self> {
        BUSY.into_iter().map(|path| Self { path, cpu }).find(|busy| busy.read().is_ok())
    }

    fn read(self) -> io::Result<u64> {
        let text = fs::read_to_string(self.path)?;
        let number = text.split_ascii_whitespace().nth(self.cpu).map(str::parse);
        number.and_then(Result::ok).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}
