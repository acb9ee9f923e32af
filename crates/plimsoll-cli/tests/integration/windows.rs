//! The command on Windows, or what stands for it: serve and load, capacity, churn, and what makes no
//! sense there.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

/// One test at a time: Wine fails to start a process now and then while others start (error 1359),
/// and the figures would be of all of them together.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command.args(arguments).env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the command starts")
}

/// Runs it with `--json --quiet`; it must end with 0. Returns the result.
#[track_caller]
fn result(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json", "--quiet"]].concat());
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {message}");
    let mut document: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    crate::schema::assert_valid(&document);
    document["result"].take()
}

/// Completion ports tell of a reply before they tell that its request was sent: the client that took
/// the request for unsent waited for ever.
#[test]
fn a_load_on_the_embedded_server_is_whole() {
    let _alone = alone();
    for driver in ["auto", "iocp"] {
        let mut server =
            command(&["serve", "--listen", "127.0.0.1:0", "--driver", driver, "--until-eof"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("the server starts");
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let target = line.strip_prefix("listening ").expect("it listens").trim();
        let load = result(&[
            "load",
            "--target",
            target,
            "--connections",
            "20",
            "--duration",
            "1s",
            "--size",
            "1..16KiB",
        ]);
        assert_eq!((&load["corrupt"], &load["established"]), (&0.into(), &20.into()), "{load}");
        assert_eq!(load["errors"], serde_json::json!({}), "{load}");
        drop(server.stdin.take());
        assert!(server.wait().unwrap().success(), "the end of stdin is its end");
    }
}

/// The figures come by another way of waiting than the engine's.
#[test]
fn figures_are_served_beside_clients_that_say_nothing() {
    let _alone = alone();
    let mut server =
        command(&["serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--until-eof"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let line = lines.by_ref().map(Result::unwrap).find(|line| line.starts_with("metrics "));
    let address = line.expect("it serves figures").replace("metrics ", "");
    let held: Vec<_> = (0..100).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers and closes");
    assert!(text.starts_with("HTTP/1.1 200 OK") && text.trim_end().ends_with("# EOF"), "{text}");
    drop((held, server.stdin.take()));
    assert!(server.wait().unwrap().success(), "the end of stdin is its end");
}

#[test]
fn connections_are_held_and_answer() {
    let _alone = alone();
    let held = result(&["capacity", "--connections", "1100", "--probe"]);
    assert_eq!((&held["established"], &held["alive"]), (&1100.into(), &1100.into()), "{held}");
    assert!(held["user_bytes_per_connection"].is_number(), "{held}");
    // Windows does not tell it by connection.
    assert!(held["kernel_bytes_per_connection"].is_null(), "{held}");
    let reason = held["kernel_bytes_reason"].as_str().expect("a reason");
    assert!(reason.contains("only Linux"), "{reason}");
}

#[test]
fn the_servers_pool_is_measured_with_and_without() {
    let _alone = alone();
    let churn = result(&["churn", "--duration", "1s", "--closes", "client"]);
    let variants = churn["variants"].as_array().expect("a list");
    let pools: Vec<_> = variants.iter().map(|one| one["pool"].as_str().unwrap()).collect();
    assert_eq!(pools, ["off", "on", "off", "on"]);
    for variant in variants {
        assert!(variant["cycles"].as_u64().is_some_and(|cycles| cycles > 10), "{variant}");
        assert!(variant["server_pools"]["socket_hits"].is_number(), "{variant}");
        assert!(variant["time_wait_client"].is_number(), "{variant}");
    }
}

#[test]
fn what_only_linux_tells_says_so() {
    let _alone = alone();
    for (arguments, word) in [
        (&["explain", "4"][..], "only Linux"),
        (&["accept", "--burst", "10"], "this system tells neither"),
        (&["serve", "--driver", "uring"], "Linux"),
        (&["serve", "--driver", "ready"], "not Windows'"),
    ] {
        let output = run(arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {message}");
        assert!(message.contains(word) && message.contains("cure"), "{arguments:?}: {message}");
    }
}
