//! `compare`, and repeats of `load`, as a user sees them.

use std::net::{SocketAddr, TcpListener};
use std::{fs, io, thread};

use crate::common::{Serve, plimsoll, refused, result, text};
use serde_json::{Value, json};

/// Two targets in turns: each has its repeats, and the sums are those of the repeats.
#[test]
fn two_targets_are_loaded_in_turns_and_compared() {
    let servers = [Serve::start(&["--shards", "1"]), Serve::start(&["--shards", "1"])];
    let addresses = servers.each_ref().map(|server| server.address.to_string());
    let pids = servers.each_ref().map(|server| server.process.pid().to_string());
    let found = result(&[
        "load",
        "--target",
        &addresses[0],
        "--target",
        &addresses[1],
        "--server-pid",
        &pids[0],
        "--server-pid",
        &pids[1],
        "--connections",
        "4",
        "--repeat",
        "10",
        "--duration",
        "1s",
    ]);
    let targets = found["targets"].as_array().expect("a list");
    assert_eq!(targets.len(), 2);
    for (target, address) in targets.iter().zip(&addresses) {
        assert_eq!(target["address"], json!(address));
        let load = &target["load"];
        let repeats = load["repeats"].as_array().expect("a list");
        assert_eq!(repeats.len(), 10);
        let messages: u64 = repeats.iter().map(|one| one["messages"].as_u64().unwrap()).sum();
        assert_eq!(load["messages"], json!(messages), "counts are sums");
        let seconds: f64 = repeats.iter().map(|one| one["duration"].as_f64().unwrap()).sum();
        // Twenty slices of 50 ms, which end late on a busy machine, and never early.
        assert!(seconds >= 0.999, "{seconds}");
        assert!(load["server_cpu_us_per_message"].as_f64().is_some_and(|cpu| cpu > 0.0), "{load}");
        assert_eq!((&load["corrupt"], &load["errors"]), (&json!(0), &json!({})));
    }
    assert_eq!(found["messages"], targets[0]["load"]["messages"], "the first stands in front");
    let comparison = &found["comparison"];
    assert_eq!(comparison["baseline"], json!(addresses[0]));
    let orders = comparison["orders"].as_array().unwrap();
    assert_eq!(orders.len(), 10);
    assert_ne!(orders[0], orders[1], "each second repeat has the other order");
    for (target, slices) in targets.iter().zip(comparison["slices"].as_array().unwrap()) {
        let slices = slices.as_array().unwrap();
        assert_eq!(slices.len(), 20, "there and back in each repeat");
        let messages: u64 = slices.iter().map(|one| one["messages"].as_u64().unwrap()).sum();
        assert_eq!(target["load"]["messages"], json!(messages));
    }
    let rows = comparison["targets"][0]["rows"].as_array().unwrap();
    for path in
        ["load.messages_per_second", "load.latency_us.p50", "load.server_cpu_us_per_message"]
    {
        let row = rows.iter().find(|row| row["path"] == path).unwrap_or_else(|| panic!("{path}"));
        assert_ne!(row["verdict"], "not_judged", "ten repeats suffice: {row}");
        let (low, high) =
            (row["interval"][0].as_f64().unwrap(), row["interval"][1].as_f64().unwrap());
        let ratio = row["ratio"].as_f64().unwrap();
        assert!(low <= ratio && ratio <= high && row["could_have_seen"].is_number(), "{row}");
    }
}

#[test]
fn a_run_in_repeats_can_be_judged_and_one_in_one_piece_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (first, second, piece) = (file("first.json"), file("second.json"), file("piece.json"));
    let server = Serve::start(&["--shards", "1"]);
    let target = server.address.to_string();
    let run = |repeats: &str, output: &str| {
        result(&[
            "load",
            "--target",
            &target,
            "--connections",
            "4",
            "--duration",
            "500ms",
            "--repeat",
            repeats,
            "--output",
            output,
        ])
    };
    let load = run("8", &first);
    assert_eq!(load["repeats"].as_array().map(Vec::len), Some(8));
    assert!(load["spread"].as_array().is_some_and(|spread| !spread.is_empty()), "{load}");
    assert_eq!((&load["targets"], &load["comparison"]), (&json!([]), &Value::Null));
    run("8", &second);
    run("1", &piece);
    let verdict = |first: &str, second: &str| {
        let compared = result(&["compare", first, second, "--allow-different"]);
        let rows = compared["rows"].as_array().unwrap().clone();
        let rate = rows.into_iter().find(|row| row["path"] == "load.messages_per_second");
        rate.expect("a row of the rate")
    };
    let mut judged = verdict(&first, &second);
    // Tests beside this one may slow the whole machine in one of the two runs: then nothing is judged,
    // rightly, and the second run is measured again.
    let is_of_the_machine = |row: &Value| {
        row["reason"].as_str().is_some_and(|reason| reason.starts_with("the machine took"))
    };
    for _ in 0..20 {
        if !is_of_the_machine(&judged) {
            break;
        }
        run("8", &second);
        judged = verdict(&first, &second);
    }
    assert_ne!(judged["verdict"], "not_judged", "{judged}");
    assert!(judged["could_have_seen"].as_f64().is_some_and(|seen| seen > 0.0), "{judged}");
    let alone = verdict(&first, &piece);
    assert_eq!(alone["verdict"], "not_judged");
    assert_eq!(alone["reason"], "1 run in the second; use --repeat");
    let output = plimsoll(&["compare", &piece, &piece, "--quiet"]);
    let said = text(&output.stdout);
    assert!(said.contains("not judged: 1 run each; use --repeat"), "{said}");
    assert!(!said.contains("CHANGED"), "{said}");
}

/// A result as an older version wrote it, without repeats and arguments.
fn older(connections: u64, rate: f64) -> String {
    json!({"schema": "plimsoll/1", "command": "load", "version": "0.1.0", "result": {
        "asked": connections, "messages_per_second": rate, "latency_us": {"p50": 1.0},
        "server_cpu_us_per_message": null, "timeline": [[0.1, rate], [0.2, rate], [0.3, rate]],
    }})
    .to_string()
}

#[test]
fn runs_of_different_arguments_are_refused_unless_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let first = file("first.json", &older(50, 1000.0));
    let second = file("second.json", &older(60, 500.0));
    refused(&["compare", &first, &second], 2, &["connections 50 and 60", "--allow-different"]);
    let output = plimsoll(&["compare", &first, &second, "--allow-different"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("warning: they were measured with different arguments"), "{said}");
    // An older file says nothing of its arguments: it is compared, and that is said.
    let same = file("same.json", &older(50, 500.0));
    let output = plimsoll(&["compare", &first, &same]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("does not say with which arguments"), "{said}");
    assert!(!said.contains("CHANGED"), "{said}");
    // Assertions decide about the exit code as before.
    let bound = "load.messages_per_second>=600";
    assert_eq!(plimsoll(&["compare", &first, &same, "--assert", bound]).status.code(), Some(1));
}

#[test]
fn flags_that_do_not_fit_together_are_refused() {
    let target = "127.0.0.1:9";
    let two = ["load", "--target", target, "--target", "127.0.0.1:10"];
    refused(
        &[&two[..], &["--server-pid", "1"]].concat(),
        2,
        &["2 × --target and 1 × --server-pid"],
    );
    refused(&["load", "--target", target, "--target", target], 2, &["given twice"]);
    refused(
        &[&two[..], &["--duration", "100ms", "--repeat", "10"]].concat(),
        2,
        &["slices of", "fewer repeats"],
    );
    refused(&["load", "--repeat", "0"], 2, &["--repeat"]);
}

/// An echo server that stops listening once it has accepted the given number of connections.
fn echo_for(connections: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for socket in listener.incoming().take(connections).flatten() {
            thread::spawn(move || io::copy(&mut &socket, &mut &socket));
        }
    });
    address
}

/// What was measured before a target went away is written, and marked.
#[test]
fn a_target_that_goes_away_between_slices_ends_the_run_with_a_result() {
    let server = Serve::start(&["--shards", "1"]);
    // The slice that is not counted, one repeat of two slices, and one slice more.
    let mortal = echo_for(4);
    let output = plimsoll(&[
        "load",
        "--target",
        &server.address.to_string(),
        "--target",
        &mortal.to_string(),
        "--connections",
        "1",
        "--duration",
        "500ms",
        "--repeat",
        "5",
        "--json",
        "--quiet",
    ]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(document["partial"], false);
    let [first, second] = [0, 1].map(|index| &document["result"]["targets"][index]["load"]);
    assert_eq!((&first["complete"], &second["complete"]), (&json!(false), &json!(false)));
    assert_eq!(second["stopped_by"], "server_ended");
    assert!(second["evidence"].as_str().unwrap().contains("cannot be reached"), "{second}");
    for load in [first, second] {
        assert_eq!(load["repeats"].as_array().map(Vec::len), Some(1), "one was finished: {load}");
        assert!(load["messages"].as_u64() > load["repeats"][0]["messages"].as_u64(), "{load}");
    }
    let row = &document["result"]["comparison"]["targets"][0]["rows"][0];
    assert_eq!(row["verdict"], "not_judged", "two slices tell nothing: {row}");
}

/// A target that does not answer is named before anything is measured.
#[test]
fn a_target_that_cannot_be_reached_ends_the_run() {
    let server = Serve::start(&["--shards", "1"]);
    let nobody = crate::common::free_port();
    refused(
        &[
            "load",
            "--target",
            &server.address.to_string(),
            "--target",
            &format!("127.0.0.1:{nobody}"),
        ],
        4,
        &[&format!("127.0.0.1:{nobody} cannot be reached")],
    );
}
