//! `compare`: two results side by side.
//!
//! Every number that both documents have is a row: its path, in the form that
//! [`assertion`](crate::checks::assertion) reads, both values, and their ratio. Elements of arrays are
//! matched by what names them (`requested`, `pool` and `closes`, `way`, …), never by position where
//! they have a name. Curves over time are left out.
//!
//! Where a value was measured several times in one run (turns, repetitions, a timeline), it counts
//! as changed if the quartile ranges of the two runs do not meet. Where it was measured once there
//! is no verdict: one figure has no spread.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checks::assertion::{Assertion, Verdict};
use crate::statistics::quartiles;
use crate::{Error, Result, units};

/// Two results side by side.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Comparison {
    /// The command whose results they are.
    pub command: String,
    /// One per number that both have.
    pub rows: Vec<Row>,
    /// Paths of numbers that only the first has.
    pub only_first: Vec<String>,
    /// Paths of numbers that only the second has.
    pub only_second: Vec<String>,
    /// What makes the two hard to compare: another machine, kernel or version, a partial result.
    pub warnings: Vec<String>,
}

/// One number in both results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    /// Where it is: `churn[pool=on,closes=client].cycles_per_second`.
    pub path: String,
    /// In the first result.
    pub first: f64,
    /// In the second.
    pub second: f64,
    /// Second over first; `None` where the first is 0.
    pub ratio: Option<f64>,
    /// The wider of the two quartile ranges, relative to its median; `None` where it was measured
    /// once.
    pub spread: Option<f64>,
    /// Whether the quartile ranges do not meet; `None` where it was measured once.
    pub changed: Option<bool>,
}

/// Arrays that are measurements over time, or distributions: not compared value by value.
const CURVES: [&str; 9] = [
    "samples",
    "time_wait_samples",
    "turns",
    "repetitions",
    "timeline",
    "distribution",
    "explanation",
    "reasoning",
    "summary",
];
/// Fields that name an element among its siblings, in the order in which they are looked for. All
/// that an element has of one group are used.
const NAMES: [&[&str]; 6] =
    [&["pool", "closes"], &["requested"], &["way"], &["name"], &["address"], &["experiment"]];
/// Nesting beyond this is not compared; results have six levels.
const DEPTH_MAX: usize = 32;

/// A number, and the quartiles of its repetitions if there were any.
#[derive(Debug, Clone, Copy)]
struct Figure {
    value: f64,
    quartiles: Option<(f64, f64, f64)>,
}

/// The largest result file that is read, in bytes.
const FILE_MAX: u64 = 1 << 28;

/// Reads and compares two files that commands wrote with `--output`, or surveys' `results.json`.
///
/// # Errors
///
/// [`Error::Usage`] as [`read`] and [`compare`].
pub fn run(first: &Path, second: &Path) -> Result<Comparison> {
    compare(&read(first)?, &read(second)?)
}

/// Reads a document from a file.
///
/// # Errors
///
/// [`Error::Usage`] if the file is not there, cannot be read, or holds no JSON.
pub fn read(path: &Path) -> Result<Value> {
    let wrong = |why: String| {
        Error::usage(
            format!("{} is no result: {why}", path.display()),
            "give what a command wrote with --output, or a survey's results.json",
        )
    };
    let size = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if size > FILE_MAX {
        return Err(wrong(format!("it has {size} bytes, more than any result")));
    }
    let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))
}

/// Compares two documents, of one command each or of `survey`.
///
/// A survey and one of its experiments can be compared: what both have is.
///
/// # Errors
///
/// [`Error::Usage`] if one is not a document of this program, or nothing is in both.
pub fn compare(first: &Value, second: &Value) -> Result<Comparison> {
    let (a, b) = (figures(first, "first")?, figures(second, "second")?);
    let rows: Vec<Row> =
        a.iter().filter_map(|(path, first)| Some(row(path, first, b.get(path)?))).collect();
    if rows.is_empty() {
        return Err(Error::usage(
            format!(
                "nothing to compare: one is a result of `{}`, the other of `{}`",
                command(first),
                command(second)
            ),
            "give two results of the same command, or of `survey`",
        ));
    }
    let missing = |from: &BTreeMap<String, Figure>, of: &BTreeMap<String, Figure>| {
        from.keys().filter(|path| !of.contains_key(*path)).cloned().collect()
    };
    Ok(Comparison {
        command: command(second).to_owned(),
        only_first: missing(&a, &b),
        only_second: missing(&b, &a),
        warnings: warnings(first, second),
        rows,
    })
}

/// Judges an assertion about a comparison: `compare[path=load.messages].ratio>=0.95` speaks of the
/// comparison, anything else of the second document.
pub fn judge(assertion: &Assertion, comparison: &Comparison, second: &Value) -> Verdict {
    if assertion.command() != "compare" {
        return assertion.evaluate(second);
    }
    // A struct of numbers and strings has a JSON form.
    let result = serde_json::to_value(comparison).unwrap_or(Value::Null);
    assertion.evaluate(&serde_json::json!({ "command": "compare", "result": result }))
}

/// The result as a plain table for a person, at most 100 columns wide unless a path is longer than
/// half of that.
pub fn render_text(comparison: &Comparison) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    for warning in &comparison.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    let _ = writeln!(
        out,
        "{:<50} {:>12} {:>12} {:>8}  {:<12}",
        "", "first", "second", "ratio", "spread"
    );
    for row in &comparison.rows {
        let ratio = row.ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.3}"));
        let verdict = match (row.spread, row.changed) {
            (Some(spread), Some(true)) => format!("±{:.0} % CHANGED", spread * 50.0),
            (Some(spread), _) => format!("±{:.0} %", spread * 50.0),
            _ => String::new(),
        };
        let (first, second) = (units::number(row.first), units::number(row.second));
        if row.path.chars().count() > 50 {
            let _ = writeln!(out, "{}", row.path);
            let _ = writeln!(out, "{:<50} {first:>12} {second:>12} {ratio:>8}  {verdict}", "");
        } else {
            let _ =
                writeln!(out, "{:<50} {first:>12} {second:>12} {ratio:>8}  {verdict}", row.path);
        }
    }
    for (name, only) in [("first", &comparison.only_first), ("second", &comparison.only_second)] {
        if !only.is_empty() {
            let _ = writeln!(out, "only in the {name}: {} figures", only.len());
        }
    }
    out
}

fn command(document: &Value) -> &str {
    document.get("command").and_then(Value::as_str).unwrap_or("")
}

fn figures(document: &Value, which: &str) -> Result<BTreeMap<String, Figure>> {
    let command = command(document);
    let result = document.get("result").filter(|_| !command.is_empty()).ok_or_else(|| {
        Error::usage(
            format!("the {which} is no result of this program: it has no `command` and `result`"),
            "give what a command wrote with --output, or a survey's results.json",
        )
    })?;
    let mut found = BTreeMap::new();
    match (command, result) {
        // An experiment has the same paths in a survey as alone.
        ("survey", Value::Object(experiments)) => {
            for (name, experiment) in experiments {
                collect(name, experiment, DEPTH_MAX, &mut found);
            }
        }
        _ => collect(command, result, DEPTH_MAX, &mut found),
    }
    Ok(found)
}

fn collect(path: &str, value: &Value, depth: usize, found: &mut BTreeMap<String, Figure>) {
    if depth == 0 {
        return;
    }
    match value {
        Value::Number(number) => {
            let value = number.as_f64().unwrap_or(f64::NAN);
            found.insert(path.to_owned(), Figure { value, quartiles: None });
        }
        Value::Object(fields) => {
            for (name, field) in fields.iter().filter(|(name, _)| !CURVES.contains(&name.as_str()))
            {
                collect(&format!("{path}.{name}"), field, depth - 1, found);
            }
            for (name, series) in repeated(value) {
                if let Some(figure) = found.get_mut(&format!("{path}.{name}")) {
                    figure.quartiles = quartiles(&series);
                }
            }
        }
        Value::Array(elements) => {
            let parent = path.rsplit_once('.').map_or(path, |(parent, _)| parent);
            for (index, element) in elements.iter().enumerate() {
                // A selector finds its array by itself; a position needs the array's name.
                let path = match label(element) {
                    Some(label) => format!("{parent}[{label}]"),
                    None => format!("{path}[{index}]"),
                };
                collect(&path, element, depth - 1, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// What names an element: `pool=on,closes=client`.
fn label(element: &Value) -> Option<String> {
    let named = |names: &&[&str]| {
        let pairs: Vec<String> = names
            .iter()
            .filter_map(|name| match element.get(*name)? {
                Value::String(text) => Some(format!("{name}={text}")),
                other @ (Value::Number(_) | Value::Null) => Some(format!("{name}={other}")),
                _ => None,
            })
            .collect();
        (!pairs.is_empty()).then(|| pairs.join(","))
    };
    NAMES.iter().find_map(named)
}

/// The fields of an object that were measured repeatedly, with the measurements.
fn repeated(object: &Value) -> Vec<(&'static str, Vec<f64>)> {
    let series = |name: &str| -> Option<Vec<f64>> {
        let values = object.get(name)?.as_array()?;
        // A timeline's entries are pairs of time and rate.
        let number = |value: &Value| value.as_f64().or_else(|| value.get(1)?.as_f64());
        let numbers: Vec<f64> = values.iter().filter_map(number).collect();
        (numbers.len() >= 3).then_some(numbers)
    };
    // The accept rate itself is that of the first way.
    let first_way = || {
        let values = object.get("rates")?.get(0)?.get("repetitions")?.as_array()?;
        let numbers: Vec<f64> = values.iter().filter_map(Value::as_f64).collect();
        (numbers.len() >= 3).then_some(numbers)
    };
    [
        ("cycles_per_second", series("turns")),
        ("accepts_per_second", series("repetitions").or_else(first_way)),
        ("messages_per_second", series("timeline")),
    ]
    .into_iter()
    .filter_map(|(name, series)| Some((name, series?)))
    .collect()
}

fn row(path: &str, first: &Figure, second: &Figure) -> Row {
    let ranges = first.quartiles.zip(second.quartiles);
    let width = |(low, middle, high): (f64, f64, f64)| {
        if middle == 0.0 { 0.0 } else { (high - low) / middle }
    };
    Row {
        path: path.to_owned(),
        first: first.value,
        second: second.value,
        ratio: (first.value != 0.0).then(|| second.value / first.value),
        spread: ranges.map(|(a, b)| width(a).max(width(b))),
        changed: ranges.map(|(a, b)| a.2 < b.0 || b.2 < a.0),
    }
}

fn warnings(first: &Value, second: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, pointer) in [
        ("schema", "/schema"),
        ("version", "/version"),
        ("kernel", "/machine/kernel"),
        ("CPU", "/machine/cpu"),
        ("number of CPUs", "/machine/cpus"),
        ("memory", "/machine/memory_bytes"),
    ] {
        let (a, b) = (first.pointer(pointer), second.pointer(pointer));
        if let (Some(a), Some(b)) = (a, b)
            && a != b
        {
            warnings.push(format!("they differ in {name}: {a} and {b}"));
        }
    }
    for (which, document) in [("first", first), ("second", second)] {
        if document.get("partial") == Some(&Value::Bool(true)) {
            warnings.push(format!("the {which} is partial: it was interrupted"));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn churn(rate: f64) -> Value {
        json!({"command": "churn", "machine": {"kernel": "6.18"}, "result": {"variants": [
            {"pool": "on", "closes": "client", "cycles_per_second": rate, "turns": [rate * 0.98, rate, rate * 1.02],
             "errors": {"timeout": 0}, "time_wait_server": null},
            {"pool": "off", "closes": "client", "cycles_per_second": 5.0, "turns": [4.0, 5.0, 6.0]},
        ]}})
    }

    #[test]
    fn rows_are_named_and_changes_beyond_the_spread_are_flagged() {
        let (first, second) = (churn(100.0), churn(110.0));
        let found = compare(&first, &second).unwrap();
        let path = "churn[pool=on,closes=client].cycles_per_second";
        let row = found.rows.iter().find(|row| row.path == path).unwrap();
        assert_eq!((row.first, row.second, row.changed), (100.0, 110.0, Some(true)));
        assert!((row.ratio.unwrap() - 1.1).abs() < 1e-9);
        let off = found.rows.iter().find(|row| row.path.contains("off")).unwrap();
        assert_eq!((off.changed, off.ratio), (Some(false), Some(1.0)));
        let zero = found.rows.iter().find(|row| row.path.ends_with("errors.timeout")).unwrap();
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
    fn a_survey_is_compared_by_experiment() {
        let survey = json!({"command": "survey", "partial": true, "machine": {"kernel": "6.19"},
            "result": {"churn": churn(90.0)["result"], "capacity": {"alive": 5}}});
        let found = compare(&churn(100.0), &survey).unwrap();
        assert!(found.rows.iter().any(|row| (row.second - 90.0).abs() < 1e-9));
        assert_eq!(found.only_second, ["capacity.alive"]);
        assert_eq!(found.warnings.len(), 2, "{:?}", found.warnings);
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
            assert_eq!(compare(&first, &second).unwrap_err().exit_code(), 2);
        }
        let mut deep = json!(1);
        for _ in 0..100 {
            deep = json!([deep]);
        }
        let deep = json!({"command": "x", "result": deep});
        assert!(compare(&deep, &deep).is_err());
    }
}
