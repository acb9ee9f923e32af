//! `plimsoll.exe` under Wine, met by clients on Linux that share nothing with it: what is a Windows
//! socket to the server is a plain connection to them.
//!
//! `.ci/windows command` builds it and says where it is; without, these tests skip. Wine carries the
//! engine's own Windows code; its kernel is Linux'. So they show that the driver's code is right,
//! and nothing about Windows' limits.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use plimsoll_peers::verifier::{self, Plan};
use serde_json::Value;

use crate::common::{PATIENCE, Serve, result, text};

/// Bytes of random sizes for each profile; 100 million by hand, as the README has it.
fn bytes() -> u64 {
    let asked = std::env::var("PLIMSOLL_WINE_BYTES").ok();
    asked.map_or(20_000_000, |text| text.parse().expect("PLIMSOLL_WINE_BYTES is a number"))
}

/// Where the program is, and the right to run it: one at a time, they share a machine.
fn exe() -> Option<(PathBuf, MutexGuard<'static, ()>)> {
    static ONE: Mutex<()> = Mutex::new(());
    let Some(path) = std::env::var_os("PLIMSOLL_EXE").map(PathBuf::from) else {
        eprintln!("skipped: PLIMSOLL_EXE does not name plimsoll.exe; `.ci/windows command` does");
        return None;
    };
    assert!(path.is_file(), "PLIMSOLL_EXE: {} is no file", path.display());
    Some((path, ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)))
}

fn wine(exe: &PathBuf, arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "240", "wine"]).arg(exe).args(arguments);
    command.env("NO_COLOR", "1").env("WINEDEBUG", "-all").stdin(Stdio::null());
    command
}

/// Runs it with `--json --quiet` to its end; it must end with 0. Returns the result.
#[track_caller]
fn on_windows(exe: &PathBuf, arguments: &[&str]) -> Value {
    let output = wine(exe, &[arguments, &["--json", "--quiet"]].concat()).output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {message}");
    let mut document = crate::common::document(&output.stdout);
    assert_eq!(document["partial"], false, "{arguments:?}");
    document["result"].take()
}

#[test]
fn no_byte_is_wrong_between_a_server_on_windows_and_clients_on_linux() {
    let Some((exe, _one)) = exe() else { return };
    for profile in ["connections", "throughput"] {
        let serve = ["serve", "--listen", "127.0.0.1:0", "--profile", profile, "--shards", "2"];
        let server = Serve::of(&mut wine(&exe, &serve));
        let plan =
            Plan { bytes: bytes(), connections: 1000, stall: PATIENCE, seed: 9, ..Plan::default() };
        let report = verifier::verify(server.address, &plan);
        assert_eq!(report.faults, [], "{profile}");
        eprintln!("{profile}: {} bytes on 1,000 connections, each as it was sent", report.verified);
        let target = server.address.to_string();
        let asked = ["load", "--target", &target, "--connections", "1000"];
        let how = ["--size", "1..16KiB", "--duration", "3s", "--timeout", "30s"];
        let load = result(&[&asked[..], &how].concat());
        assert_eq!((&load["established"], &load["corrupt"]), (&1000.into(), &0.into()), "{load}");
        assert_eq!(load["errors"], serde_json::json!({}), "{load}");
        eprintln!("{profile}: load {} messages, 0 corrupt, no error", load["messages"]);
    }
}

/// Wine hands the backlog to Linux, which takes no hints: what each run asks for is passed on, and
/// its end is named. `granted` is not known, since Windows does not tell.
#[test]
fn the_backlog_is_measured_with_constants_and_hints() {
    let Some((exe, _one)) = exe() else { return };
    let asked = ["backlog", "--backlog", "200,somaxconn,hint:300", "--timeout", "2s"];
    let result = on_windows(&exe, &[&asked[..], &["--stop-at", "1000"]].concat());
    let runs = result["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 3, "{result}");
    for run in runs {
        assert_eq!(run["granted"], Value::Null, "{run}");
        assert!(run["connects_ok"].as_u64() > Some(100), "{run}");
        assert!(run["evidence"].as_str().is_some_and(|text| text.len() > 20), "{run}");
        eprintln!("{}: {} {}", run["requested"], run["stopped_by"], run["evidence"]);
    }
    assert_eq!(runs[0]["requested"], 200);
}

#[test]
fn connections_come_and_go_with_and_without_the_pool() {
    let Some((exe, _one)) = exe() else { return };
    let asked = ["churn", "--pool", "both", "--closes", "both"];
    let result = on_windows(&exe, &asked);
    let variants = result["variants"].as_array().expect("variants");
    for pool in ["off", "on"] {
        assert!(variants.iter().any(|one| one["pool"] == pool), "no pool `{pool}`: {result}");
    }
    for variant in variants {
        assert!(variant["cycles_per_second"].as_f64() > Some(10.0), "{variant}");
    }
}

#[test]
fn the_doctor_reads_what_windows_tells() {
    let Some((exe, _one)) = exe() else { return };
    let output = wine(&exe, &["doctor", "--json", "--quiet"]).output().unwrap();
    let document = crate::common::document(&output.stdout);
    let checks = document["result"]["checks"].as_array().expect("checks");
    assert!(checks.len() >= 4, "{document}");
}

/// A port that is taken is named, and the program ends with 3: no panic, nothing half-done.
#[test]
fn a_port_in_use_is_refused_with_its_cause() {
    let Some((exe, _one)) = exe() else { return };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let start = std::time::Instant::now();
    let output = wine(&exe, &["serve", "--listen", &address]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains(&address), "{}", text(&output.stderr));
    assert!(start.elapsed() < Duration::from_secs(60));
}
