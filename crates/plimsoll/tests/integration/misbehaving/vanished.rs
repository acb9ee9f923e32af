//! Peers that vanish without a word: the network between is gone.

use std::time::{Duration, Instant};

use plimsoll::{Limits, Reason};

use super::test_server::{TestServer, answers, small};
use crate::common::own_process::{in_namespace, set_loopback};
use crate::common::{Way, each_way};

#[test]
fn silence_is_found_out_by_keep_alive() {
    if in_namespace("misbehaving::vanished::silence_is_found_out_by_keep_alive") {
        return;
    }
    each_way(|way| {
        let mut limits = small();
        limits.keep_alive = Some(Duration::from_secs(1));
        // It asks after 1 s, and three times more, 1 s apart (whole seconds).
        let least = Duration::from_secs(1);
        vanish(way, limits, least);
    });
}

#[test]
fn bytes_that_nobody_acknowledges_are_given_up() {
    if in_namespace("misbehaving::vanished::bytes_that_nobody_acknowledges_are_given_up") {
        return;
    }
    each_way(|way| {
        let mut limits = small();
        limits.user_timeout = Some(Duration::from_secs(1));
        vanish(way, limits, Duration::from_millis(900));
    });
}

/// Connects, and takes the network away; has the server send where that is what finds it out.
fn vanish(way: Way, limits: Limits, least: Duration) {
    set_loopback("up");
    let sends = limits.user_timeout.is_some();
    let server = TestServer::echo(way, limits);
    let mut streams: Vec<_> = (0..3).map(|_| server.connect()).collect();
    assert!(streams.iter_mut().all(answers));
    set_loopback("down");
    let begun = Instant::now();
    if sends {
        server.running.remote().broadcast(&b"is anybody there?"[..]).unwrap();
    }
    for _ in &streams {
        assert_eq!(server.ends(), Reason::PeerVanished);
    }
    println!("found out after {:?}", begun.elapsed());
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    set_loopback("up");
    assert!(server.serves_another());
    server.empties();
    server.finish();
}
