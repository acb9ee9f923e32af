//! `compare`: two results side by side.
//!
//! Every number that both documents have is a row: its path, in the form that
//! [`assertion`](crate::checks::assertion) reads, both values, and their ratio. Elements of arrays are
//! matched by what names them (`requested`, `pool` and `closes`, `way`, …), never by position where
//! they have a name. Curves over time are left out, and so is what is null in either document.
//!
//! A row is judged where both runs measured it in repeats (`load --repeat`, the turns of `churn`, the
//! repetitions of `accept`): by the rank-sum test, corrected for the number of judged rows, with the
//! interval of ratios that the repeats do not rule out. Where one of them measured it in one piece
//! there is no verdict: the spread within one piece (a timeline) is not the spread between runs, and
//! calls noise a change.
//!
//! Two runs meet different phases of the machine, and no test of their repeats can see that: a phase
//! that lasts longer than a run looks like a change. Two servers are told apart much more sharply,
//! and rightly, in turns within one run: [`repeat`](crate::experiments::load::repeat).

mod arguments;
mod figures;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::arguments::Arguments;
use self::figures::{Figure, Kind};
use crate::checks::assertion::{Assertion, Verdict};
use crate::checks::rows::{self, Design, ONE_RUN, Pair};
pub use crate::results::Row;
use crate::{Error, Result};

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
    /// What makes the two hard to compare: another machine, kernel or version, a partial result,
    /// arguments that differ or are not known.
    pub warnings: Vec<String>,
}

/// What is to be compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Require {
    /// Results of the same arguments, apart from target, output and seed.
    #[default]
    SameArguments,
    /// Any two: a difference of the arguments is a warning.
    Anything,
}

/// The largest result file that is read, in bytes.
const FILE_MAX: u64 = 1 << 28;

/// Reads and compares two files that commands wrote with `--output`, or surveys' `results.json`.
///
/// # Errors
///
/// [`Error::Usage`] as [`read`] and [`compare`].
pub fn run(first: &Path, second: &Path, require: Require) -> Result<Comparison> {
    compare(&read(first)?, &read(second)?, require)
}

/// Reads a document from a file.
///
/// # Errors
///
/// [`Error::Usage`] if the file is not there, cannot be read, or holds no JSON.
pub fn read(path: &Path) -> Result<Value> {
    let wrong = |why: String| {
        Error::usage(
            format!("cannot compare {}: {why}", path.display()),
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
/// [`Error::Usage`] if one is not a document of this program, nothing is in both, or they were asked
/// for in different ways and `require` does not allow that.
pub fn compare(first: &Value, second: &Value, require: Require) -> Result<Comparison> {
    let (a, b) = (figures::of(first, "first")?, figures::of(second, "second")?);
    let mut warnings = warnings(first, second);
    match arguments::compare(first, second) {
        Arguments::Same => {}
        Arguments::Unknown(why) => warnings.push(why),
        Arguments::Differ(how) if require == Require::Anything => {
            warnings.push(format!("they were measured with different arguments: {how}"));
        }
        Arguments::Differ(how) => {
            return Err(Error::usage(
                format!("the two were measured with different arguments: {how}"),
                "compare runs of the same arguments, or add --allow-different",
            ));
        }
    }
    let pairs: Vec<Pair> =
        a.iter().filter_map(|(path, first)| Some(pair(path, first, b.get(path)?))).collect();
    if pairs.is_empty() {
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
        warnings,
        rows: rows::judge(&pairs, Design::Separate),
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

/// The result as a plain table for a person.
pub fn render_text(comparison: &Comparison) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    for warning in &comparison.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    out.push_str(&rows::table(&comparison.rows, ("first", "second")));
    for (name, only) in [("first", &comparison.only_first), ("second", &comparison.only_second)] {
        if !only.is_empty() {
            let _ = writeln!(out, "only in the {name}: {} figures", only.len());
        }
    }
    let note = rows::footnote(&comparison.rows);
    if !note.is_empty() {
        out.push_str(&note);
        out.push_str(
            "The two runs met different phases of the machine, which can look like a change:\n\
             `load --target A --target B` compares two servers in turns within one run.\n",
        );
    }
    out
}

fn command(document: &Value) -> &str {
    document.get("command").and_then(Value::as_str).unwrap_or("")
}

fn pair(path: &str, first: &Figure, second: &Figure) -> Pair {
    let repeats = |figure: &Figure| match &figure.kind {
        Kind::Repeated(values) => values.clone(),
        Kind::Single | Kind::OnePiece => Vec::new(),
    };
    let (first_repeats, second_repeats) = (repeats(first), repeats(second));
    let reason = match (&first.kind, &second.kind) {
        (Kind::OnePiece, Kind::OnePiece) => Some(ONE_RUN.to_owned()),
        (Kind::OnePiece, _) => Some("1 run in the first; use --repeat".to_owned()),
        (_, Kind::OnePiece) => Some("1 run in the second; use --repeat".to_owned()),
        _ => None,
    };
    Pair {
        path: path.to_owned(),
        first: first.value,
        second: second.value,
        first_repeats,
        second_repeats,
        reason,
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
        let targets = document.pointer("/result/targets").and_then(Value::as_array);
        if let Some(count) = targets.map(Vec::len).filter(|count| *count > 1) {
            warnings.push(format!(
                "the {which} has {count} targets, of which the first is compared here"
            ));
        }
    }
    warnings
}
