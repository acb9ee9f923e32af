//! System calls, with their error numbers.

#![allow(unsafe_code, reason = "bytes being sent are named without their lease")]

use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, Shutdown, connect as connect_to, getpeername, recv,
    send as send_one, sendmsg, shutdown, sockopt,
};

use crate::buffer::{Memory, Span};
use crate::driver::MAX_SPANS;
use crate::driver::refuse::QUIETLY;

/// The error number.
pub(super) fn code(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Receives what is there, at most what there is room for; 0 is the end of the stream.
#[inline]
pub(super) fn receive(socket: &OwnedFd, room: &mut [u8]) -> Result<usize, i32> {
    retry_on_intr(|| recv(socket, &mut *room, RecvFlags::empty()))
        .map(|(_, count)| count)
        .map_err(Errno::raw_os_error)
}

/// Whether there is a byte, or the end. An error that waits is used up by this.
pub(super) fn peek(socket: &OwnedFd) -> Result<(), i32> {
    let mut byte = [0u8];
    retry_on_intr(|| recv(socket, &mut byte, RecvFlags::PEEK))
        .map(drop)
        .map_err(Errno::raw_os_error)
}

/// Sends what the kernel takes of the spans, in order.
#[inline]
pub(super) fn send(socket: &OwnedFd, memory: &Memory, spans: &[Span]) -> Result<usize, i32> {
    let bytes_of = |span: Span| -> &[u8] {
        let start = memory.start_of_span(span);
        // SAFETY: the part lies inside the mapping (`start_of_span` has checked it), whose bytes
        // are initialised, and `memory` outlives this call. Whoever posted the send changes none
        // of them until it has completed: the contract of `Driver::send`.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), span.len as usize) }
    };
    let sent = if let [span] = spans {
        retry_on_intr(|| send_one(socket, bytes_of(*span), QUIETLY))
    } else {
        let mut parts = [IoSlice::new(&[]); MAX_SPANS];
        for (part, span) in parts.iter_mut().zip(spans) {
            *part = IoSlice::new(bytes_of(*span));
        }
        let parts = &parts[..spans.len().min(MAX_SPANS)];
        retry_on_intr(|| sendmsg(socket, parts, &mut SendAncillaryBuffer::default(), QUIETLY))
    };
    sent.map_err(Errno::raw_os_error)
}

/// Begins to connect.
pub(super) fn connect(socket: &OwnedFd, remote: SocketAddr) -> Result<(), i32> {
    connect_to(socket, &remote).map_err(Errno::raw_os_error)
}

/// How a connect has ended: 0, or a negative error number; `None` where it has not.
pub(super) fn connected(socket: &OwnedFd) -> Option<i32> {
    match sockopt::socket_error(socket) {
        Ok(Ok(())) => match getpeername(socket) {
            Ok(_) => Some(0),
            Err(Errno::NOTCONN) => None,
            Err(error) => Some(-error.raw_os_error()),
        },
        Ok(Err(error)) | Err(error) => Some(-error.raw_os_error()),
    }
}

/// Sends our end of stream. 0, or a negative error number.
pub(super) fn end_stream(socket: &OwnedFd) -> i32 {
    shutdown(socket, Shutdown::Write).map_or_else(|error| -error.raw_os_error(), |()| 0)
}

/// Has the close that follows reset the connection and free its queues.
pub(super) fn reset_on_close(socket: &OwnedFd) {
    // It cannot fail on a TCP socket; if it did, the close would be orderly.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

/// Whether a connection that was just accepted has a peer: one that was reset in the accept queue has
/// none.
pub(super) fn has_peer(socket: &OwnedFd) -> bool {
    getpeername(socket) != Err(Errno::NOTCONN)
}

/// Takes a connection from the backlog. It does not block.
pub(super) fn accept(listener: &TcpListener) -> Result<(OwnedFd, SocketAddr), i32> {
    retry_on_intr(|| accept_quietly(listener)).map_err(Errno::raw_os_error)
}

#[cfg(not(target_vendor = "apple"))]
fn accept_quietly(listener: &TcpListener) -> Result<(OwnedFd, SocketAddr), Errno> {
    use rustix::net::{SocketFlags, acceptfrom_with};

    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, peer) = acceptfrom_with(listener, flags)?;
    // None where the connection was gone by then, on some systems.
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(Errno::CONNABORTED)?;
    Ok((socket, peer))
}

/// Darwin has no `accept4(2)`; `socket2` sets what it would, and `SO_NOSIGPIPE`.
#[cfg(target_vendor = "apple")]
fn accept_quietly(listener: &TcpListener) -> Result<(OwnedFd, SocketAddr), Errno> {
    let errno = |error: io::Error| Errno::from_raw_os_error(code(&error));
    let (socket, peer) = socket2::SockRef::from(listener).accept().map_err(errno)?;
    socket.set_nonblocking(true).map_err(errno)?;
    let peer = peer.as_socket().ok_or(Errno::CONNABORTED)?;
    Ok((socket.into(), peer))
}
