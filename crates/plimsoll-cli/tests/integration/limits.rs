//! `plimsoll serve`: every limit by flag and by file, and the figures over HTTP.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use crate::common::{self, PATIENCE, Serve, refused, until};

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

/// Whether a byte comes back.
fn answers(stream: &mut TcpStream) -> bool {
    let mut back = [0];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut back).is_ok() && back == *b"x"
}

fn get(address: SocketAddr, request: &str) -> String {
    let mut stream = connect(address);
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers and closes");
    answer
}

/// The value of a line of the figures.
fn figure(text: &str, name: &str) -> f64 {
    let line =
        text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    let line = line.unwrap_or_else(|| panic!("no {name} in:\n{text}"));
    line.rsplit(' ').next().expect("a value").parse().expect("a number")
}

#[test]
fn a_full_server_tells_so_and_its_figures_show_it() {
    let mut server = Serve::start(&[
        "--max-connections",
        "2",
        "--when-full",
        "tell:busy\\n",
        "--max-per-peer",
        "2",
        "--metrics",
        "127.0.0.1:0",
        "--shards",
        "1",
    ]);
    let metrics = server.line("metrics ").parse().expect("an address");
    let mut held = [connect(server.address), connect(server.address)];
    assert!(held.iter_mut().all(answers));
    let mut told = String::new();
    connect(server.address).read_to_string(&mut told).expect("it is told and closed");
    assert_eq!(told, "busy\n");
    let text = get(metrics, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.contains("Content-Type: application/openmetrics-text"), "{text}");
    assert!(text.trim_end().ends_with("# EOF"), "{text}");
    assert!((figure(&text, "plimsoll_sessions") - 2.0).abs() < 0.5, "{text}");
    assert!((figure(&text, "plimsoll_accepted_total") - 2.0).abs() < 0.5, "{text}");
    assert!(figure(&text, "plimsoll_ended_total{reason=\"full\"}") > 0.5, "{text}");
    assert!(figure(&text, "plimsoll_turn_seconds_count") > 0.5, "{text}");
    assert!(get(metrics, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(get(metrics, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    drop(held);
    until("a place is free", || answers(&mut connect(server.address)));
}

/// More than are served at once, of two kinds: those that say nothing, and those that ask for the
/// figures and never read.
#[test]
fn idle_clients_of_the_figures_keep_no_scrape_waiting() {
    let mut server = Serve::start(&["--metrics", "127.0.0.1:0", "--shards", "1"]);
    let metrics = server.line("metrics ").parse().expect("an address");
    let held: Vec<TcpStream> = (0..300)
        .map(|number| {
            let mut stream = connect(metrics);
            if number % 2 == 0 {
                stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("it is taken");
            }
            stream
        })
        .collect();
    let text = get(metrics, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(
        text.starts_with("HTTP/1.1 200 OK\r\n") && text.trim_end().ends_with("# EOF"),
        "{text}"
    );
    drop(held);
}

#[test]
fn limits_come_from_a_file_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("server.toml");
    std::fs::write(
        &path,
        "[limits]\nmax_per_peer = 1\nfirst_byte_timeout = \"200ms\"\nkernel_send = \"16KiB\"\n\
         drain_rate = 1000\nkeep_alive = 5\nuser_timeout = \"9s\"\nshed = \"newest\"\n",
    )
    .expect("it is written");
    let server = Serve::start(&["--config", path.to_str().expect("text"), "--pool", "off"]);
    let mut first = connect(server.address);
    assert!(answers(&mut first));
    assert!(!answers(&mut connect(server.address)), "a second of one peer was served");
    drop(first);
    until("the place is free", || answers(&mut connect(server.address)));
    let mut silent = connect(server.address);
    assert!(silent.read(&mut [0]).map_or(true, |count| count == 0), "a silent one is ended");
}

#[test]
fn what_cannot_be_is_refused() {
    let port = ["--listen", "127.0.0.1:0"];
    for (flags, words) in [
        (["--when-full", "sulk"], ["sulk", "tell:TEXT"]),
        (["--when-full", "tell:\\q"], ["q", "escapes"]),
        (["--shed", "oldest"], ["oldest", "newest"]),
        (["--dry-run", "max_connections"], ["max_connections", "idle_timeout"]),
        (["--service-set", "0"], ["0", "1"]),
        (["--keep-alive", "10ms"], ["keep_alive", "whole seconds"]),
        (["--metrics", "nonsense"], ["nonsense", "127.0.0.1:9100"]),
    ] {
        let arguments = [&["serve"], &port[..], &flags[..]].concat();
        let server = common::plimsoll(&arguments);
        assert_eq!(server.status.code(), Some(2), "{flags:?}");
        let message = common::text(&server.stderr);
        assert!(words.iter().all(|word| message.contains(word)), "{flags:?}: {message}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").to_string();
    let server = common::plimsoll(&["serve", "--listen", "127.0.0.1:0", "--metrics", &taken]);
    assert_eq!(server.status.code(), Some(3));
    refused(&["serve", "--listen", &taken], 3, &["in use"]);
}
