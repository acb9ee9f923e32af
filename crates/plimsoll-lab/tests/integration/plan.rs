//! `plan` from measured costs.

use std::io::Write;

use plimsoll_lab::advice::doctor::Facts;
use plimsoll_lab::advice::plan::{self, Costs, Options};
use plimsoll_lab::results::{Plan, Side};
use serde_json::json;

fn survey() -> serde_json::Value {
    json!({"command": "survey", "result": {
        "capacity": {"kernel_bytes_per_connection": 3896.0, "user_bytes_per_connection": 100.5},
        "accept": {"accepts_per_second": 500_000.0, "longest_stall_us": 10_000.0}}})
}

#[test]
fn needs_are_linear_in_the_costs() {
    let costs = Costs::from_document(&survey(), "results.json").unwrap();
    let options = Options { connections: 10_000, ..Options::default() };
    let facts = Facts::read();
    let small = plan::plan(&options, &costs, &facts).unwrap();
    assert_eq!((small.kernel_bytes, small.user_bytes), (38_960_000, 1_005_000));
    assert_eq!((small.descriptors, small.source_addresses, small.backlog), (10_064, 1, None));
    let large =
        plan::plan(&Options { connections: 100_000_000, ..options.clone() }, &costs, &facts)
            .unwrap();
    assert_eq!(large.kernel_bytes, 389_600_000_000);
    assert!(!large.fits);
    let text = plan::render_text(&large);
    println!("{text}");
    let memory = large.limits.iter().find(|limit| limit.name == "memory").unwrap();
    assert_eq!(memory.unit, "bytes");
    assert!(text.contains("372 GiB"), "an amount of memory carries its unit: {text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    for limit in &large.limits {
        assert_eq!(limit.ok, limit.available.is_none_or(|available| available >= limit.needed));
        assert!(limit.ok || limit.fix.is_some(), "{limit:?}");
    }
    let direct = Options { direct_descriptors: true, connections: 100_000_000, ..options.clone() };
    let direct = plan::plan(&direct, &costs, &facts).unwrap();
    assert!(
        direct
            .limits
            .iter()
            .any(|limit| limit.name == "nofile (hard)" && limit.available.is_none())
    );
    let nofile = |plan: &Plan| -> String {
        let row = plan.limits.iter().find(|limit| limit.name == "nofile (hard)").unwrap();
        assert_eq!((row.side, row.unit.as_str()), (Some(Side::Server), "descriptors"));
        row.note.clone().expect("a limit that not every server meets is explained")
    };
    // Windows has no such limit, and nothing to explain.
    if cfg!(unix) {
        let note = nofile(&large);
        for part in ["server's process needs them", "direct descriptors", "worker processes"] {
            assert!(note.contains(part), "no `{part}` in: {note}");
        }
        assert!(nofile(&direct).contains("not their sum"));
    }
    let both = plan::plan(&Options { both_ends: true, ..options }, &costs, &facts).unwrap();
    let memory = both.limits.iter().find(|limit| limit.name == "memory").unwrap();
    assert_eq!(memory.needed, 2 * 38_960_000 + 1_005_000);
}

#[test]
fn arrivals_and_bursts_need_a_backlog() {
    let costs = Costs::from_document(&survey(), "results.json").unwrap();
    let options =
        Options { connections: 1, arrivals: Some(3000.0), burst: Some(200), ..Options::default() };
    // 200 at once, 3,000/s for 10 ms, and 4 × √30.
    assert_eq!(plan::plan(&options, &costs, &Facts::default()).unwrap().backlog, Some(252));
    let too_many = Options { arrivals: Some(1e6), ..options.clone() };
    let error = plan::plan(&too_many, &costs, &Facts::default()).unwrap_err();
    assert!(error.to_string().contains("no backlog suffices"), "{error}");
    let unknown = Costs { longest_stall: None, ..costs };
    let error = plan::plan(&options, &unknown, &Facts::default()).unwrap_err();
    assert!(error.to_string().contains("plimsoll accept --rate"), "{error}");
}

#[test]
fn missing_costs_name_the_command_that_measures_them() {
    for document in [
        json!({"command": "backlog", "result": {}}),
        json!({"command": "survey", "result": {"capacity": null}}),
        json!({"command": "capacity", "result": {"kernel_bytes_per_connection": null}}),
        json!({"command": "capacity", "result": {"kernel_bytes_per_connection": -1.0}}),
        json!({"command": "capacity", "result": {"kernel_bytes_per_connection": 3900.0, "user_bytes_per_connection": null}}),
        json!(7),
    ] {
        let error = Costs::from_document(&document, "x.json").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("plimsoll capacity"), "{error}");
    }
}

#[test]
fn files_that_are_not_results_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.json");
    assert_eq!(Costs::from_file(&path).unwrap_err().exit_code(), 2);
    for text in [&b""[..], b"{", b"\xff\xfe", b"[[[["] {
        std::fs::File::create(&path).unwrap().write_all(text).unwrap();
        let error = Costs::from_file(&path).unwrap_err();
        assert!(error.to_string().contains("x.json"), "{error}");
    }
    std::fs::write(&path, survey().to_string()).unwrap();
    let cost = Costs::from_file(&path).unwrap().kernel_bytes_per_connection;
    assert!((cost - 3896.0).abs() < 1e-9);
}

#[test]
fn impossible_plans_are_refused() {
    let costs = Costs::from_document(&survey(), "x").unwrap();
    for options in [
        Options::default(),
        Options { connections: u64::MAX, ..Options::default() },
        Options { connections: 1, arrivals: Some(-1.0), ..Options::default() },
        Options { connections: 1, arrivals: Some(f64::NAN), ..Options::default() },
        Options { connections: 1, burst: Some(0), ..Options::default() },
    ] {
        assert_eq!(plan::plan(&options, &costs, &Facts::default()).unwrap_err().exit_code(), 2);
    }
}
