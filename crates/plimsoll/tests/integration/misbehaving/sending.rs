//! Peers that send too little at a time, or too much.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use plimsoll::{Context, DryRun, Handler, Reason};

use super::test_server::{TestServer, all_ways, answers, is_reset, reset, small};
use crate::common::each_way;

/// Answers each line with itself; of a line that does not end it consumes nothing. With a time for
/// a whole line, if one is given.
struct Lines {
    ended: Sender<Reason>,
    within: Option<Duration>,
}

impl Handler for Lines {
    /// Whether the timer runs.
    type State = bool;

    fn on_receive(&mut self, cx: &mut Context<'_, bool>, bytes: &[u8]) -> usize {
        let Some(end) = bytes.iter().rposition(|&byte| byte == b'\n') else {
            if let Some(within) = self.within
                && !std::mem::replace(cx.state(), true)
            {
                cx.set_timer(within);
            }
            return 0;
        };
        *cx.state() = false;
        cx.clear_timer();
        cx.send(&bytes[..=end]);
        end + 1
    }

    fn on_timer(&mut self, cx: &mut Context<'_, bool>) {
        cx.abort();
    }

    fn on_disconnect(&mut self, _: &mut Context<'_, bool>, reason: Reason) {
        let _ = self.ended.send(reason);
    }
}

fn says(stream: &mut TcpStream, line: &[u8]) -> bool {
    let mut back = vec![0; line.len()];
    stream.write_all(line).is_ok() && stream.read_exact(&mut back).is_ok() && back == line
}

/// A message that never ends, a byte at a time: neither deadline for silence hits it. The block
/// bounds it in bytes; in time the handler's own timer may, or the limit for messages.
#[test]
fn a_message_that_never_ends_is_bounded_by_its_block() {
    all_ways(|way| {
        let mut limits = small();
        limits.first_byte_timeout = Some(Duration::from_secs(2));
        limits.idle_timeout = Some(Duration::from_secs(2));
        let block = limits.block_bytes;
        let server = TestServer::new(way, limits, 1, |ended| Lines { ended, within: None });
        let mut stream = server.connect();
        let begun = Instant::now();
        let mut sent = 0;
        while begun.elapsed() < Duration::from_secs(5) {
            stream.write_all(b"x").unwrap();
            sent += 1;
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(server.has_ended(), None, "each byte puts the deadline off");
        let _ = stream.write_all(&vec![b'x'; block - sent]);
        assert_eq!(server.ends(), Reason::MessageTooLong);
        server.finish();
    });
}

#[test]
fn a_message_that_never_ends_is_bounded_in_time_by_its_handlers_timer() {
    each_way(|way| {
        let within = Some(Duration::from_millis(300));
        let server = TestServer::new(way, small(), 1, move |ended| Lines { ended, within });
        let mut good = server.connect();
        let mut stream = server.connect();
        let begun = Instant::now();
        let writing = std::thread::spawn(move || {
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        while begun.elapsed() < Duration::from_millis(100) {
            assert!(says(&mut good, b"one line\n"));
        }
        assert_eq!(server.ends(), Reason::Aborted);
        assert!(begun.elapsed() >= Duration::from_millis(300));
        writing.join().unwrap();
        assert!(says(&mut good, b"another\n"));
        server.finish();
    });
}

/// A byte at a time puts nothing off; who finishes each message in time may go on for ever.
#[test]
fn a_message_that_never_ends_is_bounded_in_time_by_its_limit() {
    const WITHIN: Duration = Duration::from_millis(1500);
    all_ways(|way| {
        let mut limits = small();
        limits.message_timeout = Some(WITHIN);
        let server = TestServer::new(way, limits, 1, |ended| Lines { ended, within: None });
        let mut good = server.connect();
        let mut idle = server.connect();
        assert!(says(&mut idle, b"all of it\n"));
        let mut stream = server.connect();
        let begun = Instant::now();
        let writing = std::thread::spawn(move || {
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        // The beginning of the next line comes with the end of each: something is always held.
        good.write_all(b"be").unwrap();
        let mut lines = 0;
        let reason = loop {
            std::thread::sleep(Duration::from_millis(50));
            good.write_all(b"gun\nbe").unwrap();
            let mut back = [0; 6];
            good.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"begun\n");
            lines += 1;
            if let Some(reason) = server.has_ended() {
                break reason;
            }
            assert!(begun.elapsed() < super::test_server::PATIENCE, "bytes put it off");
        };
        assert_eq!(reason, Reason::MessageTimeout);
        assert!(begun.elapsed() >= WITHIN && lines > 1, "{:?}", begun.elapsed());
        writing.join().unwrap();
        good.write_all(b"gun\n").unwrap();
        good.read_exact(&mut [0; 6]).unwrap();
        assert!(says(&mut good, b"one more\n") && says(&mut idle, b"who owes nothing stays\n"));
        server.finish();
    });
}

#[test]
fn a_message_limit_in_dry_run_counts_and_lets_through() {
    all_ways(|way| {
        let mut limits = small();
        limits.message_timeout = Some(Duration::from_millis(50));
        assert!(limits.dry_run.add("message_timeout"));
        let server = TestServer::new(way, limits, 1, |ended| Lines { ended, within: None });
        let mut stream = server.connect();
        stream.write_all(b"slow").unwrap();
        let counted = || server.metrics().dry_run[DryRun::number("message_timeout").unwrap()];
        super::test_server::eventually("it is counted", || counted() >= 2);
        stream.write_all(b" but sure\n").unwrap();
        let mut back = [0; 14];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"slow but sure\n");
        server.finish();
    });
}

#[test]
fn a_flood_keeps_nobody_out() {
    each_way(|way| {
        const ROUNDS: usize = 200;
        let server = TestServer::echo(way, small());
        let mut others: Vec<_> = (0..10).map(|_| server.connect()).collect();
        assert!(others.iter_mut().all(answers));
        let stop = AtomicBool::new(false);
        let mut flood = server.connect();
        let mut ear = flood.try_clone().unwrap();
        let mut times = Vec::new();
        std::thread::scope(|scope| {
            // It reads what comes back, or its own outbox would stop it.
            scope.spawn(|| {
                let mut away = vec![0; 256 << 10];
                while ear.read(&mut away).is_ok_and(|count| count > 0) {}
            });
            scope.spawn(|| {
                let bytes = vec![3; 256 << 10];
                while !stop.load(Ordering::Relaxed) {
                    flood.write_all(&bytes).unwrap();
                }
                flood.shutdown(std::net::Shutdown::Write).unwrap();
            });
            for _ in 0..ROUNDS {
                for stream in &mut others {
                    let asked = Instant::now();
                    assert!(answers(stream));
                    times.push(asked.elapsed());
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        times.sort();
        let flooded = server.metrics().received_bytes >> 20;
        let middle = times[times.len() / 2];
        let late = times[times.len() * 99 / 100];
        println!("beside {flooded} MiB: median {middle:?}, 99 % within {late:?}");
        let reason = server.ends();
        assert!(matches!(reason, Reason::PeerEnded | Reason::PeerReset), "{reason}");
        others.into_iter().for_each(reset);
        (0..10).for_each(|_| assert!(is_reset(server.ends())));
        server.finish();
    });
}

/// As many peers as there are blocks hold one each with the beginning of a message that they do not
/// end. Nobody else finds a block then; they are not heard either, and so their idle time runs.
#[test]
fn those_who_hold_every_block_are_idle_in_the_end() {
    each_way(|way| {
        let mut limits = small();
        limits.buffer_bytes = 16 * limits.block_bytes;
        limits.outbox_hard = limits.buffer_bytes as u32;
        limits.idle_timeout = Some(Duration::from_millis(700));
        let server = TestServer::new(way, limits, 1, |ended| Lines { ended, within: None });
        let mut holders: Vec<_> = (0..24).map(|_| server.connect()).collect();
        for stream in &mut holders {
            stream.write_all(b"the beginning").unwrap();
        }
        (0..holders.len()).for_each(|_| assert_eq!(server.ends(), Reason::IdleTimeout));
        assert!(server.metrics().starved > 0, "somebody found no block");
        assert_eq!(server.metrics().shortages, 0, "the kernel was short of nothing");
        let mut next = server.connect();
        assert!(says(&mut next, b"the blocks are back\n"));
        server.finish();
    });
}
