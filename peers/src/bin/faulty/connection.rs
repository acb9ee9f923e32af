//! One connection: its socket, what was received and not yet answered, what is still to be sent.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{Sender, channel};
use std::thread::Builder;
use std::time::Instant;

use plimsoll_peers::sys;

/// Stack of a thread that only waits.
const STACK_BYTES: usize = 64 * 1024;

/// A connection that is served.
pub(crate) struct Connection {
    socket: TcpStream,
    /// Tells this connection from an earlier one with the same descriptor.
    pub(crate) serial: u64,
    /// When something was last received; at first, when it was accepted.
    pub(crate) heard: Instant,
    /// Received bytes of a message that is not whole yet.
    pub(crate) received: Vec<u8>,
    /// Replies so far, counted when their message has come.
    pub(crate) replies: u64,
    /// The last reply has been decided on: what comes now is dropped, and the connection
    /// is shut down once everything is sent.
    pub(crate) is_last_reply: bool,
    /// Replies that wait for their time.
    pub(crate) waiting: u32,
    unsent: Vec<u8>,
    shut: bool,
    /// Whether the socket is watched for room to send in.
    pub(crate) watched_for_room: bool,
    _memory: Vec<u8>,
    /// Ends the connection's thread when dropped.
    _thread: Option<Sender<()>>,
}

impl Connection {
    /// # Errors
    /// `EAGAIN` when no thread can be had for it.
    pub(crate) fn new(
        socket: OwnedFd,
        serial: u64,
        memory_bytes: usize,
        with_thread: bool,
    ) -> io::Result<Self> {
        let thread = if with_thread { Some(start_thread()?) } else { None };
        Ok(Self {
            socket: socket.into(),
            serial,
            heard: Instant::now(),
            received: Vec::new(),
            replies: 0,
            is_last_reply: false,
            waiting: 0,
            unsent: Vec::new(),
            shut: false,
            watched_for_room: false,
            _memory: touched(memory_bytes),
            _thread: thread,
        })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Receives once. `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; else what ended the connection.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = sys::recv(self.fd(), buffer)?;
        if count > 0 {
            self.heard = Instant::now();
        }
        Ok(count)
    }

    /// Adds to what is to be sent.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
    }

    /// Sends as much as the kernel takes, and shuts the connection down after its last
    /// reply. Returns whether something is left.
    ///
    /// # Errors
    /// What ended the connection.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        while !self.unsent.is_empty() {
            match sys::send(self.fd(), &self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        if self.is_last_reply && self.waiting == 0 && !self.shut {
            // What the client has sent meanwhile is read and dropped until it closes: a
            // close with unread bytes would reset the connection and may destroy the reply.
            self.shut = true;
            self.socket.shutdown(Shutdown::Write)?;
        }
        Ok(false)
    }
}

/// Memory that the kernel has to provide: zeroed pages alone would not be.
fn touched(bytes: usize) -> Vec<u8> {
    let mut memory = vec![0; bytes];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    memory
}

/// A thread that does nothing until its sender is dropped.
fn start_thread() -> io::Result<Sender<()>> {
    let (sender, receiver) = channel::<()>();
    Builder::new().stack_size(STACK_BYTES).spawn(move || {
        // The sender is never used, only dropped: this ends with an error then.
        let _ = receiver.recv();
    })?;
    Ok(sender)
}
