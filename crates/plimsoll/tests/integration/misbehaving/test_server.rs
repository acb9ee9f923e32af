//! A server to misbehave towards, and what its clients do.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use plimsoll::{Context, Handler, Limits, Metrics, Profile, Reason, Running, Server};
use socket2::{Domain, SockRef, Socket, Type};

use crate::common::{Way, drivers};

/// How long anything may take that has to happen: only a test that fails waits for so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Echoes.
pub(crate) struct Echo(pub(crate) Sender<Reason>);

impl Handler for Echo {
    type State = ();

    fn on_receive(&mut self, cx: &mut Context<'_, ()>, bytes: &[u8]) -> usize {
        cx.send(bytes);
        bytes.len()
    }

    fn on_disconnect(&mut self, _: &mut Context<'_, ()>, reason: Reason) {
        let _ = self.0.send(reason);
    }
}

/// A running server, and the reasons that its handlers have been told.
pub(crate) struct TestServer {
    pub(crate) running: Running,
    pub(crate) address: SocketAddr,
    ended: Receiver<Reason>,
    heard: RefCell<[u64; Reason::COUNT]>,
}

impl TestServer {
    /// An echo server of one shard.
    pub(crate) fn echo(way: Way, limits: Limits) -> Self {
        Self::new(way, limits, 1, Echo)
    }

    /// A server of handlers that tell how each of their sessions ended.
    pub(crate) fn new<H: Handler>(
        way: Way,
        limits: Limits,
        shards: u32,
        handler: impl Fn(Sender<Reason>) -> H + Send + Sync + 'static,
    ) -> Self {
        Self::pooled(way, limits, shards, true, handler)
    }

    /// The same, with pools or without.
    pub(crate) fn pooled<H: Handler>(
        (driver, profile): Way,
        limits: Limits,
        shards: u32,
        pool: bool,
        handler: impl Fn(Sender<Reason>) -> H + Send + Sync + 'static,
    ) -> Self {
        let (tell, ended) = channel();
        let running = Server::builder()
            .listen("127.0.0.1:0")
            .shards(shards)
            .driver(driver)
            .profile(profile)
            .limits(limits)
            .pool(pool)
            .start(move |_| handler(tell.clone()))
            .unwrap();
        let address = running.local_addr().unwrap();
        Self { running, address, ended, heard: RefCell::new([0; Reason::COUNT]) }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        patient(TcpStream::connect(self.address).unwrap())
    }

    /// A client whose kernel keeps little of what comes: a few KiB.
    pub(crate) fn connect_narrow(&self) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&self.address.into()).unwrap();
        patient(socket.into())
    }

    /// How the next session that ends has ended, as its handler was told.
    pub(crate) fn ends(&self) -> Reason {
        let reason = self.ended.recv_timeout(PATIENCE).expect("a session ends");
        self.heard.borrow_mut()[reason.number()] += 1;
        reason
    }

    /// Whether a session has ended, and how.
    pub(crate) fn has_ended(&self) -> Option<Reason> {
        let reason = self.ended.try_recv().ok()?;
        self.heard.borrow_mut()[reason.number()] += 1;
        Some(reason)
    }

    pub(crate) fn metrics(&self) -> Metrics {
        self.running.metrics()
    }

    /// Whether somebody who comes now is served. It leaves again.
    pub(crate) fn serves_another(&self) -> bool {
        let served = answers(&mut self.connect());
        served && self.ends() == Reason::PeerEnded
    }

    /// Waits until no session is left.
    pub(crate) fn empties(&self) {
        eventually("all have gone", || self.metrics().sessions == 0);
    }

    /// Ends the server: reasons heard are reasons counted, the accounts agree with what is there,
    /// and the drain loses nothing. Who is still there stays there.
    pub(crate) fn finish(self) {
        eventually("what the handlers heard is what the metrics count", || {
            while self.has_ended().is_some() {}
            let mut counted = self.metrics().ended;
            // Those had no session, and no handler heard of them.
            counted[Reason::Full.number()] = 0;
            counted[Reason::PeerLimit.number()] = 0;
            counted == *self.heard.borrow()
        });
        self.running.audit(PATIENCE).unwrap();
        let report = self.running.drain(PATIENCE).unwrap();
        assert_eq!((report.blocks_lost, report.cut), (0, 0));
        assert_eq!(self.ended.try_iter().count() as u64, report.ended);
    }
}

/// Few connections, small kernel buffers, a small arena.
pub(crate) fn small() -> Limits {
    let mut limits = Limits::default();
    limits.max_connections = 64;
    limits.buffer_bytes = 8 << 20;
    limits.kernel_send = Some(16 << 10);
    limits.kernel_receive = Some(16 << 10);
    limits
}

/// Runs a test in every way at once: for tests that wait more than they work.
pub(crate) fn all_ways(test: impl Fn(Way) + Sync) {
    std::thread::scope(|scope| {
        for driver in drivers() {
            for profile in [Profile::Connections, Profile::Throughput] {
                let test = &test;
                std::thread::Builder::new()
                    .name(format!("{driver:?} {profile:?}"))
                    .spawn_scoped(scope, move || test((driver, profile)))
                    .unwrap();
            }
        }
    });
}

/// A stream whose reads and writes fail rather than hang a test.
fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Whether a byte comes back; a reset or an end is no.
pub(crate) fn answers(stream: &mut TcpStream) -> bool {
    let mut back = [0];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut back).is_ok() && back == *b"x"
}

/// Writes until the server has taken nothing for a while. Returns how much it took.
pub(crate) fn push_all(stream: &mut TcpStream) -> usize {
    let before = stream.write_timeout().unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let part = vec![7; 16 << 10];
    let mut taken = 0;
    while let Ok(count) = stream.write(&part) {
        taken += count;
        assert!(taken < 64 << 20, "the server swallows everything");
    }
    stream.set_write_timeout(before).unwrap();
    taken
}

/// Resets a connection.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Whether a session ended as one does whose peer has reset it. Under Wine that may look like an end:
/// its server takes the error from the kernel before anybody reads.
pub(crate) fn is_reset(reason: Reason) -> bool {
    reason == Reason::PeerReset || cfg!(windows) && reason == Reason::PeerEnded
}

/// Whether a stream, which we have not ended, was reset after nothing more was sent. Under Wine it
/// may read as ended: then nothing can be sent any more.
pub(crate) fn was_reset(stream: &mut TcpStream) -> bool {
    match read_away(stream) {
        None => true,
        Some(_) => cfg!(windows) && stream.write(&[]).is_err(),
    }
}

/// Reads to the end. `None`: the stream was reset.
pub(crate) fn read_away(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => Some(all),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
        Err(error) => panic!("neither an end nor a reset: {error}"),
    }
}

/// Waits for something that another thread does.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a figure that another thread changes is what it should be. Where it never is, the test
/// fails with what it was at the end.
pub(crate) fn eventually_is<T: PartialEq + std::fmt::Debug>(
    what: &str,
    expected: &T,
    mut figure: impl FnMut() -> T,
) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = figure();
        if found == *expected {
            return;
        }
        assert!(Instant::now() < deadline, "never: {what}: {found:?}, not {expected:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
