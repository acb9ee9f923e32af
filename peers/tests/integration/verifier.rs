//! The verifier against servers that are right, and that are wrong on purpose;
//! its two ends against each other; and every peer under it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use plimsoll_peers::verifier::{self, Fault, Limits, Plan};

fn plan(bytes: u64, connections: usize) -> Plan {
    Plan { seed: 42, bytes, connections, stall: Duration::from_secs(20), ..Plan::default() }
}

/// A peer that ends with the test, whatever its outcome.
struct Peer(Child);

impl Peer {
    fn start(program: &str, flags: &[&str]) -> (Self, SocketAddr) {
        let mut child = Command::new(program)
            .args(["--listen", "127.0.0.1:0"])
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the peer was built with this test");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped above");
        let peer = Self(child);
        BufReader::new(stdout).read_line(&mut line).expect("the peer prints its address");
        let address = line.trim_end().strip_prefix("listening ").expect("a peer's first line");
        (peer, address.parse().expect("an address"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn echoes_everything(program: &str, flags: &[&str]) {
    let (_peer, address) = Peer::start(program, flags);
    let report = verifier::verify(address, &plan(16 << 20, 8));
    assert_eq!(report.faults, [], "{program} {flags:?}");
    assert_eq!(report.verified, 16 << 20);
    assert_eq!(report.connections, 8);
    // Slots, descriptors and buffers of connections that have gone are used again.
    let report = verifier::verify(address, &plan(1 << 20, 100));
    assert_eq!(report.faults, [], "{program} {flags:?}, second round");
    assert_eq!(report.verified, 1 << 20);
}

#[test]
fn epoll_echoes_everything() {
    echoes_everything(env!("CARGO_BIN_EXE_peer-epoll"), &[]);
}

#[test]
fn tokio_echoes_everything() {
    echoes_everything(env!("CARGO_BIN_EXE_peer-tokio"), &[]);
}

#[test]
fn ring_echoes_everything() {
    if let Err(error) = io_uring::IoUring::new(2) {
        println!("skipped: this machine has no io_uring for us: {error}");
        return;
    }
    let ring = env!("CARGO_BIN_EXE_peer-ring");
    echoes_everything(ring, &[]);
    echoes_everything(ring, &["--send", "reported"]);
    echoes_everything(ring, &["--descriptors", "plain"]);
    echoes_everything(ring, &["--descriptors", "plain", "--send", "call"]);
    // Two buffers for all: every receive runs out of them.
    echoes_everything(ring, &["--buffers", "2", "--buffer-bytes", "512"]);
    echoes_everything(ring, &["--min-complete", "1", "--buffer-bytes", "100"]);
}

/// Every peer closes when told to, once it has echoed enough.
#[test]
fn peers_close_after_the_bytes_asked_for() {
    for program in [
        env!("CARGO_BIN_EXE_peer-epoll"),
        env!("CARGO_BIN_EXE_peer-ring"),
        env!("CARGO_BIN_EXE_peer-tokio"),
    ] {
        if program.ends_with("ring") && io_uring::IoUring::new(2).is_err() {
            println!("skipped: this machine has no io_uring for us");
            continue;
        }
        let (_peer, address) = Peer::start(program, &["--close-after", "10"]);
        for _ in 0..20 {
            let mut stream = TcpStream::connect(address).expect("it listens");
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a valid timeout");
            stream.write_all(b"0123456789").expect("it reads");
            let mut back = Vec::new();
            stream.read_to_end(&mut back).expect("it echoes, then closes");
            assert_eq!(back, b"0123456789", "{program}");
        }
    }
}

#[test]
fn both_ends_of_the_verifier_agree() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("bound");
    let limits = Limits { connections: Some(5), stall: Duration::from_secs(20) };
    let server = thread::spawn(move || verifier::serve(&listener, &limits));
    let client = verifier::verify(address, &plan(3_000_001, 5));
    let server = server.join().expect("no panic").expect("no error of accept");
    assert_eq!((client.faults, server.faults), (vec![], vec![]));
    assert_eq!((client.verified, server.verified), (3_000_001, 3_000_001));
    assert_eq!((client.connections, server.connections), (5, 5));
}

#[test]
fn the_server_catches_a_client_that_breaks_the_stream() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("bound");
    let limits = Limits { connections: Some(1), stall: Duration::from_secs(20) };
    let server = thread::spawn(move || verifier::serve(&listener, &limits));
    let mut stream = TcpStream::connect(address).expect("it listens");
    // Seed 0 is followed by e2 20 a8 39 …, the first output of splitmix64.
    stream.write_all(&[0, 0, 0, 0, 0, 0, 0, 0, 0xe2, 0x21]).expect("it reads");
    let report = server.join().expect("no panic").expect("no error of accept");
    let wrong = Fault::Wrong { connection: 0, offset: 9, expected: 0x20, got: 0x21 };
    assert_eq!(report.faults, [wrong]);
    assert_eq!(report.verified, 9);
}

/// Echoes one connection, with one thing done wrong at `at` bytes.
fn spoilt_echo(at: usize, spoil: fn(&mut Vec<u8>, usize)) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let (mut buffer, mut passed, mut done) = (vec![0; 4096], 0, false);
        loop {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return stream.shutdown(Shutdown::Write);
            }
            let mut bytes = buffer[..count].to_vec();
            if !done && passed + count > at {
                spoil(&mut bytes, at - passed);
                done = true;
            }
            passed += count;
            stream.write_all(&bytes)?;
        }
    });
    address
}

#[test]
fn a_flipped_bit_is_found_where_it_is() {
    let address = spoilt_echo(700_000, |bytes, at| bytes[at] ^= 0x10);
    let report = verifier::verify(address, &plan(1 << 20, 1));
    match report.faults[..] {
        [Fault::Wrong { connection: 0, offset: 700_000, expected, got }] => {
            assert_eq!(expected ^ got, 0x10);
        }
        ref other => panic!("{other:?}"),
    }
    assert_eq!(report.verified, 700_000);
}

#[test]
fn a_lost_byte_is_found() {
    let address = spoilt_echo(500_000, |bytes, at| {
        bytes.remove(at);
    });
    let report = verifier::verify(address, &plan(1 << 20, 1));
    // The bytes after it may by chance be the same for a while.
    match report.faults[..] {
        [Fault::Wrong { offset, .. }] => assert!((500_000..500_010).contains(&offset)),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_lost_last_byte_is_found() {
    let address = spoilt_echo((1 << 20) - 1, |bytes, at| {
        bytes.remove(at);
    });
    let report = verifier::verify(address, &plan(1 << 20, 1));
    let missing = Fault::Missing { connection: 0, received: (1 << 20) - 1, expected: 1 << 20 };
    assert_eq!(report.faults, [missing]);
}

#[test]
fn an_added_byte_is_found_even_at_the_end() {
    let address = spoilt_echo(300_000, |bytes, at| bytes.insert(at, !bytes[at]));
    let report = verifier::verify(address, &plan(1 << 20, 1));
    assert!(matches!(report.faults[..], [Fault::Wrong { offset: 300_000, .. }]), "{report:?}");

    let address = spoilt_echo((1 << 20) - 1, |bytes, _| bytes.push(0xaa));
    let report = verifier::verify(address, &plan(1 << 20, 1));
    let surplus = Fault::Surplus { connection: 0, expected: 1 << 20, got: 0xaa };
    assert_eq!(report.faults, [surplus]);
    assert_eq!(report.verified, 1 << 20);
}

#[test]
fn a_server_that_never_answers_is_named_as_stuck() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("bound");
    let stall = Duration::from_millis(100);
    let report = verifier::verify(address, &Plan { stall, ..plan(1000, 1) });
    assert!(matches!(report.faults[..], [Fault::Broken { received: 0, .. }]), "{report:?}");
}
