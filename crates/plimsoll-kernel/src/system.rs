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

/// How a process ended that its parent has waited for, as `wait(2)` reports it: `PIDFD_GET_INFO` with
/// `PIDFD_INFO_EXIT` (`include/uapi/linux/pidfd.h`), Linux 6.15. `None` before its parent has waited,
/// and on older kernels.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "rustix has no such request")]
pub(crate) fn exit_of_reaped(pidfd: &std::os::fd::OwnedFd) -> Option<i32> {
    use std::os::fd::AsRawFd as _;

    /// `struct pidfd_info` as of its first version, of 64 bytes, which later kernels still fill.
    #[repr(C)]
    #[derive(Default)]
    struct PidfdInfo {
        mask: u64,
        cgroupid: u64,
        /// pid, tgid, ppid, and eight of user and group.
        ids: [u32; 11],
        exit_code: i32,
    }
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    const PIDFD_GET_INFO: libc::Ioctl = libc::_IOWR::<PidfdInfo>(0xff, 11);

    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the descriptor is open as long as `pidfd` is borrowed. The request carries the size of
    // `PidfdInfo`, so that the kernel reads and writes no more than that through the pointer, which
    // is to a live local; any bits are valid in its fields, and the kernel keeps nothing.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}
