//! What wakes the ring's thread.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::driver::doorbell::Bell;

/// An eventfd that the ring reads.
pub(super) struct Eventfd(OwnedFd);

impl Eventfd {
    pub(super) fn new() -> std::io::Result<Self> {
        // Not `NONBLOCK`: the ring would not wait on it then. A write waits only at 2⁶⁴ − 1.
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC)?))
    }
}

impl AsRawFd for Eventfd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Bell for Eventfd {
    fn ring(&self) {
        // Fails only at 2⁶⁴ − 1 unread wakes, when it would be no news.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}
