//! Connections that stay open, on which every echoed byte is checked.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use libc::EPOLLIN;

use super::Failure;
use super::servers::Server;
use crate::sys::{self, Epoll};

/// Length of the pattern, after which it repeats; what one `send` or `recv`
/// moves at most.
const PATTERN: usize = 64 * 1024;

/// Up to this many bytes received at once are compared in full, of more only
/// that many at either end.
const COMPARED: usize = 256;

/// Readiness events taken at once.
pub(super) const EVENTS: usize = 1024;

/// How long the last echoes of a slice may take.
pub(super) const DRAIN: Duration = Duration::from_secs(10);

/// All connections to one server.
pub(super) struct Clients {
    name: String,
    epoll: Epoll,
    connections: Vec<Client>,
    /// Twice [`PATTERN`] bytes, so that a piece from anywhere in the first
    /// half is contiguous.
    pattern: Vec<u8>,
    buffer: Vec<u8>,
    /// Bytes of a message.
    size: u64,
}

/// One connection. What is at `offset` of its stream is the pattern's byte at
/// `(offset + salt) % PATTERN`.
struct Client {
    stream: TcpStream,
    salt: u64,
    /// Bytes that may be sent by now.
    goal: u64,
    sent: u64,
    received: u64,
}

impl Clients {
    /// Opens all connections.
    pub(super) fn open(server: &Server, connections: usize, size: usize) -> Result<Self, Failure> {
        let name = &server.name;
        let failed = |what: &str, error: std::io::Error| {
            Failure::Server(format!("{name}: cannot {what}: {error}"))
        };
        let epoll = Epoll::new().map_err(|error| failed("open an epoll", error))?;
        let mut all = Vec::with_capacity(connections);
        for index in 0..connections {
            let open = || {
                let stream = TcpStream::connect(server.address)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                epoll.add(stream.as_raw_fd(), EPOLLIN, index as u64)?;
                Ok(stream)
            };
            let stream = open().map_err(|error| {
                failed(&format!("open connection {index} of {connections}"), error)
            })?;
            let salt = index as u64 * 97;
            all.push(Client { stream, salt, goal: 0, sent: 0, received: 0 });
        }
        let (pattern, buffer) = (pattern(), vec![0; PATTERN]);
        Ok(Self { name: name.clone(), epoll, connections: all, pattern, buffer, size: size as u64 })
    }

    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    fn failed(&self, index: usize, why: impl std::fmt::Display) -> Failure {
        Failure::Server(format!("{}: connection {index}: {why}", self.name))
    }

    /// What to say when replies are missing at the end of a slice.
    pub(super) fn missing(&self, messages: u64) -> Failure {
        let name = &self.name;
        Failure::Server(format!("{name}: {messages} messages have not come back within {DRAIN:?}"))
    }

    /// Waits for readable connections, whose indices are the tokens of the events.
    pub(super) fn wait(
        &self,
        events: &mut [libc::epoll_event],
        timeout: Duration,
    ) -> Result<usize, Failure> {
        self.epoll
            .wait_precisely(events, timeout)
            .map_err(|error| Failure::Machine(format!("epoll_pwait2: {error}")))
    }

    /// Sends more messages, and what is left of earlier ones: as much as the kernel takes. When it
    /// takes no more, echoes are on their way, and the next of them is the time to call this again.
    pub(super) fn send(&mut self, index: usize, messages: u64) -> Result<(), Failure> {
        let client = &mut self.connections[index];
        client.goal += messages * self.size;
        while client.sent < client.goal {
            let at = ((client.sent + client.salt) % PATTERN as u64) as usize;
            let length = (client.goal - client.sent).min(PATTERN as u64) as usize;
            match sys::send(client.stream.as_raw_fd(), &self.pattern[at..at + length]) {
                Ok(count) => client.sent += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(self.failed(index, error)),
            }
        }
        Ok(())
    }

    /// Receives once; returns the number of messages that are complete by it.
    pub(super) fn receive(&mut self, index: usize) -> Result<u64, Failure> {
        let client = &mut self.connections[index];
        let count = match sys::recv(client.stream.as_raw_fd(), &mut self.buffer) {
            Ok(0) => return Err(self.failed(index, "the server has closed it")),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(self.failed(index, error)),
        };
        let before = client.received;
        client.received += count as u64;
        let at = ((before + client.salt) % PATTERN as u64) as usize;
        let (got, wanted) = (&self.buffer[..count], &self.pattern[at..at + count]);
        let edge = count.min(COMPARED);
        let right = client.received <= client.sent
            && got[..edge] == wanted[..edge]
            && got[count - edge..] == wanted[count - edge..];
        if !right {
            let name = &self.name;
            return Err(Failure::Wrong(format!(
                "{name}: connection {index}: wrong bytes near offset {before} of its stream"
            )));
        }
        Ok(client.received / self.size - before / self.size)
    }
}

/// Pseudo-random bytes (splitmix64), repeated once.
fn pattern() -> Vec<u8> {
    let mut state = 0x5eed;
    let once: Vec<u8> =
        (0..PATTERN / 8).flat_map(|_| super::splitmix(&mut state).to_le_bytes()).collect();
    [once.as_slice(), once.as_slice()].concat()
}
