//! What the server and the kernel hold.

use std::net::SocketAddrV4;

use plimsoll_kernel::diag::{Filter, State, connections};
use plimsoll_kernel::process;
use plimsoll_kernel::slab::Slabs;
use plimsoll_kernel::sockstat::Sockstat;

use crate::Result;
use crate::server::Server;

/// One look. Bytes, but for the counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reading {
    /// The server's resident memory.
    pub(crate) rss: i64,
    /// Send queues of the server's ends, with the memory around the bytes.
    pub(crate) send: i64,
    /// Receive queues of the server's ends.
    pub(crate) receive: i64,
    /// The server's ends, those included that no process holds any more; without TIME_WAIT.
    pub(crate) sockets: i64,
    /// Orphans of the whole machine.
    pub(crate) orphans: i64,
    /// Pages that TCP of the whole machine has booked: both ends.
    pub(crate) tcp_pages: i64,
    /// Objects of TCP in the slabs of the whole machine: both ends.
    pub(crate) slab: i64,
}

impl Reading {
    pub(crate) fn take(server: &Server) -> Result<Self> {
        let mut reading = Self::of_sockets(server.address)?;
        reading.rss = process::rss(server.pid())? as i64;
        Ok(reading)
    }

    fn of_sockets(server: SocketAddrV4) -> Result<Self> {
        let (mut send, mut receive, mut sockets) = (0, 0, 0);
        connections(&Filter::local(server.port()).with_memory(), |one| {
            if !matches!(one.state, State::Listen | State::TimeWait) {
                sockets += 1;
                if let Some(memory) = &one.memory {
                    send += i64::from(memory.wmem_queued);
                    receive += i64::from(memory.rmem);
                }
            }
        })?;
        let stat = Sockstat::read()?;
        // Only root may read the slabs.
        let slab = Slabs::read().map_or(0, |slabs| {
            ["TCP", "sock_inode_cache"]
                .iter()
                .filter_map(|name| slabs.counting(name))
                .map(|slab| slab.active_bytes() as i64)
                .sum()
        });
        Ok(Self {
            rss: 0,
            send,
            receive,
            sockets,
            orphans: stat.orphans as i64,
            tcp_pages: stat.memory_pages as i64 * 4096,
            slab,
        })
    }

    /// What has come since an earlier reading.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            rss: self.rss - earlier.rss,
            send: self.send - earlier.send,
            receive: self.receive - earlier.receive,
            sockets: self.sockets - earlier.sockets,
            orphans: self.orphans - earlier.orphans,
            tcp_pages: self.tcp_pages - earlier.tcp_pages,
            slab: self.slab - earlier.slab,
        }
    }
}
