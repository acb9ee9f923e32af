use super::*;
use crate::results::RowVerdict;
use serde_json::json;

/// Ten turns within two percent of the rate.
fn turns(rate: f64) -> Vec<f64> {
    (0..10).map(|turn| rate * (0.98 + 0.004 * f64::from(turn))).collect()
}

fn churn(rate: f64) -> Value {
    json!({"command": "churn", "machine": {"kernel": "6.18"}, "result": {"variants": [
        {"pool": "on", "closes": "client", "cycles_per_second": rate, "turns": turns(rate),
         "errors": {"timeout": 0}, "time_wait_server": null},
        {"pool": "off", "closes": "client", "cycles_per_second": 5.0, "turns": turns(5.0)},
    ]}})
}

fn load(rate: f64, repeats: usize) -> Value {
    let repeat = |rate: f64| {
        json!({
            "messages_per_second": rate,
            "latency_us": {"p50": 1e6 / rate, "p90": 1e6 / rate, "p99": 2e6 / rate, "p999": 4e6 / rate},
            "server_cpu_us_per_message": null,
            "client_cpu_us_per_message": 3.0,
        })
    };
    json!({"command": "load", "arguments": ["load", "--repeat", repeats.to_string()], "result": {
        "asked": 50, "messages": 1000, "messages_per_second": rate,
        "latency_us": {"p50": 1e6 / rate, "p90": 1e6 / rate, "p99": 2e6 / rate, "p999": 4e6 / rate},
        "server_cpu_us_per_message": null,
        "client_cpu_us_per_message": 3.0,
        "timeline": [[0.1, rate * 0.999], [0.2, rate], [0.3, rate], [0.4, rate * 1.001]],
        "repeats": turns(rate).into_iter().take(repeats).map(repeat).collect::<Vec<_>>(),
        "spread": [{"name": "messages_per_second", "median": rate}],
    }})
}

fn row<'a>(comparison: &'a Comparison, path: &str) -> &'a Row {
    comparison.rows.iter().find(|row| row.path == path).unwrap_or_else(|| panic!("{path}"))
}

#[test]
fn rows_are_named_and_changes_beyond_the_spread_are_flagged() {
    let (first, second) = (churn(100.0), churn(110.0));
    let found = compare(&first, &second, Require::SameArguments).unwrap();
    let on = row(&found, "churn[pool=on,closes=client].cycles_per_second");
    assert_eq!((on.first, on.second, on.changed), (100.0, 110.0, Some(true)));
    assert!((on.ratio.unwrap() - 1.1).abs() < 1e-9);
    let (low, high) = on.interval.unwrap();
    assert!(1.0 < low && low <= 1.1 && 1.1 <= high, "{low} {high}");
    let off = row(&found, "churn[pool=off,closes=client].cycles_per_second");
    assert_eq!((off.changed, off.ratio), (Some(false), Some(1.0)));
    let zero = row(&found, "churn[pool=on,closes=client].errors.timeout");
    assert_eq!((zero.ratio, zero.changed), (None, None));
    assert!(render_text(&found).contains("CHANGED"));
    // Each path is one that an assertion finds.
    for row in &found.rows {
        let assertion: Assertion = format!("{}=={}", row.path, row.second).parse().unwrap();
        assert!(judge(&assertion, &found, &second).holds, "{}", row.path);
        let on_ratio = format!("compare[path={}].second=={}", row.path, row.second);
        assert!(judge(&on_ratio.parse().unwrap(), &found, &second).holds, "{on_ratio}");
    }
}

#[test]
fn the_quantities_of_a_load_are_judged_by_their_repeats() {
    let found = compare(&load(1000.0, 10), &load(900.0, 10), Require::SameArguments).unwrap();
    for (path, more) in [
        ("load.messages_per_second", false),
        ("load.latency_us.p50", true),
        ("load.latency_us.p99", true),
        ("load.latency_us.p999", true),
    ] {
        let row = row(&found, path);
        assert_eq!((row.verdict, row.ratio.unwrap() > 1.0), (RowVerdict::Changed, more), "{path}");
        assert_eq!((row.first_repeats, row.second_repeats), (10, 10));
    }
    let client = row(&found, "load.client_cpu_us_per_message");
    assert_eq!(client.verdict, RowVerdict::NotDistinguishable);
    // What is null in both is no row; what is not judged is shown.
    assert!(!found.rows.iter().any(|row| row.path.contains("server_cpu")), "{found:?}");
    assert_eq!(row(&found, "load.messages").verdict, RowVerdict::NotJudged);
    assert!(found.rows.iter().all(|row| !row.path.contains("repeats")
        && !row.path.contains("spread")
        && !row.path.contains("timeline")));
}

#[test]
fn runs_in_one_piece_are_not_judged() {
    for repeats in [0, 1] {
        let found =
            compare(&load(1000.0, repeats), &load(500.0, repeats), Require::SameArguments).unwrap();
        let rate = row(&found, "load.messages_per_second");
        assert_eq!((rate.verdict, rate.ratio), (RowVerdict::NotJudged, Some(0.5)));
        assert_eq!(rate.reason.as_deref(), Some(ONE_RUN));
        let text = render_text(&found);
        assert!(text.contains("not judged: 1 run each; use --repeat"), "{text}");
        assert!(!text.contains("CHANGED"), "{text}");
    }
    let found = compare(&load(1000.0, 1), &load(500.0, 10), Require::Anything).unwrap();
    let reason = row(&found, "load.messages_per_second").reason.clone();
    assert_eq!(reason.as_deref(), Some("1 run in the first; use --repeat"));
}

#[test]
fn a_null_in_one_document_is_no_row() {
    let mut known = load(1000.0, 10);
    known["result"]["server_cpu_us_per_message"] = json!(3.0);
    for repeat in known["result"]["repeats"].as_array_mut().unwrap() {
        repeat["server_cpu_us_per_message"] = json!(3.0);
    }
    let found = compare(&known, &load(1000.0, 10), Require::SameArguments).unwrap();
    assert!(!found.rows.iter().any(|row| row.path.contains("server_cpu")), "{found:?}");
    assert_eq!(found.only_first, ["load.server_cpu_us_per_message"]);
    // A repeat without the figure has no part in its row.
    let mut holes = known.clone();
    holes["result"]["repeats"][3]["server_cpu_us_per_message"] = json!(null);
    let found = compare(&known, &holes, Require::SameArguments).unwrap();
    let server = row(&found, "load.server_cpu_us_per_message");
    assert_eq!((server.first_repeats, server.second_repeats), (10, 9));
}

#[test]
fn documents_of_older_versions_are_compared_as_far_as_they_go() {
    let mut old = load(1000.0, 10);
    for name in ["repeats", "spread", "client_cpu_us_per_message"] {
        old["result"].as_object_mut().unwrap().remove(name);
    }
    old.as_object_mut().unwrap().remove("arguments");
    let found = compare(&old, &load(1000.0, 10), Require::SameArguments).unwrap();
    assert!(found.warnings.iter().any(|warning| warning.contains("arguments")), "{found:?}");
    let rate = row(&found, "load.messages_per_second");
    assert_eq!(rate.reason.as_deref(), Some("1 run in the first; use --repeat"));
    assert!(found.rows.iter().all(|row| row.changed.is_none()));
}

#[test]
fn different_arguments_are_refused_unless_allowed() {
    let (first, second) = (load(1000.0, 10), load(1000.0, 8));
    let error = compare(&first, &second, Require::SameArguments).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("--repeat 10"), "{error}");
    let found = compare(&first, &second, Require::Anything).unwrap();
    assert!(found.warnings.iter().any(|warning| warning.contains("--repeat 8")), "{found:?}");
}

#[test]
fn a_survey_is_compared_by_experiment() {
    let survey = json!({"command": "survey", "partial": true, "machine": {"kernel": "6.19"},
        "result": {"churn": churn(90.0)["result"], "capacity": {"alive": 5}}});
    let found = compare(&churn(100.0), &survey, Require::SameArguments).unwrap();
    assert!(found.rows.iter().any(|row| (row.second - 90.0).abs() < 1e-9));
    assert_eq!(found.only_second, ["capacity.alive"]);
    assert_eq!(found.warnings.len(), 3, "{:?}", found.warnings);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let other = json!({"command": "load", "result": {"messages": 1}});
    for (first, second) in [
        (json!(null), churn(1.0)),
        (churn(1.0), json!({"command": "churn"})),
        (churn(1.0), json!([])),
        (churn(1.0), other),
    ] {
        assert_eq!(compare(&first, &second, Require::Anything).unwrap_err().exit_code(), 2);
    }
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    let deep = json!({"command": "x", "result": deep});
    assert!(compare(&deep, &deep, Require::Anything).is_err());
}
