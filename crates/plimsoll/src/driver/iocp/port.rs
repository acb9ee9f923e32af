//! The completion port, and what wakes the thread that waits at it.

use std::io;
use std::os::windows::io::{AsRawHandle, AsRawSocket, FromRawHandle, OwnedHandle};
use std::ptr::null_mut;
use std::sync::Arc;

use windows_sys::Win32::Foundation::{INVALID_HANDLE_VALUE, WAIT_TIMEOUT};
use windows_sys::Win32::System::IO::{
    CreateIoCompletionPort, GetQueuedCompletionStatusEx, OVERLAPPED_ENTRY,
    PostQueuedCompletionStatus,
};

use super::system;
use crate::driver::doorbell::Bell;

/// A completion port for one thread.
#[derive(Debug)]
pub(super) struct Port(OwnedHandle);

impl Port {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: a new port, of no file; one thread runs at a time.
        let handle = unsafe { CreateIoCompletionPort(INVALID_HANDLE_VALUE, null_mut(), 0, 1) };
        if handle.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just made it, and nobody else has it.
        Ok(Self(unsafe { OwnedHandle::from_raw_handle(handle) }))
    }

    /// Has a socket's operations complete here, for as long as it lives. The key is 0 for all: it is
    /// never looked at.
    ///
    /// # Errors
    ///
    /// `ERROR_INVALID_PARAMETER` where the socket belongs to a port already.
    pub(super) fn associate(&self, socket: &impl AsRawSocket) -> Result<(), i32> {
        let socket = socket.as_raw_socket() as *mut core::ffi::c_void;
        // SAFETY: both handles are open, for they are borrowed.
        let port = unsafe { CreateIoCompletionPort(socket, self.0.as_raw_handle(), 0, 0) };
        if port.is_null() { Err(system::last_error()) } else { Ok(()) }
    }

    /// Takes completions, at least one, for which it waits so many milliseconds at most
    /// (`u32::MAX`: for ever). How many were taken.
    pub(super) fn take(
        &self,
        entries: &mut [OVERLAPPED_ENTRY],
        milliseconds: u32,
    ) -> io::Result<usize> {
        let mut taken = 0;
        // SAFETY: the call writes at most as many entries as there are, and one number; it is not
        // alertable, so nothing else runs meanwhile.
        let told = unsafe {
            GetQueuedCompletionStatusEx(
                self.0.as_raw_handle(),
                entries.as_mut_ptr(),
                entries.len() as u32,
                &raw mut taken,
                milliseconds,
                0,
            )
        };
        if told != 0 {
            return Ok(taken as usize);
        }
        match system::last_error() {
            code if code.cast_unsigned() == WAIT_TIMEOUT => Ok(0),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }
}

/// A completion of no operation wakes the thread that waits.
impl Bell for Arc<Port> {
    fn ring(&self) {
        // SAFETY: the port is open as long as this holds it, and no `OVERLAPPED` is named. It fails
        // only for want of memory; the driver's next completion or deadline wakes it then.
        unsafe { PostQueuedCompletionStatus(self.0.as_raw_handle(), 0, 0, null_mut()) };
    }
}
