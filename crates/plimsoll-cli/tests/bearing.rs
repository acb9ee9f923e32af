//! What every command must bear: targets that are not there, close at once or never answer, folders
//! that cannot be written, wrong flags, and Ctrl-C in the middle.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Process, command, descendants, refused, runs, text, until};

/// The experiments that take a target, short.
const TARGETED: [&[&str]; 4] = [
    &["capacity", "--connections", "20", "--probe"],
    &["load", "--connections", "5", "--duration", "300ms"],
    &["churn", "--duration", "500ms"],
    &["survey", "--connections", "20"],
];

/// Each of them against this target must end with 4, its address and a cure, within some seconds.
#[track_caller]
fn each_blames(target: &str, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    for experiment in TARGETED {
        let out = folder.path().join(experiment[0]);
        let mut arguments = experiment.to_vec();
        arguments.extend(["--quiet", "--timeout", "1s", "--target", target]);
        if experiment[0] == "survey" {
            arguments.extend(["--out", out.to_str().unwrap()]);
        }
        let begun = Instant::now();
        refused(&arguments, 4, &[&[target, "cure"], words].concat());
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(20), "{experiment:?} took {took:?}");
    }
}

#[test]
fn a_target_that_is_not_there() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    drop(listener);
    each_blames(&target, &[]);
}

#[test]
fn a_target_that_closes_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    each_blames(&target, &["close"]);
}

#[test]
fn a_target_that_resets_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Bytes that nobody has read make the kernel close with a RST.
            let _ = stream.peek(&mut [0]);
        }
    });
    each_blames(&target, &[]);
}

#[test]
fn a_target_that_never_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let held: std::thread::JoinHandle<()> = std::thread::spawn(move || {
        let _held: Vec<TcpStream> = listener.incoming().flatten().collect();
    });
    each_blames(&target, &["answer"]);
    drop(held);
}

#[test]
fn a_target_that_never_accepts() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    each_blames(&listener.local_addr().unwrap().to_string(), &["answer"]);
}

#[test]
fn a_folder_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    // Nobody, not even root, can write below a file.
    let below = file.join("below");
    let below = below.to_str().unwrap();
    for name in ["backlog", "accept", "capacity", "load", "churn", "survey", "doctor"] {
        let begun = Instant::now();
        refused(&[name, "--output", below], 3, &["cannot write", below, "cure"]);
        assert!(begun.elapsed() < Duration::from_secs(5), "{name}: said before it starts");
    }
    refused(&["survey", "--out", below], 3, &["cannot make", below, "--out"]);
    // A folder in the place of a file of the report.
    let taken = folder.path().join("taken");
    fs::create_dir_all(taken.join("report.html")).unwrap();
    refused(&["survey", "--out", taken.to_str().unwrap()], 3, &["report.html", "folder"]);
}

#[test]
fn wrong_flags() {
    for name in ["backlog", "accept", "capacity", "load", "churn", "survey", "serve"] {
        refused(&[name, "--no-such-flag"], 2, &["--no-such-flag"]);
        refused(&[name, "surplus"], 2, &["surplus"]);
    }
    for name in ["backlog", "accept", "capacity", "load", "churn", "survey"] {
        refused(&[name, "--timeout", "0"], 2, &["--timeout"]);
        refused(&[name, "--timeout", "soon"], 2, &["soon"]);
    }
    refused(&["backlog", "--backlog", "3000000000"], 2, &["3000000000"]);
    refused(&["backlog", "--stop-at", "0"], 2, &["less than 1"]);
    refused(&["backlog", "--address", "192.0.2.1"], 2, &["--allow-remote"]);
    refused(&["backlog", "--address", "192.0.2.1", "--allow-remote"], 3, &["192.0.2.1", "cure"]);
    refused(&["backlog", "--sources", "::1/128", "--backlog", "16"], 2, &["::1", "cure"]);
    refused(&["accept", "--rate", "-5"], 2, &["-5"]);
    refused(&["accept", "--burst", "10G"], 2, &["burst", "cure"]);
    refused(&["capacity", "--connections", "many"], 2, &["many"]);
    refused(&["capacity", "--sources", "::1/128", "--connections", "5"], 2, &["::1", "cure"]);
    refused(&["load", "--size", "1GiB"], 2, &["--size", "cure"]);
    refused(&["load", "--depth", "1000000", "--size", "1MiB"], 2, &["--depth", "cure"]);
    refused(&["load", "--connections", "5G"], 2, &["5000000000", "cure"]);
    refused(&["churn", "--concurrency", "1000000"], 2, &["--concurrency"]);
    refused(&["churn", "--size", "1GiB"], 2, &["cure"]);
    refused(&["survey", "--server-pid", "5"], 2, &["--target"]);
}

/// Long runs of each experiment, and what is on stderr once it is at work.
const LONG: [&[&str]; 8] = [
    &["backlog", "--backlog", "4096", "--keep", "reset", "--sources", "127.9.0.0/30"],
    &["accept", "--repetitions", "1000"],
    &["accept", "--burst", "5", "--duration", "10min", "--repetitions", "1"],
    &["capacity", "--connections", "15000", "--probe"],
    &["load", "--duration", "10min"],
    &["load", "--duration", "10min", "--rate", "100"],
    &["churn", "--duration", "10min"],
    &["survey", "--full", "--connections", "1000"],
];

/// Ctrl-C: code 130, what was measured so far written and marked, and nobody left behind.
#[test]
fn an_interruption_leaves_a_partial_result_and_no_process() {
    for experiment in LONG {
        interrupted_after(experiment, Duration::from_millis(700));
    }
}

/// In the very first moments, when there is nothing to report yet.
#[test]
fn an_early_interruption_is_no_error_of_the_target() {
    for experiment in [LONG[3], LONG[4], LONG[6]] {
        for moment in [30, 60, 120] {
            interrupted_after(experiment, Duration::from_millis(moment));
        }
    }
}

/// A plan that measures has nothing to plan from when it is interrupted: that is said, with the same
/// code.
#[test]
fn an_interrupted_plan_has_no_result() {
    let mut run = Process(
        command(&["plan", "--connections", "1M", "--arrivals", "100", "--quiet"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts"),
    );
    until("it measures", || descendants(run.pid()).len() >= 2);
    let children = descendants(run.pid());
    run.signal("INT");
    assert_eq!(run.ended().code(), Some(130));
    let message = std::io::read_to_string(run.0.stderr.take().expect("a pipe")).unwrap();
    assert!(message.contains("--from"), "{message}");
    for child in children {
        until("no process is left", || !runs(child));
    }
}

#[test]
fn a_process_that_is_not_there() {
    // Above the largest number that Linux gives (4,194,304).
    refused(&["explain", "4194305"], 4, &["4194305", "cure"]);
    let target = ["--target", "127.0.0.1:1", "--server-pid", "4194305"];
    refused(&[&["capacity", "--connections", "5"], &target[..]].concat(), 2, &["4194305"]);
}

#[track_caller]
fn interrupted_after(experiment: &[&str], moment: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("partial.json");
    let mut run = command(experiment);
    run.args(["--json", "--quiet", "--output", file.to_str().unwrap()]);
    if experiment[0] == "survey" {
        run.arg("--out").arg(folder.path().join("report"));
    }
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut run = Process(run);
    // Not before it handles the signal: what comes earlier ends it as it would any program.
    until("it handles SIGINT", || handles_interrupt(run.pid()));
    std::thread::sleep(moment);
    let children = descendants(run.pid());
    run.signal("INT");
    let asked = Instant::now();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (mut stdout, mut stderr) =
        (run.0.stdout.take().expect("a pipe"), run.0.stderr.take().expect("a pipe"));
    std::io::copy(&mut stdout, &mut out).unwrap();
    std::io::copy(&mut stderr, &mut err).unwrap();
    let status = run.ended();
    let took = asked.elapsed();
    let message = text(&err);
    if status.code() == Some(0) {
        // It was over before the signal came: a fast machine, and a short experiment.
        assert_eq!(experiment[0], "backlog", "{experiment:?} ended too early: {message}");
        return;
    }
    assert_eq!(status.code(), Some(130), "{experiment:?} after {moment:?}: {message}");
    assert!(took < Duration::from_secs(15), "{experiment:?} took {took:?} to end");
    for child in children {
        until("no process is left", || !runs(child));
    }
    partial(&out, experiment[0]);
    partial(&fs::read(&file).expect("what was measured is written"), experiment[0]);
    if experiment[0] == "survey" {
        let report = folder.path().join("report");
        partial(&fs::read(report.join("results.json")).unwrap(), "survey");
        assert!(whole_page(&report.join("report.html")));
    }
}

fn partial(bytes: &[u8], command: &str) {
    let document = common::document(bytes);
    assert_eq!(document["command"], command);
    assert_eq!(document["partial"], true, "{command}");
    assert!(document["result"].is_object());
}

fn whole_page(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|page| page.trim_end().ends_with("</html>"))
}

/// Whether SIGINT (2) is among the signals that the process catches (`SigCgt` of proc(5)).
fn handles_interrupt(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|m| m & 2 != 0)
}

/// Killed without a chance to clean up: the kernel ends its server and its workers.
#[test]
fn a_killed_command_leaves_no_process() {
    let run = command(&["capacity", "--connections", "15000", "--probe", "--quiet"])
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut run = Process(run);
    until("its server and a worker are there", || descendants(run.pid()).len() >= 2);
    let children = descendants(run.pid());
    run.0.kill().unwrap();
    run.ended();
    for child in children {
        until("no process is left", || !runs(child));
    }
}
