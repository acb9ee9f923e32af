//! What the suite cannot ask of every driver.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::buffer::{Arena, Span};
use crate::driver::uring::{Config, Uring, probe};
use crate::driver::{Completion, Driver, Fault, Into, Kind, Token};

const DEADLINE: Duration = Duration::from_secs(20);

struct Bench {
    driver: Uring,
    arena: Arena,
    address: SocketAddr,
}

impl Bench {
    fn new(slots: u32, direct: bool) -> Self {
        let arena = Arena::new(slots.max(8), 4096).unwrap();
        let config = Config { slots, stream_blocks: 8, direct: Some(direct) };
        let mut driver = Uring::new(&config, arena.memory().clone()).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        driver.listen(listener);
        Self { driver, arena, address }
    }

    fn open(&mut self, slot: u32) -> TcpStream {
        let token = Token::new(Kind::Accept, 0, slot);
        self.driver.accept(token, Into::Slot);
        let peer = TcpStream::connect(self.address).unwrap();
        peer.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(self.until(token).pop().unwrap().result, Ok(0));
        assert_eq!(self.driver.accepted(token).peer, peer.local_addr().unwrap());
        peer
    }

    /// Completions up to and including the one with this token.
    fn until(&mut self, token: Token) -> Vec<Completion> {
        let end = self.driver.now().after(DEADLINE);
        let mut all = Vec::new();
        while self.driver.now() < end {
            let mut out = Vec::with_capacity(1);
            self.driver.wait(Some(end), &mut out).unwrap();
            all.append(&mut out);
            if all.last().is_some_and(|last: &Completion| last.token == token) {
                return all;
            }
        }
        panic!("{token:?} does not complete; {all:?} did");
    }
}

#[test]
fn the_probe_says_what_works() {
    let notes = probe().unwrap();
    eprintln!("{notes:#?}");
    assert!(notes.iter().any(|note| note.starts_with("direct descriptors: ")), "{notes:?}");
    assert!(notes.iter().any(|note| note.starts_with("streams: ")), "{notes:?}");
}

/// Every set of operations that can be in flight, closed and aborted: each completes once, and the
/// close last.
#[test]
fn closing_completes_every_combination_once_and_the_close_last() {
    for direct in [true, false] {
        let mut bench = Bench::new(4, direct);
        for combination in 0..32u32 {
            let (park, receive, stream, send, abort) = (
                combination & 1 != 0,
                combination & 2 != 0,
                combination & 4 != 0,
                combination & 8 != 0,
                combination & 16 != 0,
            );
            if receive && stream {
                continue;
            }
            for breath in [false, true] {
                let peer = bench.open(1);
                let close = Token::new(Kind::Close, 0, 1);
                let mut posted = vec![];
                if send {
                    fill(&mut bench, 1);
                    let span = Span { block: 0, start: 0, len: 4096 };
                    bench.driver.send(close.with(Kind::Send), &[span, span], false);
                    posted.push(Kind::Send);
                }
                if park {
                    bench.driver.park(close.with(Kind::Park));
                    posted.push(Kind::Park);
                }
                if receive {
                    let lease = bench.arena.lease().unwrap();
                    bench.driver.receive(close.with(Kind::Receive), lease, 0);
                    posted.push(Kind::Receive);
                } else if stream {
                    bench.driver.provide(bench.arena.lease().unwrap());
                    bench.driver.stream(close.with(Kind::Receive));
                    posted.push(Kind::Receive);
                }
                if breath {
                    let mut out = Vec::with_capacity(16);
                    let now = bench.driver.now();
                    bench.driver.wait(Some(now.after(Duration::from_millis(1))), &mut out).unwrap();
                    assert!(out.is_empty(), "{out:?}");
                }
                if abort {
                    bench.driver.abort(close);
                } else {
                    bench.driver.close(close);
                }
                posted.push(Kind::Close);
                let all = bench.until(close);
                let mut ended: Vec<Kind> = all.iter().map(|one| one.token.kind()).collect();
                assert_eq!(ended.last(), Some(&Kind::Close), "the close is last");
                ended.sort_unstable();
                posted.sort_unstable();
                assert_eq!(ended, posted, "{combination:b}, direct {direct}");
                for completion in all {
                    if receive && completion.token.kind() == Kind::Receive {
                        bench.arena.give_back(completion.lease.unwrap());
                    }
                }
                while let Some(lease) = bench.driver.reclaim() {
                    bench.arena.give_back(lease);
                }
                if abort {
                    assert_eq!(last_words(peer), Err(std::io::ErrorKind::ConnectionReset));
                } else {
                    assert_eq!(last_words(peer), Ok(()), "{combination:b}");
                }
            }
        }
        assert_eq!(bench.arena.outstanding(), 0);
        assert_eq!(bench.driver.in_flight(), 0);
    }
}

/// Sends at once until the kernel takes no more.
fn fill(bench: &mut Bench, slot: u32) {
    let token = Token::new(Kind::Send, 0, slot);
    loop {
        let span = Span { block: 0, start: 0, len: 4096 };
        bench.driver.send(token, &[span; 16], true);
        match bench.until(token).pop().unwrap().result {
            Ok(_) => {}
            Err(failure) if failure.fault == Fault::WouldBlock => return,
            Err(failure) => panic!("{failure}"),
        }
    }
}

/// How a peer's stream ends.
fn last_words(mut peer: TcpStream) -> Result<(), std::io::ErrorKind> {
    let mut some = vec![0; 1 << 16];
    loop {
        match peer.read(&mut some) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.kind()),
        }
    }
}

/// After an abort nothing is left in the kernel for a peer that does not read.
#[test]
fn an_abort_frees_the_kernels_queues() {
    for direct in [true, false] {
        let mut bench = Bench::new(2, direct);
        let peer = bench.open(0);
        fill(&mut bench, 0);
        let ours = (bench.address, peer.local_addr().unwrap());
        assert!(socket_line(ours).is_some(), "the connection is there");
        let close = Token::new(Kind::Close, 0, 0);
        bench.driver.abort(close);
        bench.until(close);
        assert_eq!(socket_line(ours), None, "no orphan, no queue");
        drop(peer);
    }
}

/// The line of a TCP socket in `/proc/net/tcp`, if there is such a socket.
fn socket_line((local, remote): (SocketAddr, SocketAddr)) -> Option<String> {
    let text = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => {
            format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port())
        }
        SocketAddr::V6(_) => unreachable!("the listener is on IPv4"),
    };
    let pair = format!("{} {} ", text(local), text(remote));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().find(|line| line.contains(&pair)).map(str::to_owned)
}

/// The kernel writes nothing into an arena after its driver has gone.
#[test]
fn a_dropped_driver_leaves_the_memory_alone() {
    for direct in [true, false] {
        let mut bench = Bench::new(8, direct);
        let mut peers = Vec::new();
        for slot in 0..6 {
            peers.push(bench.open(slot));
        }
        for slot in 0..3 {
            let lease = bench.arena.lease().unwrap();
            bench.driver.receive(Token::new(Kind::Receive, 0, slot), lease, 0);
        }
        for _ in 0..4 {
            bench.driver.provide(bench.arena.lease().unwrap());
        }
        for slot in 3..5 {
            bench.driver.stream(Token::new(Kind::Receive, 0, slot));
        }
        bench.driver.park(Token::new(Kind::Park, 0, 5));
        bench.driver.accept(Token::new(Kind::Accept, 1, 6), Into::Slot);
        bench.driver.accept(Token::new(Kind::Accept, 1, 3), Into::Socket);
        let now = bench.driver.now();
        let mut out = Vec::with_capacity(16);
        bench.driver.wait(Some(now.after(Duration::from_millis(1))), &mut out).unwrap();
        assert!(out.is_empty(), "{out:?}");

        let Bench { driver, arena, .. } = bench;
        let memory = Arc::clone(arena.memory());
        assert_eq!(Arc::strong_count(&memory), 3, "the arena's, the driver's, ours");
        drop(driver);
        assert_eq!(Arc::strong_count(&memory), 2, "everything was accounted for");
        for peer in &mut peers {
            // Fails where the reset has arrived already.
            let _ = peer.write_all(b"too late");
        }
        for peer in peers {
            let _ = last_words(peer);
        }
        let blocks = memory.blocks() as usize * memory.block_bytes();
        // SAFETY: the whole mapping, which `memory` keeps alive; no lease is written through.
        let bytes = unsafe { std::slice::from_raw_parts(memory.start_of(0).as_ptr(), blocks) };
        assert!(bytes.iter().all(|&byte| byte == 0), "written after the driver's end");
    }
}

/// Dropped by a thread that may not enter the ring, a driver keeps its memory for ever.
#[test]
fn a_driver_dropped_elsewhere_keeps_its_memory() {
    let mut bench = Bench::new(2, true);
    let _peer = bench.open(0);
    let Bench { driver, arena, .. } = bench;
    let memory = Arc::clone(arena.memory());
    std::thread::spawn(move || drop(driver)).join().unwrap();
    assert_eq!(Arc::strong_count(&memory), 3);
}

#[test]
fn a_driver_that_was_never_used_goes_without_a_trace() {
    let arena = Arena::new(8, 4096).unwrap();
    let driver = Uring::new(&Config::new(64), arena.memory().clone()).unwrap();
    drop(driver);
    assert_eq!(Arc::strong_count(arena.memory()), 1);
}

#[test]
fn a_table_larger_than_the_limit_falls_back_to_plain_descriptors() {
    let arena = Arena::new(1, 4096).unwrap();
    let slots = 1 << 20;
    let forced = Config { direct: Some(true), ..Config::new(slots) };
    match Uring::new(&forced, arena.memory().clone()) {
        Ok(_) => eprintln!("skipped: RLIMIT_NOFILE is above {slots} here"),
        Err(error) => {
            assert!(error.to_string().contains("RLIMIT_NOFILE"), "{error}");
            let driver = Uring::new(&Config::new(slots), arena.memory().clone()).unwrap();
            assert!(!driver.is_direct());
            assert!(driver.features().notes.iter().any(|note| note.contains("plain")));
        }
    }
}

/// More than the submission queue holds, between two waits.
#[test]
fn more_submissions_than_fit_are_all_carried_out() {
    let mut bench = Bench::new(64, true);
    let _peers: Vec<TcpStream> = (0..64).map(|slot| bench.open(slot)).collect();
    // The queue has 128 entries; a park and a stop each, twenty times.
    for generation in 0..20 {
        for slot in 0..64 {
            let token = Token::new(Kind::Park, generation, slot);
            bench.driver.park(token);
            bench.driver.stop(token);
        }
        let mut ended = 0;
        let start = Instant::now();
        while ended < 64 {
            assert!(start.elapsed() < DEADLINE);
            let mut out = Vec::with_capacity(256);
            bench.driver.wait(None, &mut out).unwrap();
            for completion in &out {
                assert_eq!(completion.result.unwrap_err().fault, Fault::Cancelled);
            }
            ended += out.len();
        }
    }
}

/// A caller that spins makes no system call while there is nothing to do, and still sees what comes.
#[test]
fn a_spinning_caller_is_served() {
    let mut bench = Bench::new(2, true);
    let mut peer = bench.open(0);
    let park = Token::new(Kind::Park, 0, 0);
    bench.driver.park(park);
    peer.write_all(b"x").unwrap();
    let start = Instant::now();
    let mut out = Vec::with_capacity(8);
    while out.is_empty() {
        assert!(start.elapsed() < DEADLINE);
        bench.driver.wait(Some(crate::driver::Nanos(0)), &mut out).unwrap();
    }
    assert_eq!(out[0].token, park);
}
