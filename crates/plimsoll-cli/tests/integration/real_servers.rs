//! Servers that others wrote: nginx and redis-server, each started here on a port of its own. Where
//! one is not installed, its tests say so and pass.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use crate::common::servers::Server;
use crate::common::{PATIENCE, plimsoll, result, text};

const GET: &str = "GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n";
const NGINX: [&str; 6] = ["--send", GET, "--expect", "HTTP/1.1 200", "--reply-until", "</html>\\n"];
const REDIS: [&str; 4] = ["--send", "PING\\r\\n", "--expect", "+PONG\\r\\n"];

/// For nginx: no connection is closed while it is looked at.
const KEEPS: &str = "keepalive_requests 1000000000; keepalive_timeout 600s;";

/// Everything a result needs to be of use, in the folder that `--out` names.
fn survey(server: &Server, exchange: &[&str]) -> Value {
    let out = server.folder.path().join("report");
    let (target, pid) = (server.target(), server.pid());
    let out_text = out.to_str().unwrap();
    let run = ["survey", "--target", &target, "--server-pid", &pid, "--connections", "200"];
    let output = plimsoll(&[&run[..], &["--quiet", "--out", out_text], exchange].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(shown.contains(&format!("The load line of {target}")), "{shown}");
    let report = fs::read_to_string(out.join("report.html")).expect("the report is there");
    assert!(report.trim_end().ends_with("</html>"), "the report is whole");
    assert!(report.contains(&target) && report.contains("<svg"));
    let results = fs::read(out.join("results.json")).expect("the figures are there");
    let document = crate::common::document(&results);
    assert_eq!((&document["command"], &document["partial"]), (&"survey".into(), &false.into()));
    document["result"].clone()
}

#[track_caller]
fn holds_a_thousand(server: &Server, exchange: &[&str]) {
    let (target, pid) = (server.target(), server.pid());
    let run = ["capacity", "--target", &target, "--server-pid", &pid, "--connections", "1000"];
    let held = result(&[&run[..], &["--probe"], exchange].concat());
    assert_eq!((&held["established"], &held["alive"]), (&1000.into(), &1000.into()), "{held}");
    assert_eq!((&held["probed"], &held["stopped_by"]), (&true.into(), &"limit".into()), "{held}");
    assert_eq!(held["errors"], serde_json::json!({}));
    assert!(held["user_bytes_per_connection"].as_f64() > Some(100.0), "{held}");
}

#[track_caller]
fn carries_a_load(server: &Server, exchange: &[&str]) {
    let (target, pid) = (server.target(), server.pid());
    let run = ["load", "--target", &target, "--server-pid", &pid, "--connections", "20"];
    let load = result(&[&run[..], &["--duration", "1s"], exchange].concat());
    assert_eq!((&load["established"], &load["corrupt"]), (&20.into(), &0.into()), "{load}");
    assert_eq!(load["errors"], serde_json::json!({}), "{load}");
    assert!(load["messages"].as_u64() > Some(100), "{load}");
    assert!(load["server_cpu_us_per_message"].as_f64() > Some(0.0), "{load}");
}

#[track_caller]
fn is_surveyed(server: &Server, exchange: &[&str]) {
    let survey = survey(server, exchange);
    let line = &survey["load_line"];
    assert_eq!(line["connections"], 200, "{line}");
    assert!(line["messages_per_second"].as_f64() > Some(100.0), "{line}");
    assert_eq!(survey["load_curve"].as_array().map(Vec::len), Some(3), "1, 10, 100 connections");
    let skipped = survey["skipped"].as_object().expect("a table");
    let why = |name: &str| skipped.get(name).and_then(Value::as_str).unwrap_or_default();
    for (name, part) in [
        ("accept", "an acceptor of its own"),
        ("backlog", "the target's listener was granted"),
        ("churn", "needs an echo server"),
        ("doctor", "plimsoll doctor"),
        // The first one was made before the figures were read.
        ("kernel_bytes_per_connection", "199 connections are too few"),
        ("plan", "200 connections"),
    ] {
        assert!(why(name).contains(part), "no `{part}` for {name}: {skipped:?}");
    }
    let others: Vec<&String> = skipped.keys().filter(|name| name.starts_with("load")).collect();
    assert!(others.is_empty(), "{skipped:?}");
    let user = &line["user_bytes_per_connection"];
    assert!(
        user.as_f64() > Some(100.0) || why("user_bytes_per_connection").contains("199 connections"),
        "{user}"
    );
}

#[test]
fn nginx_holds_connections_and_carries_a_load() {
    let Some(nginx) = Server::nginx(KEEPS) else { return };
    holds_a_thousand(&nginx, &NGINX);
    carries_a_load(&nginx, &NGINX);
}

#[test]
fn nginx_is_surveyed() {
    let Some(nginx) = Server::nginx(KEEPS) else { return };
    is_surveyed(&nginx, &NGINX);
}

#[test]
fn redis_holds_connections_and_carries_a_load() {
    let Some(redis) = Server::redis() else { return };
    holds_a_thousand(&redis, &REDIS);
    carries_a_load(&redis, &REDIS);
}

#[test]
fn redis_is_surveyed() {
    let Some(redis) = Server::redis() else { return };
    is_surveyed(&redis, &REDIS);
}

#[test]
fn the_invoice_of_redis_counts_what_it_holds() {
    let Some(redis) = Server::redis() else { return };
    let held: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(redis.address).expect("it listens");
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(b"PING\r\n").unwrap();
            let mut reply = [0; 7];
            stream.read_exact(&mut reply).expect("it answers");
            assert_eq!(&reply, b"+PONG\r\n");
            stream
        })
        .collect();
    let invoice = result(&["explain", &redis.pid()]);
    let listeners = invoice["listeners"].as_array().expect("a list");
    let ours = listeners.iter().find(|one| one["address"] == redis.target().as_str());
    assert!(
        ours.is_some_and(|one| one["depth"] == 0 && one["limit"].as_u64() > Some(0)),
        "{invoice}"
    );
    assert_eq!(invoice["connections"]["established"].as_u64(), Some(100), "{invoice}");
    assert!(invoice["descriptors"].as_u64() > Some(100), "{invoice}");
    drop(held);
}

/// A server that speaks another protocol is found before anything is measured, and is not said to have
/// failed.
#[test]
fn a_server_that_speaks_otherwise_is_refused_with_the_cure() {
    let Some(redis) = Server::redis() else { return };
    let out = redis.folder.path().join("never");
    let target = redis.target();
    let run = ["survey", "--quiet", "--timeout", "1s", "--out", out.to_str().unwrap()];
    crate::common::refused(
        &[&run[..], &["--target", &target]].concat(),
        4,
        &[&target, "--send", "cure"],
    );
}
