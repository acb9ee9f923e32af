//! Waking a driver's thread from another one: waking one that does not sleep costs no system call.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::driver::Wake;

/// The thread is about its work, and will look around before it sleeps.
const AWAKE: u8 = 0;
/// The thread sleeps in the kernel, or is about to: only the kernel reaches it.
const ASLEEP: u8 = 1;
/// Somebody wants it to look around.
const WOKEN: u8 = 2;

/// What of the kernel ends the sleep of a driver's thread.
pub(super) trait Bell: Send + Sync + 'static {
    /// Can be done at any time, also after the driver's end.
    fn ring(&self);
}

/// A bell, and a word that says whether waking the thread needs it: waking a busy one costs one
/// atomic exchange.
///
/// All changes are read-modify-writes of one word, so there is one order of them. Either a wake
/// comes before the thread's `AWAKE → ASLEEP`, which then fails and the thread does not sleep; or it
/// comes after, sees `ASLEEP`, and rings. Its release and the thread's acquire make what was done
/// before the wake visible after it.
#[derive(Debug)]
pub(super) struct Doorbell<B> {
    word: AtomicU8,
    pub(super) bell: B,
}

impl<B> Doorbell<B> {
    pub(super) fn new(bell: B) -> Self {
        Self { word: AtomicU8::new(AWAKE), bell }
    }

    /// The thread is going to sleep; false when it must not, for it was woken.
    pub(super) fn fall_asleep(&self) -> bool {
        let slept =
            self.word.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !slept {
            self.word.swap(AWAKE, Ordering::AcqRel);
        }
        slept
    }

    /// The thread is awake. A wake that came meanwhile has done its work.
    pub(super) fn get_up(&self) {
        self.word.swap(AWAKE, Ordering::AcqRel);
    }
}

impl<B: Bell> Wake for Doorbell<B> {
    fn wake(&self) {
        if self.word.swap(WOKEN, Ordering::AcqRel) == ASLEEP {
            self.bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Bell for std::sync::atomic::AtomicU32 {
        fn ring(&self) {
            self.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn doorbell() -> Doorbell<std::sync::atomic::AtomicU32> {
        Doorbell::new(0.into())
    }

    #[test]
    fn a_wake_before_the_sleep_prevents_it_once() {
        let mut doorbell = doorbell();
        doorbell.wake();
        doorbell.wake();
        assert_eq!(*doorbell.bell.get_mut(), 0, "nobody sleeps");
        assert!(!doorbell.fall_asleep());
        assert!(doorbell.fall_asleep(), "several wakes are one");
    }

    #[test]
    fn a_wake_of_a_sleeper_rings_once() {
        let mut doorbell = doorbell();
        assert!(doorbell.fall_asleep());
        doorbell.wake();
        doorbell.wake();
        assert_eq!(*doorbell.bell.get_mut(), 1);
        doorbell.get_up();
        assert!(doorbell.fall_asleep(), "the wake has done its work");
    }
}
