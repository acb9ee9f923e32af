//! Sockets for outgoing connections.

#![cfg_attr(target_os = "linux", allow(unsafe_code, reason = "a socket option that no crate has"))]

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};

/// A socket to connect to `remote` with, bound to `source` if there is one, without Nagle's delay.
/// It does not block.
///
/// # Errors
///
/// EMFILE, ENFILE, ENOBUFS; EADDRNOTAVAIL where `source` is no address of this machine.
pub(super) fn socket(remote: SocketAddr, source: Option<SocketAddr>) -> io::Result<OwnedFd> {
    let socket = new(Domain::for_address(remote))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        if source.port() == 0 {
            bind_without_port(&socket)?;
        }
        socket.bind(&source.into())?;
    }
    Ok(socket.into())
}

/// All in one system call.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
fn new(domain: Domain) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    Socket::new_raw(domain, kind, Some(Protocol::TCP))
}

/// `new` sets what else has no flag: on Darwin `SO_NOSIGPIPE`, too.
#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn new(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Has the port chosen when the connection is made, so that the range is one for each pair of
/// addresses and not one for all.
#[cfg(target_os = "linux")]
fn bind_without_port(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsRawFd;

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

/// Elsewhere there is no such option: the port is chosen now.
#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "it may fail on Linux")]
fn bind_without_port(_: &Socket) -> io::Result<()> {
    Ok(())
}

/// The error number of the last system call.
#[cfg(target_os = "linux")]
pub(super) fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
