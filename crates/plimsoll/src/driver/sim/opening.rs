//! How slots are opened: accepts and connects, on their way.

use std::net::SocketAddr;

use super::driver::SimDriver;
use super::faults::{Effect, Operation, errno};
use super::kernel::Kernel;
use super::peer::SimSocket;
use super::resources::{Charge, Opened};
use super::slot::Accepting;
use super::socket::{Owner, SocketId, Stage};
use crate::driver::{Completion, Into, Kind, Token};

impl SimDriver {
    pub(super) fn start_accept(&mut self, kernel: &mut Kernel, token: Token, into: Into) {
        if self.listener.is_none() {
            self.tell(kernel, Completion::failed(token, errno::ECANCELED));
            return;
        }
        let drawn = kernel.draw(Operation::Accept);
        match drawn {
            Some((fault, _)) if fault.effect == Effect::None => {
                self.tell(kernel, Completion::broken(token, fault.failure()));
            }
            drawn => {
                let opens = kernel.may_open(Opened::ByDriver);
                if let Err(code) = opens.and_then(|()| self.afford_accept(kernel, token)) {
                    self.tell(kernel, Completion::failed(token, code));
                    return;
                }
                let doom = drawn.map(|(fault, _)| fault);
                self.accepts.push_back(Accepting { token, into, doom });
                self.try_accepts(kernel);
            }
        }
    }

    /// Matches what waits in the accept queue with the accepts that wait for it.
    pub(super) fn try_accepts(&mut self, kernel: &mut Kernel) {
        let Some(at) = self.listener else { return };
        while !self.accepts.is_empty() {
            let opens = kernel.may_open(Opened::ByDriver);
            let Some(listener) = &mut kernel.listeners[at] else { return };
            if listener.queue.is_empty() {
                return;
            }
            let Some(Accepting { token, into, doom }) = self.accepts.pop_front() else { return };
            if let Err(code) = opens {
                // Asked for before the queue is looked at: the connection stays there.
                self.tell(kernel, Completion::failed(token, code));
                continue;
            }
            let Some(id) = listener.queue.pop_front() else { return };
            if let Some(fault) = doom {
                kernel.abort(id);
                self.tell(kernel, Completion::broken(token, fault.failure()));
                continue;
            }
            if kernel.sockets.find(id).is_none_or(|socket| socket.dead) {
                // It keeps its place until it is accepted.
                kernel.abort(id);
                self.tell(kernel, Completion::failed(token, errno::ECONNABORTED));
                continue;
            }
            kernel.open_file(id, Opened::ByDriver);
            let Some(socket) = kernel.sockets.find(id) else { continue };
            let peer = socket.remote;
            match into {
                Into::Slot => {
                    socket.owner = Owner::Slot { driver: self.id, slot: token.slot() };
                    let slot = &mut self.slots[token.slot() as usize];
                    slot.socket = Some(id);
                    slot.peer = Some(peer);
                }
                Into::Socket => {
                    socket.owner = Owner::Nobody;
                    let socket = SimSocket::new(id, kernel.dropped.clone());
                    let handed = &mut self.handed[token.slot() as usize];
                    (handed.peer, handed.socket) = (Some(peer), Some(socket));
                }
            }
            self.tell(kernel, Completion::done(token, 0));
        }
    }

    pub(super) fn cancel_accepts(&mut self, kernel: &mut Kernel) {
        while let Some(Accepting { token, .. }) = self.accepts.pop_front() {
            self.tell(kernel, Completion::failed(token, errno::ECANCELED));
        }
    }

    fn afford_accept(&mut self, kernel: &mut Kernel, token: Token) -> Result<(), i32> {
        if token.kind() != Kind::HandOver {
            return self.afford(kernel, token, 0);
        }
        if kernel.options.system.counts_operations() {
            let charge = Charge { pool: kernel.options.system.pool.operation, pinned: 0 };
            kernel.charge(charge)?;
            self.handed[token.slot() as usize].charge = charge;
        }
        Ok(())
    }

    pub(super) fn start_connect(
        &mut self,
        kernel: &mut Kernel,
        token: Token,
        remote: SocketAddr,
        source: Option<SocketAddr>,
    ) {
        if let Some((fault, _)) = kernel.draw(Operation::Connect) {
            self.tell(kernel, Completion::broken(token, fault.failure()));
            return;
        }
        match kernel.connect(remote, source, Opened::ByDriver) {
            Ok(id) => {
                let owner = Owner::Slot { driver: self.id, slot: token.slot() };
                if let Some(socket) = kernel.sockets.find(id) {
                    socket.owner = owner;
                }
                let slot = &mut self.slots[token.slot() as usize];
                slot.socket = Some(id);
                slot.connect = Some(token);
            }
            Err(code) => self.tell(kernel, Completion::failed(token, code)),
        }
    }

    /// A connect in flight, whose socket has changed.
    pub(super) fn look_at_connect(&mut self, kernel: &mut Kernel, slot: u32, id: SocketId) {
        let Some(token) = self.slots[slot as usize].connect else { return };
        let Some(stage) = kernel.sockets.find(id).map(|socket| socket.stage) else { return };
        match stage {
            Stage::Connecting { .. } => {}
            Stage::Established => {
                self.slots[slot as usize].connect = None;
                self.tell(kernel, Completion::done(token, 0));
            }
            Stage::Failed(code) => {
                let ours = &mut self.slots[slot as usize];
                ours.connect = None;
                ours.socket = None;
                kernel.abort(id);
                self.tell(kernel, Completion::failed(token, code));
            }
        }
    }
}
