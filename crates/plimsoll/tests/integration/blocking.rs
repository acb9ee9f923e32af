//! A handler that blocks its shard is named in the log. It runs in a process of its own,
//! since all servers of a process share its log.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use plimsoll::{Context, Handler, Limits, Server};

use crate::common::own_process::alone;
use crate::common::{each_way, log};

/// Answers at once, but an `s` after a sleep.
struct Sleepy;

impl Handler for Sleepy {
    type State = ();

    fn on_receive(&mut self, cx: &mut Context<'_, ()>, bytes: &[u8]) -> usize {
        if bytes == b"s" {
            std::thread::sleep(Duration::from_millis(300));
        }
        cx.send(bytes);
        bytes.len()
    }
}

#[test]
fn a_handler_that_blocks_its_shard_is_named_in_one_line() {
    if alone("blocking::a_handler_that_blocks_its_shard_is_named_in_one_line") {
        return;
    }
    log::listen();
    each_way(|(driver, profile)| {
        let mut limits = Limits::default();
        limits.max_connections = 4;
        limits.buffer_bytes = 4 << 20;
        let server = Server::builder().listen("127.0.0.1:0").shards(1).limits(limits);
        let running = server.driver(driver).profile(profile).start(|_| Sleepy).unwrap();
        // What was said of the start: which way is not to be had here, and why.
        log::take();
        let mut stream = TcpStream::connect(running.local_addr().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut back = [0];
        // The second comes within a second of the first, and has no line of its own.
        for byte in [b"a", b"s", b"b", b"s", b"c"] {
            stream.write_all(byte).unwrap();
            stream.read_exact(&mut back).unwrap();
            assert_eq!(&back, byte);
        }
        running.drain(Duration::from_secs(10)).unwrap();
        let lines = log::take();
        let [line] = &lines[..] else { panic!("not one line: {lines:?}") };
        for part in
            ["a handler blocks its shard", "Sleepy", "last_callback=\"on_receive\"", "shard=0"]
        {
            assert!(line.contains(part), "no {part}: {line}");
        }
        assert!(line.contains("callbacks=1 "), "{line}");
    });
}
