//! Why there is no ring, and what to do about it.

use std::io;

/// Why `io_uring` cannot be used here. The text names the cause and the cure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The kernel is older than 6.1.
    #[error(
        "Linux {release} is too old for the io_uring driver: it needs 6.1 (IORING_SETUP_DEFER_TASKRUN); \
         upgrade the kernel, or use the readiness driver"
    )]
    TooOld {
        /// What `uname(2)` says.
        release: String,
    },
    /// The kernel has no `io_uring` at all.
    #[error(
        "this kernel was built without io_uring (CONFIG_IO_URING), or a seccomp filter hides it \
         (containers often do); allow io_uring_setup, io_uring_enter and io_uring_register, or use \
         the readiness driver"
    )]
    Absent,
    /// `kernel.io_uring_disabled` forbids it.
    #[error(
        "kernel.io_uring_disabled is {value}: io_uring is forbidden {}; \
         `sysctl kernel.io_uring_disabled=0` allows it",
        if *.value == 1 { "to users outside of kernel.io_uring_group" } else { "to everybody" }
    )]
    Disabled {
        /// The setting: 1 or 2.
        value: u32,
    },
    /// Something else forbids it.
    #[error(
        "io_uring is forbidden here, though kernel.io_uring_disabled is not set: a seccomp filter (as \
         containers have by default) or a security module; allow io_uring_setup, io_uring_enter and \
         io_uring_register, or use the readiness driver"
    )]
    Forbidden,
    /// No memory for the queues.
    #[error(
        "no memory for an io_uring's queues; raise the memory limit of the control group, or \
         RLIMIT_MEMLOCK (`ulimit -l`), which some kernels charge them to"
    )]
    Memory,
    /// No descriptor for the ring.
    #[error("no descriptor left for an io_uring; raise RLIMIT_NOFILE (`ulimit -n`)")]
    Descriptors,
    /// The table of direct descriptors cannot be had.
    #[error(
        "a table of {slots} direct descriptors cannot be registered ({}); RLIMIT_NOFILE bounds it \
         for each ring: raise it (`ulimit -n`), or use more shards of fewer slots",
        io::Error::from_raw_os_error(*.code)
    )]
    Table {
        /// The size asked for.
        slots: u32,
        /// `errno`.
        code: i32,
    },
    /// The ring of buffers cannot be had.
    #[error(
        "a ring of {count} buffers cannot be registered ({}); it has 32,768 entries at most: ask \
         for fewer, or for none (no streams)",
        io::Error::from_raw_os_error(*.code)
    )]
    Buffers {
        /// The size asked for.
        count: u32,
        /// `errno`.
        code: i32,
    },
    /// Set up, but it does not work as it should.
    #[error(
        "io_uring was set up, but does not do what it should: {what}; use the readiness driver"
    )]
    Broken {
        /// What was seen.
        what: String,
    },
    /// Anything else.
    #[error("io_uring_setup failed unexpectedly: {}", io::Error::from_raw_os_error(*.code))]
    Unexpected {
        /// `errno`.
        code: i32,
    },
}

impl Unavailable {
    /// What an error of the setup means.
    pub(super) fn of_setup(error: &io::Error) -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        match error.raw_os_error().unwrap_or(libc::EIO) {
            libc::ENOSYS => Self::Absent,
            // Flags that it does not know.
            libc::EINVAL if is_older(&release, (6, 1)) => Self::TooOld { release },
            libc::EPERM | libc::EACCES => match disabled() {
                Some(value @ 1..) => Self::Disabled { value },
                _ => Self::Forbidden,
            },
            libc::ENOMEM => Self::Memory,
            libc::EMFILE | libc::ENFILE => Self::Descriptors,
            code => Self::Unexpected { code },
        }
    }

    pub(super) fn of_table(slots: u32, error: &io::Error) -> Self {
        Self::Table { slots, code: error.raw_os_error().unwrap_or(libc::EIO) }
    }

    pub(super) fn of_buffers(count: u32, error: &io::Error) -> Self {
        Self::Buffers { count, code: error.raw_os_error().unwrap_or(libc::EIO) }
    }
}

impl From<Unavailable> for io::Error {
    fn from(unavailable: Unavailable) -> Self {
        Self::new(io::ErrorKind::Unsupported, unavailable)
    }
}

/// `kernel.io_uring_disabled` (Linux 6.6), where it can be read.
fn disabled() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// Whether a release such as `5.15.0-91-generic` comes before a version. No, where it cannot be
/// told.
fn is_older(release: &str, than: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < than,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert!(is_older("5.15.0-91-generic", (6, 1)));
        assert!(!is_older("6.1.0", (6, 1)));
        assert!(!is_older("6.18.44-fc", (6, 1)));
        assert!(is_older("6.0.19", (6, 1)));
        assert!(!is_older("strange", (6, 1)));
    }

    #[test]
    fn errors_name_the_cure() {
        let error = Unavailable::of_setup(&io::Error::from_raw_os_error(libc::ENOSYS));
        assert!(error.to_string().contains("seccomp"), "{error}");
        let error = Unavailable::of_table(9, &io::Error::from_raw_os_error(libc::EMFILE));
        assert!(error.to_string().contains("ulimit -n"), "{error}");
        assert!(Unavailable::Disabled { value: 2 }.to_string().contains("sysctl"));
    }
}
