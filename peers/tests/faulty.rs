//! Each fault of `faulty`, seen over standard sockets.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that ought to take a moment.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server; killed when dropped.
struct Faulty {
    child: Child,
    address: SocketAddr,
}

impl Faulty {
    fn start(flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_faulty"))
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server was built with this test");
        let mut line = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line).expect("it prints a line");
        let address = line.strip_prefix("listening ").expect("its address").trim();
        Self { child, address: address.parse().expect("an address") }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream
    }

    /// Connects, and makes sure that the connection is served.
    fn served(&self) -> TcpStream {
        let mut stream = self.connect();
        assert_eq!(echo(&mut stream, b"served?"), b"served?");
        stream
    }

    fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is a child of ours") {
                return status;
            }
            assert!(Instant::now() < deadline, "the server has not ended");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Its state by `/proc`: `S`, `T`, …
    fn state(&self) -> char {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(path).expect("it runs");
        let (_, fields) = stat.rsplit_once(") ").expect("its name");
        fields.chars().next().expect("its state")
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends, and receives as many bytes.
fn echo(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).expect("it takes bytes");
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).expect("it answers");
    back
}

/// What comes until the end of the stream.
fn rest(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it closes");
    text
}

/// Whether nothing is answered for a while.
fn is_silent(stream: &mut TcpStream) -> bool {
    stream.write_all(b"x").expect("the kernel takes it");
    stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a time-out");
    let read = stream.read(&mut [0]);
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn without_faults_it_echoes() {
    let server = Faulty::start(&[]);
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
    let mut sender = server.connect();
    let mut receiver = sender.try_clone().expect("a second handle");
    let sent = bytes.clone();
    let thread = std::thread::spawn(move || sender.write_all(&sent));
    let mut back = vec![0; bytes.len()];
    receiver.read_exact(&mut back).expect("all comes back");
    assert!(back == bytes);
    thread.join().expect("no panic").expect("all was sent");
}

#[test]
fn beyond_its_connections_it_closes_resets_or_tells() {
    for (how, expected) in [("close", ""), ("text:-ERR full\\r\\n", "-ERR full\r\n")] {
        let server = Faulty::start(&["--max-connections", "2", "--beyond", how]);
        let held = [server.served(), server.served()];
        assert_eq!(rest(&mut server.connect()), expected);
        drop(held);
    }
    let server = Faulty::start(&["--max-connections", "1", "--beyond", "reset"]);
    let held = server.served();
    let error = server.connect().read(&mut [0]).expect_err("it is reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    drop(held);
}

#[test]
fn beyond_its_connections_it_is_silent_until_one_ends() {
    let server = Faulty::start(&["--max-connections", "1", "--beyond", "silence"]);
    let held = server.served();
    let mut waiting = server.connect();
    assert!(is_silent(&mut waiting));
    drop(held);
    assert_eq!(echo(&mut waiting, b"y"), b"x", "what was sent first is answered first");
}

#[test]
fn out_of_descriptors_it_accepts_no_more_until_one_is_free() {
    let server = Faulty::start(&["--descriptors", "10"]);
    let mut held = Vec::new();
    let mut waiting = loop {
        let mut stream = server.connect();
        if is_silent(&mut stream) {
            break stream;
        }
        held.push(stream);
        assert!(held.len() < 10, "it serves more than it has descriptors");
    };
    held.pop();
    assert_eq!(echo(&mut waiting, b"y"), b"x");
}

#[test]
fn idle_connections_are_closed_and_busy_ones_are_not() {
    let server = Faulty::start(&["--idle", "1500ms"]);
    let begun = Instant::now();
    let (mut idle, mut busy) = (server.served(), server.served());
    let thread = std::thread::spawn(move || {
        let text = rest(&mut idle);
        (text, Instant::now())
    });
    while !thread.is_finished() {
        assert_eq!(echo(&mut busy, b"here"), b"here");
        std::thread::sleep(Duration::from_millis(10));
    }
    let (text, closed) = thread.join().expect("no panic");
    assert_eq!(text, "");
    assert!(closed - begun >= Duration::from_millis(1500), "{:?}", closed - begun);
    assert_eq!(rest(&mut busy), "");
}

#[test]
fn slowness_takes_its_time() {
    for (flags, connections, least_ms) in [
        (&["--accept-delay", "30ms"][..], 10, 290),
        (&["--accept-cpu", "30ms"], 10, 290),
        (&["--reply-delay", "300ms"], 1, 300),
        (&["--reply-cpu", "300ms"], 1, 300),
        (&["--rate", "20"], 7, 290),
        (&["--stall", "0:300ms"], 1, 300),
    ] {
        let server = Faulty::start(flags);
        let begun = Instant::now();
        let held: Vec<TcpStream> = (0..connections).map(|_| server.served()).collect();
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(least_ms), "{flags:?}: {took:?}");
        drop(held);
    }
}

#[test]
fn pauses_come_again() {
    let server = Faulty::start(&["--pause-every", "50ms:200ms"]);
    let mut stream = server.connect();
    let (begun, mut pauses) = (Instant::now(), 0);
    while pauses < 3 {
        let sent = Instant::now();
        assert_eq!(echo(&mut stream, b"x"), b"x");
        // Most of a pause, since a message may come in the middle of its beginning.
        pauses += u32::from(sent.elapsed() >= Duration::from_millis(150));
        assert!(begun.elapsed() < PATIENCE, "{pauses} pauses");
    }
}

#[test]
fn it_ends_or_stops_at_a_number_of_connections() {
    for (how, signal, code) in
        [("abort", Some(6), None), ("kill", Some(9), None), ("exit", None, Some(1))]
    {
        let mut server = Faulty::start(&["--crash-at", "2", "--crash-by", how]);
        let held = (server.served(), server.connect());
        let status = server.ended();
        assert_eq!((status.signal(), status.code()), (signal, code), "{how}");
        drop(held);
    }
    let server = Faulty::start(&["--stop-at", "2"]);
    let held = (server.served(), server.connect());
    let deadline = Instant::now() + PATIENCE;
    while server.state() != 'T' {
        assert!(Instant::now() < deadline, "it has not stopped itself");
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(held);
}

#[test]
fn memory_and_threads_come_with_connections() {
    let server = Faulty::start(&["--memory-per-connection", "4MiB", "--thread-per-connection"]);
    let status = || {
        let path = format!("/proc/{}/status", server.child.id());
        let text = std::fs::read_to_string(path).expect("it runs");
        let field = |name: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(name)).expect("a field");
            line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
        };
        (field("VmRSS:"), field("Threads:"))
    };
    let before = status();
    let held: Vec<TcpStream> = (0..5).map(|_| server.served()).collect();
    let after = status();
    assert!(after.0 >= before.0 + 5 * 4096, "{before:?} {after:?} kB");
    assert_eq!(after.1, before.1 + 5);
    drop(held);
}

#[test]
fn it_closes_after_so_many_replies() {
    let server = Faulty::start(&["--close-after-replies", "2"]);
    let mut stream = server.connect();
    assert_eq!(echo(&mut stream, b"one"), b"one");
    assert_eq!(echo(&mut stream, b"two"), b"two");
    assert_eq!(rest(&mut stream), "");
}

#[test]
fn replies_are_wrong_where_asked() {
    let server = Faulty::start(&["--wrong-byte-every", "3"]);
    assert_eq!(echo(&mut server.connect(), &[1; 7]), [1, 1, !1, 1, 1, !1, 1]);
    let server = Faulty::start(&["--wrong-prefix"]);
    assert_eq!(echo(&mut server.connect(), &[1; 3]), [!1, 1, 1]);
    let server = Faulty::start(&["--redis-error", "ERR full"]);
    let mut stream = server.connect();
    stream.write_all(b"PING\r\n").expect("it takes bytes");
    stream.shutdown(std::net::Shutdown::Write).expect("it can be shut down");
    assert_eq!(rest(&mut stream), "-ERR full\r\n");
    let server = Faulty::start(&["--greeting", "5"]);
    let mut greeting = [0; 5];
    server.connect().read_exact(&mut greeting).expect("it greets");
    assert_eq!(&greeting, b"ggggg");
}

#[test]
fn it_speaks_http() {
    let server =
        Faulty::start(&["--http", "length", "--body-bytes", "3", "--close-after-replies", "1"]);
    let mut stream = server.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("it takes bytes");
    let reply = rest(&mut stream);
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    assert!(reply.contains("\r\nConnection: close\r\n"), "{reply}");
    assert!(reply.ends_with("\r\nContent-Length: 3\r\n\r\nxxx"), "{reply}");
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    for flags in [
        &["--beyond", "close"][..],
        &["--max-connections", "1", "--beyond", "sulk"],
        &["--stall", "1s"],
        &["--stall", "1s:0"],
        &["--idle", "soon"],
        &["--http-status", "503"],
        &["--crash-by", "kill"],
        &["--rate", "0"],
    ] {
        let status = Command::new(env!("CARGO_BIN_EXE_faulty"))
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("the server was built with this test");
        assert_eq!(status.code(), Some(2), "{flags:?}");
    }
}
