//! The runner, on small rankings: what matters here is that it runs, counts
//! and prints, not what the figures are.

use std::process::{Command, Output};

/// Runs the runner with slices of 20 ms, unless the flags say otherwise; none
/// is dropped because others run, since tests run beside each other.
fn rank(flags: &[&str]) -> Output {
    let defaults =
        [["--sweeps", "2"], ["--slice", "20"], ["--connections", "5"], ["--foreign", "1000"]];
    Command::new(env!("CARGO_BIN_EXE_rank"))
        .args(defaults.iter().filter(|[name, _]| !flags.contains(name)).flatten())
        .args(flags)
        .output()
        .expect("the runner was built with this test")
}

fn stdout(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// The rows of a table by their columns; checks that its heads are there.
fn rows(table: &str) -> Vec<Vec<&str>> {
    let mut lines = table.lines();
    assert!(lines.next().is_some_and(|line| line.starts_with("# 5 connections")), "{table}");
    assert!(lines.next().is_some_and(|line| line.starts_with("server ")), "{table}");
    lines.map(|line| line.split_whitespace().collect()).collect()
}

fn peers() -> Vec<&'static str> {
    if io_uring::IoUring::new(2).is_ok() {
        return vec!["epoll", "ring", "tokio"];
    }
    println!("peer-ring skipped: this machine has no io_uring for us");
    vec!["epoll", "tokio"]
}

fn ranks(flags: &[&str]) {
    let peers = peers();
    let mut all: Vec<&str> = peers.iter().flat_map(|name| ["--server", name]).collect();
    all.extend(flags);
    let output = rank(&all);
    let table = stdout(&output);
    let rows = rows(&table);
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), peers, "{table}");
    for row in &rows {
        assert_eq!(row.len(), 9, "{table}");
        let count = |at: usize| row[at].parse::<u32>().expect("a count");
        assert!(count(7) <= 2 && count(7) + count(8) >= 2, "{table}");
        // On a busy machine a slice this short may have to be dropped.
        if row[1] != "-" {
            assert!(row[1].parse::<f64>().expect("a cost") > 0.0, "{table}");
            assert!(row[5].parse::<f64>().expect("a rate") > 0.0, "{table}");
        }
        if row[2] != "-" {
            let ratio = |at: usize| row[at].parse::<f64>().expect("a ratio");
            assert!(0.0 < ratio(3) && ratio(3) <= ratio(2) && ratio(2) <= ratio(4), "{table}");
        }
    }
    assert!(["1.000", "-"].contains(&rows[0][2]), "{table}");
}

#[test]
fn ranks_the_peers_on_one_core() {
    ranks(&[]);
}

#[test]
fn ranks_large_messages_in_depth() {
    ranks(&["--size", "50000", "--depth", "16"]);
}

#[test]
fn ranks_on_two_cores() {
    if has_one_cpu() {
        return;
    }
    ranks(&["--placement", "two-cores"]);
}

#[test]
fn ranks_churn_whoever_closes() {
    for closes in ["reset", "client", "server"] {
        ranks(&["--churn", closes]);
    }
}

/// The JSON that the runner writes, and its table.
fn json(name: &str, flags: &[&str]) -> (serde_json::Value, String) {
    let file = format!("rank-test-{}-{name}.json", std::process::id());
    let file = std::env::temp_dir().join(file);
    let path = file.to_str().expect("a plain temporary folder");
    let table = stdout(&rank(&[flags, &["--json", path]].concat()));
    let text = std::fs::read_to_string(&file).expect("written");
    std::fs::remove_file(&file).expect("ours");
    (serde_json::from_str(&text).expect("JSON"), table)
}

/// Every slice carries exactly the messages that are due in it, and each of them has a latency.
fn keeps_a_rate(name: &str, placement: &str) {
    let flags = ["--rate", "1000", "--slice", "50", "--placement", placement];
    let (json, table) =
        json(name, &[&["--server", "epoll", "--server", "tokio"], &flags[..]].concat());
    assert_eq!(json["rate"], 1000, "{table}");
    assert!(json["depth"].is_null(), "{table}");
    assert!(table.contains("1000 messages/s") && table.contains("p99 us"), "{table}");
    for server in json["servers"].as_array().expect("servers") {
        let slices = server["slices"].as_array().expect("slices");
        assert!(slices.len() >= 2, "{table}");
        for slice in slices {
            assert_eq!(slice["units"], 50, "{slice}");
            let number = |name: &str| slice[name].as_f64().expect("a number");
            // The last message is due after 49 ms.
            assert!(number("seconds") >= 0.049, "{slice}");
            assert!(0.0 < number("p50_us") && number("p50_us") <= number("p99_us"), "{slice}");
            assert!((0.0..=100.0).contains(&number("late_percent")), "{slice}");
        }
    }
}

/// Says why a test is skipped where there is one.
fn has_one_cpu() -> bool {
    let has_one = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2);
    if has_one {
        println!("skipped: one CPU");
    }
    has_one
}

#[test]
fn keeps_a_rate_on_one_core() {
    keeps_a_rate("one-core", "one-core");
}

#[test]
fn keeps_a_rate_on_two_cores() {
    if has_one_cpu() {
        return;
    }
    keeps_a_rate("two-cores", "two-cores");
}

#[test]
fn a_latency_counts_from_when_the_message_was_due() {
    if has_one_cpu() {
        return;
    }
    // Ten messages are due within 90 ms and take 100 ms each, one after the other: the nth reply
    // comes after n times 100 ms. A loop that waited for replies would measure 100 ms for each.
    let slow = "slow=faulty --reply-cpu 100ms --listen {listen}";
    let load = ["--rate", "100", "--slice", "100", "--connections", "10"];
    let once = ["--sweeps", "1", "--retries", "0", "--placement", "two-cores"];
    let server = ["--server", slow, "--baseline", "slow"];
    let (json, table) = json("due", &[&server[..], &load[..], &once[..]].concat());
    let slices = json["servers"][0]["slices"].as_array().expect("slices");
    assert_eq!(slices.len(), 1, "{table}");
    let number = |name: &str| slices[0][name].as_f64().expect("a number");
    assert_eq!(slices[0]["units"], 10, "{table}");
    assert!(number("p50_us") >= 400_000.0, "the fifth reply, less 90 ms at most: {}", slices[0]);
    assert!(number("p99_us") >= 900_000.0, "the tenth reply, less 90 ms at most: {}", slices[0]);
    assert!(table.contains("the server did not keep the rate") || number("late_percent") > 1.0);
}

#[test]
fn takes_any_command_and_writes_json() {
    // A program beside the runner, given its address by substitution.
    let other = "mine=peer-epoll --listen {listen}";
    let (json, table) = json("any", &["--server", "epoll", "--server", other]);
    assert_eq!(rows(&table)[1][0], "mine");
    assert_eq!(json["servers"][1]["name"], "mine");
    assert!(json["servers"][1]["slices"].as_array().is_some_and(|slices| slices.len() >= 2));
}

#[test]
fn says_what_is_wrong() {
    for (flags, code, words) in [
        (&["--server", "tokio"][..], 2, "baseline"),
        (&["--server", "epoll", "--against", "ring"][..], 2, "\"ring\" is none"),
        (&["--server", "nginx"][..], 2, "no built-in peer"),
        (&["--server", "epoll", "--server", "epoll"][..], 2, "same name"),
        (&["--server", "epoll=/does/not/exist"][..], 4, "cannot start"),
        (&["--server", "epoll=false"][..], 4, "ended at once"),
        (&["--server", "epoll", "--connections", "1000000"][..], 3, "descriptors"),
        (&["--server", "epoll", "--rate", "100"][..], 2, "longer --slice"),
        (&["--server", "epoll", "--rate", "100", "--depth", "2"][..], 2, "--depth"),
        (&["--server", "epoll", "--rate", "100", "--churn", "client"][..], 2, "--churn"),
    ] {
        let mut all = vec!["--sweeps", "1", "--slice", "1"];
        all.extend(flags);
        let output = Command::new(env!("CARGO_BIN_EXE_rank"))
            .args(&all)
            .output()
            .expect("the runner was built with this test");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{flags:?}: {errors}");
        assert!(errors.contains(words), "{flags:?}: {errors}");
    }
}
