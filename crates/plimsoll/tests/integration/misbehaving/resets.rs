//! Peers that reset their connection, at every point of its life.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::Sender;
use std::time::Duration;

use plimsoll::{Context, Handler, Reason};

use super::test_server::{
    Echo, PATIENCE, TestServer, answers, eventually, is_reset, push_all, reset, small,
};
use crate::common::each_way;

/// Who gives up while it waits has kept its place in the accept queue: it is passed over, and no
/// handler hears of it.
#[test]
fn before_it_is_accepted() {
    each_way(|way| {
        for shards in [1, 2] {
            let mut limits = small();
            limits.max_connections = 1;
            let server = TestServer::new(way, limits, shards, Echo);
            let mut first = server.connect();
            assert!(answers(&mut first));
            // These wait in the backlog; half of them have said something.
            for number in 0..10 {
                let mut gone = server.connect();
                if number % 2 == 0 {
                    gone.write_all(b"are you there?").unwrap();
                }
                reset(gone);
            }
            let mut last = server.connect();
            // Who has waited for less is not asked about.
            std::thread::sleep(Duration::from_millis(50));
            first.shutdown(Shutdown::Both).unwrap();
            assert!(answers(&mut last), "the dead are passed over");
            assert_eq!(server.ends(), Reason::PeerEnded);
            assert_eq!(server.has_ended(), None, "a handler has heard of the dead");
            let metrics = server.metrics();
            assert_eq!((metrics.accepted, metrics.dead_in_backlog), (2, 10));
            server.finish();
        }
    });
}

/// So many sessions end with a reset, those counted that came before they were accepted: that is a
/// race.
fn all_reset(server: &TestServer, count: u64) {
    let mut heard = 0;
    eventually("all have gone", || {
        while let Some(reason) = server.has_ended() {
            assert!(is_reset(reason), "{reason}");
            heard += 1;
        }
        heard + server.metrics().dead_in_backlog == count
    });
}

#[test]
fn as_soon_as_it_is_connected() {
    each_way(|way| {
        let server = TestServer::echo(way, small());
        (0..200).for_each(|_| reset(server.connect()));
        all_reset(&server, 200);
        assert!(server.serves_another());
        server.finish();
    });
}

#[test]
fn after_its_first_byte() {
    each_way(|way| {
        let server = TestServer::echo(way, small());
        for _ in 0..50 {
            // The echo is on its way, or has come.
            let mut asked = server.connect();
            asked.write_all(b"x").unwrap();
            reset(asked);
            let mut answered = server.connect();
            assert!(answers(&mut answered));
            reset(answered);
        }
        all_reset(&server, 100);
        server.finish();
    });
}

#[test]
fn while_it_is_sent_to() {
    each_way(|way| {
        let server = TestServer::echo(way, small());
        let mut others = server.connect();
        for _ in 0..3 {
            let mut stream = server.connect_narrow();
            assert!(push_all(&mut stream) > 0);
            assert!(server.metrics().blocks > 0, "its outbox holds what it does not read");
            reset(stream);
            assert!(is_reset(server.ends()));
            assert!(answers(&mut others));
        }
        drop(others);
        assert_eq!(server.ends(), Reason::PeerEnded);
        server.finish();
    });
}

/// Answers one byte with more than any kernel's buffer holds here, and closes or ends its stream.
struct Last {
    ended: Sender<Reason>,
    half: bool,
}

/// More than the kernel takes from a server with small buffers, towards a client with small ones.
const LAST_WORDS: usize = 512 << 10;

impl Handler for Last {
    type State = ();

    fn on_receive(&mut self, cx: &mut Context<'_, ()>, bytes: &[u8]) -> usize {
        if self.half {
            cx.send(b"bye");
            cx.half_close();
        } else {
            cx.send(&vec![1; LAST_WORDS]);
            cx.close();
        }
        bytes.len()
    }

    fn on_disconnect(&mut self, _: &mut Context<'_, ()>, reason: Reason) {
        let _ = self.ended.send(reason);
    }
}

#[test]
fn while_its_session_is_being_closed() {
    each_way(|way| {
        let server = TestServer::new(way, small(), 1, |ended| Last { ended, half: false });
        let mut stream = server.connect_narrow();
        stream.write_all(b"x").unwrap();
        // The first of the last words are here; the others are in the outbox, which drains.
        stream.read_exact(&mut [0; 100]).unwrap();
        assert_eq!(server.has_ended(), None);
        reset(stream);
        assert_eq!(server.ends(), Reason::Closed, "that was decided before");
        server.empties();
        server.finish();
    });
}

#[test]
fn after_the_server_has_ended_its_stream() {
    each_way(|way| {
        let server = TestServer::new(way, small(), 1, |ended| Last { ended, half: true });
        let mut stream = server.connect();
        stream.write_all(b"x").unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"bye");
        assert_eq!(server.has_ended(), None);
        reset(stream);
        assert!(is_reset(server.ends()));
        server.finish();
    });
}

#[test]
fn after_it_has_ended_its_own_stream() {
    each_way(|way| {
        let server = TestServer::echo(way, small());
        let mut stream = server.connect_narrow();
        let taken = push_all(&mut stream);
        stream.shutdown(Shutdown::Write).unwrap();
        // Reads a part of the answer: the end of the stream is among what comes next, or is not yet.
        stream.read_exact(&mut vec![0; taken / 2]).unwrap();
        reset(stream);
        let reason = server.ends();
        assert!(matches!(reason, Reason::PeerReset | Reason::PeerEnded), "{reason}");
        server.finish();
    });
}

#[test]
fn while_the_server_drains() {
    each_way(|way| {
        let (tell, ended) = std::sync::mpsc::channel();
        let server = TestServer::echo(way, small());
        let mut streams: Vec<_> = (0..4).map(|_| server.connect_narrow()).collect();
        for stream in &mut streams {
            assert!(push_all(stream) > 0);
        }
        let mut idle = server.connect();
        assert!(answers(&mut idle));
        let running = server.running;
        std::thread::spawn(move || tell.send(running.drain(PATIENCE)));
        // Who has nothing to wait for is closed, and the others' outboxes are full.
        assert_eq!(idle.read(&mut [0]).unwrap(), 0);
        assert!(ended.try_recv().is_err());
        streams.into_iter().for_each(reset);
        let report = ended.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!((report.ended, report.cut, report.blocks_lost), (5, 0, 0));
    });
}
