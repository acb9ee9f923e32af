//! Operations that refer to no memory, and what all operations aim at.

use std::os::fd::RawFd;

use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, Fixed};

/// The connection that an operation aims at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// An index into the ring's own table.
    Direct(u32),
    /// A descriptor of the process.
    Plain(RawFd),
}

impl Target {
    /// How an operation's builder takes it; [`Target::mark`] must follow.
    pub(super) fn fd(self) -> Fd {
        match self {
            Self::Direct(index) => Fd(index as RawFd),
            Self::Plain(fd) => Fd(fd),
        }
    }

    /// Tells a built operation what the number given by [`Target::fd`] is.
    pub(super) fn mark(self, entry: Entry) -> Entry {
        match self {
            Self::Direct(_) => entry.flags(Flags::FIXED_FILE),
            Self::Plain(_) => entry,
        }
    }
}

/// An operation that refers to no memory of ours: safe to submit whatever happens after.
/// (A receive into provided buffers refers to those through their own registration.)
pub(super) struct Bare(Entry);

impl Bare {
    pub(super) fn into_entry(self) -> Entry {
        self.0
    }

    /// The same, without a completion when it succeeds.
    pub(super) fn quiet(self) -> Self {
        Self(self.0.flags(Flags::SKIP_SUCCESS))
    }
}

/// Completes once when the socket is readable, at its end, or has failed: 256 bytes of kernel
/// memory meanwhile.
#[inline]
pub(super) fn park(target: Target, user_data: u64) -> Bare {
    // POLLERR and POLLHUP are always watched for.
    let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
    let entry = opcode::PollAdd::new(target.fd(), events).build();
    Bare(target.mark(entry).user_data(user_data))
}

/// Receives again and again into the buffers of `group`.
#[inline]
pub(super) fn stream(target: Target, group: u16, user_data: u64) -> Bare {
    let entry = opcode::RecvMulti::new(target.fd(), group).build();
    Bare(target.mark(entry).user_data(user_data))
}

/// Ends the poll that was posted with the user data `of`. Cheaper than [`cancel`], which looks
/// among the workers first.
#[inline]
pub(super) fn unpark(of: u64, user_data: u64) -> Bare {
    Bare(opcode::PollRemove::new(of).build().user_data(user_data)).quiet()
}

/// Ends whatever was posted with the user data `of`.
#[inline]
pub(super) fn cancel(of: u64, user_data: u64) -> Bare {
    Bare(opcode::AsyncCancel::new(of).build().user_data(user_data)).quiet()
}

/// Sends nothing, at once: fails where the connection was reset.
#[inline]
pub(super) fn touch(target: Target, user_data: u64) -> Bare {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    let entry = opcode::Send::new(target.fd(), std::ptr::null(), 0).flags(flags).build();
    Bare(target.mark(entry).user_data(user_data))
}

/// Takes the connection out of the table, or closes the descriptor. The kernel closes the
/// connection when the last operation on it has ended.
#[inline]
pub(super) fn close(target: Target, user_data: u64) -> Bare {
    let entry = match target {
        Target::Direct(index) => opcode::Close::new(Fixed(index)).build(),
        Target::Plain(fd) => opcode::Close::new(Fd(fd)).build(),
    };
    Bare(entry.user_data(user_data))
}

/// Sends our end of stream. Always carried out by a worker thread of the kernel (`io_uring/net.c`
/// sets `REQ_F_FORCE_ASYNC`): 12 µs, measured on Linux 6.18.
#[inline]
pub(super) fn shutdown(target: Target, user_data: u64) -> Bare {
    let entry = opcode::Shutdown::new(target.fd(), libc::SHUT_WR).build();
    Bare(target.mark(entry).user_data(user_data))
}
