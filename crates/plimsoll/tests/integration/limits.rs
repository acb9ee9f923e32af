//! The limit on connections: never overshot, and who waits is served when room comes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use plimsoll::{Choice, Context, Handler, Limits, Profile, Reason, Server};

use crate::common::{self, Way};

/// Counts the sessions there are, and the most there ever were, over all shards.
#[derive(Default)]
struct Census {
    now: AtomicU32,
    peak: AtomicU32,
}

struct Counting(Arc<Census>);

impl Handler for Counting {
    type State = ();

    fn on_connect(&mut self, _: &mut Context<'_, ()>) -> bool {
        let now = self.0.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.peak.fetch_max(now, Ordering::SeqCst);
        true
    }

    fn on_receive(&mut self, cx: &mut Context<'_, ()>, bytes: &[u8]) -> usize {
        cx.send(bytes);
        bytes.len()
    }

    fn on_disconnect(&mut self, _: &mut Context<'_, ()>, _: Reason) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One client: connects, is served whenever its turn comes, and leaves.
fn visit(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"ping").unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"ping");
}

/// A race of 500 clients, 25 at a time on each of 20 threads, for 40 places on two shards.
fn race((driver, profile): Way) -> (u32, u32) {
    // Wine carries out the calls of all its processes one after the other: so many clients are never
    // there at once.
    const LIMIT: u32 = if cfg!(windows) { 6 } else { 40 };
    let census = Arc::new(Census::default());
    let mut limits = Limits::default();
    limits.max_connections = LIMIT;
    limits.buffer_bytes = 4 << 20;
    let shared = census.clone();
    let running = Server::builder()
        .listen("127.0.0.1:0")
        .driver(driver)
        .profile(profile)
        .shards(2)
        .limits(limits)
        .start(move |_| Counting(shared.clone()))
        .unwrap();
    let address = running.local_addr().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| (0..5).for_each(|_| visit(address)));
        }
    });
    let served = running.metrics().accepted;
    let report = running.drain(Duration::from_secs(20)).unwrap();
    assert_eq!((report.cut, report.blocks_lost), (0, 0));
    assert_eq!(served, 500);
    (census.peak.load(Ordering::SeqCst), LIMIT)
}

/// How many races on each driver: `PLIMSOLL_RACES`, or a few.
fn races() -> u32 {
    std::env::var("PLIMSOLL_RACES").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

#[test]
fn the_limit_is_never_overshot_and_everybody_is_served() {
    for driver in common::drivers() {
        let mut reached = 0;
        for number in 0..races() {
            let profile = [Profile::Connections, Profile::Throughput][number as usize % 2];
            let (peak, limit) = race((driver, profile));
            assert!(peak <= limit, "{peak} sessions under a limit of {limit} on {driver:?}");
            reached += u32::from(peak == limit);
        }
        let races = races();
        println!("{driver:?}: {races} races: the limit was reached in {reached}, and never passed");
        assert!(reached > 0, "no race reached the limit: it proves nothing");
    }
}

#[test]
fn who_finds_no_room_waits_in_the_backlog_until_there_is() {
    common::drivers().into_iter().for_each(waits_for_room);
}

fn waits_for_room(driver: Choice) {
    let mut limits = Limits::default();
    limits.max_connections = 1;
    let running = Server::builder()
        .listen("127.0.0.1:0")
        .driver(driver)
        .limits(limits)
        .start(|_| Counting(Arc::default()))
        .unwrap();
    let address = running.local_addr().unwrap();
    let mut first = TcpStream::connect(address).unwrap();
    first.write_all(b"a").unwrap();
    first.read_exact(&mut [0]).unwrap();
    let mut second = TcpStream::connect(address).unwrap();
    second.write_all(b"b").unwrap();
    second.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(second.read(&mut [0]).is_err(), "served beside the first");
    assert_eq!(running.metrics().accepted, 1);
    drop(first);
    second.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    second.read_exact(&mut [0]).unwrap();
    assert_eq!(running.metrics().accepted, 2);
}
