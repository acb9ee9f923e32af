//! What the system says about TCP connections and what they cost, read-only.
//!
//! Everything here is a question to the kernel: nothing is set, shrunk,
//! flushed or destroyed. Text is parsed by the names of its columns, since
//! their order and number change between kernels. What is optional in the
//! kernel is an `Option` here; what must be there and is not is an [`Error`]
//! that names the source, the cause and the cure.
//!
//! | question | module | source |
//! |---|---|---|
//! | how full is that accept queue, and how long may it grow | [`diag`] | `NETLINK_SOCK_DIAG` |
//! | which connections are there, in which states, holding what | [`diag`] | `NETLINK_SOCK_DIAG` |
//! | did a queue overflow, was a SYN dropped | [`netstat`] | `/proc/net/netstat`, `/proc/net/snmp` |
//! | how many sockets, orphans, `TIME_WAITs`, pages | [`sockstat`] | `/proc/net/sockstat`, `sockstat6` |
//! | which kernel objects does a connection consist of | [`slab`] | `/proc/slabinfo` (root) |
//! | how much memory is left | [`meminfo`] | `/proc/meminfo` |
//! | is anybody waiting for CPU, memory or disk | [`pressure`] | `/proc/pressure` |
//! | which limits would stop us | [`limits`], [`cgroup`] | `/proc/PID/limits`, `/proc/sys`, the cgroup file systems |
//! | what has that process used | [`process`] | `/proc/PID`, CPU clocks |
//! | does memory or do files run short, ten times a second | [`watch`] | the few of these that say so, kept open |
//! | on which machine was this measured | [`machine`] | `/proc`, `/sys`; on Windows the registry |
//! | what do Windows' pools hold, which ports does it give | [`windows`] | `GetPerformanceInfo`, `netsh`, the registry |
//!
//! A counter is only worth something as a difference:
//!
//! ```no_run
//! use plimsoll_kernel::{diag, netstat::Netstat};
//!
//! # fn main() -> plimsoll_kernel::Result<()> {
//! let before = Netstat::read()?;
//! // … connect more clients than the backlog admits …
//! let after = Netstat::read()?;
//! if let Some(queue) = diag::listener(([127, 0, 0, 1], 7000).into())? {
//!     println!("{} of {} are waiting to be accepted", queue.depth, queue.limit);
//! }
//! println!("overflows: {:?}", after.delta(&before, "ListenOverflows"));
//! # Ok(())
//! # }
//! ```
//!
//! Without the feature `diag` (on by default) there is no [`diag`], and nothing of netlink is built:
//! all else is files.
//!
//! # Namespaces
//!
//! Network figures ([`netstat`], [`sockstat`], [`diag`], `net.*` in
//! [`limits`]) are those of the *calling thread's* network namespace; memory,
//! slabs and pressure are the whole machine's.
//!
//! # Other systems
//!
//! The crate compiles everywhere. On Windows [`watch`] reads the machine's memory. Where a figure has no known source, the
//! function returns [`Error::Unknown`], and what is optional is `None`.

pub mod cgroup;
#[cfg(feature = "diag")]
pub mod diag;
pub mod limits;
pub mod machine;
pub mod meminfo;
pub mod netstat;
pub mod pressure;
pub mod process;
pub mod slab;
pub mod sockstat;
mod source;
mod system;
pub mod watch;
pub mod windows;

use std::io;
use std::path::PathBuf;

/// What could not be learnt, why, and what would help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the kernel could not be read.
    #[error("cannot read {}: {cause}; {cure}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        cause: io::Error,
        /// What to do about it.
        cure: &'static str,
    },
    /// A file of the kernel was read, and is not what this crate knows.
    #[error(
        "{} is not in a form known here: {why}; this kernel may be newer than this program",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was expected or found.
        why: String,
    },
    /// The kernel refused or broke off a `sock_diag` request.
    #[error("sock_diag cannot {doing}: {cause}; {cure}")]
    Diag {
        /// What was asked of it.
        doing: &'static str,
        /// What the kernel answered.
        cause: io::Error,
        /// What to do about it.
        cure: &'static str,
    },
    /// There is no such process, or it ended while it was looked at.
    #[error("there is no process {pid}: it has ended, or runs in another pid namespace")]
    NoProcess {
        /// The process that was asked for.
        pid: u32,
    },
    /// This system has no source for the figure.
    #[error("{what}: not known on this system; Linux has it")]
    Unknown {
        /// The figure, or where Linux keeps it.
        what: String,
    },
}

/// A result whose error says what could not be learnt.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn malformed(path: &str, why: impl Into<String>) -> Self {
        Self::Malformed { path: path.into(), why: why.into() }
    }
}
