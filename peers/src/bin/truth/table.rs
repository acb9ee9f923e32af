//! What is printed: a row for each case, and below it what was wrong.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::case::Case;
use crate::run::Finding;

/// The most of a text that is printed; the JSON has the whole.
const TEXT_MAX: usize = 600;

/// What the runs of one case showed.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) case: Case,
    pub(crate) findings: Vec<Finding>,
    /// Why it could not be provoked, the runs after that left out.
    pub(crate) skipped: Option<String>,
}

impl Row {
    pub(crate) fn right(&self) -> usize {
        self.findings.iter().filter(|finding| finding.complaints.is_empty()).count()
    }

    pub(crate) fn wrong(&self) -> usize {
        self.findings.len() - self.right()
    }

    fn seconds(&self) -> f64 {
        self.findings.iter().fold(0.0, |sum, finding| sum + finding.seconds)
    }

    /// The first run with each wrong verdict, and how many runs had the same.
    fn kinds_of_wrong(&self) -> Vec<(&Finding, usize)> {
        let mut kinds: Vec<(&Finding, usize)> = Vec::new();
        for finding in self.findings.iter().filter(|finding| !finding.complaints.is_empty()) {
            let verdict = finding.outcome.verdict();
            match kinds.iter_mut().find(|(first, _)| first.outcome.verdict() == verdict) {
                Some((_, count)) => *count += 1,
                None => kinds.push((finding, 1)),
            }
        }
        kinds
    }

    /// The row, and a block for each kind of wrong verdict.
    pub(crate) fn text(&self) -> String {
        let case = &self.case;
        let count = match &self.skipped {
            Some(_) if self.findings.is_empty() => "-".to_owned(),
            _ => format!("{} of {}", self.right(), self.findings.len()),
        };
        let mut text = format!(
            "{:<28} {:<62} {:<34} {count:>8} {:>7.1}\n",
            case.name,
            case.provokes,
            case.verdict(),
            self.seconds()
        );
        // Writing to a String cannot fail.
        if let Some(reason) = &self.skipped {
            let _ = writeln!(text, "    skipped: {reason}");
        }
        for (finding, count) in self.kinds_of_wrong() {
            let outcome = &finding.outcome;
            let times = if count > 1 { format!(" × {count}, for example") } else { String::new() };
            let _ = writeln!(text, "    WRONG: {}{times}", outcome.verdict());
            let _ = writeln!(text, "      because: {}", finding.complaints.join("; "));
            let (what, words) = match outcome.evidence() {
                Some(evidence) => ("evidence", evidence),
                None => ("messages", outcome.messages.trim()),
            };
            let _ = writeln!(text, "      {what}: {}", shortened(words));
            let _ = writeln!(text, "      seen: {}", finding.seen.join("; "));
            if let Some(line) = &finding.server_line {
                let _ = writeln!(text, "      server: {line}");
            }
            let _ = writeln!(text, "      command: {}", finding.client_line);
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let wrong: Vec<Value> = self
            .findings
            .iter()
            .filter(|finding| !finding.complaints.is_empty())
            .map(|finding| {
                json!({
                    "found": finding.outcome.verdict(),
                    "complaints": finding.complaints,
                    "evidence": finding.outcome.evidence(),
                    "messages": finding.outcome.messages,
                    "seen": finding.seen,
                    "server": finding.server_line,
                    "command": finding.client_line,
                    "document": finding.outcome.document,
                })
            })
            .collect();
        json!({
            "name": self.case.name,
            "provokes": self.case.provokes,
            "expected": self.case.verdict(),
            "right": self.right(),
            "runs": self.findings.len(),
            "seconds": self.seconds(),
            "skipped": self.skipped,
            "wrong": wrong,
        })
    }
}

/// The heads of the columns.
pub(crate) fn head() -> String {
    format!("{:<28} {:<62} {:<34} {:>8} {:>7}", "case", "provoked", "expected", "right", "seconds")
}

/// The last line: how many cases are right in all their runs, wrong in any, skipped.
pub(crate) fn sum(rows: &[Row]) -> String {
    let wrong = rows.iter().filter(|row| row.wrong() > 0).count();
    let skipped = rows.iter().filter(|row| row.skipped.is_some() && row.wrong() == 0).count();
    let seconds = rows.iter().fold(0.0, |sum, row| sum + row.seconds());
    format!(
        "{} cases: {} right, {wrong} wrong, {skipped} skipped; {seconds:.0} s",
        rows.len(),
        rows.len() - wrong - skipped
    )
}

/// On one line, and not too long.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(TEXT_MAX) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}
