//! Loopback, with peers on non-blocking sockets of the standard library: the world in which the
//! drivers of real kernels are tested.

#![allow(unsafe_code, reason = "a poll of one socket")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

#[cfg(unix)]
use super::errno::failure;
#[cfg(windows)]
use super::iocp::errors::failure;
use super::suite::{Family, Heard, Peer, PeerListener, Plan, World};
use super::{Driver, Fault};
use crate::buffer::{Arena, Memory};

pub(super) mod real;

/// A driver, as the suite wants it.
pub(super) trait Kind {
    /// Its type.
    type D: Driver<Listener = TcpListener>;

    /// One with streams, of as many blocks as the plan has.
    fn driver(plan: Plan, memory: Arc<Memory>) -> Self::D;

    /// How many operations are in flight.
    fn in_flight(driver: &Self::D) -> usize;
}

/// Such a driver in the real world.
pub(super) struct Loopback<K: Kind> {
    driver: K::D,
    arena: Arena,
}

impl<K: Kind> World for Loopback<K> {
    type D = K::D;
    type Peer = Stream;
    type PeerListener = Listener;

    fn new(plan: Plan) -> Self {
        let arena = Arena::new(plan.blocks, plan.block_bytes).unwrap();
        let driver = K::driver(plan, arena.memory().clone());
        Self { driver, arena }
    }

    fn beside(&mut self, plan: Plan) -> Self {
        Self::new(plan)
    }

    fn driver(&mut self) -> &mut K::D {
        &mut self.driver
    }

    fn arena(&mut self) -> &mut Arena {
        &mut self.arena
    }

    fn has(&mut self, family: Family) -> bool {
        TcpListener::bind(any_port(family)).is_ok()
    }

    fn listener(&mut self, family: Family, backlog: u32) -> (TcpListener, SocketAddr) {
        let socket = Socket::new(domain(family), Type::STREAM, None).unwrap();
        socket.bind(&any_port(family).into()).unwrap();
        socket.listen(backlog as i32).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn peer(&mut self, to: SocketAddr) -> Stream {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let outcome = match socket.connect(&to.into()) {
            Ok(()) => None,
            Err(error) if error.raw_os_error() == Some(GOES_ON) => None,
            Err(error) => Some(Err(fault(&error))),
        };
        Stream { socket: socket.into(), outcome, ended: false }
    }

    fn peer_listener(&mut self, family: Family) -> Listener {
        let listener = TcpListener::bind(any_port(family)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Listener(listener)
    }

    fn nobody(&mut self, family: Family) -> SocketAddr {
        // Bound by nobody any more; and the range of ports is large.
        TcpListener::bind(any_port(family)).unwrap().local_addr().unwrap()
    }

    fn wake_later(&mut self, after: Duration) {
        let waker = self.driver.waker();
        std::thread::spawn(move || {
            std::thread::sleep(after);
            waker.wake();
        });
    }

    fn check_empty(&mut self) {
        assert_eq!(K::in_flight(&self.driver), 0, "operations are left");
    }
}

/// A peer.
pub(super) struct Stream {
    socket: TcpStream,
    outcome: Option<Result<(), Fault>>,
    /// It has ended its stream.
    ended: bool,
}

impl Peer for Stream {
    fn connected(&mut self) -> Option<Result<(), Fault>> {
        if self.outcome.is_none() && has_decided(&self.socket) {
            self.outcome = Some(match self.socket.take_error().unwrap() {
                None => Ok(()),
                Some(error) => Err(fault(&error)),
            });
        }
        self.outcome
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        match (&self.socket).write(bytes) {
            Ok(count) => Ok(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(fault(&error)),
        }
    }

    fn read(&mut self, into: &mut [u8]) -> Heard {
        match (&self.socket).read(into) {
            Ok(0) if !self.ended && was_reset(&self.socket) => Heard::Reset,
            Ok(0) => Heard::End,
            Ok(count) => Heard::Bytes(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Heard::Nothing,
            Err(error) => {
                assert_eq!(fault(&error), Fault::Reset, "{error}");
                Heard::Reset
            }
        }
    }

    fn shutdown_write(&mut self) {
        self.ended = true;
        // Fails when the connection has been reset meanwhile, which the test will hear of.
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    fn reset(self) {
        SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// A listening peer.
pub(super) struct Listener(TcpListener);

impl PeerListener for Listener {
    type Peer = Stream;

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn accept(&mut self) -> Option<(Stream, SocketAddr)> {
        match self.0.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(true).unwrap();
                Some((Stream { socket: stream, outcome: Some(Ok(())), ended: false }, from))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// What a connect says that goes on.
#[cfg(unix)]
const GOES_ON: i32 = libc::EINPROGRESS;
#[cfg(windows)]
const GOES_ON: i32 = windows_sys::Win32::Networking::WinSock::WSAEWOULDBLOCK;

/// Whether a connect that went on has come to an end.
#[cfg(unix)]
fn has_decided(stream: &TcpStream) -> bool {
    use std::os::fd::AsRawFd;

    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd, written within the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// The same by `select`: `WSAPoll` did not tell of connects that fail before Windows 10, version 2004.
#[cfg(windows)]
fn has_decided(stream: &TcpStream) -> bool {
    use std::os::windows::io::AsRawSocket;

    use windows_sys::Win32::Networking::WinSock::{FD_SET, SOCKET, TIMEVAL, select};

    let mut writable = FD_SET { fd_count: 1, ..FD_SET::default() };
    writable.fd_array[0] = stream.as_raw_socket() as SOCKET;
    let mut failed = writable;
    let now = TIMEVAL::default();
    // SAFETY: two sets of one socket, written within the call, and a time.
    unsafe {
        select(0, std::ptr::null_mut(), &raw mut writable, &raw mut failed, &raw const now) > 0
    }
}

/// Whether what read as the end of a stream, whose other direction is open, was a reset. Wine's
/// server takes a socket's error from the kernel when it polls, so that a read finds none; that
/// nothing can be sent any more shows it. (Seen with Wine 8.) Elsewhere the read itself has failed.
fn was_reset(mut stream: &TcpStream) -> bool {
    cfg!(windows) && stream.write(&[]).is_err()
}

fn fault(error: &std::io::Error) -> Fault {
    failure(error.raw_os_error().unwrap_or(0)).fault
}

fn domain(family: Family) -> Domain {
    match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    }
}

fn any_port(family: Family) -> SocketAddr {
    match family {
        Family::V4 => SocketAddr::from(([127, 0, 0, 1], 0)),
        Family::V6 => SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0)),
    }
}
