//! Simulated clients and servers, for tests to drive.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::faults::failure;
use super::kernel::{Dropped, Kernel};
use super::resources::Opened;
use super::socket::{Readable, SocketId, Stage, Writable};
use crate::driver::Failure;

/// What a peer's read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimRead {
    /// Nothing is there yet.
    Nothing,
    /// So many bytes.
    Bytes(usize),
    /// The other end has ended its stream.
    End,
    /// The connection has failed, mostly by a reset; told once, then it looks like an end.
    Failed(Failure),
}

/// One end of a simulated connection that a test drives by hand. Nothing blocks: time passes in
/// the waits of the drivers, or by [`SimKernel::advance`](super::SimKernel::advance).
///
/// Dropping it closes it, orderly; one that is kept and never read is a slow reader.
pub struct SimPeer {
    kernel: Rc<RefCell<Kernel>>,
    id: SocketId,
    address: SocketAddr,
}

impl SimPeer {
    pub(super) fn new(kernel: Rc<RefCell<Kernel>>, id: SocketId, address: SocketAddr) -> Self {
        Self { kernel, id, address }
    }

    /// Its own address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `None` while it is connecting; then whether it is connected, or why it is not.
    pub fn connected(&self) -> Option<Result<(), Failure>> {
        let mut kernel = self.kernel.borrow_mut();
        kernel.run();
        match kernel.sockets.find(self.id)?.stage {
            Stage::Connecting { .. } => None,
            Stage::Established => Some(Ok(())),
            Stage::Failed(code) => Some(Err(failure(code))),
        }
    }

    /// Writes as many of the bytes as there is room for; 0 when there is none, and while
    /// connecting.
    ///
    /// # Errors
    ///
    /// `ECONNRESET` or `EPIPE` when the connection was reset, or this direction was shut.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, Failure> {
        let mut kernel = self.kernel.borrow_mut();
        kernel.run();
        let room = kernel.options.send_buffer_bytes as usize;
        let Some(socket) = kernel.sockets.find(self.id) else { return Ok(0) };
        match socket.stage {
            Stage::Connecting { .. } => return Ok(0),
            Stage::Failed(code) => return Err(failure(code)),
            Stage::Established => {}
        }
        match socket.writable(room) {
            Writable::Room(room) => {
                let taken = room.min(bytes.len());
                socket.outgoing.end().extend_from_slice(&bytes[..taken]);
                kernel.kick(self.id);
                Ok(taken)
            }
            Writable::NotYet => Ok(0),
            Writable::Error(code) => Err(failure(code)),
        }
    }

    /// Reads what is there, at most as much as fits.
    pub fn read(&mut self, into: &mut [u8]) -> SimRead {
        let mut kernel = self.kernel.borrow_mut();
        kernel.run();
        let Some(socket) = kernel.sockets.find(self.id) else { return SimRead::End };
        match socket.stage {
            Stage::Connecting { .. } => return SimRead::Nothing,
            Stage::Failed(code) => return SimRead::Failed(failure(code)),
            Stage::Established => {}
        }
        match socket.readable() {
            Readable::Bytes(there) => {
                let len = there.min(into.len());
                into[..len].copy_from_slice(socket.incoming.front(len));
                socket.incoming.consume(len);
                kernel.has_read(self.id);
                SimRead::Bytes(len)
            }
            Readable::End => SimRead::End,
            Readable::Error(code) => SimRead::Failed(failure(code)),
            Readable::NotYet => SimRead::Nothing,
        }
    }

    /// Ends its direction of the stream, after what was written.
    pub fn shutdown_write(&mut self) {
        self.kernel.borrow_mut().shut(self.id);
    }

    /// Closes, orderly: what was written is still delivered.
    pub fn close(self) {
        // By the drop.
    }

    /// Goes from the network without a word: no end of stream and no reset ever comes, and nothing
    /// that is sent to it is acknowledged. Who sends to it fails with a time-out after
    /// [`SimSystem::retransmits`](super::SimSystem::retransmits); who does not never notices.
    pub fn vanish(self) {
        // The drop that follows finds an orphan.
        self.kernel.borrow_mut().vanish(self.id);
    }

    /// Closes with a reset: what was written and has not arrived is gone.
    pub fn reset(self) {
        // The drop that follows finds no socket any more.
        self.kernel.borrow_mut().abort(self.id);
    }
}

impl Drop for SimPeer {
    fn drop(&mut self) {
        // Borrowed only where a panic unwinds through the kernel: then it does not matter.
        if let Ok(mut kernel) = self.kernel.try_borrow_mut()
            && kernel.sockets.find(self.id).is_some_and(|socket| !socket.vanished)
        {
            kernel.close(self.id);
        }
    }
}

impl fmt::Debug for SimPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimPeer").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A listening peer, for drivers that connect. Dropping it closes it and resets what is queued.
pub struct SimPeerListener {
    kernel: Rc<RefCell<Kernel>>,
    at: usize,
    address: SocketAddr,
}

impl SimPeerListener {
    pub(super) fn new(kernel: Rc<RefCell<Kernel>>, at: usize, address: SocketAddr) -> Self {
        Self { kernel, at, address }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection and where it comes from; `None` when there is none now.
    pub fn accept(&mut self) -> Option<(SimPeer, SocketAddr)> {
        let mut kernel = self.kernel.borrow_mut();
        kernel.run();
        kernel.may_open(Opened::ByPeer).ok()?;
        let id = kernel.listeners[self.at].as_mut()?.queue.pop_front()?;
        kernel.open_file(id, Opened::ByPeer);
        let socket = kernel.sockets.find(id)?;
        socket.owner = super::socket::Owner::Nobody;
        let (local, remote) = (socket.local, socket.remote);
        Some((SimPeer::new(self.kernel.clone(), id, local), remote))
    }
}

impl Drop for SimPeerListener {
    fn drop(&mut self) {
        if let Ok(mut kernel) = self.kernel.try_borrow_mut() {
            kernel.close_listener(self.at);
        }
    }
}

impl fmt::Debug for SimPeerListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimPeerListener").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A listener for a driver: given to [`Driver::listen`](crate::driver::Driver::listen).
#[derive(Debug)]
pub struct SimListener {
    pub(super) at: usize,
    pub(super) address: SocketAddr,
}

impl SimListener {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A connection on its way from one simulated driver to another of the same kernel. Dropping it
/// closes it at the kernel's next step.
#[derive(Debug)]
pub struct SimSocket {
    id: Option<SocketId>,
    dropped: Arc<Dropped>,
}

impl SimSocket {
    pub(super) fn new(id: SocketId, dropped: Arc<Dropped>) -> Self {
        Self { id: Some(id), dropped }
    }

    /// Takes the socket out of its wrapper; panics where it belongs to another kernel.
    pub(super) fn take(mut self, kernel: &Kernel) -> Option<SocketId> {
        assert!(
            Arc::ptr_eq(&self.dropped, &kernel.dropped),
            "a socket of another simulated kernel was given to adopt"
        );
        self.id.take()
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.dropped.push(id);
        }
    }
}
