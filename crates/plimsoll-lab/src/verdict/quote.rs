//! What a server says, quoted so that it cannot be taken for words of ours, and does no harm to a
//! terminal.

use std::fmt::Write as _;

/// How much of a text is quoted.
const QUOTED_MAX: usize = 120;

/// Bytes between quotation marks: control characters, quotation marks, backslashes and bytes that are
/// no UTF-8 as C escapes; cut after 120 characters.
pub fn quote(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    let mut count = 0;
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if count == QUOTED_MAX {
                out.push_str("…\"");
                return out;
            }
            count += 1;
            match character {
                '\r' => out.push_str("\\r"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                other if other.is_control() || is_invisible(other) => {
                    out.extend(other.escape_unicode());
                }
                other => out.push(other),
            }
        }
        for byte in chunk.invalid() {
            if count == QUOTED_MAX {
                out.push_str("…\"");
                return out;
            }
            count += 1;
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out.push('"');
    out
}

/// Marks that change the direction of a text, or have no width.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_move_a_terminal_is_escaped() {
        assert_eq!(quote(b"-ERR max\r\n"), r#""-ERR max\r\n""#);
        assert_eq!(quote(b"\x1b[31m\"\\"), r#""\u{1b}[31m\"\\""#);
        assert_eq!(quote("grüße".as_bytes()), "\"grüße\"");
        assert_eq!(quote(b"\xff\x00a"), r#""\xff\u{0}a""#);
        assert_eq!(quote("\u{202e}".as_bytes()), r#""\u{202e}""#);
        assert_eq!(quote(&[b'a'; 300]).chars().count(), 120 + 3);
        assert_eq!(quote(&[0xff; 300]).chars().count(), 4 * 120 + 3);
        assert_eq!(quote(b""), "\"\"");
    }
}
