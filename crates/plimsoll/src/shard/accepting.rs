//! How sessions begin: accepted here, handed over by the acceptor, or connected by us.

use std::net::SocketAddr;

use super::Shard;
use crate::driver::{Completion, Driver, Failure, Into, Kind, Token};
use crate::handler::Handler;
use crate::mailbox::Handed;
use crate::reason::Reason;
use crate::session::core::Connect;
use crate::session::life::Life;
use crate::session::wheel::Tick;

impl<D: Driver, H: Handler> Shard<D, H> {
    /// Posts as many accepts as the acceptor wants and the ledger has permits for.
    pub(super) fn refill_accepts(&mut self) {
        let Some(acceptor) = &mut self.acceptor else { return };
        let wanted = acceptor.wanted(self.core.now);
        for _ in 0..wanted {
            let Some(shard) = self.ledger.take() else { return };
            let posted = if shard == self.core.shard {
                self.post_own_accept()
            } else {
                self.post_handed_accept(shard)
            };
            if !posted {
                self.ledger.release(shard);
                return;
            }
        }
    }

    fn post_own_accept(&mut self) -> bool {
        let Some(slot) = self.core.table.take() else { return false };
        let session = self.core.table.get(slot);
        session.become_(Life::Waiting);
        session.in_flight.post(Kind::Accept);
        let token = self.token(Kind::Accept, slot);
        self.driver.accept(token, Into::Slot);
        self.acceptor.as_mut().expect("only the acceptor accepts").post();
        true
    }

    fn post_handed_accept(&mut self, shard: u32) -> bool {
        let acceptor = self.acceptor.as_mut().expect("only the acceptor accepts");
        let Some(number) = acceptor.number_for(shard) else { return false };
        acceptor.post();
        // Generation 0 is no session's: this token names an accept, not a slot.
        self.driver.accept(Token::new(Kind::Accept, 0, number), Into::Socket);
        true
    }

    /// An accept for a slot of this shard completed.
    pub(super) fn accepted(&mut self, slot: u32, completion: &Completion) {
        match completion.result {
            Ok(_) => {
                self.acceptor.as_mut().expect("only the acceptor accepts").succeed();
                let peer = self.driver.accepted(completion.token).peer;
                self.begin(slot, peer);
            }
            Err(failure) => {
                self.accept_failed(failure);
                self.core.table.get(slot).become_(Life::Free);
                self.core.table.release(slot);
                self.ledger.release(self.core.shard);
            }
        }
    }

    /// An accept for another shard completed.
    pub(super) fn handed_accept(&mut self, completion: &Completion) {
        let acceptor = self.acceptor.as_mut().expect("only the acceptor accepts");
        let target = acceptor.target_of(completion.token.slot());
        if let Err(failure) = completion.result {
            self.accept_failed(failure);
            self.ledger.release(target);
            return;
        }
        acceptor.succeed();
        let accepted = self.driver.accepted(completion.token);
        let Some(socket) = accepted.socket else {
            unreachable!("an accept into a socket brings one")
        };
        let link = &self.links[target as usize];
        link.handed.push(Handed { socket, peer: accepted.peer });
        link.mailbox.ring();
    }

    fn accept_failed(&mut self, failure: Failure) {
        let acceptor = self.acceptor.as_mut().expect("only the acceptor accepts");
        if acceptor.fail(failure.fault, self.core.now) {
            tracing::warn!(%failure, "accept failed; trying again after a pause");
        }
        if failure.fault != crate::driver::Fault::Cancelled {
            self.core.counters.accept_errors.add(1);
        }
    }

    /// Takes in the connections that the acceptor has handed to this shard.
    pub(super) fn adopt_handed(&mut self) {
        let mut arrived = std::mem::take(&mut self.arrived);
        self.links[self.core.shard as usize].handed.take(&mut arrived);
        for handed in arrived.drain(..) {
            let adopted = !self.core.draining && self.adopt(handed);
            if !adopted {
                self.ledger.release(self.core.shard);
            }
            self.settle();
        }
        self.arrived = arrived;
    }

    fn adopt(&mut self, handed: Handed<D::Socket>) -> bool {
        let Some(slot) = self.core.table.take() else { return false };
        if let Err(failure) = self.driver.adopt(slot, handed.socket) {
            tracing::warn!(%failure, shard = self.core.shard, "a connection could not be adopted");
            self.core.counters.accept_errors.add(1);
            self.core.table.release(slot);
            return false;
        }
        self.begin(slot, handed.peer);
        true
    }

    /// Posts the connects that the handler asked for.
    pub(super) fn post_connects(&mut self) {
        while let Some(Connect { slot, source }) = self.core.connects.pop() {
            let session = self.core.table.get(slot);
            session.in_flight.post(Kind::Connect);
            let remote = session.peer;
            let token = self.token(Kind::Connect, slot);
            self.driver.connect(token, remote, source);
        }
    }

    /// A connect completed.
    pub(super) fn connected(&mut self, slot: u32, result: Result<u32, Failure>) {
        let session = self.core.table.get(slot);
        match (session.life, result) {
            (Life::Connecting, Ok(_)) => {
                let peer = session.peer;
                self.core.counters.connected.add(1);
                self.begin(slot, peer);
            }
            (Life::Connecting, Err(failure)) => {
                let reason = Reason::ConnectFailed(failure);
                self.core.counters.ended[reason.number()].add(1);
                session.become_(Life::Free);
                self.call(slot, |handler, cx| handler.on_disconnect(cx, reason));
                self.core.wheel.disarm(&mut self.core.table, slot);
                self.core.touched.retain(|touched| *touched != slot);
                self.core.table.release(slot);
                self.core.outgoing_left += 1;
            }
            // Given up meanwhile: its close is in flight.
            _ => self.release_if_over(slot),
        }
    }

    /// A session begins: its handler is told, and may refuse it.
    fn begin(&mut self, slot: u32, peer: SocketAddr) {
        let tick = Tick::not_before(self.core.now);
        let session = self.core.table.get(slot);
        session.become_(Life::Open);
        session.peer = peer;
        session.active = tick;
        session.marks.known = true;
        self.core.open += 1;
        let session = self.core.table.get(slot);
        if !session.marks.outgoing {
            self.core.counters.accepted.add(1);
        }
        self.core.touch(slot);
        if self.call(slot, H::on_connect) == Some(false) {
            self.core.table.get(slot).end(Reason::Refused);
            self.core.abort(slot);
        }
        if self.was_cut {
            self.core.table.get(slot).end(Reason::CutByDrain);
            self.core.abort(slot);
        } else if self.core.draining {
            self.core.close(slot, Reason::Drained);
        }
        self.core.rearm(slot);
    }
}
