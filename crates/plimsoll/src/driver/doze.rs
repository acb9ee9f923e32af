//! Whether the thread of a driver sleeps: waking one that does not costs no system call.

use std::sync::atomic::{AtomicU8, Ordering};

/// The thread is about its work, and will look around before it sleeps.
const AWAKE: u8 = 0;
/// The thread sleeps in the kernel, or is about to: only the kernel reaches it.
const ASLEEP: u8 = 1;
/// Somebody wants it to look around.
const WOKEN: u8 = 2;

/// A word that says whether waking a driver's thread needs the kernel: waking a busy one costs one
/// atomic exchange.
///
/// All changes are read-modify-writes of one word, so there is one order of them. Either a wake
/// comes before the thread's `AWAKE → ASLEEP`, which then fails and the thread does not sleep; or it
/// comes after, sees `ASLEEP`, and goes to the kernel. Its release and the thread's acquire
/// make what was done before the wake visible after it.
#[derive(Debug)]
pub(super) struct Doze(AtomicU8);

impl Doze {
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(AWAKE))
    }

    /// The thread is going to sleep; false when it must not, for it was woken.
    pub(super) fn fall_asleep(&self) -> bool {
        let slept =
            self.0.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !slept {
            self.0.swap(AWAKE, Ordering::AcqRel);
        }
        slept
    }

    /// The thread is awake. A wake that came meanwhile has done its work.
    pub(super) fn get_up(&self) {
        self.0.swap(AWAKE, Ordering::AcqRel);
    }

    /// Somebody wants the thread to look around. Whether it sleeps: then the kernel must wake it.
    pub(super) fn disturb(&self) -> bool {
        self.0.swap(WOKEN, Ordering::AcqRel) == ASLEEP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_before_the_sleep_prevents_it_once() {
        let doze = Doze::new();
        assert!(!doze.disturb() && !doze.disturb(), "nobody sleeps");
        assert!(!doze.fall_asleep());
        assert!(doze.fall_asleep(), "several wakes are one");
    }

    #[test]
    fn a_wake_of_a_sleeper_goes_to_the_kernel_once() {
        let doze = Doze::new();
        assert!(doze.fall_asleep());
        assert!(doze.disturb() && !doze.disturb());
        doze.get_up();
        assert!(doze.fall_asleep(), "the wake has done its work");
    }
}
