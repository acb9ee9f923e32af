//! A driver on readiness: epoll on Linux, kqueue on macOS and the BSDs, through [`mio`].
//!
//! For where there is no `io_uring`: another system, a kernel before 6.1, a container that forbids
//! it. Connections are plain descriptors, and every operation is the ordinary system call, carried out
//! where the kernel is known, or not known not, to be ready for it.
//!
//! | intent | system calls |
//! |---|---|
//! | accept | `accept4(2)` as long as there is somebody; `getpeername(2)` of who may have waited for long; into a slot: `epoll_ctl(2)` |
//! | adopt | `epoll_ctl(2)` |
//! | connect | `socket(2)`, `bind(2)`, `connect(2)`, `epoll_ctl(2)`; when writable: `SO_ERROR` |
//! | park | none; a `recv(2)` with `MSG_PEEK` where readiness is in doubt |
//! | receive | `recv(2)`, once there is something |
//! | stream | `recv(2)` into one provided block after another, at most four in one wait |
//! | send | `send(2)`, `sendmsg(2)` for several spans; if there is no room: `epoll_ctl(2)` once |
//! | half-close | `shutdown(2)`, after the send in flight |
//! | close | `close(2)` |
//! | abort | `SO_LINGER` of 0 and `close(2)`: a reset, and empty queues |
//! | wait | `epoll_wait(2)`, unless enough is known to do |
//!
//! # Edge-triggered, and what is remembered
//!
//! A connection is registered once, edge-triggered, and its slot remembers what the kernel told. So a
//! message costs `recv`, `send` and its share of one `epoll_wait`, and no `epoll_ctl`: one-shot
//! interest, which the kernel disarms by itself, costs one more system call for each message, and the
//! same memory: an entry of 208 bytes (Linux 6.18). What is remembered as readable is forgotten at `EAGAIN`, and on Linux at a receive
//! that brought less than there was room for, which means that nothing is left (epoll(7),
//! question 9), but where the peer's end, an error or urgent data was seen: those
//! cut a receive short with more behind. On other systems urgent data does so unseen: there only
//! `EAGAIN` counts. An event of urgent data proves nothing about bytes to read, and a park that it
//! would complete asks the kernel first. Interest in room to send is added when a send first finds
//! none.
//!
//! An event names the slot and the *incarnation* of its connection: an event of a descriptor that
//! was closed meanwhile, and whose number or slot is in use again, is dropped.
//!
//! # What it takes
//!
//! 40 bytes a slot here, and 4 in a queue; in the kernel an entry of the epoll and a descriptor.
//! `RLIMIT_NOFILE` bounds the connections of all shards of a process together.
//! [`Driver::wait`] with a deadline comes back up to a millisecond late on Linux, never early
//! (`epoll_wait(2)` counts milliseconds, rounded up here); elsewhere it is exact.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Waker};

use self::events::DOORBELL;
use self::slots::{AT_ONCE, FULL, Slot, WATCHES_WRITE};
pub use self::unavailable::Unavailable;
use super::backlog::Backlog;
use super::doorbell::Doorbell;
use super::errno::failure;
use super::{
    Accepted, Completion, Driver, Failure, Features, Into, Kind, MAX_HANDED, Nanos, Token, Wake,
    connect, monotonic,
};
use crate::buffer::{Lease, Memory, Span};

mod events;
mod slots;
mod system;
mod unavailable;
mod work;

#[cfg(test)]
mod tests;

/// Connections accepted in one wait, at most; more wait for the next.
const MAX_ACCEPTED: u32 = 256;

/// Blocks that one stream brings in one wait, at most: a fast sender does not keep the others
/// waiting. What is left comes in the next wait, after everybody else's.
const STREAM_QUOTA: u32 = 4;

/// What a [`Ready`] is made for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Slots: `0..slots`.
    pub slots: u32,
    /// The most blocks that are provided to streams at a time; 0 for a driver without streams.
    pub stream_blocks: u32,
}

impl Config {
    /// For `slots` slots, without streams.
    pub fn new(slots: u32) -> Self {
        Self { slots, stream_blocks: 0 }
    }
}

/// What an accept brought, until it is asked for.
struct Brought {
    token: Token,
    peer: SocketAddr,
    socket: Option<OwnedFd>,
}

/// A driver on epoll or kqueue.
///
/// Made on any thread, then used by one.
pub struct Ready {
    poll: Poll,
    events: Events,
    memory: Arc<Memory>,
    slots: Vec<Slot>,
    /// Slots with something to carry out or to say, each at most once.
    queue: VecDeque<u32>,
    /// Whether there was more to do than the last wait had time or room for.
    left_over: bool,
    /// Waits in a row that did not ask the kernel, for there was enough to do.
    unasked: u32,
    listener: Option<TcpListener>,
    /// Whether somebody may be in the listener's backlog.
    knocked: bool,
    backlog: Backlog,
    /// Why the listener cannot be watched; 0: it is.
    deaf: i32,
    /// Accepts in flight, in no order.
    accepts: Vec<(Token, Into)>,
    /// In the order of their completions.
    brought: VecDeque<Brought>,
    /// Blocks for streams.
    provided: Vec<Lease>,
    doorbell: Arc<Doorbell<Waker>>,
    features: Features,
}

impl Ready {
    /// A driver whose leases are of `memory`'s blocks. It allocates here and never again.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: what is missing, and what to do about it.
    pub fn new(config: &Config, memory: Arc<Memory>) -> Result<Self, Unavailable> {
        if config.slots as usize > events::MAX_SLOTS {
            return Err(Unavailable::Slots { asked: config.slots, most: events::MAX_SLOTS as u32 });
        }
        let poll = Poll::new().map_err(|error| Unavailable::of_setup(&error))?;
        let waker =
            Waker::new(poll.registry(), DOORBELL).map_err(|error| Unavailable::of_setup(&error))?;
        let slots = config.slots as usize;
        let accepted = MAX_ACCEPTED as usize;
        let interface = if cfg!(target_os = "linux") { "epoll" } else { "kqueue" };
        Ok(Self {
            poll,
            events: Events::with_capacity(events::BATCH),
            memory,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            queue: VecDeque::with_capacity(slots),
            left_over: false,
            unasked: 0,
            listener: None,
            knocked: false,
            backlog: Backlog::default(),
            deaf: 0,
            accepts: Vec::with_capacity(slots + MAX_HANDED as usize),
            brought: VecDeque::with_capacity(accepted),
            provided: Vec::with_capacity(config.stream_blocks as usize),
            doorbell: Arc::new(Doorbell::new(waker)),
            features: Features {
                name: "ready",
                streams: config.stream_blocks > 0,
                notes: vec![
                    format!("interface: {interface}, edge-triggered"),
                    "descriptors: plain".into(),
                ],
            },
        })
    }

    #[inline]
    fn slot(&mut self, token: Token) -> &mut Slot {
        &mut self.slots[token.slot() as usize]
    }

    /// Has the next wait look at a slot.
    #[inline]
    fn enqueue(&mut self, number: u32) {
        self.slots[number as usize].enqueue(number, &mut self.queue);
    }

    /// Puts a connected socket, or one that connects, into a slot, and watches it.
    fn install(&mut self, number: u32, socket: OwnedFd, also: Option<Interest>) -> Result<(), i32> {
        let slot = &mut self.slots[number as usize];
        let name = events::name(number, slot.incarnation);
        let interest = also.map_or(events::READING, |also| events::READING | also);
        let descriptor = socket.as_raw_fd();
        self.poll
            .registry()
            .register(&mut SourceFd(&descriptor), name, interest)
            .map_err(|error| system::code(&error))?;
        slot.install(socket);
        if also.is_some() {
            slot.set(WATCHES_WRITE | FULL);
        }
        Ok(())
    }

    /// Notes that the kernel has no room for a slot's bytes, and has it tell when there is some.
    fn await_room(&mut self, number: u32) -> Result<(), i32> {
        let slot = &mut self.slots[number as usize];
        if !slot.has(WATCHES_WRITE) {
            let Some(socket) = &slot.socket else { return Err(libc::ENOTCONN) };
            let name = events::name(number, slot.incarnation);
            let interest = events::READING | Interest::WRITABLE;
            // Looks again as it is armed: room that came meanwhile is told of.
            self.poll
                .registry()
                .reregister(&mut SourceFd(&socket.as_raw_fd()), name, interest)
                .map_err(|error| system::code(&error))?;
        }
        slot.set(WATCHES_WRITE | FULL);
        Ok(())
    }

    /// Sends now. Gives the result, or `None` where it has to wait for room.
    fn send_now(&mut self, number: u32, spans: &[Span], at_once: bool) -> Option<i32> {
        let slot = &mut self.slots[number as usize];
        let Some(socket) = &slot.socket else { return Some(-libc::ENOTCONN) };
        match system::send(socket, &self.memory, spans) {
            Ok(taken) => Some(taken as i32),
            Err(libc::EAGAIN) => match self.await_room(number) {
                _ if at_once => Some(-libc::EAGAIN),
                Ok(()) => None,
                Err(code) => Some(-code),
            },
            Err(code) => Some(-code),
        }
    }

    /// Connects. Gives the result, or `None` where the outcome will be told.
    fn connect_now(
        &mut self,
        number: u32,
        remote: SocketAddr,
        source: Option<SocketAddr>,
    ) -> Result<Option<i32>, i32> {
        let socket = connect::socket(remote, source).map_err(|error| system::code(&error))?;
        let done = match system::connect(&socket, remote) {
            Ok(()) => Some(0),
            // EINTR: it goes on all the same (POSIX).
            Err(libc::EINPROGRESS | libc::EINTR) => None,
            Err(code) => return Err(code),
        };
        // Watched only now: a socket that does not connect yet counts as hung up.
        self.install(number, socket, Some(Interest::WRITABLE))?;
        Ok(done)
    }

    /// Closes a slot's connection, and cancels what is in flight there.
    fn end(&mut self, token: Token, reset: bool) {
        let slot = self.slot(token);
        slot.begin(token);
        for kind in [Kind::Connect, Kind::Park, Kind::Receive, Kind::Send, Kind::HalfClose] {
            slot.cancel(kind);
        }
        // Closed as it goes out of scope.
        let socket = slot.remove();
        if let Some(socket) = &socket
            && reset
        {
            system::reset_on_close(socket);
        }
        self.enqueue(token.slot());
    }

    /// Operations in flight.
    #[cfg(test)]
    fn in_flight(&self) -> usize {
        self.accepts.len() + self.slots.iter().map(Slot::in_flight_count).sum::<usize>()
    }
}

impl Driver for Ready {
    type Listener = TcpListener;
    type Socket = OwnedFd;

    fn features(&self) -> &Features {
        &self.features
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.doorbell.clone()
    }

    /// Nanoseconds of `CLOCK_MONOTONIC`; no system call.
    fn now(&self) -> Nanos {
        monotonic()
    }

    fn listen(&mut self, listener: TcpListener) {
        let descriptor = listener.as_raw_fd();
        let watched = listener.set_nonblocking(true).and_then(|()| {
            let mut source = SourceFd(&descriptor);
            self.poll.registry().register(&mut source, events::LISTENER, Interest::READABLE)
        });
        self.deaf = watched.err().map_or(0, |error| system::code(&error));
        self.listener = Some(listener);
    }

    fn close_listener(&mut self) {
        self.listener = None;
        self.knocked = false;
    }

    fn accept(&mut self, token: Token, into: Into) {
        debug_assert_eq!(into == Into::Socket, token.kind() == Kind::HandOver, "{token:?}");
        if into == Into::Slot {
            self.slot(token).begin(token);
        }
        self.accepts.push((token, into));
    }

    fn accepted(&mut self, token: Token) -> Accepted<OwnedFd> {
        // In the order of the completions, it is the first.
        let at = self.brought.iter().position(|brought| brought.token == token);
        let brought = at.and_then(|at| self.brought.remove(at));
        let Brought { peer, socket, .. } = brought.expect("asked once, after an accept succeeded");
        Accepted { peer, socket }
    }

    fn discard(&mut self, token: Token) {
        // A slot's connection is the slot's, and goes with its close.
        self.brought.retain(|brought| brought.token != token || brought.socket.is_none());
    }

    fn refuse(&mut self, socket: OwnedFd, message: &[u8]) {
        super::refuse::refuse(&socket, message);
    }

    /// Costs an `epoll_ctl(2)`.
    fn adopt(&mut self, slot: u32, socket: OwnedFd) -> Result<(), Failure> {
        self.install(slot, socket, None).map_err(failure)
    }

    fn connect(&mut self, token: Token, remote: SocketAddr, source: Option<SocketAddr>) {
        self.slot(token).begin(token);
        let result = match self.connect_now(token.slot(), remote, source) {
            Ok(None) => return,
            Ok(Some(result)) => result,
            Err(code) => -code,
        };
        self.slot(token).finish(result);
        self.enqueue(token.slot());
    }

    #[inline]
    fn park(&mut self, token: Token) {
        let slot = self.slot(token);
        slot.begin(token);
        if slot.may_be_readable() {
            self.enqueue(token.slot());
        }
    }

    #[inline]
    fn receive(&mut self, token: Token, lease: Lease, start: u32, at_once: bool) {
        let slot = self.slot(token);
        slot.begin(token);
        slot.lease = Some(lease);
        slot.start = start;
        slot.put(AT_ONCE, at_once);
        if at_once || slot.may_be_readable() {
            self.enqueue(token.slot());
        }
    }

    #[inline]
    fn stream(&mut self, token: Token) {
        let slot = self.slot(token);
        slot.begin(token);
        slot.unset(AT_ONCE);
        if slot.may_be_readable() {
            self.enqueue(token.slot());
        }
    }

    fn stop(&mut self, token: Token) {
        if self.slot(token).cancel(token.kind()) {
            self.enqueue(token.slot());
        }
    }

    #[inline]
    fn provide(&mut self, lease: Lease) {
        // Nothing may be provided beyond what was agreed on: it would allocate.
        debug_assert!(self.provided.len() < self.provided.capacity(), "more blocks than agreed");
        self.provided.push(lease);
    }

    fn reclaim(&mut self) -> Option<Lease> {
        self.provided.pop()
    }

    #[inline]
    fn send(&mut self, token: Token, spans: &[Span], at_once: bool) {
        let slot = self.slot(token);
        slot.begin(token);
        // What waits is the first span; the caller sends the others again.
        slot.outgoing = spans.first().copied().unwrap_or(Span { block: 0, start: 0, len: 0 });
        let known_full = slot.has(FULL) && !at_once;
        if !known_full && let Some(result) = self.send_now(token.slot(), spans, at_once) {
            self.slot(token).finish(result);
            self.enqueue(token.slot());
        }
    }

    fn half_close(&mut self, token: Token) {
        self.slot(token).begin(token);
        self.enqueue(token.slot());
    }

    fn close(&mut self, token: Token) {
        self.end(token, false);
    }

    fn abort(&mut self, token: Token) {
        self.end(token, true);
    }

    fn wait(&mut self, until: Option<Nanos>, out: &mut Vec<Completion>) -> std::io::Result<Nanos> {
        self.turn(until, out)?;
        let now = self.now();
        // Emptied, and the kernel has told of nobody since.
        self.backlog.end_wait(now, !self.knocked && self.unasked == 0);
        Ok(now)
    }
}

#[inline]
fn completion(token: Token, result: i32, lease: Option<Lease>, more: bool) -> Completion {
    Completion { token, result: super::errno::outcome(result), lease, more }
}
