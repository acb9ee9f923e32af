//! The simulated TCP: connecting, delivering, ending, resetting.
//!
//! A byte is in its sender's `outgoing` until the event that moves it into its receiver's
//! `incoming`, so order holds by construction and a reset takes what is under way with it. Not
//! modelled: loss and retransmission (but of SYNs), `TIME_WAIT`, the SYN queue.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::faults::errno;
use super::kernel::{Event, Kernel};
use super::resources::{Charge, Opened};
use super::socket::{Owner, SocketId, Stage};
use super::system::Overflow;

/// How many ports there are.
const PORTS: usize = 1 << 16;

/// The ports of one source address.
#[derive(Debug)]
pub(super) struct Ports {
    taken: Box<[u64; PORTS / 64]>,
    next: u16,
}

impl Ports {
    fn new(next: u16) -> Self {
        Self { taken: Box::new([0; PORTS / 64]), next }
    }

    fn take(&mut self, port: u16) -> bool {
        let (word, bit) = (usize::from(port / 64), 1 << (port % 64));
        let free = self.taken[word] & bit == 0;
        self.taken[word] |= bit;
        free
    }

    fn give_back(&mut self, port: u16) {
        self.taken[usize::from(port / 64)] &= !(1 << (port % 64));
    }
}

impl Kernel {
    /// A new socket on its way to `remote`, or the code of what stands in the way.
    pub(super) fn connect(
        &mut self,
        remote: SocketAddr,
        source: Option<SocketAddr>,
        opened: Opened,
    ) -> Result<SocketId, i32> {
        let any = match remote {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        let source = source.unwrap_or(SocketAddr::new(any, 0));
        if source.is_ipv4() != remote.is_ipv4() {
            return Err(errno::EINVAL);
        }
        self.may_open(opened)?;
        let pool = self.options.system.pool.connected;
        let charge =
            if opened == Opened::ByDriver { Charge { pool, pinned: 0 } } else { Charge::default() };
        self.charge(charge)?;
        let port = self.take_port(source).inspect_err(|_| self.refund(charge))?;
        let id = self.sockets.open(SocketAddr::new(source.ip(), port), remote);
        if let Some(socket) = self.sockets.find(id) {
            socket.ephemeral = true;
            socket.charge = charge;
        }
        self.open_file(id, opened);
        self.after_latency(Event::Syn(id));
        Ok(id)
    }

    fn take_port(&mut self, source: SocketAddr) -> Result<u16, i32> {
        let ports = &self.options.system.ports;
        let (low, high) = (*ports.start(), *ports.end());
        let random = &mut self.random;
        let ports = self
            .ports
            .entry(source.ip())
            .or_insert_with(|| Ports::new(random.within(u64::from(low), u64::from(high)) as u16));
        if source.port() != 0 {
            return ports.take(source.port()).then_some(source.port()).ok_or(errno::EADDRINUSE);
        }
        for _ in low..=high {
            let port = ports.next;
            ports.next = if port >= high { low } else { port + 1 };
            if ports.take(port) {
                return Ok(port);
            }
        }
        Err(errno::EADDRNOTAVAIL)
    }

    /// A SYN arrives at `remote`.
    pub(super) fn syn(&mut self, client: SocketId) {
        let Some(socket) = self.sockets.find(client) else { return };
        let Stage::Connecting { attempt } = socket.stage else { return };
        let (local, remote) = (socket.local, socket.remote);
        let Some(at) = self.listener_at(remote) else {
            self.after_latency(Event::Fails(client, errno::ECONNREFUSED));
            return;
        };
        let Some(listener) = &mut self.listeners[at] else { return };
        let driver = listener.driver;
        let full = listener.queue.len() >= listener.admits as usize;
        let pool = if listener.of_peer { 0 } else { self.options.system.pool.accepted };
        let charge = Charge { pool, pinned: 0 };
        if full || self.charge(charge).is_err() {
            self.dropped_syns += 1;
            self.syn_again(client, attempt);
            return;
        }
        let server = self.sockets.open(remote, local);
        if let Some(listener) = &mut self.listeners[at] {
            listener.queue.push_back(server);
        }
        if let Some(driver) = driver {
            self.drivers[driver as usize].arrivals = true;
        }
        if let Some((ours, theirs)) = self.sockets.pair(server, client) {
            ours.stage = Stage::Established;
            ours.owner = Owner::Queue;
            ours.charge = charge;
            ours.other = Some(client);
            theirs.other = Some(server);
        }
        self.after_latency(Event::Connected(client));
    }

    /// Linux: the overflow of a queue is silent, and the client tries again after 1, 2, 4, …
    /// seconds. Windows answers with a reset, after which its client tries twice more.
    fn syn_again(&mut self, client: SocketId, attempt: u32) {
        let (retries, pause, code) = match self.options.system.overflow {
            Overflow::Drops { retries } => {
                (retries, Duration::from_secs(1 << attempt.min(6)), errno::ETIMEDOUT)
            }
            Overflow::Refuses => (2, Duration::from_millis(500), errno::ECONNREFUSED),
        };
        let at = self.now.after(pause);
        if attempt >= retries {
            self.schedule(at, Event::Fails(client, code));
            return;
        }
        if let Some(socket) = self.sockets.find(client) {
            socket.stage = Stage::Connecting { attempt: attempt + 1 };
        }
        self.schedule(at, Event::Syn(client));
    }

    /// The answer to the SYN arrives.
    pub(super) fn connected(&mut self, client: SocketId) {
        if let Some(socket) = self.sockets.find(client) {
            socket.stage = Stage::Established;
            self.tell(client);
        }
    }

    /// The connect fails. The socket waits to be closed by its owner.
    pub(super) fn fails(&mut self, client: SocketId, code: i32) {
        if let Some(socket) = self.sockets.find(client) {
            socket.stage = Stage::Failed(code);
            socket.dead = true;
            self.tell(client);
        }
    }

    /// Sees to it that what can be delivered will be.
    pub(super) fn kick(&mut self, from: SocketId) {
        let Some(socket) = self.sockets.find(from) else { return };
        let anything = !socket.outgoing.is_empty() || socket.shut && !socket.shut_arrived;
        if socket.delivering || socket.dead || !anything {
            return;
        }
        socket.delivering = true;
        self.after_latency(Event::Deliver(from));
    }

    /// A segment arrives.
    pub(super) fn deliver(&mut self, from: SocketId) {
        let Some(sender) = self.sockets.find(from) else { return };
        sender.delivering = false;
        if sender.dead {
            return;
        }
        let Some(to) = sender.other else { return };
        let segment = self.random.within(
            u64::from(*self.options.segment_bytes.start()),
            u64::from(*self.options.segment_bytes.end()),
        ) as usize;
        let room = self.options.receive_buffer_bytes as usize;
        let Some((sender, receiver)) = self.sockets.pair(from, to) else {
            self.nobody_there(from);
            return;
        };
        if receiver.vanished {
            // Nothing is acknowledged; in the end the sender gives up.
            sender.delivering = true;
            let at = self.now.after(self.options.system.retransmits);
            self.schedule(at, Event::Kill(from, errno::ETIMEDOUT));
            return;
        }
        if receiver.stage != Stage::Established && !receiver.dead {
            // Our answer to its SYN has not arrived; this cannot overtake it.
            self.kick(from);
            return;
        }
        if receiver.dead || receiver.orphan && !sender.outgoing.is_empty() {
            self.nobody_there(from);
            if let Some(receiver) = self.sockets.find(to) {
                // An orphan to which bytes come answers with a reset, and is gone (RFC 1122, 4.2.2.13).
                receiver.dead = true;
                receiver.outgoing.clear();
            }
            self.reap(to);
            return;
        }
        let room = room.saturating_sub(receiver.incoming.len());
        let moved = segment.max(1).min(sender.outgoing.len()).min(room);
        receiver.incoming.end().extend_from_slice(sender.outgoing.front(moved));
        sender.outgoing.consume(moved);
        let ends = sender.shut && sender.outgoing.is_empty();
        if ends {
            sender.shut_arrived = true;
            receiver.ended = true;
        }
        if moved > 0 || ends {
            self.tell(to);
            self.tell(from);
        }
        // A full receiver kicks when it reads; it would be polled in vain until then.
        if moved > 0 || ends {
            self.kick(from);
        }
        self.reap(from);
    }

    /// What arrives where no connection is, is answered with a reset; an end of stream is not.
    fn nobody_there(&mut self, from: SocketId) {
        let Some(sender) = self.sockets.find(from) else { return };
        if sender.outgoing.is_empty() {
            sender.shut_arrived = true;
            self.reap(from);
        } else {
            self.after_latency(Event::Reset(from));
        }
    }

    /// A reset arrives.
    pub(super) fn reset(&mut self, to: SocketId) {
        let Some(socket) = self.sockets.find(to) else { return };
        if socket.dead {
            return;
        }
        if matches!(socket.stage, Stage::Connecting { .. }) {
            self.after_latency(Event::Reset(to));
            return;
        }
        // `tcp_reset`: EPIPE once the other has ended, else ECONNRESET. What arrived before can
        // still be read.
        let code = if socket.ended { errno::EPIPE } else { errno::ECONNRESET };
        socket.error = Some(code);
        socket.dead = true;
        socket.outgoing.clear();
        if self.options.system.is_windows() {
            // What had arrived goes with it.
            socket.incoming.clear();
        }
        self.tell(to);
        self.reap(to);
    }

    /// The connection fails at this end, with this code, and at the other with a reset.
    pub(super) fn kill(&mut self, id: SocketId, code: i32) {
        let Some(socket) = self.sockets.find(id) else { return };
        if socket.dead || socket.stage != Stage::Established {
            return;
        }
        socket.error = Some(code);
        socket.dead = true;
        socket.outgoing.clear();
        if let Some(other) = socket.other {
            self.after_latency(Event::Reset(other));
        }
        self.tell(id);
        // An orphan may die of it, too.
        self.reap(id);
    }

    /// The application's end of stream.
    pub(super) fn shut(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.find(id) {
            socket.shut = true;
            self.tell(id);
            self.kick(id);
        }
    }

    /// The application closes, orderly; with unread bytes, Linux sends a reset (RFC 2525, 2.17).
    pub(super) fn close(&mut self, id: SocketId) {
        self.close_file(id);
        let Some(socket) = self.sockets.find(id) else { return };
        if socket.stage != Stage::Established || socket.dead || !socket.incoming.is_empty() {
            self.abort(id);
            return;
        }
        socket.orphan = true;
        socket.owner = Owner::Nobody;
        socket.shut = true;
        self.kick(id);
        self.reap(id);
    }

    /// The application closes with a reset.
    pub(super) fn abort(&mut self, id: SocketId) {
        self.close_file(id);
        let Some(socket) = self.sockets.find(id) else { return };
        let other = socket.other.filter(|_| !socket.dead);
        socket.orphan = true;
        socket.owner = Owner::Nobody;
        socket.dead = true;
        socket.outgoing.clear();
        if let Some(other) = other {
            self.after_latency(Event::Reset(other));
        }
        self.reap(id);
    }

    /// The host of this end goes from the network without a word: no end of stream, no reset, and
    /// nothing that is sent to it is acknowledged.
    pub(super) fn vanish(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.find(id) else { return };
        if socket.stage != Stage::Established || socket.dead {
            return self.abort(id);
        }
        socket.vanished = true;
        socket.orphan = true;
        socket.owner = Owner::Nobody;
        socket.outgoing.clear();
        let other = socket.other;
        self.close_file(id);
        match other.filter(|other| self.sockets.find(*other).is_some()) {
            // What waited for room here is sent now, and never acknowledged.
            Some(other) => self.kick(other),
            None => self.forget_vanished(id),
        }
    }

    /// The application has read: there may be room for more.
    pub(super) fn has_read(&mut self, id: SocketId) {
        if let Some(other) = self.sockets.find(id).and_then(|socket| socket.other) {
            self.kick(other);
        }
    }

    /// One that vanished is no longer needed when there is no other end.
    fn forget_vanished(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.find(id) else { return };
        if socket.vanished {
            socket.dead = true;
            self.reap(id);
        }
    }

    pub(super) fn reap(&mut self, id: SocketId) {
        let Some((local, charge, other)) = self.sockets.reap(id) else { return };
        self.refund(charge);
        if let Some(other) = other {
            self.forget_vanished(other);
        }
        if let Some(local) = local
            && let Some(ports) = self.ports.get_mut(&local.ip())
        {
            ports.give_back(local.port());
        }
    }
}
