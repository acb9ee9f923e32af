//! Bytes that a handler does not consume at once: on the real kernel.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use crate::{Choice, Context, Handler, Limits, Profile, Reason, Running, Server};

type Receive = fn(&mut Context<'_, usize>, &[u8]) -> usize;

/// A handler of functions; its timer resumes, and ticks.
#[derive(Clone)]
struct Holder {
    receive: Receive,
    calls: Arc<AtomicU32>,
    /// Sends something again and again, of its own accord.
    ticks: bool,
    ended: Sender<Reason>,
}

impl Handler for Holder {
    type State = usize;

    fn on_connect(&mut self, cx: &mut Context<'_, usize>) -> bool {
        if self.ticks {
            cx.set_timer(Duration::from_millis(20));
        }
        true
    }

    fn on_receive(&mut self, cx: &mut Context<'_, usize>, bytes: &[u8]) -> usize {
        self.calls.fetch_add(1, Ordering::SeqCst);
        (self.receive)(cx, bytes)
    }

    fn on_timer(&mut self, cx: &mut Context<'_, usize>) {
        if self.ticks {
            cx.send(b"tick");
            cx.set_timer(Duration::from_millis(20));
        }
        cx.resume();
    }

    fn on_disconnect(&mut self, _: &mut Context<'_, usize>, reason: Reason) {
        let _ = self.ended.send(reason);
    }
}

fn limits() -> Limits {
    Limits { max_connections: 8, buffer_bytes: 4 << 20, ..Limits::default() }
}

/// Runs a test on every driver, in each profile.
fn each_way(test: impl Fn((Choice, Profile))) {
    let drivers: &[_] = if cfg!(target_os = "linux") {
        &[Choice::Uring, Choice::Ready]
    } else if cfg!(windows) {
        &[Choice::Iocp]
    } else {
        &[Choice::Ready]
    };
    for driver in drivers {
        for profile in [Profile::Connections, Profile::Throughput] {
            println!("on {driver:?}, {profile:?}");
            test((*driver, profile));
        }
    }
}

fn serve(
    (driver, profile): (Choice, Profile),
    limits: Limits,
    holder: &Holder,
) -> (Running, TcpStream) {
    let holder = holder.clone();
    let server = Server::builder().listen("127.0.0.1:0").shards(1);
    let server = server.driver(driver).profile(profile).limits(limits);
    let running = server.start(move |_| holder.clone()).unwrap();
    let stream = TcpStream::connect(running.local_addr().unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (running, stream)
}

fn holder(receive: Receive) -> (Holder, std::sync::mpsc::Receiver<Reason>) {
    let (ended, ends) = channel();
    (Holder { receive, calls: Arc::default(), ticks: false, ended }, ends)
}

fn expect(stream: &mut TcpStream, bytes: &[u8]) {
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, bytes);
}

#[test]
fn what_is_sent_of_held_bytes_arrives() {
    each_way(|way| {
        // Echoes at once, consumes six at a time.
        let (holder, _ends) = holder(|cx, bytes| {
            let before = *cx.state();
            cx.send(&bytes[before..]);
            *cx.state() = bytes.len() % 6;
            bytes.len() / 6 * 6
        });
        let (running, mut stream) = serve(way, limits(), &holder);
        for part in [b"ab", b"cd", b"ef", b"gh"] {
            stream.write_all(part).unwrap();
            expect(&mut stream, part);
        }
        assert_eq!(running.drain(Duration::from_secs(10)).unwrap().blocks_lost, 0);
    });
}

#[test]
fn who_answers_and_waits_for_more_is_asked_once() {
    each_way(|way| {
        let (holder, _ends) = holder(|cx, bytes| {
            let whole = bytes.ends_with(b"\n");
            cx.send(if whole { b"done" } else { b"more" });
            if whole { bytes.len() } else { 0 }
        });
        let (running, mut stream) = serve(way, limits(), &holder);
        stream.write_all(b"a").unwrap();
        expect(&mut stream, b"more");
        stream.write_all(b"b\n").unwrap();
        expect(&mut stream, b"done");
        assert_eq!(holder.calls.load(Ordering::SeqCst), 2);
        assert_eq!(running.drain(Duration::from_secs(10)).unwrap().blocks_lost, 0);
    });
}

#[test]
fn who_pauses_before_a_whole_block_may_take_it_later() {
    each_way(|way| {
        let (holder, _ends) = holder(|cx, bytes| {
            *cx.state() += 1;
            if *cx.state() % 2 == 1 {
                cx.pause();
                cx.set_timer(Duration::from_millis(1));
                return 0;
            }
            cx.send(bytes);
            bytes.len()
        });
        let (running, mut stream) = serve(way, limits(), &holder);
        let sent = vec![5; 200 << 10];
        let mut writer = stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&sent));
        expect(&mut stream, &vec![5; 200 << 10]);
        writing.join().unwrap().unwrap();
        assert_eq!(running.drain(Duration::from_secs(10)).unwrap().blocks_lost, 0);
    });
}

#[test]
fn what_we_send_does_not_put_off_the_first_byte() {
    each_way(|way| {
        let (mut holder, ends) = holder(|_, bytes| bytes.len());
        holder.ticks = true;
        let first_byte_timeout = Some(Duration::from_millis(300));
        let limits = Limits { first_byte_timeout, ..limits() };
        let (_running, _stream) = serve(way, limits, &holder);
        assert_eq!(ends.recv_timeout(Duration::from_secs(20)), Ok(Reason::FirstByteTimeout));
    });
}
