//! Rows of a comparison: pure, from the figures and their repeats to the verdicts.

use std::fmt::Write as _;

use crate::results::{Row, RowVerdict};
use crate::statistics::exact::Shift;
use crate::statistics::{family, quartiles};
use crate::units;

/// The probability that a comparison of two equal servers calls any row a change, at most.
pub const LEVEL: f64 = family::LEVEL;

/// Why a number without repeats is not judged.
pub(crate) const ONCE: &str = "measured once in each";
/// Why a row of a load that was measured in one piece is not judged.
pub(crate) const ONE_RUN: &str = "1 run each; use --repeat";

/// A row before it is judged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pair {
    pub(crate) path: String,
    pub(crate) first: f64,
    pub(crate) second: f64,
    /// The repeats' values, in the order in which they were measured.
    pub(crate) first_repeats: Vec<f64>,
    pub(crate) second_repeats: Vec<f64>,
    /// Why it has no repeats, where there is something to say about that.
    pub(crate) reason: Option<String>,
}

/// How the repeats of the two sides belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Design {
    /// Repeat *n* of both sides was measured at the same time, in turns.
    Interleaved,
    /// The two were measured one after the other, or on different days.
    Separate,
}

/// Judges all rows of a comparison together. Rows keep their order.
///
/// Cost: below a millisecond for a row with repeats.
pub(crate) fn judge(pairs: &[Pair], design: Design) -> Vec<Row> {
    let mut rows: Vec<Row> = pairs.iter().map(unjudged).collect();
    let mut tested = Vec::new();
    for (index, pair) in pairs.iter().enumerate() {
        match shift(pair, design) {
            Ok(Some(shift)) => tested.push((index, shift)),
            Ok(None) => {}
            Err(reason) => rows[index].reason = Some(reason),
        }
        rows[index].reason.get_or_insert_with(|| ONCE.to_owned());
    }
    let shifts: Vec<Shift> = tested.iter().map(|(_, shift)| shift.clone()).collect();
    let judged = family::judge(&shifts, LEVEL);
    for ((index, shift), judgement) in tested.iter().zip(&judged) {
        let row = &mut rows[*index];
        row.ratio = Some(shift.estimate().exp());
        match judgement {
            Some(judgement) => {
                row.reason = None;
                fill(row, judgement);
            }
            None => row.reason = Some(too_few(row, design, tested.len())),
        }
    }
    rows
}

fn unjudged(pair: &Pair) -> Row {
    let width = |repeats: &[f64]| {
        let (low, middle, high) = quartiles(repeats).filter(|_| repeats.len() > 1)?;
        Some(if middle == 0.0 { 0.0 } else { (high - low) / middle })
    };
    let widths = width(&pair.first_repeats).zip(width(&pair.second_repeats));
    Row {
        path: pair.path.clone(),
        first: pair.first,
        second: pair.second,
        ratio: (pair.first != 0.0).then(|| pair.second / pair.first),
        spread: widths.map(|(first, second)| first.max(second)),
        reason: pair.reason.clone(),
        first_repeats: pair.first_repeats.len() as u32,
        second_repeats: pair.second_repeats.len() as u32,
        ..Row::default()
    }
}

/// The shift between the sides' logarithms, so that it is a ratio. `None` where one side has no
/// repeats.
fn shift(pair: &Pair, design: Design) -> Result<Option<Shift>, String> {
    if pair.first_repeats.len() < 2 || pair.second_repeats.len() < 2 {
        return Ok(None);
    }
    if pair.first_repeats.iter().chain(&pair.second_repeats).any(|value| *value <= 0.0) {
        return Err("a repeat is 0, and has no ratio".to_owned());
    }
    let logarithms = |values: &[f64]| values.iter().map(|value| value.ln()).collect::<Vec<f64>>();
    let (first, second) = (logarithms(&pair.first_repeats), logarithms(&pair.second_repeats));
    Ok(match design {
        Design::Separate => Shift::separate(&first, &second),
        Design::Interleaved => {
            let differences: Vec<f64> =
                first.iter().zip(&second).map(|(first, second)| second - first).collect();
            Shift::paired(&differences)
        }
    })
}

fn fill(row: &mut Row, judgement: &family::Judgement) {
    row.changed = Some(judgement.changed);
    row.verdict =
        if judgement.changed { RowVerdict::Changed } else { RowVerdict::NotDistinguishable };
    row.p_value = Some(judgement.p_value);
    row.interval = judgement.interval.map(|(low, high)| (low.exp(), high.exp()));
    row.could_have_seen = judgement.interval.map(|(low, high)| ((high - low) / 2.0).exp() - 1.0);
}

fn too_few(row: &Row, design: Design, rows: usize) -> String {
    let needed = match design {
        Design::Interleaved => family::pairs_needed(rows, LEVEL),
        Design::Separate => family::repeats_needed(rows, LEVEL),
    };
    let (first, second) = (row.first_repeats, row.second_repeats);
    let there = if first == second { format!("{first}") } else { format!("{first} and {second}") };
    format!("{there} repeats; {needed} can be judged")
}

/// The rows as a plain table for a person: at most 100 columns wide, unless a path is longer than
/// 36 characters, which then has a line of its own. `names` head the two columns of values.
pub(crate) fn table(rows: &[Row], names: (&str, &str)) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{:<36} {:>11} {:>11} {:>7}  verdict", "", names.0, names.1, "ratio");
    // What can be acted upon comes first.
    let judged = rows.iter().filter(|row| row.changed.is_some());
    let others = rows.iter().filter(|row| row.changed.is_none());
    for row in judged.chain(others) {
        let ratio = row.ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.3}"));
        let (first, second) = (units::number(row.first), units::number(row.second));
        let mut path = row.path.as_str();
        if path.chars().count() > 36 {
            let _ = writeln!(out, "{path}");
            path = "";
        }
        let line = format!("{path:<36} {first:>11} {second:>11} {ratio:>7}  {}", words(row));
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

/// The verdict in words: at most 34 columns, unless a reason is longer.
fn words(row: &Row) -> String {
    match (row.changed, row.interval, row.could_have_seen) {
        (Some(true), Some((low, high)), _) if high < 1.0 => {
            format!("CHANGED: {} to {} % less", percent(1.0 - high), percent(1.0 - low))
        }
        (Some(true), Some((low, high)), _) => {
            format!("CHANGED: {} to {} % more", percent(low - 1.0), percent(high - 1.0))
        }
        (Some(_), _, Some(seen)) => format!("not distinguishable (±{} %)", percent(seen)),
        _ => match row.reason.as_deref() {
            None | Some(ONCE) => String::new(),
            Some(reason) => format!("not judged: {reason}"),
        },
    }
}

/// A share in percent, with one decimal where it is small.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent.abs() < 10.0 { format!("{percent:.1}") } else { format!("{percent:.0}") }
}

/// What the verdicts mean, in plain sentences; empty where none was given.
pub(crate) fn footnote(rows: &[Row]) -> String {
    let judged = rows.iter().filter(|row| row.changed.is_some()).count();
    if judged == 0 {
        return String::new();
    }
    format!(
        "{judged} rows were judged together: two equal servers are called CHANGED in any of them in at\n\
         most {} % of such comparisons. ± is the smallest difference that could have been seen.\n",
        percent(LEVEL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(path: &str, first: &[f64], second: &[f64]) -> Pair {
        let middle = |values: &[f64]| crate::statistics::median(values).unwrap_or(1.0);
        Pair {
            path: path.into(),
            first: middle(first),
            second: middle(second),
            first_repeats: first.into(),
            second_repeats: second.into(),
            reason: None,
        }
    }

    /// Ten values within a few percent of `around`.
    fn near(around: f64) -> Vec<f64> {
        [0.99, 1.01, 1.0, 0.98, 1.02, 1.005, 0.995, 1.015, 0.985, 1.001].map(|x| x * around).into()
    }

    #[test]
    fn a_change_beyond_chance_is_called_one_with_its_interval() {
        for design in [Design::Interleaved, Design::Separate] {
            let pairs = [
                pair("load.messages_per_second", &near(1000.0), &near(900.0)),
                pair("load.latency_us.p50", &near(100.0), &near(100.0)),
            ];
            let rows = judge(&pairs, design);
            assert_eq!(rows[0].verdict, RowVerdict::Changed, "{design:?}: {rows:?}");
            let (low, high) = rows[0].interval.unwrap();
            assert!(low <= 0.9 && 0.9 <= high && high < 1.0, "{low} {high}");
            assert_eq!(rows[1].verdict, RowVerdict::NotDistinguishable);
            assert!(rows[1].could_have_seen.unwrap() < 0.05, "{rows:?}");
            let text = table(&rows, ("first", "second"));
            assert!(text.contains("% less") && text.contains("not distinguishable (±"), "{text}");
            assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
            assert!(footnote(&rows).contains("2 rows were judged together"));
        }
    }

    #[test]
    fn what_cannot_be_judged_says_why() {
        let pairs = [
            pair("few", &near(1.0)[..3], &near(2.0)[..3]),
            pair("zero", &[0.0, 1.0, 2.0], &[1.0, 2.0, 3.0]),
            Pair { path: "once".into(), first: 1.0, second: 2.0, ..Pair::default() },
            Pair { path: "asked".into(), reason: Some(ONE_RUN.into()), ..Pair::default() },
        ];
        let rows = judge(&pairs, Design::Interleaved);
        let reasons: Vec<&str> = rows.iter().map(|row| row.reason.as_deref().unwrap()).collect();
        assert_eq!(
            reasons,
            ["3 repeats; 7 can be judged", "a repeat is 0, and has no ratio", ONCE, ONE_RUN]
        );
        assert!(rows.iter().all(|row| row.changed.is_none() && row.interval.is_none()));
        assert_eq!(footnote(&rows), "");
        let text = table(&rows, ("first", "second"));
        assert!(text.contains("not judged: 1 run each; use --repeat"), "{text}");
    }
}
