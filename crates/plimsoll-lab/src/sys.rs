//! What the experiments need of the system beyond std and socket2, once for each system, behind the
//! same names: workers tied to their parent, sockets, waiting for them, clocks.
//!
//! | | Linux | Windows |
//! |---|---|---|
//! | a child ends with its parent | `PR_SET_PDEATHSIG` | at the end of its stdin |
//! | a child is asked to end | SIGTERM | its stdin ends |
//! | waiting for sockets | `poll(2)` | `WSAPoll` |
//! | room for sockets | `RLIMIT_NOFILE` | handles have no limit that is met: 16 million |
//! | a source address without its port | `IP_BIND_ADDRESS_NO_PORT` | – |

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod pinned;
#[cfg(windows)]
mod windows;

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

#[cfg(target_os = "linux")]
pub use linux::raise_descriptor_limit;
#[cfg(target_os = "linux")]
pub(crate) use linux::{
    OneCpu, Poll, accept, ask_to_end, bind_source, connect_again, page_bytes, room, room_of_worker,
    spread_ports, thread_cpu, tie_to_parent,
};
#[cfg(target_os = "linux")]
pub(crate) use pinned::measure as measure_pinned;
#[cfg(windows)]
pub use windows::raise_descriptor_limit;
#[cfg(windows)]
pub(crate) use windows::{
    OneCpu, Poll, accept, ask_to_end, bind_source, connect_again, page_bytes, room, room_of_worker,
    spread_ports, thread_cpu, tie_to_parent,
};

/// What a child process does on Ctrl-C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// Ignores it: the parent decides when the child ends.
    Ignored,
    /// As it pleases; but it gets a process group of its own, so that Ctrl-C on the terminal
    /// reaches the parent only.
    OwnGroup,
}

/// What is waited for on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Something to read, or an end.
    Read,
    /// Room to write, or the end of a connect.
    Write,
    /// Either.
    Both,
}

/// What became of a held connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Open in both directions.
    Alive,
    /// The other end has sent a FIN.
    Closed,
    /// Reset, or failed otherwise.
    Reset,
}

/// A stream socket towards `target` that does not block and no child inherits.
pub(crate) fn stream_socket(target: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(target);
    #[cfg(unix)]
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    #[cfg(not(unix))]
    let socket = {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket
    };
    Ok(socket)
}
