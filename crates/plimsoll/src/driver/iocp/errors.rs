//! What Windows' errors mean, in the words of the contract.
//!
//! Calls that fail tell a code of `WSAGetLastError`; operations that completed have an `NTSTATUS`
//! in their `OVERLAPPED`, which is first turned into such a code. The table of the latter is that
//! of "Windows Sockets Error Codes" and of `WSAGetOverlappedResult`, as far as it is published
//! (Microsoft Learn; `msafd` of `ReactOS`; Wine, `NtStatusToWSAError` of `ws2_32`).

use windows_sys::Win32::Foundation as nt;
use windows_sys::Win32::Foundation::{
    ERROR_ABANDONED_WAIT_0, ERROR_COMMITMENT_LIMIT, ERROR_CONNECTION_ABORTED,
    ERROR_CONNECTION_REFUSED, ERROR_HOST_UNREACHABLE, ERROR_NETNAME_DELETED,
    ERROR_NETWORK_UNREACHABLE, ERROR_NO_SYSTEM_RESOURCES, ERROR_NOT_ENOUGH_MEMORY,
    ERROR_NOT_ENOUGH_QUOTA, ERROR_OPERATION_ABORTED, ERROR_OUTOFMEMORY, ERROR_PORT_UNREACHABLE,
    ERROR_SEM_TIMEOUT, ERROR_TOO_MANY_OPEN_FILES, ERROR_WORKING_SET_QUOTA, NTSTATUS,
    RtlNtStatusToDosError,
};
use windows_sys::Win32::Networking::WinSock as ws;

use crate::driver::{Failure, Fault};

/// What a code of `WSAGetLastError` means. O(1).
///
/// The codes of "Windows Sockets Error Codes" (Microsoft Learn), and those of Win32 that overlapped
/// operations of sockets are known to end with.
pub(in crate::driver) fn failure(code: i32) -> Failure {
    let fault = match code {
        ws::WSA_E_CANCELLED | ws::WSAECANCELLED | ws::WSAEINTR => Fault::Cancelled,
        ws::WSAECONNRESET
        | ws::WSAENETRESET
        | ws::WSAECONNABORTED
        | ws::WSAENOTCONN
        | ws::WSAESHUTDOWN
        | ws::WSAEDISCON => Fault::Reset,
        ws::WSAECONNREFUSED => Fault::Refused,
        ws::WSAETIMEDOUT => Fault::TimedOut,
        ws::WSAENETUNREACH | ws::WSAEHOSTUNREACH | ws::WSAENETDOWN | ws::WSAEHOSTDOWN => {
            Fault::Unreachable
        }
        ws::WSAEADDRNOTAVAIL | ws::WSAEADDRINUSE => Fault::NoPorts,
        ws::WSAEMFILE => Fault::ProcessDescriptors,
        ws::WSAENOBUFS => Fault::Buffers,
        ws::WSA_NOT_ENOUGH_MEMORY => Fault::Memory,
        ws::WSAEWOULDBLOCK => Fault::WouldBlock,
        code => of_win32(code as u32),
    };
    Failure { fault, code }
}

/// Codes of Win32, which a status that has none of Winsock's becomes.
fn of_win32(code: u32) -> Fault {
    match code {
        ERROR_OPERATION_ABORTED | ERROR_ABANDONED_WAIT_0 => Fault::Cancelled,
        ERROR_NETNAME_DELETED | ERROR_CONNECTION_ABORTED => Fault::Reset,
        ERROR_CONNECTION_REFUSED => Fault::Refused,
        ERROR_SEM_TIMEOUT => Fault::TimedOut,
        ERROR_NETWORK_UNREACHABLE | ERROR_HOST_UNREACHABLE | ERROR_PORT_UNREACHABLE => {
            Fault::Unreachable
        }
        ERROR_TOO_MANY_OPEN_FILES => Fault::ProcessDescriptors,
        ERROR_NO_SYSTEM_RESOURCES | ERROR_WORKING_SET_QUOTA | ERROR_NOT_ENOUGH_QUOTA => {
            Fault::Buffers
        }
        ERROR_NOT_ENOUGH_MEMORY | ERROR_OUTOFMEMORY | ERROR_COMMITMENT_LIMIT => Fault::Memory,
        _ => Fault::Unexpected,
    }
}

/// The code of an accept that failed. A connection that is gone was gone before it was accepted:
/// "an incoming connection was indicated, but was subsequently terminated by the remote peer prior to
/// accepting the call" (`AcceptEx`).
pub(super) fn accept_failure(code: i32) -> Failure {
    let failure = failure(code);
    match failure.fault {
        Fault::Reset => Failure { fault: Fault::Aborted, ..failure },
        _ => failure,
    }
}

/// What a completion's result means: a count, or a failure's code as a negative number.
#[inline]
pub(super) fn outcome(result: i32) -> Result<u32, Failure> {
    u32::try_from(result).map_err(|_| failure(result.wrapping_neg()))
}

/// The code that `WSAGetLastError` would give for the status of an operation that failed.
pub(super) fn code_of(status: NTSTATUS) -> i32 {
    match status {
        nt::STATUS_CANCELLED | nt::STATUS_REQUEST_ABORTED => ws::WSA_OPERATION_ABORTED,
        nt::STATUS_CONNECTION_RESET
        | nt::STATUS_REMOTE_DISCONNECT
        | nt::STATUS_CONNECTION_DISCONNECTED
        | nt::STATUS_PORT_UNREACHABLE => ws::WSAECONNRESET,
        nt::STATUS_CONNECTION_ABORTED | nt::STATUS_LOCAL_DISCONNECT => ws::WSAECONNABORTED,
        nt::STATUS_CONNECTION_REFUSED => ws::WSAECONNREFUSED,
        nt::STATUS_GRACEFUL_DISCONNECT => ws::WSAEDISCON,
        nt::STATUS_PIPE_DISCONNECTED => ws::WSAESHUTDOWN,
        nt::STATUS_INVALID_CONNECTION => ws::WSAENOTCONN,
        nt::STATUS_IO_TIMEOUT | nt::STATUS_TIMEOUT | nt::STATUS_LINK_TIMEOUT => ws::WSAETIMEDOUT,
        nt::STATUS_NETWORK_UNREACHABLE | nt::STATUS_PROTOCOL_UNREACHABLE => ws::WSAENETUNREACH,
        nt::STATUS_HOST_UNREACHABLE | nt::STATUS_BAD_NETWORK_PATH => ws::WSAEHOSTUNREACH,
        nt::STATUS_ADDRESS_ALREADY_EXISTS
        | nt::STATUS_ADDRESS_ALREADY_ASSOCIATED
        | nt::STATUS_SHARING_VIOLATION => ws::WSAEADDRINUSE,
        nt::STATUS_INVALID_ADDRESS
        | nt::STATUS_INVALID_ADDRESS_COMPONENT
        | nt::STATUS_TOO_MANY_ADDRESSES => ws::WSAEADDRNOTAVAIL,
        nt::STATUS_TOO_MANY_OPENED_FILES => ws::WSAEMFILE,
        nt::STATUS_INSUFFICIENT_RESOURCES
        | nt::STATUS_PAGEFILE_QUOTA
        | nt::STATUS_QUOTA_EXCEEDED
        | nt::STATUS_WORKING_SET_QUOTA
        | nt::STATUS_COMMITMENT_LIMIT
        | nt::STATUS_CONFLICTING_ADDRESSES
        | nt::STATUS_NO_MEMORY
        | nt::STATUS_REMOTE_RESOURCES => ws::WSAENOBUFS,
        // SAFETY: a pure function of a number.
        status => unsafe { RtlNtStatusToDosError(status) }.cast_signed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counts_or_failures() {
        assert_eq!(outcome(17), Ok(17));
        assert_eq!(outcome(-ws::WSAECONNRESET).unwrap_err().fault, Fault::Reset);
        assert_eq!(outcome(-ws::WSAENOBUFS).unwrap_err().fault, Fault::Buffers);
        let unknown = Failure { fault: Fault::Unexpected, code: ws::WSAEFAULT };
        assert_eq!(outcome(-ws::WSAEFAULT), Err(unknown));
    }

    #[test]
    fn statuses_mean_what_calls_that_fail_do() {
        for (status, fault) in [
            (nt::STATUS_CANCELLED, Fault::Cancelled),
            (nt::STATUS_CONNECTION_RESET, Fault::Reset),
            (nt::STATUS_CONNECTION_REFUSED, Fault::Refused),
            (nt::STATUS_INSUFFICIENT_RESOURCES, Fault::Buffers),
            (nt::STATUS_TOO_MANY_OPENED_FILES, Fault::ProcessDescriptors),
            (nt::STATUS_IO_TIMEOUT, Fault::TimedOut),
            (nt::STATUS_HOST_UNREACHABLE, Fault::Unreachable),
            (nt::STATUS_ADDRESS_ALREADY_EXISTS, Fault::NoPorts),
        ] {
            assert_eq!(failure(code_of(status)).fault, fault, "{status:#x}");
        }
        let gone = failure(ERROR_NETNAME_DELETED.cast_signed());
        assert_eq!(gone.fault, Fault::Reset);
        assert_eq!(accept_failure(gone.code).fault, Fault::Aborted);
    }
}
