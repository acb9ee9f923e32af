//! Waking the ring's thread from another one.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::driver::Wake;
use crate::driver::doze::Doze;

/// An eventfd that the ring reads, written only while the thread sleeps.
pub(super) struct Doorbell {
    doze: Doze,
    eventfd: OwnedFd,
}

impl Doorbell {
    pub(super) fn new() -> std::io::Result<Self> {
        // Not `NONBLOCK`: the ring would not wait on it then. A write waits only at 2⁶⁴ − 1.
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { doze: Doze::new(), eventfd })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }

    /// Announces that the thread is going to sleep; false when it must not, for it was woken.
    pub(super) fn fall_asleep(&self) -> bool {
        self.doze.fall_asleep()
    }

    /// Announces that the thread is awake. A wake that came meanwhile has done its work.
    pub(super) fn get_up(&self) {
        self.doze.get_up();
    }
}

impl Wake for Doorbell {
    fn wake(&self) {
        if self.doze.disturb() {
            // Fails only at 2⁶⁴ − 1 unread wakes, when it would be no news.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }
}
