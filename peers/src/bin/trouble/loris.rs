//! Peers that connect and say nothing, and come again as soon as they are closed.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use plimsoll_peers::sys::{self, Epoll};

use crate::good::{Good, Pairs, at};
use crate::server::Server;
use crate::{Options, Result};

/// A tick of the engine's wheel of deadlines, 2²⁴ ns.
const TICK: Duration = Duration::from_micros(16_778);
/// How late a peer may be closed beyond deadline and tick.
const SLACK: Duration = Duration::from_millis(50);
const CLIENTS: usize = 50;

pub(crate) fn run(options: &Options) -> Result<()> {
    let (count, deadline, pairs, length) = if options.full {
        (5_000, Duration::from_secs(5), 9, Duration::from_secs(2))
    } else {
        (500, Duration::from_secs(1), 4, Duration::from_millis(500))
    };
    println!(
        "loris: {count} peers that say nothing, to be closed after {deadline:?}; {CLIENTS} clients ask beside them"
    );
    let cpus = sys::allowed_cpus()?;
    let (first, last) = (cpus[0], cpus[cpus.len() - 1]);
    let first_byte = format!("{}ms", deadline.as_millis());
    let limits =
        ["--max-connections", "6000", "--shards", "1", "--first-byte-timeout", &first_byte];
    let server = Server::start(options, &limits, Some(first))?;
    sys::pin(last)?;
    let mut good = Good::connect(&server, CLIENTS)?;
    let mut results = Pairs::new(options.foreign);
    let mut late = Vec::new();
    good.slice(length, || Ok(()))?;
    while !results.are(pairs) {
        let without = good.slice(length, || Ok(()))?;
        let mut crowd = Crowd::new(server.address, deadline)?;
        crowd.gather(count)?;
        // The crowd is closed and comes again once before anything is measured.
        crowd.live(deadline)?;
        crowd.closed.clear();
        let with = good.slice(length, || crowd.step())?;
        late.append(&mut crowd.closed);
        drop(crowd);
        server.await_sessions(CLIENTS as u64, Duration::from_secs(20))?;
        results.push(without, with);
    }
    report(&mut late, deadline);
    results.print(1.25);
    println!("  ended: {}", server.figures()?.ended());
    drop(good);
    server.end()?;
    Ok(())
}

/// When peers were closed: since the beginning and since the end of their connect.
fn report(closed: &mut [(Duration, Duration)], deadline: Duration) {
    let early = closed.iter().filter(|(since_begun, _)| *since_begun < deadline).count();
    let late = closed.iter().filter(|(_, since)| *since > deadline + TICK + SLACK).count();
    let mut beyond: Vec<_> =
        closed.iter().map(|(_, since)| since.saturating_sub(deadline)).collect();
    beyond.sort();
    if beyond.is_empty() {
        return println!("  nobody was closed within the slices");
    }
    println!(
        "  {} closed within the slices: {early} before the deadline, {late} later than deadline + tick + 50 ms; \
         after the deadline: least {:.1?}, median {:.1?}, 99 % {:.1?}, most {:.1?}",
        beyond.len(),
        beyond[0],
        at(&beyond, 0.5),
        at(&beyond, 0.99),
        beyond[beyond.len() - 1]
    );
}

/// Peers that are closed and connect again.
struct Crowd {
    server: SocketAddrV4,
    deadline: Duration,
    epoll: Epoll,
    peers: Vec<Peer>,
    /// Events that have not been looked at.
    events: VecDeque<u64>,
    /// How long each peer that was closed had been connected.
    closed: Vec<(Duration, Duration)>,
}

struct Peer {
    socket: OwnedFd,
    begun: Instant,
    connected: Instant,
}

impl Peer {
    fn connect(server: SocketAddrV4) -> Result<Self> {
        let begun = Instant::now();
        let socket = sys::connect_from(Ipv4Addr::LOCALHOST, server)?;
        sys::set_reset_on_close(&socket)?;
        Ok(Self { socket, begun, connected: Instant::now() })
    }
}

impl Crowd {
    fn new(server: SocketAddrV4, deadline: Duration) -> Result<Self> {
        let (peers, events, closed) = (Vec::new(), VecDeque::new(), Vec::new());
        Ok(Self { server, deadline, epoll: Epoll::new()?, peers, events, closed })
    }

    /// Connects them all, spread over the deadline, so that they are closed one by one.
    fn gather(&mut self, count: usize) -> Result<()> {
        let begun = Instant::now();
        for number in 0..count {
            let peer = Peer::connect(self.server)?;
            self.epoll.add(peer.socket.as_raw_fd(), libc::EPOLLIN, number as u64)?;
            self.peers.push(peer);
            let due = self.deadline.mul_f64((number + 1) as f64 / count as f64);
            while begun.elapsed() < due {
                self.step()?;
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        Ok(())
    }

    /// Lives on for a while.
    fn live(&mut self, time: Duration) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.step()?;
            if self.events.is_empty() {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        Ok(())
    }

    /// One peer that has been closed, if there is one, comes again.
    fn step(&mut self) -> Result<()> {
        if self.events.is_empty() {
            let mut events = [sys::NO_EVENT; 16];
            let count = self.epoll.wait(&mut events, Some(Duration::ZERO))?;
            let now = Instant::now();
            for event in &events[..count] {
                let token = event.u64;
                let peer = &self.peers[token as usize];
                self.closed.push((now - peer.begun, now - peer.connected));
                self.events.push_back(token);
            }
        }
        let Some(token) = self.events.pop_front() else { return Ok(()) };
        let peer = Peer::connect(self.server)?;
        // The old descriptor leaves the epoll as it is closed.
        self.epoll.add(peer.socket.as_raw_fd(), libc::EPOLLIN, token)?;
        self.peers[token as usize] = peer;
        Ok(())
    }
}
