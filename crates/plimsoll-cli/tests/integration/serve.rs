//! `plimsoll serve` as its clients meet it: every byte checked by a verifier that shares no code with
//! the engine, its exit codes, its end.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use plimsoll_peers::verifier::{self, Plan};

use crate::common::{self, PATIENCE, Serve, plimsoll, refused, result, text};

/// What is sent by one round of the verifier, over all connections.
const BYTES: u64 = 6 << 20;

/// The kernel's interfaces of this system.
const DRIVERS: [&str; 2] = ["uring", "ready"];

fn plan(seed: u64, connections: usize) -> Plan {
    Plan { seed, bytes: BYTES, connections, stall: PATIENCE, ..Plan::default() }
}

/// Messages of 1 B to 64 KiB, cut at random, on few connections and on many.
#[track_caller]
fn echoes_everything(target: SocketAddr, seed: u64) {
    for connections in [4, 60] {
        let report = verifier::verify(target, &plan(seed, connections));
        assert_eq!(report.faults, [], "{connections} connections, seed {seed}");
        assert_eq!(report.verified, BYTES);
    }
}

#[test]
fn the_end_of_stdin_ends_a_server_that_was_told_so() {
    let mut command = common::command(&["serve", "--listen", "127.0.0.1:0", "--until-eof"]);
    let mut server = Serve::of(command.stdin(std::process::Stdio::piped()));
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"x").unwrap();
    assert_eq!(stream.read(&mut [0; 4]).unwrap(), 1, "it serves as long as stdin is open");
    drop(server.process.0.stdin.take());
    assert_eq!(stream.read(&mut [0; 4]).unwrap(), 0, "the session ends with a FIN");
    assert!(server.process.ended().success());
}

#[test]
fn the_independent_verifier_finds_no_wrong_byte() {
    let mut seed = 1;
    for driver in DRIVERS {
        for profile in ["connections", "throughput"] {
            for shards in ["1", "2"] {
                let arguments = ["--driver", driver, "--profile", profile, "--shards", shards];
                let server = Serve::start(&arguments);
                echoes_everything(server.address, seed);
                seed += 1000;
            }
        }
    }
}

/// Outboxes that are full all the time, and buffers too few for all.
#[test]
fn small_limits_lose_no_byte() {
    let limits = ["--outbox-low", "4KiB", "--outbox-high", "16KiB", "--buffer-bytes", "4MiB"];
    for driver in DRIVERS {
        let more = ["--shards", "1", "--driver", driver];
        let server = Serve::start(&[&limits[..], &more].concat());
        echoes_everything(server.address, 77);
    }
}

#[test]
fn the_engine_as_a_client_finds_no_wrong_byte_in_a_plain_echo() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || plain_echo(stream));
        }
    });
    let run = ["--size", "1..64KiB", "--depth", "3", "--connections", "8", "--duration", "1s"];
    let load = result(&[&["load", "--target", &target], &run[..]].concat());
    assert_eq!((&load["established"], &load["corrupt"]), (&8.into(), &0.into()), "{load}");
    assert!(load["messages"].as_u64() > Some(20), "{load}");
    assert_eq!(load["errors"], serde_json::json!({}), "{load}");
}

fn plain_echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 10_000];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// A server that answers with one wrong byte is found out, and the command says so.
#[test]
fn a_wrong_byte_is_found_and_exits_1() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut buffer, mut total) = ([0; 4096], 0);
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if (total..total + count).contains(&5000) {
                        buffer[5000 - total] ^= 0x10;
                    }
                    total += count;
                    let _ = stream.write_all(&buffer[..count]);
                }
            });
        }
    });
    let output = plimsoll(&["load", "--quiet", "--target", &target, "--duration", "1s"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("wrong"), "{}", text(&output.stdout));
}

/// One round trip, so that the session is known to be served.
fn client(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"here").unwrap();
    let mut reply = [0; 4];
    stream.read_exact(&mut reply).expect("it echoes");
    assert_eq!(&reply, b"here");
    stream
}

#[test]
fn a_signal_drains_with_idle_clients_connected_and_exits_0() {
    for (signal, profile, driver) in [
        ("TERM", "connections", "uring"),
        ("INT", "throughput", "uring"),
        ("INT", "connections", "ready"),
        ("TERM", "throughput", "ready"),
    ] {
        let arguments = ["--profile", profile, "--shards", "2", "--drain-deadline", "500ms"];
        let mut server = Serve::start(&[&arguments[..], &["--driver", driver]].concat());
        let mut clients: Vec<TcpStream> = (0..50).map(|_| client(server.address)).collect();
        let asked = Instant::now();
        server.process.signal(signal);
        let status = server.process.ended();
        assert_eq!(status.code(), Some(0), "{signal}");
        assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
        for client in &mut clients {
            // An orderly end or a reset: either way it is told, at once.
            assert!(matches!(client.read(&mut [0; 8]), Ok(0) | Err(_)));
        }
        assert!(TcpStream::connect(server.address).is_err(), "the port is free again");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Serve::start(&["--shards", "1", "--drain-deadline", "10min"]);
    // A session that cannot end: its client reads nothing of what is echoed.
    let mut client = client(server.address);
    client.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    while client.write(&[7; 8 << 10]).is_ok() {}
    server.process.signal("TERM");
    // The second one counts only once the first has been seen: then nobody is accepted any more.
    common::until("it drains", || TcpStream::connect(server.address).is_err());
    server.process.signal("TERM");
    let status = server.process.ended();
    assert_eq!(status.code(), Some(130));
}

#[test]
fn it_listens_on_ipv6_and_on_both() {
    if TcpListener::bind("[::1]:0").is_err() {
        println!("skipped: this machine has no IPv6");
        return;
    }
    let six = Serve::listening_on("[::1]:0", &["--shards", "1"]);
    assert!(six.address.is_ipv6());
    echoes_everything(six.address, 5);
    let both = Serve::listening_on("[::]:0", &["--shards", "1"]);
    client(SocketAddr::new("::1".parse().unwrap(), both.address.port()));
    client(SocketAddr::new("127.0.0.1".parse().unwrap(), both.address.port()));
    let load = result(&["load", "--target", &six.address.to_string(), "--duration", "200ms"]);
    assert_eq!(load["corrupt"], 0, "{load}");
}

#[test]
fn what_cannot_be_is_refused_at_once() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    refused(&["serve", "--listen", &taken], 3, &[&taken, "in use", "cure"]);
    let free = ["serve", "--listen", "127.0.0.1:0"];
    let with = |arguments: &[&'static str]| [&free[..], arguments].concat();
    let asked = Instant::now();
    let output = plimsoll(&with(&["--max-connections", "4000000000"]));
    let took = asked.elapsed();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("4000000000") && message.contains("cure"), "{message}");
    let fits = message.split_once("allows ").expect("the limiting resource allows a number").1;
    let fits = fits.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse::<u64>().ok());
    assert!(fits.is_some_and(|fits| (1..4_000_000_000).contains(&fits)), "{message}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    refused(&with(&["--max-connections", "9000000000"]), 2, &["9000000000", "cure"]);
    refused(&with(&["--max-connections", "0"]), 2, &["less than 1"]);
    refused(&with(&["--outbox-low", "10", "--outbox-high", "5"]), 2, &["outbox", "cure"]);
    refused(&with(&["--driver", "iocp"]), 3, &["iocp", "Windows", "cure"]);
    refused(&with(&["--driver", "steam"]), 2, &["steam", "uring"]);
    refused(&with(&["--shards", "0"]), 2, &["--shards"]);
    // An address of nobody (RFC 5737).
    refused(&["serve", "--listen", "192.0.2.1:7000"], 2, &["192.0.2.1:7000", "cure"]);
    refused(&["serve", "--listen", "localhost"], 2, &["localhost", "cure"]);
}

#[test]
fn more_clients_than_the_limit_wait_and_are_served_when_there_is_room() {
    DRIVERS.into_iter().for_each(the_fourth_waits);
}

#[track_caller]
fn the_fourth_waits(driver: &str) {
    let arguments = ["--max-connections", "3", "--shards", "2", "--driver", driver];
    let server = Serve::start(&arguments);
    let inside: Vec<TcpStream> = (0..3).map(|_| client(server.address)).collect();
    let mut waiting = TcpStream::connect(server.address).expect("the backlog takes it");
    waiting.write_all(b"wait").unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut reply = [0; 4];
    assert!(waiting.read(&mut reply).is_err(), "nobody serves it yet");
    drop(inside);
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    waiting.read_exact(&mut reply).expect("there is room now");
    assert_eq!(&reply, b"wait");
}
