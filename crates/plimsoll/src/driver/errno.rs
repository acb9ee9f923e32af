//! The kernel's errors, in the words of the contract.

use crate::driver::{Failure, Fault};

/// What an operation's error number means. O(1).
pub(super) fn failure(code: i32) -> Failure {
    let fault = match code {
        // EINTR: cancelled while a worker of the kernel had it.
        libc::ECANCELED | libc::EINTR => Fault::Cancelled,
        libc::ECONNRESET | libc::EPIPE | libc::ENOTCONN | libc::ESHUTDOWN => Fault::Reset,
        libc::ECONNABORTED | libc::EPROTO => Fault::Aborted,
        libc::ECONNREFUSED => Fault::Refused,
        libc::ETIMEDOUT => Fault::TimedOut,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => {
            Fault::Unreachable
        }
        libc::EADDRNOTAVAIL | libc::EADDRINUSE => Fault::NoPorts,
        libc::EMFILE => Fault::ProcessDescriptors,
        libc::ENFILE => Fault::SystemDescriptors,
        libc::ENOBUFS => Fault::Buffers,
        libc::ENOMEM => Fault::Memory,
        // Only epoll_ctl(2) says so, of what we call.
        libc::ENOSPC => Fault::Watches,
        libc::EAGAIN => Fault::WouldBlock,
        _ => Fault::Unexpected,
    };
    Failure { fault, code }
}

/// A stream found no block: what the kernel calls ENOBUFS, where the driver knows better.
pub(super) const NO_BLOCK: Failure = Failure { fault: Fault::NoBlock, code: libc::ENOBUFS };

/// What a completion's result means: a count, or a failure as a negative number.
#[inline]
pub(super) fn outcome(result: i32) -> Result<u32, Failure> {
    u32::try_from(result).map_err(|_| failure(result.wrapping_neg()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counts_or_failures() {
        assert_eq!(outcome(17), Ok(17));
        assert_eq!(outcome(-libc::ECONNRESET).unwrap_err().fault, Fault::Reset);
        assert_eq!(
            outcome(-libc::EXDEV),
            Err(Failure { fault: Fault::Unexpected, code: libc::EXDEV })
        );
    }
}
