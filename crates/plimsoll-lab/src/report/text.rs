//! Figures as the report writes them: thin spaces between thousands, a thin space before the unit,
//! and nothing that breaks across lines.

use crate::units;

/// A narrow space that does not break.
const THIN: char = '\u{202f}';

/// Text with the report's spaces: commas between digits and spaces become thin ones.
pub(super) fn thin(text: &str) -> String {
    text.replace([',', ' '], &THIN.to_string())
}

/// A count: `15 000`.
pub(super) fn count(value: u64) -> String {
    thin(&units::count(value))
}

/// A number with three significant digits, or whole and grouped.
pub(super) fn number(value: f64) -> String {
    thin(&units::number(value))
}

/// A size: `3.55 KiB`.
pub(super) fn bytes(value: f64) -> String {
    thin(&units::bytes(value))
}

/// A time: `35 µs`.
pub(super) fn micros(value: f64) -> String {
    thin(&units::micros(value))
}

/// A large number in a few characters, for ticks: `15k`, `1.2M`.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e9 => format!("{}G", trimmed(value / 1e9, 1)),
        v if v >= 1e6 => format!("{}M", trimmed(value / 1e6, 1)),
        v if v >= 1e4 => format!("{}k", trimmed(value / 1e3, 1)),
        _ => number(value),
    }
}

/// A number with at most `digits` after the point, and no zeros at its end.
pub(super) fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// `value` written by `write`, or a dash for what is not known.
pub(super) fn known<T>(value: Option<T>, write: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), write)
}

/// Escapes text for HTML and SVG, in elements and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_do_not_break_across_lines() {
        assert_eq!(count(15_000), "15\u{202f}000");
        assert_eq!(bytes(3640.0), "3.55\u{202f}KiB");
        assert_eq!(short(15_000.0), "15k");
        assert_eq!(short(1_200_000.0), "1.2M");
        assert_eq!(short(500.0), "500");
        assert_eq!(trimmed(99.0, 4), "99");
        assert_eq!(trimmed(99.99, 4), "99.99");
        assert_eq!(known(None::<u64>, count), "–");
    }

    #[test]
    fn escaping_leaves_no_markup() {
        assert_eq!(escape("<a b=\"c\">'&"), "&lt;a b=&quot;c&quot;&gt;&#39;&amp;");
    }
}
