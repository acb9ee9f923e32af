//! Whether two results were asked for in the same way.

use serde_json::Value;

/// Flags that say where a run went or what it was called, and not what was measured; with the number
/// of words that belong to each.
const ASIDE: [(&str, usize); 13] = [
    ("--target", 1),
    ("--server-pid", 1),
    ("--allow-remote", 0),
    ("--output", 1),
    ("--out", 1),
    ("--seed", 1),
    ("--assert", 1),
    ("--json", 0),
    ("--quiet", 0),
    ("-q", 0),
    ("--verbose", 0),
    ("-v", 0),
    ("--listen", 1),
];

/// What a load was asked for, in its result: it is there in documents of every version.
const ASKED: [&str; 5] = ["asked", "size", "depth", "rate", "loop_kind"];

/// What the comparison of two documents' arguments gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Arguments {
    /// The same, apart from target, output and seed.
    Same,
    /// They cannot be compared, for this reason.
    Unknown(String),
    /// They differ: a sentence that names both.
    Differ(String),
}

/// Compares what the two documents say they were asked for.
pub(super) fn compare(first: &Value, second: &Value) -> Arguments {
    if let Some(differ) = load_asked_differently(first, second) {
        return Arguments::Differ(differ);
    }
    if super::command(first) != super::command(second) {
        // A survey and one of its experiments: their command lines differ by nature.
        return Arguments::Unknown(format!(
            "they are results of `{}` and `{}`: whether both measured alike is not known",
            super::command(first),
            super::command(second)
        ));
    }
    match (given(first), given(second)) {
        (Some(a), Some(b)) if a == b => Arguments::Same,
        (Some(a), Some(b)) => {
            let only = |of: &[String], other: &[String]| {
                let rest: Vec<&str> =
                    of.iter().filter(|group| !other.contains(group)).map(String::as_str).collect();
                if rest.is_empty() { "nothing else".to_owned() } else { rest.join(" ") }
            };
            Arguments::Differ(format!("`{}` and `{}`", only(&a, &b), only(&b, &a)))
        }
        (a, _) => {
            let which = if a.is_none() { "first" } else { "second" };
            Arguments::Unknown(format!(
                "the {which} does not say with which arguments it was measured (an older version \
                 wrote it)"
            ))
        }
    }
}

/// The arguments that bear on what was measured: each flag with its values, sorted. `None` where
/// the document has none.
fn given(document: &Value) -> Option<Vec<String>> {
    let words: Vec<&str> =
        document.get("arguments")?.as_array()?.iter().filter_map(Value::as_str).collect();
    let mut groups: Vec<Vec<String>> = Vec::new();
    let mut words = words.iter().flat_map(|word| match word.split_once('=') {
        Some((flag, value)) if flag.starts_with("--") => vec![flag, value],
        _ => vec![*word],
    });
    // The command itself, whatever stands before it, begins a group of its own.
    while let Some(word) = words.next() {
        if let Some((_, values)) = ASIDE.iter().find(|(flag, _)| *flag == word) {
            for _ in 0..*values {
                words.next();
            }
        } else if word.starts_with("--") || groups.is_empty() {
            groups.push(vec![word.to_owned()]);
        } else if let Some(group) = groups.last_mut() {
            group.push(word.to_owned());
        }
    }
    let mut groups: Vec<String> = groups.into_iter().map(|group| group.join(" ")).collect();
    groups.sort();
    Some(groups)
}

/// Where both are loads, and their results say that they were asked for different things.
fn load_asked_differently(first: &Value, second: &Value) -> Option<String> {
    let of = |document: &Value, name: &str| {
        let load = match super::command(document) {
            "load" => document.get("result"),
            "survey" => document.pointer("/result/load"),
            _ => None,
        };
        load.and_then(|load| load.get(name)).cloned()
    };
    let differ = |name: &&str| {
        let (a, b) = (of(first, name)?, of(second, name)?);
        let name = if *name == "asked" { "connections" } else { name };
        (a != b).then(|| format!("{name} {a} and {b}"))
    };
    let differ: Vec<String> = ASKED.iter().filter_map(differ).collect();
    (!differ.is_empty()).then(|| differ.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(arguments: &str) -> Value {
        json!({"command": "load", "arguments": arguments.split(' ').collect::<Vec<_>>(), "result": {}})
    }

    #[test]
    fn target_output_and_seed_may_differ_and_order_does_not_matter() {
        let first = document("load --target 127.0.0.1:1 --depth 4 --rate=5 --json --seed 3");
        let second = document("load --rate 5 --depth 4 --output b.json --target=127.0.0.1:2 -q");
        assert_eq!(compare(&first, &second), Arguments::Same);
    }

    #[test]
    fn what_was_measured_must_not_differ() {
        let first = document("load --depth 4 --spin");
        let Arguments::Differ(how) = compare(&first, &document("load --depth 5")) else {
            panic!("they differ")
        };
        assert_eq!(how, "`--depth 4 --spin` and `--depth 5`");
        let Arguments::Differ(how) = compare(&first, &document("load --depth 4")) else {
            panic!("they differ")
        };
        assert_eq!(how, "`--spin` and `nothing else`");
    }

    #[test]
    fn older_documents_say_nothing_and_their_results_do() {
        let old = |connections: u64, rate: Value| json!({"command": "load", "result": {"asked": connections, "rate": rate}});
        assert!(matches!(
            compare(&document("load --spin"), &json!({"command": "load", "result": {}})),
            Arguments::Unknown(why) if why.contains("second")
        ));
        assert!(matches!(
            compare(&old(5, json!(null)), &old(5, json!(null))),
            Arguments::Unknown(_)
        ));
        let survey = json!({"command": "survey", "result": {"load": {"asked": 6, "rate": 1.0}}});
        assert_eq!(
            compare(&old(5, json!(null)), &survey),
            Arguments::Differ("connections 5 and 6, rate null and 1.0".into())
        );
    }
}
