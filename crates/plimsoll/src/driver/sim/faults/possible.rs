//! What can fail, how, and why.
//!
//! From the manual pages (accept(2), connect(2), recv(2), send(2), shutdown(2), close(2),
//! `io_uring_enter(2)`, `epoll_ctl(2)`), the kernel's sources (`net/ipv4/tcp*.c`, `net/ipv4/icmp.c`,
//! `io_uring/*.c`) and Microsoft's pages on `AcceptEx`, `ConnectEx`, `WSARecv`, `WSASend`,
//! `shutdown`, `DisconnectEx` and `CreateIoCompletionPort`. Not in it: what only a caller's own
//! mistake brings (EBADF, EFAULT, ENOTSOCK, EOPNOTSUPP, and the like), which the contract rules out.

use super::{Effect, Operation, Possible, errno};
use crate::driver::Fault;
use crate::driver::sim::SystemErrors;

const fn linux(
    operation: Operation,
    code: i32,
    fault: Fault,
    effect: Effect,
    why: &'static str,
) -> Possible {
    Possible { operation, fault, code, effect, why, system: SystemErrors::Linux }
}

const fn windows(
    operation: Operation,
    code: i32,
    fault: Fault,
    effect: Effect,
    why: &'static str,
) -> Possible {
    Possible { operation, fault, code, effect, why, system: SystemErrors::Windows }
}

/// What can fail, how, and why: what the simulation injects, and the only such list.
#[rustfmt::skip]
pub const POSSIBLE: &[Possible] = {
    use Effect::{DropsQueued, Kills, None};
    use Operation::{
        Abort, Accept, Adopt, Close, Connect, HalfClose, Park, Receive, Send, SendAtOnce, Stream,
    };
    #[allow(clippy::wildcard_imports, reason = "a module of numbers, all of them used here")]
    use errno::*;
    &[
        linux(Accept, EMFILE, Fault::ProcessDescriptors, None, "RLIMIT_NOFILE is reached"),
        linux(Accept, ENFILE, Fault::SystemDescriptors, None, "fs.file-max, or a full table"),
        linux(Accept, ECONNABORTED, Fault::Aborted, DropsQueued, "gone before it was accepted"),
        linux(Accept, EPROTO, Fault::Aborted, DropsQueued, "a protocol error in the queue"),
        linux(Accept, ENOBUFS, Fault::Buffers, None, "no memory within the socket limits"),
        linux(Accept, ENOMEM, Fault::Memory, None, "no memory for socket, inode or request"),
        linux(Accept, EHOSTUNREACH, Fault::Unreachable, DropsQueued, "Linux passes ICMP on"),
        linux(Accept, ENETUNREACH, Fault::Unreachable, DropsQueued, "Linux passes ICMP on"),
        linux(Accept, ENETDOWN, Fault::Unreachable, DropsQueued, "Linux passes it on"),
        linux(Accept, EHOSTDOWN, Fault::Unreachable, DropsQueued, "Linux passes ICMP on"),
        linux(Accept, ENONET, Fault::Unexpected, DropsQueued, "Linux passes ICMP on"),
        linux(Accept, ENOPROTOOPT, Fault::Unexpected, DropsQueued, "Linux passes ICMP on"),
        linux(Accept, ETIMEDOUT, Fault::TimedOut, DropsQueued, "seen on various kernels"),
        linux(Accept, EPERM, Fault::Unexpected, DropsQueued, "firewall rules forbid it"),
        linux(Accept, EACCES, Fault::Unexpected, None, "a security module forbids it"),
        linux(Accept, EINTR, Fault::Cancelled, None, "a worker of the kernel was interrupted"),

        linux(Adopt, EMFILE, Fault::ProcessDescriptors, None, "the table of the ring is too short"),
        linux(Adopt, ENFILE, Fault::SystemDescriptors, None, "the table of files is full"),
        linux(Adopt, ENOMEM, Fault::Memory, None, "no memory to register the file"),
        linux(Adopt, ENOSPC, Fault::Watches, None, "fs.epoll.max_user_watches is reached"),

        linux(Connect, ECONNREFUSED, Fault::Refused, None, "answered with a reset"),
        linux(Connect, ECONNRESET, Fault::Reset, None, "reset as it began"),
        linux(Connect, ETIMEDOUT, Fault::TimedOut, None, "no answer to any SYN"),
        linux(Connect, ENETUNREACH, Fault::Unreachable, None, "no route"),
        linux(Connect, EHOSTUNREACH, Fault::Unreachable, None, "ICMP host unreachable"),
        linux(Connect, ENETDOWN, Fault::Unreachable, None, "the interface is down"),
        linux(Connect, EHOSTDOWN, Fault::Unreachable, None, "ICMP, or no answer to ARP"),
        linux(Connect, EADDRNOTAVAIL, Fault::NoPorts, None, "all ports of the source in use"),
        linux(Connect, EADDRINUSE, Fault::NoPorts, None, "the bind found no port"),
        linux(Connect, EMFILE, Fault::ProcessDescriptors, None, "RLIMIT_NOFILE is reached"),
        linux(Connect, ENFILE, Fault::SystemDescriptors, None, "fs.file-max, or a full table"),
        linux(Connect, ENOBUFS, Fault::Buffers, None, "the SYN found no buffer"),
        linux(Connect, ENOMEM, Fault::Memory, None, "no memory for the socket"),
        linux(Connect, EPERM, Fault::Unexpected, None, "a firewall dropped our own SYN"),
        linux(Connect, EACCES, Fault::Unexpected, None, "a broadcast address, or a security module"),
        linux(Connect, EAFNOSUPPORT, Fault::Unexpected, None, "no IPv6 in this kernel"),
        linux(Connect, EINVAL, Fault::Unexpected, None, "an address that cannot be connected to"),
        linux(Connect, EAGAIN, Fault::WouldBlock, None, "not enough of the routing cache"),
        linux(Connect, EINTR, Fault::Cancelled, None, "a worker of the kernel was interrupted"),

        linux(Park, ENOMEM, Fault::Memory, None, "no memory for the poll entry"),
        linux(Park, ENOSPC, Fault::Watches, None, "fs.epoll.max_user_watches is reached"),
        linux(Park, EINTR, Fault::Cancelled, None, "a worker of the kernel was interrupted"),

        linux(Receive, ECONNRESET, Fault::Reset, Kills, "the peer has reset"),
        linux(Receive, EPIPE, Fault::Reset, Kills, "reset after the peer's end of stream"),
        linux(Receive, ENOTCONN, Fault::Reset, Kills, "reset, and told to another before"),
        linux(Receive, ECONNABORTED, Fault::Aborted, Kills, "destroyed from outside (ss -K)"),
        linux(Receive, ETIMEDOUT, Fault::TimedOut, Kills, "keep-alive or user time-out"),
        linux(Receive, EHOSTUNREACH, Fault::Unreachable, Kills, "ICMP while retransmitting"),
        linux(Receive, ENETUNREACH, Fault::Unreachable, Kills, "ICMP while retransmitting"),
        linux(Receive, ECONNREFUSED, Fault::Refused, Kills, "ICMP port unreachable"),
        linux(Receive, ENOBUFS, Fault::Buffers, None, "no memory within the limits"),
        linux(Receive, ENOMEM, Fault::Memory, None, "no memory for the request"),
        linux(Receive, EAGAIN, Fault::WouldBlock, None, "ready, and then not"),
        linux(Receive, EINTR, Fault::Cancelled, None, "a worker of the kernel was interrupted"),
        linux(Receive, EACCES, Fault::Unexpected, None, "a security module forbids it"),

        linux(Stream, ECONNRESET, Fault::Reset, Kills, "the peer has reset"),
        linux(Stream, EPIPE, Fault::Reset, Kills, "reset after the peer's end of stream"),
        linux(Stream, ENOTCONN, Fault::Reset, Kills, "reset, and told to another before"),
        linux(Stream, ECONNABORTED, Fault::Aborted, Kills, "destroyed from outside (ss -K)"),
        linux(Stream, ETIMEDOUT, Fault::TimedOut, Kills, "keep-alive or user time-out"),
        linux(Stream, EHOSTUNREACH, Fault::Unreachable, Kills, "ICMP while retransmitting"),
        linux(Stream, ENETUNREACH, Fault::Unreachable, Kills, "ICMP while retransmitting"),
        linux(Stream, ENOBUFS, Fault::Buffers, None, "no memory within the limits"),
        linux(Stream, ENOMEM, Fault::Memory, None, "no memory for the request"),
        linux(Stream, EAGAIN, Fault::WouldBlock, None, "ready, and then not"),
        linux(Stream, EINTR, Fault::Cancelled, None, "a worker of the kernel was interrupted"),
        linux(Stream, EACCES, Fault::Unexpected, None, "a security module forbids it"),

        linux(SendAtOnce, EAGAIN, Fault::WouldBlock, None, "no room, by some other measure"),
        linux(SendAtOnce, EPIPE, Fault::Reset, Kills, "reset, seen as a closed direction"),
        linux(SendAtOnce, ECONNRESET, Fault::Reset, Kills, "the peer has reset"),
        linux(SendAtOnce, ECONNABORTED, Fault::Aborted, Kills, "destroyed from outside (ss -K)"),
        linux(SendAtOnce, ETIMEDOUT, Fault::TimedOut, Kills, "retransmissions ran out"),
        linux(SendAtOnce, EHOSTUNREACH, Fault::Unreachable, Kills, "ICMP while retransmitting"),
        linux(SendAtOnce, ENETUNREACH, Fault::Unreachable, Kills, "ICMP while retransmitting"),
        linux(SendAtOnce, ENETDOWN, Fault::Unreachable, None, "the interface is down"),
        linux(SendAtOnce, ENOBUFS, Fault::Buffers, None, "the device's queue is full"),
        linux(SendAtOnce, ENOMEM, Fault::Memory, None, "no memory for the bytes"),
        linux(SendAtOnce, EINTR, Fault::Cancelled, None, "a worker of the kernel was interrupted"),
        linux(SendAtOnce, EPERM, Fault::Unexpected, None, "a firewall forbids it"),
        linux(SendAtOnce, EACCES, Fault::Unexpected, None, "a security module forbids it"),

        linux(Send, EPIPE, Fault::Reset, Kills, "reset, seen as a closed direction"),
        linux(Send, ECONNRESET, Fault::Reset, Kills, "the peer has reset"),
        linux(Send, ECONNABORTED, Fault::Aborted, Kills, "destroyed from outside (ss -K)"),
        linux(Send, ETIMEDOUT, Fault::TimedOut, Kills, "retransmissions ran out"),
        linux(Send, EHOSTUNREACH, Fault::Unreachable, Kills, "ICMP while retransmitting"),
        linux(Send, ENETUNREACH, Fault::Unreachable, Kills, "ICMP while retransmitting"),
        linux(Send, ENETDOWN, Fault::Unreachable, None, "the interface is down"),
        linux(Send, EAGAIN, Fault::WouldBlock, None, "ready, and then not"),
        linux(Send, ENOBUFS, Fault::Buffers, None, "the device's queue is full"),
        linux(Send, ENOMEM, Fault::Memory, None, "no memory for the bytes"),
        linux(Send, EINTR, Fault::Cancelled, None, "a worker of the kernel was interrupted"),
        linux(Send, EPERM, Fault::Unexpected, None, "a firewall forbids it"),
        linux(Send, EACCES, Fault::Unexpected, None, "a security module forbids it"),

        linux(HalfClose, ENOTCONN, Fault::Reset, Kills, "the peer was first, with a reset"),
        linux(HalfClose, ENOMEM, Fault::Memory, None, "no memory for the request"),
        linux(HalfClose, EINTR, Fault::Cancelled, None, "a worker of the kernel was interrupted"),
        linux(HalfClose, EACCES, Fault::Unexpected, None, "a security module forbids it"),

        linux(Close, EINTR, Fault::Cancelled, None, "interrupted; closed all the same"),
        linux(Close, EIO, Fault::Unexpected, None, "closed all the same"),
        linux(Close, ENOMEM, Fault::Memory, None, "no memory for the request"),
        linux(Abort, EINTR, Fault::Cancelled, None, "interrupted; closed all the same"),
        linux(Abort, EIO, Fault::Unexpected, None, "closed all the same"),
        linux(Abort, ENOMEM, Fault::Memory, None, "no memory for the request"),

        windows(Accept, WSAENOBUFS, Fault::Buffers, None, "no non-paged pool"),
        windows(Accept, WSA_NOT_ENOUGH_MEMORY, Fault::Memory, None, "no memory for the socket"),
        windows(Accept, WSAEMFILE, Fault::ProcessDescriptors, None, "no more handles"),
        windows(Accept, WSAECONNRESET, Fault::Reset, DropsQueued, "reset before it was accepted"),
        windows(Accept, WSAECONNABORTED, Fault::Aborted, DropsQueued, "gone before it was accepted"),
        windows(Accept, WSAENETDOWN, Fault::Unreachable, DropsQueued, "the network has failed"),
        windows(Accept, WSAEINVAL, Fault::Unexpected, None, "a pooled socket that is not reusable"),
        windows(Accept, WSAEACCES, Fault::Unexpected, None, "a filter driver forbids it"),

        windows(Adopt, WSAENOBUFS, Fault::Buffers, None, "no non-paged pool for the association"),
        windows(Adopt, WSAENOTCONN, Fault::Reset, None, "SO_UPDATE_ACCEPT_CONTEXT after a reset"),
        windows(Adopt, WSAEINVAL, Fault::Unexpected, None, "it is associated already"),

        windows(Connect, WSAECONNREFUSED, Fault::Refused, None, "answered with a reset"),
        windows(Connect, WSAETIMEDOUT, Fault::TimedOut, None, "no answer to any SYN"),
        windows(Connect, WSAENETUNREACH, Fault::Unreachable, None, "no route"),
        windows(Connect, WSAEHOSTUNREACH, Fault::Unreachable, None, "ICMP host unreachable"),
        windows(Connect, WSAENETDOWN, Fault::Unreachable, None, "the network has failed"),
        windows(Connect, WSAEADDRINUSE, Fault::NoPorts, None, "no dynamic port is free"),
        windows(Connect, WSAEADDRNOTAVAIL, Fault::NoPorts, None, "not an address to connect to"),
        windows(Connect, WSAENOBUFS, Fault::Buffers, None, "no non-paged pool, or no port"),
        windows(Connect, WSA_NOT_ENOUGH_MEMORY, Fault::Memory, None, "no memory for the socket"),
        windows(Connect, WSAEMFILE, Fault::ProcessDescriptors, None, "no more handles"),
        windows(Connect, WSAEACCES, Fault::Unexpected, None, "the firewall forbids it"),
        windows(Connect, WSAECONNRESET, Fault::Reset, None, "reset as it began"),

        windows(Park, WSAENOBUFS, Fault::Buffers, None, "no non-paged pool"),
        windows(Park, WSA_NOT_ENOUGH_MEMORY, Fault::Memory, None, "no memory"),
        windows(Park, WSAECONNRESET, Fault::Reset, Kills, "a zero-byte receive says it itself"),
        windows(Park, WSAENETRESET, Fault::Reset, Kills, "keep-alive found it broken"),
        windows(Park, WSAETIMEDOUT, Fault::TimedOut, Kills, "retransmissions ran out"),

        windows(Receive, WSAECONNRESET, Fault::Reset, Kills, "the peer has reset"),
        windows(Receive, WSAECONNABORTED, Fault::Aborted, Kills, "ended by this machine"),
        windows(Receive, WSAENETRESET, Fault::Reset, Kills, "keep-alive found it broken"),
        windows(Receive, WSAETIMEDOUT, Fault::TimedOut, Kills, "retransmissions ran out"),
        windows(Receive, WSAENOTCONN, Fault::Reset, Kills, "not connected any more"),
        windows(Receive, WSAENETDOWN, Fault::Unreachable, Kills, "the network has failed"),
        windows(Receive, WSAENOBUFS, Fault::Buffers, None, "no pool, or too many locked pages"),
        windows(Receive, WSA_NOT_ENOUGH_MEMORY, Fault::Memory, None, "no memory"),
        windows(Receive, WSAEACCES, Fault::Unexpected, None, "a filter driver forbids it"),

        windows(Stream, WSAECONNRESET, Fault::Reset, Kills, "the peer has reset"),
        windows(Stream, WSAETIMEDOUT, Fault::TimedOut, Kills, "retransmissions ran out"),
        windows(Stream, WSAENOBUFS, Fault::Buffers, None, "no pool, or too many locked pages"),

        windows(SendAtOnce, WSAEWOULDBLOCK, Fault::WouldBlock, None, "no room, or too many in flight"),
        windows(SendAtOnce, WSAECONNRESET, Fault::Reset, Kills, "the peer has reset"),
        windows(SendAtOnce, WSAECONNABORTED, Fault::Aborted, Kills, "ended by this machine"),
        windows(SendAtOnce, WSAENETRESET, Fault::Reset, Kills, "keep-alive found it broken"),
        windows(SendAtOnce, WSAETIMEDOUT, Fault::TimedOut, Kills, "retransmissions ran out"),
        windows(SendAtOnce, WSAENETDOWN, Fault::Unreachable, None, "the network has failed"),
        windows(SendAtOnce, WSAENOBUFS, Fault::Buffers, None, "no pool, or too many locked pages"),
        windows(SendAtOnce, WSA_NOT_ENOUGH_MEMORY, Fault::Memory, None, "no memory"),

        windows(Send, WSAECONNRESET, Fault::Reset, Kills, "the peer has reset"),
        windows(Send, WSAECONNABORTED, Fault::Aborted, Kills, "ended by this machine"),
        windows(Send, WSAENETRESET, Fault::Reset, Kills, "keep-alive found it broken"),
        windows(Send, WSAETIMEDOUT, Fault::TimedOut, Kills, "retransmissions ran out"),
        windows(Send, WSAESHUTDOWN, Fault::Reset, Kills, "this direction is closed"),
        windows(Send, WSAENETDOWN, Fault::Unreachable, None, "the network has failed"),
        windows(Send, WSAENOBUFS, Fault::Buffers, None, "no pool, or too many locked pages"),
        windows(Send, WSA_NOT_ENOUGH_MEMORY, Fault::Memory, None, "no memory"),

        windows(HalfClose, WSAENOTCONN, Fault::Reset, Kills, "not connected any more"),
        windows(HalfClose, WSAECONNABORTED, Fault::Aborted, None, "ended by this machine"),
        windows(HalfClose, WSAENETDOWN, Fault::Unreachable, None, "the network has failed"),

        windows(Close, WSAENOBUFS, Fault::Buffers, None, "DisconnectEx found no pool; closed instead"),
        windows(Close, WSAENOTCONN, Fault::Reset, None, "not connected any more; closed instead"),
        windows(Close, WSAENETDOWN, Fault::Unreachable, None, "the network has failed; closed"),
        windows(Abort, WSAENETDOWN, Fault::Unreachable, None, "the network has failed; closed"),
    ]
};
