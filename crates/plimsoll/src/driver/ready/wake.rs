//! Waking the driver's thread from another one.

use mio::{Registry, Waker};

use super::events::DOORBELL;
use crate::driver::Wake;
use crate::driver::doze::Doze;

/// `mio`'s waker (an eventfd, or a user event of the kqueue), rung only while the thread sleeps.
pub(super) struct Doorbell {
    doze: Doze,
    waker: Waker,
}

impl Doorbell {
    pub(super) fn new(registry: &Registry) -> std::io::Result<Self> {
        Ok(Self { doze: Doze::new(), waker: Waker::new(registry, DOORBELL)? })
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
            // Both can be done at any time, also after the driver's end.
            let _ = self.waker.wake();
        }
    }
}
