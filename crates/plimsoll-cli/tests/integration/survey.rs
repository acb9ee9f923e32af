//! Surveys, and what every document carries: the command line, the target, figures that were measured
//! and no others; assertions that can never hold.

use std::fs;
use std::time::{Duration, Instant};

use crate::common::servers::Server;
use crate::common::{Serve, plimsoll, refused, text};
use crate::schema;
use serde_json::{Value, json};

const GET: &str = "GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n";
const PAGE: [&str; 6] = ["--send", GET, "--expect", "HTTP/1.1 200", "--reply-until", "</html>\\n"];
const HTTP: [&str; 2] = ["--http", "/"];
const PING: [&str; 4] = ["--send", "PING\\r\\n", "--expect", "+PONG\\r\\n"];

/// Runs it with `--json --quiet`; it must end with `code`. Returns the document.
#[track_caller]
fn document(arguments: &[&str], code: i32) -> Value {
    let output = plimsoll(&[arguments, &["--json", "--quiet"]].concat());
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    crate::common::document(&output.stdout)
}

#[test]
fn a_document_carries_its_command_line_and_its_target() {
    let server = Serve::start(&["--shards", "1"]);
    let (address, pid) = (server.address.to_string(), server.process.pid());
    let pid_text = pid.to_string();
    let arguments = ["load", "--target", &address, "--server-pid", &pid_text, "--connections", "2"];
    let arguments = [&arguments[..], &["--duration", "200ms"]].concat();
    let loaded = document(&arguments, 0);
    let given = [&arguments[..], &["--json", "--quiet"]].concat();
    assert_eq!(loaded["arguments"], json!(given), "as it was given");
    let target = json!({"address": address, "pid": pid, "name": "plimsoll"});
    assert_eq!(loaded["target"], target);
    let again: Vec<&str> =
        loaded["arguments"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    let again = plimsoll(&again);
    assert_eq!(
        crate::common::document(&again.stdout)["arguments"],
        loaded["arguments"],
        "it runs again"
    );
    assert_eq!(document(&["doctor"], 0)["target"], Value::Null);
}

#[test]
fn a_field_that_does_not_exist_is_noticed_before_the_run() {
    let started = Instant::now();
    // Each of these would run for a minute.
    for (assertion, words) in [
        ("load.mesages>=1", &["has no field `mesages`", "`messages`"][..]),
        ("load.latency_us.p95<=1ms", &["`load.latency_us` has no field `p95`", "`p99`"]),
        ("load.timeline>=1", &["is a list"]),
        ("load.loop_kind.x==1", &["has no fields"]),
    ] {
        refused(&["load", "--duration", "60s", "--assert", assertion], 2, words);
    }
    refused(&["survey", "--assert", "loud.messages>=1"], 2, &["has no `loud`", "`load`"]);
    assert!(started.elapsed() < Duration::from_secs(50), "nothing was run");
}

#[test]
fn an_assertion_over_nothing_fails() {
    let run = ["doctor", "--assert", "doctor.checks[name=no such limit].ok==true"];
    let output = plimsoll(&run);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(shown.contains("FAILS") && shown.contains("there is no doctor.checks"), "{shown}");
}

#[test]
fn a_plan_counts_with_exponents_and_names_its_units() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("costs.json");
    let costs = json!({"command": "capacity", "result": {
        "kernel_bytes_per_connection": 4096.0, "user_bytes_per_connection": 1024.0}});
    fs::write(&file, costs.to_string()).unwrap();
    let plan = ["plan", "--connections", "1e6", "--from", file.to_str().unwrap()];
    let output = plimsoll(&plan);
    let shown = text(&output.stdout);
    assert!(shown.contains("4.77 GiB"), "1e6 × 5,120 bytes: {shown}");
    assert!(shown.contains("1,000,064") && shown.contains("descriptors"), "{shown}");
    // Whether it fits is this machine's affair.
    let limits = plimsoll(&[&plan[..], &["--json"]].concat());
    let limits = crate::common::document(&limits.stdout);
    let nofile = limits["result"]["limits"].as_array().unwrap();
    let nofile = nofile.iter().find(|row| row["name"] == "nofile (hard)").expect("a row");
    assert_eq!((&nofile["unit"], &nofile["side"]), (&json!("descriptors"), &json!("server")));
    if nofile["ok"] == false {
        let note = nofile["note"].as_str().expect("why `capacity` may hold as many");
        assert!(note.contains("direct descriptors") && note.contains("worker processes"), "{note}");
    }
}

/// The check that all tests rely on finds what it is meant to find.
#[test]
fn a_wrong_document_is_not_valid() {
    let right = document(&["doctor"], 0);
    schema::assert_valid(&right);
    let wrong = |what: &str, change: &dyn Fn(&mut Value)| {
        let mut document = right.clone();
        change(&mut document);
        let why = schema::check(&document).expect_err(what);
        println!("{what}: {why}");
        why
    };
    let why = wrong("a field that is not in the type", &|it| it["result"]["cheks"] = json!([]));
    assert!(why.contains("$.result.cheks"), "{why}");
    let why = wrong("a missing field", &|it| {
        it["result"]["checks"][0].as_object_mut().unwrap().remove("allows");
    });
    assert!(why.contains("$.result.checks[0] has no allows"), "{why}");
    wrong("a number for a text", &|it| it["result"]["checks"][0]["name"] = json!(7));
    wrong("a text for a number", &|it| it["seconds"] = json!("7"));
    wrong("no command line", &|it| {
        it.as_object_mut().unwrap().remove("arguments");
    });
    wrong("a target without an address", &|it| it["target"] = json!({"pid": 1, "name": null}));
    wrong("a negative count", &|it| it["machine"]["cpus"] = json!(-1));
    wrong("another command", &|it| it["command"] = json!("doktor"));
    wrong("the result of another command", &|it| it["command"] = json!("load"));
}

/// Percentages that the plain progress lines of stderr begin with.
fn percentages(stderr: &str) -> Vec<u64> {
    stderr.lines().filter_map(|line| line.split_once(" %")?.0.trim().parse().ok()).collect()
}

/// Without arguments: one line of progress for all, and what gives way first in the first sentence.
#[test]
fn the_embedded_engine_is_surveyed_with_one_line_of_progress() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report");
    let output = plimsoll(&["survey", "--out", out.to_str().unwrap()]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let shown = text(&output.stdout);
    let results = crate::common::document(&fs::read(out.join("results.json")).unwrap());
    let headline = results["result"]["headline"].as_str().expect("a sentence");
    let first = shown.split("\n\n").next().expect("a first paragraph").replace('\n', " ");
    assert_eq!(first, headline, "the text begins with it");
    assert!(headline.contains("first") || headline.starts_with("Nothing gave way"), "{headline}");
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    let before_figures = report.split("<dl class=\"loadline\"").next().expect("a header");
    assert!(before_figures.contains("class=\"verdict\""), "the verdict stands before all figures");
    assert_eq!(results["target"], Value::Null);
    assert!(results["result"]["load_line"]["accepts_per_second"].as_f64() > Some(0.0));

    let told = percentages(&stderr);
    assert!(!told.is_empty(), "a survey takes longer than the time between two lines: {stderr}");
    assert!(told.is_sorted() && told.iter().all(|percent| *percent <= 100), "{stderr}");
    let says_when = |line: &str| line.contains(" so far, ") && line.contains("left");
    assert!(stderr.lines().any(says_when) || told.len() == 1, "{stderr}");
}

/// A survey of a target: its text and its document.
struct Surveyed {
    text: String,
    document: Value,
}

#[track_caller]
fn survey(server: &Server, connections: &str, exchange: &[&str]) -> Surveyed {
    let out = server.folder.path().join("report");
    let target = server.target();
    let run = ["survey", "--target", &target, "--connections", connections, "--quiet"];
    let run = [&run[..], &["--timeout", "5s", "--out", out.to_str().unwrap()], exchange].concat();
    let output = plimsoll(&run);
    let shown = text(&output.stdout);
    println!("{shown}");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let document = crate::common::document(&fs::read(out.join("results.json")).unwrap());
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    let (report, _) = report.split_once("<pre id=\"json\">").expect("the document is embedded");
    let surveyed = Surveyed { text: shown, document };
    surveyed.has_only_what_was_measured_on_it(report);
    surveyed
}

impl Surveyed {
    fn result(&self) -> &Value {
        &self.document["result"]
    }

    /// Nothing of the embedded engine, in no section of the three.
    #[track_caller]
    fn has_only_what_was_measured_on_it(&self, report: &str) {
        let result = self.result();
        for name in ["backlog", "accept", "doctor"] {
            assert_eq!(result[name], Value::Null, "{name} is not of the target");
            assert!(result["skipped"][name].is_string(), "{name} without a reason");
        }
        for name in ["queued", "accepts_per_second"] {
            assert_eq!(result["load_line"][name], Value::Null, "{name} is not of the target");
        }
        let figures = ["user_bytes_per_connection", "kernel_bytes_per_connection"];
        for name in figures.into_iter().filter(|name| result["load_line"][name].is_null()) {
            assert!(result["skipped"][name].is_string(), "{name} without a reason");
        }
        for shown in [&self.text, report] {
            for never in ["accepts/s", "unaccepted on one listener", "somaxconn=", "0 B in"] {
                assert!(!shown.contains(never), "`{never}` was not measured on it: {}", self.text);
            }
        }
        let held_by_a_limit = |finding: &&Value| {
            let stopped = finding["stopped_by"].as_str().unwrap_or("limit");
            finding["fix"].is_null() || !["limit", "interrupted"].contains(&stopped)
        };
        let findings = result["breaks_first"].as_array().expect("a list");
        assert!(findings.iter().all(|one| held_by_a_limit(&one)), "{findings:?}");
        let headline = result["headline"].as_str().expect("a sentence");
        assert!(self.says(headline) && self.text.starts_with(&headline[..20]), "{}", self.text);
    }

    fn says(&self, part: &str) -> bool {
        self.text.split_whitespace().collect::<Vec<_>>().join(" ").contains(part)
    }
}

#[test]
fn redis_is_surveyed_as_it_is() {
    let Some(redis) = Server::redis() else { return };
    let surveyed = survey(&redis, "200", &[&PING[..], &["--repeat", "3"]].concat());
    let curve = surveyed.result()["load_curve"].as_array().expect("a list");
    let repeats = |load: &Value| load["repeats"].as_array().map(Vec::len);
    assert!(!curve.is_empty() && curve.iter().all(|load| repeats(load) == Some(3)), "{curve:?}");
    let server = &surveyed.result()["server"];
    assert_eq!(server["granted"], 511, "what redis asks listen(2) for: {server}");
    assert_eq!(server["pid"], redis.process.pid(), "found by its listening socket: {server}");
    assert_eq!(server["shares_processors"], true, "{server}");
    let name = surveyed.document["target"]["name"].as_str().expect("its process has a name");
    assert!(name.starts_with("redis"), "{name}");
    let granted = "granted 511 (its own listen(2) argument or net.core.somaxconn";
    assert!(surveyed.says(granted), "{}", surveyed.text);
    assert!(surveyed.says("replies that were whole as expected"), "{}", surveyed.text);
    assert_eq!(surveyed.result()["load_line"]["connections"], 200);
    assert!(surveyed.result()["load"]["server_cpu_us_per_message"].as_f64() > Some(0.0));
}

/// A limit of the server's own is what gives way first, at the load at which it does.
#[test]
fn a_limit_of_redis_own_is_the_first_sentence() {
    let Some(redis) = Server::redis_with(&["--maxclients", "100"]) else { return };
    let surveyed = survey(&redis, "400", &PING);
    let held = &surveyed.result()["capacity"];
    assert_eq!(held["stopped_by"], "server_limit", "{held}");
    let headline = surveyed.result()["headline"].as_str().unwrap();
    assert!(
        headline.contains("The server's own limit on connections gives way first"),
        "{headline}"
    );
    assert!(headline.contains("a higher limit on connections in the server's own"), "{headline}");
    let alive = held["alive"].as_u64().expect("a count");
    assert!(alive <= 100 && headline.contains(&format!("at {alive} connections")), "{headline}");
}

/// It closes each connection after its 1,000 requests, as it is delivered.
#[test]
fn nginx_is_surveyed_as_it_is_delivered() {
    let Some(nginx) = Server::nginx("") else { return };
    for exchange in [&PAGE[..], &HTTP] {
        is_nginx(&survey(&nginx, "200", exchange));
    }
}

#[track_caller]
fn is_nginx(surveyed: &Surveyed) {
    let name = surveyed.document["target"]["name"].as_str().expect("it tells its name");
    assert!(name.starts_with("nginx/"), "from its Server header: {name}");
    let compared = match surveyed.result()["compared"].as_str() {
        Some("beginning") => "replies whose beginning matched",
        Some("status") => "HTTP replies with a status of success",
        other => panic!("{other:?}"),
    };
    assert!(surveyed.says(compared), "{}", surveyed.text);
    let curve = surveyed.result()["load_curve"].as_array().expect("a list");
    assert_eq!(curve.len(), 3, "1, 10, 100 connections");
    for load in curve {
        assert_eq!((&load["complete"], &load["errors"]), (&json!(true), &json!({})), "{load}");
    }
    assert!(
        curve.iter().any(|load| load["reconnects"].as_u64() > Some(0)),
        "it closes after 1,000"
    );
}

#[test]
fn haproxy_is_surveyed_in_front_of_nginx() {
    let Some(haproxy) = Server::haproxy() else { return };
    let surveyed = survey(&haproxy, "100", &HTTP);
    assert_eq!(surveyed.result()["server"]["process"], "haproxy", "and not what is behind it");
    assert_eq!(surveyed.document["target"]["name"], "haproxy", "nor called by its name");
    assert_eq!(surveyed.result()["load_line"]["connections"], 100);
}

/// It answers a request for TLS with one byte, and then waits for what a client of it sends.
#[test]
fn postgres_is_surveyed_by_its_answer_to_a_request_for_tls() {
    let Some(postgres) = Server::postgres() else { return };
    let request = r"\x00\x00\x00\x08\x04\xd2\x16\x2f";
    let surveyed = survey(&postgres, "90", &["--send", request, "--reply-bytes", "1"]);
    assert_eq!(surveyed.result()["compared"], "nothing");
    assert_eq!(surveyed.result()["capacity"]["established"], 90, "{}", surveyed.text);
    let why = surveyed.result()["skipped"]["load"].as_str().expect("it cannot be repeated");
    assert!(why.contains("second time"), "{why}");
    assert!(!surveyed.says("came back wrong"), "{}", surveyed.text);
}

/// Its limit is on clients that have said who they are: 100 of them, as it is delivered.
#[test]
fn the_limit_of_postgres_on_clients_is_seen() {
    let Some(postgres) = Server::postgres() else { return };
    let startup = r"\x00\x00\x00\x17\x00\x03\x00\x00user\x00postgres\x00\x00";
    let ready = r"Z\x00\x00\x00\x05I";
    let exchange = ["--send", startup, "--expect", "R", "--reply-until", ready];
    let surveyed = survey(&postgres, "150", &exchange);
    let held = &surveyed.result()["capacity"];
    let alive = held["alive"].as_u64().expect("a count");
    assert!((90..=100).contains(&alive), "{held}");
    let headline = surveyed.result()["headline"].as_str().expect("a sentence");
    assert!(headline.contains("first") && headline.contains(&alive.to_string()), "{headline}");
}
