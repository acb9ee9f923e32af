//! One end of a simulated connection, and the table of all.

use std::net::SocketAddr;

use super::faults::errno;
use super::resources::{Charge, Opened};

/// Names a socket: a stale one names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SocketId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// Who is told when a socket changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// Nobody: it is polled (a peer), closed, or on its way between two drivers.
    Nobody,
    /// In the accept queue of a listener.
    Queue,
    /// A slot of a driver.
    Slot { driver: u32, slot: u32 },
}

/// Bytes in order: in at the end, out at the start. Keeps its memory.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    bytes: Vec<u8>,
    head: usize,
}

impl Pipe {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.head
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.head = 0;
    }

    /// Where bytes are appended.
    pub(super) fn end(&mut self) -> &mut Vec<u8> {
        if self.head > 0 && self.head * 2 >= self.bytes.len() {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
        &mut self.bytes
    }

    pub(super) fn front(&self, len: usize) -> &[u8] {
        &self.bytes[self.head..self.head + len]
    }

    pub(super) fn consume(&mut self, len: usize) {
        self.head += len;
        debug_assert!(self.head <= self.bytes.len());
        if self.head == self.bytes.len() {
            self.clear();
        }
    }
}

/// What stands between a connect and its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The SYN is on its way, or was dropped: tried so many times before.
    Connecting { attempt: u32 },
    /// Both directions exist, unless [`Socket::dead`].
    Established,
    /// The connect failed, with this code.
    Failed(i32),
}

/// One end of a connection.
#[derive(Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, as in the kernel's struct"
)]
pub(super) struct Socket {
    pub(super) id: SocketId,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) stage: Stage,
    pub(super) owner: Owner,
    /// The other end, as long as its name is not stale.
    pub(super) other: Option<SocketId>,
    /// Sent, and not arrived.
    pub(super) outgoing: Pipe,
    /// Arrived, and not read.
    pub(super) incoming: Pipe,
    /// Our end of stream stands at the end of `outgoing`, …
    pub(super) shut: bool,
    /// … and has arrived.
    pub(super) shut_arrived: bool,
    /// The other's end of stream stands at the end of `incoming`.
    pub(super) ended: bool,
    /// Reset, by either end, or failed: nothing goes out or comes in any more.
    pub(super) dead: bool,
    /// Why, to be told once, to whichever operation asks first: Linux' `sk_err`.
    pub(super) error: Option<i32>,
    /// The application closed it; the kernel still has to deliver.
    pub(super) orphan: bool,
    /// A delivery of `outgoing` is among the events.
    pub(super) delivering: bool,
    /// The driver was told, and has not looked yet.
    pub(super) told: bool,
    /// The local port is ours to give back.
    pub(super) ephemeral: bool,
    /// Its host has gone from the network without a word.
    pub(super) vanished: bool,
    /// Whose file it is.
    pub(super) opened: Opened,
    /// The kernel memory that it has.
    pub(super) charge: Charge,
    /// An error is told to everybody who asks, as on Windows.
    tells_all: bool,
    in_use: bool,
}

/// What a receive finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readable {
    /// So many bytes.
    Bytes(usize),
    /// The end of the stream.
    End,
    /// An error: taken with this.
    Error(i32),
    /// Nothing yet.
    NotYet,
}

/// What a send finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writable {
    /// Room for so many bytes.
    Room(usize),
    /// An error: taken with this.
    Error(i32),
    /// No room yet.
    NotYet,
}

impl Socket {
    /// As `tcp_recvmsg` looks: bytes first, then the pending error, once, then the end.
    pub(super) fn readable(&mut self) -> Readable {
        if !self.incoming.is_empty() {
            return Readable::Bytes(self.incoming.len());
        }
        match self.take_error() {
            Some(code) => Readable::Error(code),
            None if self.ended || self.dead => Readable::End,
            None => Readable::NotYet,
        }
    }

    /// As `tcp_sendmsg` looks: the pending error, once, else EPIPE, else room.
    pub(super) fn writable(&mut self, send_buffer_bytes: usize) -> Writable {
        if let Some(code) = self.take_error() {
            return Writable::Error(code);
        }
        if self.dead || self.shut {
            return Writable::Error(errno::EPIPE);
        }
        match send_buffer_bytes.saturating_sub(self.outgoing.len()) {
            0 => Writable::NotYet,
            room => Writable::Room(room),
        }
    }

    /// The pending error: Linux forgets it when it is told, Windows does not.
    fn take_error(&mut self) -> Option<i32> {
        if self.tells_all { self.error } else { self.error.take() }
    }

    /// Whether `poll(2)` would say that a read does not block.
    pub(super) fn stirs(&self) -> bool {
        !self.incoming.is_empty() || self.ended || self.dead || self.error.is_some()
    }

    /// Whether the kernel has nothing left to do for it.
    fn is_over(&self) -> bool {
        self.orphan && (self.dead || self.shut_arrived && self.outgoing.is_empty())
    }
}

/// All sockets of a kernel. A free one keeps its buffers for its next use.
#[derive(Debug)]
pub(super) struct Sockets {
    all: Vec<Socket>,
    free: Vec<u32>,
    /// Whether errors are told to everybody who asks.
    tells_all: bool,
}

impl Sockets {
    pub(super) fn new(tells_all: bool) -> Self {
        Self { all: Vec::new(), free: Vec::new(), tells_all }
    }

    pub(super) fn open(&mut self, local: SocketAddr, remote: SocketAddr) -> SocketId {
        let tells_all = self.tells_all;
        let fresh = |id, outgoing, incoming| Socket {
            id,
            local,
            remote,
            stage: Stage::Connecting { attempt: 0 },
            owner: Owner::Nobody,
            other: None,
            outgoing,
            incoming,
            shut: false,
            shut_arrived: false,
            ended: false,
            dead: false,
            error: None,
            orphan: false,
            delivering: false,
            told: false,
            ephemeral: false,
            vanished: false,
            opened: Opened::No,
            charge: Charge::default(),
            tells_all,
            in_use: true,
        };
        if let Some(index) = self.free.pop() {
            let old = &mut self.all[index as usize];
            let id = SocketId { index, generation: old.id.generation.wrapping_add(1) };
            old.outgoing.clear();
            old.incoming.clear();
            let (outgoing, incoming) =
                (std::mem::take(&mut old.outgoing), std::mem::take(&mut old.incoming));
            *old = fresh(id, outgoing, incoming);
            return id;
        }
        let id = SocketId { index: self.all.len() as u32, generation: 0 };
        self.all.push(fresh(id, Pipe::default(), Pipe::default()));
        id
    }

    /// The socket, unless its name is stale.
    pub(super) fn find(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.all.get_mut(id.index as usize).filter(|socket| socket.in_use && socket.id == id)
    }

    /// Two different sockets.
    pub(super) fn pair(&mut self, a: SocketId, b: SocketId) -> Option<(&mut Socket, &mut Socket)> {
        let indices = [a.index as usize, b.index as usize];
        let [one, two] = self.all.get_disjoint_mut(indices).ok()?;
        (one.in_use && one.id == a && two.in_use && two.id == b).then_some((one, two))
    }

    /// Frees it if it is over; tells its port and its memory, to be given back, and its other end.
    pub(super) fn reap(
        &mut self,
        id: SocketId,
    ) -> Option<(Option<SocketAddr>, Charge, Option<SocketId>)> {
        let socket = self.find(id).filter(|socket| socket.is_over())?;
        socket.in_use = false;
        let given_back = (socket.ephemeral.then_some(socket.local), socket.charge, socket.other);
        self.free.push(id.index);
        Some(given_back)
    }

    /// Sockets that exist, and how many of them are orphans.
    pub(super) fn count(&self) -> (usize, usize) {
        let open = self.all.iter().filter(|socket| socket.in_use);
        (open.clone().count(), open.filter(|socket| socket.orphan).count())
    }
}
