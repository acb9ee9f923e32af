//! Microsoft's extensions of Winsock, which are found by asking a socket for their addresses.

use std::net::SocketAddr;
use std::os::windows::io::AsRawSocket;
use std::ptr::{null, null_mut};

use socket2::SockAddr;
use windows_sys::Win32::Networking::WinSock as ws;
use windows_sys::Win32::Networking::WinSock::{
    LPFN_ACCEPTEX, LPFN_CONNECTEX, LPFN_DISCONNECTEX, LPFN_GETACCEPTEXSOCKADDRS, LPFN_TRANSMITFILE,
    SOCKET, TF_DISCONNECT, TF_REUSE_SOCKET,
};
use windows_sys::core::GUID;

use super::Recycle;
use super::operations::{Addresses, Armed};
use super::system::{self, Posted};
use super::unavailable::Unavailable;

/// The extensions, each there.
#[derive(Clone, Copy)]
pub(super) struct Extensions {
    accept: LPFN_ACCEPTEX,
    addresses: LPFN_GETACCEPTEXSOCKADDRS,
    connect: LPFN_CONNECTEX,
    disconnect: LPFN_DISCONNECTEX,
    transmit: LPFN_TRANSMITFILE,
}

/// The address of one of them.
fn find<T: Copy>(
    socket: &impl AsRawSocket,
    guid: GUID,
    call: &'static str,
) -> Result<Option<T>, Unavailable> {
    let mut found: Option<T> = None;
    let mut written = 0;
    const { assert!(size_of::<Option<T>>() == size_of::<usize>()) };
    // SAFETY: the call reads a GUID, and writes a pointer to a function of the type that the GUID
    // stands for, which is what `T` is at each call below; null would be `None`.
    let result = unsafe {
        ws::WSAIoctl(
            socket.as_raw_socket() as SOCKET,
            ws::SIO_GET_EXTENSION_FUNCTION_POINTER,
            (&raw const guid).cast(),
            size_of::<GUID>() as u32,
            (&raw mut found).cast(),
            size_of::<Option<T>>() as u32,
            &raw mut written,
            null_mut(),
            None,
        )
    };
    if result != 0 || found.is_none() {
        return Err(Unavailable::Provider { call });
    }
    Ok(found)
}

impl Extensions {
    /// Finds them, through a TCP socket. The same for all sockets of one provider.
    pub(super) fn load(socket: &impl AsRawSocket) -> Result<Self, Unavailable> {
        Ok(Self {
            accept: find(socket, ws::WSAID_ACCEPTEX, "AcceptEx")?,
            addresses: find(socket, ws::WSAID_GETACCEPTEXSOCKADDRS, "GetAcceptExSockaddrs")?,
            connect: find(socket, ws::WSAID_CONNECTEX, "ConnectEx")?,
            disconnect: find(socket, ws::WSAID_DISCONNECTEX, "DisconnectEx")?,
            transmit: find(socket, ws::WSAID_TRANSMITFILE, "TransmitFile")?,
        })
    }

    /// Posts an accept into `socket`, without a buffer for what the client says first: it completes
    /// as soon as a client is there.
    ///
    /// # Safety
    ///
    /// `armed` and `into` stay until the operation has completed; so does `socket`, or it is closed,
    /// which completes it.
    pub(super) unsafe fn post_accept(
        &self,
        listener: &impl AsRawSocket,
        socket: &impl AsRawSocket,
        into: *mut Addresses,
        armed: Armed,
        skips: bool,
    ) -> Posted {
        let accept = self.accept.expect("it was found");
        let each = Addresses::EACH as u32;
        // SAFETY: the buffer is as long as both addresses are told to be. The caller's promise is
        // the rest.
        let done = unsafe {
            accept(
                listener.as_raw_socket() as SOCKET,
                socket.as_raw_socket() as SOCKET,
                into.cast(),
                0,
                each,
                each,
                armed.count(),
                armed.overlapped(),
            )
        };
        Posted::of(done != 0, skips, armed)
    }

    /// The address of the client that an accept brought.
    ///
    /// # Safety
    ///
    /// The accept that was posted with `written` has completed with success.
    pub(super) unsafe fn peer(&self, written: *const Addresses) -> Option<SocketAddr> {
        let addresses = self.addresses.expect("it was found");
        let each = Addresses::EACH as u32;
        let (mut local, mut remote) = (null_mut(), null_mut());
        let (mut local_len, mut remote_len) = (0, 0);
        // SAFETY: the call reads what `AcceptEx` wrote, of the same lengths, and writes two
        // pointers into it and two lengths.
        unsafe {
            addresses(
                written.cast(),
                0,
                each,
                each,
                &raw mut local,
                &raw mut local_len,
                &raw mut remote,
                &raw mut remote_len,
            );
            system::address(remote, remote_len)
        }
    }

    /// Posts a connect of a bound socket.
    ///
    /// # Safety
    ///
    /// `armed` stays until the operation has completed.
    pub(super) unsafe fn post_connect(
        &self,
        socket: &impl AsRawSocket,
        remote: SocketAddr,
        armed: Armed,
        skips: bool,
    ) -> Posted {
        let connect = self.connect.expect("it was found");
        let remote = SockAddr::from(remote);
        // SAFETY: the address is read within the call. The caller's promise is the rest.
        let done = unsafe {
            connect(
                socket.as_raw_socket() as SOCKET,
                remote.as_ptr().cast(),
                remote.len(),
                null(),
                0,
                null_mut(),
                armed.overlapped(),
            )
        };
        Posted::of(done != 0, skips, armed)
    }

    /// Posts the end of a connection, after which its socket can be used again, in the way asked for.
    ///
    /// # Safety
    ///
    /// `armed` stays until the operation has completed.
    pub(super) unsafe fn post_disconnect(
        &self,
        socket: &impl AsRawSocket,
        way: Recycle,
        armed: Armed,
        skips: bool,
    ) -> Posted {
        let socket = socket.as_raw_socket() as SOCKET;
        // SAFETY: no file and no buffers are named. The caller's promise is the rest.
        let done = unsafe {
            match way {
                Recycle::TransmitFile => {
                    let transmit = self.transmit.expect("it was found");
                    let flags = TF_DISCONNECT | TF_REUSE_SOCKET;
                    transmit(socket, null_mut(), 0, 0, armed.overlapped(), null(), flags)
                }
                Recycle::DisconnectEx | Recycle::Never => {
                    let disconnect = self.disconnect.expect("it was found");
                    disconnect(socket, armed.overlapped(), TF_REUSE_SOCKET, 0)
                }
            }
        };
        Posted::of(done != 0, skips, armed)
    }
}
