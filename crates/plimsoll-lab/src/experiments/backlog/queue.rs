//! The listener that never accepts, and what can be seen of its queue.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use plimsoll_kernel::diag::{self, Family, Filter, States};
use plimsoll_kernel::limits::Limits;
use socket2::{Domain, Protocol, Socket, Type};

use crate::verdict::backlog::Proof;
use crate::{Error, Result};

/// Connections that the counter-proof takes out of the queue.
const TAKEN: usize = 8;

/// A listener that never accepts, but for a counter-proof at its end. Closing it resets the queue.
pub(super) struct NonAcceptingListener {
    /// Where clients reach it.
    pub(super) address: SocketAddr,
    listener: TcpListener,
}

impl NonAcceptingListener {
    /// Listens on a port below the range that clients are given ports from: above it, the listener
    /// itself would take one of their ports.
    pub(super) fn listen(address: IpAddr, requested: Option<i64>) -> Result<Self> {
        let backlog = match requested {
            Some(asked) => Some(i32::try_from(asked).map_err(|_| {
                Error::usage(
                    format!("a backlog of {asked} does not fit listen(2)'s int"),
                    format!("ask for at most {}", i32::MAX),
                )
            })?),
            None => None,
        };
        let first = Limits::read().local_ports.map_or(32_768, |(first, _)| first);
        let mut refused = None;
        for port in candidates(first) {
            let wanted = SocketAddr::new(address, port);
            match listen_on(wanted, backlog) {
                Ok(listener) => return Ok(Self { address: wanted, listener }),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                    refused = Some(error);
                }
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        let why = refused.map_or_else(|| "no free port".to_owned(), |error| error.to_string());
        Err(Error::machine(
            format!("cannot listen on {address}: {why}"),
            "give an address of this machine, and free a port below the range that clients use",
        ))
    }

    /// The counter-proof where the queue cannot be seen: takes some connections out of it, and has
    /// one more client connect to `target`. In words.
    pub(super) fn make_room(&self, target: SocketAddr, patience: Duration) -> Proof {
        let taken: Vec<_> = (0..TAKEN).map_while(|_| self.listener.accept().ok()).collect();
        if taken.is_empty() {
            return Proof { moved: false, says: "nothing could be accepted from it".to_owned() };
        }
        let how_many = taken.len();
        match TcpStream::connect_timeout(&target, patience) {
            Ok(_) => Proof {
                moved: true,
                says: format!("with {how_many} accepted, the next client connected"),
            },
            Err(error) => Proof {
                moved: false,
                says: format!("with {how_many} accepted, the next client failed still ({error})"),
            },
        }
    }
}

/// What the system grants; `None` where it does not tell.
pub(super) fn granted(address: SocketAddr) -> Option<u64> {
    diag::listener(address).ok().flatten().map(|queue| u64::from(queue.limit))
}

/// The depth now. Linux tells it. Windows does not; there the connections at the listener's port
/// that are established, or that the client has closed, are counted in the table of sockets: nobody
/// has accepted any. `None` where neither is to be had.
pub(super) fn depth(address: SocketAddr) -> Option<u64> {
    if !cfg!(windows) {
        return diag::listener(address).ok().flatten().map(|queue| u64::from(queue.depth));
    }
    let waiting = Filter {
        family: if address.is_ipv4() { Family::V4 } else { Family::V6 },
        ..Filter::local(address.port()).states(States::ESTABLISHED | States::CLOSE_WAIT)
    };
    diag::connections(&waiting, |_| {}).ok()
}

/// Up to 64 ports below `first`, beginning at one that differs from run to run.
fn candidates(first: u16) -> impl Iterator<Item = u16> {
    use std::hash::{BuildHasher as _, RandomState};
    let low = 1024.min(first.saturating_sub(1)).max(1);
    let size = first.saturating_sub(low).max(1);
    let start = (RandomState::new().hash_one(Instant::now()) % u64::from(size)) as u16;
    (0..64.min(size)).map(move |step| {
        low + (u32::from(start) + u32::from(step) * 7).rem_euclid(u32::from(size)) as u16
    })
}

fn listen_on(address: SocketAddr, backlog: Option<i32>) -> std::io::Result<TcpListener> {
    let listener = match backlog {
        // The library's default, whatever it is.
        None => TcpListener::bind(address)?,
        Some(backlog) => {
            // Not inherited by the workers: socket2 sees to that.
            let domain = Domain::for_address(address);
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
            socket.bind(&address.into())?;
            socket.listen(backlog)?;
            socket.into()
        }
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}
