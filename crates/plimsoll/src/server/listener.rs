//! Opening the listener, and what the system allows in descriptors.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

use socket2::{Domain, Protocol, Socket, Type};

use super::Error;
use crate::budget::Limits;

/// Opens the one listener. What connections inherit from it is set here, once: Linux copies
/// `TCP_NODELAY` and the buffer sizes to what it accepts.
pub(super) fn open(address: &str, limits: &Limits) -> Result<TcpListener, Error> {
    let resolved = resolve(address)?;
    let opened = bind(resolved, limits);
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => Error::InUse { address: address.into() },
        io::ErrorKind::AddrNotAvailable => Error::Address {
            address: address.into(),
            cause: "no interface of this machine has it".into(),
        },
        _ => Error::Listen { address: address.into(), source },
    })
}

fn resolve(address: &str) -> Result<SocketAddr, Error> {
    let wrong = |cause: String| Error::Address { address: address.into(), cause };
    let mut found = address.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    found.next().ok_or_else(|| wrong("the name has no address".into()))
}

fn bind(address: SocketAddr, limits: &Limits) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Restarting must not wait for the TIME_WAITs of the last run.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_tcp_nodelay(true)?;
    if let Some(bytes) = limits.kernel_send {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = limits.kernel_receive {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(limits.backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// How many descriptors this process may have: it bounds each table of direct descriptors too.
pub(super) fn descriptor_limit() -> u64 {
    #[cfg(unix)]
    {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        limit.current.unwrap_or(u64::MAX)
    }
    #[cfg(not(unix))]
    {
        u64::MAX
    }
}

/// How many files the system has left, as `fs.file-nr` tells; unbounded where it does not.
pub(super) fn files_available() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/sys/fs/file-nr") else { return u64::MAX };
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(used)), Some(Ok(_)), Some(Ok(most))) => most.saturating_sub(used),
        _ => u64::MAX,
    }
}
