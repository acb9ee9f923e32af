//! Accepts: posted ahead, each with its socket.
//!
//! A bounded number is the kernel's at a time; what is asked for beyond waits in a queue. Completions
//! come to the port of the *listener*, whatever the accepted socket belongs to. That socket is
//! fresh, of no port yet, or one of this driver's own that was disconnected; one that is handed
//! over is always fresh, and is associated by the driver that adopts it.

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

/// An accept that was posted, or has brought something.
#[derive(Default)]
pub(super) struct Accept {
    wish: Option<(Token, Into)>,
    /// In flight: what is accepted into. Then: what is handed over.
    socket: Option<OwnedSocket>,
    /// Whether the socket was this driver's own before.
    reused: bool,
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
        self.listening = Some(Listening { listener, v6, inherited, deaf });
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
            let Some(&(token, into)) = self.waiting.front() else { return };
            let Some(number) = self.free_accepts.pop() else { return };
            self.waiting.pop_front();
            self.accepts[number as usize].wish = Some((token, into));
            match self.post_accept(number, into) {
                Ok(Posted::Pending) => self.in_kernel += 1,
                Ok(Posted::Done(_)) => self.complete_accept(number, Ok(()), out),
                Ok(Posted::Failed(code)) | Err(code) => {
                    self.complete_accept(number, Err(code), out);
                }
            }
        }
    }

    fn post_accept(&mut self, number: u32, into: Into) -> Result<Posted, i32> {
        let Some(listening) = &self.listening else { return Err(ws::WSA_OPERATION_ABORTED) };
        if listening.deaf != 0 {
            return Err(listening.deaf);
        }
        let own = if into == Into::Slot { self.pool.accepted() } else { None };
        let reused = own.is_some();
        let socket = match own.or_else(|| self.pool.fresh()) {
            Some(socket) => socket,
            None => system::socket(listening.v6)?,
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
        (accept.socket, accept.reused) = (Some(socket), reused);
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
        let (token, into) = accept.wish.expect("an accept completes once");
        let (socket, reused) = (accept.socket.take(), accept.reused);
        let brought = match (result, socket) {
            (Ok(()), Some(socket)) => self.take_in(number, (token, into), socket, reused),
            (Ok(()), None) => Err(ws::WSAENOTSOCK),
            // What was to be accepted into is closed: nothing says in which state it is.
            (Err(code), _) => Err(code),
        };
        if into == Into::Slot {
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
    fn take_in(
        &mut self,
        number: u32,
        (token, into): (Token, Into),
        socket: OwnedSocket,
        reused: bool,
    ) -> Result<(), i32> {
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
        match into {
            Into::Socket => accept.socket = Some(socket),
            Into::Slot => {
                if !reused {
                    self.associate(&socket)?;
                }
                self.slots[token.slot() as usize].install(socket, ACCEPTED | v6);
            }
        }
        Ok(())
    }

    /// What a completed accept brought.
    pub(super) fn hand_out(&mut self, token: Token) -> Accepted<OwnedSocket> {
        let is_it =
            |&number: &u32| self.accepts[number as usize].wish.is_some_and(|(of, _)| of == token);
        // In the order of the completions, it is the first.
        let at = self.brought.iter().position(is_it);
        let number = at.and_then(|at| self.brought.remove(at));
        let number = number.expect("asked once, after an accept succeeded");
        let Accept { peer, socket, .. } = std::mem::take(&mut self.accepts[number as usize]);
        self.free_accepts.push(number);
        Accepted { peer: peer.expect("it succeeded"), socket }
    }
}
