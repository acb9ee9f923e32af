//! The backlogs that are asked for: their names, and the sweep of each system.

use plimsoll_kernel::limits::Limits;

use crate::{Error, Result};

/// `SOMAXCONN` of Linux (`include/linux/socket.h`, since 5.4) and of Windows (`winsock2.h`).
const SOMAXCONN: i64 = if cfg!(windows) { 0x7fff_ffff } else { 4096 };
/// What a hint may say: Windows clips it to these bounds (`listen`, Microsoft's documentation).
const HINT: std::ops::RangeInclusive<i64> = 200..=65_535;
/// A larger `somaxconn` than this is not shown to be a cap by the sweep: it would take millions of
/// connections.
const SWEEP_MAX: i64 = 65_536;

/// Reads a backlog: `default` (`None`: the library's own), `somaxconn` (the system's constant),
/// `hint:N` (Windows' `SOMAXCONN_HINT(N)`, which is −N), or a number, passed on as it is.
///
/// # Errors
/// [`Error::Usage`] for anything else, and for a hint where hints are not known.
pub fn parse(text: &str) -> Result<Option<i64>> {
    parse_for(text, cfg!(windows))
}

fn parse_for(text: &str, windows: bool) -> Result<Option<i64>> {
    let number = |digits: &str| digits.replace('_', "").parse::<i32>().ok().map(i64::from);
    match (text, text.strip_prefix("hint:")) {
        ("default", _) => Ok(None),
        ("somaxconn", _) => Ok(Some(SOMAXCONN)),
        (_, Some(hint)) if windows => match number(hint).filter(|hint| HINT.contains(hint)) {
            Some(hint) => Ok(Some(-hint)),
            None => Err(Error::usage(
                format!("`{hint}` is no hint"),
                format!("give hint:{} to hint:{}", HINT.start(), HINT.end()),
            )),
        },
        (_, Some(_)) => Err(Error::usage(
            format!("`{text}`: only Windows takes hints (SOMAXCONN_HINT)"),
            "give a number, or somaxconn",
        )),
        _ => number(text).map(Some).ok_or_else(|| {
            Error::usage(
                format!("`{text}` is no backlog"),
                "give default, somaxconn, hint:N (Windows), or a whole number that fits a C int",
            )
        }),
    }
}

/// The name of a backlog, for a person.
pub fn name(requested: Option<i64>) -> String {
    name_for(requested, cfg!(windows))
}

fn name_for(requested: Option<i64>, windows: bool) -> String {
    match requested {
        None => "default".to_owned(),
        Some(0x7fff_ffff) if windows => "SOMAXCONN".to_owned(),
        Some(asked) if windows && asked < 0 => format!("hint {}", -asked),
        Some(asked) => asked.to_string(),
    }
}

/// The backlogs that show the default, small ones, the system's constant, and what goes beyond it.
pub(super) fn sweep() -> Vec<Option<i64>> {
    if cfg!(windows) {
        let hints = [-200, -1000, -4000, -16_000].map(Some);
        return [None, Some(1), Some(16), Some(SOMAXCONN)].into_iter().chain(hints).collect();
    }
    let somaxconn = Limits::read().somaxconn.and_then(|n| i64::try_from(n).ok());
    let mut all = vec![None, Some(1), Some(16), Some(1024), Some(SOMAXCONN)];
    if let Some(twice) = somaxconn.and_then(|n| n.checked_mul(2))
        && twice <= SWEEP_MAX
        && !all.contains(&Some(twice))
    {
        all.push(Some(twice));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backlogs_are_read_and_named() {
        let read = |text, windows| parse_for(text, windows).unwrap();
        assert_eq!(read("default", true), None);
        assert_eq!(read("4_096", false), Some(4096));
        assert_eq!(read("-1", false), Some(-1));
        assert_eq!(read("hint:16000", true), Some(-16_000));
        assert_eq!(read("somaxconn", cfg!(windows)), Some(SOMAXCONN));
        for (wrong, windows) in [
            ("hint:200", false),
            ("hint:199", true),
            ("hint:65536", true),
            ("5000000000", true),
            ("x", false),
        ] {
            assert_eq!(parse_for(wrong, windows).unwrap_err().exit_code(), 2, "{wrong}");
        }
        assert_eq!(name_for(Some(-200), true), "hint 200");
        assert_eq!(name_for(Some(-200), false), "-200");
        assert_eq!(name_for(Some(0x7fff_ffff), true), "SOMAXCONN");
        assert_eq!(name_for(None, true), "default");
        let mut all = sweep();
        all.dedup();
        assert_eq!(all, sweep());
    }
}
