//! A small echo server on a thread of its own: one listener whose connections
//! the client closes, one whose connections it closes itself after the echo.
//!
//! Plain level-triggered epoll, so that it is the same measure for every
//! variant. It is not the engine.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Error, Result};

/// Keys of the two listeners; connections have those from 2 on.
const ECHOING: u64 = 0;
const CLOSING: u64 = 1;
/// How often the thread looks whether it shall end.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// The running server; dropping it ends the thread and closes everything.
pub(super) struct Server {
    /// Echoes until the client closes.
    pub(super) echoing: SocketAddr,
    /// Closes after one message.
    pub(super) closing: SocketAddr,
    /// Path of the thread's schedstat.
    schedstat: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on two free ports of 127.0.0.1. `size` is a message's length.
    pub(super) fn start(size: usize) -> Result<Self> {
        let fail = |error: io::Error| {
            Error::machine(
                format!("cannot start the lab's own echo server: {error}"),
                "see `plimsoll doctor` for the limits of this machine, descriptors first",
            )
        };
        let (echoing, closing) = (listen().map_err(fail)?, listen().map_err(fail)?);
        let addresses = (echoing.local_addr().map_err(fail)?, closing.local_addr().map_err(fail)?);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
        for (listener, key) in [(&echoing, ECHOING), (&closing, CLOSING)] {
            let data = epoll::EventData::new_u64(key);
            epoll::add(&epoll, listener, data, epoll::EventFlags::IN)
                .map_err(|e| fail(e.into()))?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (tell, told) = mpsc::channel();
        let work = move || {
            // The starter waits for it.
            let _ = tell.send(rustix::thread::gettid());
            let mut served = Served {
                epoll,
                listeners: [echoing, closing],
                connections: Vec::new(),
                free: Vec::new(),
                size,
            };
            served.run(&stopped);
        };
        let thread =
            std::thread::Builder::new().name("churn-server".into()).spawn(work).map_err(fail)?;
        let tid = told.recv().map_err(|_| fail(io::ErrorKind::BrokenPipe.into()))?;
        let schedstat = format!("/proc/self/task/{}/schedstat", tid.as_raw_nonzero());
        Ok(Self {
            echoing: addresses.0,
            closing: addresses.1,
            schedstat,
            stop,
            thread: Some(thread),
        })
    }

    /// CPU time of the thread: the first number of its schedstat, which is current while it sleeps.
    pub(super) fn cpu_time(&self) -> Option<Duration> {
        let text = std::fs::read_to_string(&self.schedstat).ok()?;
        Some(Duration::from_nanos(text.split_ascii_whitespace().next()?.parse().ok()?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed, and must not become a second one here.
            let _ = thread.join();
        }
    }
}

fn listen() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    // The kernel cuts it to somaxconn.
    socket.listen(i32::MAX)?;
    Ok(socket.into())
}

struct Served {
    epoll: OwnedFd,
    listeners: [TcpListener; 2],
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    size: usize,
}

struct Connection {
    socket: OwnedFd,
    /// Bytes until it is closed here; `None`: the client closes.
    left: Option<usize>,
    /// Received and not yet sent.
    pending: Vec<u8>,
    /// Whether epoll watches for room to send, rather than for something to read.
    blocked: bool,
}

impl Served {
    fn run(&mut self, stop: &AtomicBool) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
        let mut buffer = vec![0; 64 * 1024];
        while !stop.load(Ordering::Acquire) {
            events.clear();
            if let Err(error) = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&TICK))
                && error != Errno::INTR
            {
                // The descriptor is ours and open: nothing else can be answered. The clients will
                // see the end of the server, and say so.
                return;
            }
            for event in &events {
                match event.data.u64() {
                    key @ (ECHOING | CLOSING) => self.accept(key),
                    key => self.serve(key as usize - 2, &mut buffer),
                }
            }
        }
    }

    fn accept(&mut self, key: u64) {
        // Until the queue is empty, or an error: then the next event tries again.
        while let Ok(socket) =
            accept_with(&self.listeners[key as usize], SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
        {
            let left = (key == CLOSING).then_some(self.size);
            let place = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let data = epoll::EventData::new_u64(place as u64 + 2);
            if epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN).is_ok() {
                self.connections[place] =
                    Some(Connection { socket, left, pending: Vec::new(), blocked: false });
            } else {
                self.free.push(place);
            }
        }
    }

    fn serve(&mut self, place: usize, buffer: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(place).and_then(Option::as_mut) else {
            return;
        };
        if connection.echo(buffer) {
            let blocked = !connection.pending.is_empty();
            if blocked == connection.blocked {
                return;
            }
            connection.blocked = blocked;
            // A reply that did not fit waits for room, and nothing is read meanwhile.
            let wanted = if blocked { epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
            let data = epoll::EventData::new_u64(place as u64 + 2);
            if epoll::modify(&self.epoll, &connection.socket, data, wanted).is_ok() {
                return;
            }
        }
        self.connections[place] = None;
        self.free.push(place);
    }
}

impl Connection {
    /// Sends what is pending, else receives once and sends it back. `false`: it is over.
    fn echo(&mut self, buffer: &mut [u8]) -> bool {
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            return self.reply(&pending);
        }
        match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) => false,
            Ok((count, _)) => self.reply(&buffer[..count]),
            Err(Errno::WOULDBLOCK | Errno::INTR) => true,
            // The client has reset, as some variants do.
            Err(_) => false,
        }
    }

    fn reply(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    self.left = self.left.map(|left| left.saturating_sub(sent));
                }
                Err(Errno::WOULDBLOCK) => {
                    self.pending.extend_from_slice(bytes);
                    return true;
                }
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        self.left != Some(0)
    }
}
