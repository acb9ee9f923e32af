//! What buffers pin, asked of the kernel: registered with a ring, in several layouts.
//!
//! Memory that the kernel may touch while its owner does something else is pinned, in whole pages:
//! on Linux what is registered with a ring (`io_uring_register_buffers(3)`), on Windows the buffers of
//! overlapped calls. How much of a page a buffer uses makes no difference to either.

#![allow(unsafe_code, reason = "memory that is registered with the kernel by its address")]

use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;

use io_uring::IoUring;
use plimsoll_kernel::process;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::results::Pinned;

/// Buffers of each layout: few enough for the 8 MiB that a user may usually lock.
const BUFFERS: usize = 64;
/// Bytes of a small buffer.
const SMALL: usize = 1024;

/// Makes a ring, registers buffers with it in each layout, reads what the process has pinned, and lets
/// go. A millisecond or two, and 512 KiB pinned meanwhile. Other threads that pin at that moment
/// spoil it. The inner error is why nothing was measured: the kernel refuses to pin so much, or has no
/// `VmPin`.
///
/// # Errors
///
/// The kernel's, where it makes no ring.
pub(crate) fn measure() -> io::Result<io::Result<Vec<Pinned>>> {
    IoUring::new(2).map(|ring| layouts(&ring))
}

fn layouts(ring: &IoUring) -> io::Result<Vec<Pinned>> {
    let page = rustix::param::page_size();
    let memory = Pages::new(2 * BUFFERS * page)?;
    let layouts = [
        ("whole_pages", page, page, 0),
        ("own_page", SMALL, page, 0),
        ("straddling", SMALL, 2 * page, page - SMALL / 2),
        ("packed", SMALL, SMALL, 0),
    ];
    layouts
        .into_iter()
        .map(|(layout, buffer, apart, start)| {
            let offsets = (0..BUFFERS).map(|number| start + number * apart);
            let pinned = pinned_by(ring, &memory, offsets, buffer)?;
            Ok(Pinned {
                layout: layout.to_owned(),
                buffer_bytes: buffer as u64,
                buffers: BUFFERS as u64,
                pinned_bytes: pinned,
                amplification: pinned as f64 / (BUFFERS * buffer) as f64,
            })
        })
        .collect()
}

/// What the kernel pins for buffers of so many bytes at these places.
fn pinned_by(
    ring: &IoUring,
    memory: &Pages,
    offsets: impl Iterator<Item = usize>,
    bytes: usize,
) -> io::Result<u64> {
    let buffers: Vec<_> = offsets
        .map(|offset| {
            assert!(offset + bytes <= memory.bytes);
            libc::iovec {
                iov_base: memory.start.as_ptr().wrapping_byte_add(offset),
                iov_len: bytes,
            }
        })
        .collect();
    let own = || process::pinned(std::process::id()).map_err(io::Error::other);
    let before = own()?;
    // SAFETY: all lie in the mapping, as was asserted, and no operation ever reads or writes through
    // them. Should letting go fail, the pages stay the kernel's after the mapping is gone.
    unsafe { ring.submitter().register_buffers(&buffers) }?;
    let pinned = own();
    ring.submitter().unregister_buffers()?;
    Ok(pinned?.saturating_sub(before))
}

/// Pages of our own, small ones: of a huge page the kernel would count all.
struct Pages {
    start: NonNull<c_void>,
    bytes: usize,
}

impl Pages {
    fn new(bytes: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice touches no
        // memory that exists.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, MapFlags::PRIVATE)? };
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the mapping is ours; the advice changes no contents. A kernel without huge pages
        // refuses it, and need not be told.
        let _ = unsafe { madvise(start.as_ptr(), bytes, Advice::LinuxNoHugepage) };
        Ok(Self { start, bytes })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size; nobody refers to it, for the memory is never used
        // but to be registered.
        let _ = unsafe { munmap(self.start.as_ptr(), self.bytes) };
    }
}
