//! The numbers of a document, by their paths, with their repeats.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::experiments::load::repeat::QUANTITIES;
use crate::{Error, Result};

/// Arrays that are measurements over time, distributions, or repeats of what stands beside them:
/// not compared value by value. Of several targets only the first is compared, whose figures stand
/// beside the list.
const CURVES: [&str; 13] = [
    "samples",
    "time_wait_samples",
    "turns",
    "repetitions",
    "timeline",
    "distribution",
    "explanation",
    "reasoning",
    "summary",
    "repeats",
    "spread",
    "targets",
    "comparison",
];
/// Fields that name an element among its siblings, in the order in which they are looked for. All
/// that an element has of one group are used.
const NAMES: [&[&str]; 6] =
    [&["pool", "closes"], &["requested"], &["way"], &["name"], &["address"], &["experiment"]];
/// Nesting beyond this is not compared; results have six levels.
const DEPTH_MAX: usize = 32;

/// A number, and its repeats.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    pub(super) value: f64,
    pub(super) kind: Kind,
}

/// How often a number was measured.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// Once, as far as the document tells.
    Single,
    /// Once, by an experiment that can repeat it.
    OnePiece,
    /// In these repeats, in the order in which they were measured.
    Repeated(Vec<f64>),
}

/// All numbers of a document. `which` names it in an error.
pub(super) fn of(document: &Value, which: &str) -> Result<BTreeMap<String, Figure>> {
    let command = super::command(document);
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
            found.insert(path.to_owned(), Figure { value, kind: Kind::Single });
        }
        Value::Object(fields) => {
            for (name, field) in fields.iter().filter(|(name, _)| !CURVES.contains(&name.as_str()))
            {
                collect(&format!("{path}.{name}"), field, depth - 1, found);
            }
            for (name, kind) in repeated(value) {
                if let Some(figure) = found.get_mut(&format!("{path}.{name}")) {
                    figure.kind = kind;
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

/// The fields of an object that were, or could have been, measured repeatedly.
fn repeated(object: &Value) -> Vec<(&'static str, Kind)> {
    let series = |values: Option<&Value>| {
        let numbers: Vec<f64> = values?.as_array()?.iter().filter_map(Value::as_f64).collect();
        (numbers.len() > 1).then_some(Kind::Repeated(numbers))
    };
    let turns = series(object.get("turns"));
    // The accept rate itself is that of the first way.
    let first_way = object.pointer("/rates/0/repetitions");
    let repetitions = series(object.get("repetitions").or(first_way));
    let mut found: Vec<(&str, Kind)> =
        [("cycles_per_second", turns), ("accepts_per_second", repetitions)]
            .into_iter()
            .filter_map(|(name, kind)| Some((name, kind?)))
            .collect();
    // What has a latency and a rate is a load, also one of a version without repeats.
    if object.get("latency_us").is_some() && object.get("messages_per_second").is_some() {
        found.extend(QUANTITIES.map(|name| (name, of_load(object, name))));
    }
    found
}

/// The repeats of one quantity of a load; those in which it is null are left out.
fn of_load(load: &Value, name: &str) -> Kind {
    let pointer = format!("/{}", name.replace('.', "/"));
    let repeats = load.get("repeats").and_then(Value::as_array);
    let values: Vec<f64> = repeats
        .into_iter()
        .flatten()
        .filter_map(|repeat| repeat.pointer(&pointer)?.as_f64())
        .collect();
    if values.len() > 1 { Kind::Repeated(values) } else { Kind::OnePiece }
}
