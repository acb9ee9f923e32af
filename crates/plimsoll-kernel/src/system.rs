//! The few figures that come from a call instead of a file.

#[cfg(windows)]
pub(crate) mod windows;

#[cfg(windows)]
pub(crate) use windows::physical_memory;

/// Bytes per page of memory, or `None` on systems not known here.
#[cfg_attr(
    any(target_os = "linux", windows),
    allow(clippy::unnecessary_wraps, reason = "other systems have no figure")
)]
pub(crate) fn page_size() -> Option<u64> {
    #[cfg(target_os = "linux")]
    return Some(rustix::param::page_size() as u64);
    #[cfg(windows)]
    return Some(windows::page_size());
    #[cfg(not(any(target_os = "linux", windows)))]
    None
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

/// The CPU time of a process; of one that has ended too, as long as somebody holds a handle of it.
#[cfg(windows)]
pub(crate) fn process_cpu_clock(pid: u32) -> Option<std::time::Duration> {
    windows::cpu_time(pid)
}

#[cfg(not(any(target_os = "linux", windows)))]
pub(crate) fn process_cpu_clock(_: u32) -> Option<std::time::Duration> {
    None
}
