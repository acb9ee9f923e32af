//! The command as its users meet it: exit codes, messages, and what is on stdout.

use std::net::TcpListener;

use serde_json::Value;

use crate::common::{Serve, plimsoll, refused, text};

#[test]
fn wrong_usage_is_refused_with_code_2() {
    refused(&["no-such-command"], 2, &["no-such-command"]);
    refused(&["doctor", "--no-such-flag"], 2, &["--no-such-flag"]);
    refused(&["load", "--duration", "5 parsecs"], 2, &["5 parsecs", "ms"]);
    refused(&["load", "--size", "64QiB"], 2, &["64QiB", "KiB"]);
    refused(&["load", "--size", "2KiB..1KiB"], 2, &["smaller"]);
    refused(&["load", "--connections", "0"], 2, &["less than 1"]);
    refused(&["load", "--rate", "0"], 2, &["rate"]);
    refused(&["load", "--rate", "5", "--depth", "2"], 2, &["--depth"]);
    refused(&["load", "--send", "x"], 2, &["--expect"]);
    refused(&["load", "--send", "\\q", "--expect", "x"], 2, &["\\q"]);
    refused(&["load", "--server-pid", "1"], 2, &["--target"]);
    refused(&["capacity", "--stop-before", "100"], 2, &["1..=99"]);
    refused(&["backlog", "--backlog", "many"], 2, &["many", "default"]);
    refused(&["backlog", "--sources", "300.0.0.0/8"], 2, &["300.0.0.0/8", "cure"]);
    refused(&["backlog", "--keep", "warm"], 2, &["open", "close", "reset"]);
    refused(&["churn", "--pool", "maybe"], 2, &["on", "off", "both"]);
    refused(&["plan"], 2, &["--connections"]);
    refused(&["explain", "0"], 2, &["PID"]);
    refused(&["explain", "me"], 2, &["PID"]);
    refused(&["serve", "--driver", "steam"], 2, &["uring"]);
    refused(&["doctor", "--quiet", "--verbose"], 2, &["--verbose"]);
}

#[test]
fn a_configuration_that_is_not_there_or_does_not_parse_is_refused_with_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("server.toml");
    let name = file.to_str().unwrap();
    refused(&["serve", "--config", name], 2, &["cannot read", "cure"]);
    std::fs::write(&file, "[limits]\nmax_conections = 5\n").unwrap();
    refused(&["serve", "--config", name], 2, &["max_conections", "line 2"]);
    std::fs::write(&file, "profile = \"fast\"\n").unwrap();
    refused(&["serve", "--config", name], 2, &["fast", "throughput"]);
    refused(&["plan", "--connections", "5", "--from", name], 2, &["cure"]);
    refused(&["compare", name, name], 2, &["cure"]);
}

#[test]
fn an_assertion_must_parse_and_be_about_this_command() {
    refused(&["doctor", "--assert", "nonsense"], 2, &["nonsense"]);
    refused(&["doctor", "--assert", "capacity.alive>=1"], 2, &["capacity", "doctor"]);
}

#[test]
fn a_target_must_be_an_address_and_local_unless_allowed() {
    refused(&["load", "--target", "127.0.0.1"], 2, &["host:port"]);
    refused(&["load", "--target", "192.0.2.1:7000"], 2, &["--allow-remote"]);
    refused(&["survey", "--target", "192.0.2.1:7000"], 2, &["--allow-remote"]);
    refused(&["backlog", "--address", "0.0.0.0"], 2, &["--allow-remote"]);
}

#[test]
fn a_target_that_is_not_there_is_refused_with_code_4() {
    // A port that was free a moment ago.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    drop(listener);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report");
    let out = out.to_str().unwrap();
    refused(&["survey", "--quiet", "--target", &target, "--out", out], 4, &[&target, "cure"]);
    refused(&["capacity", "--quiet", "--target", &target, "--connections", "1"], 4, &["cure"]);
    refused(&["load", "--quiet", "--target", &target, "--duration", "100ms"], 4, &["cure"]);
}

#[test]
fn what_cannot_be_written_is_said_before_the_experiment_starts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    // Nobody, not even root, can write below a file.
    let below = file.join("result.json");
    let below = below.to_str().unwrap();
    refused(&["doctor", "--output", below], 3, &["cannot write", "cure"]);
    refused(&["survey", "--out", below], 3, &["cannot make", "--out"]);
    let is_folder = folder.path().to_str().unwrap();
    refused(&["doctor", "--output", is_folder], 3, &["it is a folder"]);
}

/// Fields that every document has.
fn document(bytes: &[u8], command: &str) -> Value {
    let value = crate::common::document(bytes);
    assert_eq!(value["schema"], "plimsoll/1");
    assert_eq!(value["command"], command);
    for field in ["version", "started", "seconds", "machine", "partial", "result"] {
        assert!(!value[field].is_null(), "no {field}");
    }
    value
}

#[test]
fn json_is_one_object_on_stdout_and_the_same_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("doctor.json");
    let output = plimsoll(&["doctor", "--json", "--output", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let value = document(&output.stdout, "doctor");
    let checks = value["result"]["checks"].as_array().expect("a list of checks");
    for check in checks {
        for field in ["name", "value", "allows", "ok", "fix"] {
            assert!(check.get(field).is_some(), "no {field} in {check}");
        }
    }
    assert_eq!(std::fs::read(&file).unwrap(), output.stdout);
}

/// A page for a kibibyte, two for one that lies on both.
#[test]
fn what_buffers_pin_is_whole_pages() {
    let value = document(&plimsoll(&["doctor", "--json"]).stdout, "doctor");
    let rows = value["result"]["pinned"].as_array().expect("a list");
    let reason = &value["result"]["pinned_reason"];
    if let Some(reason) = reason.as_str() {
        assert!(rows.is_empty(), "{reason}, and yet {rows:?}");
        // A kernel that pins and does not say so would pass as one that refuses.
        let refuses = ["no ring can be made", "Cannot allocate memory", "Operation not permitted"];
        assert!(refuses.iter().any(|word| reason.contains(word)), "{reason}");
        println!("skipped: {reason}");
        return;
    }
    assert!(reason.is_null() && !rows.is_empty(), "{value}");
    let whole = rows.iter().find(|row| row["layout"] == "whole_pages").expect("whole pages");
    let page = whole["buffer_bytes"].as_u64().unwrap();
    for row in rows {
        let number = |name: &str| row[name].as_u64().unwrap();
        let (buffer, pages) = (number("buffer_bytes"), number("pinned_bytes") / page);
        let each = match row["layout"].as_str().unwrap() {
            "whole_pages" => buffer / page,
            "own_page" | "packed" => 1,
            "straddling" => 2,
            other => panic!("layout {other}"),
        };
        assert_eq!(pages, number("buffers") * each, "{row}");
        let amplification = (each * page) as f64 / buffer as f64;
        assert!((row["amplification"].as_f64().unwrap() - amplification).abs() < 1e-9, "{row}");
    }
}

#[test]
fn a_goal_that_is_not_met_exits_1() {
    let output = plimsoll(&["doctor", "--connections", "1000000000000"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(!output.stdout.is_empty());
}

#[test]
fn assertions_are_printed_with_their_verdicts() {
    let holds = plimsoll(&["doctor", "--assert", "doctor.checks[name=CPUs].ok==true"]);
    assert_eq!(holds.status.code(), Some(0), "{}", text(&holds.stdout));
    assert!(text(&holds.stdout).contains("holds  doctor.checks[name=CPUs].ok==true"));
    let fails = plimsoll(&["doctor", "--json", "--assert", "doctor.checks[name=CPUs].ok==false"]);
    assert_eq!(fails.status.code(), Some(1));
    document(&fails.stdout, "doctor");
    assert!(text(&fails.stderr).contains("FAILS"), "beside JSON verdicts go to stderr");
}

#[test]
fn backlog_finds_what_was_granted() {
    let output = plimsoll(&["backlog", "--backlog", "16", "--json", "--quiet"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "--quiet says nothing");
    let value = document(&output.stdout, "backlog");
    let run = &value["result"]["runs"][0];
    assert_eq!((&run["granted"], &run["queued"]), (&16.into(), &17.into()), "{run}");
    assert_eq!(run["stopped_by"], "queue_full");
}

#[test]
fn help_lists_every_command_and_the_exit_codes() {
    let help = text(&plimsoll(&["--help"]).stdout);
    for command in [
        "survey",
        "serve",
        "backlog",
        "accept",
        "capacity",
        "load",
        "churn",
        "plan",
        "doctor",
        "explain",
        "compare",
        "completions",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "no {command} in: {help}");
        let own = plimsoll(&[command, "--help"]);
        assert_eq!(own.status.code(), Some(0));
        assert!(text(&own.stdout).contains("Example"), "{command} has no example");
    }
    assert!(!help.contains("\n  worker"), "workers are none of a user's business");
    assert!(help.contains("130") && help.contains("Exit codes"));
    let version = text(&plimsoll(&["--version"]).stdout);
    assert_eq!(version, format!("plimsoll {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_name_the_commands() {
    let script = text(&plimsoll(&["completions", "bash"]).stdout);
    assert!(script.contains("capacity") && script.contains("--stop-before"));
}

#[test]
fn a_server_has_no_result() {
    let server = Serve::start(&["--shards", "1"]);
    let address = server.address.to_string();
    refused(&["serve", "--listen", &address], 3, &[&address, "in use", "cure"]);
    refused(&["serve", "--listen", "nowhere"], 2, &["nowhere", "cure"]);
    refused(&["serve", "--json"], 2, &["no result", "cure"]);
}
