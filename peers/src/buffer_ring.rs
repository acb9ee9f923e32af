//! A ring of provided buffers: memory from which the kernel takes a buffer at
//! the moment when there is something to receive (`io_uring_register_buf_ring(3)`).

#![allow(unsafe_code, reason = "memory shared with the kernel")]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// The id of the only buffer group.
pub const GROUP: u16 = 0;

/// Buffers of one size, registered with one ring.
///
/// Must be dropped after the ring that it was registered with: until then the
/// kernel may write into it. Declare it below the ring, as fields are dropped
/// in the order of their declaration.
#[derive(Debug)]
pub struct BufferRing {
    /// `count` entries, page-aligned, shared with the kernel.
    entries: Mapping,
    /// `count` buffers, `stride` bytes apart.
    memory: Mapping,
    count: u16,
    bytes: u32,
    stride: usize,
    /// Our copy of the tail; it wraps.
    tail: u16,
}

impl BufferRing {
    /// Maps and registers `count` buffers (a power of two, at most 32,768) of
    /// `bytes` each, `stride` bytes apart, and hands all of them to the kernel.
    ///
    /// # Errors
    /// `EINVAL` when the count is not a power of two or the kernel is older
    /// than 5.19; `ENOMEM`.
    pub fn register(ring: &IoUring, count: u16, bytes: u32, stride: usize) -> io::Result<Self> {
        if !count.is_power_of_two() || bytes == 0 || stride < bytes as usize {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Mapping::new(usize::from(count) * stride)?;
        let mut buffers = Self { entries, memory, count, bytes, stride, tail: 0 };
        // SAFETY: the mapping holds `count` entries, is page-aligned, and
        // outlives the ring, which the owner upholds by the order of its fields.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                buffers.entries.0.as_ptr() as u64,
                count,
                GROUP,
                0,
            )?;
        }
        for id in 0..count {
            buffers.give(id);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// The first `length` bytes of a buffer that the kernel has filled.
    ///
    /// # Panics
    /// If `id` or `length` is outside what was registered: the kernel names
    /// only what it was given.
    #[inline]
    pub fn filled(&self, id: u16, length: u32) -> &[u8] {
        assert!(id < self.count && length <= self.bytes, "a buffer that was never registered");
        // SAFETY: within the mapping by the assertion above. The kernel does
        // not write here: the caller has this buffer from a completion and has
        // not given it back. The pages were zeroed by mmap, so all is initialised.
        unsafe {
            let start = self.memory.0.as_ptr().add(usize::from(id) * self.stride);
            std::slice::from_raw_parts(start, length as usize)
        }
    }

    /// Puts a buffer back; the kernel sees it after [`publish`](Self::publish).
    #[inline]
    pub fn give(&mut self, id: u16) {
        debug_assert!(id < self.count);
        let at = usize::from(self.tail & (self.count - 1));
        // SAFETY: `at` is below `count`, so both the entry and the buffer lie
        // within their mappings. The kernel does not read this entry before the
        // tail is published beyond it, and no more than `count` buffers exist.
        unsafe {
            let entry = &mut *self.first_entry().add(at);
            entry.set_addr(self.memory.0.as_ptr().add(usize::from(id) * self.stride) as u64);
            entry.set_len(self.bytes);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    #[allow(clippy::cast_ptr_alignment, reason = "a mapping is aligned to a page")]
    fn first_entry(&self) -> *mut BufRingEntry {
        self.entries.0.as_ptr().cast()
    }

    /// Makes all buffers given so far visible to the kernel.
    #[inline]
    pub fn publish(&self) {
        // SAFETY: the tail lies in the first entry, within the mapping, is
        // aligned for u16, and only this thread writes it.
        unsafe {
            let tail = BufRingEntry::tail(self.first_entry()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

/// Anonymous, zeroed, page-aligned memory.
#[derive(Debug)]
struct Mapping(NonNull<u8>, usize);

impl Mapping {
    fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self(start, bytes))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`, unmapped once.
        unsafe {
            libc::munmap(self.0.as_ptr().cast(), self.1);
        }
    }
}
