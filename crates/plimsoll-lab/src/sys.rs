//! The few system calls that neither std, rustix nor socket2 offers as safe functions.

#![allow(unsafe_code, reason = "a socket option without a safe wrapper, and a hook before exec")]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What a child process does on SIGINT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// Ignores it: the parent decides when the child ends.
    Ignored,
    /// As it pleases; but it gets a process group of its own, so that Ctrl-C on the terminal
    /// reaches the parent only.
    OwnGroup,
}

/// Ties a child to this process: it is killed when the *thread* that spawns it ends
/// (`PR_SET_PDEATHSIG`), so spawn from a thread that outlives the child. Its soft limit on
/// descriptors is raised to the hard one.
pub(crate) fn tie_to_parent(command: &mut Command, interrupt: Interrupt) {
    if interrupt == Interrupt::OwnGroup {
        command.process_group(0);
    }
    let parent = rustix::process::getpid();
    // SAFETY: the closure runs in the child between fork and exec, where only
    // async-signal-safe functions may be called. prctl, getppid, signal, getrlimit and setrlimit
    // are plain system calls; the closure neither allocates nor locks, and its errors are bare
    // errno values. It captures only two `Copy` values.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            if rustix::process::getppid() != Some(parent) {
                // The parent died before the line above.
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            if interrupt == Interrupt::Ignored {
                libc::signal(libc::SIGINT, libc::SIG_IGN);
            }
            raise_descriptor_limit();
            Ok(())
        });
    }
}

/// Raises this process' soft limit on descriptors to its hard one. A refusal leaves it as it is.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    if now.current != now.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    }
}

/// `IP_BIND_ADDRESS_NO_PORT`: a `bind` to port 0 chooses the address only, and `connect` chooses
/// the port, so that one port serves many destinations. Without it a bound source address has
/// *fewer* connections than an unbound one. It holds for IPv6 sockets too (`ip(7)`).
pub(crate) fn bind_address_no_port(socket: &impl AsRawFd) -> io::Result<()> {
    set_ip_option(socket, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// `IP_LOCAL_PORT_RANGE` (Linux 6.3): the ports that `connect` may choose from, within the
/// namespace's range.
///
/// Even the whole range makes a difference: without this option the kernel tries all even ports
/// before any odd one, so that each connect after the first half of the range walks 14,000 taken
/// ports (`__inet_hash_connect`; measured: 28,232 connections from one address take 55 s instead of
/// 1).
pub(crate) fn local_port_range(socket: &impl AsRawFd, first: u16, last: u16) -> io::Result<()> {
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    let range = (u32::from(last) << 16) | u32::from(first);
    set_ip_option(socket, IP_LOCAL_PORT_RANGE, range.cast_signed())
}

fn set_ip_option(socket: &impl AsRawFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `socket` is borrowed; the pointer and the length
    // describe `value`, which outlives the call, and the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
