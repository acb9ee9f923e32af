//! One dump: a request, and messages until the kernel says it is done.

use std::io;

use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN, NetlinkBuffer};
use netlink_packet_sock_diag::constants::SOCK_DIAG_BY_FAMILY;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

use super::wire::Record;
use crate::{Error, Result};

/// The kernel fills at most 32 KiB per read, as long as there is room for it
/// (`netlink_recvmsg`, `max_recvmsg_len`).
const BUFFER_BYTES: usize = 64 * 1024;

/// Sends the request over a socket of its own and hands each record to `each`.
///
/// The socket costs a few µs, and spares us a state that outlives an error.
pub(super) fn dump(request: &[u8], each: &mut dyn FnMut(&Record<'_>)) -> Result<()> {
    let socket = Socket::new(NETLINK_SOCK_DIAG).map_err(|cause| failed("open a socket", cause))?;
    let kernel = SocketAddr::new(0, 0);
    socket.connect(&kernel).map_err(|cause| failed("reach the kernel", cause))?;
    again(|| socket.send(request, 0)).map_err(|cause| failed("send a request", cause))?;

    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        buffer.clear();
        let length = again(|| socket.recv(&mut buffer, 0))
            .map_err(|cause| failed("receive the list", cause))?;
        if length == 0 || length > buffer.len() {
            let cause = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(failed("receive the list whole", cause));
        }
        if read_messages(&buffer, each)? {
            return Ok(());
        }
    }
}

/// Goes through the messages of one read; true after the last of the dump.
fn read_messages(mut bytes: &[u8], each: &mut dyn FnMut(&Record<'_>)) -> Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkBuffer::new_checked(&bytes)
            .map_err(|error| failed("read a message", broken(error)))?;
        let length = message.length() as usize;
        match message.message_type() {
            NLMSG_DONE => {
                return outcome(message.payload()).map(|()| true);
            }
            NLMSG_ERROR => {
                return outcome(message.payload()).map(|()| true);
            }
            NLMSG_OVERRUN => {
                let cause = io::Error::from_raw_os_error(libc::ENOBUFS);
                return Err(failed("receive the list whole", cause));
            }
            SOCK_DIAG_BY_FAMILY => match Record::new(message.payload()) {
                Some(record) => each(&record),
                None => return Err(failed("read a socket's record", broken("too short"))),
            },
            // Nothing else is sent here; NLMSG_NOOP is to be skipped.
            _ => {}
        }
        // Messages are padded to 4 bytes; the last may lack its padding.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(false)
}

/// `NLMSG_DONE` and `NLMSG_ERROR` begin with an errno, negated, or 0.
fn outcome(payload: &[u8]) -> Result<()> {
    let Some(code) = payload.first_chunk::<4>() else { return Ok(()) };
    match i32::from_ne_bytes(*code) {
        0 => Ok(()),
        code => Err(failed("list TCP sockets", io::Error::from_raw_os_error(code.wrapping_neg()))),
    }
}

/// Repeats a call that a signal interrupted.
fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn broken(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

fn failed(doing: &'static str, cause: io::Error) -> Error {
    let cure = match cause.raw_os_error() {
        // No handler for the family or protocol: the modules are not there.
        Some(libc::ENOENT | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
            "load the kernel's tcp_diag (`modprobe tcp_diag`, CONFIG_INET_TCP_DIAG)"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "a sandbox forbids netlink: allow NETLINK_SOCK_DIAG in it, or run outside"
        }
        Some(libc::EMFILE | libc::ENFILE) => {
            "no descriptor is left: raise `ulimit -n` or fs.file-max"
        }
        Some(libc::ENOBUFS | libc::ENOMEM) => "the kernel is out of memory: ask again later",
        _ => "ask again; if it stays so, this kernel's sock_diag is not the one known here",
    };
    Error::Diag { doing, cause, cure }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_messages_are_errors_not_panics() {
        let mut header = vec![0_u8; 16];
        header[0] = 16;
        for length in 1..16 {
            assert!(read_messages(&header[..length], &mut |_| ()).is_err());
        }
        // A record without a body, a length beyond the end, a length of 0.
        header[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        assert!(read_messages(&header, &mut |_| ()).is_err());
        header[0] = 200;
        assert!(read_messages(&header, &mut |_| ()).is_err());
        header[0] = 0;
        assert!(read_messages(&header, &mut |_| ()).is_err());
    }

    #[test]
    fn an_errno_becomes_an_error_with_a_cure() {
        let error = outcome(&(-libc::ENOENT).to_ne_bytes()).unwrap_err();
        assert!(error.to_string().contains("tcp_diag"), "{error}");
        assert!(outcome(&0_i32.to_ne_bytes()).is_ok());
        assert!(outcome(&i32::MIN.to_ne_bytes()).is_err());
    }
}
