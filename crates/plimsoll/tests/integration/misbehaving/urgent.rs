//! Peers that send urgent (out-of-band) bytes, which are not part of the stream that a handler sees.

use std::net::TcpStream;
use std::time::Duration;

use socket2::SockRef;

use super::test_server::{TestServer, answers, eventually, eventually_is, small};
use crate::common::each_way;

/// More clients than the server has blocks.
const CLIENTS: usize = 100;
const BLOCKS: usize = 64;

/// How long the server is watched while its clients say nothing.
const WATCHED: Duration = Duration::from_millis(300);
/// The most turns of an idle shard in that time. One that spins takes tens of thousands.
const IDLE_TURNS: u64 = 100;

fn send_urgent(stream: &TcpStream) {
    assert_eq!(SockRef::from(stream).send_out_of_band(b"!").unwrap(), 1);
}

/// An urgent byte wakes whoever waits for the connection, and then there is nothing to receive: the
/// server must neither keep a buffer ready for such a client nor ask the kernel again and again.
#[test]
fn clients_that_send_only_urgent_bytes_hold_no_block() {
    each_way(|way| {
        let mut limits = small();
        limits.max_connections = 128;
        limits.buffer_bytes = BLOCKS * limits.block_bytes;
        let server = TestServer::echo(way, limits);
        eventually("the shard has begun", || server.metrics().turns > 0);
        // Those that are lent to streams, where the driver has any.
        let lent = server.metrics().blocks;
        let mut honest = server.connect();
        assert!(answers(&mut honest));
        let mut urgent: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
        let everybody = CLIENTS as u64 + 1;
        eventually_is("all are in", &everybody, || server.metrics().sessions);

        // The second time each of them has waited again.
        for _ in 0..2 {
            urgent.iter().for_each(send_urgent);
            // The kernel tells of those before it tells of this one, which comes later.
            for _ in 0..16 {
                assert!(answers(&mut honest), "who sends bytes is served");
            }
            eventually_is("no block is held for them", &lent, || server.metrics().blocks);
        }
        let before = server.metrics().turns;
        std::thread::sleep(WATCHED);
        let turns = server.metrics().turns - before;
        assert!(turns <= IDLE_TURNS, "{turns} turns in {WATCHED:?}, though nobody says anything");
        assert_eq!(server.metrics().blocks, lent);

        // An urgent byte is skipped; the bytes behind it are not.
        assert!(urgent.iter_mut().all(answers));
        assert_eq!(server.metrics().sessions, everybody);
        drop((honest, urgent));
        server.empties();
        server.finish();
    });
}
