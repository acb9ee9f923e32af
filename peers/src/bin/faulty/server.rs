//! The event loop: accepts, receives, replies, and commits the faults that were asked for.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, ErrorKind, Write as _};
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use libc::{EPOLLIN, EPOLLOUT};
use plimsoll_peers::sys::{self, Epoll};

use crate::connection::Connection;
use crate::options::{Beyond, CrashBy, Options};
use crate::reply::Replier;
use crate::schedule::{Pacer, Stalls, burn};

/// Events taken from the kernel at once.
const EVENTS: usize = 1024;
/// The token of the listener; connections carry their descriptor.
const LISTENER: u64 = u64::MAX;
/// Connections accepted between two looks at the others.
const ACCEPTS_AT_ONCE: usize = 64;
/// Bytes received at once.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long the server waits when it is out of descriptors or memory, before it tries again.
const RETRY: Duration = Duration::from_millis(100);

/// A reply that waits for its time.
struct Waiting {
    due: Instant,
    fd: RawFd,
    serial: u64,
    bytes: Vec<u8>,
}

/// The server.
pub(crate) struct Server {
    options: Options,
    epoll: Epoll,
    listener: TcpListener,
    /// Whether the listener is watched.
    accepting: bool,
    /// Out of descriptors or memory: accepting is not tried before this.
    retry_at: Option<Instant>,
    /// By descriptor: the kernel always hands out the lowest free one.
    connections: Vec<Option<Connection>>,
    open: usize,
    accepted: u64,
    stalls: Stalls,
    pacer: Pacer,
    replier: Replier,
    /// In the order in which they are due.
    waiting: VecDeque<Waiting>,
    /// When each connection may have been silent for too long.
    idle: BinaryHeap<Reverse<(Instant, RawFd, u64)>>,
    has_stopped_itself: bool,
}

impl Server {
    /// Listens, and prints where.
    ///
    /// # Errors
    /// What `setrlimit(2)`, `bind(2)`, `listen(2)` or the write to standard output reported.
    pub(crate) fn start(options: Options) -> io::Result<Self> {
        match options.limits.descriptors {
            Some(limit) => sys::lower_descriptor_limit(limit)?,
            None => sys::raise_descriptor_limit()?,
        }
        let listener = TcpListener::bind(options.listen)?;
        sys::set_nodelay(&listener)?;
        sys::set_backlog(&listener, options.backlog)?;
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        epoll.add(listener.as_raw_fd(), EPOLLIN, LISTENER)?;
        let mut out = io::stdout().lock();
        writeln!(out, "listening {}", listener.local_addr()?)?;
        out.flush()?;
        Ok(Self {
            epoll,
            listener,
            accepting: true,
            retry_at: None,
            connections: Vec::new(),
            open: 0,
            accepted: 0,
            stalls: Stalls::new(&options.slowness),
            pacer: Pacer::new(options.slowness.reply_delay, options.limits.rate),
            replier: Replier::new(options.replies.clone(), options.ends.close_after_replies),
            waiting: VecDeque::new(),
            idle: BinaryHeap::new(),
            has_stopped_itself: false,
            options,
        })
    }

    /// Serves until it is killed, or crashes as it was asked to.
    ///
    /// # Errors
    /// What epoll reported; not expected.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events = vec![sys::NO_EVENT; EVENTS];
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let wait = self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
            let count = self.epoll.wait(&mut events, wait)?;
            while let Some(end) = self.stalls.end_of_current(Instant::now()) {
                std::thread::sleep(end.saturating_duration_since(Instant::now()));
            }
            for event in &events[..count] {
                match event.u64 {
                    LISTENER => self.accept()?,
                    fd => self.ready(fd as RawFd, &mut buffer),
                }
            }
            self.send_what_is_due();
            self.close_idle();
            self.resume_accepting()?;
        }
    }

    /// When something is to be done even if nothing is received.
    fn next_deadline(&self) -> Option<Instant> {
        let retry = self.retry_at.filter(|_| !self.accepting);
        let due = self.waiting.front().map(|reply| reply.due);
        let idle = self.idle.peek().map(|Reverse((at, ..))| *at);
        [self.stalls.next(), retry, due, idle].into_iter().flatten().min()
    }

    fn is_full(&self) -> bool {
        self.options.limits.max_connections.is_some_and(|most| self.open >= most)
    }

    /// Whether connections beyond the limit stay in the accept queue.
    fn is_silent(&self) -> bool {
        self.is_full() && self.options.limits.beyond == Beyond::Silence
    }

    fn accept(&mut self) -> io::Result<()> {
        let slowness = &self.options.slowness;
        let is_slow = !slowness.accept_delay.is_zero() || !slowness.accept_cpu.is_zero();
        for _ in 0..if is_slow { 1 } else { ACCEPTS_AT_ONCE } {
            if self.is_silent() {
                return self.pause_accepting(None);
            }
            match sys::accept(self.listener.as_raw_fd()) {
                Ok(socket) => self.admit(socket)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if is_shortage(&error) => {
                    return self.pause_accepting(Some(Instant::now() + RETRY));
                }
                // The connection ended while it was queued.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Takes care of a connection that was accepted.
    fn admit(&mut self, socket: OwnedFd) -> io::Result<()> {
        if self.accepted == 0 {
            self.stalls.begin(Instant::now());
        }
        self.accepted += 1;
        let is_beyond = self.is_full();
        burn(self.options.slowness.accept_cpu);
        std::thread::sleep(self.options.slowness.accept_delay);
        if is_beyond {
            turn_away(socket, &self.options.limits.beyond);
            return Ok(());
        }
        let limits = &self.options.limits;
        let (memory, thread) = (limits.memory_per_connection, limits.thread_per_connection);
        // Without a thread for it, the connection is dropped, which closes it.
        let Ok(mut connection) = Connection::new(socket, self.accepted, memory, thread) else {
            return Ok(());
        };
        let (fd, serial) = (connection.fd(), connection.serial);
        connection.push(&vec![b'g'; self.options.replies.greeting]);
        self.epoll.add(fd, EPOLLIN, fd as u64)?;
        if let Some(limit) = self.options.ends.idle {
            self.idle.push(Reverse((connection.heard + limit, fd, serial)));
        }
        if self.connections.len() <= fd as usize {
            self.connections.resize_with(fd as usize + 1, || None);
        }
        self.connections[fd as usize] = Some(connection);
        self.open += 1;
        self.flush(fd);
        self.end_or_stop()
    }

    /// Ends or stops the process where it was asked to at this number of connections.
    fn end_or_stop(&mut self) -> io::Result<()> {
        if self.options.ends.crash_at.is_some_and(|at| self.open >= at) {
            match self.options.ends.crash_by {
                CrashBy::Abort => std::process::abort(),
                CrashBy::Kill => sys::signal_self(libc::SIGKILL)?,
                CrashBy::Exit => std::process::exit(1),
            }
        }
        if !self.has_stopped_itself
            && self.options.slowness.stop_at.is_some_and(|at| self.open >= at)
        {
            self.has_stopped_itself = true;
            sys::signal_self(libc::SIGSTOP)?;
        }
        Ok(())
    }

    /// Leaves further connections in the accept queue: a watched listener would wake us for ever.
    fn pause_accepting(&mut self, retry_at: Option<Instant>) -> io::Result<()> {
        self.accepting = false;
        self.retry_at = retry_at;
        self.epoll.modify(self.listener.as_raw_fd(), 0, LISTENER)
    }

    fn resume_accepting(&mut self) -> io::Result<()> {
        let is_early = self.retry_at.is_some_and(|at| Instant::now() < at);
        if self.accepting || self.is_silent() || is_early {
            return Ok(());
        }
        self.accepting = true;
        self.retry_at = None;
        self.epoll.modify(self.listener.as_raw_fd(), EPOLLIN, LISTENER)
    }

    /// A connection has something to read, room to send in, or has ended.
    fn ready(&mut self, fd: RawFd, buffer: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(fd as usize).and_then(Option::as_mut)
        else {
            // Closed earlier in this batch of events.
            return;
        };
        if connection.watched_for_room {
            self.flush(fd);
            return;
        }
        match connection.receive(buffer) {
            Ok(0) => self.close(fd),
            Ok(count) => self.hear(fd, &buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.close(fd),
        }
    }

    /// Replies to what was received, or decides when to.
    fn hear(&mut self, fd: RawFd, bytes: &[u8]) {
        let Some(connection) = self.connections[fd as usize].as_mut() else { return };
        if connection.is_last_reply {
            return;
        }
        connection.received.extend_from_slice(bytes);
        for message in self.replier.take_messages(&mut connection.received) {
            burn(self.options.slowness.reply_cpu);
            connection.replies += 1;
            let nth = connection.replies;
            let reply = self.replier.reply(message, nth);
            if self.pacer.is_idle() {
                connection.push(&reply);
            } else {
                let due = self.pacer.due(Instant::now());
                connection.waiting += 1;
                let serial = connection.serial;
                self.waiting.push_back(Waiting { due, fd, serial, bytes: reply });
            }
            if self.replier.is_last(nth) {
                connection.is_last_reply = true;
                break;
            }
        }
        self.flush(fd);
    }

    fn send_what_is_due(&mut self) {
        let now = Instant::now();
        while self.waiting.front().is_some_and(|reply| reply.due <= now) {
            let reply = self.waiting.pop_front().expect("there is a first one");
            let connection = self.connections[reply.fd as usize].as_mut();
            if let Some(connection) = connection.filter(|one| one.serial == reply.serial) {
                connection.waiting -= 1;
                connection.push(&reply.bytes);
                self.flush(reply.fd);
            }
        }
    }

    /// Sends what is to be sent; what the kernel does not take is sent when there is room.
    /// Nothing is received meanwhile.
    fn flush(&mut self, fd: RawFd) {
        let Some(connection) = self.connections[fd as usize].as_mut() else { return };
        let Ok(is_left) = connection.flush() else { return self.close(fd) };
        if is_left != connection.watched_for_room {
            connection.watched_for_room = is_left;
            let interest = if is_left { EPOLLOUT } else { EPOLLIN };
            if self.epoll.modify(fd, interest, fd as u64).is_err() {
                self.close(fd);
            }
        }
    }

    fn close_idle(&mut self) {
        let Some(limit) = self.options.ends.idle else { return };
        let now = Instant::now();
        while let Some(Reverse((at, fd, serial))) = self.idle.peek().copied() {
            if at > now {
                return;
            }
            self.idle.pop();
            let connection = self.connections[fd as usize].as_ref();
            let Some(connection) = connection.filter(|one| one.serial == serial) else { continue };
            let silent_until = connection.heard + limit;
            if silent_until <= now {
                self.close(fd);
            } else {
                self.idle.push(Reverse((silent_until, fd, serial)));
            }
        }
    }

    fn close(&mut self, fd: RawFd) {
        if self.connections[fd as usize].take().is_some() {
            self.open -= 1;
            // A descriptor is free again.
            self.retry_at = None;
        }
    }
}

/// Whether accepting failed because the process or the machine has no descriptor left, or no
/// memory for the socket.
fn is_shortage(error: &io::Error) -> bool {
    let shortages = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| shortages.contains(&code))
}

/// Ends a connection beyond the limit.
fn turn_away(socket: OwnedFd, how: &Beyond) {
    // The client may have gone already, which is nothing to us.
    match how {
        Beyond::Close | Beyond::Silence => {}
        Beyond::Reset => drop(sys::set_reset_on_close(&socket)),
        Beyond::Text(text) => drop(sys::send(socket.as_raw_fd(), text)),
    }
    drop(socket);
}
