//! What `plimsoll` says ended an experiment: servers that end, pause, close idle connections, or say that
//! they are full; and what the clients' own limits are.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Process, Serve, command, plimsoll, result, text, until};
use serde_json::Value;

/// A server of the engine whose connections are descriptors that `/proc` shows.
fn serve(arguments: &[&str]) -> Serve {
    Serve::start(&[&["--driver", "ready", "--shards", "1"], arguments].concat())
}

/// Starts `capacity` against the server, with more connections than it is to reach.
fn begin(server: &Serve, arguments: &[&str]) -> Child {
    let target = server.address.to_string();
    let all = ["capacity", "--target", &target, "--json", "--quiet"];
    command(&[&all, arguments].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts")
}

/// Waits until the server holds the given number of connections.
fn holds(server: &Serve, connections: usize) {
    let folder = format!("/proc/{}/fd", server.process.pid());
    until("the server holds its connections", || {
        std::fs::read_dir(&folder).is_ok_and(|all| all.count() > connections)
    });
}

/// The document of a command that has ended with this code.
#[track_caller]
fn document(output: &Output, code: i32) -> Value {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

#[track_caller]
fn stopped(result: &Value, by: &str, side: Option<&str>, words: &[&str]) {
    let evidence = result["evidence"].as_str().expect("a sentence");
    assert_eq!(result["stopped_by"], by, "{evidence}");
    assert_eq!(result["stopped_side"].as_str(), side, "{evidence}");
    for word in words {
        assert!(evidence.contains(word), "no `{word}` in: {evidence}");
    }
}

#[test]
fn a_killed_server_is_a_result_with_the_signal() {
    let server = serve(&["--max-connections", "19000"]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("result.json");
    let file = file.to_str().expect("text");
    let ramp = begin(&server, &["--connections", "18000", "--step", "50", "--output", file]);
    holds(&server, 500);
    server.process.signal("KILL");
    let output = ramp.wait_with_output().expect("it ends");
    let found = document(&output, 0);
    let pid = server.process.pid().to_string();
    stopped(&found["result"], "server_ended", Some("server"), &["SIGKILL", &pid]);
    assert_eq!((&found["partial"], &found["result"]["alive"]), (&false.into(), &0.into()));
    assert!(found["result"]["established"].as_u64() >= Some(400), "{found}");
    assert!(Path::new(file).exists(), "what was measured is written");
}

#[test]
fn a_pause_within_the_time_limit_ends_nothing() {
    let server = serve(&["--max-connections", "9000"]);
    let ramp = begin(&server, &["--connections", "8000", "--step", "50", "--timeout", "60s"]);
    holds(&server, 500);
    server.process.signal("STOP");
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2_500) {
        std::thread::sleep(Duration::from_millis(50));
    }
    server.process.signal("CONT");
    let output = ramp.wait_with_output().expect("it ends");
    let found = document(&output, 0);
    stopped(&found["result"], "limit", None, &["8,000 connections"]);
    assert_eq!(found["result"]["alive"], 8000);
}

#[test]
fn a_pause_beyond_the_time_limit_is_told_with_the_state() {
    let server = serve(&["--max-connections", "9000"]);
    let ramp = begin(&server, &["--connections", "8000", "--step", "50", "--timeout", "1s"]);
    holds(&server, 500);
    server.process.signal("STOP");
    let output = ramp.wait_with_output().expect("it ends");
    server.process.signal("CONT");
    let found = document(&output, 0);
    stopped(&found["result"], "timeout", Some("server"), &["state T", "accept queue"]);
}

#[test]
fn what_a_full_server_tells_is_quoted_and_its_limit_is_its_own() {
    let server = serve(&["--max-connections", "300", "--when-full", "tell:-ERR full\\r\\n"]);
    let target = server.address.to_string();
    let found = result(&["capacity", "--target", &target, "--connections", "1000"]);
    stopped(&found, "server_limit", Some("server"), &["\"-ERR full\\r\\n\"", "a limit of its own"]);
    assert_eq!(found["server_pid"], server.process.pid(), "its process was looked for");
}

#[test]
fn the_closing_of_idle_connections_is_no_limit() {
    let server = serve(&["--max-connections", "19000", "--idle-timeout", "600ms"]);
    let target = server.address.to_string();
    let arguments = ["--connections", "18000", "--step", "20", "--target", &target];
    let found = result(&[&["capacity"], &arguments[..]].concat());
    stopped(&found, "idle_timeout", Some("server"), &["the oldest ones", "had been quiet for 0."]);
}

#[test]
fn a_limit_that_this_tool_has_set_is_named_as_ours() {
    let found = result(&["capacity", "--timeout", "1s", "--stop-before", "95"]);
    let words = ["10000", "this tool", "--connections N"];
    stopped(&found, "server_limit", Some("server"), &words);
}

#[test]
fn an_interrupted_run_is_called_so() {
    let server = serve(&["--max-connections", "19000"]);
    let ramp = begin(&server, &["--connections", "18000", "--step", "10"]);
    holds(&server, 100);
    let line = format!("kill -INT {}", ramp.id());
    assert!(Command::new("sh").args(["-c", &line]).status().expect("a shell").success());
    let output = ramp.wait_with_output().expect("it ends");
    let found = document(&output, 130);
    assert_eq!(found["partial"], true);
    stopped(&found["result"], "interrupted", None, &["interrupted after"]);
}

#[test]
fn what_a_few_connections_cost_is_not_known_and_the_reason_is_said() {
    let server = serve(&[]);
    let target = server.address.to_string();
    let found = result(&["capacity", "--target", &target, "--connections", "10"]);
    for what in ["user_bytes", "kernel_bytes"] {
        assert!(found[format!("{what}_per_connection")].is_null(), "{found}");
        let reason = found[format!("{what}_reason")].as_str().expect("a reason");
        assert!(reason.contains("connections"), "{reason}");
    }
}

/// Runs it in a shell with `ulimit -n`, which sets the soft limit and the hard one.
fn with_descriptors(limit: u32, arguments: &[&str]) -> Output {
    let plimsoll = command(&[]);
    let program = plimsoll.get_program().to_str().expect("text");
    let line = format!("ulimit -n {limit}; exec \"$0\" \"$@\"");
    let all = [&["-c", &line, program], arguments].concat();
    Command::new("sh").args(all).env("NO_COLOR", "1").output().expect("there is a shell")
}

#[test]
fn the_clients_descriptors_are_the_clients() {
    let server = serve(&[]);
    let target = server.address.to_string();
    let ask = ["capacity", "--target", &target, "--connections", "1000", "--json"];
    let output = with_descriptors(20, &ask);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("RLIMIT_NOFILE is 20") && message.contains("ulimit -n"), "{message}");
    let output = with_descriptors(64, &ask);
    let found = document(&output, 0);
    stopped(&found["result"], "descriptors", Some("client"), &["RLIMIT_NOFILE 64", "ulimit -n"]);
    // It was known before the run.
    let message = text(&output.stderr);
    assert!(message.contains("warning") && message.contains("RLIMIT_NOFILE 64"), "{message}");
    assert_eq!(found["result"]["established"], found["result"]["alive"], "{found}");
}

#[test]
fn a_process_that_serves_nothing_has_nothing_to_run_out_of() {
    let child = Command::new("sleep").arg("600").spawn().expect("it starts");
    let child = Process(child);
    let pid = child.pid().to_string();
    let found = result(&["explain", &pid]);
    assert!(found["kernel_bytes"].is_null(), "{found}");
    let says = found["first_limit"].as_str().expect("a sentence");
    assert!(says.contains("listens on nothing"), "{says}");
    let output = text(&plimsoll(&["explain", &pid]).stdout);
    assert!(output.contains("listens on nothing"), "{output}");
    assert!(!output.contains("0 B") && !output.contains("First to run out"), "{output}");
}

#[test]
fn connects_that_nobody_answers_are_waited_for_together() {
    // A queue that is full: one connection in it, and one more than that.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    // SAFETY: the descriptor is open as long as `listener` lives; listen(2) takes no pointer.
    #[allow(unsafe_code, reason = "std has no backlog")]
    let again = unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 1) };
    assert_eq!(again, 0);
    let began = Instant::now();
    let output = plimsoll(&[
        "capacity",
        "--target",
        &address.to_string(),
        "--connections",
        "40",
        "--step",
        "10",
        "--timeout",
        "2s",
        "--json",
        "--quiet",
    ]);
    // The server accepts none at all: nothing was measured.
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{message}");
    assert!(message.contains("accepted none"), "{message}");
    // One after the other, 16 time limits would be 32 s.
    assert!(began.elapsed() < Duration::from_secs(25).min(PATIENCE), "{:?}", began.elapsed());
}
