//! Pressure stall information: how much time was lost waiting.
//!
//! Format and meaning: `Documentation/accounting/psi.rst`.

use std::time::Duration;

use crate::source;

/// The machine's pressure; `None` where the kernel does not account it
/// (`CONFIG_PSI` absent, or `psi=0`), or a container hides it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pressure {
    /// Tasks that were ready to run and had no CPU.
    pub cpu: Option<Stalls>,
    /// Tasks that waited for memory: reclaim, refaults, swap.
    pub memory: Option<Stalls>,
    /// Tasks that waited for input and output.
    pub io: Option<Stalls>,
}

/// The two lines of a resource.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stalls {
    /// At least one task was waiting.
    pub some: Stall,
    /// All tasks that were not idle were waiting. Older kernels have no such
    /// line for the CPU, newer ones have zeros.
    pub full: Option<Stall>,
}

/// One line: shares of time lost, and their sum since boot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stall {
    /// Share of the last 10 seconds, in percent, 0 to 100.
    pub avg10: f64,
    /// Share of the last 60 seconds, in percent.
    pub avg60: f64,
    /// Share of the last 300 seconds, in percent.
    pub avg300: f64,
    /// Time lost since boot; for differences over spans of one's own.
    pub total: Duration,
}

impl Pressure {
    /// Reads the three files; some 30 µs.
    pub fn read() -> Self {
        let one = |name| parse(&source::read_optional(format!("/proc/pressure/{name}"))?);
        Self { cpu: one("cpu"), memory: one("memory"), io: one("io") }
    }
}

pub(crate) fn parse(text: &str) -> Option<Stalls> {
    let line = |name: &str| {
        let line = text.lines().find(|line| line.split_ascii_whitespace().next() == Some(name))?;
        let field = |key: &str| {
            line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        };
        Some(Stall {
            avg10: field("avg10")?.parse().ok()?,
            avg60: field("avg60")?.parse().ok()?,
            avg300: field("avg300")?.parse().ok()?,
            total: Duration::from_micros(field("total")?.parse().ok()?),
        })
    };
    Some(Stalls { some: line("some")?, full: line("full") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let text = "full total=5 avg10=0.00 avg60=0.00 avg300=0.00\n\
                    some avg300=1.51 avg10=0.50 avg60=1.68 total=11720366\n";
        let stalls = parse(text).unwrap();
        assert!((stalls.some.avg10 - 0.5).abs() < 1e-9);
        assert!((stalls.some.avg300 - 1.51).abs() < 1e-9);
        assert_eq!(stalls.some.total, Duration::from_micros(11_720_366));
        assert_eq!(stalls.full.unwrap().total, Duration::from_micros(5));
        assert_eq!(parse("some avg10=0 avg60=0 avg300=0 total=0\n").unwrap().full, None);
    }

    #[test]
    fn malformed_text_is_none() {
        for text in ["", "some\n", "some avg10=x avg60=0 avg300=0 total=0\n", "full avg10=0\n"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn reading_never_fails() {
        let now = Pressure::read();
        if let Some(cpu) = now.cpu {
            assert!((0.0..=100.0).contains(&cpu.some.avg10));
        }
    }
}
