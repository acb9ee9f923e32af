//! Memory from the system, in whole pages: `mmap(2)`, or `VirtualAlloc`.

use std::io;
use std::ptr::NonNull;

#[cfg(unix)]
pub(super) use self::unix::{map, page_bytes, unmap};
#[cfg(windows)]
pub(super) use self::windows::{map, page_bytes, unmap};

/// Whether [`forget`] gives pages back: on Linux.
pub(super) const FORGETS: bool = cfg!(target_os = "linux");

/// Gives pages back to the system: they read as zeroes from now on.
///
/// # Safety
///
/// The range is whole pages inside one mapping of [`map`], and nobody refers to its bytes.
#[cfg(target_os = "linux")]
pub(super) unsafe fn forget(start: NonNull<u8>, bytes: usize) {
    // SAFETY: the mapping is private and anonymous: its contents become zeroes, which is initialised
    // memory. The caller's promise is the rest.
    let _ = unsafe {
        rustix::mm::madvise(start.as_ptr().cast(), bytes, rustix::mm::Advice::LinuxDontNeed)
    };
}

/// Elsewhere no call gives pages back for certain and leaves them usable whatever happens
/// (`MEM_DECOMMIT` does, but the pages may not be had again): the block stays as it is.
///
/// # Safety
///
/// None is needed: nothing is done.
#[cfg(not(target_os = "linux"))]
pub(super) unsafe fn forget(_: NonNull<u8>, _: usize) {}

#[cfg(unix)]
mod unix {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    use super::{NonNull, io};

    /// A mapping whose pages are no one's until they are touched. FreeBSD's are so without a flag.
    #[cfg(not(target_os = "freebsd"))]
    const UNRESERVED: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);
    #[cfg(target_os = "freebsd")]
    const UNRESERVED: MapFlags = MapFlags::PRIVATE;

    /// `sysconf(_SC_PAGESIZE)`, asked once.
    pub(in super::super) fn page_bytes() -> usize {
        rustix::param::page_size()
    }

    /// Zero-filled memory at an address of the kernel's choice.
    pub(in super::super) fn map(bytes: usize) -> io::Result<NonNull<u8>> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice touches no
        // memory that exists.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, UNRESERVED)? };
        NonNull::new(start.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Gives it back.
    ///
    /// # Safety
    ///
    /// It was mapped by [`map`] with this size, and nobody refers to it, the kernel included.
    pub(in super::super) unsafe fn unmap(start: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's promise.
        let _ = unsafe { munmap(start.as_ptr().cast(), bytes) };
    }
}

#[cfg(windows)]
mod windows {
    use std::sync::OnceLock;

    use windows_sys::Win32::System::Memory::{
        MEM_COMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_READWRITE, VirtualAlloc, VirtualFree,
    };
    use windows_sys::Win32::System::SystemInformation::{GetSystemInfo, SYSTEM_INFO};

    use super::{NonNull, io};

    /// `GetSystemInfo`, asked once.
    pub(in super::super) fn page_bytes() -> usize {
        static BYTES: OnceLock<usize> = OnceLock::new();
        *BYTES.get_or_init(|| {
            let mut info = SYSTEM_INFO::default();
            // SAFETY: the call fills one structure through the pointer, which is to a live local.
            unsafe { GetSystemInfo(&raw mut info) };
            info.dwPageSize as usize
        })
    }

    /// Zero-filled memory at an address of the system's choice. Its pages are no one's until they are
    /// touched, but the system keeps room for them from now on: it never promises more than it
    /// has (the commit limit).
    pub(in super::super) fn map(bytes: usize) -> io::Result<NonNull<u8>> {
        // SAFETY: a new region at an address of the system's choice touches no memory that exists.
        let start = unsafe {
            VirtualAlloc(std::ptr::null(), bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE)
        };
        NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)
    }

    /// Gives it back.
    ///
    /// # Safety
    ///
    /// It was mapped by [`map`], and nobody refers to it, the kernel included.
    pub(in super::super) unsafe fn unmap(start: NonNull<u8>, _: usize) {
        // SAFETY: the caller's promise; a size of 0 releases the whole region.
        let _ = unsafe { VirtualFree(start.as_ptr().cast(), 0, MEM_RELEASE) };
    }
}
