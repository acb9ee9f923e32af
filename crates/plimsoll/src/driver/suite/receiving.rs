//! Parking, receiving once, streams, stopping.

use std::time::Duration;

use super::harness::{Harness, pattern};
use super::{Peer, Plan, World};
use crate::buffer::page_bytes;
use crate::driver::{Completion, Driver, Fault, Kind, Token};

fn park<W: World>(harness: &mut Harness<W>, slot: u32) -> Token {
    let token = harness.token(Kind::Park, slot);
    harness.driver().park(token);
    harness.linger(Duration::from_millis(2));
    token
}

pub(in crate::driver) fn a_parked_slot_wakes_on_data<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    let park = park(&mut harness, 0);
    assert!(harness.done.is_empty(), "nothing is there to read: {:?}", harness.done);
    harness.write_all(&mut peer, b"here");
    let completion = harness.completion(park);
    assert!(completion.result.is_ok() && completion.lease.is_none() && !completion.more);
    assert_eq!(harness.receive_all(0, 4), b"here");
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn a_parked_slot_wakes_on_end_of_stream<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let peer = harness.open(0);
    let park = park(&mut harness, 0);
    drop(peer);
    assert!(harness.completion(park).result.is_ok());
    assert_eq!(harness.receive(0), Ok(Vec::new()));
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn a_parked_slot_wakes_on_reset<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let peer = harness.open(0);
    let park = park(&mut harness, 0);
    peer.reset();
    // A driver that polls has no error to tell yet; one that reads zero bytes has.
    match harness.completion(park).result {
        Ok(_) => {
            let failure = harness.receive(0).expect_err("the peer has reset");
            assert_eq!(failure.fault, Fault::Reset);
        }
        Err(failure) => assert_eq!(failure.fault, Fault::Reset),
    }
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn a_park_with_bytes_there_completes<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    harness.write_all(&mut peer, b"before");
    harness.linger(Duration::from_millis(2));
    let park = park(&mut harness, 0);
    assert!(harness.completion(park).result.is_ok());
    assert_eq!(harness.receive_all(0, 6), b"before");
    // Nothing is left: a second park waits.
    let again = self::park(&mut harness, 0);
    assert!(harness.try_completion(again).is_none());
    drop(peer);
    assert!(harness.completion(again).result.is_ok());
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn receive_fills_from_start_offset<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    let memory = harness.world.arena().memory().clone();
    let mut lease = harness.lease();
    lease.bytes_mut(&memory).fill(0xaa);
    let token = harness.token(Kind::Receive, 0);
    harness.driver().receive(token, lease, 1000, false);
    harness.write_all(&mut peer, b"0123456789");
    let completion = harness.completion(token);
    let received = completion.result.expect("bytes come") as usize;
    let lease = completion.lease.expect("the lease comes back");
    assert!((1..=10).contains(&received));
    let bytes = lease.bytes(&memory);
    assert!(bytes[..1000].iter().all(|&byte| byte == 0xaa), "what stood before is untouched");
    assert_eq!(bytes[1000..1000 + received], b"0123456789"[..received]);
    assert!(bytes[1000 + received..].iter().all(|&byte| byte == 0xaa), "and what stands after");
    harness.give_back(Some(lease));
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn receive_takes_no_more_than_the_room<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    harness.write_all(&mut peer, &pattern(100, 0));
    let mut bytes = Vec::new();
    while bytes.len() < 100 {
        let start = harness.world.arena().block_bytes() as u32 - 7;
        let token = harness.token(Kind::Receive, 0);
        let lease = harness.lease();
        harness.driver().receive(token, lease, start, false);
        let completion = harness.completion(token);
        let received = completion.result.expect("bytes come");
        assert!((1..=7).contains(&received), "{received} bytes into a room of 7");
        let lease = completion.lease.expect("the lease comes back");
        bytes.extend(harness.bytes_of(&lease, start, received));
        harness.give_back(Some(lease));
    }
    assert_eq!(bytes, pattern(100, 0));
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn a_receive_at_once_is_there_after_the_next_wait<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    let at_once = |harness: &mut Harness<W>| {
        let token = harness.token(Kind::Receive, 0);
        let lease = harness.lease();
        harness.driver().receive(token, lease, 0, true);
        let now = harness.driver().now();
        harness.turn(now);
        let completion = harness.try_completion(token).expect("carried out as it was posted");
        let lease = completion.lease.expect("the lease comes back, whatever the outcome");
        assert!(!completion.more, "a single receive completes once");
        let outcome = completion.result.map(|len| harness.bytes_of(&lease, 0, len));
        harness.give_back(Some(lease));
        outcome
    };
    for _ in 0..2 {
        let failure = at_once(&mut harness).expect_err("nothing has been sent");
        assert_eq!(failure.fault, Fault::WouldBlock);
    }
    // What comes after is received as ever: by one that waits, and by one that does not.
    let waits = harness.post_receive(0);
    harness.write_all(&mut peer, b"a");
    let completion = harness.completion(waits);
    assert_eq!(completion.result, Ok(1));
    harness.give_back(completion.lease);
    let park = park(&mut harness, 0);
    harness.write_all(&mut peer, b"b");
    assert!(harness.completion(park).result.is_ok());
    assert_eq!(at_once(&mut harness), Ok(b"b".to_vec()));
    drop(peer);
    let park = self::park(&mut harness, 0);
    assert!(harness.completion(park).result.is_ok());
    assert_eq!(at_once(&mut harness), Ok(Vec::new()), "the end is there to read");
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn a_receive_of_the_end_is_zero<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    harness.write_all(&mut peer, b"last");
    peer.shutdown_write();
    assert_eq!(harness.receive_all(0, 100), b"last");
    // And stays zero.
    assert_eq!(harness.receive(0), Ok(Vec::new()));
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn a_receive_in_flight_fails_on_reset<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let peer = harness.open(0);
    let receive = harness.post_receive(0);
    harness.linger(Duration::from_millis(2));
    peer.reset();
    let completion = harness.completion(receive);
    assert_eq!(completion.result.expect_err("the peer has reset").fault, Fault::Reset);
    assert!(completion.lease.is_some(), "the lease comes back, whatever the outcome");
    harness.give_back(completion.lease);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn stop_ends_a_receive<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    let receive = harness.post_receive(0);
    harness.linger(Duration::from_millis(2));
    harness.driver().stop(receive);
    let completion = harness.completion(receive);
    assert_eq!(completion.result.expect_err("nothing came").fault, Fault::Cancelled);
    assert!(completion.lease.is_some() && !completion.more);
    harness.give_back(completion.lease);
    // The connection is none the worse for it.
    harness.write_all(&mut peer, b"go on");
    assert_eq!(harness.receive_all(0, 5), b"go on");
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn stop_ends_a_park<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let peer = harness.open(0);
    let park = park(&mut harness, 0);
    harness.driver().stop(park);
    let failure = harness.completion(park).result.expect_err("nothing came");
    assert_eq!(failure.fault, Fault::Cancelled);
    // Posted and stopped in one breath.
    let token = harness.token(Kind::Park, 0);
    harness.driver().park(token);
    harness.driver().stop(token);
    let failure = harness.completion(token).result.expect_err("nothing came");
    assert_eq!(failure.fault, Fault::Cancelled);
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn a_stop_that_comes_too_late_is_nothing<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    harness.write_all(&mut peer, b"first");
    harness.linger(Duration::from_millis(2));
    let receive = harness.post_receive(0);
    let completion = harness.completion(receive);
    assert!(completion.result.is_ok());
    harness.give_back(completion.lease);
    harness.driver().stop(receive);
    harness.linger(Duration::from_millis(2));
    assert!(harness.done.is_empty(), "a stop has no completion of its own");
    drop(peer);
    harness.close(0);
    harness.end();
}

/// Small blocks, so that a stream needs many.
const STREAMS: Plan = Plan { slots: 8, blocks: 8, block_bytes: 4096 };

/// Whether the driver has streams; says so where it has not.
fn no_streams<W: World>(harness: &mut Harness<W>) -> bool {
    let features = harness.driver().features();
    if !features.streams {
        eprintln!("skipped: the driver {} has no streams here", features.name);
    }
    !features.streams
}

fn post_stream<W: World>(harness: &mut Harness<W>, slot: u32) -> Token {
    let token = harness.token(Kind::Receive, slot);
    harness.driver().stream(token);
    token
}

/// Provides so many blocks.
fn provide<W: World>(harness: &mut Harness<W>, blocks: u32) {
    for _ in 0..blocks {
        let lease = harness.lease();
        harness.driver().provide(lease);
    }
}

/// The bytes of one completion of a stream; its block goes back to the arena.
fn streamed<W: World>(harness: &mut Harness<W>, completion: Completion) -> Vec<u8> {
    let Some(lease) = completion.lease else { return Vec::new() };
    let bytes = harness.bytes_of(&lease, 0, completion.result.unwrap_or(0));
    harness.give_back(Some(lease));
    bytes
}

pub(in crate::driver) fn stream_keeps_order_and_ends_when_blocks_run_out<W: World>() {
    let mut harness = Harness::<W>::listening(STREAMS);
    if no_streams(&mut harness) {
        return;
    }
    let mut peer = harness.open(0);
    let sent = pattern(5 * page_bytes() + 17, 0);
    let mut unwritten = &sent[..];
    provide(&mut harness, 2);
    let stream = post_stream(&mut harness, 0);
    let (mut got, mut without_blocks) = (Vec::new(), 0);
    while got.len() < sent.len() {
        let completion = harness.until("the stream brings more", |harness| {
            let taken = peer.write(unwritten).expect("the peer is connected");
            unwritten = &unwritten[taken..];
            harness.try_completion(stream)
        });
        let (more, result) = (completion.more, completion.result);
        got.extend(streamed(&mut harness, completion));
        match result {
            Ok(bytes) => assert!(bytes > 0, "the peer has not ended"),
            Err(failure) => {
                assert_eq!(failure.fault, Fault::NoBlock);
                assert!(!more, "a failure is the last of a stream");
                without_blocks += 1;
                provide(&mut harness, 1);
            }
        }
        if !more {
            post_stream(&mut harness, 0);
        }
    }
    assert_eq!(got, sent);
    assert!(without_blocks > 0, "two blocks cannot hold six");
    finish_stream(&mut harness, stream);
    drop(peer);
    harness.close(0);
    harness.end();
}

/// Stops a stream that may be in flight, and waits for its end.
fn finish_stream<W: World>(harness: &mut Harness<W>, stream: Token) {
    harness.driver().stop(stream);
    loop {
        let completion = harness.completion(stream);
        let more = completion.more;
        streamed(harness, completion);
        if !more {
            return;
        }
    }
}

pub(in crate::driver) fn a_stream_ends_with_the_connection<W: World>() {
    let mut harness = Harness::<W>::listening(STREAMS);
    if no_streams(&mut harness) {
        return;
    }
    let mut peer = harness.open(0);
    provide(&mut harness, 4);
    let mut stream = post_stream(&mut harness, 0);
    harness.write_all(&mut peer, b"goodbye");
    drop(peer);
    let mut got = Vec::new();
    loop {
        let completion = harness.completion(stream);
        let (more, result) = (completion.more, completion.result.expect("no failure"));
        got.extend(streamed(&mut harness, completion));
        if result == 0 {
            assert!(!more, "the end of the stream is the last of it");
            break;
        }
        if !more {
            stream = post_stream(&mut harness, 0);
        }
    }
    assert_eq!(got, b"goodbye");
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn stop_ends_a_stream<W: World>() {
    let mut harness = Harness::<W>::listening(STREAMS);
    if no_streams(&mut harness) {
        return;
    }
    let mut peer = harness.open(0);
    provide(&mut harness, 4);
    let stream = post_stream(&mut harness, 0);
    harness.linger(Duration::from_millis(2));
    harness.driver().stop(stream);
    let completion = harness.completion(stream);
    assert!(!completion.more && completion.lease.is_none(), "{completion:?}");
    assert_eq!(completion.result.expect_err("nothing came").fault, Fault::Cancelled);
    // Afterwards nothing is read behind the caller's back.
    harness.write_all(&mut peer, b"single");
    harness.linger(Duration::from_millis(2));
    assert_eq!(harness.receive_all(0, 6), b"single");
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn streams_share_the_provided_blocks<W: World>() {
    let mut harness = Harness::<W>::listening(STREAMS);
    if no_streams(&mut harness) {
        return;
    }
    let mut peers: Vec<W::Peer> = (0..4).map(|slot| harness.open(slot)).collect();
    provide(&mut harness, 8);
    let mut streams: Vec<Token> = (0..4).map(|slot| post_stream(&mut harness, slot)).collect();
    for round in 0..20_usize {
        for (slot, peer) in peers.iter_mut().enumerate() {
            harness.write_all(peer, &[slot as u8, round as u8]);
        }
        for slot in 0..4_u32 {
            let mut got = Vec::new();
            while got.len() < 2 {
                let completion = harness.completion(streams[slot as usize]);
                assert!(completion.result.is_ok_and(|bytes| bytes > 0), "{completion:?}");
                let more = completion.more;
                got.extend(streamed(&mut harness, completion));
                provide(&mut harness, 1);
                if !more {
                    streams[slot as usize] = post_stream(&mut harness, slot);
                }
            }
            assert_eq!(got, [slot as u8, round as u8]);
        }
    }
    for (slot, stream) in streams.into_iter().enumerate() {
        finish_stream(&mut harness, stream);
        harness.close(slot as u32);
    }
    drop(peers);
    harness.end();
}

pub(in crate::driver) fn unused_blocks_are_reclaimed<W: World>() {
    let mut harness = Harness::<W>::listening(STREAMS);
    if no_streams(&mut harness) {
        return;
    }
    provide(&mut harness, 5);
    harness.linger(Duration::from_millis(1));
    let mut reclaimed = Vec::new();
    while let Some(lease) = harness.driver().reclaim() {
        reclaimed.push(lease);
    }
    assert_eq!(reclaimed.len(), 5);
    for lease in reclaimed {
        harness.give_back(Some(lease));
    }
    // And can be provided again.
    provide(&mut harness, 1);
    let mut peer = harness.open(0);
    let stream = post_stream(&mut harness, 0);
    harness.write_all(&mut peer, b"x");
    let completion = harness.completion(stream);
    let more = completion.more;
    assert_eq!(streamed(&mut harness, completion), b"x");
    if more {
        finish_stream(&mut harness, stream);
    }
    drop(peer);
    harness.close(0);
    harness.end();
}
