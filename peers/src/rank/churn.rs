//! The load of a churn slice: connect, one echo, close, again and again.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use libc::{EPOLLIN, EPOLLOUT};

use super::servers::Server;
use super::{Closes, Failure, Load, Scenario, Work};
use crate::sys::{self, Epoll};

/// Source addresses in turn: the side that closes first keeps the port in
/// `TIME_WAIT` for a minute, and one address has some 28,000.
const SOURCES: u32 = 200;

/// How long the last cycles of a slice may take.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the server gets to see the last closes of a slice.
const SETTLE: Duration = Duration::from_millis(5);

/// Cycles against one server, a fixed number of them at a time.
pub(super) struct ChurnLoad {
    name: String,
    target: SocketAddrV4,
    epoll: Epoll,
    cycles: Vec<Cycle>,
    message: Vec<u8>,
    buffer: Vec<u8>,
    closes: Closes,
    spin: bool,
    started: u32,
}

/// One connection's short life.
#[derive(Default)]
struct Cycle {
    socket: Option<OwnedFd>,
    connected: bool,
    received: usize,
}

impl ChurnLoad {
    pub(super) fn new(
        server: &Server,
        scenario: &Scenario,
        closes: Closes,
    ) -> Result<Self, Failure> {
        let epoll = Epoll::new()
            .map_err(|error| Failure::Machine(format!("cannot open an epoll: {error}")))?;
        let mut state = 0xc0de;
        Ok(Self {
            name: server.name.clone(),
            target: server.address,
            epoll,
            cycles: (0..scenario.connections).map(|_| Cycle::default()).collect(),
            message: (0..scenario.size).map(|_| super::splitmix(&mut state) as u8).collect(),
            buffer: vec![0; scenario.size + 1],
            closes,
            spin: scenario.spins(),
            started: 0,
        })
    }

    fn failed(&self, what: &str, error: impl std::fmt::Display) -> Failure {
        Failure::Server(format!("{}: {what}: {error}", self.name))
    }

    fn begin(&mut self, index: usize) -> Result<(), Failure> {
        self.started = self.started.wrapping_add(1);
        let source =
            Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + self.started % SOURCES);
        let open = || {
            let socket = sys::connect_from(source, self.target)?;
            self.epoll.add(socket.as_raw_fd(), EPOLLOUT, index as u64)?;
            Ok(socket)
        };
        let socket = open().map_err(|error: std::io::Error| self.failed("connect", error))?;
        self.cycles[index] = Cycle { socket: Some(socket), connected: false, received: 0 };
        Ok(())
    }

    /// One readiness of one cycle; true when the cycle is over.
    fn advance(&mut self, index: usize) -> Result<bool, Failure> {
        let cycle = &mut self.cycles[index];
        let Some(socket) = cycle.socket.as_ref() else { return Ok(false) };
        let raw = socket.as_raw_fd();
        if !cycle.connected {
            cycle.connected = true;
            sys::take_error(raw).map_err(|error| self.failed("connect", error))?;
            let sent = sys::send(raw, &self.message).map_err(|error| self.failed("send", error))?;
            if sent < self.message.len() {
                return Err(
                    self.failed("send", "the first message does not fit the kernel's buffer")
                );
            }
            self.epoll
                .modify(raw, EPOLLIN, index as u64)
                .map_err(|error| self.failed("epoll_ctl", error))?;
            return Ok(false);
        }
        let at = cycle.received;
        let count = match sys::recv(raw, &mut self.buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(self.failed("receive", error)),
        };
        if self.message.get(at..at + count) != Some(&self.buffer[..count]) {
            return Err(Failure::Wrong(format!("{}: wrong bytes in an echo", self.name)));
        }
        cycle.received += count;
        if cycle.received < self.message.len() {
            let early = count == 0;
            return if early { Err(self.failed("receive", "closed too early")) } else { Ok(false) };
        }
        if self.closes == Closes::Reset {
            sys::set_reset_on_close(socket).map_err(|error| self.failed("SO_LINGER", error))?;
        }
        Ok(self.closes != Closes::Server || count == 0)
    }
}

impl Load for ChurnLoad {
    fn slice(&mut self, duration: Duration) -> Result<Work, Failure> {
        let started = Instant::now();
        let (end, give_up) = (started + duration, started + duration + DRAIN);
        for index in 0..self.cycles.len() {
            self.begin(index)?;
        }
        let (mut running, mut done) = (self.cycles.len(), 0);
        let mut events = vec![sys::NO_EVENT; self.cycles.len()];
        let patience = if self.spin { Duration::ZERO } else { Duration::from_millis(100) };
        while running > 0 {
            let count = self
                .epoll
                .wait(&mut events, Some(patience))
                .map_err(|error| self.failed("epoll_wait", error))?;
            let now = Instant::now();
            if now >= give_up {
                return Err(self.failed("churn", format!("{running} cycles stuck for {DRAIN:?}")));
            }
            for event in &events[..count] {
                let index = event.u64 as usize;
                if !self.advance(index)? {
                    continue;
                }
                done += 1;
                // Closed here, so that its place is free before the next begins.
                self.cycles[index].socket = None;
                if now < end {
                    self.begin(index)?;
                } else {
                    running -= 1;
                }
            }
        }
        let elapsed = started.elapsed();
        std::thread::sleep(SETTLE);
        Ok(Work { units: done, elapsed, pace: None })
    }
}
