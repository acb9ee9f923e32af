//! The end of a driver: its memory outlives the kernel's interest in it.
//!
//! Closing a ring cancels its operations *later*, in a worker of the kernel. Memory that the
//! kernel could still write to would be unmapped, mapped again by somebody else, and
//! overwritten. So everything that refers to memory is cancelled and its completion awaited
//! first; what cannot be accounted for keeps the memory for ever.

use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use super::{BELL, QUIET, Slot, Uring, ops};
use crate::driver::{Completion, Driver, Kind};

/// How long the kernel is given. It needs microseconds; a worker may be held up by an overloaded
/// machine.
const PATIENCE: Duration = Duration::from_secs(2);

impl Uring {
    /// Operations in flight, of slots and of accepts that hand over.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.slots.iter().map(Slot::in_flight_count).sum::<usize>()
            + self.handed.iter().filter(|handed| handed.token != 0).count()
            + self.ready.len()
    }

    /// Ends every operation that refers to memory of ours. Whether all have ended.
    fn quiesce(&mut self) -> bool {
        self.leaving = true;
        if !self.ring.is_enabled() {
            // The kernel has seen no submission.
            return true;
        }
        if !self.ring.is_owner() {
            // Only its own thread may enter it.
            return false;
        }
        for number in 0..self.slots.len() {
            for kind in [Kind::Receive, Kind::Send] {
                let slot = &self.slots[number];
                if slot.is_in_flight(kind) {
                    let token = slot.token(kind, number as u32);
                    self.ring.push(ops::cancel(token.bits(), QUIET));
                }
            }
        }
        for user in self.shared.addresses.users() {
            self.ring.push(ops::cancel(user, QUIET));
        }
        if self.bell_armed {
            self.ring.push(ops::cancel(BELL, QUIET));
        }
        let end = self.now().after(PATIENCE);
        let mut out: Vec<Completion> = Vec::with_capacity(1024);
        while self.is_lending() {
            out.clear();
            if self.now() > end || self.turn(Some(end), &mut out).is_err() {
                return false;
            }
        }
        true
    }

    /// Whether an operation in flight refers to memory of ours.
    fn is_lending(&self) -> bool {
        self.bell_armed
            || self.slots.iter().any(Slot::lends_memory)
            || self.handed.iter().any(|handed| handed.token != 0 && handed.fd < 0)
            || self.ready.iter().any(|(token, _)| token.kind() == Kind::Accept)
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.quiesce() {
            // SAFETY: dropped once, here, and not used after: this is the owner's own drop. No
            // operation that the kernel still has refers to it.
            unsafe { ManuallyDrop::drop(&mut self.shared) };
        } else {
            tracing::warn!(
                "a ring was dropped with operations in flight, by another thread than its own or \
                 after waiting for {PATIENCE:?}: its memory is kept for ever"
            );
        }
        let handed = self.handed.iter().map(|handed| handed.fd);
        for fd in self.plain.iter().copied().chain(handed).filter(|&fd| fd >= 0) {
            // SAFETY: the slot's or the accept's descriptor, which nobody else has.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}
