//! Waking the ring's thread from another one.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use crate::driver::Wake;

/// The thread is about its work, and will look around before it sleeps.
const AWAKE: u8 = 0;
/// The thread sleeps in the kernel, or is about to: only the eventfd reaches it.
const ASLEEP: u8 = 1;
/// Somebody wants it to look around.
const WOKEN: u8 = 2;

/// An eventfd that the ring reads, and a word that says whether writing to it is needed: waking a
/// busy shard costs one atomic exchange and no system call.
///
/// All changes are read-modify-writes of one word, so there is one order of them. Either a
/// [`Wake::wake`] comes before the thread's `AWAKE → ASLEEP`, which then fails and the thread does not
/// sleep; or it comes after, sees `ASLEEP`, and writes. Its release and the thread's acquire make
/// what was done before the wake visible after it.
pub(super) struct Doorbell {
    state: AtomicU8,
    eventfd: OwnedFd,
}

impl Doorbell {
    pub(super) fn new() -> std::io::Result<Self> {
        // Not `NONBLOCK`: the ring would not wait on it then. A write waits only at 2⁶⁴ − 1.
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { state: AtomicU8::new(AWAKE), eventfd })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }

    /// Announces that the thread is going to sleep; false when it must not, for it was woken.
    pub(super) fn fall_asleep(&self) -> bool {
        let slept =
            self.state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !slept {
            self.state.swap(AWAKE, Ordering::AcqRel);
        }
        slept
    }

    /// Announces that the thread is awake. A wake that came meanwhile has done its work.
    pub(super) fn get_up(&self) {
        self.state.swap(AWAKE, Ordering::AcqRel);
    }
}

impl Wake for Doorbell {
    fn wake(&self) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == ASLEEP {
            // Fails only at 2⁶⁴ − 1 unread wakes, when it would be no news.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }
}
