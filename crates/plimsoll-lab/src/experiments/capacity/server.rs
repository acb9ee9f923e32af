//! The server's side: what can be seen of it from outside.

use std::net::SocketAddr;
use std::time::Duration;

use plimsoll_kernel::diag::{self, Listener};
use plimsoll_kernel::limits::Limits;
use plimsoll_kernel::process;

use crate::embedded::Embedded;
use crate::observe::family;
use crate::{Error, Result};

/// The server that is measured.
pub(super) struct Server {
    embedded: Option<Embedded>,
    pub(super) address: SocketAddr,
    pub(super) pid: Option<u32>,
}

/// Descriptors of the process that has most of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptors {
    pub(super) used: u64,
    pub(super) limit: u64,
}

impl Descriptors {
    /// Whether there is no more room. Servers keep a few for themselves.
    pub(super) fn exhausted(self) -> bool {
        self.used + 4 + self.limit / 256 >= self.limit
    }
}

impl Server {
    pub(super) fn embedded(server: Embedded) -> Self {
        let (address, pid) = (server.address(), Some(server.pid()));
        Self { embedded: Some(server), address, pid }
    }

    pub(super) fn running(address: SocketAddr, pid: Option<u32>) -> Result<Self> {
        if let Some(pid) = pid {
            process::rss(pid).map_err(|error| {
                Error::usage(
                    format!("process {pid} cannot be looked at: {error}"),
                    "give the server's process with --server-pid, as its user or as root",
                )
            })?;
        }
        Ok(Self { embedded: None, address, pid })
    }

    /// Stops it if it is ours.
    pub(super) fn end(self) {
        if let Some(server) = self.embedded {
            server.stop();
        }
    }

    /// The accept queue; `None` when the server is not on this machine.
    pub(super) fn queue(&self) -> Option<Listener> {
        diag::listener(self.address).ok().flatten()
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<String> {
        if let Some(server) = &mut self.embedded {
            let status = server.ended()?;
            let last = server.last_lines().last().cloned().unwrap_or_default();
            return Some(format!("the embedded server ended with {status}: {last}"));
        }
        let pid = self.pid?;
        process::rss(pid).is_err().then(|| format!("the server's process {pid} has ended"))
    }

    /// Its resident memory, its children's with it.
    pub(super) fn rss(&self) -> Option<u64> {
        family::rss(self.pid?)
    }

    /// Its processor time, its children's with it.
    pub(super) fn cpu(&self) -> Option<Duration> {
        family::cpu_time(self.pid?)
    }

    /// The descriptors of whichever of its processes has most.
    pub(super) fn descriptors(&self) -> Option<Descriptors> {
        let most = family::members(self.pid?)
            .filter_map(|pid| Some((process::descriptors(pid).ok()?, pid)))
            .max()?;
        let limit = Limits::of(most.1).ok()?.nofile?.soft;
        Some(Descriptors { used: most.0, limit })
    }
}
