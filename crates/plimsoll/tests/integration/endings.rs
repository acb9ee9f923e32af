//! How servers begin and end, also where something goes wrong: nothing hangs, and nothing is lost
//! without a word.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use plimsoll::driver::Nanos;
use plimsoll::{
    Choice, Context, Error, Handler, Limits, MAILBOX, Running, Server, SessionId, ShardContext,
    Undelivered,
};

use crate::common::each_way;

/// For what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs something that might hang, on another thread.
#[track_caller]
fn soon<T: Send + 'static>(within: Duration, what: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = channel();
    std::thread::spawn(move || _ = done.send(what()));
    result.recv_timeout(within).expect("it ends in time")
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    (limits.max_connections, limits.buffer_bytes) = (16, 4 << 20);
    limits
}

/// Panics as it is dropped, once armed.
#[derive(Default)]
struct Bomb {
    armed: bool,
}

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!std::mem::take(&mut self.armed), "the state's drop panics, as the test wants it");
    }
}

/// Arms the state of the first session of one shard.
struct Bomber {
    arms: bool,
}

impl Handler for Bomber {
    type State = Bomb;

    fn on_connect(&mut self, cx: &mut Context<'_, Bomb>) -> bool {
        // One: a second panic while the first unwinds would abort the process.
        cx.state().armed = std::mem::take(&mut self.arms);
        true
    }

    fn on_receive(&mut self, cx: &mut Context<'_, Bomb>, bytes: &[u8]) -> usize {
        cx.send(bytes);
        bytes.len()
    }
}

#[test]
fn a_shard_that_panics_ends_the_server() {
    each_way(|(driver, profile)| {
        for shard_that_panics in [0, 1] {
            let server = Server::builder().listen("127.0.0.1:0").shards(2).limits(limits());
            let running = server
                .driver(driver)
                .profile(profile)
                .start(move |shard| Bomber { arms: shard == shard_that_panics })
                .unwrap();
            let address = running.local_addr().unwrap();
            // The least loaded shard is given the next: some for each.
            let mut clients: Vec<_> =
                (0..6).map(|_| TcpStream::connect(address).expect("it listens")).collect();
            for client in &mut clients {
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                client.write_all(b"x").unwrap();
                client.read_exact(&mut [0]).unwrap();
            }
            drop(clients);
            let ended = soon(Duration::from_secs(5), move || running.wait());
            assert!(matches!(ended, Err(Error::Panicked)), "{ended:?}");
        }
    });
}

/// Panics as it begins, on one shard.
struct Stillborn {
    panics: bool,
    begun: Arc<AtomicU32>,
}

impl Handler for Stillborn {
    type State = ();

    fn on_start(&mut self, _: &mut ShardContext<'_, ()>) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics, "no configuration");
    }

    fn on_receive(&mut self, _: &mut Context<'_, ()>, bytes: &[u8]) -> usize {
        bytes.len()
    }
}

#[test]
fn a_server_whose_handler_cannot_begin_does_not_start() {
    each_way(|(driver, profile)| {
        for shard_that_panics in [0, 1] {
            let begun = Arc::new(AtomicU32::new(0));
            let server = Server::builder().listen("127.0.0.1:0").shards(2).limits(limits());
            let server = server.driver(driver).profile(profile);
            let counted = begun.clone();
            let error = server
                .start(move |shard| Stillborn {
                    panics: shard == shard_that_panics,
                    begun: counted.clone(),
                })
                .map(drop)
                .unwrap_err();
            assert!(
                matches!(&error, Error::Begin { shard, callback: "on_start", message }
                    if *shard == shard_that_panics && message == "no configuration"),
                "{error:?}"
            );
        }
    });
}

#[test]
fn a_server_whose_factory_panics_does_not_start() {
    each_way(|(driver, profile)| {
        let server = Server::builder().listen("127.0.0.1:0").shards(2).limits(limits());
        let error = server
            .driver(driver)
            .profile(profile)
            .start(|shard| {
                assert_eq!(shard, 0, "as asked");
                Bomber { arms: false }
            })
            .map(drop)
            .unwrap_err();
        assert!(
            matches!(&error, Error::Begin { shard: 1, callback: "the factory", message }
                if message.contains("as asked")),
            "{error:?}"
        );
    });
}

#[test]
fn a_server_that_does_not_start_listens_no_more() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = Server::builder().listen(free.to_string()).shards(2).limits(limits());
    let panics = |_| -> Bomber { panic!("as asked") };
    assert!(matches!(server.clone().start(panics), Err(Error::Begin { .. })));
    let running = server.start(|_| Bomber { arms: false }).expect("the address is free again");
    assert_eq!(running.local_addr(), Some(free));
}

#[test]
fn what_is_said_to_an_ended_server_is_an_error() {
    let server = Server::builder().listen("127.0.0.1:0").shards(2).limits(limits());
    let running = server.start(|_| Bomber { arms: false }).unwrap();
    let remote = running.remote();
    assert_eq!(remote.message(7, Box::new(())), Err(Undelivered::NoShard { shard: 7, shards: 2 }));
    assert_eq!(remote.message(1, Box::new(())), Ok(()));
    running.drain(PATIENCE).unwrap();
    assert_eq!(remote.message(0, Box::new(())), Err(Undelivered::Ended));
    assert_eq!(remote.broadcast(*b"hello"), Err(Undelivered::Ended));
}

/// A handler that is busy until it is let go.
struct Busy {
    session: Arc<Mutex<Option<SessionId>>>,
    begins: Arc<Barrier>,
    ends: Arc<Barrier>,
}

impl Handler for Busy {
    type State = ();

    fn on_connect(&mut self, cx: &mut Context<'_, ()>) -> bool {
        *self.session.lock().unwrap() = Some(cx.id());
        true
    }

    fn on_receive(&mut self, cx: &mut Context<'_, ()>, bytes: &[u8]) -> usize {
        cx.send(bytes);
        bytes.len()
    }

    fn on_message(&mut self, _: &mut ShardContext<'_, ()>, message: Box<dyn std::any::Any + Send>) {
        if message.is::<&str>() {
            self.begins.wait();
            self.ends.wait();
        }
    }

    /// It stays until it is cut.
    fn on_drain(&mut self, _: &mut Context<'_, ()>) {}
}

fn busy() -> (Running, TcpStream, Arc<Barrier>, Arc<Barrier>) {
    let (begins, ends) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let session: Arc<Mutex<_>> = Arc::default();
    let server = Server::builder().listen("127.0.0.1:0").shards(1).limits(limits());
    let (begun, ended, slot) = (begins.clone(), ends.clone(), Arc::clone(&session));
    let running = server
        .start(move |_| Busy { session: slot.clone(), begins: begun.clone(), ends: ended.clone() })
        .unwrap();
    let mut client = TcpStream::connect(running.local_addr().unwrap()).unwrap();
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    let id = session.lock().unwrap().expect("it is connected");
    running.remote().message(id.shard(), Box::new("be busy")).unwrap();
    begins.wait();
    (running, client, begins, ends)
}

#[test]
fn a_drain_ends_when_it_was_to_end_whenever_a_shard_hears_of_it() {
    let (running, _client, _, ends) = busy();
    let within = Duration::from_secs(3);
    let asked = Instant::now();
    let draining = std::thread::spawn(move || running.drain(within));
    // The shard does not look at anything for longer than the drain was to take.
    std::thread::sleep(within + Duration::from_millis(200));
    ends.wait();
    let free = Instant::now();
    let report = soon(PATIENCE, move || draining.join().unwrap()).unwrap();
    assert!(free.duration_since(asked) > within);
    assert!(free.elapsed() < within, "cut at once: after {:?}", free.elapsed());
    assert_eq!((report.cut, report.ended), (1, 0));
}

#[test]
fn a_drain_begins_behind_a_full_mailbox() {
    let (running, _client, _, ends) = busy();
    let remote = running.remote();
    for _ in 0..MAILBOX {
        remote.message(0, Box::new(1)).unwrap();
    }
    assert_eq!(remote.message(0, Box::new(1)), Err(Undelivered::Full));
    // As full as it can be, all the time.
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let flood = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed)
            && remote.message(0, Box::new(1)) != Err(Undelivered::Ended)
        {}
    });
    let draining = std::thread::spawn(move || running.drain(Duration::from_millis(100)));
    ends.wait();
    let report = soon(PATIENCE, move || draining.join().unwrap());
    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    assert_eq!(report.unwrap().cut, 1);
}

/// Asks for a turn in the past, always.
struct Late;

impl Handler for Late {
    type State = ();

    fn on_receive(&mut self, _: &mut Context<'_, ()>, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn on_turn(&mut self, _: &mut ShardContext<'_, ()>) -> Option<Nanos> {
        Some(Nanos(1))
    }
}

#[test]
fn a_turn_in_the_past_does_not_spin() {
    each_way(|(driver, profile)| {
        let server = Server::builder().shards(1).driver(driver).profile(profile);
        let mut limits = limits();
        limits.max_outgoing = 1;
        let running = server.limits(limits).start(|_| Late).unwrap();
        let begun = Instant::now();
        while running.metrics().turns_in_the_past < 100 {
            assert!(begun.elapsed() < PATIENCE, "it goes on, at its pace");
            std::thread::sleep(Duration::from_millis(1));
        }
        let metrics = running.metrics();
        let most = begun.elapsed().as_millis() as u64 + 100;
        assert!(metrics.turns <= 2 * most, "{} turns in {most} ms", metrics.turns);
    });
}

/// A blocking read of a thread on which servers began and ended.
#[test]
fn a_thread_that_ended_a_server_reads_undisturbed() {
    for _ in 0..5 {
        let server = Server::builder().listen("127.0.0.1:0").shards(1).limits(limits());
        drop(server.driver(Choice::Auto).start(|_| Bomber { arms: false }).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let writer = std::thread::spawn(move || {
            let mut peer = TcpStream::connect(address).unwrap();
            // What disturbs comes some time after the end.
            std::thread::sleep(Duration::from_millis(200));
            peer.write_all(b"x").unwrap();
        });
        let (mut stream, _) = listener.accept().unwrap();
        let read = stream.read(&mut [0]).map_err(|error| error.kind());
        assert_ne!(read, Err(ErrorKind::Interrupted));
        assert_eq!(read, Ok(1));
        writer.join().unwrap();
    }
}
