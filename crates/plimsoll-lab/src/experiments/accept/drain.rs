//! Filling a queue, and timing how fast it is drained.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::{listen, machine};
use crate::Result;
use crate::sys::{self, thread_cpu};

/// A way of accepting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// `accept4`, the connection is kept.
    Accept,
    /// `accept4` and `close`, the client is there.
    AcceptClose,
    /// `accept4` and `close`, the client has reset.
    AcceptCloseReset,
    /// `accept4` while more clients arrive from another thread.
    WhileArriving,
}

impl Way {
    /// The first is the one that [`crate::results::Accept::accepts_per_second`] reports. Windows does
    /// not give out a connection whose client has reset.
    pub(super) const ALL: &[Self] = if cfg!(windows) {
        &[Self::Accept, Self::AcceptClose, Self::WhileArriving]
    } else {
        &[Self::Accept, Self::AcceptClose, Self::AcceptCloseReset, Self::WhileArriving]
    };

    pub(super) fn name(self) -> &'static str {
        match self {
            _ if cfg!(windows) => self.name_on_windows(),
            Self::Accept => "accept4",
            Self::AcceptClose => "accept4 + close",
            Self::AcceptCloseReset => "accept4 + close, client has reset",
            Self::WhileArriving => "accept4 while clients arrive",
        }
    }

    fn name_on_windows(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::AcceptClose => "accept + closesocket",
            Self::AcceptCloseReset => "accept + closesocket, client has reset",
            Self::WhileArriving => "accept while clients arrive",
        }
    }
}

/// One queue drained.
#[derive(Debug)]
pub(super) struct Drained {
    pub(super) accepted: u64,
    pub(super) seconds: f64,
    /// Of the draining thread.
    pub(super) cpu_seconds: f64,
    /// How fast the queue was filled.
    pub(super) connects_per_second: f64,
}

/// Fills a queue with `count` connections (half as many, if the others arrive meanwhile) and
/// drains it. The clients close with a reset, which leaves no `TIME_WAIT`.
pub(super) fn run(way: Way, count: u64, timeout: Duration) -> Result<Drained> {
    let (listener, address) = listen(count as u32)?;
    let fill = if way == Way::WhileArriving { count / 2 } else { count };
    let start = Instant::now();
    let mut clients = Vec::with_capacity(fill as usize);
    for _ in 0..fill {
        clients.push(connect(address, timeout)?);
    }
    let connects_per_second = fill as f64 / start.elapsed().as_secs_f64();
    if way == Way::AcceptCloseReset {
        clients.clear();
    }
    let mut drained = match way {
        Way::WhileArriving => while_arriving(&listener, address, count - fill, timeout)?,
        Way::Accept => drain(&listener, fill, false)?,
        Way::AcceptClose | Way::AcceptCloseReset => drain(&listener, fill, true)?,
    };
    drained.connects_per_second = connects_per_second;
    Ok(drained)
}

fn while_arriving(
    listener: &TcpListener,
    address: SocketAddr,
    more: u64,
    timeout: Duration,
) -> Result<Drained> {
    let (started, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut held = Vec::with_capacity(more as usize);
            while (held.len() as u64) < more && !stop.load(Ordering::Relaxed) {
                match connect(address, timeout) {
                    Ok(socket) => held.push(socket),
                    // The drain does not depend on these; it ends when the queue is empty.
                    Err(_) => break,
                }
                started.store(true, Ordering::Relaxed);
            }
            started.store(true, Ordering::Relaxed);
            held
        });
        while !started.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
        let drained = drain(listener, more, false);
        stop.store(true, Ordering::Relaxed);
        // The client's closure returns on every path.
        drop(client.join());
        drained
    })
}

/// Accepts until the queue is empty.
fn drain(listener: &TcpListener, expected: u64, close: bool) -> Result<Drained> {
    let mut kept = Vec::with_capacity(2 * expected as usize + 16);
    let mut accepted = 0;
    let cpu = thread_cpu();
    let start = Instant::now();
    loop {
        match sys::accept(listener) {
            Ok(connection) => {
                accepted += 1;
                if close {
                    drop(connection);
                } else {
                    kept.push(connection);
                }
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => break,
                // A signal, or a client that reset: the next one may be there.
                ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                _ => return Err(machine("accept", &error)),
            },
        }
    }
    let seconds = start.elapsed().as_secs_f64().max(1e-9);
    let cpu_seconds = thread_cpu().saturating_sub(cpu).as_secs_f64();
    if accepted == 0 {
        let nothing = std::io::Error::from(std::io::ErrorKind::WouldBlock);
        return Err(machine("find the connections that were queued", &nothing));
    }
    Ok(Drained { accepted, seconds, cpu_seconds, connects_per_second: 0.0 })
}

/// A client that resets when it closes. On Linux the send timeout bounds `connect` too (socket(7)).
fn connect(address: SocketAddr, timeout: Duration) -> Result<Socket> {
    let made = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_write_timeout(Some(timeout.max(Duration::from_millis(1))))?;
        // Ctrl-C interrupts a connect that blocks; asked again, it goes on where it was (connect(2)).
        while let Err(error) = socket.connect(&address.into()) {
            if error.kind() != std::io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok(socket)
    };
    made().map_err(|error| machine("fill the accept queue", &error))
}
