//! A driver on `io_uring`, from Linux 6.1 on.
//!
//! One ring a shard, `DEFER_TASKRUN`: the kernel's work for our operations runs when we enter,
//! and a turn is one `io_uring_enter(2)` that submits, runs 20 pieces of work and waits.
//!
//! Connections live in the ring's own table, where a slot's number is its *direct descriptor*; they
//! are no descriptors of the process. Where that does not work (the table is bounded by
//! `RLIMIT_NOFILE`; before Linux 6.13 a removed entry was closed only after every operation
//! begun before had ended), they are plain descriptors, and all intents do the same.
//!
//! | intent | operations |
//! |---|---|
//! | accept | one-shot `ACCEPT`, straight into the slot or as a descriptor; of who may have waited for long, whether it is still there: a `SEND` of nothing, or `getpeername(2)` |
//! | connect | `socket(2)`, `bind(2)`, into the table, `CONNECT` |
//! | park | one-shot `POLL_ADD` |
//! | receive | `RECV`; at once: with `MSG_DONTWAIT` |
//! | stream | multishot `RECV` into a ring of buffers |
//! | send | `SEND`, or `SENDMSG` for several spans; at once: with `MSG_DONTWAIT` |
//! | half-close | `SHUTDOWN`, by a worker of the kernel (12 µs); `shutdown(2)` on a plain descriptor |
//! | close | `POLL_REMOVE`/`ASYNC_CANCEL` of what is in flight, `CLOSE`, in one submission |
//! | abort | the same with a `CONNECT` to `AF_UNSPEC` before the `CLOSE`: a reset, and empty queues |
//!
//! A close's completion is held back until those of the slot's other operations have been given
//! out: it is always the last.
//!
//! The kernel holds 256 bytes for a parked connection besides its socket; this driver 12 (16 with
//! plain descriptors).

#![allow(unsafe_code, reason = "memory shared with the kernel, and system calls")]

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use io_uring::types::{DestinationSlot, Fd};
use io_uring::{opcode, squeue};

use self::addresses::{Addresses, Destinations, NOWHERE};
use self::buffers::Buffers;
use self::gather::Gather;
use self::lent::Lent;
use self::ops::Target;
pub(crate) use self::preflight::keeps_tables;
pub use self::preflight::probe;
use self::ring::Ring;
use self::slots::{CLOSING, HALF_CLOSE_WAITS, Slot};
pub use self::unavailable::Unavailable;
use self::wake::Eventfd;
use super::backlog::Backlog;
use super::doorbell::Doorbell;
use super::errno::failure;
use super::{
    Accepted, Completion, Driver, Failure, Features, Into, Kind, MAX_HANDED, Nanos, Token, Wake,
    connect, monotonic,
};
use crate::buffer::{Lease, Memory, Span};

mod addresses;
mod buffers;
mod gather;
mod leave;
mod lent;
mod ops;
mod preflight;
mod reap;
mod ring;
mod slots;
mod unavailable;
mod wake;

#[cfg(test)]
mod tests;

/// Accepts into slots that may be in flight at once; more complete with
/// [`Fault::Buffers`](super::Fault::Buffers).
pub const MAX_ACCEPTS: u32 = 1024;

/// Message headers, and addresses to connect to, that are queued at once without an extra enter.
const HEADERS: usize = 128;
const DESTINATIONS: usize = 64;

/// In the top byte of an operation's user data: a token's operation, done for another purpose.
const OTHERWISE: u64 = 0x40 << 56;
/// User data of an operation whose completion says nothing.
const QUIET: u64 = 0xf0 << 56;
/// User data of the doorbell's read.
const BELL: u64 = 0xf1 << 56;

/// What a [`Uring`] is made for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Slots: `0..slots`.
    pub slots: u32,
    /// Entries of the ring of buffers for streams: a power of two, at most 32,768; 0 for a driver
    /// without streams. A power of two is not demanded: it is rounded up to one.
    pub stream_blocks: u32,
    /// Whether connections are direct descriptors. `None`: where they work.
    pub direct: Option<bool>,
}

impl Config {
    /// For `slots` slots, without streams, with direct descriptors where they work.
    pub fn new(slots: u32) -> Self {
        Self { slots, stream_blocks: 0, direct: None }
    }
}

/// An accept that hands over a socket.
#[derive(Clone, Copy)]
struct Handed {
    /// 0: none.
    token: u64,
    place: u16,
    /// −1: not accepted yet.
    fd: RawFd,
}

const NOT_HANDED: Handed = Handed { token: 0, place: 0, fd: -1 };

/// What the kernel may read or write while operations are in flight.
struct Shared {
    memory: Arc<Memory>,
    addresses: Addresses,
    destinations: Destinations,
    gather: Gather,
    buffers: Option<Buffers>,
    /// Where the doorbell's count is read to.
    bell: Lent<u64>,
}

/// A driver on `io_uring`.
///
/// Made on any thread, then used by one: the ring belongs to the thread that waits first.
pub struct Uring {
    ring: Ring,
    /// Dropped only when the kernel is known to be done with it: see `leave`.
    shared: ManuallyDrop<Shared>,
    slots: Vec<Slot>,
    /// The descriptors of the slots, −1 for none; empty where they are direct ones.
    plain: Vec<RawFd>,
    handed: Vec<Handed>,
    listener: Option<TcpListener>,
    /// Accepts that the kernel has.
    accepts: u32,
    backlog: Backlog,
    /// Operations that ended without the kernel: at most two for each slot, one for each accept
    /// that hands over.
    ready: VecDeque<(Token, i32)>,
    doorbell: Arc<Doorbell<Eventfd>>,
    bell_armed: bool,
    leaving: bool,
    features: Features,
}

impl Uring {
    /// A driver whose leases are of `memory`'s blocks. It allocates here and never again.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: why there is no `io_uring` here, and what to do about it.
    pub fn new(config: &Config, memory: Arc<Memory>) -> Result<Self, Unavailable> {
        let findings = preflight::findings()?;
        let direct = config.direct.unwrap_or(findings.direct);
        let streams = findings.streams && config.stream_blocks > 0;
        let mut driver = Self::unchecked(config, memory, direct, streams)?;
        driver.features.notes.extend(findings.notes.iter().cloned());
        Ok(driver)
    }

    /// The same, taking the word of the caller for what works.
    fn unchecked(
        config: &Config,
        memory: Arc<Memory>,
        direct: bool,
        streams: bool,
    ) -> Result<Self, Unavailable> {
        let ring =
            Ring::new(config.slots, streams).map_err(|error| Unavailable::of_setup(&error))?;
        let mut notes = Vec::new();
        let direct = direct && {
            match ring.submitter().register_files_sparse(config.slots) {
                Ok(()) => true,
                Err(error) if config.direct == Some(true) => {
                    return Err(Unavailable::of_table(config.slots, &error));
                }
                Err(error) => {
                    notes.push(format!(
                        "a table of {} direct descriptors: {error} (RLIMIT_NOFILE bounds it); \
                         connections are plain descriptors",
                        config.slots
                    ));
                    false
                }
            }
        };
        let buffers = if streams {
            let count = config.stream_blocks.next_power_of_two();
            Some(
                Buffers::register(&ring, count, memory.blocks())
                    .map_err(|error| Unavailable::of_buffers(count, &error))?,
            )
        } else {
            None
        };
        notes.push(format!("descriptors: {}", if direct { "direct" } else { "plain" }));
        // Before what is only dropped by hand: it may fail.
        let eventfd = Eventfd::new().map_err(|error| Unavailable::of_setup(&error))?;
        let places = config.slots.min(MAX_ACCEPTS) + MAX_HANDED;
        let slots = config.slots as usize;
        Ok(Self {
            ring,
            shared: ManuallyDrop::new(Shared {
                memory,
                addresses: Addresses::new(places as u16),
                destinations: Destinations::new(DESTINATIONS),
                gather: Gather::new(HEADERS),
                buffers,
                bell: Lent::new(0, 1),
            }),
            slots: (0..slots).map(|_| Slot::default()).collect(),
            plain: if direct { Vec::new() } else { vec![-1; slots] },
            handed: vec![NOT_HANDED; MAX_HANDED as usize],
            listener: None,
            accepts: 0,
            backlog: Backlog::default(),
            ready: VecDeque::with_capacity(slots * 2 + MAX_HANDED as usize),
            doorbell: Arc::new(Doorbell::new(eventfd)),
            bell_armed: false,
            leaving: false,
            features: Features { name: "uring", streams, notes },
        })
    }

    /// Whether connections are direct descriptors.
    pub fn is_direct(&self) -> bool {
        self.plain.is_empty()
    }

    #[inline]
    fn target(&self, slot: u32) -> Target {
        match self.plain.get(slot as usize) {
            Some(&fd) => Target::Plain(fd),
            None => Target::Direct(slot),
        }
    }

    #[inline]
    fn slot(&mut self, token: Token) -> &mut Slot {
        &mut self.slots[token.slot() as usize]
    }

    /// Queues an operation that points to memory.
    ///
    /// # Safety
    ///
    /// What the entry points to must be part of `self.shared` and stay as it is until the
    /// operation has completed, or, where the kernel copies it, until all has been submitted.
    #[inline]
    unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: the caller's promise; and `Drop` keeps `shared` until the kernel is done with it.
        unsafe { self.ring.push_entry(entry) };
    }

    /// Lets headers and addresses be used again once the kernel has copied them.
    fn reuse_copied(&mut self) {
        if self.ring.all_submitted() {
            self.shared.destinations.clear();
            self.shared.gather.clear();
        }
    }

    fn arm_doorbell(&mut self) {
        self.bell_armed = true;
        let word = self.shared.bell.at(0).cast::<u8>();
        let entry =
            opcode::Read::new(Fd(self.doorbell.bell.as_raw_fd()), word, 8).build().user_data(BELL);
        // SAFETY: the word is in `shared.bell`, and nobody else uses it while the read is armed.
        unsafe { self.push(entry) };
    }

    /// Cancels what is in flight on a slot that is being closed.
    fn cancel_all(&mut self, slot: u32) {
        let state = &mut self.slots[slot as usize];
        if state.has(HALF_CLOSE_WAITS) {
            state.unset(HALF_CLOSE_WAITS);
            let token = state.token(Kind::HalfClose, slot);
            self.ready.push_back((token, -libc::ECANCELED));
        }
        let state = &self.slots[slot as usize];
        if state.is_in_flight(Kind::Park) {
            let token = state.token(Kind::Park, slot);
            self.ring.push(ops::unpark(token.bits(), QUIET));
        }
        // A half-close is with a worker of the kernel, and ends by itself.
        for kind in [Kind::Receive, Kind::Send, Kind::Connect, Kind::Accept] {
            let state = &self.slots[slot as usize];
            if state.is_in_flight(kind) {
                let token = state.token(kind, slot);
                self.ring.push(ops::cancel(token.bits(), QUIET));
            }
        }
    }

    /// Closes the slot's connection, when what is in flight has been cancelled.
    fn close_target(&mut self, token: Token) {
        let target = self.target(token.slot());
        self.ring.push_certain(ops::close(target, token.bits()));
        if let Some(fd) = self.plain.get_mut(token.slot() as usize) {
            *fd = -1;
        }
    }

    /// Sends our end of stream: nothing of ours is before it any more.
    fn post_half_close(&mut self, token: Token) {
        match self.target(token.slot()) {
            target @ Target::Direct(_) => {
                self.ring.push(ops::shutdown(target, token.bits()));
            }
            Target::Plain(fd) => {
                // SAFETY: takes two integers; the descriptor is the slot's.
                let code = unsafe { libc::shutdown(fd, libc::SHUT_WR) };
                let result = if code == 0 { 0 } else { -connect::last_errno() };
                self.ready.push_back((token, result));
            }
        }
    }

    /// Puts a descriptor into a slot.
    fn install(&mut self, slot: u32, socket: OwnedFd) -> Result<(), Failure> {
        if let Some(fd) = self.plain.get_mut(slot as usize) {
            *fd = socket.into_raw_fd();
            return Ok(());
        }
        // The table holds the file itself; the descriptor closes at the end of this function.
        match self.ring.submitter().register_files_update(slot, &[socket.as_raw_fd()]) {
            Ok(_) => Ok(()),
            Err(error) => Err(failure(error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }
}

impl Driver for Uring {
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
        self.listener = Some(listener);
    }

    fn close_listener(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        for user in self.shared.addresses.users() {
            self.ring.push(ops::cancel(user, QUIET));
        }
        // On the ring, behind the accepts that are queued: they name the descriptor by its number.
        let target = Target::Plain(listener.into_raw_fd());
        self.ring.push(ops::close(target, QUIET).quiet());
    }

    fn accept(&mut self, token: Token, into: Into) {
        debug_assert_eq!(into == Into::Socket, token.kind() == Kind::HandOver, "{token:?}");
        if into == Into::Slot {
            self.slot(token).begin(token);
        }
        let Some(listener) = self.listener.as_ref().map(AsRawFd::as_raw_fd) else {
            return self.ready.push_back((token, -libc::ECANCELED));
        };
        let Some(place) = self.shared.addresses.take(token.bits()) else {
            return self.ready.push_back((token, -libc::ENOBUFS));
        };
        let (address, len) = self.shared.addresses.for_kernel(place);
        let mut operation = opcode::Accept::new(Fd(listener), address, len);
        match into {
            Into::Slot => {
                self.slot(token).extra = place;
                if self.is_direct() {
                    // Fails only for numbers that `slots` cannot reach: two below u32::MAX.
                    operation = operation
                        .file_index(DestinationSlot::try_from_slot_target(token.slot()).ok());
                } else {
                    operation = operation.flags(libc::SOCK_CLOEXEC);
                }
            }
            Into::Socket => {
                let handed = &mut self.handed[token.slot() as usize];
                debug_assert_eq!(handed.token, 0, "two accepts with the number {}", token.slot());
                *handed = Handed { token: token.bits(), place, fd: -1 };
                operation = operation.flags(libc::SOCK_CLOEXEC);
            }
        }
        // SAFETY: the address' place is in `shared.addresses` and this accept's alone.
        unsafe { self.push(operation.build().user_data(token.bits())) };
        self.accepts += 1;
    }

    fn accepted(&mut self, token: Token) -> Accepted<OwnedFd> {
        let number = token.slot() as usize;
        let (place, socket) = if token.kind() == Kind::HandOver {
            let Handed { place, fd, .. } = std::mem::replace(&mut self.handed[number], NOT_HANDED);
            debug_assert!(fd >= 0, "asked for twice, or without a success: {token:?}");
            // SAFETY: the kernel gave us this descriptor, and we forgot it in the line above.
            (place, Some(unsafe { OwnedFd::from_raw_fd(fd) }))
        } else {
            (self.slots[number].extra, None)
        };
        let peer = self.shared.addresses.read(place);
        self.shared.addresses.give_back(place);
        Accepted { peer, socket }
    }

    fn discard(&mut self, token: Token) {
        let brought = |handed: &Handed| handed.token == token.bits() && handed.fd >= 0;
        if token.kind() == Kind::HandOver
            && self.handed.get(token.slot() as usize).is_some_and(brought)
        {
            // The socket closes as it is dropped.
            let _ = self.accepted(token);
        }
    }

    fn refuse(&mut self, socket: OwnedFd, message: &[u8]) {
        super::refuse::refuse(&socket, message);
    }

    /// Costs a registration and a `close(2)` with direct descriptors.
    fn adopt(&mut self, slot: u32, socket: OwnedFd) -> Result<(), Failure> {
        self.install(slot, socket)
    }

    fn connect(&mut self, token: Token, remote: SocketAddr, source: Option<SocketAddr>) {
        self.slot(token).begin(token);
        let installed = connect::socket(remote, source)
            .map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
            .and_then(|socket| self.install(token.slot(), socket).map_err(|failure| failure.code));
        if let Err(code) = installed {
            return self.ready.push_back((token, -code));
        }
        if self.shared.destinations.is_full() {
            self.ring.submit();
            self.reuse_copied();
        }
        if self.shared.destinations.is_full() {
            // The kernel takes no submissions: it is out of memory.
            return self.connect_failed(token, libc::ENOBUFS);
        }
        let (address, len) = self.shared.destinations.put(remote);
        let target = self.target(token.slot());
        let entry = opcode::Connect::new(target.fd(), address, len).build();
        // SAFETY: the address is in `shared.destinations`, and copied when submitted.
        unsafe { self.push(target.mark(entry).user_data(token.bits())) };
    }

    #[inline]
    fn park(&mut self, token: Token) {
        self.slot(token).begin(token);
        self.ring.push(ops::park(self.target(token.slot()), token.bits()));
    }

    #[inline]
    fn receive(&mut self, token: Token, lease: Lease, start: u32, at_once: bool) {
        let len = self.shared.memory.block_bytes() as u32 - start;
        let span = Span { block: lease.block(), start, len };
        let room = self.shared.memory.start_of_span(span);
        let slot = self.slot(token);
        slot.begin(token);
        slot.lease = Some(lease);
        let target = self.target(token.slot());
        let mut flags = 0;
        if at_once {
            // Carried out as it is submitted, whatever comes: EAGAIN then ends it.
            flags = libc::MSG_DONTWAIT;
            self.ring.count_certain();
        }
        let entry = opcode::Recv::new(target.fd(), room.as_ptr(), len).flags(flags).build();
        // SAFETY: the block is in `shared.memory`, and its lease stays with the slot until the
        // completion.
        unsafe { self.push(target.mark(entry).user_data(token.bits())) };
    }

    #[inline]
    fn stream(&mut self, token: Token) {
        let target = self.target(token.slot());
        let slot = self.slot(token);
        slot.begin(token);
        self.ring.push(ops::stream(target, buffers::GROUP, token.bits()));
    }

    fn stop(&mut self, token: Token) {
        let slot = self.slot(token);
        if !slot.is_in_flight(token.kind()) {
            return;
        }
        if token.kind() == Kind::Park {
            self.ring.push(ops::unpark(token.bits(), QUIET));
        } else {
            self.ring.push(ops::cancel(token.bits(), QUIET));
        }
    }

    #[inline]
    fn provide(&mut self, lease: Lease) {
        match &mut self.shared.buffers {
            Some(buffers) => buffers.provide(lease),
            // Nothing may be provided where there are no streams: the lease would be lost.
            None => debug_assert!(false, "a block for streams, of which there are none"),
        }
    }

    fn reclaim(&mut self) -> Option<Lease> {
        self.shared.buffers.as_mut()?.reclaim()
    }

    #[inline]
    fn send(&mut self, token: Token, spans: &[Span], at_once: bool) {
        self.slot(token).begin(token);
        let mut flags = libc::MSG_NOSIGNAL;
        if at_once {
            // Carried out as it is submitted, whatever comes: EAGAIN then ends it.
            flags |= libc::MSG_DONTWAIT;
            self.ring.count_certain();
        }
        let target = self.target(token.slot());
        if spans.len() > 1 && self.shared.gather.is_full() {
            self.ring.submit();
            self.reuse_copied();
        }
        let entry = if spans.len() > 1 && !self.shared.gather.is_full() {
            let shared = &mut *self.shared;
            let message = shared.gather.put(spans, &shared.memory);
            opcode::SendMsg::new(target.fd(), message).flags(flags as u32).build()
        } else {
            // One span; or several, and a kernel so short of memory that it takes no submissions:
            // then only the first.
            let span = spans.first().copied().unwrap_or(Span { block: 0, start: 0, len: 0 });
            let bytes = self.shared.memory.start_of_span(span);
            opcode::Send::new(target.fd(), bytes.as_ptr(), span.len).flags(flags).build()
        };
        // SAFETY: the bytes are in `shared.memory`, and the caller changes none until the completion;
        // the header is in `shared.gather`, and copied when submitted.
        unsafe { self.push(target.mark(entry).user_data(token.bits())) };
    }

    fn half_close(&mut self, token: Token) {
        let slot = self.slot(token);
        slot.begin(token);
        if slot.is_in_flight(Kind::Send) {
            // It must not overtake the bytes; posted when they have been taken.
            slot.set(HALF_CLOSE_WAITS);
        } else {
            self.post_half_close(token);
        }
    }

    fn close(&mut self, token: Token) {
        let slot = self.slot(token);
        slot.begin(token);
        slot.set(CLOSING);
        self.cancel_all(token.slot());
        self.close_target(token);
    }

    fn abort(&mut self, token: Token) {
        let slot = self.slot(token);
        slot.begin(token);
        slot.set(CLOSING);
        self.cancel_all(token.slot());
        let target = self.target(token.slot());
        let len = size_of::<libc::sockaddr>() as libc::socklen_t;
        let entry = opcode::Connect::new(target.fd(), &raw const NOWHERE, len).build();
        let entry = target.mark(entry).user_data(QUIET).flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: the address is a constant. Where it fails (never connected), the close is enough.
        unsafe { self.push(entry) };
        self.close_target(token);
    }

    fn wait(&mut self, until: Option<Nanos>, out: &mut Vec<Completion>) -> std::io::Result<Nanos> {
        self.turn(until, out)?;
        let now = self.now();
        // An accept that was not answered has found nobody.
        self.backlog.end_wait(now, self.accepts > 0 && self.ring.waiting() == 0);
        Ok(now)
    }
}
