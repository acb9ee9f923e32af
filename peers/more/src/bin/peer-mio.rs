//! An echo server on mio: one thread, a slab of connections, one buffer of 16 KiB for all of them.
//!
//! Events are edge-triggered: what is ready must be taken until nothing is left. A `read` that
//! leaves room in the buffer has taken everything (epoll(7), question 9), which saves the second
//! `read` of each message, as tokio does it.

use std::io::{self, ErrorKind, Read, Write};

use clap::Parser;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use plimsoll_peers::peer::{self, BUFFER_BYTES, PeerArgs};
use slab::Slab;

/// The listener's token; connections carry their place in the slab.
const LISTENER: Token = Token(usize::MAX);

/// Events taken from the kernel at once.
const EVENTS: usize = 1024;

/// An echo server on mio, on one thread
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    peer: PeerArgs,
}

fn main() -> std::process::ExitCode {
    let args = Args::parse().peer;
    peer::exit(args.start().and_then(|listener| Server::new(listener, &args)?.run()))
}

struct Connection {
    stream: TcpStream,
    /// Bytes received that the kernel has not taken back yet; while there are any, nothing is read.
    unsent: Vec<u8>,
    /// The peer has sent its last byte.
    read_closed: bool,
    echoed: u64,
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    connections: Slab<Connection>,
    /// Out of descriptors with clients in the queue: no event will tell of them again.
    starved: bool,
    close_after: u64,
}

impl Server {
    fn new(listener: std::net::TcpListener, args: &PeerArgs) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let poll = Poll::new()?;
        let mut listener = TcpListener::from_std(listener);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let (connections, close_after) = (Slab::new(), args.close_after());
        Ok(Self { poll, listener, connections, starved: false, close_after })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                if event.token() == LISTENER {
                    self.accept()?;
                    continue;
                }
                let Token(key) = event.token();
                // An event of a connection that was closed earlier in the same batch.
                let Some(connection) = self.connections.get_mut(key) else { continue };
                connection.read_closed |= event.is_read_closed();
                if !connection.serve(&mut buffer, self.close_after) {
                    self.connections.remove(key);
                    if self.starved {
                        self.accept()?;
                    }
                }
            }
        }
    }

    /// Accepts until the queue is empty.
    fn accept(&mut self) -> io::Result<()> {
        self.starved = false;
        loop {
            match self.listener.accept() {
                Ok((mut stream, _)) => {
                    let entry = self.connections.vacant_entry();
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    self.poll.registry().register(&mut stream, Token(entry.key()), interest)?;
                    let (unsent, read_closed, echoed) = (Vec::new(), false, 0);
                    entry.insert(Connection { stream, unsent, read_closed, echoed });
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(()),
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                    _ if is_shortage(&error) => {
                        self.starved = true;
                        return Ok(());
                    }
                    _ => return Err(error),
                },
            }
        }
    }
}

impl Connection {
    /// Echoes until nothing is left to read or the kernel takes no more; false when it is over.
    fn serve(&mut self, buffer: &mut [u8], close_after: u64) -> bool {
        if !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            if !self.send(&unsent) {
                return false;
            }
        }
        while self.unsent.is_empty() && self.echoed < close_after {
            match self.stream.read(buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    if !self.send(&buffer[..count]) {
                        return false;
                    }
                    // The end of the stream is behind these bytes, and no event will tell of it.
                    if count < buffer.len() && !self.read_closed {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.echoed < close_after
    }

    /// Sends and keeps what is not taken; false when the connection has failed.
    fn send(&mut self, bytes: &[u8]) -> bool {
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.unsent.extend_from_slice(&bytes[sent..]);
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.echoed += sent as u64;
        true
    }
}

/// `EMFILE` and `ENFILE`, which the standard library has no stable kind for.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}
