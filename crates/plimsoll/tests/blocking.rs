//! A handler that blocks its shard is named in the log. A process of its own: the log is everybody's.

mod common;

use std::fmt::{Debug, Write as _};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::Duration;

use common::each_way;
use plimsoll::{Context, Handler, Limits, Server};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Lines that warn or worse.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Collect;

/// A line: each field with its value.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{field}={value:?} ").expect("a string takes everything");
    }
}

impl Subscriber for Collect {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        LINES.lock().unwrap().push(line.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

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
    tracing::subscriber::set_global_default(Collect).expect("the first in this process");
    each_way(|(driver, profile)| {
        let mut limits = Limits::default();
        limits.max_connections = 4;
        limits.buffer_bytes = 4 << 20;
        let server = Server::builder().listen("127.0.0.1:0").shards(1).limits(limits);
        let running = server.driver(driver).profile(profile).start(|_| Sleepy).unwrap();
        // What was said of the start: which way is not to be had here, and why.
        LINES.lock().unwrap().clear();
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
        let lines = std::mem::take(&mut *LINES.lock().unwrap());
        let [line] = &lines[..] else { panic!("not one line: {lines:?}") };
        for part in ["a handler blocks its shard", "Sleepy", "callback=\"on_receive\"", "shard=0"] {
            assert!(line.contains(part), "no {part}: {line}");
        }
        assert!(line.contains("callbacks=1 "), "{line}");
    });
}
