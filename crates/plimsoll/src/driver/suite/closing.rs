//! Closing, orderly and with a reset, with every operation in flight.

use std::time::Duration;

use super::harness::{Harness, pattern};
use super::{Heard, Peer, Plan, World};
use crate::driver::{Driver, Fault, Kind, Token};

/// How a slot is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Close,
    Abort,
}

const BOTH: [Manner; 2] = [Manner::Close, Manner::Abort];

fn post_close<W: World>(harness: &mut Harness<W>, slot: u32, manner: Manner) {
    let token = harness.token(Kind::Close, slot);
    match manner {
        Manner::Close => harness.driver().close(token),
        Manner::Abort => harness.driver().abort(token),
    }
}

/// The operation completes once, cancelled or broken by the close, and gives its lease back.
#[track_caller]
fn cancelled<W: World>(harness: &mut Harness<W>, token: Token) {
    let completion = harness.completion(token);
    assert!(!completion.more, "{completion:?}");
    match completion.result {
        // A close that shuts the connection first looks like its end to what is in flight.
        Ok(bytes) => assert_eq!(bytes, 0, "nothing was there: {completion:?}"),
        Err(failure) => {
            assert!(matches!(failure.fault, Fault::Cancelled | Fault::Reset), "{failure}");
        }
    }
    harness.give_back(completion.lease);
    assert!(harness.try_completion(token).is_none(), "{token:?} completed twice");
}

pub(in crate::driver) fn close_delivers_what_was_sent<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    let bytes = pattern(5_000, 0);
    harness.send_all(0, &bytes);
    harness.close(0);
    assert_eq!(harness.hear_end(&mut peer), (bytes, Heard::End));
    drop(peer);
    harness.end();
}

pub(in crate::driver) fn close_delivers_to_a_slow_reader<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    let taken = harness.fill(0) as usize;
    harness.close(0);
    harness.linger(Duration::from_millis(5));
    let (heard, end) = harness.hear_end(&mut peer);
    assert_eq!((heard.len(), end), (taken, Heard::End));
    drop(peer);
    harness.end();
}

pub(in crate::driver) fn abort_resets_the_peer<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    harness.abort(0);
    assert_eq!(harness.hear_end(&mut peer), (Vec::new(), Heard::Reset));
    drop(peer);
    harness.end();
}

pub(in crate::driver) fn abort_resets_a_peer_that_does_not_read<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    let taken = harness.fill(0) as usize;
    harness.abort(0);
    harness.linger(Duration::from_millis(5));
    let (heard, end) = harness.hear_end(&mut peer);
    assert!(heard.len() <= taken);
    assert_eq!(end, Heard::Reset);
    drop(peer);
    harness.end();
}

pub(in crate::driver) fn close_after_the_peers_reset_completes<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    for manner in BOTH {
        let peer = harness.open(0);
        peer.reset();
        harness.linger(Duration::from_millis(2));
        post_close(&mut harness, 0, manner);
        harness.closed(0);
    }
    harness.end();
}

pub(in crate::driver) fn close_with_unread_bytes_completes<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    harness.write_all(&mut peer, b"nobody reads this");
    harness.linger(Duration::from_millis(2));
    harness.close(0);
    // A reset on most kernels (RFC 2525, section 2.17), an end of stream on others.
    let (bytes, _end) = harness.hear_end(&mut peer);
    assert!(bytes.is_empty());
    drop(peer);
    harness.end();
}

pub(in crate::driver) fn close_with_a_park_in_flight_completes_each_once<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    for manner in BOTH {
        let mut peer = harness.open(0);
        let park = harness.token(Kind::Park, 0);
        harness.driver().park(park);
        harness.linger(Duration::from_millis(1));
        post_close(&mut harness, 0, manner);
        cancelled(&mut harness, park);
        harness.closed(0);
        hears_the_close(&mut harness, &mut peer, manner);
    }
    harness.end();
}

pub(in crate::driver) fn close_with_a_receive_in_flight_completes_each_once<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    for manner in BOTH {
        let mut peer = harness.open(0);
        let receive = harness.post_receive(0);
        harness.linger(Duration::from_millis(1));
        post_close(&mut harness, 0, manner);
        cancelled(&mut harness, receive);
        harness.closed(0);
        hears_the_close(&mut harness, &mut peer, manner);
    }
    harness.end();
}

pub(in crate::driver) fn close_with_a_stream_in_flight_completes_each_once<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    if !harness.driver().features().streams {
        eprintln!("skipped: the driver has no streams here");
        return;
    }
    let lease = harness.lease();
    harness.driver().provide(lease);
    for manner in BOTH {
        let mut peer = harness.open(0);
        let stream = harness.token(Kind::Receive, 0);
        harness.driver().stream(stream);
        harness.linger(Duration::from_millis(1));
        post_close(&mut harness, 0, manner);
        cancelled(&mut harness, stream);
        harness.closed(0);
        hears_the_close(&mut harness, &mut peer, manner);
    }
    harness.end();
}

pub(in crate::driver) fn close_with_a_send_in_flight_completes_each_once<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    for manner in BOTH {
        let mut peer = harness.open(0);
        let mut taken = harness.fill(0) as usize;
        let (lease, span) = harness.block_of(&[1; 1000]);
        let send = harness.token(Kind::Send, 0);
        harness.driver().send(send, &[span], false);
        post_close(&mut harness, 0, manner);
        let completion = harness.completion(send);
        match completion.result {
            // The kernel went on delivering, and found room.
            Ok(bytes) => taken += bytes as usize,
            Err(failure) => {
                assert!(matches!(failure.fault, Fault::Cancelled | Fault::Reset), "{failure}");
            }
        }
        harness.give_back(Some(lease));
        harness.closed(0);
        let (heard, end) = harness.hear_end(&mut peer);
        match manner {
            Manner::Close => assert_eq!((heard.len(), end), (taken, Heard::End)),
            Manner::Abort => assert_eq!(end, Heard::Reset),
        }
    }
    harness.end();
}

pub(in crate::driver) fn close_with_everything_in_flight_completes_each_once<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    for manner in BOTH {
        let mut peer = harness.open(0);
        let _ = harness.fill(0);
        let (lease, span) = harness.block_of(&[2; 1000]);
        let send = harness.token(Kind::Send, 0);
        harness.driver().send(send, &[span], false);
        let receive = harness.post_receive(0);
        let park = harness.token(Kind::Park, 0);
        harness.driver().park(park);
        post_close(&mut harness, 0, manner);
        // Completions come in any order; each is asked for by its token.
        let _ = harness.completion(send);
        harness.give_back(Some(lease));
        cancelled(&mut harness, park);
        cancelled(&mut harness, receive);
        harness.closed(0);
        let _ = harness.hear_end(&mut peer);
    }
    harness.end();
}

pub(in crate::driver) fn posted_and_closed_in_one_breath_completes_each_once<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    for manner in BOTH {
        let peer = harness.open(0);
        let receive = harness.post_receive(0);
        post_close(&mut harness, 0, manner);
        cancelled(&mut harness, receive);
        harness.closed(0);
        drop(peer);
    }
    harness.end();
}

/// An idle connection's peer hears how it was closed.
fn hears_the_close<W: World>(harness: &mut Harness<W>, peer: &mut W::Peer, manner: Manner) {
    let expected = match manner {
        Manner::Close => Heard::End,
        Manner::Abort => Heard::Reset,
    };
    assert_eq!(harness.hear_end(peer), (Vec::new(), expected), "{manner:?}");
}
