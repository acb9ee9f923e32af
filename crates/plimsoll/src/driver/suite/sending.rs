//! Sending, and ending our direction.

use std::time::Duration;

use super::harness::{Harness, pattern};
use super::{Heard, Peer, Plan, World};
use crate::buffer::Span;
use crate::driver::{Driver, Fault, Kind, MAX_SPANS};

pub(in crate::driver) fn a_send_is_delivered<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    for at_once in [false, true] {
        let (lease, span) = harness.block_of(b"hello");
        let send = harness.token(Kind::Send, 0);
        harness.driver().send(send, &[span], at_once);
        let completion = harness.completion(send);
        let taken = completion.result.expect("there is room") as usize;
        assert!((1..=5).contains(&taken));
        assert!(completion.lease.is_none() && !completion.more);
        assert_eq!(harness.hear(&mut peer, taken).0, b"hello"[..taken]);
        harness.give_back(Some(lease));
    }
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn send_at_once_is_there_after_the_next_wait<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let peer = harness.open(0);
    let (lease, span) = harness.block_of(b"now");
    let send = harness.token(Kind::Send, 0);
    harness.driver().send(send, &[span], true);
    let now = harness.driver().now();
    harness.turn(now);
    assert!(harness.try_completion(send).is_some(), "carried out as it was posted");
    harness.give_back(Some(lease));
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn send_at_once_to_a_full_peer_would_block<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    let taken = harness.fill(0) as usize;
    assert!(taken > 0);
    // Nothing of the refused one was taken, and all that was taken is delivered, in order.
    let block = harness.world.arena().block_bytes();
    let (heard, _) = harness.hear(&mut peer, taken);
    let whole = pattern(block, 0);
    assert!(heard.iter().enumerate().all(|(at, &byte)| byte == whole[at % block]));
    harness.linger(Duration::from_millis(2));
    assert_eq!(peer.read(&mut [0; 64]), Heard::Nothing);
    // There is room again.
    harness.send_all(0, b"again");
    assert_eq!(harness.hear(&mut peer, 5).0, b"again");
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn a_send_to_a_full_peer_waits_until_it_reads<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    let before = harness.fill(0) as usize;
    let (lease, span) = harness.block_of(&[0xee; 100]);
    let send = harness.token(Kind::Send, 0);
    harness.driver().send(send, &[span], false);
    harness.linger(Duration::from_millis(5));
    // Room may have come meanwhile (the kernel went on delivering), else it waits.
    let early = harness.try_completion(send);
    let _ = harness.hear(&mut peer, before);
    let completion = match early {
        Some(completion) => completion,
        None => harness.completion(send),
    };
    let taken = completion.result.expect("the peer has read") as usize;
    assert!((1..=100).contains(&taken));
    assert_eq!(harness.hear(&mut peer, taken).0, vec![0xee; taken]);
    harness.give_back(Some(lease));
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn send_gathers_spans_in_order<W: World>() {
    let mut harness = Harness::<W>::listening(Plan { blocks: 32, ..Plan::default() });
    let mut peer = harness.open(0);
    let mut expected = Vec::new();
    let mut leases = Vec::new();
    let mut spans = Vec::new();
    for part in 0..MAX_SPANS {
        // Different lengths and starts; each block its own bytes.
        let len = 1 + part * 37;
        let bytes = pattern(len + part, part * 1000);
        let (lease, span) = harness.block_of(&bytes);
        leases.push(lease);
        spans.push(Span { start: part as u32, len: len as u32, ..span });
        expected.extend_from_slice(&bytes[part..]);
    }
    let mut left = spans;
    while !left.is_empty() {
        let send = harness.token(Kind::Send, 0);
        harness.driver().send(send, &left, false);
        let mut taken = harness.completion(send).result.expect("there is room");
        assert!(taken >= 1 && taken <= left.iter().map(|span| span.len).sum());
        while let Some(first) = left.first_mut() {
            let part = taken.min(first.len);
            first.start += part;
            first.len -= part;
            taken -= part;
            if first.len > 0 {
                break;
            }
            left.remove(0);
        }
    }
    assert_eq!(harness.hear(&mut peer, expected.len()).0, expected);
    for lease in leases {
        harness.give_back(Some(lease));
    }
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn a_send_after_a_reset_fails<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let peer = harness.open(0);
    let park = harness.token(Kind::Park, 0);
    harness.driver().park(park);
    peer.reset();
    let _ = harness.completion(park);
    for at_once in [true, false] {
        let (lease, span) = harness.block_of(b"too late");
        let send = harness.token(Kind::Send, 0);
        harness.driver().send(send, &[span], at_once);
        let failure = harness.completion(send).result.expect_err("the connection is gone");
        assert_eq!(failure.fault, Fault::Reset);
        harness.give_back(Some(lease));
    }
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn half_close_lets_the_other_direction_live<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    harness.send_all(0, b"all I have");
    let half_close = harness.token(Kind::HalfClose, 0);
    harness.driver().half_close(half_close);
    assert!(harness.completion(half_close).result.is_ok());
    assert_eq!(harness.hear_end(&mut peer), (b"all I have".to_vec(), Heard::End));
    harness.write_all(&mut peer, b"but I have more");
    assert_eq!(harness.receive_all(0, 15), b"but I have more");
    // A receive in flight outlives a half-close, too: it ends when the peer does.
    assert_eq!(
        {
            drop(peer);
            harness.receive(0)
        },
        Ok(Vec::new())
    );
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn half_close_leaves_a_receive_in_flight<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    let receive = harness.post_receive(0);
    let half_close = harness.token(Kind::HalfClose, 0);
    harness.driver().half_close(half_close);
    assert!(harness.completion(half_close).result.is_ok());
    assert_eq!(harness.hear_end(&mut peer), (Vec::new(), Heard::End));
    assert!(harness.try_completion(receive).is_none(), "it still waits for the peer's bytes");
    harness.write_all(&mut peer, b"!");
    let completion = harness.completion(receive);
    assert_eq!(completion.result, Ok(1));
    harness.give_back(completion.lease);
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn a_peer_that_half_closed_still_hears<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    peer.shutdown_write();
    assert_eq!(harness.receive(0), Ok(Vec::new()));
    harness.send_all(0, b"answer");
    assert_eq!(harness.hear(&mut peer, 6).0, b"answer");
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn a_large_exchange_keeps_every_byte<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = harness.open(0);
    // Both directions at once, more than any buffer on the way holds at the sizes here.
    let len = 1_000_003;
    let (theirs, ours) = (pattern(len, 5), pattern(len, 77));
    let (mut written, mut received) = (0, Vec::new());
    let (mut sent, mut heard) = (0, Vec::new());
    let mut sending = None;
    let mut receiving = None;
    let block = harness.world.arena().block_bytes();
    let mut some = vec![0; 64 << 10];
    let memory = harness.world.arena().memory().clone();
    harness.until("everything has gone both ways", |harness| {
        written += peer.write(&theirs[written..]).expect("connected");
        if let Heard::Bytes(count) = peer.read(&mut some) {
            heard.extend_from_slice(&some[..count]);
        }
        if receiving.is_none() && received.len() < len {
            receiving = Some(harness.post_receive(0));
        }
        if let Some(completion) = receiving.and_then(|receive| harness.try_completion(receive)) {
            let count = completion.result.expect("connected") as usize;
            let lease = completion.lease.expect("it comes back");
            received.extend_from_slice(&lease.bytes(&memory)[..count]);
            harness.give_back(Some(lease));
            receiving = None;
        }
        if sending.is_none() && sent < len {
            let (lease, span) = harness.block_of(&ours[sent..len.min(sent + block)]);
            let token = harness.token(Kind::Send, 0);
            harness.driver().send(token, &[span], false);
            sending = Some((token, lease));
        }
        if let Some((token, lease)) = sending.take() {
            match harness.try_completion(token) {
                Some(completion) => {
                    sent += completion.result.expect("connected") as usize;
                    harness.give_back(Some(lease));
                }
                None => sending = Some((token, lease)),
            }
        }
        (heard.len() == len && received.len() == len).then_some(())
    });
    assert!(heard == ours, "what was sent arrived changed");
    assert!(received == theirs, "what was received is not what was written");
    drop(peer);
    harness.close(0);
    harness.end();
}
