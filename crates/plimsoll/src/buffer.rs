//! Page-aligned arenas, and leases on their blocks.
//!
//! One arena belongs to one shard. It is a single anonymous mapping, cut into
//! blocks of equal size, a whole number of pages each, so that an operation
//! that pins its buffer pins no byte of another. Pages are touched when a block
//! is first used: an arena that is never used costs address space only.
//!
//! A [`Lease`] is the right to one block. It is neither `Clone` nor `Copy`, so
//! that whoever holds it holds the block alone: the shard while it reads or
//! writes the bytes, the driver while the kernel may. The types enforce the
//! hand-over; what they cannot enforce (a kernel that still reads bytes being
//! sent) is written at [`Memory`].
//!
//! A lease does not know its arena: with the memory of another it would reach a block that somebody
//! else holds. So the bytes are the engine's alone, where each shard has one arena:
//!
//! ```compile_fail,E0624
//! # let mut arena = plimsoll::buffer::Arena::new(2, 4096).unwrap();
//! # let mut lease = arena.lease().unwrap();
//! lease.bytes_mut(arena.memory()).fill(1);
//! ```

#![allow(unsafe_code, reason = "one mapping, shared with the kernel, is handed out block by block")]

use std::io;
use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::sync::Arc;

mod mapping;

/// The size of a page of this system, in bytes: 4,096 on most, 16,384 on some.
///
/// Asked of the system once (`sysconf(_SC_PAGESIZE)`, `GetSystemInfo`), then O(1).
pub fn page_bytes() -> usize {
    mapping::page_bytes()
}

/// The right to one block of an arena. Four bytes, and so is an `Option` of it.
///
/// A lease that is dropped instead of given back is lost to its arena until the
/// arena goes: [`Arena::outstanding`] shows it.
#[derive(Debug, PartialEq, Eq)]
pub struct Lease(NonZeroU32);

impl Lease {
    /// The number of its block: `0..Arena::blocks()`.
    pub fn block(&self) -> u32 {
        self.0.get() - 1
    }

    /// The bytes of the block. `memory` must be the arena's that the lease came from.
    pub(crate) fn bytes<'a>(&'a self, memory: &'a Memory) -> &'a [u8] {
        let start = memory.start_of(self.block());
        // SAFETY: `start_of` checked that the block lies inside the mapping, which lives as long
        // as `memory`. Its bytes are initialised (anonymous mappings are zero-filled). Nobody
        // writes them while `&self` lives: a driver may only be writing to a block whose lease it
        // holds, and another `&mut` needs this lease mutably. That `memory` is the lease's own is
        // up to the crate, which alone may call this: a shard has one arena.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), memory.block_bytes) }
    }

    /// The bytes of the block, to be written. `memory` must be the arena's that the lease came from.
    pub(crate) fn bytes_mut<'a>(&'a mut self, memory: &'a Memory) -> &'a mut [u8] {
        let start = memory.start_of(self.block());
        // SAFETY: as in `bytes`; and `&mut self` is the only reference to the only lease on this
        // block, so the slice is unique.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), memory.block_bytes) }
    }
}

/// A part of a block, named without a lease: what a driver is asked to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The block's number.
    pub block: u32,
    /// The first byte, counted from the block's start.
    pub start: u32,
    /// How many bytes.
    pub len: u32,
}

/// The mapping behind an arena. Drivers keep it alive while the kernel may use it.
///
/// The kernel may read bytes that a shard still holds the lease of: those being
/// sent. The shard does not change them until the send has completed; if it did, wrong
/// bytes would be sent, but no reference of Rust's would be invalid, since
/// the kernel's reads are outside of the program.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<u8>,
    blocks: u32,
    block_bytes: usize,
}

// SAFETY: the mapping belongs to no thread; access to its bytes goes through leases, each of
// which exists once, and so is synchronised by whatever hands the lease over.
unsafe impl Send for Memory {}
// SAFETY: as above; outside of the crate `&Memory` alone gives no access to bytes, and within it
// only `copy_span` and `copy_out` do, for the holder of the lease.
unsafe impl Sync for Memory {}

impl Memory {
    fn map(blocks: u32, block_bytes: usize) -> io::Result<Self> {
        let bytes = (blocks as usize)
            .checked_mul(block_bytes)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let start = mapping::map(bytes.max(page_bytes()))?;
        Ok(Self { start, blocks, block_bytes })
    }

    /// Bytes in a block: a whole number of pages.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The address of a block, for the kernel.
    ///
    /// Panics where there is no such block.
    pub(crate) fn start_of(&self, block: u32) -> NonNull<u8> {
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        // SAFETY: `block < blocks`, so the offset is inside the mapping of `blocks × block_bytes`.
        unsafe { self.start.add(block as usize * self.block_bytes) }
    }

    /// The address of a part of a block, for the kernel.
    ///
    /// Panics where the part is not inside its block.
    pub(crate) fn start_of_span(&self, span: Span) -> NonNull<u8> {
        assert!(span.start as usize + span.len as usize <= self.block_bytes, "{span:?}");
        // SAFETY: checked above: the part lies inside its block.
        unsafe { self.start_of(span.block).add(span.start as usize) }
    }

    /// Copies a part of a block to the start of `into`, which is of another block.
    ///
    /// The caller holds the part's lease and is not writing to it; the session layer
    /// names only the block that a handler is being shown.
    ///
    /// Panics where `into` is too short, or overlaps the part.
    pub(crate) fn copy_span(&self, from: Span, into: &mut [u8]) {
        let start = self.start_of_span(from);
        let (source, target) = (start.as_ptr() as usize, into.as_ptr() as usize);
        let len = from.len as usize;
        assert!(len <= into.len() && (source + len <= target || target + into.len() <= source));
        // SAFETY: the source is inside the mapping and initialised; the target is as long, and
        // apart, both asserted. Nobody writes to the source meanwhile: its lease's holder is the
        // caller.
        unsafe { std::ptr::copy_nonoverlapping(start.as_ptr(), into.as_mut_ptr(), len) };
    }

    /// Gives a block's pages back to the system, where that can be: on Linux, where it reads as
    /// zeroes from now on.
    fn forget(&self, lease: &Lease) {
        let start = self.start_of(lease.block());
        // SAFETY: the block is whole pages inside the mapping. Nobody refers to them, since the
        // caller holds the lease, and drivers give a lease back only when the kernel is done.
        unsafe { mapping::forget(start, self.block_bytes) };
    }

    /// Which bytes of `block` these are; `None` where they lie elsewhere.
    pub(crate) fn span_within(&self, block: u32, bytes: &[u8]) -> Option<Span> {
        let base = self.start_of(block).as_ptr() as usize;
        let start = (bytes.as_ptr() as usize).checked_sub(base)?;
        (start + bytes.len() <= self.block_bytes).then_some(Span {
            block,
            start: start as u32,
            len: bytes.len() as u32,
        })
    }

    /// Copies a part of a block out: what a driver without a kernel does to "send" it.
    ///
    /// The holder of the block's lease must not be writing these bytes meanwhile, which the
    /// contract of [`crate::driver::Driver::send`] demands of it.
    pub(crate) fn copy_out(&self, span: Span, into: &mut Vec<u8>) {
        let start = self.start_of_span(span);
        // SAFETY: the span is inside the mapping, initialised, and per the contract of `send`
        // unchanged until that send completes; the slice does not outlive this call.
        into.extend_from_slice(unsafe {
            std::slice::from_raw_parts(start.as_ptr(), span.len as usize)
        });
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let bytes = (self.blocks as usize * self.block_bytes).max(page_bytes());
        // SAFETY: the mapping was made by `map` with this size, and nothing refers to it: leases
        // only give access together with a borrow of `self`, and drivers that lend blocks to the
        // kernel hold an `Arc` of `self` until the kernel is done.
        unsafe { mapping::unmap(self.start, bytes) };
    }
}

/// The blocks of one shard, and which of them are free.
///
/// Free blocks are reused last in, first out: the most recently used one is the likeliest to be
/// in the cache. Nothing is allocated after [`Arena::new`].
#[derive(Debug)]
pub struct Arena {
    memory: Arc<Memory>,
    free: Vec<Lease>,
    fewest_free: usize,
    /// Leases given out, ever, and those of blocks whose pages were touched for the first time.
    leases: u64,
    misses: u64,
    /// The pages of blocks `0..touched` have been touched.
    touched: u32,
    recycles: bool,
}

impl Arena {
    /// An arena of `blocks` blocks of `block_bytes`, rounded up to whole pages.
    ///
    /// # Errors
    ///
    /// The system's, where the address space or the memory is not to be had.
    pub fn new(blocks: u32, block_bytes: usize) -> io::Result<Self> {
        let block_bytes = block_bytes.max(1).next_multiple_of(page_bytes());
        let memory = Arc::new(Memory::map(blocks, block_bytes)?);
        let free: Vec<Lease> = (1..=blocks).rev().filter_map(NonZeroU32::new).map(Lease).collect();
        Ok(Self {
            memory,
            fewest_free: free.len(),
            free,
            leases: 0,
            misses: 0,
            touched: 0,
            recycles: true,
        })
    }

    /// The mapping, for a driver to keep.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// A block, or `None` where all are leased. O(1), no allocation.
    pub fn lease(&mut self) -> Option<Lease> {
        let lease = self.free.pop()?;
        self.fewest_free = self.fewest_free.min(self.free.len());
        self.leases += 1;
        // Free blocks that were never used lie below all others, in the order of their numbers.
        // Without recycling a block has lost its pages when it comes back, so that each is a miss.
        if lease.block() >= self.touched {
            self.touched = lease.block() + 1;
            self.misses += 1;
        } else if !self.recycles {
            self.misses += 1;
        }
        Some(lease)
    }

    /// Has blocks that come back give their pages back to the system, so that each use faults them
    /// in anew: what a server without a pool pays, for comparison. A system call for each block. Only
    /// on Linux: elsewhere they stay as they are, and count as recycled.
    pub fn without_recycling(mut self) -> Self {
        self.recycles = !mapping::FORGETS;
        self
    }

    /// Takes a block back. O(1), no allocation.
    pub fn give_back(&mut self, lease: Lease) {
        if !self.recycles {
            self.memory.forget(&lease);
        }
        debug_assert!(lease.block() < self.memory.blocks);
        debug_assert!(self.free.len() < self.memory.blocks as usize, "more leases than blocks");
        self.free.push(lease);
    }

    /// Blocks that are leased now.
    pub fn outstanding(&self) -> usize {
        self.memory.blocks as usize - self.free.len()
    }

    /// Leases of blocks whose pages were touched for the first time, ever.
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// Leases of blocks whose pages were there before, ever.
    pub fn hits(&self) -> u64 {
        self.leases - self.misses
    }

    /// Touches the pages of so many blocks, or of all where there are fewer: they take memory now
    /// instead of when they are first used. A page fault each, 0.1–0.5 µs.
    pub fn warm_up(&mut self, blocks: u32) {
        let memory = self.memory.clone();
        let page = page_bytes();
        for lease in
            self.free.iter_mut().filter(|lease| (self.touched..blocks).contains(&lease.block()))
        {
            for byte in lease.bytes_mut(&memory).iter_mut().step_by(page) {
                // SAFETY: a byte that is borrowed may be written.
                unsafe { std::ptr::from_mut(byte).write_volatile(0) };
            }
        }
        self.touched = self.touched.max(blocks.min(self.memory.blocks));
    }

    /// The most blocks that were leased at once.
    pub fn high_water(&self) -> usize {
        self.memory.blocks as usize - self.fewest_free
    }

    /// Blocks that are free now.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Bytes in a block.
    pub fn block_bytes(&self) -> usize {
        self.memory.block_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_pages_and_apart() {
        let mut arena = Arena::new(3, 1000).unwrap();
        assert_eq!(arena.block_bytes() % page_bytes(), 0);
        let mut a = arena.lease().unwrap();
        let mut b = arena.lease().unwrap();
        let memory = arena.memory().clone();
        a.bytes_mut(&memory).fill(1);
        b.bytes_mut(&memory).fill(2);
        assert!(a.bytes(&memory).iter().all(|&byte| byte == 1));
        assert!(b.bytes(&memory).iter().all(|&byte| byte == 2));
        assert_eq!(memory.start_of(a.block()).as_ptr() as usize % page_bytes(), 0);
    }

    #[test]
    fn an_empty_arena_says_so_and_counts() {
        let mut arena = Arena::new(2, 1).unwrap();
        let a = arena.lease().unwrap();
        let b = arena.lease().unwrap();
        assert_eq!(arena.lease(), None);
        assert_eq!((arena.outstanding(), arena.available()), (2, 0));
        arena.give_back(b);
        arena.give_back(a);
        assert_eq!((arena.outstanding(), arena.high_water()), (0, 2));
        let _again = arena.lease().unwrap();
        assert_eq!((arena.misses(), arena.hits()), (2, 1));
    }

    #[test]
    fn blocks_touched_ahead_are_hits() {
        let mut arena = Arena::new(3, 1).unwrap();
        arena.warm_up(2);
        let _all: Vec<_> = (0..3).map(|_| arena.lease().unwrap()).collect();
        assert_eq!((arena.hits(), arena.misses()), (2, 1));
        arena.warm_up(9);
    }

    #[test]
    fn a_block_that_is_not_recycled_comes_back_empty() {
        let (forgotten, hits) = if mapping::FORGETS { (0, 0) } else { (7, 1) };
        for (arena, byte, hits) in [
            (Arena::new(1, 1).unwrap(), 7, 1),
            (Arena::new(1, 1).unwrap().without_recycling(), forgotten, hits),
        ] {
            let mut arena = arena;
            let memory = arena.memory().clone();
            let mut lease = arena.lease().unwrap();
            lease.bytes_mut(&memory).fill(7);
            arena.give_back(lease);
            assert_eq!(arena.lease().unwrap().bytes(&memory)[0], byte);
            assert_eq!(arena.hits(), hits, "pages given up are not there before");
        }
    }

    #[test]
    fn an_option_of_a_lease_is_four_bytes() {
        assert_eq!(size_of::<Option<Lease>>(), 4);
    }

    #[test]
    #[should_panic(expected = "block 2 of 2")]
    fn a_block_outside_the_arena_is_refused() {
        let arena = Arena::new(2, 1).unwrap();
        let _ = arena.memory().start_of(2);
    }
}
