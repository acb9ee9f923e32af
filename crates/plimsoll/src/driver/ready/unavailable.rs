//! Why there is no poll, and what to do about it.

use std::io;

/// Why readiness cannot be used here. The text names the cause and the cure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// No descriptor for the epoll or kqueue, or for what wakes it.
    #[error(
        "no descriptor left for an epoll or kqueue, and what wakes it (two for each shard); raise \
         RLIMIT_NOFILE (`ulimit -n`)"
    )]
    Descriptors,
    /// No memory for it.
    #[error("no memory for an epoll or kqueue; raise the memory limit of the control group")]
    Memory,
    /// More slots than events can name: on systems of 32 bits.
    #[error("{asked} slots in one driver: it can name {most}; use more shards of fewer slots")]
    Slots {
        /// The number asked for.
        asked: u32,
        /// The most there can be.
        most: u32,
    },
    /// Anything else.
    #[error("an epoll or kqueue failed unexpectedly: {}", io::Error::from_raw_os_error(*.code))]
    Unexpected {
        /// `errno`.
        code: i32,
    },
}

impl Unavailable {
    /// What an error of the setup means.
    pub(super) fn of_setup(error: &io::Error) -> Self {
        match super::system::code(error) {
            // EMFILE also where `fs.epoll.max_user_instances` is reached, on old kernels.
            libc::EMFILE | libc::ENFILE => Self::Descriptors,
            libc::ENOMEM | libc::ENOSPC => Self::Memory,
            code => Self::Unexpected { code },
        }
    }
}

impl From<Unavailable> for io::Error {
    fn from(unavailable: Unavailable) -> Self {
        Self::new(io::ErrorKind::Unsupported, unavailable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_cure() {
        let error = Unavailable::of_setup(&io::Error::from_raw_os_error(libc::EMFILE));
        assert!(error.to_string().contains("ulimit -n"), "{error}");
        let error = Unavailable::of_setup(&io::Error::from_raw_os_error(libc::ENOMEM));
        assert!(error.to_string().contains("control group"), "{error}");
    }
}
