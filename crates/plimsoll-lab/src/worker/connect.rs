//! Making connections: non-blocking connects, a bounded number in flight.
//!
//! Nothing is registered anywhere: on loopback the handshake is over when
//! `connect` returns, which a second `connect` finds out; the few that are
//! slower (a dropped SYN comes again after 1 s) are looked at with `poll`.

use std::io;
use std::time::{Duration, Instant};

use socket2::{SockAddr, Socket};

use super::held::Held;
use super::protocol::{Connect, Connected, Keep, Tally, Why};
use crate::errno::{self, Short};
use crate::sys::{self, OneCpu, Poll, Wanted};

/// How long to wait when there is nothing to do but wait: bounds how late a request to stop is seen.
const PATIENCE: Duration = Duration::from_millis(10);
/// Connects begun before looking at those in flight, at most.
const BATCH: usize = 32;
/// Time between two reports of progress.
const REPORT_EVERY: Duration = Duration::from_millis(25);

struct Pending {
    socket: Socket,
    since: Instant,
}

/// One [`Connect`] at work.
pub(super) struct Connecting<'a> {
    ask: &'a Connect,
    address: SockAddr,
    held: &'a mut Held,
    room: usize,
    pending: Vec<Pending>,
    tally: Tally,
    since: Instant,
    /// The range of ports, where the kernel lets a socket have one of its own.
    ports: Option<(u16, u16)>,
    failed_in_a_row: u32,
    /// When a connect was last answered, by an establishment or a refusal.
    answered_at: Instant,
    end: Option<Why>,
}

impl<'a> Connecting<'a> {
    /// Connections go to `held`, which never holds more than `room`.
    pub(super) fn new(ask: &'a Connect, held: &'a mut Held, room: usize) -> Self {
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
            answered_at: Instant::now(),
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
        let socket = sys::stream_socket(self.ask.target)?;
        if let Some(source) = self.ask.source {
            sys::bind_source(&socket, source)?;
        }
        if let Some((first, last)) = self.ports
            && sys::spread_ports(&socket, first, last).is_err()
        {
            // Linux before 6.3, or another system: it is slower without, no more.
            self.ports = None;
        }
        match socket.connect(&self.address) {
            Ok(()) => self.established(socket),
            // Windows does not finish a connect while it begins one, and a second call is an error.
            Err(error) if errno::in_progress(&error) && cfg!(windows) => self.put_by(socket),
            Err(error) if errno::in_progress(&error) => match socket.connect(&self.address) {
                Ok(()) => self.established(socket),
                Err(error) if errno::in_progress(&error) => self.put_by(socket),
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn put_by(&mut self, socket: Socket) {
        self.pending.push(Pending { socket, since: Instant::now() });
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
            let mut poll = Poll::new(self.pending.len());
            for one in &self.pending {
                poll.watch(&one.socket, Wanted::Write);
            }
            poll.wait(patience)?;
            poll.ready().collect()
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
                self.fail(&errno::timed_out());
            } else {
                self.pending.push(one);
            }
        }
        Ok(())
    }

    fn established(&mut self, socket: Socket) {
        self.failed_in_a_row = 0;
        self.answered_at = Instant::now();
        self.tally.established += 1;
        self.tally.last_us = self.since.elapsed().as_micros() as u64;
        match self.ask.keep {
            Keep::Open => self.held.push(socket),
            Keep::Close => drop(socket),
            Keep::Reset => reset(socket),
        }
    }

    fn fail(&mut self, error: &io::Error) {
        *self.tally.errors.entry(errno::name_of(error)).or_default() += 1;
        let why = match errno::short_of(error) {
            Some(Short::Ports) => Why::Ports,
            Some(Short::Descriptors) => Why::Descriptors,
            Some(Short::Files) => Why::Files,
            Some(Short::Memory) => Why::Memory,
            None => {
                self.failed_in_a_row += 1;
                let timed_out = errno::is_time_out(error);
                if !timed_out {
                    self.answered_at = Instant::now();
                }
                // Where few are left to be made, they would time out one after the other until as many
                // have failed as are allowed. Two time limits without an answer are enough.
                let timeout = Duration::from_millis(self.ask.timeout_ms);
                let silent = timed_out && self.answered_at.elapsed() >= timeout * 2;
                if self.failed_in_a_row < self.ask.failures && !silent {
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
