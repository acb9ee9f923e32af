//! What a listener needs before it is bound, and what a connection takes over from its listener.
//!
//! Linux copies a listener's options to what it accepts. `AcceptEx` is given a socket that was made
//! by itself, and `SO_UPDATE_ACCEPT_CONTEXT` lends it the listener's properties without saying which of the
//! options are among them: so those that matter are read of the listener once, and set on each
//! connection.

use std::io;
use std::os::windows::io::AsRawSocket;

use windows_sys::Win32::Networking::WinSock as ws;

use super::system;

/// Reserves the address that this socket will be bound to (`SO_EXCLUSIVEADDRUSE`): no other socket can
/// be bound to it, nor to a specific address of its port where this one is bound to the wildcard.
/// Without it another program of the same user can, and takes connections that are meant for us. To be
/// called before the bind.
pub(crate) fn reserve_address(socket: &impl AsRawSocket) -> io::Result<()> {
    let reserved = system::set(socket, ws::SOL_SOCKET, ws::SO_EXCLUSIVEADDRUSE, 1_i32);
    reserved.map_err(io::Error::from_raw_os_error)
}

/// Whether the socket's address is reserved for it (`SO_EXCLUSIVEADDRUSE`).
#[cfg(test)]
pub(crate) fn is_exclusive(socket: &impl AsRawSocket) -> bool {
    system::get(socket, ws::SOL_SOCKET, ws::SO_EXCLUSIVEADDRUSE).is_ok_and(|on| on != 0)
}

/// Options of a listener. `None`, false: as a new socket has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Inherited {
    no_delay: bool,
    keep_alive: bool,
    /// Seconds until the first probe, and between probes.
    probes: Option<(i32, i32)>,
    send_bytes: Option<i32>,
    receive_bytes: Option<i32>,
}

impl Inherited {
    /// Those of a listener, where they are not those of `new`, a socket of the same family.
    pub(super) fn of(listener: &impl AsRawSocket, new: &impl AsRawSocket) -> Self {
        let both = |level, name| {
            let of = |socket: Result<i32, i32>| socket.ok();
            let value = of(system::get(listener, level, name))?;
            (of(system::get(new, level, name)) != Some(value)).then_some(value)
        };
        let (sockets, tcp) = (ws::SOL_SOCKET, ws::IPPROTO_TCP);
        let keep_alive = both(sockets, ws::SO_KEEPALIVE).is_some_and(|on| on != 0);
        // Unknown before Windows 10, version 1709: probes come in the system's own time then.
        let probes = keep_alive.then(|| {
            let idle = system::get(listener, tcp, ws::TCP_KEEPIDLE).ok()?;
            let interval = system::get(listener, tcp, ws::TCP_KEEPINTVL).ok()?;
            Some((idle, interval))
        });
        Self {
            no_delay: both(tcp, ws::TCP_NODELAY).is_some_and(|on| on != 0),
            keep_alive,
            probes: probes.flatten(),
            send_bytes: both(sockets, ws::SO_SNDBUF),
            receive_bytes: both(sockets, ws::SO_RCVBUF),
        }
    }

    /// Sets them on a connection. What cannot be set stays as it is: the connection works.
    pub(super) fn apply(&self, socket: &impl AsRawSocket) {
        let (sockets, tcp) = (ws::SOL_SOCKET, ws::IPPROTO_TCP);
        let set = |level, name, value: i32| _ = system::set(socket, level, name, value);
        if self.no_delay {
            set(tcp, ws::TCP_NODELAY, 1);
        }
        if self.keep_alive {
            set(sockets, ws::SO_KEEPALIVE, 1);
        }
        if let Some((idle, interval)) = self.probes {
            set(tcp, ws::TCP_KEEPIDLE, idle);
            set(tcp, ws::TCP_KEEPINTVL, interval);
        }
        if let Some(bytes) = self.send_bytes {
            set(sockets, ws::SO_SNDBUF, bytes);
        }
        if let Some(bytes) = self.receive_bytes {
            set(sockets, ws::SO_RCVBUF, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_socket_hands_nothing_on() {
        system::begin();
        let [one, two, set] = [(); 3].map(|()| system::socket(false).unwrap());
        assert_eq!(Inherited::of(&one, &two), Inherited::default());
        system::set(&one, ws::IPPROTO_TCP, ws::TCP_NODELAY, 1_i32).unwrap();
        let found = Inherited::of(&one, &two);
        assert!(found.no_delay && !found.keep_alive);
        found.apply(&set);
        assert_ne!(system::get(&set, ws::IPPROTO_TCP, ws::TCP_NODELAY), Ok(0));
    }
}
