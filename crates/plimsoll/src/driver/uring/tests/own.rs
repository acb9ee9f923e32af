//! What the suite cannot ask of every driver.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::buffer::Arena;
use crate::driver::loopback::real::{self, Bench, DEADLINE, last_words};
use crate::driver::uring::{Config, Uring, probe};
use crate::driver::{Driver, Fault, Into, Kind, Token};

fn bench(slots: u32, direct: bool) -> Bench<Uring> {
    Bench::new(slots, |memory| {
        let config = Config { slots, stream_blocks: 8, direct: Some(direct) };
        Uring::new(&config, memory).unwrap()
    })
}

#[test]
fn closing_completes_every_combination_once_and_the_close_last() {
    for direct in [true, false] {
        let driver = real::closing_completes_every_combination(bench(4, direct));
        assert_eq!(driver.in_flight(), 0);
    }
}

#[test]
fn an_abort_frees_the_kernels_queues() {
    for direct in [true, false] {
        real::an_abort_frees_the_kernels_queues(bench(2, direct));
    }
}

#[test]
fn a_park_after_a_full_block_waits() {
    for direct in [true, false] {
        real::a_park_after_a_full_block_waits(bench(2, direct));
    }
}

/// And makes no system call while there is nothing to do.
#[test]
fn a_spinning_caller_is_served() {
    real::a_spinning_caller_is_served(bench(2, true));
}

#[test]
fn the_probe_says_what_works() {
    let notes = probe().unwrap();
    eprintln!("{notes:#?}");
    assert!(notes.iter().any(|note| note.starts_with("direct descriptors: ")), "{notes:?}");
    assert!(notes.iter().any(|note| note.starts_with("streams: ")), "{notes:?}");
}

#[test]
fn a_ring_of_another_thread_says_so() {
    let mut bench = bench(2, true);
    bench.driver.wait(Some(bench.driver.now()), &mut Vec::with_capacity(1)).unwrap();
    let mut driver = bench.driver;
    let waits = move || {
        let now = driver.now();
        driver.wait(Some(now.after(Duration::from_millis(1))), &mut Vec::with_capacity(1))
    };
    let error = std::thread::spawn(waits).join().unwrap().unwrap_err();
    assert!(error.to_string().contains("by the thread that used it first"), "{error}");
}

/// The kernel writes nothing into an arena after its driver has gone.
#[test]
fn a_dropped_driver_leaves_the_memory_alone() {
    for direct in [true, false] {
        let mut bench = bench(8, direct);
        let mut peers = Vec::new();
        for slot in 0..6 {
            peers.push(bench.open(slot));
        }
        for slot in 0..3 {
            let lease = bench.arena.lease().unwrap();
            bench.driver.receive(Token::new(Kind::Receive, 0, slot), lease, 0, false);
        }
        for _ in 0..4 {
            bench.driver.provide(bench.arena.lease().unwrap());
        }
        for slot in 3..5 {
            bench.driver.stream(Token::new(Kind::Receive, 0, slot));
        }
        bench.driver.park(Token::new(Kind::Park, 0, 5));
        bench.driver.accept(Token::new(Kind::Accept, 1, 6), Into::Slot);
        bench.driver.accept(Token::new(Kind::HandOver, 1, 3), Into::Socket);
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
    let mut bench = bench(2, true);
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
    let mut bench = bench(64, true);
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

#[test]
fn a_blocked_send_goes_on_when_there_is_room() {
    real::a_blocked_send_goes_on_when_there_is_room(bench(1, true));
}

#[test]
fn accepts_wait_for_those_before_to_be_asked_for() {
    let driver = real::accepts_wait_for_those_before_to_be_asked_for(bench(4, true));
    assert_eq!(driver.in_flight(), 0);
}
