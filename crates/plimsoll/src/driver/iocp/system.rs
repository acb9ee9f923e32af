//! Calls of Winsock, with their error codes.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::windows::io::{AsRawSocket, FromRawSocket, OwnedSocket};
use std::ptr::{null, null_mut};
use std::sync::Once;

use socket2::SockAddr;
use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::Networking::WinSock as ws;
use windows_sys::Win32::Networking::WinSock::{SOCKADDR, SOCKET, WSABUF, WSADATA};
use windows_sys::Win32::Storage::FileSystem::SetFileCompletionNotificationModes;
use windows_sys::Win32::System::IO::{CancelIoEx, OVERLAPPED};
use windows_sys::Win32::System::WindowsProgramming::FILE_SKIP_COMPLETION_PORT_ON_SUCCESS;

use super::operations::Armed;
use crate::buffer::{Memory, Span};
use crate::driver::MAX_SPANS;

/// What the last call that failed on this thread failed with.
pub(super) fn last_error() -> i32 {
    // SAFETY: reads a number of this thread's.
    unsafe { ws::WSAGetLastError() }
}

/// Has Winsock be there, for as long as the process lives.
pub(super) fn begin() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        let mut data = WSADATA::default();
        // SAFETY: the call fills one structure. Where it fails, so does the first socket, and says why.
        unsafe { ws::WSAStartup(0x0202, &raw mut data) };
    });
}

fn raw(socket: &impl AsRawSocket) -> SOCKET {
    socket.as_raw_socket() as SOCKET
}

fn check(result: i32) -> Result<(), i32> {
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// A TCP socket for overlapped operations, which no child process inherits.
pub(super) fn socket(v6: bool) -> Result<OwnedSocket, i32> {
    let family = if v6 { ws::AF_INET6 } else { ws::AF_INET };
    let flags = ws::WSA_FLAG_OVERLAPPED | ws::WSA_FLAG_NO_HANDLE_INHERIT;
    // SAFETY: numbers, and no structure of a protocol.
    let socket = unsafe {
        ws::WSASocketW(i32::from(family), ws::SOCK_STREAM, ws::IPPROTO_TCP, null(), 0, flags)
    };
    if socket == ws::INVALID_SOCKET {
        return Err(last_error());
    }
    // SAFETY: the call has just made it, and nobody else has it.
    Ok(unsafe { OwnedSocket::from_raw_socket(socket as _) })
}

/// Calls that are not overlapped do not block from now on; overlapped ones never do.
pub(super) fn unblock(socket: &impl AsRawSocket) -> Result<(), i32> {
    let mut yes = 1;
    // SAFETY: the call reads one number; the socket is open, for it is borrowed.
    check(unsafe { ws::ioctlsocket(raw(socket), ws::FIONBIO, &raw mut yes) })
}

/// Sets an option.
pub(super) fn set<T: Copy>(
    socket: &impl AsRawSocket,
    level: i32,
    name: i32,
    value: T,
) -> Result<(), i32> {
    let len = size_of::<T>() as i32;
    // SAFETY: the call reads the value, whose length is told, and keeps nothing.
    check(unsafe { ws::setsockopt(raw(socket), level, name, (&raw const value).cast(), len) })
}

/// Reads an option that is a number.
pub(super) fn get(socket: &impl AsRawSocket, level: i32, name: i32) -> Result<i32, i32> {
    let mut value = 0_i32;
    let mut len = size_of::<i32>() as i32;
    // SAFETY: the call writes at most `len` bytes to the number, and one number to `len`.
    let result =
        unsafe { ws::getsockopt(raw(socket), level, name, (&raw mut value).cast(), &raw mut len) };
    check(result).map(|()| value)
}

/// Whether the socket's handle is one of the kernel's own, as modes of completion need it: a layered
/// provider may have put one of its own in its place.
pub(super) fn is_plain(socket: &impl AsRawSocket) -> bool {
    let mut info = ws::WSAPROTOCOL_INFOW::default();
    let mut len = size_of::<ws::WSAPROTOCOL_INFOW>() as i32;
    let room = (&raw mut info).cast();
    // SAFETY: the call writes at most `len` bytes to the structure, and one number to `len`.
    let result = unsafe {
        ws::getsockopt(raw(socket), ws::SOL_SOCKET, ws::SO_PROTOCOL_INFOW, room, &raw mut len)
    };
    result == 0 && info.dwServiceFlags1 & ws::XP1_IFS_HANDLES != 0
}

/// Operations of this socket that succeed at once are not told of at the port from now on.
pub(super) fn skip_completions(socket: &impl AsRawSocket) -> Result<(), i32> {
    let mode = FILE_SKIP_COMPLETION_PORT_ON_SUCCESS as u8;
    // SAFETY: the handle is open, for the socket is borrowed.
    let done = unsafe { SetFileCompletionNotificationModes(raw(socket) as HANDLE, mode) };
    if done == 0 { Err(last_error()) } else { Ok(()) }
}

/// Binds a socket.
pub(super) fn bind(socket: &impl AsRawSocket, address: SocketAddr) -> Result<(), i32> {
    let address = SockAddr::from(address);
    // SAFETY: the call reads an address of the length that is told.
    check(unsafe { ws::bind(raw(socket), address.as_ptr().cast(), address.len()) })
}

/// Has the close that follows reset the connection.
pub(super) fn reset_on_close(socket: &impl AsRawSocket) {
    let now = ws::LINGER { l_onoff: 1, l_linger: 0 };
    // It cannot fail on a TCP socket; if it did, the close would be orderly.
    let _ = set(socket, ws::SOL_SOCKET, ws::SO_LINGER, now);
}

/// Sends our end of stream. 0, or a negative code.
pub(super) fn end_stream(socket: &impl AsRawSocket) -> i32 {
    // SAFETY: the socket is open, for it is borrowed.
    check(unsafe { ws::shutdown(raw(socket), ws::SD_SEND) }).map_or_else(|code| -code, |()| 0)
}

/// Receives what is there, at most what there is room for; 0 is the end of the stream. Does not
/// block.
#[inline]
pub(super) fn receive(socket: &impl AsRawSocket, room: &mut [u8]) -> Result<usize, i32> {
    let most = i32::try_from(room.len()).unwrap_or(i32::MAX);
    // SAFETY: the call writes at most so many bytes to the room.
    let count = unsafe { ws::recv(raw(socket), room.as_mut_ptr(), most, 0) };
    usize::try_from(count).map_err(|_| last_error())
}

/// Sends bytes; how many were taken. Does not block.
pub(super) fn send_bytes(socket: &impl AsRawSocket, bytes: &[u8]) -> Result<usize, i32> {
    let most = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    // SAFETY: the call reads at most so many of the bytes.
    let count = unsafe { ws::send(raw(socket), bytes.as_ptr(), most, 0) };
    usize::try_from(count).map_err(|_| last_error())
}

/// The spans, as Winsock takes them.
struct Parts {
    parts: [WSABUF; MAX_SPANS],
    count: u32,
}

impl Parts {
    fn of(memory: &Memory, spans: &[Span]) -> Self {
        let mut parts = [WSABUF { len: 0, buf: null_mut() }; MAX_SPANS];
        for (part, span) in parts.iter_mut().zip(spans) {
            *part = WSABUF { len: span.len, buf: memory.start_of_span(*span).as_ptr() };
        }
        Self { parts, count: spans.len().min(MAX_SPANS) as u32 }
    }
}

/// Sends what the kernel takes of the spans, in order. Does not block.
#[inline]
pub(super) fn send(
    socket: &impl AsRawSocket,
    memory: &Memory,
    spans: &[Span],
) -> Result<usize, i32> {
    let parts = Parts::of(memory, spans);
    let mut sent = 0;
    // SAFETY: the call reads the parts, and bytes inside the mapping (`start_of_span` has checked
    // it), which are initialised. Whoever posted the send changes none of them until it has
    // completed: the contract of `Driver::send`. It is not overlapped: nothing is kept.
    let result = unsafe {
        let array = parts.parts.as_ptr();
        ws::WSASend(raw(socket), array, parts.count, &raw mut sent, 0, null_mut(), None)
    };
    check(result).map(|()| sent as usize)
}

/// What became of an operation as it was posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Posted {
    /// The kernel has it: a completion will come.
    Pending,
    /// It is done, and no completion will come: so many bytes.
    Done(u32),
    /// It failed at once, with this code: no completion will come.
    Failed(i32),
}

impl Posted {
    /// What the call that posted it has told. A success is told of at the port too, but on sockets
    /// that skip that (`FILE_SKIP_COMPLETION_PORT_ON_SUCCESS`).
    pub(super) fn of(succeeded: bool, skips: bool, armed: Armed) -> Self {
        if succeeded {
            return if skips { Self::Done(armed.moved()) } else { Self::Pending };
        }
        match last_error() {
            ws::WSA_IO_PENDING => Self::Pending,
            code => Self::Failed(code),
        }
    }
}

/// Posts a gathered send of the spans.
///
/// # Safety
///
/// `armed` and the mapping stay until the operation has completed, and the spans' bytes are not
/// changed until then.
pub(super) unsafe fn post_send(
    socket: &impl AsRawSocket,
    memory: &Memory,
    spans: &[Span],
    armed: Armed,
    skips: bool,
) -> Posted {
    let parts = Parts::of(memory, spans);
    // SAFETY: the parts are inside the mapping; the array of them is read within the call ("it is
    // the service provider's responsibility to capture the WSABUF structures", `WSASend`). The
    // caller's promise is the rest.
    let result = unsafe {
        let (array, overlapped) = (parts.parts.as_ptr(), armed.overlapped());
        ws::WSASend(raw(socket), array, parts.count, null_mut(), 0, overlapped, None)
    };
    Posted::of(result == 0, skips, armed)
}

/// Posts a receive into the room, which may be empty: then it completes when there is something.
///
/// # Safety
///
/// `armed` and the room stay until the operation has completed, and nobody else touches the room.
pub(super) unsafe fn post_receive(
    socket: &impl AsRawSocket,
    room: (*mut u8, u32),
    armed: Armed,
    skips: bool,
) -> Posted {
    let part = WSABUF { len: room.1, buf: room.0 };
    // SAFETY: the one part is read within the call; flags stay with the operation. The caller's
    // promise is the rest.
    let result = unsafe {
        let (flags, overlapped) = (armed.flags(), armed.overlapped());
        ws::WSARecv(raw(socket), &raw const part, 1, null_mut(), flags, overlapped, None)
    };
    Posted::of(result == 0, skips, armed)
}

/// Cancels one operation of a socket, or all. They complete all the same, with that or with what came
/// first. Where there is none nothing happens.
pub(super) fn cancel(socket: &impl AsRawSocket, which: *const OVERLAPPED) {
    // SAFETY: the handle is open, for the socket is borrowed; the address is only compared.
    unsafe { CancelIoEx(raw(socket) as HANDLE, which) };
}

/// An address as the kernel has written it; `None` where it is of no family known here.
///
/// # Safety
///
/// `address` is null or points to `len` readable bytes.
pub(super) unsafe fn address(address: *const SOCKADDR, len: i32) -> Option<SocketAddr> {
    let len = usize::try_from(len).ok()?;
    if address.is_null() || len < size_of::<SOCKADDR>() {
        return None;
    }
    // SAFETY: long enough, as is checked before each; read without regard to its alignment.
    unsafe {
        match address.cast::<u16>().read_unaligned() {
            ws::AF_INET if len >= size_of::<ws::SOCKADDR_IN>() => {
                let v4 = address.cast::<ws::SOCKADDR_IN>().read_unaligned();
                let ip = Ipv4Addr::from(v4.sin_addr.S_un.S_addr.to_ne_bytes());
                Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            ws::AF_INET6 if len >= size_of::<ws::SOCKADDR_IN6>() => {
                let v6 = address.cast::<ws::SOCKADDR_IN6>().read_unaligned();
                let ip = Ipv6Addr::from(v6.sin6_addr.u.Byte);
                let (port, scope) = (u16::from_be(v6.sin6_port), v6.Anonymous.sin6_scope_id);
                Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, scope).into())
            }
            _ => None,
        }
    }
}
