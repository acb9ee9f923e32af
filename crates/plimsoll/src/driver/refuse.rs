//! Turning a connection away: shared by the drivers whose sockets are descriptors.

use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::SockRef;

/// What is read and thrown away, at most, so that the message is not overtaken by a reset: a socket
/// that is closed with unread bytes resets (RFC 2525 §2.17).
const READ_AWAY: usize = 64 << 10;

/// A send to a connection that is gone is an error, not a signal.
#[cfg(not(target_vendor = "apple"))]
pub(super) const QUIETLY: SendFlags = SendFlags::NOSIGNAL;
/// Said of each socket there, as it is made (`SO_NOSIGPIPE`).
#[cfg(target_vendor = "apple")]
pub(super) const QUIETLY: SendFlags = SendFlags::empty();

/// Sends what the kernel takes of `message` at once, and ends the stream; with an empty message the
/// connection will be reset when the socket is closed. Errors are those of a client that has gone.
pub(super) fn refuse(socket: &impl AsFd, message: &[u8]) {
    if message.is_empty() {
        let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        return;
    }
    let _ = send(socket, message, SendFlags::DONTWAIT | QUIETLY);
    let _ = SockRef::from(socket).shutdown(Shutdown::Write);
    let mut away = [0; 4096];
    for _ in 0..READ_AWAY / away.len() {
        if !recv(socket, &mut away[..], RecvFlags::DONTWAIT).is_ok_and(|(count, _)| count > 0) {
            return;
        }
    }
}
