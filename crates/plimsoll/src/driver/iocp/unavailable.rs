//! Why there is no completion port, and what to do about it.

use std::io;

/// Why completion ports cannot be used here. The text names the cause and the cure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// A call of the setup failed.
    #[error(
        "{doing} failed: {}; the network of this system does not work, or it is short of memory",
        io::Error::from_raw_os_error(*.code)
    )]
    Setup {
        /// What was being done.
        doing: &'static str,
        /// What `WSAGetLastError` gave.
        code: i32,
    },
    /// The provider of TCP sockets has no such call: not Microsoft's own, or wrapped by a program
    /// that filters.
    #[error(
        "the provider of TCP sockets has no {call}: remove the layered service provider (`netsh \
         winsock show catalog` names it)"
    )]
    Provider {
        /// The call.
        call: &'static str,
    },
}

impl From<Unavailable> for io::Error {
    fn from(unavailable: Unavailable) -> Self {
        Self::new(io::ErrorKind::Unsupported, unavailable)
    }
}
