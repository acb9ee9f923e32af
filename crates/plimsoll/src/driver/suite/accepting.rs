//! Listening, accepting, adopting.

use std::time::Duration;

use super::harness::Harness;
use super::{Family, Heard, Peer, Plan, World};
use crate::driver::{Driver, Fault, Into, Kind, Token};

pub(in crate::driver) fn accept_into_a_slot_brings_the_peers_address<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    // `open` compares the address with the peer's own.
    let peer = harness.open(3);
    drop(peer);
    harness.close(3);
    harness.end();
}

pub(in crate::driver) fn accept_works_on_ipv6<W: World>() {
    let mut harness = Harness::<W>::idle(Plan::default());
    if !harness.world.has(Family::V6) {
        eprintln!("skipped: no IPv6 loopback address here");
        return;
    }
    harness.listen(Family::V6, 16);
    let mut peer = harness.open(0);
    assert!(peer.address().is_ipv6());
    harness.write_all(&mut peer, b"six");
    assert_eq!(harness.receive_all(0, 3), b"six");
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn accepts_without_a_connection_wait<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let accepts: Vec<Token> = (1..8).map(|slot| harness.post_accept(slot)).collect();
    harness.linger(Duration::from_millis(20));
    assert!(harness.done.is_empty(), "nobody came: {:?}", harness.done);
    let address = harness.address.expect("it listens");
    let peers: Vec<W::Peer> = accepts.iter().map(|_| harness.world.peer(address)).collect();
    for token in accepts {
        assert_eq!(harness.completion(token).result, Ok(0));
        let _ = harness.accepted(token);
    }
    drop(peers);
    for slot in 1..8 {
        harness.close(slot);
    }
    harness.end();
}

pub(in crate::driver) fn connections_beyond_the_backlog_wait<W: World>() {
    let mut harness = Harness::<W>::idle(Plan::default());
    harness.listen(Family::V4, 1);
    let address = harness.address.expect("it listens");
    let mut peers: Vec<W::Peer> = (0..5).map(|_| harness.world.peer(address)).collect();
    harness.linger(Duration::from_millis(50));
    let mut accepts: Vec<Token> = (0..5).map(|slot| harness.post_accept(slot)).collect();
    let mut spoken = [false; 5];
    harness.until("all are accepted at last", |harness| {
        // A client can think that it is connected while the server has forgotten it: Linux answers
        // a burst of SYNs with cookies, and drops the last segment of a handshake that finds the
        // queue full. Bytes, which are sent again until they are acknowledged, bring it back.
        for (peer, spoken) in peers.iter_mut().zip(&mut spoken) {
            if !*spoken && peer.connected() == Some(Ok(())) {
                *spoken = peer.write(b"x") == Ok(1);
            }
        }
        accepts.retain(|&token| match harness.try_completion(token) {
            Some(completion) => {
                assert_eq!(completion.result, Ok(0));
                let _ = harness.accepted(token);
                false
            }
            None => true,
        });
        accepts.is_empty().then_some(())
    });
    drop(peers);
    for slot in 0..5 {
        harness.close(slot);
    }
    harness.end();
}

pub(in crate::driver) fn bytes_sent_before_the_accept_are_received<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let address = harness.address.expect("it listens");
    let mut peer = harness.world.peer(address);
    let _ = harness.until("the peer is connected", |_| peer.connected());
    harness.write_all(&mut peer, b"early");
    let accept = harness.post_accept(0);
    assert_eq!(harness.completion(accept).result, Ok(0));
    let _ = harness.accepted(accept);
    assert_eq!(harness.receive_all(0, 5), b"early");
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn a_connection_reset_in_the_queue_is_not_brought<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let address = harness.address.expect("it listens");
    for into in [Into::Slot, Into::Socket] {
        let mut dead = harness.world.peer(address);
        let _ = harness.until("the peer is connected", |_| dead.connected());
        dead.reset();
        // Long enough to be asked about.
        harness.linger(Duration::from_millis(30));
        let mut live = harness.world.peer(address);
        let _ = harness.until("another is connected", |_| live.connected());
        let accept = |harness: &mut Harness<W>, slot| {
            let token = match into {
                Into::Slot => harness.token(Kind::Accept, slot),
                Into::Socket => Token::new(Kind::HandOver, 5, slot),
            };
            harness.driver().accept(token, into);
            (token, harness.completion(token).result)
        };
        let mut slot = 0;
        let (mut token, mut result) = accept(&mut harness, slot);
        // Who went on to the next by itself has brought that one.
        if let Err(failure) = result {
            assert_eq!(failure.fault, Fault::Aborted);
            harness.next_use(0);
            slot = 1;
            (token, result) = accept(&mut harness, slot);
        }
        assert_eq!(result, Ok(0));
        let brought = harness.accepted(token);
        assert_eq!(brought.peer, live.address());
        if let Some(socket) = brought.socket {
            harness.driver().adopt(slot, socket).expect("the socket is adopted");
        }
        echo_once(&mut harness, &mut live, slot);
        drop(live);
        harness.close(slot);
    }
    harness.end();
}

pub(in crate::driver) fn close_listener_cancels_accepts<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let accepts: Vec<Token> = (0..4).map(|slot| harness.post_accept(slot)).collect();
    harness.linger(Duration::from_millis(2));
    harness.driver().close_listener();
    for token in accepts {
        let failure = harness.completion(token).result.expect_err("nobody came");
        assert_eq!(failure.fault, Fault::Cancelled);
    }
    harness.address = None;
    harness.end();
}

pub(in crate::driver) fn close_listener_resets_the_queued<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let address = harness.address.take().expect("it listens");
    let mut peer = harness.world.peer(address);
    let _ = harness.until("the peer is queued", |_| peer.connected());
    harness.driver().close_listener();
    assert_eq!(harness.hear_end(&mut peer), (Vec::new(), Heard::Reset));
    harness.end();
}

pub(in crate::driver) fn an_accept_without_a_listener_is_cancelled<W: World>() {
    let mut harness = Harness::<W>::idle(Plan::default());
    let never = harness.post_accept(0);
    let failure = harness.completion(never).result.expect_err("there is no listener");
    assert_eq!(failure.fault, Fault::Cancelled);
    harness.next_use(0);
    harness.listen(Family::V4, 4);
    harness.driver().close_listener();
    harness.address = None;
    let late = harness.post_accept(0);
    let failure = harness.completion(late).result.expect_err("the listener is closed");
    assert_eq!(failure.fault, Fault::Cancelled);
    harness.end();
}

pub(in crate::driver) fn an_adopted_socket_works<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let mut peer = adopt_one::<W>(&mut harness, 5);
    echo_once(&mut harness, &mut peer, 5);
    drop(peer);
    harness.close(5);
    harness.end();
}

pub(in crate::driver) fn a_socket_is_adopted_by_another_driver<W: World>() {
    let plan = Plan::default();
    let mut acceptor = Harness::<W>::listening(plan);
    let mut other = Harness::<W>::on(acceptor.world.beside(plan), plan);
    let (mut peer, socket) = accept_socket::<W>(&mut acceptor);
    other.driver().adopt(2, socket).expect("the socket is adopted");
    echo_once(&mut other, &mut peer, 2);
    drop(peer);
    other.close(2);
    other.end();
    acceptor.end();
}

pub(in crate::driver) fn a_socket_that_nobody_adopts_is_closed<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let (mut peer, socket) = accept_socket::<W>(&mut harness);
    drop(socket);
    let (bytes, _end) = harness.hear_end(&mut peer);
    assert!(bytes.is_empty());
    drop(peer);
    harness.end();
}

fn accept_socket<W: World>(harness: &mut Harness<W>) -> (W::Peer, <W::D as Driver>::Socket) {
    // Not a slot: a number of the caller's.
    let token = Token::new(Kind::HandOver, 77, 1);
    harness.driver().accept(token, Into::Socket);
    let address = harness.address.expect("it listens");
    let mut peer = harness.world.peer(address);
    assert_eq!(harness.completion(token).result, Ok(0));
    let brought = harness.accepted(token);
    assert_eq!(brought.peer, peer.address());
    let _ = harness.until("the peer is connected", |_| peer.connected());
    (peer, brought.socket.expect("it was asked for"))
}

fn adopt_one<W: World>(harness: &mut Harness<W>, slot: u32) -> W::Peer {
    let (peer, socket) = accept_socket::<W>(harness);
    harness.driver().adopt(slot, socket).expect("the socket is adopted");
    peer
}

fn echo_once<W: World>(harness: &mut Harness<W>, peer: &mut W::Peer, slot: u32) {
    // Bytes that came while the connection belonged to nobody are there.
    harness.write_all(peer, b"ping");
    assert_eq!(harness.receive_all(slot, 4), b"ping");
    harness.send_all(slot, b"pong");
    assert_eq!(harness.hear(peer, 4).0, b"pong");
}
