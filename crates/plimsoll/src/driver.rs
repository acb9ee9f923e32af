//! The contract between a shard's turn and a kernel.
//!
//! A driver carries out *intents*, not system calls, so that each kernel keeps
//! its idiom. A slot is all that an intent names: which ring, port, descriptor
//! or direct index stands behind it is the driver's own affair. No driver knows
//! what a session is.
//!
//! # Rules that every driver keeps, and the behavioural suite checks
//!
//! 1. **Every operation completes exactly once**, in some later [`Driver::wait`], whatever happens
//!    to its connection. (A [stream](Driver::stream) completes many times; the last one says
//!    `more: false`.) Nothing is refused when it is posted: a kernel that says no says it in the
//!    completion.
//! 2. **At most one operation of a [`Kind`] per slot is in flight**; the caller sees to it.
//! 3. A completion carries the [`Token`] it was posted with, unchanged. A token is never a
//!    pointer; a stale one is recognised by its generation, by the caller.
//! 4. A lease given to [`Driver::receive`] comes back in its completion, whatever the outcome.
//!    Leases given to [`Driver::provide`] come back in stream completions, or from
//!    [`Driver::reclaim`].
//! 5. After [`Driver::close`] or [`Driver::abort`] the slot's other operations complete, most of
//!    them with [`Fault::Cancelled`], and so does the close itself. Only when all have may
//!    the slot be used again.
//! 6. A driver allocates nothing after it was made, but for an accept that hands over a socket.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::buffer::{Lease, Span};

#[cfg(windows)]
pub mod iocp;
#[cfg(unix)]
pub mod ready;
#[cfg(unix)]
mod refuse;
pub mod sim;
#[cfg(target_os = "linux")]
pub mod uring;

// What the drivers of real kernels share.
#[cfg(unix)]
mod backlog;
#[cfg(unix)]
mod connect;
mod doorbell;
#[cfg(unix)]
mod errno;
mod kinds;

#[cfg(test)]
mod loopback;
#[cfg(test)]
mod suite;

/// A point in time: nanoseconds since some start that the driver chose.
///
/// Nothing in a turn reads a clock: the time is handed to it, so that a simulation can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    /// This much later; stays at the end of time (584 years) rather than wrap.
    pub fn after(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to this, or zero.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The time of `CLOCK_MONOTONIC`; no system call.
#[cfg(unix)]
pub(crate) fn monotonic() -> Nanos {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// The time of `QueryPerformanceCounter`, since the first that was asked for.
#[cfg(windows)]
pub(crate) fn monotonic() -> Nanos {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    let start = START.get_or_init(std::time::Instant::now);
    // One more: 0 is before all times.
    Nanos(start.elapsed().as_nanos() as u64 + 1)
}

/// What an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// [`Driver::accept`] into a slot.
    Accept = 1,
    /// [`Driver::connect`].
    Connect = 2,
    /// [`Driver::park`].
    Park = 3,
    /// [`Driver::receive`] or [`Driver::stream`].
    Receive = 4,
    /// [`Driver::send`].
    Send = 5,
    /// [`Driver::half_close`].
    HalfClose = 6,
    /// [`Driver::close`] or [`Driver::abort`].
    Close = 7,
    /// [`Driver::accept`] into a socket: the token's number names no slot.
    HandOver = 8,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Accept,
        Self::Connect,
        Self::Park,
        Self::Receive,
        Self::Send,
        Self::HalfClose,
        Self::Close,
        Self::HandOver,
    ];

    /// How many of them, the first in that order, are operations of slots.
    pub const OF_SLOTS: usize = 7;

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }
}

/// The name of an operation in flight: `kind:8 | low bits of the generation:24 | slot:32`.
///
/// The generation is the slot's, and counts its uses: a completion whose generation is not the
/// slot's any more is stale. 24 bits wrap after 16.7 million uses of one slot, while an operation
/// stays in flight for one use only: a slot is not used again before its last operation completed.
/// The same holds of the numbers of [hand-overs](Kind::HandOver), which count their own uses.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u64);

impl Token {
    /// The number of generations that tokens tell apart.
    pub const GENERATIONS: u32 = 1 << 24;

    /// A token; of `generation` only the low 24 bits are kept.
    pub fn new(kind: Kind, generation: u64, slot: u32) -> Self {
        let generation = generation & u64::from(Self::GENERATIONS - 1);
        Self((kind as u64) << 56 | generation << 32 | u64::from(slot))
    }

    /// What the operation is.
    pub fn kind(self) -> Kind {
        // The only constructor takes a `Kind`, and `from_bits` checks.
        Kind::from_byte((self.0 >> 56) as u8).expect("a token holds a kind")
    }

    /// The low 24 bits of the slot's generation.
    pub fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & (Self::GENERATIONS - 1)
    }

    /// Whether this token belongs to `generation` of its slot.
    pub fn is_of(self, generation: u64) -> bool {
        u64::from(self.generation()) == generation & u64::from(Self::GENERATIONS - 1)
    }

    /// The slot.
    pub fn slot(self) -> u32 {
        self.0 as u32
    }

    /// The same slot and generation, another kind.
    pub fn with(self, kind: Kind) -> Self {
        Self((kind as u64) << 56 | self.0 & (u64::MAX >> 8))
    }

    /// As a number, for the kernel to carry.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// From the number that the kernel carried; `None` where it names no kind.
    pub fn from_bits(bits: u64) -> Option<Self> {
        Kind::from_byte((bits >> 56) as u8).map(|_| Self(bits))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}({}@{})", self.kind(), self.slot(), self.generation())
    }
}

/// Why an operation failed, in words that hold on every system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// It was cancelled, by a close, an abort or a stop.
    Cancelled,
    /// The peer reset the connection, or it was aborted by us (ECONNRESET, EPIPE, ENOTCONN).
    Reset,
    /// A queued connection was gone before it was accepted (ECONNABORTED, EPROTO).
    Aborted,
    /// Nobody listens there (ECONNREFUSED).
    Refused,
    /// No answer in time: the kernel's own time-out (ETIMEDOUT).
    TimedOut,
    /// No way there (ENETUNREACH, EHOSTUNREACH, ENETDOWN).
    Unreachable,
    /// Every local port of the source address is in use (EADDRNOTAVAIL, EADDRINUSE).
    NoPorts,
    /// This process may open no more descriptors (EMFILE).
    ProcessDescriptors,
    /// The system has no more files (ENFILE).
    SystemDescriptors,
    /// The kernel has no buffer for it (ENOBUFS, WSAENOBUFS).
    Buffers,
    /// A stream found no block of those that were [provided](Driver::provide): all of them hold
    /// bytes. The kernel is short of nothing.
    NoBlock,
    /// The kernel has no memory for it (ENOMEM).
    Memory,
    /// The user may have no more connections watched by epoll (ENOSPC: `fs.epoll.max_user_watches`).
    Watches,
    /// A send that was to be carried out at once could not be (EAGAIN): nothing was taken.
    WouldBlock,
    /// Anything else: see the code.
    Unexpected,
}

/// A failed operation: the fault, and the system's own code for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{fault:?} ({})", std::io::Error::from_raw_os_error(*.code))]
pub struct Failure {
    /// What it means.
    pub fault: Fault,
    /// `errno`, or what `WSAGetLastError` gave.
    pub code: i32,
}

impl From<Failure> for std::io::Error {
    fn from(failure: Failure) -> Self {
        Self::from_raw_os_error(failure.code)
    }
}

/// A completed operation.
#[derive(Debug)]
pub struct Completion {
    /// The token it was posted with.
    pub token: Token,
    /// Bytes received or sent; 0 where nothing is counted. A receive of 0 bytes is the
    /// peer's end of stream.
    pub result: Result<u32, Failure>,
    /// The lease of a receive, come back: its bytes start where the receive was told to put them
    /// (a stream: at the block's start).
    pub lease: Option<Lease>,
    /// Whether more completions with this token will come: only a stream has that.
    pub more: bool,
}

/// Where an accepted connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// Into the slot that the token names, whose kind is [`Kind::Accept`].
    Slot,
    /// Into a socket, to be adopted by any shard. The token's kind is [`Kind::HandOver`], its slot
    /// only a number that the caller chose, below [`MAX_HANDED`], and its generation that number's.
    Socket,
}

/// How many accepts [`Into::Socket`] may be in flight at once, in one driver.
pub const MAX_HANDED: u32 = 64;

/// What an accept that succeeded brought.
#[derive(Debug)]
pub struct Accepted<S> {
    /// The address of the other end.
    pub peer: SocketAddr,
    /// The socket, for [`Into::Socket`].
    pub socket: Option<S>,
}

/// What a driver can do here, found out by trying it at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// The driver's name: `uring`, `ready`, `sim`, …
    pub name: &'static str,
    /// Whether [`Driver::stream`] works. Where it does not, the caller posts single receives.
    pub streams: bool,
    /// What was found, a line each, for a log: `direct descriptors: yes`, …
    pub notes: Vec<String>,
}

/// What a driver's pool of sockets has counted, where it has one: sockets that are made ahead of the
/// connections, or used again after them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolFigures {
    /// Sockets that were there when one was needed.
    pub hits: u64,
    /// Sockets that had to be made then.
    pub misses: u64,
    /// Sockets that came back from a connection, to be used again.
    pub returned: u64,
    /// Sockets that were too long on their way back, and were reset.
    pub expired: u64,
    /// Sockets that are ready now.
    pub idle: u64,
    /// The most that were ready at once.
    pub high_water: u64,
    /// Sockets on their way back now: disconnected, and not yet free of the last connection.
    pub limbo: u64,
    /// The most that were on their way at once.
    pub limbo_high_water: u64,
}

/// Wakes a driver that waits, from any thread. Several wakes before the next wait are one.
pub trait Wake: Send + Sync + 'static {
    /// Makes the driver's current, or next, [`Driver::wait`] return.
    fn wake(&self);
}

/// A kernel, as one shard sees it. Used by one thread.
pub trait Driver {
    /// What listens. Given to [`Driver::listen`].
    type Listener;
    /// A connection between two shards: accepted by one, not yet adopted by another.
    type Socket: Send + 'static;

    /// What this driver can do here.
    fn features(&self) -> &Features;

    /// Something that wakes this driver.
    fn waker(&self) -> Arc<dyn Wake>;

    /// The time now.
    fn now(&self) -> Nanos;

    /// Starts to listen. One listener at most.
    fn listen(&mut self, listener: Self::Listener);

    /// Stops listening: posted accepts complete, with [`Fault::Cancelled`] or with a connection
    /// that came first; those that wait in the backlog are reset by the kernel.
    fn close_listener(&mut self);

    /// Accepts one connection. Needs [`Driver::listen`]; without, or after
    /// [`Driver::close_listener`], it completes with [`Fault::Cancelled`]. After a success,
    /// [`Driver::accepted`] is called, before the next wait. Who has reset its connection while it
    /// waited in the accept queue is not brought: the accept fails with [`Fault::Aborted`], or goes
    /// on to the next.
    fn accept(&mut self, token: Token, into: Into);

    /// Accepts one connection [into a socket](Into::Socket) that this shard's driver will adopt.
    ///
    /// For kernels where the socket of an accept has to be chosen before the client comes: a driver
    /// may take one that was that shard's before. Elsewhere the same as [`Driver::accept`].
    fn accept_for(&mut self, token: Token, shard: u32) {
        let _ = shard;
        self.accept(token, Into::Socket);
    }

    /// What a completed accept brought. Once per success.
    fn accepted(&mut self, token: Token) -> Accepted<Self::Socket>;

    /// A success of an accept that the caller does not know, or not any more: closes what it
    /// brought, if there is anything under this token.
    fn discard(&mut self, token: Token);

    /// Tells a connection that nobody will serve it: sends what of `message` the kernel takes at
    /// once, then closes it; with an empty message it is reset. Never waits.
    fn refuse(&mut self, socket: Self::Socket, message: &[u8]);

    /// Puts a socket into a free slot: at once.
    ///
    /// # Errors
    ///
    /// The kernel's; the socket is closed then.
    fn adopt(&mut self, slot: u32, socket: Self::Socket) -> Result<(), Failure>;

    /// Connects a free slot to `remote`, from the address `source` if there is one (port 0: any).
    /// A failed connect leaves the slot free.
    fn connect(&mut self, token: Token, remote: SocketAddr, source: Option<SocketAddr>);

    /// Completes when there is something to read, the peer has ended, or the connection has
    /// failed. Holds no buffer meanwhile: the smallest footprint that the kernel has.
    ///
    /// A success is no proof that there is something to read: an urgent (out-of-band) byte, which
    /// a receive skips, completes a park of `io_uring` too (Linux 6.18). So a receive that follows
    /// a park is to be [`at_once`](Driver::receive), or such a byte would pin its block.
    fn park(&mut self, token: Token);

    /// Receives once, into the lease's block from byte `start` to the block's end.
    ///
    /// With `at_once`, the completion is there after the next wait in any case: where there is
    /// nothing to read it fails with [`Fault::WouldBlock`]. Without, it completes when there is
    /// something to read, and the block is the kernel's until then.
    fn receive(&mut self, token: Token, lease: Lease, start: u32, at_once: bool);

    /// Receives again and again, into blocks that were [provided](Driver::provide): each
    /// completion brings one with bytes from its start. Ends (`more: false`) with the
    /// connection, by [`Driver::stop`], with [`Fault::NoBlock`] when no block is left, or whenever
    /// the kernel likes; the caller posts it again. Only where [`Features::streams`] says so.
    fn stream(&mut self, token: Token);

    /// Ends a [receive](Driver::receive), [stream](Driver::stream) or [park](Driver::park) early:
    /// it completes with [`Fault::Cancelled`], or with what came first.
    fn stop(&mut self, token: Token);

    /// Gives a block to the streams.
    fn provide(&mut self, lease: Lease);

    /// Takes back one block of those provided and unused, when no stream is in flight: for the
    /// accounts after a drain. `None` when there is none left.
    fn reclaim(&mut self) -> Option<Lease>;

    /// Sends the spans' bytes, in order. The caller keeps their leases, and changes none of the
    /// bytes until the completion, which tells how many were taken: fewer than asked is no error.
    ///
    /// With `at_once`, the completion is there after the next wait in any case: what the kernel
    /// does not take is not waited for ([`Fault::WouldBlock`] when it took nothing). Without, it
    /// completes when at least one byte was taken, or never would be.
    ///
    /// At most [`MAX_SPANS`] spans, of at least one byte together.
    fn send(&mut self, token: Token, spans: &[Span], at_once: bool);

    /// Sends our end of stream, after all bytes sent before. The other direction stays open.
    fn half_close(&mut self, token: Token);

    /// Closes, orderly: what was sent is still delivered, then our end of stream. (Bytes received
    /// and never read make most kernels send a reset instead, RFC 2525 §2.17.) Other operations of
    /// the slot are cancelled. Not for a slot whose accept is in flight: only
    /// [`Driver::close_listener`] ends that.
    fn close(&mut self, token: Token);

    /// Closes with a reset: what was not delivered is gone, in the kernel too, at once. Other
    /// operations of the slot are cancelled.
    fn abort(&mut self, token: Token);

    /// Carries out what was posted, waits until something has completed, a wake, or `until`, and
    /// appends what has completed to `out`: as many as are there, at most about
    /// `out.capacity() - out.len()`. `until` in the past does not wait; `None` waits for ever.
    /// May return with nothing. Returns the time after.
    ///
    /// # Errors
    ///
    /// Only what the driver cannot go on after: the shard ends.
    fn wait(&mut self, until: Option<Nanos>, out: &mut Vec<Completion>) -> std::io::Result<Nanos>;

    /// What its pool of sockets has counted; `None` where it has none.
    fn pool(&self) -> Option<PoolFigures> {
        None
    }
}

/// The most spans in one [`Driver::send`].
pub const MAX_SPANS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_keeps_its_parts() {
        for kind in Kind::ALL {
            let token = Token::new(kind, 0x1_2345_6789, u32::MAX);
            assert_eq!((token.kind(), token.slot()), (kind, u32::MAX));
            assert!(token.is_of(0x1_2345_6789));
            assert!(!token.is_of(0x1_2345_678a));
            assert_eq!(Token::from_bits(token.bits()), Some(token));
            assert_eq!(token.with(Kind::Send).kind(), Kind::Send);
        }
        assert_eq!(Token::from_bits(0), None);
        assert_eq!(Token::from_bits(u64::MAX), None);
    }

    #[test]
    fn a_completion_is_small() {
        assert!(size_of::<Completion>() <= 32, "{}", size_of::<Completion>());
    }
}
