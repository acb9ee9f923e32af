//! What a machine has only so much of: descriptors, files, kernel memory, lockable pages.

use super::SimReport;
use super::faults::errno;
use super::kernel::Kernel;
use super::socket::SocketId;

/// What is in use.
#[derive(Debug, Default)]
pub(super) struct Resources {
    pub(super) descriptors: u32,
    pub(super) files: u32,
    pub(super) pool_bytes: u64,
    pub(super) pool_high_water: u64,
    pub(super) pinned_bytes: u64,
}

/// What one socket, or one operation, has of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Charge {
    pub(super) pool: u32,
    pub(super) pinned: u32,
}

/// Whose file a socket is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Opened {
    /// Nobody's: queued, or closed.
    #[default]
    No,
    /// A peer's: it counts among the system's.
    ByPeer,
    /// The drivers' process': it counts there too.
    ByDriver,
}

impl Kernel {
    /// Whether one more socket may be opened: else the code. A peer is of another process.
    pub(super) fn may_open(&self, opened: Opened) -> Result<(), i32> {
        let system = &self.options.system;
        if opened == Opened::ByDriver && self.resources.descriptors >= system.descriptors {
            return Err(errno::EMFILE);
        }
        if self.resources.files >= system.files {
            return Err(errno::ENFILE);
        }
        Ok(())
    }

    /// The socket becomes a file, of a process.
    pub(super) fn open_file(&mut self, id: SocketId, opened: Opened) {
        let Some(socket) = self.sockets.find(id) else { return };
        debug_assert_eq!(socket.opened, Opened::No);
        socket.opened = opened;
        self.resources.files += 1;
        self.resources.descriptors += u32::from(opened == Opened::ByDriver);
    }

    /// The socket's file is closed: by its process, whatever the kernel still has to do.
    pub(super) fn close_file(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.find(id) else { return };
        let opened = std::mem::take(&mut socket.opened);
        self.resources.files -= u32::from(opened != Opened::No);
        self.resources.descriptors -= u32::from(opened == Opened::ByDriver);
    }

    /// Takes kernel memory, and locks pages; with ENOBUFS where there is none, and takes nothing.
    pub(super) fn charge(&mut self, charge: Charge) -> Result<(), i32> {
        let system = &self.options.system;
        let resources = &mut self.resources;
        let pool = resources.pool_bytes + u64::from(charge.pool);
        let pinned = resources.pinned_bytes + u64::from(charge.pinned);
        if pool > system.pool.bytes || pinned > system.pinned_bytes {
            return Err(errno::ENOBUFS);
        }
        (resources.pool_bytes, resources.pinned_bytes) = (pool, pinned);
        resources.pool_high_water = resources.pool_high_water.max(pool);
        Ok(())
    }

    /// Gives it back.
    pub(super) fn refund(&mut self, charge: Charge) {
        self.resources.pool_bytes -= u64::from(charge.pool);
        self.resources.pinned_bytes -= u64::from(charge.pinned);
    }

    /// What it holds, and what has happened.
    pub(super) fn report(&self) -> SimReport {
        let (sockets, orphans) = self.sockets.count();
        SimReport {
            sockets,
            orphans,
            queued: self.listeners.iter().flatten().map(|listener| listener.queue.len()).sum(),
            dropped_syns: self.dropped_syns,
            events: self.events_done,
            completions: self.trace.completions,
            stale_completions: self.stale_completions,
            faults: self.faults.struck,
            descriptors: self.resources.descriptors,
            files: self.resources.files,
            pool_bytes: self.resources.pool_bytes,
            pool_high_water: self.resources.pool_high_water,
            pinned_bytes: self.resources.pinned_bytes,
        }
    }
}
