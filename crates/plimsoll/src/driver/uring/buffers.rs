//! The blocks provided to streams: a ring of buffers from which the kernel takes one when there
//! is something to receive.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::ring::Ring;
use crate::buffer::{Lease, Memory};

/// The only group of buffers in a ring.
pub(super) const GROUP: u16 = 0;

/// The most entries a ring of buffers can have (`io_uring/kbuf.c`).
pub(super) const MOST: u32 = 1 << 15;

/// Blocks that the kernel is shown at least, if there are so many: three for each piece of work
/// that an enter runs.
const SHOWN_LEAST: u32 = 3 * super::ring::BATCH;

/// Blocks given to streams. Some are shown to the kernel, which takes them first in, first out;
/// the others lie on a stack. Showing no more than are likely to be needed keeps
/// those in use few, and so in the cache.
pub(super) struct Buffers {
    /// Shared with the kernel, which reads it.
    entries: Entries,
    mask: u16,
    /// Our copy of the tail; it wraps.
    tail: u16,
    /// By buffer id: what the kernel has.
    shown: Vec<Option<Lease>>,
    ids: Vec<u16>,
    spare: Vec<Lease>,
    shown_count: u32,
    /// How many are shown, if there are enough.
    wanted: u32,
    /// Taken by the kernel since they were last shown.
    taken: u32,
    /// Completions to be reaped that the kernel may have posted before it was last shown blocks.
    earlier: u32,
}

impl Buffers {
    /// A ring of `count` entries (a power of two, at most [`MOST`]), registered with `ring`.
    ///
    /// # Errors
    ///
    /// EINVAL where the kernel knows no buffer rings; ENOMEM.
    pub(super) fn register(ring: &Ring, count: u32, blocks: u32) -> io::Result<Self> {
        if !count.is_power_of_two() || count > MOST {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let entries = Entries::map(count as usize)?;
        // SAFETY: the mapping is page-aligned, holds `count` entries, and is unmapped only
        // after the ring's end or when no operation can touch it (`Uring::drop`).
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                entries.start.as_ptr() as u64,
                count as u16,
                GROUP,
                0,
            )?;
        }
        Ok(Self {
            entries,
            mask: (count - 1) as u16,
            tail: 0,
            shown: (0..count).map(|_| None).collect(),
            ids: (0..count as u16).rev().collect(),
            spare: Vec::with_capacity(blocks as usize),
            shown_count: 0,
            wanted: SHOWN_LEAST.min(count),
            taken: 0,
            earlier: 0,
        })
    }

    /// Takes a block, to be shown to the kernel. O(1).
    #[inline]
    pub(super) fn provide(&mut self, lease: Lease) {
        self.spare.push(lease);
    }

    /// Shows the kernel more at once, after it has run out.
    pub(super) fn widen(&mut self) {
        self.wanted = (self.wanted * 2).min(u32::from(self.mask) + 1);
    }

    /// Shows the kernel as many blocks as it is likely to need, while so many completions wait to be
    /// reaped. Once per turn.
    #[inline]
    pub(super) fn show(&mut self, memory: &Memory, waiting: u32) {
        // Twice what was needed last time, and slowly less again.
        let need = (self.taken * 2).clamp(SHOWN_LEAST, MOST).min(u32::from(self.mask) + 1);
        self.taken = 0;
        self.wanted = if need >= self.wanted {
            need
        } else {
            self.wanted - (self.wanted - need).div_ceil(64)
        };
        let before = self.tail;
        while self.shown_count < self.wanted {
            // `ids` holds as many as are not shown, so never fewer than `wanted - shown_count`.
            let Some(lease) = self.spare.pop() else { break };
            let Some(id) = self.ids.pop() else {
                self.spare.push(lease);
                break;
            };
            self.entries.write(
                self.tail & self.mask,
                memory.start_of(lease.block()),
                memory.block_bytes() as u32,
                id,
            );
            self.tail = self.tail.wrapping_add(1);
            self.shown[usize::from(id)] = Some(lease);
            self.shown_count += 1;
        }
        if self.tail != before {
            self.entries.publish(self.tail);
            self.earlier = waiting;
        }
    }

    /// So many completions have been reaped.
    #[inline]
    pub(super) fn reaped(&mut self, count: u32) {
        self.earlier = self.earlier.saturating_sub(count);
    }

    /// Whether the kernel had no block when it posted the completion that is being reaped: those of
    /// earlier completions have been [taken](Self::take). Where blocks were shown after that, nobody
    /// knows, and this says that it had none: the kernel's own shortage, which is told again when
    /// the stream is posted again, is not to be named without proof.
    pub(super) fn had_none(&self) -> bool {
        self.shown_count == 0 || self.earlier > 0
    }

    /// The block that a completion names. `None`, unless the kernel names one it was never shown.
    #[inline]
    pub(super) fn take(&mut self, id: u16) -> Option<Lease> {
        let lease = self.shown.get_mut(usize::from(id))?.take()?;
        self.ids.push(id);
        self.shown_count -= 1;
        self.taken += 1;
        Some(lease)
    }

    /// Takes back an unused block. No stream may be in flight.
    pub(super) fn reclaim(&mut self) -> Option<Lease> {
        if let Some(lease) = self.spare.pop() {
            return Some(lease);
        }
        if self.shown_count == 0 {
            return None;
        }
        // The last one shown, which the kernel would have come to last.
        self.tail = self.tail.wrapping_sub(1);
        let id = self.entries.id(self.tail & self.mask);
        self.entries.publish(self.tail);
        let lease = self.shown[usize::from(id)].take();
        self.ids.push(id);
        self.shown_count -= 1;
        debug_assert!(lease.is_some(), "an entry that was shown holds a lease");
        lease
    }
}

/// The entries themselves: page-aligned memory that the kernel reads.
struct Entries {
    start: NonNull<BufRingEntry>,
    bytes: usize,
}

// SAFETY: the mapping belongs to whoever owns this value.
unsafe impl Send for Entries {}

impl Entries {
    fn map(count: usize) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let bytes = count * size_of::<BufRingEntry>();
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        let start =
            NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { start, bytes })
    }

    fn at(&self, index: u16) -> *mut BufRingEntry {
        assert!((usize::from(index) + 1) * size_of::<BufRingEntry>() <= self.bytes);
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.start.as_ptr().add(usize::from(index)) }
    }

    fn write(&self, index: u16, block: NonNull<u8>, len: u32, id: u16) {
        // SAFETY: inside the mapping; the kernel does not read this entry before the tail is
        // published beyond it, and the tail never passes the head by more than there are entries.
        unsafe {
            let entry = &mut *self.at(index);
            entry.set_addr(block.as_ptr() as u64);
            entry.set_len(len);
            entry.set_bid(id);
        }
    }

    fn id(&self, index: u16) -> u16 {
        // SAFETY: inside the mapping, and the kernel writes no entries.
        unsafe { (*self.at(index)).bid() }
    }

    fn publish(&self, tail: u16) {
        // SAFETY: the tail lies in the first entry's unused half-word, aligned; only this thread
        // writes it, and the kernel reads it with acquire order.
        unsafe {
            let word = BufRingEntry::tail(self.start.as_ptr()).cast_mut();
            AtomicU16::from_ptr(word).store(tail, Ordering::Release);
        }
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made; `Uring::drop` keeps this value for as long as the
        // kernel may read it.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Arena;

    #[test]
    fn the_kernel_had_no_block_unless_one_was_shown_before() {
        let mut arena = Arena::new(4, 4096).unwrap();
        let memory = arena.memory().clone();
        let ring = Ring::new(4, true).unwrap();
        let mut buffers = Buffers::register(&ring, 4, 4).unwrap();
        assert!(buffers.had_none());
        buffers.provide(arena.lease().unwrap());
        buffers.show(&memory, 0);
        assert!(!buffers.had_none(), "it is there, and no completion is older");
        let taken = buffers.take(0).unwrap();
        assert!(buffers.had_none());
        // Shown while three completions wait, which the kernel may have posted without a block.
        buffers.provide(taken);
        buffers.show(&memory, 3);
        buffers.reaped(2);
        assert!(buffers.had_none());
        buffers.reaped(1);
        assert!(!buffers.had_none());
        // Showing nothing more says nothing new.
        buffers.show(&memory, 7);
        assert!(!buffers.had_none());
        arena.give_back(buffers.reclaim().unwrap());
        assert_eq!(arena.outstanding(), 0);
    }
}
