//! The end of a driver: its memory outlives the kernel's interest in it.
//!
//! Closing a socket cancels its operations, and each completes at the port all the same. Until then the
//! kernel may write to its `OVERLAPPED`, to the addresses of an accept, and to the block of a receive:
//! so all sockets are closed first and all completions awaited. What cannot be accounted for keeps
//! the memory for ever.

use std::sync::Arc;
use std::time::Duration;

use super::Iocp;
use super::accepts::Accept;
use crate::driver::Driver;

/// How long the kernel is given. It needs microseconds.
const PATIENCE: Duration = Duration::from_secs(2);

impl Iocp {
    /// Operations in flight, of slots and of accepts.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.slots.iter().map(super::Slot::in_flight_count).sum::<usize>()
            + self.waiting.len()
            + (self.accepts.len() - self.free_accepts.len())
    }

    /// Closes everything, and waits until the kernel is done with our memory. Whether it is.
    fn quiesce(&mut self) -> bool {
        self.listening = None;
        self.slots.iter_mut().for_each(|slot| drop(slot.socket.take()));
        self.pool.empty().for_each(drop);
        self.accepts.iter_mut().for_each(Accept::close);
        let end = self.now().after(PATIENCE);
        while self.in_kernel > 0 {
            let left = end.since(self.now()).as_millis() as u32;
            let Ok(taken) = self.port.take(&mut self.entries, left) else { return false };
            if taken == 0 && left == 0 {
                return false;
            }
            let told = self.entries[..taken].iter().filter(|entry| !entry.lpOverlapped.is_null());
            self.in_kernel -= told.count();
        }
        true
    }
}

impl Drop for Iocp {
    fn drop(&mut self) {
        if !self.quiesce() {
            // Operations and addresses are not freed below, and the arena's memory is kept.
            std::mem::forget(Arc::clone(&self.memory));
            return;
        }
        // SAFETY: not used after this; the kernel is done with both, for all that it had has
        // completed.
        unsafe {
            std::mem::ManuallyDrop::drop(&mut self.operations);
            std::mem::ManuallyDrop::drop(&mut self.addresses);
        }
    }
}
