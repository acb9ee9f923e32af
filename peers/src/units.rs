//! Times and sizes with a unit, as flags take them.

use std::time::Duration;

/// Reads a time: `250us`, `20ms`, `1.5s`, `2min`; a bare number is seconds.
///
/// # Errors
/// A sentence that names the text and what was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let seconds_per_unit = match unit {
        "ns" => 1e-9,
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "min" => 60.0,
        _ => return Err(format!("`{text}`: expected a time such as 250us, 20ms, 1.5s or 2min")),
    };
    let number: f64 =
        number.parse().map_err(|_| format!("`{text}` does not begin with a number"))?;
    Duration::try_from_secs_f64(number * seconds_per_unit)
        .map_err(|_| format!("`{text}` is out of range"))
}

/// Reads a size in bytes: `512`, `4KiB`, `1MiB`, `2GiB`.
///
/// # Errors
/// A sentence that names the text and what was expected.
pub fn size(text: &str) -> Result<usize, String> {
    let (number, unit) = split(text);
    let bytes_per_unit = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("`{text}`: expected a size such as 512, 4KiB, 1MiB or 2GiB")),
    };
    let number: usize =
        number.parse().map_err(|_| format!("`{text}` does not begin with a whole number"))?;
    number.checked_mul(bytes_per_unit).ok_or_else(|| format!("`{text}` is out of range"))
}

/// Replaces the C escapes `\r`, `\n`, `\t`, `\0` and `\\` by the bytes that they stand for.
///
/// # Errors
/// A sentence that names an escape which is none of these.
pub fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        bytes.push(match characters.next() {
            Some('r') => b'\r',
            Some('n') => b'\n',
            Some('t') => b'\t',
            Some('0') => 0,
            Some('\\') => b'\\',
            _ => return Err(format!("`{text}`: expected one of \\r \\n \\t \\0 \\\\")),
        });
    }
    Ok(bytes)
}

/// Splits before the first letter: the number, and the unit.
fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(duration("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(duration("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("2min"), Ok(Duration::from_secs(120)));
        for wrong in ["", "s", "1x", "-1s", "1e400"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("4KiB"), Ok(4096));
        for wrong in ["", "KiB", "1.5KiB", "4KB", "99999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape("-ERR full\\r\\n"), Ok(b"-ERR full\r\n".to_vec()));
        assert_eq!(unescape("a\\\\b\\0\\t"), Ok(b"a\\b\0\t".to_vec()));
        assert!(unescape("\\q").is_err() && unescape("\\").is_err());
    }
}
