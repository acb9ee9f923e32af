//! Connecting out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::harness::Harness;
use super::{Family, PeerListener, Plan, World};
use crate::driver::{Driver, Fault, Kind};

pub(in crate::driver) fn a_connected_slot_sends_and_receives<W: World>() {
    connect_and_talk::<W>(Family::V4);
}

pub(in crate::driver) fn connect_works_on_ipv6<W: World>() {
    connect_and_talk::<W>(Family::V6);
}

fn connect_and_talk<W: World>(family: Family) {
    let mut harness = Harness::<W>::idle(Plan::default());
    if !harness.world.has(family) {
        eprintln!("skipped: no loopback address of {family:?} here");
        return;
    }
    let mut listener = harness.world.peer_listener(family);
    let connect = harness.token(Kind::Connect, 4);
    harness.driver().connect(connect, listener.address(), None);
    let (mut peer, _from) = harness.arrival(&mut listener);
    assert_eq!(harness.completion(connect).result, Ok(0));
    harness.send_all(4, b"to you");
    assert_eq!(harness.hear(&mut peer, 6).0, b"to you");
    harness.write_all(&mut peer, b"and to me");
    assert_eq!(harness.receive_all(4, 9), b"and to me");
    drop(peer);
    harness.close(4);
    harness.end();
}

pub(in crate::driver) fn connect_refused<W: World>() {
    let mut harness = Harness::<W>::idle(Plan::default());
    let nobody = harness.world.nobody(Family::V4);
    let connect = harness.token(Kind::Connect, 0);
    harness.driver().connect(connect, nobody, None);
    let failure = harness.completion(connect).result.expect_err("nobody listens");
    assert_eq!(failure.fault, Fault::Refused);
    // The slot is free at once.
    harness.next_use(0);
    let mut listener = harness.world.peer_listener(Family::V4);
    let again = harness.token(Kind::Connect, 0);
    harness.driver().connect(again, listener.address(), None);
    let (peer, _from) = harness.arrival(&mut listener);
    assert_eq!(harness.completion(again).result, Ok(0));
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn connect_from_a_chosen_source<W: World>() {
    let mut harness = Harness::<W>::idle(Plan::default());
    let mut listener = harness.world.peer_listener(Family::V4);
    let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    let connect = harness.token(Kind::Connect, 0);
    let any_port = SocketAddr::new(source, 0);
    harness.driver().connect(connect, listener.address(), Some(any_port));
    let (peer, from) = harness.arrival(&mut listener);
    assert_eq!(harness.completion(connect).result, Ok(0));
    assert_eq!(from.ip(), source);
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn a_connect_that_is_closed_completes_once<W: World>() {
    let mut harness = Harness::<W>::idle(Plan::default());
    let listener = harness.world.peer_listener(Family::V4);
    for abort in [false, true] {
        let connect = harness.token(Kind::Connect, 1);
        harness.driver().connect(connect, listener.address(), None);
        let close = connect.with(Kind::Close);
        if abort {
            harness.driver().abort(close);
        } else {
            harness.driver().close(close);
        }
        // Whichever was first; but both.
        if let Err(failure) = harness.completion(connect).result {
            assert_eq!(failure.fault, Fault::Cancelled);
        }
        harness.closed(1);
    }
    drop(listener);
    harness.end();
}
