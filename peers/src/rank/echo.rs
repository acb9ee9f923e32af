//! The load of an echo slice: a closed loop over connections that stay open.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use libc::EPOLLIN;

use super::servers::Server;
use super::{Failure, Load, Scenario, Work};
use crate::sys::{self, Epoll};

/// Length of the pattern, after which it repeats; what one `send` or `recv`
/// moves at most.
const PATTERN: usize = 64 * 1024;

/// Up to this many bytes received at once are compared in full, of more only
/// that many at either end.
const COMPARED: usize = 256;

/// Readiness events taken at once.
const EVENTS: usize = 1024;

/// How long the last echoes of a slice may take.
const DRAIN: Duration = Duration::from_secs(10);

/// All connections to one server.
pub(super) struct EchoLoad {
    name: String,
    epoll: Epoll,
    clients: Vec<Client>,
    /// Twice [`PATTERN`] bytes, so that a piece from anywhere in the first
    /// half is contiguous.
    pattern: Vec<u8>,
    buffer: Vec<u8>,
    size: u64,
    depth: u64,
    spin: bool,
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

impl EchoLoad {
    /// Opens all connections.
    pub(super) fn open(server: &Server, scenario: &Scenario) -> Result<Self, Failure> {
        let name = &server.name;
        let failed = |what: &str, error: std::io::Error| {
            Failure::Server(format!("{name}: cannot {what}: {error}"))
        };
        let epoll = Epoll::new().map_err(|error| failed("open an epoll", error))?;
        let mut clients = Vec::with_capacity(scenario.connections);
        for index in 0..scenario.connections {
            let open = || {
                let stream = TcpStream::connect(server.address)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                epoll.add(stream.as_raw_fd(), EPOLLIN, index as u64)?;
                Ok(stream)
            };
            let stream = open().map_err(|error| {
                failed(&format!("open connection {index} of {}", scenario.connections), error)
            })?;
            let salt = index as u64 * 97;
            clients.push(Client { stream, salt, goal: 0, sent: 0, received: 0 });
        }
        Ok(Self {
            name: name.clone(),
            epoll,
            clients,
            pattern: pattern(),
            buffer: vec![0; PATTERN],
            size: scenario.size as u64,
            depth: scenario.depth as u64,
            spin: scenario.spins(),
        })
    }

    fn failed(&self, index: usize, why: impl std::fmt::Display) -> Failure {
        Failure::Server(format!("{}: connection {index}: {why}", self.name))
    }

    /// Sends up to the goal, or what the kernel takes: when it takes no more,
    /// echoes are on their way, and the next of them brings us back here.
    fn pump(&mut self, index: usize) -> Result<(), Failure> {
        let client = &mut self.clients[index];
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
    fn receive(&mut self, index: usize) -> Result<u64, Failure> {
        let client = &mut self.clients[index];
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

impl Load for EchoLoad {
    fn slice(&mut self, duration: Duration) -> Result<Work, Failure> {
        let started = Instant::now();
        let (end, give_up) = (started + duration, started + duration + DRAIN);
        for index in 0..self.clients.len() {
            self.clients[index].goal += self.size * self.depth;
            self.pump(index)?;
        }
        let mut outstanding = self.clients.len() as u64 * self.depth;
        let mut messages = 0;
        let mut events = vec![sys::NO_EVENT; EVENTS];
        let patience = if self.spin { Duration::ZERO } else { Duration::from_millis(100) };
        while outstanding > 0 {
            let count = self
                .epoll
                .wait(&mut events, Some(patience))
                .map_err(|error| Failure::Machine(format!("epoll_wait: {error}")))?;
            let now = Instant::now();
            if now >= give_up {
                return Err(Failure::Server(format!(
                    "{}: {outstanding} messages have not come back within {DRAIN:?}",
                    self.name
                )));
            }
            for event in &events[..count] {
                let index = event.u64 as usize;
                let complete = self.receive(index)?;
                messages += complete;
                if now < end {
                    self.clients[index].goal += complete * self.size;
                } else {
                    outstanding -= complete;
                }
                self.pump(index)?;
            }
        }
        Ok(Work { units: messages, elapsed: started.elapsed() })
    }
}

/// Pseudo-random bytes (splitmix64), repeated once.
fn pattern() -> Vec<u8> {
    let mut state = 0x5eed;
    let once: Vec<u8> =
        (0..PATTERN / 8).flat_map(|_| super::splitmix(&mut state).to_le_bytes()).collect();
    [once.as_slice(), once.as_slice()].concat()
}
