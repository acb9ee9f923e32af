//! What works here, found out by trying it: about a millisecond, once a process.
//!
//! Each check does on a loopback connection what the driver will do, and looks at the outcome: kernels
//! have had each of these and got it wrong (`ACCEPT` into a chosen place, buffers out of
//! order, files kept open by other operations), and versions do not tell.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;

use super::unavailable::Unavailable;
use super::{Config, Uring};
use crate::buffer::Arena;
use crate::driver::{Completion, Driver, Into, Kind, Token};

/// How long a check waits for what takes microseconds.
const PATIENCE: Duration = Duration::from_millis(500);

/// Blocks in the checks' arena, and bytes in one.
const BLOCKS: u32 = 8;
const BLOCK_BYTES: usize = 4096;

/// What was found.
#[derive(Debug, Clone)]
pub(super) struct Findings {
    /// Whether connections can be direct descriptors.
    pub(super) direct: bool,
    /// Whether streams deliver their bytes in order.
    pub(super) streams: bool,
    /// A line each.
    pub(super) notes: Vec<String>,
}

/// Tries out what the driver relies on, and says what was found, a line each: for a report.
///
/// # Errors
///
/// [`Unavailable`]: why there is no `io_uring` here.
pub fn probe() -> Result<Vec<String>, Unavailable> {
    findings().map(|findings| findings.notes)
}

/// Whether connections can be direct descriptors, kept in a table of each ring, and are no
/// descriptors of the process then.
pub(crate) fn keeps_tables() -> Result<bool, Unavailable> {
    findings().map(|findings| findings.direct)
}

/// The same as [`probe`], found out once a process.
pub(super) fn findings() -> Result<Findings, Unavailable> {
    static FOUND: OnceLock<Result<Findings, Unavailable>> = OnceLock::new();
    match FOUND.get_or_init(find_on_a_thread) {
        // Transient: the next shard may have better luck.
        Err(Unavailable::Memory | Unavailable::Descriptors) => find_on_a_thread(),
        found => found.clone(),
    }
}

/// Rings interrupt the thread that made them when they end, some time later: its next `read` would
/// fail with `EINTR`. So the caller's thread makes none.
fn find_on_a_thread() -> Result<Findings, Unavailable> {
    let thread = std::thread::Builder::new().name("preflight".into()).spawn(find);
    let found = thread.map_err(|error| Unavailable::of_setup(&error))?.join();
    found.unwrap_or_else(|_| Err(Unavailable::Broken { what: "the check panicked".into() }))
}

fn find() -> Result<Findings, Unavailable> {
    // First without anything that may be missing: what fails here fails everywhere.
    let mut bench = Bench::new(false, false)?;
    bench.check_session().map_err(|what| Unavailable::Broken { what })?;
    let mut notes = Vec::new();
    let mut note = |name: &str, outcome: Result<(), String>| {
        let works = outcome.is_ok();
        notes.push(match outcome {
            Ok(()) => format!("{name}: yes"),
            Err(why) => format!("{name}: no ({why})"),
        });
        works
    };
    note("reset by AF_UNSPEC", bench.check_abort());
    let direct = note(
        "direct descriptors",
        with(true, false, |bench| {
            bench.check_session()?;
            bench.check_abort()?;
            bench.check_prompt_close()
        }),
    );
    let streams = note("streams", with(direct, true, Bench::check_stream));
    Ok(Findings { direct, streams, notes })
}

fn with(
    direct: bool,
    streams: bool,
    check: impl FnOnce(&mut Bench) -> Result<(), String>,
) -> Result<(), String> {
    check(&mut Bench::new(direct, streams).map_err(|error| error.to_string())?)
}

/// A small driver that listens, and its arena.
struct Bench {
    driver: Uring,
    arena: Arena,
    listener: std::net::SocketAddr,
}

impl Bench {
    fn new(direct: bool, streams: bool) -> Result<Self, Unavailable> {
        let arena =
            Arena::new(BLOCKS, BLOCK_BYTES).map_err(|error| Unavailable::of_setup(&error))?;
        let config = Config {
            slots: 8,
            stream_blocks: if streams { BLOCKS } else { 0 },
            direct: Some(direct),
        };
        let memory = arena.memory().clone();
        let mut driver = Uring::unchecked(&config, memory, direct, streams)?;
        let (listener, address) = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr().map(|address| (listener, address)))
            .map_err(|error| Unavailable::of_setup(&error))?;
        driver.listen(listener);
        Ok(Self { driver, arena, listener: address })
    }

    /// Accepts a connection into a slot.
    fn open(&mut self, slot: u32) -> Result<TcpStream, String> {
        let token = Token::new(Kind::Accept, 0, slot);
        self.driver.accept(token, Into::Slot);
        let peer = TcpStream::connect(self.listener).map_err(|error| error.to_string())?;
        peer.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        self.one(token)?;
        let from = self.driver.accepted(token).peer;
        match peer.local_addr() {
            Ok(address) if address == from => Ok(peer),
            _ => Err(format!("an accept brought a wrong address, {from}")),
        }
    }

    /// The completion of one operation, which must succeed.
    fn one(&mut self, token: Token) -> Result<Completion, String> {
        let end = self.driver.now().after(PATIENCE);
        // Room for one: what else there is stays for the next call.
        let mut out = Vec::with_capacity(1);
        while self.driver.now() < end {
            self.driver.wait(Some(end), &mut out).map_err(|error| error.to_string())?;
            match out.pop() {
                Some(completion) if completion.token == token => match completion.result {
                    Ok(_) => return Ok(completion),
                    Err(failure) => return Err(format!("{:?}: {failure}", token.kind())),
                },
                Some(_) | None => {}
            }
        }
        Err(format!("{:?} does not complete", token.kind()))
    }

    /// Accept, park, receive, send, close.
    fn check_session(&mut self) -> Result<(), String> {
        let mut peer = self.open(0)?;
        let park = Token::new(Kind::Park, 0, 0);
        self.driver.park(park);
        peer.write_all(b"load").map_err(|error| error.to_string())?;
        self.one(park)?;
        let receive = park.with(Kind::Receive);
        let lease = self.arena.lease().ok_or("no block")?;
        self.driver.receive(receive, lease, 0, true);
        let completion = self.one(receive)?;
        let lease = completion.lease.ok_or("a lease was lost")?;
        if &lease.bytes(self.arena.memory())[..4] != b"load" {
            return Err("wrong bytes received".into());
        }
        let span = crate::buffer::Span { block: lease.block(), start: 0, len: 2 };
        let rest = crate::buffer::Span { start: 2, ..span };
        self.driver.send(park.with(Kind::Send), &[span, rest], true);
        self.one(park.with(Kind::Send))?;
        self.driver.close(park.with(Kind::Close));
        self.one(park.with(Kind::Close))?;
        self.arena.give_back(lease);
        let mut heard = Vec::new();
        peer.read_to_end(&mut heard).map_err(|error| format!("no end of stream: {error}"))?;
        if heard == b"load" { Ok(()) } else { Err("wrong bytes sent".into()) }
    }

    /// An abort resets the peer.
    fn check_abort(&mut self) -> Result<(), String> {
        let mut peer = self.open(1)?;
        let token = Token::new(Kind::Close, 0, 1);
        self.driver.abort(token);
        self.one(token)?;
        match peer.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            other => Err(format!("a peer that was reset heard {other:?}")),
        }
    }

    /// A connection is closed at once though another, older operation is still in flight: before
    /// Linux 6.13, files that were taken out of the table waited for all of those.
    fn check_prompt_close(&mut self) -> Result<(), String> {
        let _parked = self.open(2)?;
        self.driver.park(Token::new(Kind::Park, 0, 2));
        let mut peer = self.open(3)?;
        let token = Token::new(Kind::Close, 0, 3);
        self.driver.park(token.with(Kind::Park));
        self.driver.close(token);
        self.one(token)?;
        match peer.read(&mut [0]) {
            Ok(0) => Ok(()),
            other => Err(format!(
                "a closed connection stays open while another is parked: the peer heard {other:?}"
            )),
        }
    }

    /// Bytes of a stream come in order, in the blocks that were provided.
    fn check_stream(&mut self) -> Result<(), String> {
        let mut peer = self.open(4)?;
        for _ in 0..BLOCKS {
            let lease = self.arena.lease().ok_or("no block")?;
            self.driver.provide(lease);
        }
        // Three blocks' worth, in place before the stream begins: one piece of work for the kernel.
        let sent: Vec<u8> = (0..3 * BLOCK_BYTES).map(|at| (at / 16) as u8).collect();
        peer.write_all(&sent).map_err(|error| error.to_string())?;
        let token = Token::new(Kind::Receive, 0, 4);
        self.driver.stream(token);
        let mut heard = Vec::new();
        while heard.len() < sent.len() {
            let completion = self.one(token)?;
            let (Some(lease), Ok(len)) = (completion.lease, completion.result) else {
                return Err("a stream ended early".into());
            };
            heard.extend_from_slice(&lease.bytes(self.arena.memory())[..len as usize]);
            self.driver.provide(lease);
            if !completion.more && heard.len() < sent.len() {
                self.driver.stream(token);
            }
        }
        if heard == sent { Ok(()) } else { Err("bytes out of order".into()) }
    }
}
