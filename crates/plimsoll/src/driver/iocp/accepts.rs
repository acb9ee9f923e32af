//! Accepts: posted ahead, each with its socket.
//!
//! A bounded number is the kernel's at a time; what is asked for beyond waits in a queue. Completions
//! come to the port of the *listener*, whatever the accepted socket belongs to. That socket is
//! fresh, of no port yet, or was disconnected and belongs to the port of the driver that will serve
//! it: this one, or the one that it was [borrowed](super::exchange) of. A fresh one is associated by
//! the driver that adopts it.

use std::net::{SocketAddr, TcpListener};
use std::os::windows::io::{AsRawSocket, OwnedSocket};

use windows_sys::Win32::Networking::WinSock as ws;

use super::operations::Place;
use super::options::Inherited;
use super::slots::{ACCEPTED, V6};
use super::system::{self, Posted};
use super::{Iocp, errors};
use crate::driver::{Accepted, Completion, Into, Token};

/// What listens.
pub(super) struct Listening {
    pub(super) listener: TcpListener,
    pub(super) v6: bool,
    inherited: Inherited,
    /// Why its accepts cannot be told of; 0: they can.
    deaf: i32,
}

/// A connection between two shards: accepted by one driver, not yet adopted by another.
#[derive(Debug)]
pub struct Handed {
    pub(super) socket: OwnedSocket,
    /// The number of the driver to whose port it belongs; of none yet, where there is none.
    pub(super) home: Option<u32>,
    pub(super) v6: bool,
}

/// An accept that was asked for: into a slot, or into a socket for any shard, or for this one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub(super) token: Token,
    pub(super) into: Into,
    pub(super) shard: Option<u32>,
}

/// An accept that was posted, or has brought something.
#[derive(Default)]
pub(super) struct Accept {
    wish: Option<Wish>,
    /// In flight: what is accepted into. Then: what is handed over.
    socket: Option<OwnedSocket>,
    /// Whose port the socket belongs to.
    home: Option<u32>,
    peer: Option<SocketAddr>,
}

impl Accept {
    /// Closes what it is to accept into, or has accepted.
    pub(super) fn close(&mut self) {
        self.socket = None;
    }
}

impl Iocp {
    /// Begins to listen.
    pub(super) fn begin_listening(&mut self, listener: TcpListener) {
        let v6 = listener.local_addr().is_ok_and(|address| address.is_ipv6());
        let deaf = self.associate(&listener).err().unwrap_or(0);
        let inherited = match system::socket(v6) {
            Ok(new) => Inherited::of(&listener, &new),
            Err(_) => Inherited::default(),
        };
        self.accepts_v6 = v6;
        self.listening = Some(Listening { listener, v6, inherited, deaf });
        self.exchange.open(v6);
        self.stock(u32::MAX);
    }

    /// Makes fresh sockets for accepts, so many at most.
    pub(super) fn stock(&mut self, most: u32) {
        let Some(listening) = &self.listening else { return };
        for _ in 0..self.pool.wanted().min(most) {
            // An accept that finds none says what is wrong.
            let Ok(socket) = system::socket(listening.v6) else { return };
            self.pool.stock(socket);
        }
    }

    /// Posts those that wait, as many as there may be; says what cannot be posted.
    pub(super) fn post_accepts(&mut self, out: &mut Vec<Completion>, limit: usize) {
        while out.len() < limit {
            let Some(&wish) = self.waiting.front() else { return };
            let Some(number) = self.free_accepts.pop() else { return };
            self.waiting.pop_front();
            self.accepts[number as usize].wish = Some(wish);
            match self.post_accept(number, wish) {
                Ok(Posted::Pending) => self.in_kernel += 1,
                Ok(Posted::Done(_)) => self.complete_accept(number, Ok(()), out),
                Ok(Posted::Failed(code)) | Err(code) => {
                    self.complete_accept(number, Err(code), out);
                }
            }
        }
    }

    fn post_accept(&mut self, number: u32, wish: Wish) -> Result<Posted, i32> {
        let Some(listening) = &self.listening else { return Err(ws::WSA_OPERATION_ABORTED) };
        if listening.deaf != 0 {
            return Err(listening.deaf);
        }
        let used = match wish {
            Wish { into: Into::Slot, .. } => self.pool.accepted().map(|own| (own, self.number)),
            Wish { shard: Some(shard), .. } => {
                let lent = self.exchange.borrow(shard).map(|lent| (lent, shard));
                lent.inspect(|_| self.pool.borrowed())
            }
            Wish { .. } => None,
        };
        let (socket, home) = match used {
            Some((socket, home)) => (socket, Some(home)),
            None => match self.pool.fresh() {
                Some(socket) => (socket, None),
                None => (system::socket(listening.v6)?, None),
            },
        };
        let armed = self.operations.arm(Place::Accept(number), None);
        let addresses = self.addresses.at(number as usize);
        // SAFETY: operations and addresses are freed after the last completion only, and this
        // number's are not in flight, for it was free. The socket is kept in the accept until then.
        let posted = unsafe {
            let listener = &listening.listener;
            self.extensions.post_accept(listener, &socket, addresses, armed, self.skips)
        };
        let accept = &mut self.accepts[number as usize];
        (accept.socket, accept.home) = (Some(socket), home);
        Ok(posted)
    }

    /// An accept is over: the kernel is done with its operation.
    pub(super) fn complete_accept(
        &mut self,
        number: u32,
        result: Result<(), i32>,
        out: &mut Vec<Completion>,
    ) {
        let accept = &mut self.accepts[number as usize];
        let wish = accept.wish.expect("an accept completes once");
        let brought = match (result, accept.socket.take()) {
            (Ok(()), Some(socket)) => self.take_in(number, wish, socket),
            (Ok(()), None) => Err(ws::WSAENOTSOCK),
            // What was to be accepted into is closed: nothing says in which state it is.
            (Err(code), _) => Err(code),
        };
        let token = wish.token;
        if wish.into == Into::Slot {
            self.slots[token.slot() as usize].end(crate::driver::Kind::Accept);
        }
        let result = match brought {
            Ok(()) => {
                self.brought.push_back(number);
                Ok(0)
            }
            Err(code) => {
                self.accepts[number as usize] = Accept::default();
                self.free_accepts.push(number);
                Err(errors::accept_failure(code))
            }
        };
        out.push(Completion { token, result, lease: None, more: false });
    }

    /// Makes what was accepted a connection like any other.
    fn take_in(&mut self, number: u32, wish: Wish, socket: OwnedSocket) -> Result<(), i32> {
        // The listener was closed first: the connection cannot be had without it.
        let Some(listening) = &self.listening else { return Err(ws::WSA_OPERATION_ABORTED) };
        let context = listening.listener.as_raw_socket();
        system::set(&socket, ws::SOL_SOCKET, ws::SO_UPDATE_ACCEPT_CONTEXT, context)?;
        system::unblock(&socket)?;
        listening.inherited.apply(&socket);
        let v6 = if listening.v6 { V6 } else { 0 };
        // SAFETY: the accept of this number has completed with success, and was given these addresses.
        let peer = unsafe { self.extensions.peer(self.addresses.at(number as usize)) };
        let peer = peer.ok_or(ws::WSAECONNABORTED)?;
        let accept = &mut self.accepts[number as usize];
        accept.peer = Some(peer);
        match (wish.into, accept.home) {
            (Into::Socket, _) => accept.socket = Some(socket),
            (Into::Slot, home) => {
                if home.is_none() {
                    self.associate(&socket)?;
                }
                self.slots[wish.token.slot() as usize].install(socket, ACCEPTED | v6);
            }
        }
        Ok(())
    }

    /// What a completed accept brought, once.
    pub(super) fn take_brought(&mut self, token: Token) -> Option<Accepted<Handed>> {
        let is_it = |&number: &u32| {
            self.accepts[number as usize].wish.is_some_and(|wish| wish.token == token)
        };
        // In the order of the completions, it is the first.
        let at = self.brought.iter().position(is_it)?;
        let number = self.brought.remove(at)?;
        let Accept { peer, socket, home, .. } = std::mem::take(&mut self.accepts[number as usize]);
        self.free_accepts.push(number);
        let peer = peer.expect("it succeeded");
        let handed = |socket| Handed { socket, home, v6: self.accepts_v6 };
        Some(Accepted { peer, socket: socket.map(handed) })
    }
}
