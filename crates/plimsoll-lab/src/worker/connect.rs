//! Making connections: non-blocking connects, a bounded number in flight.
//!
//! Nothing is registered anywhere: on loopback the handshake is over when
//! `connect` returns, which a second `connect` finds out; the few that are
//! slower (a dropped SYN comes again after 1 s) are looked at with `poll`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::protocol::{Connect, Connected, Keep, Tally, Why};

/// How long to wait when there is nothing to do but wait: bounds how late a request to stop is seen.
const PATIENCE: Duration = Duration::from_millis(10);
/// Connects begun before looking at those in flight, at most.
const BATCH: usize = 32;
/// Time between two reports of progress.
const REPORT_EVERY: Duration = Duration::from_millis(25);

/// Keeps this thread on the CPU that it is on, as long as it lives. A kernel that says no is
/// heeded: the request is carried out all the same.
struct OneCpu(Option<CpuSet>);

impl OneCpu {
    fn enter() -> Self {
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

struct Pending {
    socket: Socket,
    since: Instant,
}

/// One [`Connect`] at work.
pub(super) struct Connecting<'a> {
    ask: &'a Connect,
    address: SockAddr,
    held: &'a mut Vec<Socket>,
    room: usize,
    pending: Vec<Pending>,
    tally: Tally,
    since: Instant,
    /// The range of ports, where the kernel lets a socket have one of its own.
    ports: Option<(u16, u16)>,
    failed_in_a_row: u32,
    end: Option<Why>,
}

impl<'a> Connecting<'a> {
    /// Connections go to `held`, which never holds more than `room`.
    pub(super) fn new(ask: &'a Connect, held: &'a mut Vec<Socket>, room: usize) -> Self {
        Self {
            ask,
            address: SockAddr::from(ask.target),
            held,
            room,
            pending: Vec::new(),
            tally: Tally::default(),
            since: Instant::now(),
            ports: plimsoll_kernel::limits::Limits::read().local_ports,
            failed_in_a_row: 0,
            end: None,
        }
    }

    /// Runs to the end. `stop` is asked often; `progress` is told now and then.
    pub(super) fn run(
        mut self,
        mut stop: impl FnMut() -> bool,
        mut progress: impl FnMut(&Tally),
    ) -> Connected {
        let _one_cpu = self.ask.one_cpu.then(OneCpu::enter);
        let mut reported = Instant::now();
        let why = loop {
            if stop() {
                break Why::Stopped;
            }
            self.begin_some();
            if let Err(error) = self.look() {
                self.fail(&error);
            }
            self.tally.in_flight = self.pending.len() as u64;
            match self.end {
                // What is in flight may still be established: wait for it.
                Some(why) if self.pending.is_empty() || why == Why::Failing => break why,
                None if self.tally.established >= self.ask.count => break Why::Done,
                _ => {}
            }
            if reported.elapsed() >= REPORT_EVERY {
                reported = Instant::now();
                progress(&self.tally);
            }
        };
        Connected { tally: self.tally, why, source: self.ask.source }
    }

    fn begin_some(&mut self) {
        for _ in 0..BATCH {
            let begun = self.tally.established + self.pending.len() as u64;
            if self.end.is_some() || begun >= self.ask.count {
                return;
            }
            if self.pending.len() >= self.ask.in_flight.max(1) {
                return;
            }
            if self.held.len() + self.pending.len() >= self.room {
                self.end = Some(Why::Descriptors);
                return;
            }
            self.tally.attempted += 1;
            if let Err(error) = self.begin() {
                self.fail(&error);
            }
        }
    }

    fn begin(&mut self) -> io::Result<()> {
        let socket = Socket::new(
            Domain::for_address(self.ask.target),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )?;
        if let Some(source) = self.ask.source {
            crate::sys::bind_address_no_port(&socket)?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        if let Some((first, last)) = self.ports
            && crate::sys::local_port_range(&socket, first, last).is_err()
        {
            // Linux before 6.3: it is slower without, no more.
            self.ports = None;
        }
        match socket.connect(&self.address) {
            Ok(()) => self.established(socket),
            Err(error) if in_progress(&error) => match socket.connect(&self.address) {
                Ok(()) => self.established(socket),
                Err(error) if in_progress(&error) => {
                    self.pending.push(Pending { socket, since: Instant::now() });
                }
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Looks at what is in flight; waits for it if nothing new may be begun.
    fn look(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let full = self.pending.len() >= self.ask.in_flight.max(1)
            || self.tally.established + self.pending.len() as u64 >= self.ask.count
            || self.end.is_some();
        let patience = if full { PATIENCE } else { Duration::ZERO };
        let ready: Vec<bool> = {
            let mut fds: Vec<PollFd<'_>> = self
                .pending
                .iter()
                .map(|one| PollFd::from_borrowed_fd(one.socket.as_fd(), PollFlags::OUT))
                .collect();
            wait(&mut fds, patience)?;
            fds.iter().map(|fd| !fd.revents().is_empty()).collect()
        };
        let now = Instant::now();
        let timeout = Duration::from_millis(self.ask.timeout_ms);
        let mut ready = ready.into_iter();
        let looked_at = std::mem::take(&mut self.pending);
        for one in looked_at {
            if ready.next().unwrap_or(false) {
                match one.socket.take_error() {
                    Ok(None) => self.established(one.socket),
                    Ok(Some(error)) | Err(error) => self.fail(&error),
                }
            } else if now.duration_since(one.since) >= timeout {
                self.fail(&io::Error::from_raw_os_error(libc::ETIMEDOUT));
            } else {
                self.pending.push(one);
            }
        }
        Ok(())
    }

    fn established(&mut self, socket: Socket) {
        self.failed_in_a_row = 0;
        self.tally.established += 1;
        self.tally.last_us = self.since.elapsed().as_micros() as u64;
        match self.ask.keep {
            Keep::Open => self.held.push(socket),
            Keep::Close => drop(socket),
            Keep::Reset => reset(socket),
        }
    }

    fn fail(&mut self, error: &io::Error) {
        *self.tally.errors.entry(error_name(error)).or_default() += 1;
        let why = match error.raw_os_error() {
            // EADDRINUSE: a port bound by somebody else, found by `bind` on an old kernel.
            Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE) => Why::Ports,
            Some(libc::EMFILE) => Why::Descriptors,
            Some(libc::ENFILE) => Why::Files,
            Some(libc::ENOBUFS | libc::ENOMEM) => Why::Memory,
            _ => {
                self.failed_in_a_row += 1;
                if self.failed_in_a_row < self.ask.failures {
                    return;
                }
                Why::Failing
            }
        };
        self.end.get_or_insert(why);
    }
}

/// Closes with a RST: the kernel drops both ends at once, no `TIME_WAIT`.
pub(super) fn reset(socket: Socket) {
    // A refusal (the socket has failed already) changes nothing: it is closed either way.
    let _ = socket.set_linger(Some(Duration::ZERO));
    drop(socket);
}

/// `poll(2)`, going on after a signal.
pub(super) fn wait(fds: &mut [PollFd<'_>], patience: Duration) -> io::Result<()> {
    let patience =
        Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) };
    match poll(fds, Some(&patience)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn in_progress(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EALREADY))
}

/// The name of an error as C spells it (`ECONNREFUSED`).
pub(super) fn error_name(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.kind().to_string(), crate::errno::name)
}
