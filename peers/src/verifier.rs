//! Both ends of a checked byte stream, on blocking sockets of the standard
//! library, with nothing shared with the engine.
//!
//! # The stream
//! The first 8 bytes that a client sends on a connection are that connection's
//! seed, big-endian. All after them is the splitmix64 sequence of the seed,
//! each output as 8 bytes, big-endian. An echo server sends all of it back, the
//! seed included. So either end can tell of each byte what it must be:
//! [`verify`] checks what any echo server returns, [`serve`] checks what any
//! client sends that keeps this rule.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// How much a reader takes at once, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// What [`verify`] sends.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Fixes every byte, every size and every split; connection `i` uses `seed + i`.
    pub seed: u64,
    /// Bytes over all connections; each sends its share, and at least 8.
    pub bytes: u64,
    /// Smallest message, in bytes; at least 1.
    pub min_message: usize,
    /// Largest message, in bytes; at least `min_message`.
    pub max_message: usize,
    /// Connections at the same time, each with a thread that writes and one
    /// that reads; at least 1.
    pub connections: usize,
    /// Longest time without any progress before a connection counts as stuck.
    pub stall: Duration,
}

impl Default for Plan {
    /// 64 MiB over 8 connections in messages of 1 B to 64 KiB; 30 s of stall.
    fn default() -> Self {
        Self {
            seed: 1,
            bytes: 64 << 20,
            min_message: 1,
            max_message: 64 << 10,
            connections: 8,
            stall: Duration::from_secs(30),
        }
    }
}

/// What [`serve`] accepts.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Return after this many connections have been served; `None`: never.
    pub connections: Option<usize>,
    /// Longest wait for the next byte, or for room to send one.
    pub stall: Duration,
}

/// The first thing that was wrong on one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// A byte is not what the stream says. Offsets count from the first byte
    /// of the connection.
    Wrong {
        /// Which connection, in the order in which they were opened.
        connection: usize,
        /// Where in the stream.
        offset: u64,
        /// What the stream says.
        expected: u8,
        /// What came.
        got: u8,
    },
    /// The stream ended before everything had come back.
    Missing {
        /// Which connection.
        connection: usize,
        /// Bytes that came.
        received: u64,
        /// Bytes that were sent.
        expected: u64,
    },
    /// More came back than had been sent.
    Surplus {
        /// Which connection.
        connection: usize,
        /// Bytes that were sent.
        expected: u64,
        /// The first byte too many.
        got: u8,
    },
    /// The connection could not be opened, failed, or made no progress.
    Broken {
        /// Which connection.
        connection: usize,
        /// Bytes that had come back by then.
        received: u64,
        /// What the system reported.
        error: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong { connection, offset, expected, got } => write!(
                f,
                "connection {connection}: byte {offset} is {got:#04x}, should be {expected:#04x}"
            ),
            Self::Missing { connection, received, expected } => {
                write!(f, "connection {connection}: ended after {received} of {expected} bytes")
            }
            Self::Surplus { connection, expected, got } => write!(
                f,
                "connection {connection}: {got:#04x} came after all {expected} bytes were back"
            ),
            Self::Broken { connection, received, error } => {
                write!(f, "connection {connection}: failed after {received} bytes: {error}")
            }
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Bytes that came and were right.
    pub verified: u64,
    /// Connections that were opened or accepted.
    pub connections: usize,
    /// At most one for each connection, in the order of connections.
    pub faults: Vec<Fault>,
}

/// Sends the plan's stream to an echo server and compares every byte that
/// comes back, while still sending; then half-closes and reads to the end, to
/// see that exactly what was sent has come.
///
/// Costs two threads for each connection, and about 2 ns of CPU a byte.
pub fn verify(target: SocketAddr, plan: &Plan) -> Report {
    let count = plan.connections.max(1) as u64;
    let clients: Vec<_> = (0..count)
        .map(|index| {
            let share = plan.bytes / count + u64::from(index < plan.bytes % count);
            let (plan, index) = (plan.clone(), index as usize);
            thread::spawn(move || client(target, &plan, index, share.max(8)))
        })
        .collect();
    collect(clients)
}

/// Accepts, echoes and checks every byte against the seed that its connection
/// began with, one thread for each connection; returns when the number of
/// connections that `limits` asks for has been served.
///
/// # Errors
/// What `accept(2)` reported. Faults of connections are in the report.
pub fn serve(listener: &TcpListener, limits: &Limits) -> io::Result<Report> {
    let mut served = Vec::new();
    let mut report = Report::default();
    let mut index = 0;
    while limits.connections.is_none_or(|wanted| index < wanted) {
        let (stream, _) = listener.accept()?;
        let stall = limits.stall;
        served.push(thread::spawn(move || server(stream, index, stall)));
        index += 1;
        // Those that are over are joined as we go: a server without an end
        // would else keep every thread it ever had.
        let over = served.extract_if(.., |thread| thread.is_finished()).collect();
        add(&mut report, collect(over));
    }
    add(&mut report, collect(served));
    Ok(report)
}

fn collect(threads: Vec<thread::JoinHandle<(u64, Option<Fault>)>>) -> Report {
    let mut report = Report { connections: threads.len(), ..Report::default() };
    for thread in threads {
        // The threads contain no panic of their own; one from the library is passed on.
        let (verified, fault) =
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        report.verified += verified;
        report.faults.extend(fault);
    }
    report
}

fn add(sum: &mut Report, part: Report) {
    sum.verified += part.verified;
    sum.connections += part.connections;
    sum.faults.extend(part.faults);
}

fn client(target: SocketAddr, plan: &Plan, index: usize, bytes: u64) -> (u64, Option<Fault>) {
    let broken = |received, error: &io::Error| {
        (received, Some(Fault::Broken { connection: index, received, error: error.to_string() }))
    };
    let seed = plan.seed.wrapping_add(index as u64);
    let open = || -> io::Result<(TcpStream, TcpStream)> {
        let stream = TcpStream::connect(target)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(plan.stall))?;
        stream.set_write_timeout(Some(plan.stall))?;
        Ok((stream.try_clone()?, stream))
    };
    let (mut writing, mut reading) = match open() {
        Ok(both) => both,
        Err(error) => return broken(0, &error),
    };
    let writer = {
        let plan = plan.clone();
        thread::spawn(move || write_all(&mut writing, &plan, seed, bytes))
    };
    let outcome = read_back(&mut reading, index, seed, bytes);
    // After a fault the writer must not go on waiting for room.
    if outcome.1.is_some() {
        let _ = reading.shutdown(Shutdown::Both);
    }
    let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    match (outcome, written) {
        ((received, None), Err(error)) => broken(received, &error),
        (outcome, _) => outcome,
    }
}

/// Writes `bytes` bytes of the stream in messages of random sizes: as they
/// are, in random pieces, in single bytes, or several glued into one write;
/// then half-closes.
fn write_all(stream: &mut TcpStream, plan: &Plan, seed: u64, bytes: u64) -> io::Result<()> {
    let mut chance = Sequence::new(!seed);
    let mut content = Stream::from_seed(seed);
    let mut buffer = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let way = chance.below(8);
        let messages = if way < 2 { 2 + chance.below(15) } else { 1 };
        let span = plan.max_message.max(plan.min_message) - plan.min_message;
        let size: u64 = (0..messages)
            .map(|_| (plan.min_message.max(1) as u64) + chance.below(span as u64 + 1))
            .sum();
        buffer.resize(size.min(left) as usize, 0);
        content.fill(&mut buffer);
        left -= buffer.len() as u64;
        let mut rest = &buffer[..];
        while !rest.is_empty() {
            let piece = match way {
                0..4 => rest.len(),
                // Some single bytes, then the rest: single bytes only would take for ever.
                4 if buffer.len() - rest.len() < 16 => 1,
                _ => 1 + chance.below(rest.len() as u64) as usize,
            };
            stream.write_all(&rest[..piece])?;
            rest = &rest[piece..];
        }
    }
    stream.shutdown(Shutdown::Write)
}

fn read_back(
    stream: &mut TcpStream,
    connection: usize,
    seed: u64,
    expected: u64,
) -> (u64, Option<Fault>) {
    let mut content = Stream::from_seed(seed);
    let (mut buffer, mut wanted) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    let mut received: u64 = 0;
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) if received == expected => return (received, None),
            Ok(0) => {
                return (received, Some(Fault::Missing { connection, received, expected }));
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                let error = error.to_string();
                return (received, Some(Fault::Broken { connection, received, error }));
            }
        };
        let due = count.min((expected - received) as usize);
        if let Some(fault) =
            compare(&buffer[..due], &mut wanted[..due], &mut content, connection, &mut received)
        {
            return (received, Some(fault));
        }
        if due < count {
            let got = buffer[due];
            return (received, Some(Fault::Surplus { connection, expected, got }));
        }
    }
}

fn server(mut stream: TcpStream, connection: usize, stall: Duration) -> (u64, Option<Fault>) {
    let mut received = 0;
    let outcome = (|| -> io::Result<Option<Fault>> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(stall))?;
        stream.set_write_timeout(Some(stall))?;
        let mut seed = [0; 8];
        stream.read_exact(&mut seed)?;
        stream.write_all(&seed)?;
        received = 8;
        let mut content = Stream::after_seed(u64::from_be_bytes(seed));
        let (mut buffer, mut wanted) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
        loop {
            let count = match stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let (got, wanted) = (&buffer[..count], &mut wanted[..count]);
            if let Some(fault) = compare(got, wanted, &mut content, connection, &mut received) {
                return Ok(Some(fault));
            }
            stream.write_all(got)?;
        }
    })();
    match outcome {
        Ok(fault) => (received, fault),
        Err(error) => {
            let error = error.to_string();
            (received, Some(Fault::Broken { connection, received, error }))
        }
    }
}

/// Compares what came with the stream and moves `received` over what is right.
fn compare(
    got: &[u8],
    wanted: &mut [u8],
    content: &mut Stream,
    connection: usize,
    received: &mut u64,
) -> Option<Fault> {
    content.fill(wanted);
    let Some(at) = got.iter().zip(wanted.iter()).position(|(got, wanted)| got != wanted) else {
        *received += got.len() as u64;
        return None;
    };
    *received += at as u64;
    Some(Fault::Wrong { connection, offset: *received, expected: wanted[at], got: got[at] })
}

/// The splitmix64 sequence (Steele, Lea, Flood: "Fast splittable pseudorandom
/// number generators", 2014).
struct Sequence(u64);

impl Sequence {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`, which is not zero.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The bytes of one connection, in order.
struct Stream {
    words: Sequence,
    /// The word being handed out, and how many of its bytes are left.
    word: [u8; 8],
    left: usize,
}

impl Stream {
    /// From the first byte of the connection: the seed itself, then its sequence.
    fn from_seed(seed: u64) -> Self {
        Self { words: Sequence::new(seed), word: seed.to_be_bytes(), left: 8 }
    }

    /// From the ninth byte of the connection.
    fn after_seed(seed: u64) -> Self {
        Self { words: Sequence::new(seed), word: [0; 8], left: 0 }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        let head = self.left.min(bytes.len());
        let (first, rest) = bytes.split_at_mut(head);
        first.copy_from_slice(&self.word[8 - self.left..8 - self.left + head]);
        self.left -= head;
        let mut chunks = rest.chunks_exact_mut(8);
        for chunk in &mut chunks {
            chunk.copy_from_slice(&self.words.next().to_be_bytes());
        }
        let tail = chunks.into_remainder();
        if !tail.is_empty() {
            self.word = self.words.next().to_be_bytes();
            tail.copy_from_slice(&self.word[..tail.len()]);
            self.left = 8 - tail.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_does_not_depend_on_how_it_is_cut() {
        let mut whole = vec![0; 10_000];
        Stream::from_seed(7).fill(&mut whole);
        let (mut cut, mut chance) = (Vec::new(), Sequence::new(3));
        let mut stream = Stream::from_seed(7);
        while cut.len() < whole.len() {
            let count = (chance.below(20) as usize).min(whole.len() - cut.len());
            let mut piece = vec![0; count];
            stream.fill(&mut piece);
            cut.extend(piece);
        }
        assert_eq!(cut, whole);
        assert_eq!(whole[..8], 7u64.to_be_bytes());
        let mut after = vec![0; 100];
        Stream::after_seed(7).fill(&mut after);
        assert_eq!(after, whole[8..108]);
    }

    #[test]
    fn the_sequence_is_splitmix64() {
        // The first outputs for seed 1234567, as the reference code gives them.
        let mut sequence = Sequence::new(1_234_567);
        assert_eq!(sequence.next(), 6_457_827_717_110_365_317);
        assert_eq!(sequence.next(), 3_203_168_211_198_807_973);
    }
}
