//! System calls that the standard library does not offer, each behind a safe
//! function or a small type.

#![allow(unsafe_code, reason = "thin wrappers around libc, one call each")]

pub mod child;
pub mod tun;

use std::io;
use std::mem;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Restricts the calling thread to one CPU.
///
/// # Errors
/// `EINVAL` when the CPU does not exist or is not allowed to this process.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: an all-zero cpu_set_t is a valid empty set, `cpu` is within it
    // (checked above), and the kernel reads exactly the size passed.
    let code = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, mem::size_of::<libc::cpu_set_t>(), &raw const set)
    };
    check(code).map(drop)
}

/// The CPUs that the calling thread may run on, in ascending order.
///
/// # Errors
/// What `sched_getaffinity(2)` reported; not expected.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: the kernel writes at most the size passed into `set`, and
    // CPU_ISSET reads within CPU_SETSIZE.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        check(libc::sched_getaffinity(0, mem::size_of::<libc::cpu_set_t>(), &raw mut set))?;
        Ok((0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect())
    }
}

/// How much later than asked the calling thread may be woken by a timer, in nanoseconds (at least
/// 1; the kernel's default is 50,000). Children inherit it.
///
/// # Errors
/// What `prctl(2)` reported; not expected.
pub fn set_timer_slack(nanoseconds: u32) -> io::Result<()> {
    // SAFETY: takes integers only; no memory of ours is involved.
    check(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, libc::c_ulong::from(nanoseconds.max(1))) })
        .map(drop)
}

/// The kernel's id of the calling thread.
pub fn thread_id() -> i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// The soft limit of open descriptors of this process (`RLIMIT_NOFILE`).
///
/// # Errors
/// What `getrlimit(2)` reported; not expected.
pub fn descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit into `limit`.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok(limit.rlim_cur)
}

/// Raises the soft limit of open descriptors to the hard one.
///
/// # Errors
/// What `getrlimit(2)` or `setrlimit(2)` reported; not expected.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes, then reads, one rlimit.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit))?;
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)).map(drop)
    }
}

/// Lowers the soft and the hard limit of open descriptors.
///
/// # Errors
/// `EPERM` when `limit` is above the hard limit and this process is not privileged.
pub fn lower_descriptor_limit(limit: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: the kernel reads one rlimit.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).map(drop)
}

/// Processor time that the calling thread has used.
///
/// # Panics
/// When the kernel has no such clock; every Linux since 2.6.12 has it.
pub fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    let code = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(code, 0, "a thread has a clock of its processor time");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Sends a signal to this process itself.
///
/// # Errors
/// `EINVAL` when there is no such signal.
pub fn signal_self(signal: i32) -> io::Result<()> {
    // SAFETY: takes two integers; this process exists.
    check(unsafe { libc::kill(libc::getpid(), signal) }).map(drop)
}

/// Sets `TCP_NODELAY`. On a listener, Linux copies it to what it accepts.
///
/// # Errors
/// What `setsockopt(2)` reported.
pub fn set_nodelay(socket: &impl AsFd) -> io::Result<()> {
    set_option(socket.as_fd().as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32)
}

/// Makes the next close of this socket send a RST and free its buffers at once.
///
/// # Errors
/// What `setsockopt(2)` reported.
pub fn set_reset_on_close(socket: &impl AsFd) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger)
}

/// Calls `listen(2)` again, which only changes the backlog: the standard
/// library always listens with 128.
///
/// # Errors
/// What `listen(2)` reported.
pub fn set_backlog(listener: &std::net::TcpListener, backlog: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open, since `listener` is borrowed.
    check(unsafe { libc::listen(listener.as_raw_fd(), backlog) }).map(drop)
}

/// Starts a non-blocking connect from `source` (its port chosen by the
/// kernel at connect, so that every source address has the whole range).
///
/// The connection is complete, or has failed, when the socket is writable.
///
/// # Errors
/// `EMFILE` out of descriptors; `EADDRNOTAVAIL` when the source address has no
/// port left towards `target`; anything but `EINPROGRESS` from `connect(2)`.
pub fn connect_from(source: std::net::Ipv4Addr, target: SocketAddrV4) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes three integers; the descriptor returned is new and ours.
    let socket = unsafe {
        let raw = check(libc::socket(libc::AF_INET, kind, 0))?;
        OwnedFd::from_raw_fd(raw)
    };
    let raw = socket.as_raw_fd();
    set_option(raw, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1i32)?;
    set_option(raw, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32)?;
    let from = inet(SocketAddrV4::new(source, 0));
    let to = inet(target);
    let length = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: both addresses are sockaddr_in of the length passed, and the
    // kernel only reads them.
    unsafe {
        check(libc::bind(raw, (&raw const from).cast(), length))?;
        if libc::connect(raw, (&raw const to).cast(), length) < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINPROGRESS) {
                return Err(error);
            }
        }
    }
    Ok(socket)
}

/// The pending error of a socket (`SO_ERROR`), which this call clears.
///
/// # Errors
/// The pending error, or what `getsockopt(2)` reported.
pub fn take_error(socket: RawFd) -> io::Result<()> {
    let mut pending: i32 = 0;
    let mut length = mem::size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `pending`.
    check(unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            (&raw mut pending).cast(),
            &raw mut length,
        )
    })?;
    if pending == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(pending)) }
}

/// `recv(2)` without waiting. 0 is the end of the stream.
///
/// # Errors
/// `WouldBlock` when nothing is there; else what the socket reported.
#[inline]
pub fn recv(socket: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`.
    let count =
        unsafe { libc::recv(socket, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// `send(2)` without waiting and without `SIGPIPE`; may take less than all.
///
/// # Errors
/// `WouldBlock` when the kernel's buffer is full; else what the socket reported.
#[inline]
pub fn send(socket: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads `bytes.len()` bytes from `bytes`.
    let count = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Accepts one connection, non-blocking and closed on exec.
///
/// # Errors
/// `WouldBlock` when the queue is empty; `EMFILE`/`ENFILE` out of descriptors;
/// network errors of the connection itself, such as `ECONNABORTED`.
#[inline]
pub fn accept(listener: RawFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: null addresses are allowed; the descriptor returned is new and ours.
    unsafe {
        let raw =
            check(libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags))?;
        Ok(OwnedFd::from_raw_fd(raw))
    }
}

/// An epoll instance, level-triggered, whose events carry a 64-bit token.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// A new, empty instance.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the descriptor returned is new and ours.
        unsafe {
            let raw = check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?;
            Ok(Self(OwnedFd::from_raw_fd(raw)))
        }
    }

    /// Watches a descriptor for `interest` (`EPOLLIN`, …).
    ///
    /// # Errors
    /// `EEXIST`, `ENOMEM`, `ENOSPC` (`fs.epoll.max_user_watches`).
    pub fn add(&self, fd: RawFd, interest: i32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, interest, token)
    }

    /// Changes what a descriptor is watched for.
    ///
    /// # Errors
    /// `ENOENT` when it is not watched.
    pub fn modify(&self, fd: RawFd, interest: i32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, interest, token)
    }

    fn control(&self, operation: i32, fd: RawFd, interest: i32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest as u32, u64: token };
        // SAFETY: the kernel reads one epoll_event.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &raw mut event) })
            .map(drop)
    }

    /// Waits and returns the number of events written. `None` waits for ever,
    /// zero does not wait. A signal counts as no event.
    ///
    /// # Errors
    /// Not expected: the arguments are checked by their types.
    #[inline]
    pub fn wait(
        &self,
        events: &mut [libc::epoll_event],
        timeout: Option<Duration>,
    ) -> io::Result<usize> {
        let milliseconds = match timeout {
            None => -1,
            Some(limit) => limit.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32,
        };
        // SAFETY: the kernel writes at most `events.len()` events.
        let count = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as i32,
                milliseconds,
            )
        };
        if count >= 0 {
            return Ok(count as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::Interrupted { Ok(0) } else { Err(error) }
    }

    /// As [`wait`](Self::wait), with a time limit in nanoseconds (`epoll_pwait2`, Linux 5.11): how
    /// late it returns is set by [`set_timer_slack`].
    ///
    /// # Errors
    /// `ENOSYS` from older kernels.
    #[inline]
    pub fn wait_precisely(
        &self,
        events: &mut [libc::epoll_event],
        timeout: Duration,
    ) -> io::Result<usize> {
        let limit = libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: the kernel reads one timespec and writes at most `events.len()` events; the
        // signal mask is null, and its size then ignored. `syscall` rather than the function of
        // that name, which only recent C libraries have.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as libc::c_int,
                &raw const limit,
                std::ptr::null::<libc::sigset_t>(),
                0_usize,
            )
        };
        if count >= 0 {
            return Ok(count as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::Interrupted { Ok(0) } else { Err(error) }
    }
}

/// An empty event, to fill the array that [`Epoll::wait`] writes into.
pub const NO_EVENT: libc::epoll_event = libc::epoll_event { events: 0, u64: 0 };

/// Sends a signal to a child that has not been waited for.
///
/// # Errors
/// What `kill(2)` reported.
pub fn signal(child: &std::process::Child, signal: i32) -> io::Result<()> {
    // SAFETY: takes two integers. The id is still the child's: `child` has not
    // been waited for, so the kernel keeps it as a zombie at least.
    check(unsafe { libc::kill(child.id() as i32, signal) }).map(drop)
}

fn inet(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

fn set_option<T>(socket: RawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes from `value`, which is a T.
    check(unsafe {
        libc::setsockopt(socket, level, name, std::ptr::from_ref(value).cast(), length)
    })
    .map(drop)
}

fn check(code: i32) -> io::Result<i32> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(code) }
}
