//! Sizes, times and counts as people write and read them.
//!
//! Parsing is strict: a number with an unknown unit is an error that lists the
//! units, never a guess. A bare number is bytes, or seconds, or the count
//! itself. Printing keeps three or four significant digits, groups thousands,
//! and always names the unit.

use std::time::Duration;

/// Units of a size, with their bytes. `K`, `M`, … alone are powers of two, as in `head -c`.
const SIZES: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
];

/// Units of a time, with their seconds.
const TIMES: &[(&str, f64)] = &[
    ("", 1.0),
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("min", 60.0),
    ("h", 3600.0),
];

/// Multiples of a count.
const COUNTS: &[(&str, u64)] =
    &[("", 1), ("k", 1_000), ("m", 1_000_000), ("g", 1_000_000_000), ("t", 1_000_000_000_000)];

/// The longest time that is accepted: a year. Longer ones are taken for a wrong unit.
const LONGEST_SECONDS: f64 = 366.0 * 24.0 * 3600.0;

/// A text that is no size, time or count. Its message names the text and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct BadUnit {
    text: String,
    expected: &'static str,
}

impl BadUnit {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.to_owned(), expected }
    }
}

/// Parses a size: `4096`, `64KiB`, `1.5MB`, `2g`. A bare number is bytes; upper and lower case are
/// one.
pub fn parse_size(text: &str) -> Result<u64, BadUnit> {
    scaled(text, SIZES).ok_or_else(|| {
        BadUnit::new(text, "a size: a number of bytes, or one with KiB, MiB, GiB, kB, MB or GB")
    })
}

/// Parses one size or a range of them: `64`, `1B..64KiB`. Both ends are included.
pub fn parse_size_range(text: &str) -> Result<(u64, u64), BadUnit> {
    let Some((low, high)) = text.split_once("..") else {
        return parse_size(text).map(|size| (size, size));
    };
    let range = (parse_size(low)?, parse_size(high.trim_start_matches('='))?);
    if range.0 > range.1 {
        return Err(BadUnit::new(text, "a range of sizes: its first end must be the smaller one"));
    }
    Ok(range)
}

/// Parses a time: `2`, `2s`, `150ms`, `20us`, `5min`. A bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, BadUnit> {
    const EXPECTED: &str = "a time: a number of seconds, or one with ns, us, ms, s, min or h";
    let bad = || BadUnit::new(text, EXPECTED);
    let (number, unit) = split_unit(text);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let (_, seconds) =
        TIMES.iter().find(|(name, _)| *name == unit.to_lowercase()).ok_or_else(bad)?;
    let seconds = number * seconds;
    if !(0.0..=LONGEST_SECONDS).contains(&seconds) {
        return Err(BadUnit::new(text, "a time between 0 and a year"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Parses a count: `15000`, `15_000`, `15k`, `1M`, `1e6`, `2.5e3`. Multiples are powers of ten.
pub fn parse_count(text: &str) -> Result<u64, BadUnit> {
    let count = if text.contains(['e', 'E']) { exponential(text) } else { scaled(text, COUNTS) };
    count.ok_or_else(|| {
        BadUnit::new(text, "a count: a whole number (also 1e6), or one with k, M or G")
    })
}

/// A whole number with an exponent; `None` where it is not whole, negative, or more than the 2^53 up
/// to which a floating-point number is exact.
fn exponential(text: &str) -> Option<u64> {
    const EXACT: f64 = (1_u64 << 53) as f64;
    let value: f64 = text.trim().replace('_', "").parse().ok()?;
    (value.fract() == 0.0 && (0.0..=EXACT).contains(&value)).then_some(value as u64)
}

/// Parses a rate per second: a count, which may have a fraction; more than zero.
pub fn parse_rate(text: &str) -> Result<f64, BadUnit> {
    let bad = || BadUnit::new(text, "a rate: a number above zero of events per second");
    let trimmed = text.strip_suffix("/s").unwrap_or(text);
    let (number, unit) = split_unit(trimmed);
    let number: f64 = number.replace('_', "").parse().map_err(|_| bad())?;
    let (_, scale) =
        COUNTS.iter().find(|(name, _)| *name == unit.to_lowercase()).ok_or_else(bad)?;
    let rate = number * *scale as f64;
    if rate.is_finite() && rate > 0.0 { Ok(rate) } else { Err(bad()) }
}

/// The number and its unit; the unit begins at the first letter.
fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let at = text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len());
    (text[..at].trim_end(), &text[at..])
}

/// A whole or broken number with a unit of `units`; `None` where it is neither, negative, or more
/// than `u64` holds.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = split_unit(text);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.to_lowercase())?;
    let number = number.replace('_', "");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(*scale);
    }
    // A fraction of one byte, or of one connection, is a slip of the pen.
    let broken: f64 = number.parse().ok()?;
    let value = broken * *scale as f64;
    (*scale > 1 && value >= 0.0 && value < u64::MAX as f64).then_some(value.round() as u64)
}

/// A count with its thousands grouped by commas: `15,000`.
pub fn count(value: u64) -> String {
    grouped(value, ",")
}

/// A number of connections, with the noun in the number that it takes: `1 connection`,
/// `15,000 connections`.
pub fn connections(value: u64) -> String {
    let noun = if value == 1 { "connection" } else { "connections" };
    format!("{} {noun}", count(value))
}

/// A number of connections as the subject of a sentence about the past: `1 connection was`,
/// `15,000 connections were`.
pub fn connections_were(value: u64) -> String {
    format!("{} {}", connections(value), if value == 1 { "was" } else { "were" })
}

/// A count with its thousands grouped by `separator`.
pub fn grouped(value: u64, separator: &str) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() * 2);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push_str(separator);
        }
        out.push(digit);
    }
    out
}

/// A number with as many digits as a person reads: whole and grouped from 100 up, else three
/// significant digits.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "?".to_owned();
    }
    let sign = if value < 0.0 { "-" } else { "" };
    let size = value.abs();
    let digits = match size {
        s if s >= 99.95 => return format!("{sign}{}", count(size.round() as u64)),
        s if s >= 9.995 => 1,
        s if s >= 0.995 || s == 0.0 => 2,
        _ => 3,
    };
    let text = format!("{size:.digits$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{sign}{}", if text.is_empty() { "0" } else { text })
}

/// A number of bytes with its unit: `512 B`, `3.55 KiB`, `1.2 GiB`.
pub fn bytes(value: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = value;
    let mut unit = 0;
    while scaled.abs() >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{} {}", number(scaled), UNITS[unit])
}

/// A time in microseconds with the unit that suits it: `35 µs`, `1.03 s`.
pub fn micros(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{} s", number(value / 1e6)),
        v if v >= 1e3 => format!("{} ms", number(value / 1e3)),
        _ => format!("{} µs", number(value)),
    }
}

/// A time with the unit that suits it: `150 ms`, `2 s`, `1 min 20 s`.
pub fn duration(value: Duration) -> String {
    let seconds = value.as_secs_f64();
    if seconds < 60.0 {
        return micros(seconds * 1e6);
    }
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, minutes, 0) => format!("{minutes} min"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// A rate with its unit: `7,800/s`.
pub fn rate(value: f64) -> String {
    format!("{}/s", number(value))
}

/// Breaks a sentence at spaces into lines of at most `width` characters (longer words stay whole).
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        // The vector is never empty.
        let line = lines.last_mut().expect("there is always a last line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_both_kinds_of_prefix() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("64 kib"), Ok(65_536));
        assert_eq!(parse_size("1.5MB"), Ok(1_500_000));
        assert_eq!(parse_size("16k"), Ok(16_384));
        assert_eq!(parse_size("1_000B"), Ok(1000));
    }

    #[test]
    fn wrong_sizes_are_refused_and_named() {
        for text in ["", "KiB", "-1", "1.5", "64QiB", "1e3", "nan", "20000000TiB", "64 KiB x"] {
            let error = parse_size(text).expect_err(text);
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn ranges_of_sizes() {
        assert_eq!(parse_size_range("64"), Ok((64, 64)));
        assert_eq!(parse_size_range("1..64KiB"), Ok((1, 65_536)));
        assert!(parse_size_range("2KiB..1KiB").is_err());
        assert!(parse_size_range("1..").is_err());
    }

    #[test]
    fn times_carry_a_unit_or_are_seconds() {
        assert_eq!(parse_duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_duration("150ms"), Ok(Duration::from_millis(150)));
        assert_eq!(parse_duration("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("20us"), Ok(Duration::from_micros(20)));
        assert_eq!(parse_duration("5min"), Ok(Duration::from_secs(300)));
        for text in ["", "s", "-1s", "5 parsecs", "nan", "1e400", "9999h", "inf"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn counts_and_rates() {
        assert_eq!(parse_count("1000000000000"), Ok(1_000_000_000_000));
        assert_eq!(parse_count("15k"), Ok(15_000));
        assert_eq!(parse_count("1.5M"), Ok(1_500_000));
        assert_eq!(parse_count("1e6"), Ok(1_000_000));
        assert_eq!(parse_count("2.5E3"), Ok(2500));
        assert_eq!(parse_count("1_0e+2"), Ok(1000));
        assert_eq!(parse_count("50e-1"), Ok(5));
        for text in ["1.5", "many", "1e", "e6", "1.5e0", "-1e3", "1e16", "1e999", "1e6k", "seven"] {
            assert!(parse_count(text).is_err(), "{text}");
        }
        assert_eq!(parse_rate("3k/s"), Ok(3000.0));
        assert_eq!(parse_rate("0.5"), Ok(0.5));
        assert!(parse_rate("0").is_err());
    }

    #[test]
    fn printing_keeps_what_a_person_reads() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(15_000), "15,000");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(connections(1), "1 connection");
        assert_eq!(connections(0), "0 connections");
        assert_eq!(connections_were(1), "1 connection was");
        assert_eq!(connections_were(2), "2 connections were");
        assert_eq!(connections(15_000), "15,000 connections");
        assert_eq!(number(0.0), "0");
        assert_eq!(number(3.5), "3.5");
        assert_eq!(number(12.34), "12.3");
        assert_eq!(number(99.96), "100");
        assert_eq!(number(0.125), "0.125");
        assert_eq!(number(-1234.4), "-1,234");
        assert_eq!(number(f64::NAN), "?");
        assert_eq!(bytes(512.0), "512 B");
        assert_eq!(bytes(3640.0), "3.55 KiB");
        assert_eq!(micros(35.2), "35.2 µs");
        assert_eq!(micros(1_030_000.0), "1.03 s");
        assert_eq!(duration(Duration::from_secs(80)), "1 min 20 s");
        assert_eq!(duration(Duration::from_millis(150)), "150 ms");
        assert_eq!(rate(7800.0), "7,800/s");
    }

    #[test]
    fn sentences_are_broken_at_spaces() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("", 7), [""]);
    }
}
