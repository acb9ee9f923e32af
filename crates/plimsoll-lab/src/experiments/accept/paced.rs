//! Arrivals by the clock against a dedicated acceptor, its queue watched.
//!
//! Four threads: the client, which spins between arrivals; the acceptor, which
//! polls and accepts; one that closes what the acceptor hands on; and one that
//! asks the kernel for the queue's depth every few milliseconds.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use plimsoll_kernel::diag;
use plimsoll_kernel::netstat::Netstat;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Options, listen, machine};
use crate::results::BacklogSample;
use crate::{Lab, Result};

/// How often a burst comes in one run.
const BURSTS: u32 = 3;
/// Time between two questions for the queue's depth; each costs some 20 µs of a core.
const SAMPLE_EVERY: Duration = Duration::from_millis(5);
/// Clients that are kept open; the oldest is reset when there are more. Well below the ports of one
/// source address, above any depth that `somaxconn` commonly allows.
const HELD_MAX: usize = 6000;
/// The longest sleep: so that a stop is noticed.
const POLL_MAX: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// Below this the client spins rather than sleeps; timers are late by about 50 µs.
const SPIN: Duration = Duration::from_micros(200);
/// How far behind its clock the client may end before it is said.
const LATE: Duration = Duration::from_millis(50);

/// What one run showed.
#[derive(Debug)]
pub(super) struct Paced {
    pub(super) arrivals: u64,
    pub(super) unanswered: u64,
    pub(super) queued_max: Option<u64>,
    pub(super) overflows: Option<u64>,
    /// In seconds.
    pub(super) longest_stall: f64,
    /// How fast the bursts came; `None` without bursts.
    pub(super) burst_rate: Option<f64>,
    pub(super) granted: Option<u64>,
    pub(super) samples: Vec<BacklogSample>,
    /// Whether the client fell behind the clock.
    pub(super) late: bool,
}

/// What the threads share. Times are nanoseconds since `start`, never 0.
struct Shared {
    address: SocketAddr,
    start: Instant,
    /// When the client at this port was connected; 0 if there is none.
    connected_at: Vec<AtomicU64>,
    arrived: AtomicU64,
    accepted: AtomicU64,
    /// The client is done; the acceptor empties the queue and ends.
    done: AtomicBool,
}

#[derive(Default)]
struct Offered {
    arrivals: u64,
    unanswered: u64,
    depth_max: u64,
    burst_rate: Option<f64>,
    late: bool,
}

/// One run of `options.duration`. The bursts are spread over it.
pub(super) fn run(lab: &Lab, options: &Options, backlog: u32) -> Result<Paced> {
    let (listener, address) = listen(backlog)?;
    let shared = Shared {
        address,
        start: Instant::now(),
        connected_at: (0..=u16::MAX).map(|_| AtomicU64::new(0)).collect(),
        arrived: AtomicU64::new(0),
        accepted: AtomicU64::new(0),
        done: AtomicBool::new(false),
    };
    let before = Netstat::read()?;
    let (hand_on, closing) = mpsc::channel();
    let (offered, longest_stall, depths) = thread::scope(|scope| {
        let shared = &shared;
        let listener = &listener;
        let acceptor = scope.spawn(move || accept_all(shared, listener, &hand_on));
        let watcher = scope.spawn(move || sample(shared));
        scope.spawn(move || close_all(&closing));
        let offered = offer(lab, shared, options);
        shared.done.store(true, Ordering::Release);
        let longest_stall = acceptor.join().expect("the acceptor returns on every path");
        let depths = watcher.join().expect("the sampler returns on every path");
        (offered, longest_stall, depths)
    });
    let (offered, longest_stall) = (offered?, longest_stall?);
    let overflows = Netstat::read()?.delta(&before, "ListenOverflows").map(|n| n.max(0) as u64);
    let deepest_seen = depths.iter().filter_map(|sample| sample.queued).max();
    // Where nothing was dropped, arrivals less accepts are the depth, and no peak is missed.
    let queued_max = if overflows == Some(0) {
        Some(offered.depth_max.max(deepest_seen.unwrap_or(0)))
    } else {
        deepest_seen
    };
    Ok(Paced {
        arrivals: offered.arrivals,
        unanswered: offered.unanswered,
        queued_max,
        overflows,
        longest_stall,
        burst_rate: offered.burst_rate,
        granted: diag::listener(address)?.map(|listener| u64::from(listener.limit)),
        samples: thin(&depths),
        late: offered.late,
    })
}

/// The client: connects when it is time, whatever becomes of the connections.
fn offer(lab: &Lab, shared: &Shared, options: &Options) -> Result<Offered> {
    let mut offered = Offered::default();
    let mut held = VecDeque::with_capacity(HELD_MAX);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut burst_count, mut burst_seconds) = (0_u64, 0.0);
    let begin = Instant::now();
    let gap = |random: &mut Random| options.rate.map(|rate| random.exponential() / rate);
    let mut next = gap(&mut random);
    let mut bursts = (1..=BURSTS)
        .filter_map(|n| {
            Some((options.duration.mul_f64(f64::from(n) / f64::from(BURSTS + 1)), options.burst?))
        })
        .peekable();
    let end = options.duration.as_secs_f64();
    loop {
        let burst_due = bursts.peek().map(|(at, _)| at.as_secs_f64());
        let due = match (next, burst_due) {
            (Some(next), Some(burst)) => next.min(burst),
            (Some(due), None) | (None, Some(due)) => due,
            (None, None) => break,
        };
        if due >= end || lab.is_interrupted() {
            break;
        }
        if !wait_until(lab, begin + Duration::from_secs_f64(due)) {
            break;
        }
        if burst_due == Some(due)
            && let Some((_, burst)) = bursts.next()
        {
            let start = Instant::now();
            for _ in 0..burst {
                arrive(shared, &mut held, &mut offered)?;
            }
            burst_count += burst;
            burst_seconds += start.elapsed().as_secs_f64();
        } else {
            arrive(shared, &mut held, &mut offered)?;
            next = next.zip(gap(&mut random)).map(|(next, gap)| next + gap);
        }
        // Behind by a whole run: it will not catch up.
        if begin.elapsed() > 2 * options.duration + LATE {
            break;
        }
    }
    offered.late = begin.elapsed() > options.duration + LATE;
    offered.burst_rate = (burst_count > 0).then(|| burst_count as f64 / burst_seconds.max(1e-9));
    for (socket, port) in held {
        retire(shared, &socket, port, &mut offered);
    }
    Ok(offered)
}

/// One arrival. The connect does not block: on loopback the handshake is over when it returns, or
/// the SYN was dropped, which must not stop the clock.
fn arrive(
    shared: &Shared,
    held: &mut VecDeque<(Socket, u16)>,
    offered: &mut Offered,
) -> Result<()> {
    if held.len() >= HELD_MAX
        && let Some((socket, port)) = held.pop_front()
    {
        retire(shared, &socket, port, offered);
    }
    let made = || {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::TCP))?;
        socket.set_linger(Some(Duration::ZERO))?;
        match socket.connect(&shared.address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        let port = socket.local_addr()?.as_socket().map_or(0, |address| address.port());
        Ok((socket, port))
    };
    let (socket, port) = made().map_err(|error| machine("make an arrival", &error))?;
    shared.connected_at[usize::from(port)].store(now(shared), Ordering::Release);
    offered.arrivals += 1;
    let arrived = shared.arrived.fetch_add(1, Ordering::Relaxed) + 1;
    let depth = arrived.saturating_sub(shared.accepted.load(Ordering::Relaxed));
    offered.depth_max = offered.depth_max.max(depth);
    held.push_back((socket, port));
    Ok(())
}

/// Closes a client with a reset, and forgets when it came, before its port is given again.
fn retire(shared: &Shared, socket: &Socket, port: u16, offered: &mut Offered) {
    offered.unanswered += u64::from(socket.peer_addr().is_err());
    shared.connected_at[usize::from(port)].store(0, Ordering::Release);
}

/// The acceptor. Returns the longest time in seconds that it was away from a queue that was not
/// empty: since its last accept or since the connection at the head came, whichever was later.
fn accept_all(
    shared: &Shared,
    listener: &TcpListener,
    hand_on: &mpsc::Sender<OwnedFd>,
) -> Result<f64> {
    let (mut longest, mut last) = (0, 0);
    loop {
        match rustix::net::acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok((connection, peer)) => {
                let now = now(shared);
                shared.accepted.fetch_add(1, Ordering::Relaxed);
                let port = peer
                    .and_then(|peer| SocketAddr::try_from(peer).ok())
                    .map_or(0, |peer| peer.port());
                let came = shared.connected_at[usize::from(port)].load(Ordering::Acquire);
                // 0: accepted before its connect had returned, so it did not wait.
                if came != 0 {
                    longest = longest.max(now.saturating_sub(came.max(last)));
                }
                last = now;
                // The receiver lives as long as this sender.
                let _ = hand_on.send(connection);
            }
            Err(Errno::WOULDBLOCK) if shared.done.load(Ordering::Acquire) => {
                return Ok(longest as f64 * 1e-9);
            }
            Err(Errno::WOULDBLOCK) => {
                let mut wanted = [PollFd::new(listener, PollFlags::IN)];
                match poll(&mut wanted, Some(&POLL_MAX)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(machine("wait for connections", &error.into())),
                }
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            // The closing thread gives descriptors back; the queue holds the rest meanwhile.
            Err(Errno::MFILE | Errno::NFILE) => thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(machine("accept", &error.into())),
        }
    }
}

/// Closes what the acceptor hands on. It polls: to wake it would cost the acceptor 30 µs.
fn close_all(handed: &mpsc::Receiver<OwnedFd>) {
    loop {
        match handed.try_recv() {
            Ok(connection) => drop(connection),
            Err(mpsc::TryRecvError::Empty) => thread::sleep(Duration::from_millis(2)),
            Err(mpsc::TryRecvError::Disconnected) => return,
        }
    }
}

fn sample(shared: &Shared) -> Vec<BacklogSample> {
    let mut samples = Vec::new();
    while !shared.done.load(Ordering::Acquire) {
        // A reading that fails is a gap in the curve, not the end of the run.
        let queued = diag::listener(shared.address).ok().flatten().map(|one| u64::from(one.depth));
        samples.push(BacklogSample {
            seconds: shared.start.elapsed().as_secs_f64(),
            connects_ok: shared.arrived.load(Ordering::Relaxed),
            queued,
            kernel_bytes: None,
        });
        thread::sleep(SAMPLE_EVERY);
    }
    samples
}

/// At most some 400 samples, each the deepest of those it stands for.
fn thin(samples: &[BacklogSample]) -> Vec<BacklogSample> {
    let group = samples.len().div_ceil(400).max(1);
    samples
        .chunks(group)
        .filter_map(|chunk| chunk.iter().max_by_key(|one| one.queued).copied())
        .collect()
}

fn now(shared: &Shared) -> u64 {
    (shared.start.elapsed().as_nanos() as u64).max(1)
}

/// Waits for the moment; false when it was interrupted first.
fn wait_until(lab: &Lab, due: Instant) -> bool {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        if lab.is_interrupted() {
            return false;
        }
        if left > SPIN {
            thread::sleep(left.saturating_sub(SPIN / 2).min(Duration::from_millis(20)));
        } else {
            std::hint::spin_loop();
        }
    }
}

/// xorshift64*: arrivals need no better.
struct Random(u64);

impl Random {
    /// Exponentially distributed with mean 1: the gap between Poisson arrivals.
    fn exponential(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        // In (0, 1]: the logarithm of 0 is not wanted.
        -((bits + 1) as f64 / (1_u64 << 53) as f64).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_have_mean_one() {
        let mut random = Random(1);
        let sum: f64 = (0..100_000).map(|_| random.exponential()).sum();
        assert!((sum / 100_000.0 - 1.0).abs() < 0.02, "{sum}");
    }

    #[test]
    fn thinning_keeps_the_peak() {
        let one = |at: u32| BacklogSample {
            seconds: f64::from(at),
            connects_ok: 0,
            queued: Some(u64::from(at == 777)),
            kernel_bytes: None,
        };
        let thinned = thin(&(0..2000).map(one).collect::<Vec<_>>());
        assert!(thinned.len() <= 400);
        assert!(thinned.iter().any(|sample| sample.queued == Some(1)
            && sample.seconds > 776.5
            && sample.seconds < 777.5));
    }
}
