//! Sockets for outgoing connections.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use socket2::{Domain, Protocol, Socket, Type};

/// A socket to connect to `remote` with, bound to `source` if there is one, without Nagle's delay.
///
/// # Errors
///
/// EMFILE, ENFILE, ENOBUFS; EADDRNOTAVAIL where `source` is no address of this machine.
pub(super) fn socket(remote: SocketAddr, source: Option<SocketAddr>) -> io::Result<OwnedFd> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new_raw(Domain::for_address(remote), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        if source.port() == 0 {
            // The port is chosen when the connection is made, so that the range is one for each
            // pair of addresses and not one for all.
            bind_without_port(&socket)?;
        }
        socket.bind(&source.into())?;
    }
    Ok(socket.into())
}

fn bind_without_port(socket: &Socket) -> io::Result<()> {
    let yes: libc::c_int = 1;
    // SAFETY: the kernel reads an int from `yes`; the descriptor is open, for it is borrowed.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const yes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The error number of the last system call.
pub(super) fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
