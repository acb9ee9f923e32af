//! What the suite cannot ask of every driver.

use std::io::Write;

use socket2::SockRef;

use crate::driver::loopback::real::{self, Bench, last_words};
use crate::driver::ready::{Config, Ready, STREAM_QUOTA, Unavailable};
use crate::driver::{Driver, Kind, Token};

fn bench(slots: u32) -> Bench<Ready> {
    Bench::new(slots, |memory| Ready::new(&Config { slots, stream_blocks: 8 }, memory).unwrap())
}

#[test]
fn closing_completes_every_combination_once_and_the_close_last() {
    let driver = real::closing_completes_every_combination(bench(4));
    assert_eq!(driver.in_flight(), 0);
}

#[test]
#[cfg(target_os = "linux")]
fn an_abort_frees_the_kernels_queues() {
    real::an_abort_frees_the_kernels_queues(bench(2));
}

#[test]
fn a_park_after_a_full_block_waits() {
    real::a_park_after_a_full_block_waits(bench(2));
}

#[test]
fn a_spinning_caller_is_served() {
    real::a_spinning_caller_is_served(bench(2));
}

/// A sender that is never done brings so much in one wait, and others are heard meanwhile.
#[test]
fn a_fast_sender_has_a_quota() {
    let mut bench = bench(2);
    let (mut fast, mut slow) = (bench.open(0), bench.open(1));
    let block = bench.arena.block_bytes();
    let flood = std::thread::spawn(move || {
        let much = vec![7; 64 << 10];
        // Ends when the slot is closed.
        while fast.write_all(&much).is_ok() {}
    });
    for _ in 0..8 {
        bench.driver.provide(bench.arena.lease().unwrap());
    }
    let streams = [0, 1].map(|slot| Token::new(Kind::Receive, 0, slot));
    for stream in streams {
        bench.driver.stream(stream);
    }
    let (mut most, mut heard, mut said) = (0, false, 0);
    let mut waits_till_heard = 0;
    for wait in 0..10_000 {
        if wait == 100 {
            slow.write_all(b"me too").unwrap();
            said = wait;
        }
        let mut of_fast = 0;
        for completion in bench.breathe() {
            assert!(completion.more, "there are blocks: {completion:?}");
            of_fast += u32::from(completion.token == streams[0]);
            if completion.token == streams[1] {
                heard = true;
                waits_till_heard = wait - said;
            }
            bench.driver.provide(completion.lease.unwrap());
        }
        most = most.max(of_fast);
        if heard && wait > 200 {
            break;
        }
    }
    assert!(heard && waits_till_heard < 10, "heard: {heard}, after {waits_till_heard} waits");
    assert_eq!(most, STREAM_QUOTA, "a flood of blocks of {block} bytes");
    let close = Token::new(Kind::Close, 0, 0);
    bench.driver.abort(close);
    bench.until(close);
    flood.join().unwrap();
}

/// The descriptor of a closed connection that lives on elsewhere (in a child of this process, say)
/// still makes events; they are nobody's.
#[test]
fn events_of_a_connection_that_was_closed_are_dropped() {
    let mut bench = bench(1);
    let mut old = bench.open(0);
    let child = bench.driver.slots[0].socket.as_ref().unwrap().try_clone().unwrap();
    let close = Token::new(Kind::Close, 0, 0);
    bench.driver.close(close);
    bench.until(close);
    let mut new = bench.open(0);
    let park = Token::new(Kind::Park, 1, 0);
    bench.driver.park(park);
    old.write_all(b"for the one before").unwrap();
    for _ in 0..5 {
        assert!(bench.breathe().is_empty(), "an event of another connection");
    }
    new.write_all(b"for you").unwrap();
    assert_eq!(bench.until(park).len(), 1);
    drop(child);
    assert!(last_words(old).is_err(), "closed with bytes unread: a reset");
}

/// Urgent data cuts a receive short, with more behind it: nothing may be taken for read then.
#[test]
fn urgent_data_hides_nothing_behind_it() {
    let mut bench = bench(1);
    let mut peer = bench.open(0);
    let park = Token::new(Kind::Park, 0, 0);
    for round in 0..3 {
        peer.write_all(b"before").unwrap();
        SockRef::from(&peer).send_out_of_band(b"!").unwrap();
        peer.write_all(b"after").unwrap();
        let mut heard = Vec::new();
        while heard.len() < b"beforeafter".len() {
            bench.driver.park(park);
            bench.until(park);
            let receive = park.with(Kind::Receive);
            bench.driver.receive(receive, bench.arena.lease().unwrap(), 0, false);
            let completion = bench.until(receive).pop().unwrap();
            let lease = completion.lease.unwrap();
            let count = completion.result.unwrap() as usize;
            heard.extend_from_slice(&lease.bytes(bench.arena.memory())[..count]);
            bench.arena.give_back(lease);
        }
        assert_eq!(heard, b"beforeafter", "round {round}");
    }
    bench.driver.park(park);
    assert!(bench.breathe().is_empty(), "and nothing is left");
}

#[test]
fn a_blocked_send_goes_on_when_there_is_room() {
    real::a_blocked_send_goes_on_when_there_is_room(bench(1));
}

#[test]
fn a_failed_connect_leaves_nothing() {
    let driver = real::a_failed_connect_leaves_nothing(bench(2), |driver, slot| {
        driver.slots[slot].socket.is_none() && driver.in_flight() == 0
    });
    assert_eq!(driver.in_flight(), 0);
}

#[test]
fn accepts_wait_for_those_before_to_be_asked_for() {
    let driver = real::accepts_wait_for_those_before_to_be_asked_for(bench(4));
    assert_eq!(driver.in_flight(), 0);
}

#[test]
fn slots_that_no_event_can_name_are_refused() {
    let error = Unavailable::Slots { asked: 70_000, most: 65_535 };
    assert!(error.to_string().contains("65535"), "{error}");
    let memory = crate::buffer::Arena::new(1, 4096).unwrap().memory().clone();
    let driver = Ready::new(&Config::new(0), memory).unwrap();
    assert!(!driver.features().streams && driver.features().name == "ready");
}
