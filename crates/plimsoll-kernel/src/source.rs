//! Reading the kernel's text files, in one place, so that an error always
//! names the file and what to do, and other systems need no second version.

use std::fs;
use std::io;
use std::path::Path;

use crate::{Error, Result};

/// Reads a whole file of the kernel. Costs an open, a few reads and a close.
///
/// Bytes that are not UTF-8 (a process may call itself anything) are replaced.
pub(crate) fn read(path: &str) -> Result<String> {
    if !cfg!(target_os = "linux") {
        return Err(Error::Unknown { what: path.to_owned() });
    }
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(cause) => {
            let cure = cure(path, &cause);
            Err(Error::Unreadable { path: path.into(), cause, cure })
        }
    }
}

/// Reads a file that may be absent: `None` for whatever stands in the way.
pub(crate) fn read_optional(path: impl AsRef<Path>) -> Option<String> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads a file that holds one number; `None` if absent or not a number.
pub(crate) fn number(path: impl AsRef<Path>) -> Option<u64> {
    read_optional(path)?.trim().parse().ok()
}

/// Reads `/proc/PID/file`; a process that is gone is [`Error::NoProcess`].
pub(crate) fn read_process(pid: u32, file: &str) -> Result<String> {
    read(&format!("/proc/{pid}/{file}")).map_err(|error| gone(pid, error))
}

/// Turns "no such file" and "no such process" below `/proc/PID` into
/// [`Error::NoProcess`] when the process itself is not there.
pub(crate) fn gone(pid: u32, error: Error) -> Error {
    match error {
        Error::Unreadable { ref cause, .. } if !Path::new(&format!("/proc/{pid}")).exists() => {
            match cause.kind() {
                io::ErrorKind::PermissionDenied => error,
                _ => Error::NoProcess { pid },
            }
        }
        other => other,
    }
}

/// The value after `key` in lines of the form `key value` or `key: value`.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?;
        (name.strip_suffix(':').unwrap_or(name) == key).then(|| words.next()?.parse().ok())?
    })
}

/// Exactly so many numbers with space between, as in `net.ipv4.tcp_mem`. No allocation.
pub(crate) fn numbers<const N: usize>(text: &str) -> Option<[u64; N]> {
    let mut words = text.split_ascii_whitespace();
    let mut found = [0; N];
    for number in &mut found {
        *number = words.next()?.parse().ok()?;
    }
    words.next().is_none().then_some(found)
}

fn cure(path: &str, cause: &io::Error) -> &'static str {
    match (path, cause.kind()) {
        ("/proc/slabinfo", io::ErrorKind::PermissionDenied) => {
            "only root may read it: run this as root, or do without kernel bytes per connection"
        }
        ("/proc/slabinfo", io::ErrorKind::NotFound) => {
            "this kernel was built without it (CONFIG_SLUB_DEBUG), or a container hides it: run on the host"
        }
        (_, io::ErrorKind::PermissionDenied) => {
            "run this as root or as the owner of what it describes"
        }
        (_, io::ErrorKind::NotFound) => {
            "this kernel or container does not have it, or /proc is not mounted"
        }
        _ => "try again, and look at the kernel's log if it happens again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_takes_both_forms_and_nothing_else() {
        let text = "sock 12\nslab: 7\nslab_reclaimable 3\nbroken\nword x\n";
        assert_eq!(keyed(text, "sock"), Some(12));
        assert_eq!(keyed(text, "slab"), Some(7));
        assert_eq!(keyed(text, "broken"), None);
        assert_eq!(keyed(text, "word"), None);
        assert_eq!(keyed(text, "absent"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_error_names_file_and_cure() {
        let error = read("/proc/there-is-no-such-file").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/proc/there-is-no-such-file"), "{text}");
        assert!(text.contains("does not have it"), "{text}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_that_is_not_there_is_named() {
        // Beyond the largest pid the kernel can give out (PID_MAX_LIMIT, 2^22).
        let error = read_process(u32::MAX, "stat").unwrap_err();
        assert!(matches!(error, Error::NoProcess { pid: u32::MAX }), "{error}");
    }
}
