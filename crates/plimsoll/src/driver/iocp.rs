//! A driver on Windows' completion ports.
//!
//! | intent | calls |
//! |---|---|
//! | accept | `AcceptEx` posted ahead with its socket, no receive buffer; `SO_UPDATE_ACCEPT_CONTEXT`, `GetAcceptExSockaddrs` |
//! | adopt | `CreateIoCompletionPort` |
//! | connect | `WSASocketW` (or a pooled one), `bind`, `ConnectEx`, `SO_UPDATE_CONNECT_CONTEXT` |
//! | park | a `WSARecv` of zero bytes: no buffer, no locked page |
//! | receive | `recv`, which does not block; where there is nothing, `WSARecv` into the lease |
//! | send | `WSASend`, which does not block; where there is no room, an overlapped one of up to 64 KiB |
//! | half-close | `shutdown`, after the send in flight |
//! | close | `CancelIoEx`; when all has completed: `DisconnectEx` with `TF_REUSE_SOCKET`, or `closesocket` |
//! | abort | `SO_LINGER` of 0 and `closesocket`: a reset |
//! | wait | `GetQueuedCompletionStatusEx`, up to 256 at once |
//! | wake | `PostQueuedCompletionStatus`, while the thread sleeps |
//!
//! There are no [streams](Driver::stream): receives are posted singly.
//!
//! # Names, not keys
//!
//! An operation is known by the address of its `OVERLAPPED`, beside which its token stands. The
//! completion key is 0 for all sockets and never looked at: a
//! socket stays with the port, and the key, of its first association for ever, and is used again by
//! other sessions.
//!
//! # Sockets used again
//!
//! A socket that was disconnected is pooled when that has completed: a limited number is on its way, for
//! a limited time. Accepted ones are only accepted again, connected ones only connected. Whether a
//! disconnected socket can be accepted into again is tried once in a
//! process, on loopback; where it cannot (Wine: it ignores `TF_REUSE_SOCKET`), sockets are made ahead
//! but not used again, and a note of [`Features`] says so. Shards lend what has come back to them to the
//! one that accepts ([`Driver::accept_for`]).
//!
//! # What it takes
//!
//! 40 bytes a slot here and 192 for its operations; 136 for each accept in flight, 320 at most. An idle
//! parked connection holds no buffer and locks no page. [`Driver::wait`] with a deadline comes
//! back late by up to a tick of the system's clock, 15.6 ms unless some program has asked for less.

#![allow(unsafe_code, reason = "operations that the kernel writes to, at fixed addresses")]

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::windows::io::{AsRawSocket, OwnedSocket};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::time::Duration;

use windows_sys::Win32::Networking::WinSock as ws;
use windows_sys::Win32::System::IO::OVERLAPPED_ENTRY;

pub use self::accepts::Handed;
use self::accepts::{Accept, Listening, Wish};
pub(crate) use self::exchange::Exchange;
use self::extensions::Extensions;
use self::operations::{Addresses, Operations, Pinned, Place};
#[cfg(test)]
pub(crate) use self::options::is_exclusive;
pub(crate) use self::options::reserve_address;
use self::pool::{Bounds, Pool};
use self::port::Port;
use self::slots::{ACCEPTED, CONNECTED, Slot, V6};
use self::system::Posted;
pub use self::unavailable::Unavailable;
use super::doorbell::Doorbell;
use super::{
    Accepted, Completion, Driver, Failure, Features, Into, Kind, MAX_HANDED, Nanos, PoolFigures,
    Token, Wake, monotonic,
};
use crate::buffer::{Lease, Memory, Span};

mod accepts;
pub(super) mod errors;
mod exchange;
mod extensions;
mod leave;
mod operations;
mod options;
mod pool;
mod port;
mod preflight;
mod slots;
mod system;
mod unavailable;
mod work;

#[cfg(test)]
mod tests;

/// Completions taken from the port at once, at most.
const BATCH: usize = 256;

/// Accepts that the kernel has at a time, at most: as many as an acceptor posts ahead.
const ACCEPTS: u32 = 256 + MAX_HANDED;

/// Bytes of one overlapped send, at most, but for its first span: it completes when all of them are
/// taken, and until then nobody knows how far it is.
const GATHERED: u32 = 64 << 10;

/// How the socket of a connection that ended orderly comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recycle {
    /// `DisconnectEx` with `TF_REUSE_SOCKET`.
    #[default]
    DisconnectEx,
    /// `TransmitFile` of nothing with `TF_DISCONNECT | TF_REUSE_SOCKET`: the older way. Workstation
    /// editions of Windows carry out two of these at a time.
    TransmitFile,
    /// Not at all: it is closed.
    Never,
}

/// What an [`Iocp`] is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Slots: `0..slots`.
    pub slots: u32,
    /// Fresh sockets kept ready for accepts; made when the driver begins to listen, and again when
    /// there is nothing else to do.
    pub ahead: u32,
    /// How sockets come back, where the system can.
    pub recycle: Recycle,
    /// Used sockets that are idle, at most, of those accepted and of those connected.
    pub idle: u32,
    /// Sockets on their way back, at most: beyond it they are closed.
    pub limbo: u32,
    /// How long one may be on its way, for which a `TIME_WAIT` or a peer that does not read may keep
    /// it: then it is reset.
    pub limbo_time: Duration,
}

impl Config {
    /// For `slots` slots, with a pool of as many sockets.
    pub fn new(slots: u32) -> Self {
        Self {
            slots,
            ahead: slots.min(64),
            recycle: Recycle::default(),
            idle: slots,
            limbo: slots.min(1024),
            limbo_time: Duration::from_secs(30),
        }
    }

    /// The same without a pool: each connection has a new socket.
    pub fn without_pool(self) -> Self {
        Self { ahead: 0, recycle: Recycle::Never, idle: 0, limbo: 0, ..self }
    }
}

/// A driver on a completion port.
///
/// Made on any thread, then used by one.
pub struct Iocp {
    port: Arc<Port>,
    doorbell: Arc<Doorbell<Arc<Port>>>,
    extensions: Extensions,
    /// Whether successes at once are told of by the call alone.
    skips: bool,
    recycle: Recycle,
    memory: Arc<Memory>,
    operations: ManuallyDrop<Operations>,
    addresses: ManuallyDrop<Pinned<Addresses>>,
    /// Operations that the kernel has.
    in_kernel: usize,
    entries: Box<[OVERLAPPED_ENTRY]>,
    slots: Vec<Slot>,
    /// Slots with something to say, each at most once.
    queue: VecDeque<u32>,
    listening: Option<Listening>,
    /// Accepts that are not posted yet.
    waiting: VecDeque<Wish>,
    accepts: Vec<Accept>,
    free_accepts: Vec<u32>,
    /// Accepts that brought something, in the order of their completions, until they are asked for.
    brought: VecDeque<u32>,
    pool: Pool<OwnedSocket>,
    /// Of the drivers of one server, and this one's number among them.
    exchange: Arc<Exchange<OwnedSocket>>,
    number: u32,
    /// The family of what it accepts.
    accepts_v6: bool,
    features: Features,
}

// SAFETY: the operations and addresses belong to this driver alone, and to no thread; entries hold
// addresses only, which are looked at after they were found in the table. Used by one thread at a
// time: whatever moves it there synchronises.
unsafe impl Send for Iocp {}

impl Iocp {
    /// A driver whose leases are of `memory`'s blocks. It allocates here and never again.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: what is missing, and what to do about it.
    pub fn new(config: &Config, memory: Arc<Memory>) -> Result<Self, Unavailable> {
        Self::of_server(config, memory, Arc::new(Exchange::new()))
    }

    /// A driver of a server's next shard: sockets that come back to it are lent to the one that
    /// accepts.
    pub(crate) fn of_server(
        config: &Config,
        memory: Arc<Memory>,
        exchange: Arc<Exchange<OwnedSocket>>,
    ) -> Result<Self, Unavailable> {
        let found = preflight::found()?;
        let port = Arc::new(Port::new().map_err(|error| Unavailable::Setup {
            doing: "making a completion port",
            code: error.raw_os_error().unwrap_or(0),
        })?);
        let recycle = if found.reuses.is_ok() { config.recycle } else { Recycle::Never };
        let (slots, recycles) = (config.slots as usize, recycle != Recycle::Never);
        let bounds = Bounds {
            ahead: config.ahead,
            idle: if recycles { config.idle } else { 0 },
            limbo: if recycles { config.limbo } else { 0 },
            limbo_time: config.limbo_time,
        };
        let accepts = ACCEPTS as usize;
        let limbo = bounds.limbo as usize;
        Ok(Self {
            doorbell: Arc::new(Doorbell::new(port.clone())),
            port,
            extensions: found.extensions,
            skips: found.skips.is_ok(),
            recycle,
            memory,
            operations: ManuallyDrop::new(Operations::new(slots, accepts, limbo)),
            addresses: ManuallyDrop::new(Pinned::new(accepts)),
            in_kernel: 0,
            entries: vec![OVERLAPPED_ENTRY::default(); BATCH].into(),
            slots: (0..slots).map(|_| Slot::default()).collect(),
            queue: VecDeque::with_capacity(slots),
            listening: None,
            waiting: VecDeque::with_capacity(slots + MAX_HANDED as usize),
            accepts: (0..accepts).map(|_| Accept::default()).collect(),
            free_accepts: (0..ACCEPTS).rev().collect(),
            brought: VecDeque::with_capacity(accepts),
            number: exchange.join(bounds.idle),
            exchange,
            accepts_v6: false,
            pool: Pool::new(bounds),
            features: Features { name: "iocp", streams: false, notes: notes(config, found) },
        })
    }

    /// Why sockets cannot be used again here; `None` where they can.
    pub(crate) fn why_no_reuse() -> Option<&'static str> {
        preflight::found().ok()?.reuses.as_ref().err().map(String::as_str)
    }

    #[inline]
    fn slot(&mut self, token: Token) -> &mut Slot {
        &mut self.slots[token.slot() as usize]
    }

    /// An operation that was begun is over, before the kernel had it.
    #[inline]
    fn finish(&mut self, token: Token, result: i32) {
        let slot = &mut self.slots[token.slot() as usize];
        slot.finish(token.kind(), result);
        slot.enqueue(token.slot(), &mut self.queue);
    }

    /// What became of an operation of a slot as it was posted.
    #[inline]
    fn posted(&mut self, token: Token, posted: Posted) {
        match posted {
            Posted::Pending => {
                self.in_kernel += 1;
                self.slot(token).post(token.kind());
            }
            Posted::Done(moved) => self.end(token.slot(), token.kind(), Ok(moved)),
            Posted::Failed(code) => self.end(token.slot(), token.kind(), Err(code)),
        }
    }

    /// Has a socket's operations complete at this driver's port, for as long as it lives.
    fn associate(&self, socket: &impl AsRawSocket) -> Result<(), i32> {
        self.port.associate(socket)?;
        if self.skips { system::skip_completions(socket) } else { Ok(()) }
    }

    /// Begins to connect.
    fn connect_now(
        &mut self,
        token: Token,
        remote: SocketAddr,
        source: Option<SocketAddr>,
    ) -> Result<(), i32> {
        let v6 = remote.is_ipv6();
        let pooled = if source.is_none() { self.pool.connected(v6) } else { None };
        let socket = match pooled {
            // Bound and associated since its first use.
            Some(socket) => socket,
            None => self.fresh_to_connect(v6, source)?,
        };
        let flags = if source.is_none() { CONNECTED } else { 0 } | if v6 { V6 } else { 0 };
        let armed = self.operations.arm(Place::Slot(token.slot(), Kind::Connect), Some(token));
        // SAFETY: operations are freed after the last completion only, and this one is not in
        // flight: the slot was free.
        let posted = unsafe { self.extensions.post_connect(&socket, remote, armed, self.skips) };
        self.slot(token).install(socket, flags);
        self.posted(token, posted);
        Ok(())
    }

    fn fresh_to_connect(&self, v6: bool, source: Option<SocketAddr>) -> Result<OwnedSocket, i32> {
        let socket = system::socket(v6)?;
        system::set(&socket, ws::IPPROTO_TCP, ws::TCP_NODELAY, 1_i32)?;
        system::unblock(&socket)?;
        let any: IpAddr =
            if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        // `ConnectEx` wants a socket that is bound.
        system::bind(&socket, source.unwrap_or_else(|| SocketAddr::new(any, 0)))?;
        self.associate(&socket)?;
        Ok(socket)
    }

    /// Closes a slot's connection, and cancels what is in flight there.
    fn end_connection(&mut self, token: Token, reset: bool) {
        let slot = &mut self.slots[token.slot() as usize];
        slot.begin(token);
        if slot.is_in_flight(Kind::HalfClose) {
            // It waited for the send, which is cancelled.
            slot.finish(Kind::HalfClose, -ws::WSA_OPERATION_ABORTED);
        }
        let connects = slot.is_in_flight(Kind::Connect);
        if let Some(socket) = &slot.socket {
            if reset {
                system::reset_on_close(socket);
            }
            if slot.has_posted() {
                system::cancel(socket, null());
            }
        }
        if reset || connects {
            // Closed here: what is posted completes by that, each at the port.
            drop(slot.socket.take());
        }
        slot.enqueue(token.slot(), &mut self.queue);
    }
}

/// What was found, for a log.
fn notes(config: &Config, found: &preflight::Found) -> Vec<String> {
    let skips = match &found.skips {
        Ok(()) => "completions of immediate successes: skipped".into(),
        Err(why) => format!("completions of immediate successes: taken from the port ({why})"),
    };
    let reuse = match (&found.reuses, config.recycle) {
        (_, Recycle::Never) => "sockets: not used again, as asked for".into(),
        (Ok(()), way) => format!("sockets: used again, by {way:?}"),
        (Err(why), _) => format!("sockets: made ahead, not used again ({why})"),
    };
    vec!["interface: completion port".into(), skips, reuse]
}

impl Driver for Iocp {
    type Listener = TcpListener;
    type Socket = Handed;

    fn features(&self) -> &Features {
        &self.features
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.doorbell.clone()
    }

    /// Nanoseconds of `QueryPerformanceCounter` since the first driver of the process was asked.
    fn now(&self) -> Nanos {
        monotonic()
    }

    fn listen(&mut self, listener: TcpListener) {
        self.begin_listening(listener);
    }

    fn close_listener(&mut self) {
        // Closed here: what is posted completes by that.
        self.listening = None;
        self.exchange.close();
    }

    fn accept(&mut self, token: Token, into: Into) {
        debug_assert_eq!(into == Into::Socket, token.kind() == Kind::HandOver, "{token:?}");
        if into == Into::Slot {
            self.slot(token).begin(token);
        }
        self.waiting.push_back(Wish { token, into, shard: None });
    }

    fn accept_for(&mut self, token: Token, shard: u32) {
        debug_assert_eq!(token.kind(), Kind::HandOver, "{token:?}");
        self.waiting.push_back(Wish { token, into: Into::Socket, shard: Some(shard) });
    }

    fn accepted(&mut self, token: Token) -> Accepted<Handed> {
        self.take_brought(token).expect("asked once, after an accept succeeded")
    }

    fn discard(&mut self, token: Token) {
        // The socket closes as it is dropped; a slot's connection is the slot's.
        drop(self.take_brought(token));
    }

    fn refuse(&mut self, Handed { socket, .. }: Handed, message: &[u8]) {
        if message.is_empty() {
            return system::reset_on_close(&socket);
        }
        let _ = system::send_bytes(&socket, message);
        let _ = system::end_stream(&socket);
        // A socket that is closed with unread bytes resets, and the reset overtakes the message
        // (RFC 2525 §2.17).
        let mut away = [0; 4096];
        for _ in 0..(64 << 10) / away.len() {
            if !system::receive(&socket, &mut away).is_ok_and(|count| count > 0) {
                return;
            }
        }
    }

    /// The socket stays with this driver's port for ever. One that belongs to another is refused: its
    /// completions would come there.
    fn adopt(&mut self, slot: u32, handed: Handed) -> Result<(), Failure> {
        if handed.home != Some(self.number) {
            self.associate(&handed.socket).map_err(errors::failure)?;
        }
        let flags = ACCEPTED | if handed.v6 { V6 } else { 0 };
        self.slots[slot as usize].install(handed.socket, flags);
        Ok(())
    }

    fn connect(&mut self, token: Token, remote: SocketAddr, source: Option<SocketAddr>) {
        self.slot(token).begin(token);
        if let Err(code) = self.connect_now(token, remote, source) {
            self.finish(token, -code);
        }
    }

    #[inline]
    fn park(&mut self, token: Token) {
        let slot = &mut self.slots[token.slot() as usize];
        slot.begin(token);
        let Some(socket) = &slot.socket else { return self.finish(token, -ws::WSAENOTCONN) };
        let armed = self.operations.arm(Place::Slot(token.slot(), Kind::Park), Some(token));
        // SAFETY: operations are freed after the last completion only, and this one is not in
        // flight: at most one of a kind is. No room is named.
        let posted = unsafe { system::post_receive(socket, (null_mut(), 0), armed, self.skips) };
        self.posted(token, posted);
    }

    #[inline]
    fn receive(&mut self, token: Token, mut lease: Lease, start: u32, at_once: bool) {
        let slot = &mut self.slots[token.slot() as usize];
        slot.begin(token);
        let room = &mut lease.bytes_mut(&self.memory)[start as usize..];
        let received = match &slot.socket {
            Some(socket) => system::receive(socket, room),
            None => Err(ws::WSAENOTCONN),
        };
        let room = (room.as_mut_ptr(), room.len() as u32);
        slot.lease = Some(lease);
        match (received, &slot.socket) {
            (Ok(count), _) => self.finish(token, count as i32),
            (Err(ws::WSAEWOULDBLOCK), Some(socket)) if !at_once => {
                let place = Place::Slot(token.slot(), Kind::Receive);
                let armed = self.operations.arm(place, Some(token));
                // SAFETY: operations are freed after the last completion only, and this one is not
                // in flight. The room is of the block whose lease the slot keeps until the receive
                // has completed, in memory that is kept until then.
                let posted = unsafe { system::post_receive(socket, room, armed, self.skips) };
                self.posted(token, posted);
            }
            (Err(code), _) => self.finish(token, -code),
        }
    }

    /// This driver has no streams ([`Features::streams`] is false, and so the shard posts none): the
    /// operation fails with [`super::Fault::Buffers`].
    fn stream(&mut self, token: Token) {
        self.slot(token).begin(token);
        self.finish(token, -ws::WSAENOBUFS);
    }

    fn stop(&mut self, token: Token) {
        let slot = &self.slots[token.slot() as usize];
        if let Some(socket) = &slot.socket
            && slot.is_posted(token.kind())
        {
            let place = Place::Slot(token.slot(), token.kind());
            system::cancel(socket, self.operations.overlapped(place));
        }
    }

    /// There are no streams to give it to: it is lost, as any lease that is dropped.
    fn provide(&mut self, lease: Lease) {
        debug_assert!(false, "no streams: {lease:?}");
    }

    fn reclaim(&mut self) -> Option<Lease> {
        None
    }

    #[inline]
    fn send(&mut self, token: Token, spans: &[Span], at_once: bool) {
        let slot = &mut self.slots[token.slot() as usize];
        slot.begin(token);
        let Some(socket) = &slot.socket else { return self.finish(token, -ws::WSAENOTCONN) };
        match system::send(socket, &self.memory, spans) {
            Ok(count) => self.finish(token, count as i32),
            Err(ws::WSAEWOULDBLOCK) if !at_once => {
                let armed = self.operations.arm(Place::Slot(token.slot(), Kind::Send), Some(token));
                let spans = head(spans);
                // SAFETY: operations are freed after the last completion only, and this one is not
                // in flight. The mapping is kept until then, and the caller keeps the bytes as they
                // are: the contract of `Driver::send`.
                let posted =
                    unsafe { system::post_send(socket, &self.memory, spans, armed, self.skips) };
                self.posted(token, posted);
            }
            Err(code) => self.finish(token, -code),
        }
    }

    fn half_close(&mut self, token: Token) {
        let slot = &mut self.slots[token.slot() as usize];
        slot.begin(token);
        slot.enqueue(token.slot(), &mut self.queue);
    }

    fn close(&mut self, token: Token) {
        self.end_connection(token, false);
    }

    fn abort(&mut self, token: Token) {
        self.end_connection(token, true);
    }

    fn wait(&mut self, until: Option<Nanos>, out: &mut Vec<Completion>) -> std::io::Result<Nanos> {
        self.turn(until, out)?;
        Ok(self.now())
    }

    fn pool(&self) -> Option<PoolFigures> {
        Some(self.pool.figures())
    }
}

/// The first spans, of [`GATHERED`] bytes together at most, or the first alone.
fn head(spans: &[Span]) -> &[Span] {
    let mut bytes = 0;
    let fits = |span: &&Span| {
        bytes += span.len;
        bytes <= GATHERED
    };
    let count = spans.iter().take_while(fits).count();
    &spans[..count.max(1).min(spans.len())]
}
