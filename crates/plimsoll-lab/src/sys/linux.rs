//! Linux' part: mostly what neither std, rustix nor socket2 offers as safe functions.

#![allow(unsafe_code, reason = "a socket option without a safe wrapper, and a hook before exec")]

use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use socket2::Socket;

use super::{Fate, Interrupt, Wanted};

/// Descriptors kept back: the standard streams, and what the process opens itself.
const RESERVE: u64 = 32;
/// Sockets looked at by one `poll`.
const CHECKED_AT_ONCE: usize = 1024;

/// Ties a child to this process: it is killed when the *thread* that spawns it ends
/// (`PR_SET_PDEATHSIG`), so spawn from a thread that outlives the child. Its soft limit on
/// descriptors is raised to the hard one.
pub(crate) fn tie_to_parent(command: &mut Command, interrupt: Interrupt) {
    if interrupt == Interrupt::OwnGroup {
        command.process_group(0).stdin(Stdio::null());
    }
    let parent = rustix::process::getpid();
    // SAFETY: the closure runs in the child between fork and exec, where only
    // async-signal-safe functions may be called. prctl, getppid, signal, getrlimit and setrlimit
    // are plain system calls; the closure neither allocates nor locks, and its errors are bare
    // errno values. It captures only two `Copy` values.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            if rustix::process::getppid() != Some(parent) {
                // The parent died before the line above.
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            if interrupt == Interrupt::Ignored {
                libc::signal(libc::SIGINT, libc::SIG_IGN);
            }
            raise_descriptor_limit();
            Ok(())
        });
    }
}

/// Raises this process' soft limit on descriptors to its hard one. A refusal leaves it as it is.
pub fn raise_descriptor_limit() {
    use rustix::process::{Rlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    if now.current != now.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    }
}

/// Binds to an address, and leaves the port to `connect`: so one port serves many destinations.
pub(crate) fn bind_source(socket: &Socket, source: IpAddr) -> io::Result<()> {
    bind_address_no_port(socket)?;
    socket.bind(&std::net::SocketAddr::new(source, 0).into())
}

/// `IP_BIND_ADDRESS_NO_PORT`: a `bind` to port 0 chooses the address only, and `connect` chooses
/// the port, so that one port serves many destinations. Without it a bound source address has
/// *fewer* connections than an unbound one. It holds for IPv6 sockets too (`ip(7)`).
fn bind_address_no_port(socket: &impl AsRawFd) -> io::Result<()> {
    set_ip_option(socket, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// `IP_LOCAL_PORT_RANGE` (Linux 6.3): the ports that `connect` may choose from, within the
/// namespace's range.
///
/// Even the whole range makes a difference: without this option the kernel tries all even ports
/// before any odd one, so that each connect after the first half of the range walks 14,000 taken
/// ports (`__inet_hash_connect`; measured: 28,232 connections from one address take 55 s instead of
/// 1).
pub(crate) fn spread_ports(socket: &impl AsRawFd, first: u16, last: u16) -> io::Result<()> {
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    let range = (u32::from(last) << 16) | u32::from(first);
    set_ip_option(socket, IP_LOCAL_PORT_RANGE, range.cast_signed())
}

fn set_ip_option(socket: &impl AsRawFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `socket` is borrowed; the pointer and the length
    // describe `value`, which outlives the call, and the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Asks a child to end in order: SIGTERM.
pub(crate) fn ask_to_end(child: &mut Child) {
    if let Some(pid) = Pid::from_raw(child.id() as i32) {
        // It may have ended just now: then there is nobody to tell.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// How many sockets this process may hold.
pub(crate) fn room() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(1 << 20).saturating_sub(RESERVE)
}

/// How many sockets a worker process may hold: it raises its soft limit to the hard one.
pub(crate) fn room_of_worker() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20).saturating_sub(RESERVE)
}

/// Bytes per page of memory.
pub(crate) fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // The clock counts up from 0, and its nanoseconds stay below a second.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Ends a connection by RST (`tcp_disconnect`) and makes the socket as good as new.
pub(crate) fn connect_again(socket: &Socket) -> io::Result<()> {
    rustix::net::connect_unspec(socket).map_err(io::Error::from)
}

/// The next connection of a listener that does not block; its socket does not block either.
pub(crate) fn accept(listener: &TcpListener) -> io::Result<Socket> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::accept_with(listener, flags)?.into())
}

/// Keeps this thread on the CPU that it is on, as long as it lives. A kernel that says no is
/// heeded: what is done is done all the same.
pub(crate) struct OneCpu(Option<CpuSet>);

impl OneCpu {
    pub(crate) fn enter() -> Self {
        let before = sched_getaffinity(None).ok();
        let mut here = CpuSet::new();
        here.set(sched_getcpu());
        Self(before.filter(|_| sched_setaffinity(None, &here).is_ok()))
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = sched_setaffinity(None, before);
        }
    }
}

/// Sockets that are waited for together.
pub(crate) struct Poll<'a>(Vec<PollFd<'a>>);

impl<'a> Poll<'a> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// One more, behind those before.
    pub(crate) fn watch(&mut self, socket: &'a Socket, wanted: Wanted) {
        let flags = match wanted {
            Wanted::Read => PollFlags::IN,
            Wanted::Write => PollFlags::OUT,
            Wanted::Both => PollFlags::IN | PollFlags::OUT,
        };
        self.0.push(PollFd::from_borrowed_fd(socket.as_fd(), flags));
    }

    /// Waits until something is there on one of them, or for so long. A signal ends it early.
    pub(crate) fn wait(&mut self, patience: Duration) -> io::Result<()> {
        wait(&mut self.0, patience)
    }

    /// Whether there was something on each of them, errors included, in the order of
    /// [`watch`](Self::watch).
    pub(crate) fn ready(&self) -> impl Iterator<Item = bool> {
        self.0.iter().map(|fd| !fd.revents().is_empty())
    }

    /// What has become of connections. Bytes that wait to be read do not hide a FIN behind them,
    /// as they would from `recv(MSG_PEEK)`.
    pub(crate) fn fates(sockets: &[Socket], mut each: impl FnMut(Fate)) -> io::Result<()> {
        for some in sockets.chunks(CHECKED_AT_ONCE) {
            let mut fds: Vec<PollFd<'_>> = some
                .iter()
                .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::RDHUP))
                .collect();
            wait(&mut fds, Duration::ZERO)?;
            for fd in &fds {
                let events = fd.revents();
                each(if events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
                    Fate::Reset
                } else if events.contains(PollFlags::RDHUP) {
                    Fate::Closed
                } else {
                    Fate::Alive
                });
            }
        }
        Ok(())
    }
}

fn wait(fds: &mut [PollFd<'_>], patience: Duration) -> io::Result<()> {
    let patience =
        Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) };
    match poll(fds, Some(&patience)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
