//! The few figures that come from a call instead of a file.

/// Bytes per page of memory, or `None` on systems not known here.
#[cfg_attr(
    target_os = "linux",
    allow(clippy::unnecessary_wraps, reason = "other systems have no figure")
)]
pub(crate) fn page_size() -> Option<u64> {
    #[cfg(target_os = "linux")]
    return Some(rustix::param::page_size() as u64);
    #[cfg(not(target_os = "linux"))]
    None
}

/// The machine's physical memory on Windows: bytes to be had, and bytes in all
/// (`GlobalMemoryStatusEx`, `ullAvailPhys` and `ullTotalPhys`). Some microseconds, no allocation.
#[cfg(windows)]
#[allow(unsafe_code, reason = "one system call that fills a structure")]
pub(crate) fn physical_memory() -> Option<(u64, u64)> {
    use windows_sys::Win32::System::SystemInformation::{GlobalMemoryStatusEx, MEMORYSTATUSEX};

    let mut status =
        MEMORYSTATUSEX { dwLength: size_of::<MEMORYSTATUSEX>() as u32, ..Default::default() };
    // SAFETY: the call writes one structure, of the length that it says, through the pointer, which
    // is to a live local; it keeps nothing.
    let told = unsafe { GlobalMemoryStatusEx(&raw mut status) } != 0;
    told.then_some((status.ullAvailPhys, status.ullTotalPhys))
}

/// Ticks per second in which `/proc/PID/stat` counts CPU time (`USER_HZ`).
pub(crate) fn clock_ticks_per_second() -> u64 {
    #[cfg(target_os = "linux")]
    return rustix::param::clock_ticks_per_second();
    #[cfg(not(target_os = "linux"))]
    100
}

/// The CPU time of all threads of a process, of those that have ended too, to
/// the nanosecond; `None` if the kernel does not give it.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "rustix has no CPU clock of another process")]
pub(crate) fn process_cpu_clock(pid: u32) -> Option<std::time::Duration> {
    let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0)?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the call writes one clockid_t through the pointer, which is to a
    // live local; it keeps nothing.
    if unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) } != 0 {
        return None;
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec through the pointer, which is to a
    // live local; it keeps nothing. Any clock id is allowed: a wrong one fails.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return None;
    }
    let (seconds, nanos) = (u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?);
    Some(std::time::Duration::new(seconds, nanos))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn process_cpu_clock(_: u32) -> Option<std::time::Duration> {
    None
}
