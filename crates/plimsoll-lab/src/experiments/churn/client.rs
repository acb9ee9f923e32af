//! The client's thread: a ring of connections, each call timed.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::{End, Options, Variant};
use crate::statistics::median;
use crate::sys::{self, Poll, Wanted};
use crate::{Error, Result, errno};

/// The parts of a cycle, in the order of [`Turn::parts`].
pub(super) const PARTS: [&str; 4] = ["socket", "connect", "echo", "disconnect"];
const SOCKET: usize = 0;
const CONNECT: usize = 1;
const ECHO: usize = 2;
const DISCONNECT: usize = 3;

/// How long a reply is spun for before the thread sleeps: about what a wake-up costs.
const SPIN: Duration = Duration::from_micros(30);
/// So many failures without a cycle between them end the run.
const FAILURES_MAX: u64 = 100;

/// Times of one part.
#[derive(Debug, Default)]
pub(super) struct Part {
    sum: Duration,
    /// Of each cycle, in nanoseconds.
    each: Vec<u32>,
}

impl Part {
    fn add(&mut self, time: Duration) {
        self.sum += time;
        self.each.push(u32::try_from(time.as_nanos()).unwrap_or(u32::MAX));
    }

    pub(super) fn mean_us(&self) -> Option<f64> {
        (!self.each.is_empty()).then(|| self.sum.as_secs_f64() * 1e6 / self.each.len() as f64)
    }

    pub(super) fn median_us(&self) -> Option<f64> {
        let each: Vec<f64> = self.each.iter().map(|ns| f64::from(*ns) * 1e-3).collect();
        median(&each)
    }
}

/// What one turn gave.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) cycles: u64,
    pub(super) seconds: f64,
    pub(super) client_cpu: Duration,
    pub(super) server_cpu: Option<Duration>,
    /// What the server took from its pools and had to make, by name.
    pub(super) server_pools: Option<BTreeMap<String, u64>>,
    pub(super) parts: [Part; 4],
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) hits: u64,
    pub(super) misses: u64,
}

impl Turn {
    pub(super) fn rate(&self) -> f64 {
        self.cycles as f64 / self.seconds.max(1e-9)
    }
}

/// A client for one turn. Its pool lives as long.
pub(super) struct Client<'a> {
    address: SocketAddr,
    variant: Variant,
    options: &'a Options,
    /// The second byte of the source addresses; `None` leaves them to the route.
    network: Option<u8>,
    /// The first source address of this turn.
    source: u32,
    message: Vec<u8>,
    reply: Vec<u8>,
    cycle: u64,
    pool: Vec<Socket>,
}

/// A connection whose message is under way.
struct Flight {
    socket: Socket,
    cycle: u64,
    /// Time spent on it so far, by part.
    spent: [Duration; 4],
}

/// What went wrong with one cycle.
#[derive(Debug)]
enum Failure {
    Io(io::Error),
    /// The server closed before the whole reply was there.
    Closed,
    Timeout,
    Corrupt,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl<'a> Client<'a> {
    pub(super) fn new(
        address: SocketAddr,
        variant: Variant,
        options: &'a Options,
        network: Option<u8>,
        sweep: u32,
    ) -> Self {
        Self {
            address,
            variant,
            options,
            network,
            source: sweep.wrapping_mul(options.concurrency as u32),
            message: (0..options.size).map(|at| (at * 31 + 7) as u8).collect(),
            reply: vec![0; options.size],
            cycle: 0,
            pool: Vec::new(),
        }
    }

    /// Cycles for `length`, then finishes those under way.
    pub(super) fn run(&mut self, length: Duration) -> Result<Turn> {
        let mut turn = Turn::default();
        let mut ring: Vec<Option<Flight>> = (0..self.options.concurrency).map(|_| None).collect();
        let mut failures = 0;
        let cpu = sys::thread_cpu();
        let start = Instant::now();
        let mut starting = true;
        while starting || ring.iter().any(Option::is_some) {
            for (slot, place) in ring.iter_mut().enumerate() {
                let finished = place.take().map_or(Ok(()), |flight| self.finish(flight, &mut turn));
                let started =
                    if starting { self.begin(slot as u32, &mut turn).map(Some) } else { Ok(None) };
                for failure in [finished.err(), started.as_ref().err().map(Failure::again)]
                    .into_iter()
                    .flatten()
                {
                    // A reply that never comes costs the whole timeout: few of those suffice.
                    failures +=
                        if matches!(failure, Failure::Timeout) { FAILURES_MAX / 4 } else { 1 };
                    *turn.errors.entry(failure.name()).or_insert(0) += 1;
                    if failures >= FAILURES_MAX {
                        return Err(failure.into_error(self.address, self.options));
                    }
                }
                *place = started.unwrap_or(None);
            }
            if turn.cycles > 0 {
                failures = 0;
            }
            starting = starting && start.elapsed() < length;
        }
        turn.seconds = start.elapsed().as_secs_f64();
        turn.client_cpu = sys::thread_cpu().saturating_sub(cpu);
        Ok(turn)
    }

    /// Takes or makes a socket, connects it, sends the message.
    fn begin(&mut self, slot: u32, turn: &mut Turn) -> Result<Flight, Failure> {
        let mut spent = [Duration::ZERO; 4];
        let start = Instant::now();
        let socket = match self.pool.pop() {
            Some(socket) => {
                turn.hits += 1;
                socket
            }
            None => {
                turn.misses += u64::from(self.variant.client_recycles());
                self.make(slot)?
            }
        };
        let made = Instant::now();
        match socket.connect(&self.address.into()) {
            Ok(()) => {}
            Err(error) if errno::in_progress(&error) => {}
            Err(error) => {
                // The next one has another source address.
                self.source = self.source.wrapping_add(self.options.concurrency as u32);
                return Err(error.into());
            }
        }
        let connected = Instant::now();
        self.cycle += 1;
        stamp(&mut self.message, self.cycle);
        self.send_all(&socket)?;
        spent[SOCKET] = made - start;
        spent[CONNECT] = connected - made;
        spent[ECHO] = connected.elapsed();
        Ok(Flight { socket, cycle: self.cycle, spent })
    }

    /// Receives and verifies the reply, and disconnects.
    fn finish(&mut self, flight: Flight, turn: &mut Turn) -> Result<(), Failure> {
        let Flight { socket, cycle, mut spent } = flight;
        let start = Instant::now();
        self.receive(&socket, cycle)?;
        let received = Instant::now();
        spent[ECHO] += received - start;
        self.disconnect(socket)?;
        spent[DISCONNECT] = received.elapsed();
        for (part, time) in turn.parts.iter_mut().zip(spent) {
            part.add(time);
        }
        turn.cycles += 1;
        Ok(())
    }

    fn make(&self, slot: u32) -> Result<Socket, Failure> {
        let socket = sys::stream_socket(self.address)?;
        if let Some(network) = self.network {
            sys::bind_source(&socket, source(network, self.source.wrapping_add(slot)).into())?;
        }
        Ok(socket)
    }

    fn send_all(&self, socket: &Socket) -> Result<(), Failure> {
        let mut rest = &self.message[..];
        while !rest.is_empty() {
            match (&mut &*socket).write(rest) {
                Ok(sent) => rest = &rest[sent..],
                // The handshake is not over, or the peer reads nothing yet.
                Err(error) if is_not_yet(&error) => self.wait(socket, Wanted::Write)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn receive(&mut self, socket: &Socket, cycle: u64) -> Result<(), Failure> {
        let mut filled = 0;
        while filled < self.reply.len() {
            match self.read(socket, filled)? {
                0 => return Err(Failure::Closed),
                count => filled += count,
            }
        }
        stamp(&mut self.message, cycle);
        if self.reply == self.message { Ok(()) } else { Err(Failure::Corrupt) }
    }

    /// Reads into the reply from `filled` on: spins first, then sleeps.
    fn read(&mut self, socket: &Socket, filled: usize) -> Result<usize, Failure> {
        let start = Instant::now();
        loop {
            match (&mut &*socket).read(&mut self.reply[filled..]) {
                Ok(count) => return Ok(count),
                Err(error) if is_not_yet(&error) && start.elapsed() < SPIN => {
                    std::hint::spin_loop();
                }
                Err(error) if is_not_yet(&error) => self.wait(socket, Wanted::Read)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait(&self, socket: &Socket, wanted: Wanted) -> Result<(), Failure> {
        let deadline = Instant::now() + self.options.timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut poll = Poll::new(1);
            poll.watch(socket, wanted);
            poll.wait(left)?;
            if poll.ready().any(|ready| ready) {
                return Ok(());
            }
            // A signal may have ended the wait early.
            if left.is_zero() {
                return Err(Failure::Timeout);
            }
        }
    }

    /// Ends the connection as the variant says; the socket goes to the pool or is closed.
    fn disconnect(&mut self, socket: Socket) -> Result<(), Failure> {
        match (self.variant.end, self.variant.client_recycles()) {
            (End::Client, false) | (End::ClientReset, true) => {}
            (End::ClientReset, false) => socket.set_linger(Some(Duration::ZERO))?,
            (End::Client, true) => {
                socket.shutdown(std::net::Shutdown::Write)?;
                self.read_end(&socket)?;
            }
            (End::Server, _) => self.read_end(&socket)?,
        }
        if self.variant.client_recycles() {
            sys::connect_again(&socket)?;
            self.pool.push(socket);
        }
        Ok(())
    }

    /// Waits for the server's FIN.
    fn read_end(&mut self, socket: &Socket) -> Result<(), Failure> {
        match self.read(socket, 0)? {
            0 => Ok(()),
            _ => Err(Failure::Corrupt),
        }
    }
}

/// One cycle, to tell what is wrong with the target before anything is measured.
pub(super) fn try_once(address: SocketAddr, variant: Variant, options: &Options) -> Result<()> {
    let network = is_loopback(address).then_some(99);
    let mut client = Client::new(address, variant, options, network, 0);
    let mut turn = Turn::default();
    client
        .begin(0, &mut turn)
        .and_then(|flight| client.finish(flight, &mut turn))
        .map_err(|failure| failure.into_error(address, options))
}

/// Whether source addresses of 127.0.0.0/8 reach it.
pub(super) fn is_loopback(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V4(ip) if ip.is_loopback())
}

/// Whether a socket that does not block has nothing yet. Windows says of one whose handshake is not
/// over that it is not connected.
fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock)
        || (cfg!(windows) && error.kind() == io::ErrorKind::NotConnected)
}

/// Makes each message different, as far as its length allows.
fn stamp(message: &mut [u8], cycle: u64) {
    for (byte, value) in message.iter_mut().zip(cycle.to_le_bytes()) {
        *byte = value;
    }
}

/// One of 60,000 addresses in `127.network.0.0/16`.
fn source(network: u8, index: u32) -> Ipv4Addr {
    let index = index % 60_000;
    Ipv4Addr::new(127, network, (index / 250) as u8, (index % 250 + 1) as u8)
}

impl Failure {
    /// The same failure, for a second use.
    fn again(&self) -> Self {
        match self {
            Self::Io(error) => Self::Io(match error.raw_os_error() {
                Some(number) => io::Error::from_raw_os_error(number),
                None => error.kind().into(),
            }),
            Self::Closed => Self::Closed,
            Self::Timeout => Self::Timeout,
            Self::Corrupt => Self::Corrupt,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Io(error) => match error.raw_os_error() {
                Some(code) => errno::name(code),
                None => format!("{:?}", error.kind()),
            },
            Self::Closed => "closed".to_owned(),
            Self::Timeout => "timeout".to_owned(),
            Self::Corrupt => "corrupt".to_owned(),
        }
    }

    fn into_error(self, address: SocketAddr, options: &Options) -> Error {
        match self {
            Self::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => Error::target(
                    format!("nothing listens at {address} (connection refused)"),
                    "start the server, or give its address",
                ),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Error::target(
                    format!("{address} closes its connections with a reset"),
                    "look at the server's log: it may be at its own limit",
                ),
                io::ErrorKind::AddrNotAvailable => Error::machine(
                    format!("no port is left towards {address}: TIME_WAITs hold them ({error})"),
                    "wait a minute, or sysctl -w net.ipv4.ip_local_port_range='1024 65535'",
                ),
                _ => Error::machine(
                    format!("a connection to {address} failed: {error}"),
                    "see `plimsoll doctor` for the limits of this machine",
                ),
            },
            Self::Closed => Error::target(
                format!("{address} closes before it has echoed {} bytes", options.size),
                "the target must be an echo server; see its log for why it closes",
            ),
            Self::Timeout => Error::target(
                format!("{address} did not answer within {:?}", options.timeout),
                "the target must echo at once, and close first only where that was asked for",
            ),
            Self::Corrupt => Error::target(
                format!("{address} answers something other than what it was sent"),
                "the target must be an echo server",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_differ_and_are_hosts() {
        let all: std::collections::BTreeSet<_> =
            (0..60_000).map(|index| source(100, index)).collect();
        assert_eq!(all.len(), 60_000);
        assert!(all.iter().all(|ip| !matches!(ip.octets()[3], 0 | 255)));
        assert_eq!(source(100, 60_000), source(100, 0));
    }
}
