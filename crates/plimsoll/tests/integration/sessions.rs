//! What a session's handler can do, and what ends a session.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use plimsoll::{Context, Handler, Limits, Queue, Reason, Running, Server, SessionId};

use crate::common::{Way, each_way};

/// A handler made of closures, that reports how its sessions began and ended.
struct Script<R> {
    on_receive: R,
    begun: Sender<SessionId>,
    ended: Sender<Reason>,
}

impl<R> Handler for Script<R>
where
    R: FnMut(&mut Context<'_, u32>, &[u8]) -> usize + 'static,
{
    type State = u32;

    fn on_connect(&mut self, cx: &mut Context<'_, u32>) -> bool {
        let _ = self.begun.send(cx.id());
        true
    }

    fn on_receive(&mut self, cx: &mut Context<'_, u32>, bytes: &[u8]) -> usize {
        (self.on_receive)(cx, bytes)
    }

    fn on_timer(&mut self, cx: &mut Context<'_, u32>) {
        cx.send(b"tick");
    }

    fn on_disconnect(&mut self, _: &mut Context<'_, u32>, reason: Reason) {
        let _ = self.ended.send(reason);
    }
}

struct Stage {
    running: Running,
    address: SocketAddr,
    begun: Receiver<SessionId>,
    ended: Receiver<Reason>,
}

fn stage<R>((driver, profile): Way, limits: Limits, on_receive: R) -> Stage
where
    R: FnMut(&mut Context<'_, u32>, &[u8]) -> usize + Clone + Send + Sync + 'static,
{
    let (begun, begins) = channel();
    let (ended, ends) = channel();
    let running = Server::builder()
        .listen("127.0.0.1:0")
        .driver(driver)
        .profile(profile)
        .shards(1)
        .limits(limits)
        .start(move |_| Script {
            on_receive: on_receive.clone(),
            begun: begun.clone(),
            ended: ended.clone(),
        })
        .unwrap();
    let address = running.local_addr().unwrap();
    Stage { running, address, begun: begins, ended: ends }
}

impl Stage {
    fn client(&self) -> (TcpStream, SessionId) {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (stream, self.begun.recv_timeout(Duration::from_secs(20)).unwrap())
    }

    fn ends(&self) -> Reason {
        self.ended.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    fn drain(self) {
        let report = self.running.drain(Duration::from_secs(10)).unwrap();
        assert_eq!(report.blocks_lost, 0);
    }
}

fn small() -> Limits {
    let mut limits = Limits::default();
    limits.max_connections = 16;
    limits.buffer_bytes = 4 << 20;
    limits
}

#[test]
fn a_panic_costs_its_session_only() {
    each_way(|way| {
        let stage = stage(way, small(), |cx, bytes| {
            assert!(bytes != b"boom", "as asked");
            cx.send(bytes);
            bytes.len()
        });
        let (mut good, _) = stage.client();
        let (mut bad, _) = stage.client();
        bad.write_all(b"boom").unwrap();
        assert_eq!(stage.ends(), Reason::Panicked);
        assert!(matches!(bad.read(&mut [0]), Ok(0) | Err(_)));
        good.write_all(b"fine").unwrap();
        good.read_exact(&mut [0; 4]).unwrap();
        stage.drain();
    });
}

#[test]
fn what_is_not_consumed_comes_again_with_more_behind() {
    each_way(|way| {
        // Lines: consumed one at a time, echoed in capitals.
        let stage = stage(way, small(), |cx, bytes| {
            let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else { return 0 };
            cx.send(&bytes[..=end].to_ascii_uppercase());
            end + 1
        });
        let (mut stream, _) = stage.client();
        let lines: Vec<String> = (0..20_000).map(|n| format!("line {n}\n")).collect();
        let lines = lines.concat();
        let mut writer = stream.try_clone().unwrap();
        let sent = lines.clone();
        let writing = std::thread::spawn(move || {
            for part in sent.as_bytes().chunks(1009) {
                writer.write_all(part).unwrap();
            }
        });
        let mut back = vec![0; lines.len()];
        stream.read_exact(&mut back).unwrap();
        writing.join().unwrap();
        assert!(back == lines.to_uppercase().as_bytes());
        stage.drain();
    });
}

#[test]
fn bytes_of_the_block_and_others_keep_their_order() {
    each_way(|way| {
        let stage = stage(way, small(), |cx, bytes| {
            cx.send(&bytes[..2]);
            cx.send(b"-");
            cx.send(&bytes[2..]);
            cx.send(&bytes[..1]);
            bytes.len()
        });
        let (mut stream, _) = stage.client();
        stream.write_all(b"abcd").unwrap();
        let mut back = [0; 6];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"ab-cda");
        stage.drain();
    });
}

#[test]
fn a_message_longer_than_a_block_ends_its_session() {
    each_way(|way| {
        let stage = stage(way, small(), |_, _| 0);
        let (mut stream, _) = stage.client();
        let _ = stream.write_all(&vec![1; 64 << 10]);
        assert_eq!(stage.ends(), Reason::MessageTooLong);
        stage.drain();
    });
}

#[test]
fn a_peer_that_does_not_read_is_stopped_not_buffered() {
    each_way(|way| {
        let mut limits = small();
        limits.kernel_send = Some(16 << 10);
        limits.kernel_receive = Some(16 << 10);
        let stage = stage(way, limits, |cx, bytes| {
            cx.send(bytes);
            bytes.len()
        });
        let (mut stream, _) = stage.client();
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let part = vec![7; 64 << 10];
        let mut sent = 0;
        let stopped = loop {
            match stream.write(&part) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break error.kind(),
            }
            assert!(sent < 256 << 20, "it swallows everything");
        };
        assert!(matches!(stopped, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{stopped:?}");
        let held = stage.running.metrics();
        let queued = held.received_bytes - held.sent_bytes;
        // The high mark, what is lent to streams (half of the arena, 512 blocks at most), and the
        // block that passed the mark.
        let ahead = (small().buffer_bytes as u64 / 2).min(512 * (16 << 10));
        let most = u64::from(Limits::default().outbox_high) + ahead + (16 << 10);
        assert!(queued <= most, "{queued} bytes held, of {most}");
        // What was accepted still comes back once it is read.
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut left = sent;
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0 && buffer[..count].iter().all(|&byte| byte == 7));
            left -= count;
        }
        drop(stream);
        assert_eq!(stage.ends(), Reason::PeerEnded);
        stage.drain();
    });
}

#[test]
fn a_producer_that_does_not_stop_meets_the_hard_mark() {
    each_way(|way| {
        let mut limits = small();
        limits.kernel_send = Some(16 << 10);
        let stage = stage(way, limits, |cx, bytes| {
            while cx.send(&[3; 1000]) != Queue::Refused {}
            bytes.len()
        });
        let (mut stream, _) = stage.client();
        stream.write_all(b"go").unwrap();
        assert_eq!(stage.ends(), Reason::OutboxHard);
        stage.drain();
    });
}

#[test]
fn silence_ends_a_session_at_its_deadline() {
    each_way(|way| {
        let mut limits = small();
        limits.first_byte_timeout = Some(Duration::from_millis(200));
        limits.idle_timeout = Some(Duration::from_millis(600));
        let stage = stage(way, limits, |cx, bytes| {
            cx.send(bytes);
            bytes.len()
        });
        let begun = Instant::now();
        let (_mute, _) = stage.client();
        assert_eq!(stage.ends(), Reason::FirstByteTimeout);
        assert!(begun.elapsed() >= Duration::from_millis(200));
        let (mut idle, _) = stage.client();
        idle.write_all(b"x").unwrap();
        idle.read_exact(&mut [0]).unwrap();
        let begun = Instant::now();
        assert_eq!(stage.ends(), Reason::IdleTimeout);
        assert!(begun.elapsed() >= Duration::from_millis(500));
        stage.drain();
    });
}

#[test]
fn timers_fire_and_remotes_reach_their_session_only() {
    each_way(|way| {
        let stage = stage(way, small(), |cx, bytes| {
            cx.set_timer(Duration::from_millis(20));
            bytes.len()
        });
        let (mut one, id) = stage.client();
        let (mut two, _) = stage.client();
        one.write_all(b"t").unwrap();
        let mut back = [0; 4];
        one.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"tick");
        let remote = stage.running.remote();
        remote.send(id, &b"only"[..]).unwrap();
        remote.broadcast(&b"both"[..]).unwrap();
        let mut eight = [0; 8];
        one.read_exact(&mut eight).unwrap();
        assert_eq!(&eight, b"onlyboth");
        two.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"both");
        remote.disconnect(id).unwrap();
        assert_eq!(stage.ends(), Reason::Disconnected);
        assert_eq!(one.read(&mut back).unwrap(), 0);
        // The slot is used again; its old name reaches nobody.
        let (mut three, again) = stage.client();
        assert_ne!(again, id);
        remote.send(id, &b"lost"[..]).unwrap();
        remote.broadcast(&b"here"[..]).unwrap();
        three.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"here");
        assert_eq!(stage.running.metrics().mail_gone, 1);
        stage.drain();
    });
}

#[test]
fn a_half_close_leaves_the_peers_direction_open() {
    each_way(|way| {
        let (told, hears) = channel();
        let ear = std::sync::Arc::new(std::sync::Mutex::new(told));
        let stage = stage(way, small(), move |cx, bytes| {
            if *cx.state() == 0 {
                *cx.state() = 1;
                cx.send(b"bye");
                cx.half_close();
            } else {
                ear.lock().unwrap().send(bytes.to_vec()).unwrap();
            }
            bytes.len()
        });
        let (mut stream, _) = stage.client();
        stream.write_all(b"x").unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        assert_eq!(back, b"bye");
        stream.write_all(b"still here").unwrap();
        assert_eq!(hears.recv_timeout(Duration::from_secs(20)).unwrap(), b"still here");
        drop(stream);
        assert_eq!(stage.ends(), Reason::PeerEnded);
        stage.drain();
    });
}
