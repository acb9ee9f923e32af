//! What is read of the server and of the kernel while a load runs.

use std::net::SocketAddr;
use std::time::Duration;

use plimsoll_kernel::process::State;
use plimsoll_kernel::sockstat::Sockstat;

use crate::Result;
use crate::observe::threads::{self, Usage};
use crate::observe::{Depth, Ended, Process, Server, Snapshot};
use crate::verdict::load::{Core, Counted};

/// The server, and the kernel's counters from before the first connect on.
pub(super) struct Watched {
    server: Server,
    before_connects: Snapshot,
    begun: Option<Reading>,
    ended: Option<Reading>,
    /// The most pages that TCP's memory had when it was looked at.
    tcp_pages: Option<u64>,
}

/// All that is read at one moment.
struct Reading {
    snapshot: Snapshot,
    threads: Vec<(u32, Usage)>,
}

impl Watched {
    /// The server behind `target`: the process that is given, or the one that holds the listener,
    /// where that can be seen.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`](crate::Error::Usage) where the given process cannot be looked at.
    pub(super) fn new(target: SocketAddr, pid: Option<u32>) -> Result<Self> {
        let server = Server::running(target, pid)?;
        let before_connects = server.snapshot(Depth::Quick);
        Ok(Self { server, before_connects, begun: None, ended: None, tcp_pages: None })
    }

    fn read(&self) -> Reading {
        let snapshot = self.server.snapshot(Depth::Quick);
        let processes = snapshot.server.iter().flat_map(|family| &family.processes);
        let threads = threads::of_processes(processes.map(|process| process.pid));
        Reading { snapshot, threads }
    }

    /// The measured time begins.
    pub(super) fn begin(&mut self) {
        self.begun = Some(self.read());
        self.server.watch();
    }

    /// The measured time ends.
    pub(super) fn end(&mut self) {
        self.ended = Some(self.read());
    }

    /// Whether the measured time has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// Whether the measured time has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Looks at what changes: the pages of TCP's memory. Some 20 µs.
    pub(super) fn sample(&mut self) {
        let pages = Sockstat::read().ok().map(|now| now.memory_pages);
        self.tcp_pages = self.tcp_pages.max(pages);
    }

    /// How the server ended, or one of its processes, where one has.
    pub(super) fn server_ended(&mut self) -> Option<Ended> {
        self.server.ended()
    }

    /// Whether one of the server's processes is stopped now, by a signal or a debugger.
    pub(super) fn is_paused(&self) -> bool {
        let paused = |process: &Process| process.state.is_some_and(State::is_paused);
        self.server.family(Depth::Quick).is_some_and(|family| family.processes.iter().any(paused))
    }

    /// Processors that the server used in the measured time, on average.
    pub(super) fn cores(&self) -> Option<f64> {
        let (begun, ended) = (self.begun.as_ref()?, self.ended.as_ref()?);
        ended.snapshot.server_cores(&begun.snapshot)
    }

    /// The share of a core of its busiest thread.
    pub(super) fn core(&self) -> Option<Core> {
        let (begun, ended) = (self.begun.as_ref()?, self.ended.as_ref()?);
        let seconds = ended.snapshot.since(&begun.snapshot).as_secs_f64();
        let usage = threads::busiest(&begun.threads, &ended.threads)?;
        Some(core(usage, seconds))
    }

    /// What the kernel counted.
    pub(super) fn counted(&self) -> Counted {
        let readings = self.begun.as_ref().zip(self.ended.as_ref());
        let grown = |name: &str| {
            readings.and_then(|(begun, ended)| ended.snapshot.grown(&begun.snapshot, name))
        };
        let from_first = |name: &str| {
            self.ended.as_ref().and_then(|ended| ended.snapshot.grown(&self.before_connects, name))
        };
        Counted {
            retransmitted: grown("RetransSegs"),
            memory_pressures: grown("TCPMemoryPressures"),
            pruned: grown("PruneCalled"),
            listen_overflows: from_first("ListenOverflows"),
            tcp_pages: self.tcp_pages,
            tcp_mem: self.before_connects.limits.tcp_mem,
        }
    }
}

/// A thread's usage as shares of a core.
pub(super) fn core(usage: Usage, seconds: f64) -> Core {
    let share = |time: Duration| if seconds > 0.0 { time.as_secs_f64() / seconds } else { 0.0 };
    Core { used: share(usage.cpu), waited: usage.waited.map(share) }
}
