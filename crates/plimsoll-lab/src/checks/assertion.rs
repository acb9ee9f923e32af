//! Assertions on results, for continuous integration: `capacity.alive>=15000`.
//!
//! # The form
//!
//! `PATH OPERATOR VALUE`, with or without spaces around the operator.
//!
//! - The path starts with a command's name; its fields follow, separated by dots:
//!   `capacity.kernel_bytes_per_connection`. In a document of `survey` the name chooses
//!   the experiment, in any other it must be the document's own.
//! - `[field=value]` selects among the elements of an array. On an object it selects in that
//!   object's first array whose elements have the field: `backlog[requested=4096].queued` looks in
//!   `runs`, `churn[pool=on,closes=client-reset].cycles` in `variants`. `[0]` selects by position.
//!   If several elements remain, the assertion must hold for each of them.
//! - Operators: `<=`, `>=`, `<`, `>`, `==`, `!=`. Text and truth values know the last two only.
//! - A value is a number with or without a unit (`5KiB`, `1MB`, `150us`, `2ms`, `1.5s`), `true`,
//!   `false`, or text. A time is converted to the unit that the path's names say (`latency_us.p99<=2ms`
//!   compares with 2000), to seconds where they say none.
//!
//! A path that leads nowhere, or to `null`, fails and says so: what is not known does not hold. A path
//! that no result of these types can have is noticed before the experiment runs: [`Assertion::check`].

mod fields;

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// A parsed assertion; made by [`str::parse`].
#[derive(Debug, Clone, PartialEq)]
pub struct Assertion {
    text: String,
    steps: Vec<Step>,
    operator: Operator,
    wanted: Wanted,
}

/// How an assertion went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// The assertion as it was written.
    pub text: String,
    /// The value found, or why there is none.
    pub actual: String,
    /// Whether it holds.
    pub holds: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(usize),
    Select(Vec<(String, String)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    LessOrEqual,
    GreaterOrEqual,
    Less,
    Greater,
    Equal,
    NotEqual,
}

#[derive(Debug, Clone, PartialEq)]
enum Wanted {
    /// A number without a unit, or of bytes.
    Number(f64),
    /// A time in seconds.
    Seconds(f64),
    /// Text, which includes `true` and `false`.
    Text(String),
}

/// Longest assertion accepted, in bytes.
const LENGTH_MAX: usize = 4096;

impl Assertion {
    /// The assertion as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The command whose result it speaks of: the first name of its path.
    pub fn command(&self) -> &str {
        match self.steps.first() {
            Some(Step::Field(name)) => name,
            // `parse` lets no path begin with anything but a name.
            _ => "",
        }
    }

    /// Judges a whole document, of one command or of `survey`.
    ///
    /// Never fails: whatever stands in the way is an assertion that does not hold, with the reason
    /// as its actual value. Cost: one walk along the path.
    pub fn evaluate(&self, document: &Value) -> Verdict {
        let (actual, holds) = match self.look_up(document) {
            Ok(found) => self.judge(&found),
            Err(reason) => (reason, false),
        };
        Verdict { text: self.text.clone(), actual, holds }
    }

    fn look_up<'a>(&self, document: &'a Value) -> Result<Vec<&'a Value>, String> {
        let name = self.command();
        let command = document.get("command").and_then(Value::as_str).unwrap_or("");
        let result = document.get("result").ok_or("the document holds no result")?;
        let root = if command == name {
            result
        } else if command == "survey" {
            let found = result.get(name).filter(|value| !value.is_null());
            found.ok_or_else(|| format!("this survey holds no result of `{name}`"))?
        } else {
            return Err(format!("the document is a result of `{command}`, not of `{name}`"));
        };
        let mut found = vec![root];
        let mut walked = name.to_owned();
        for step in &self.steps[1..] {
            found = take(&found, step, &walked)?;
            walked.push_str(&step.to_string());
        }
        Ok(found)
    }

    /// The first value that fails decides; if none does, the first value is shown.
    fn judge(&self, found: &[&Value]) -> (String, bool) {
        let mut shown = None;
        for value in found {
            match self.holds_for(value) {
                Ok(true) => {
                    shown.get_or_insert_with(|| display(value));
                }
                Ok(false) => return (display(value), false),
                Err(reason) => return (reason, false),
            }
        }
        // `take` never returns an empty selection.
        (shown.unwrap_or_default(), true)
    }

    fn holds_for(&self, value: &Value) -> Result<bool, String> {
        let number = |wanted: f64| {
            let actual = value.as_f64().ok_or_else(|| not_a(value, "a number"))?;
            Ok(self.operator.compare(actual, wanted))
        };
        match &self.wanted {
            _ if value.is_null() => Err("null: it could not be known".to_owned()),
            Wanted::Number(wanted) => number(*wanted),
            Wanted::Seconds(wanted) => number(wanted * self.time_scale()),
            Wanted::Text(wanted) => {
                let actual = match value {
                    Value::String(text) => text.clone(),
                    Value::Bool(truth) => truth.to_string(),
                    _ => return Err(not_a(value, "text")),
                };
                match self.operator {
                    Operator::Equal => Ok(actual == *wanted),
                    Operator::NotEqual => Ok(actual != *wanted),
                    _ => Err(format!("{} (text has no order)", display(value))),
                }
            }
        }
    }

    /// How many of the path's time unit make a second: told by `us` or `ms` among the words of a
    /// name, the last such name counts.
    fn time_scale(&self) -> f64 {
        let names = self.steps.iter().rev().filter_map(|step| match step {
            Step::Field(name) => Some(name),
            _ => None,
        });
        for word in names.flat_map(|name| name.split('_')) {
            match word {
                "us" => return 1e6,
                "ms" => return 1e3,
                _ => {}
            }
        }
        1.0
    }
}

impl FromStr for Assertion {
    type Err = Error;

    /// # Errors
    ///
    /// [`Error::Usage`] with the place where the text stops making sense.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: String| {
            let shown: String = text.chars().take(80).collect();
            Error::usage(
                format!("`{shown}` is not an assertion: {why}"),
                "write PATH OPERATOR VALUE, such as `capacity.alive>=15000` or `backlog[requested=4096].queued>=4096`",
            )
        };
        if text.len() > LENGTH_MAX {
            return Err(wrong(format!("it is longer than {LENGTH_MAX} bytes")));
        }
        let (path, operator, value) = split(text).map_err(wrong)?;
        let steps = parse_path(path).map_err(wrong)?;
        let wanted = parse_value(value).map_err(wrong)?;
        if matches!(wanted, Wanted::Text(_))
            && !matches!(operator, Operator::Equal | Operator::NotEqual)
        {
            return Err(wrong(format!("`{value}` is not a number, so only == and != apply")));
        }
        Ok(Self { text: text.trim().to_owned(), steps, operator, wanted })
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Index(index) => write!(f, "[{index}]"),
            Self::Select(pairs) => {
                let pairs: Vec<_> =
                    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
                write!(f, "[{}]", pairs.join(","))
            }
        }
    }
}

impl Operator {
    /// Longer ones first, so that `<=` is not read as `<`.
    const ALL: [(&'static str, Self); 6] = [
        ("<=", Self::LessOrEqual),
        (">=", Self::GreaterOrEqual),
        ("==", Self::Equal),
        ("!=", Self::NotEqual),
        ("<", Self::Less),
        (">", Self::Greater),
    ];

    #[expect(clippy::float_cmp, reason = "== and != ask for exactly the number that was written")]
    fn compare(self, actual: f64, wanted: f64) -> bool {
        match self {
            Self::LessOrEqual => actual <= wanted,
            Self::GreaterOrEqual => actual >= wanted,
            Self::Less => actual < wanted,
            Self::Greater => actual > wanted,
            Self::Equal => actual == wanted,
            Self::NotEqual => actual != wanted,
        }
    }
}

/// One step further from each value; an error in words when nothing is left.
fn take<'a>(found: &[&'a Value], step: &Step, walked: &str) -> Result<Vec<&'a Value>, String> {
    let nothing = || format!("there is no {walked}{step}");
    let mut next = Vec::new();
    match step {
        Step::Field(name) => {
            for value in found {
                next.push(value.get(name).ok_or_else(nothing)?);
            }
        }
        Step::Index(index) => {
            for value in found {
                next.push(value.get(index).ok_or_else(nothing)?);
            }
        }
        Step::Select(pairs) => {
            let all: Vec<&Value> = found.iter().flat_map(|value| elements(value, pairs)).collect();
            next.extend(all.into_iter().filter(|element| matches(element, pairs)));
        }
    }
    if next.is_empty() { Err(nothing()) } else { Ok(next) }
}

/// What a selector chooses from: an array's elements; an element already selected; or those of an
/// object's first array that has the field.
fn elements<'a>(value: &'a Value, pairs: &[(String, String)]) -> Vec<&'a Value> {
    let has = |element: &Value| pairs.iter().all(|(key, _)| element.get(key).is_some());
    match value {
        Value::Array(array) => array.iter().collect(),
        Value::Object(_) if has(value) && matches(value, pairs) => vec![value],
        Value::Object(fields) => fields
            .values()
            .filter_map(Value::as_array)
            .find(|array| array.iter().any(has))
            .map(|array| array.iter().collect())
            .unwrap_or_default(),
        _ => Vec::new(),
    }
}

fn matches(element: &Value, pairs: &[(String, String)]) -> bool {
    pairs.iter().all(|(key, wanted)| match element.get(key) {
        Some(Value::String(text)) => text == wanted,
        Some(Value::Bool(truth)) => wanted.parse() == Ok(*truth),
        Some(Value::Null) => wanted == "null",
        Some(number @ Value::Number(_)) => {
            let shown = number.to_string();
            shown == *wanted
                || matches!(parse_value(wanted), Ok(Wanted::Number(n)) if number.as_f64() == Some(n))
        }
        _ => false,
    })
}

fn display(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(array) => format!("a list of {}", array.len()),
        Value::Object(fields) => format!("an object of {} fields", fields.len()),
        other => other.to_string(),
    }
}

fn not_a(value: &Value, kind: &str) -> String {
    format!("{} (not {kind})", display(value))
}

/// Path, operator, value: split at the first operator outside brackets.
fn split(text: &str) -> Result<(&str, Operator, &str), String> {
    let mut depth = 0_usize;
    for (at, character) in text.char_indices() {
        match character {
            '[' => depth += 1,
            ']' => depth = depth.checked_sub(1).ok_or("a `]` without its `[`")?,
            _ if depth > 0 => {}
            _ => {
                let rest = &text[at..];
                if let Some((sign, operator)) =
                    Operator::ALL.iter().find(|(sign, _)| rest.starts_with(sign))
                {
                    return Ok((text[..at].trim(), *operator, rest[sign.len()..].trim()));
                }
                if character == '=' {
                    return Err("`=` is not an operator: `==` is".to_owned());
                }
            }
        }
    }
    Err(if depth > 0 {
        "a `[` is never closed".to_owned()
    } else {
        "it has no operator".to_owned()
    })
}

fn parse_path(path: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    let mut rest = path;
    loop {
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let name = &rest[..end];
        if name.is_empty() || name.contains(char::is_whitespace) || name.contains(']') {
            return Err(format!("`{name}` is not a name"));
        }
        steps.push(Step::Field(name.to_owned()));
        rest = &rest[end..];
        while let Some(inside) = rest.strip_prefix('[') {
            let end = closing(inside).ok_or("a `[` is never closed")?;
            steps.push(parse_selector(&inside[..end])?);
            rest = &inside[end + 1..];
        }
        match rest.strip_prefix('.') {
            Some(more) => rest = more,
            None if rest.is_empty() => return Ok(steps),
            None => return Err(format!("`{rest}` after a `]`: a dot is missing")),
        }
    }
}

/// Where the bracket that is open at the start of `text` closes.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1_usize;
    text.char_indices().find_map(|(at, character)| {
        match character {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        (depth == 0).then_some(at)
    })
}

fn parse_selector(inside: &str) -> Result<Step, String> {
    if let Ok(index) = inside.trim().parse() {
        return Ok(Step::Index(index));
    }
    let mut pairs = Vec::new();
    for pair in split_pairs(inside) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| format!("`[{inside}]` is not [field=value]"))?;
        let (key, value) = (key.trim(), value.trim_start_matches('=').trim());
        if key.is_empty() || value.is_empty() {
            return Err(format!("`[{inside}]` is not [field=value]"));
        }
        pairs.push((key.to_owned(), value.to_owned()));
    }
    Ok(Step::Select(pairs))
}

/// Splits at the commas that are not inside brackets.
fn split_pairs(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0_i32, 0, Vec::new());
    for (at, character) in text.char_indices() {
        match character {
            '[' => depth += 1,
            ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_value(text: &str) -> Result<Wanted, String> {
    if text.is_empty() {
        return Err("it has no value".to_owned());
    }
    let text = text.trim_matches('"');
    let begins_as_number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    if !begins_as_number {
        return Ok(Wanted::Text(text.to_owned()));
    }
    let unit_at = number_length(text);
    let digits = text[..unit_at].replace('_', "");
    let number: f64 = digits.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if !number.is_finite() {
        return Err(format!("`{text}` is too large"));
    }
    let wanted = match text[unit_at..].trim() {
        "" | "B" => Wanted::Number(number),
        "kB" | "KB" => Wanted::Number(number * 1e3),
        "MB" => Wanted::Number(number * 1e6),
        "GB" => Wanted::Number(number * 1e9),
        "KiB" => Wanted::Number(number * 1024.0),
        "MiB" => Wanted::Number(number * f64::from(1 << 20)),
        "GiB" => Wanted::Number(number * f64::from(1 << 30)),
        "ns" => Wanted::Seconds(number * 1e-9),
        "us" | "µs" => Wanted::Seconds(number * 1e-6),
        "ms" => Wanted::Seconds(number * 1e-3),
        "s" => Wanted::Seconds(number),
        unit => {
            return Err(format!(
                "`{unit}` is not a unit: KiB, MiB, GiB, kB, MB, GB, us, ms, s are"
            ));
        }
    };
    Ok(wanted)
}

/// How many bytes of `text` are the number: digits, sign, point, and an exponent if one follows.
fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut end = 0;
    while end < bytes.len() {
        let byte = bytes[end];
        let exponent = matches!(byte, b'e' | b'E')
            && bytes.get(end + 1).is_some_and(|next| next.is_ascii_digit() || b"+-".contains(next));
        let sign = b"+-".contains(&byte) && (end == 0 || matches!(bytes[end - 1], b'e' | b'E'));
        if byte.is_ascii_digit() || matches!(byte, b'.' | b'_') || exponent || sign {
            end += 1;
        } else {
            break;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn verdict(text: &str, document: &Value) -> Verdict {
        text.parse::<Assertion>().unwrap().evaluate(document)
    }

    fn backlog() -> Value {
        json!({"command": "backlog", "result": {"queued_max": 4097, "runs": [
            {"requested": 128, "queued": 129, "stopped_by": "queue_full", "rotten": null},
            {"requested": 4096, "queued": 4097, "stopped_by": "queue_full", "rotten": 0},
            {"requested": null, "queued": 129, "stopped_by": "queue_full", "rotten": 0},
        ]}})
    }

    #[test]
    fn fields_and_selectors() {
        let document = backlog();
        assert!(verdict("backlog.queued_max >= 4097", &document).holds);
        assert!(verdict("backlog[requested=4096].queued>=4096", &document).holds);
        assert!(verdict("backlog.runs[requested=128].queued==129", &document).holds);
        assert!(verdict("backlog.runs[1].queued==4097", &document).holds);
        assert!(verdict("backlog[requested=null].queued==129", &document).holds);
        assert!(verdict("backlog[stopped_by=queue_full].queued>100", &document).holds);
        let failed = verdict("backlog[stopped_by=queue_full].queued>1000", &document);
        assert!(!failed.holds);
        assert_eq!(failed.actual, "129");
        assert!(
            verdict("backlog[queued=129][requested=128].stopped_by==queue_full", &document).holds
        );
        assert!(verdict("backlog[queued=129,requested=128].stopped_by!=ports", &document).holds);
    }

    #[test]
    fn what_is_not_known_does_not_hold() {
        let document = backlog();
        for (text, part) in [
            ("backlog[requested=128].rotten==0", "null"),
            ("backlog[requested=129].queued>=0", "there is no backlog[requested=129]"),
            ("backlog.deepest>=0", "there is no backlog.deepest"),
            ("backlog.runs[9].queued>=0", "there is no backlog.runs[9]"),
            ("capacity.alive>=0", "a result of `backlog`"),
            ("backlog.runs>=0", "a list of 3 (not a number)"),
            ("backlog.queued_max==many", "4097 (not text)"),
            ("backlog[0][1][requested=1].x>=0", "there is no"),
        ] {
            let verdict = verdict(text, &document);
            assert!(!verdict.holds, "{text}");
            assert!(verdict.actual.contains(part), "{text}: {}", verdict.actual);
        }
        for document in [json!(null), json!({}), json!([1]), json!({"command": "backlog"})] {
            assert!(!verdict("backlog.queued_max>=0", &document).holds);
        }
    }

    #[test]
    fn a_survey_holds_every_experiment() {
        let document = json!({"command": "survey", "result": {
            "load_line": {"connections": 7}, "churn": null, "capacity": {"alive": 15000}}});
        assert!(verdict("capacity.alive>=15000", &document).holds);
        assert!(verdict("survey.load_line.connections==7", &document).holds);
        assert!(verdict("churn.x==1", &document).actual.contains("no result of `churn`"));
    }

    #[test]
    fn units() {
        let document = json!({"command": "load", "result": {
            "latency_us": {"p99": 1999.0}, "duration": 2.0, "size": 65536, "server_cpu_us_per_message": 3.5}});
        for text in [
            "load.latency_us.p99<=2ms",
            "load.latency_us.p99>1998us",
            "load.latency_us.p99<=2000",
            "load.duration==2s",
            "load.duration==2000ms",
            "load.size==64KiB",
            "load.size<=0.0625MiB",
            "load.size<66kB",
            "load.size<=1_000_000",
            "load.size<1e6",
            "load.server_cpu_us_per_message<4us",
        ] {
            assert!(verdict(text, &document).holds, "{text}");
        }
        assert!(!verdict("load.latency_us.p99<=1ms", &document).holds);
    }

    #[test]
    fn wrong_usage_is_told_apart_from_failure() {
        let long = format!("a.{}>=1", "x".repeat(5000));
        for text in [
            "",
            ">",
            ">=1",
            "capacity",
            "capacity.alive",
            "capacity.alive>=",
            "capacity.alive=1",
            "capacity..alive>=1",
            ".alive>=1",
            "capacity.alive.>=1",
            "capacity[>=1",
            "capacity]>=1",
            "capacity[]>=1",
            "capacity[a]>=1",
            "capacity[=1]>=1",
            "capacity[a=]>=1",
            "capacity[a=1]alive>=1",
            "capacity.alive>=1.2.3",
            "capacity.alive>=5 parsecs",
            "capacity.alive>=1e999",
            "capacity.alive>=many",
            "a b.c>=1",
            "capacity.alive>=-",
            "ä[ö]>=1",
            &long,
        ] {
            let error = text.parse::<Assertion>().unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(error.to_string().contains("not an assertion"), "{text}");
        }
    }

    #[test]
    fn a_selected_value_may_itself_be_a_path() {
        let document = json!({"command": "compare", "result": {"rows": [
            {"path": "churn[pool=on,closes=client].cycles", "ratio": 1.0}]}});
        assert!(
            verdict("compare[path=churn[pool=on,closes=client].cycles].ratio>=0.95", &document)
                .holds
        );
    }
}
