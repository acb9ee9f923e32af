//! The errors that connections meet: their names, and what they mean to an experiment.
//!
//! A name is the system's own, as its C headers spell it: `ECONNREFUSED` on Linux, `WSAECONNREFUSED`
//! on Windows.

use std::io;

#[cfg(unix)]
use unix as system;
#[cfg(windows)]
use windows as system;

pub(crate) use system::{NO_PORT, REFUSED, TIMED_OUT};

/// What an error means, where it means that something is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Short {
    /// The source address has no port left.
    Ports,
    /// The process has no descriptor left.
    Descriptors,
    /// The machine has no file left.
    #[cfg_attr(windows, expect(dead_code, reason = "handles have no limit of the machine"))]
    Files,
    /// The kernel has no memory, or (on Windows) no port: see [`short_of`].
    Memory,
}

/// What is short where a connection cannot be made.
///
/// Windows answers `WSAENOBUFS` both for kernel memory and for a range of ports that is used up:
/// the caller decides which, from the number of connections it made.
pub(crate) fn short_of(error: &io::Error) -> Option<Short> {
    system::short_of(error.raw_os_error()?)
}

/// The own time limit, as an error of the system.
pub(crate) fn timed_out() -> io::Error {
    io::Error::from_raw_os_error(system::TIMED_OUT_CODE)
}

/// Whether an error says that nothing was answered in time.
pub(crate) fn is_time_out(error: &io::Error) -> bool {
    error.raw_os_error() == Some(system::TIMED_OUT_CODE)
}

/// Whether a connect that does not block is under way.
pub(crate) fn in_progress(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(system::in_progress)
}

/// Whether an error of this name says that the other end has reset a connection.
pub(crate) fn is_reset(name: &str) -> bool {
    let name = name.strip_prefix("WSA").unwrap_or(name);
    matches!(name, "ECONNRESET" | "ECONNABORTED" | "EPIPE" | "ESHUTDOWN")
}

/// The name of an error as C spells it.
pub(crate) fn name_of(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.kind().to_string(), name)
}

/// The name of a system's error code; `errno 42` for those that connections do not meet.
pub(crate) fn name(code: i32) -> String {
    let known = system::NAMES.iter().find(|(known, _)| *known == code);
    known.map_or_else(|| format!("errno {code}"), |(_, name)| (*name).to_owned())
}

#[cfg(unix)]
mod unix {
    use super::Short;

    pub(crate) const REFUSED: &str = "ECONNREFUSED";
    pub(crate) const TIMED_OUT: &str = "ETIMEDOUT";
    pub(crate) const NO_PORT: &[&str] = &["EADDRNOTAVAIL"];
    pub(super) const TIMED_OUT_CODE: i32 = libc::ETIMEDOUT;

    pub(super) const NAMES: &[(i32, &str)] = &[
        (libc::EACCES, "EACCES"),
        (libc::EADDRINUSE, "EADDRINUSE"),
        (libc::EADDRNOTAVAIL, "EADDRNOTAVAIL"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ECANCELED, "ECANCELED"),
        (libc::ECONNABORTED, "ECONNABORTED"),
        (libc::ECONNREFUSED, REFUSED),
        (libc::ECONNRESET, "ECONNRESET"),
        (libc::EHOSTUNREACH, "EHOSTUNREACH"),
        (libc::EINVAL, "EINVAL"),
        (libc::EMFILE, "EMFILE"),
        (libc::ENETDOWN, "ENETDOWN"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::ENFILE, "ENFILE"),
        (libc::ENOBUFS, "ENOBUFS"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::ENOTCONN, "ENOTCONN"),
        (libc::EPERM, "EPERM"),
        (libc::EPIPE, "EPIPE"),
        (libc::EPROTO, "EPROTO"),
        (libc::ETIMEDOUT, TIMED_OUT),
    ];

    pub(super) fn short_of(code: i32) -> Option<Short> {
        match code {
            // EADDRINUSE: a port bound by somebody else, found by `bind` on an old kernel.
            libc::EADDRNOTAVAIL | libc::EADDRINUSE => Some(Short::Ports),
            libc::EMFILE => Some(Short::Descriptors),
            libc::ENFILE => Some(Short::Files),
            libc::ENOBUFS | libc::ENOMEM => Some(Short::Memory),
            _ => None,
        }
    }

    pub(super) fn in_progress(code: i32) -> bool {
        matches!(code, libc::EINPROGRESS | libc::EALREADY)
    }
}

#[cfg(windows)]
mod windows {
    use windows_sys::Win32::Networking::WinSock::{
        WSAEACCES, WSAEADDRINUSE, WSAEADDRNOTAVAIL, WSAEALREADY, WSAECONNABORTED, WSAECONNREFUSED,
        WSAECONNRESET, WSAEHOSTUNREACH, WSAEINPROGRESS, WSAEINVAL, WSAEMFILE, WSAENETDOWN,
        WSAENETUNREACH, WSAENOBUFS, WSAENOTCONN, WSAESHUTDOWN, WSAETIMEDOUT, WSAEWOULDBLOCK,
    };

    use super::Short;

    pub(crate) const REFUSED: &str = "WSAECONNREFUSED";
    pub(crate) const TIMED_OUT: &str = "WSAETIMEDOUT";
    /// "Only one usage of each socket address …", and "… not valid in its context".
    pub(crate) const NO_PORT: &[&str] = &["WSAEADDRINUSE", "WSAEADDRNOTAVAIL"];
    pub(super) const TIMED_OUT_CODE: i32 = WSAETIMEDOUT;

    pub(super) const NAMES: &[(i32, &str)] = &[
        (WSAEACCES, "WSAEACCES"),
        (WSAEADDRINUSE, "WSAEADDRINUSE"),
        (WSAEADDRNOTAVAIL, "WSAEADDRNOTAVAIL"),
        (WSAECONNABORTED, "WSAECONNABORTED"),
        (WSAECONNREFUSED, REFUSED),
        (WSAECONNRESET, "WSAECONNRESET"),
        (WSAEHOSTUNREACH, "WSAEHOSTUNREACH"),
        (WSAEINVAL, "WSAEINVAL"),
        (WSAEMFILE, "WSAEMFILE"),
        (WSAENETDOWN, "WSAENETDOWN"),
        (WSAENETUNREACH, "WSAENETUNREACH"),
        (WSAENOBUFS, "WSAENOBUFS"),
        (WSAENOTCONN, "WSAENOTCONN"),
        (WSAESHUTDOWN, "WSAESHUTDOWN"),
        (WSAETIMEDOUT, TIMED_OUT),
        (WSAEWOULDBLOCK, "WSAEWOULDBLOCK"),
    ];

    pub(super) fn short_of(code: i32) -> Option<Short> {
        match code {
            WSAEADDRINUSE | WSAEADDRNOTAVAIL => Some(Short::Ports),
            WSAEMFILE => Some(Short::Descriptors),
            WSAENOBUFS => Some(Short::Memory),
            _ => None,
        }
    }

    pub(super) fn in_progress(code: i32) -> bool {
        matches!(code, WSAEWOULDBLOCK | WSAEINPROGRESS | WSAEALREADY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_one_name() {
        let codes: std::collections::BTreeSet<i32> =
            system::NAMES.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes.len(), system::NAMES.len());
        assert_eq!(name_of(&timed_out()), TIMED_OUT);
        assert_eq!(name(-1), "errno -1");
        assert!(is_reset("ECONNRESET") && is_reset("WSAECONNRESET") && !is_reset(REFUSED));
        assert!(NO_PORT.iter().all(|name| system::NAMES.iter().any(|(_, known)| known == name)));
    }
}
