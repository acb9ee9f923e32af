//! A plain epoll echo server, as one would write it in C: one thread,
//! level-triggered, one `recv` and one `send` for each readiness, into and out
//! of one buffer of 16 KiB for all connections.
//!
//! What `send` does not take is kept, reading stops, and `EPOLLOUT` is armed
//! until it is gone: a client that does not read costs at most one buffer.

use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use clap::Parser;
use libc::{EPOLLIN, EPOLLOUT};
use plimsoll_peers::peer::{self, BUFFER_BYTES, PeerArgs};
use plimsoll_peers::sys::{self, Epoll};

/// Events taken from the kernel at once.
const EVENTS: usize = 1024;

/// The token of the listener; connections carry their descriptor.
const LISTENER: u64 = u64::MAX;

/// A plain epoll echo server
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    peer: PeerArgs,

    /// Spin for so many nanoseconds before each echo: a server that is known to need more
    #[arg(long, value_name = "NS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_000_000_000))]
    burn: u64,
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    peer::exit(args.peer.start().and_then(|listener| Server::new(listener, &args)?.run()))
}

struct Connection {
    socket: OwnedFd,
    /// Bytes received and not yet taken by `send`; while there are any, the
    /// connection is watched for `EPOLLOUT` only.
    unsent: Vec<u8>,
    echoed: u64,
}

struct Server {
    epoll: Epoll,
    listener: TcpListener,
    /// False while out of descriptors: a watched listener would wake us for ever.
    accepting: bool,
    /// By descriptor: the kernel always hands out the lowest free one.
    connections: Vec<Option<Connection>>,
    close_after: u64,
    burn: Duration,
}

impl Server {
    fn new(listener: TcpListener, args: &Args) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        epoll.add(listener.as_raw_fd(), EPOLLIN, LISTENER)?;
        Ok(Self {
            epoll,
            listener,
            accepting: true,
            connections: Vec::new(),
            close_after: args.peer.close_after(),
            burn: Duration::from_nanos(args.burn),
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = vec![sys::NO_EVENT; EVENTS];
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = self.epoll.wait(&mut events, None)?;
            for event in &events[..count] {
                if event.u64 == LISTENER {
                    self.accept()?;
                } else if !self.serve(event.u64 as RawFd, &mut buffer)? {
                    self.close(event.u64 as RawFd)?;
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            match sys::accept(self.listener.as_raw_fd()) {
                Ok(socket) => {
                    let fd = socket.as_raw_fd();
                    self.epoll.add(fd, EPOLLIN, fd as u64)?;
                    if self.connections.len() <= fd as usize {
                        self.connections.resize_with(fd as usize + 1, || None);
                    }
                    self.connections[fd as usize] =
                        Some(Connection { socket, unsent: Vec::new(), echoed: 0 });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    // Out of descriptors: wait for one of ours to be closed.
                    Some(libc::EMFILE | libc::ENFILE) => return self.watch_listener(false),
                    // The client has gone before we came to it: the next one, please.
                    Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// Echoes what one readiness brings; false when the connection is over.
    fn serve(&mut self, fd: RawFd, buffer: &mut [u8]) -> io::Result<bool> {
        // An event of a connection that was closed earlier in the same batch.
        let Some(connection) = self.connections[fd as usize].as_mut() else { return Ok(true) };
        if !connection.unsent.is_empty() {
            let Some(sent) = progress(sys::send(fd, &connection.unsent)) else { return Ok(false) };
            connection.unsent.drain(..sent);
            connection.echoed += sent as u64;
            if connection.unsent.is_empty() {
                self.epoll.modify(fd, EPOLLIN, fd as u64)?;
            }
            return Ok(connection.echoed < self.close_after);
        }
        let count = match sys::recv(fd, buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(error) => return Ok(error.kind() == ErrorKind::WouldBlock),
        };
        if !self.burn.is_zero() {
            let start = Instant::now();
            while start.elapsed() < self.burn {}
        }
        let Some(sent) = progress(sys::send(fd, &buffer[..count])) else { return Ok(false) };
        connection.echoed += sent as u64;
        if sent < count {
            connection.unsent.extend_from_slice(&buffer[sent..count]);
            self.epoll.modify(fd, EPOLLOUT, fd as u64)?;
        }
        Ok(connection.echoed < self.close_after)
    }

    fn close(&mut self, fd: RawFd) -> io::Result<()> {
        if let Some(connection) = self.connections[fd as usize].take() {
            drop(connection.socket);
        }
        if self.accepting { Ok(()) } else { self.watch_listener(true) }
    }

    fn watch_listener(&mut self, accepting: bool) -> io::Result<()> {
        self.accepting = accepting;
        let interest = if accepting { EPOLLIN } else { 0 };
        self.epoll.modify(self.listener.as_raw_fd(), interest, LISTENER)
    }
}

/// The bytes taken; none when the kernel's buffer is full; `None` when the
/// connection has failed.
fn progress(sent: io::Result<usize>) -> Option<usize> {
    match sent {
        Ok(count) => Some(count),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Some(0),
        Err(_) => None,
    }
}
