//! The capacity experiment against servers of std's threads and sockets.

#![cfg(target_os = "linux")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::lab;
use plimsoll_lab::experiments::capacity::{Options, Target, run};
use plimsoll_lab::results::{Capacity, Side, StoppedBy};
use plimsoll_lab::worker::{Exchange, Payload, ReplyEnd};
use plimsoll_lab::{Error, Lab};

/// A server that does this with each connection, one thread each.
fn server(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            let thread = std::thread::Builder::new().stack_size(64 << 10);
            thread.spawn(move || serve(stream)).unwrap();
        }
    });
    address
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}

fn options(address: SocketAddr) -> Options {
    let timeout = Duration::from_secs(2);
    Options {
        connections: Some(500),
        exchange: Exchange::echo(timeout),
        timeout,
        ..Options::new(Target::Address { address, pid: None })
    }
}

fn measure(options: &Options) -> Capacity {
    let (capacity, partial) = run(&lab(), options).unwrap();
    assert!(!partial);
    capacity
}

#[test]
fn what_was_asked_for_is_alive_and_answers() {
    let options = Options { probe: true, ..options(server(echo)) };
    let found = measure(&options);
    assert_eq!((found.established, found.alive), (500, 500), "{found:?}");
    assert_eq!((found.stopped_by, found.attempted), (StoppedBy::Limit, 500));
    assert!(found.probed && found.errors.is_empty(), "{found:?}");
    assert!(found.samples.len() >= 2);
    assert_eq!(found.samples.last().map(|sample| sample.connections), Some(500));
}

#[test]
fn the_server_s_memory_is_seen_with_its_process() {
    let address = server(echo);
    let target = Target::Address { address, pid: Some(std::process::id()) };
    let found = measure(&Options { target, ..options(address) });
    // A thread each: some pages of stack at least.
    let user = found.user_bytes_per_connection.unwrap();
    assert!(user > 1_000.0, "{user}");
}

#[test]
fn a_server_that_stops_accepting_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let held: Vec<TcpStream> = listener.incoming().take(50).flatten().collect();
        // It holds them, and the listener, and accepts no more.
        std::thread::park();
        drop((held, listener));
    });
    let found = measure(&options(address));
    assert_eq!(
        (found.stopped_by, found.stopped_side),
        (StoppedBy::ServerLimit, Some(Side::Server))
    );
    assert!(found.established > 50, "{found:?}");
    assert_eq!(found.alive, 50, "what waits in the backlog is not served: {found:?}");
    assert!(
        found.evidence.contains("still wait in the server's accept queue"),
        "{}",
        found.evidence
    );
}

#[test]
fn a_server_that_closes_beyond_its_limit_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            if held.len() < 60 {
                held.push(stream);
            } else {
                // Bytes before the FIN must not hide it.
                let _ = stream.write_all(b"-ERR max number of clients reached\r\n");
            }
        }
    });
    let found = measure(&options(address));
    assert_eq!(found.stopped_by, StoppedBy::ServerLimit, "{found:?}");
    assert_eq!(found.alive, 60, "{found:?}");
    assert!(found.errors.contains_key("closed"), "{:?}", found.errors);
}

#[test]
fn a_target_that_is_no_use_is_said_so() {
    let asks = |address, probe| {
        let timeout = Duration::from_millis(500);
        let exchange = Exchange::echo(timeout);
        let error =
            run(&lab(), &Options { probe, timeout, exchange, ..options(address) }).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
        assert!(matches!(error, Error::Target { .. }));
        error.to_string()
    };
    // Port 1 is below what is given to anybody: nobody listens there.
    assert!(asks("127.0.0.1:1".parse().unwrap(), false).contains("nobody listens"));
    assert!(asks(server(drop), false).contains("closes it at once"));
    let mute = server(|stream| {
        std::thread::park();
        drop(stream);
    });
    assert!(asks(mute, true).contains("never answers"));
    let other = server(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        std::thread::park();
    });
    assert!(asks(other, true).contains("--expect"));
}

#[test]
fn any_request_and_reply_can_be_the_probe() {
    let address = server(|mut stream| {
        let mut buffer = [0; 64];
        while let Ok(1..) = stream.read(&mut buffer) {
            let _ = stream.write_all(b"+PONG\r\n");
        }
    });
    let exchange = Exchange {
        send: Payload::Bytes(b"PING\r\n".to_vec()),
        expect: Some(b"+PONG".to_vec()),
        end: ReplyEnd::Until(b"\r\n".to_vec()),
        timeout_ms: 2_000,
    };
    let found =
        measure(&Options { probe: true, exchange, connections: Some(20), ..options(address) });
    assert_eq!(found.alive, 20, "{found:?}");
}

#[test]
fn ports_of_the_chosen_source_end_and_more_addresses_move_the_line() {
    let test = "ports_of_the_chosen_source_end_and_more_addresses_move_the_line";
    match common::in_namespace(test) {
        None => common::set_up_namespace(&[("net.ipv4.ip_local_port_range", "40000 40199")]),
        Some(_) => return,
    }
    // Below the range, or it would take one of its ports.
    let listener = TcpListener::bind("127.0.0.1:7000").unwrap();
    std::thread::spawn(move || {
        let held: Vec<TcpStream> = listener.incoming().flatten().collect();
        drop(held);
    });
    let found = measure(&Options {
        sources: Some("127.0.0.1".parse().unwrap()),
        ..options("127.0.0.1:7000".parse().unwrap())
    });
    assert_eq!((found.stopped_by, found.stopped_side), (StoppedBy::Ports, Some(Side::Client)));
    assert_eq!((found.established, found.alive), (200, 200), "{found:?}");
    assert!(found.counter_proof.is_some_and(|proof| proof.contains("64 of 64")));
}

#[test]
fn an_interrupt_leaves_what_was_measured() {
    let lab: Lab = lab();
    let interrupted = std::sync::Arc::clone(&lab.interrupted);
    let address = server(move |stream| {
        interrupted.store(true, Ordering::Relaxed);
        echo(stream);
    });
    let (found, partial) = run(&lab, &options(address)).unwrap();
    assert!(partial);
    assert!(found.established >= 1, "{found:?}");
}
