//! Peers that say nothing, or nothing more.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use plimsoll::Reason;

use super::test_server::{
    TestServer, all_ways, answers, push_all, read_away, reset, small, was_reset,
};
use crate::common::each_way;

/// Deadlines are kept by a wheel of this many milliseconds a tick (2²⁴ ns).
const TICK: Duration = Duration::from_millis(17);
/// For the threads of a machine with much else to do.
const SLACK: Duration = Duration::from_secs(2);

#[test]
fn who_says_nothing_is_closed_at_the_deadline_for_its_first_byte() {
    each_way(|way| {
        const DEADLINE: Duration = Duration::from_millis(200);
        let mut limits = small();
        limits.first_byte_timeout = Some(DEADLINE);
        let server = TestServer::echo(way, limits);
        let mut good = server.connect();
        assert!(answers(&mut good));
        let mute: Vec<_> = (0..20)
            .map(|_| {
                let begun = Instant::now();
                (server.connect(), begun, Instant::now())
            })
            .collect();
        let mut latest = Duration::ZERO;
        for (mut stream, begun, connected) in mute {
            // It is aborted: there is nothing that it should still be sent.
            assert!(was_reset(&mut stream));
            let closed = Instant::now();
            assert!(closed - begun >= DEADLINE, "closed after {:?}", closed - begun);
            latest = latest.max((closed - connected).saturating_sub(DEADLINE));
        }
        println!("the latest was closed {latest:?} after its deadline");
        assert!(latest <= TICK + SLACK, "{latest:?}");
        (0..20).for_each(|_| assert_eq!(server.ends(), Reason::FirstByteTimeout));
        assert!(answers(&mut good), "who has spoken may be silent");
        server.finish();
    });
}

#[test]
fn a_half_close_is_answered_and_closed() {
    each_way(|way| {
        let server = TestServer::echo(way, small());
        let mut stream = server.connect();
        stream.write_all(b"that is all").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_away(&mut stream).as_deref(), Some(&b"that is all"[..]));
        assert_eq!(server.ends(), Reason::PeerEnded);
        // More than the kernel's buffers hold: what was said before the end is answered after it.
        let mut stream = server.connect();
        let all = vec![5; 1 << 20];
        let mut writer = stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            writer.write_all(&all).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let back = read_away(&mut stream).expect("an end");
        writing.join().unwrap();
        assert!(back.len() == 1 << 20 && back.iter().all(|&byte| byte == 5));
        assert_eq!(server.ends(), Reason::PeerEnded);
        // Nothing was said at all.
        let mut stream = server.connect();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        assert_eq!(server.ends(), Reason::PeerEnded);
        server.finish();
    });
}

#[test]
fn who_half_closes_and_does_not_read_is_still_bounded() {
    all_ways(|way| {
        let mut limits = small();
        limits.idle_timeout = Some(Duration::from_secs(3));
        let server = TestServer::echo(way, limits);
        let mut stream = server.connect_narrow();
        let taken = push_all(&mut stream);
        assert!(taken > 0);
        stream.shutdown(Shutdown::Write).unwrap();
        // Its end is behind bytes that nobody reads, since it does not read either.
        assert_eq!(server.ends(), Reason::IdleTimeout);
        reset(stream);
        server.finish();
    });
}
