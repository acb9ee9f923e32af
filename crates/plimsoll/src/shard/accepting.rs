//! How sessions begin: accepted here, handed over by the acceptor, or connected by us.

use std::net::SocketAddr;

use super::Shard;
use crate::acceptor::{Acceptor, Target};
use crate::budget::Dry;
use crate::driver::{Completion, Driver, Failure, Into, Kind, Token};
use crate::handler::Handler;
use crate::mailbox::Handed;
use crate::monitor::Pressure;
use crate::reason::Reason;
use crate::session::core::Connect;
use crate::session::life::Life;
use crate::session::wheel::Tick;

impl<D: Driver, H: Handler> Shard<D, H> {
    /// Posts as many accepts as the acceptor wants and the ledger has permits for.
    pub(super) fn refill_accepts(&mut self) {
        let now = self.core.now;
        let Some(acceptor) = &mut self.acceptor else { return };
        if acceptor.is_short_of_files() && !self.ledger.is_watched() {
            acceptor.freed();
        }
        // What is posted stays posted: a few may still come.
        if self.gauge.pressure(now) > Pressure::Calm {
            return;
        }
        if acceptor.is_refusing() {
            if self.ledger.is_full() {
                self.accept_to_refuse();
            }
            return;
        }
        let wanted = acceptor.wanted(now);
        // Where others' have to wait, those for slots of this shard go on.
        let only = (!acceptor.may_hand_over(now)).then_some(self.core.shard);
        for _ in 0..wanted {
            if !self.acceptor.as_ref().is_some_and(|acceptor| acceptor.rate_allows(now)) {
                self.core.counters.rate_limited.add(1);
                return;
            }
            let Some(shard) = self.ledger.take_for(only) else {
                return self.accept_to_refuse();
            };
            let posted = if shard == self.core.shard {
                self.post_own_accept()
            } else {
                self.post_handed_accept(shard)
            };
            if !posted {
                self.ledger.put_back(shard);
                return;
            }
        }
    }

    /// The server is full: accepts a few who are told so, where the limits say to.
    fn accept_to_refuse(&mut self) {
        while let Some(token) = self.acceptor.as_mut().and_then(Acceptor::token_to_refuse) {
            self.hand_over(token, None);
        }
    }

    fn post_own_accept(&mut self) -> bool {
        let Some(slot) = self.core.table.take() else { return false };
        self.core.table.get(slot).become_(Life::Waiting);
        let token = self.begin_operation(Kind::Accept, slot);
        self.driver.accept(token, Into::Slot);
        self.acceptor.as_mut().expect("only the acceptor accepts").post();
        true
    }

    fn post_handed_accept(&mut self, shard: u32) -> bool {
        let acceptor = self.acceptor.as_mut().expect("only the acceptor accepts");
        let Some(token) = acceptor.token_for(shard) else { return false };
        acceptor.post();
        self.hand_over(token, Some(shard));
        true
    }

    fn hand_over(&mut self, token: Token, shard: Option<u32>) {
        if let Some(operations) = &mut self.operations {
            operations.begin(Kind::HandOver);
        }
        match shard {
            Some(shard) => self.driver.accept_for(token, shard),
            None => self.driver.accept(token, Into::Socket),
        }
    }

    /// An accept for a slot of this shard completed.
    pub(super) fn accepted(&mut self, slot: u32, completion: &Completion) {
        match completion.result {
            Ok(_) => {
                let peer = self.driver.accepted(completion.token).peer;
                self.accept_succeeded(false);
                if self.count_peer(peer) {
                    self.begin(slot, peer);
                } else {
                    self.refuse_begun(slot, peer);
                }
            }
            Err(failure) => {
                self.accept_failed(false, failure);
                self.core.table.get(slot).become_(Life::Free);
                self.core.table.release(slot);
                self.ledger.put_back(self.core.shard);
            }
        }
    }

    /// An accept for another shard completed.
    pub(super) fn handed_over(&mut self, completion: Completion) {
        let Some(acceptor) = self.acceptor.as_mut() else { return self.stale(completion) };
        let target = match acceptor.target_of(completion.token) {
            None => return self.stale(completion),
            Some(Target::Shard(shard)) => Some(shard),
            Some(Target::Nobody) => None,
        };
        if let Some(operations) = &mut self.operations {
            operations.complete(Kind::HandOver, false);
        }
        if let Err(failure) = completion.result {
            self.accept_failed(true, failure);
            if let Some(shard) = target {
                self.ledger.put_back(shard);
            }
            return;
        }
        let accepted = self.driver.accepted(completion.token);
        let Some(socket) = accepted.socket else {
            unreachable!("an accept into a socket brings one")
        };
        let acceptor = self.acceptor.as_mut().expect("it is the acceptor, as found above");
        // Who was to be refused is served where there is room by now.
        let admits = acceptor.rate_admits(self.core.now);
        let free = || if admits { self.ledger.take() } else { None };
        let Some(shard) = target.or_else(free) else {
            return self.refuse(socket, Reason::Full);
        };
        if !self.count_peer(accepted.peer) {
            self.ledger.release(shard);
            return self.refuse(socket, Reason::PeerLimit);
        }
        self.accept_succeeded(true);
        let link = &self.links[shard as usize];
        link.handed.push(Handed { socket, peer: accepted.peer });
        link.mailbox.ring();
    }

    /// Turns a connection away that has no slot.
    fn refuse(&mut self, socket: D::Socket, reason: Reason) {
        self.acceptor.as_mut().expect("only the acceptor accepts").refuse();
        self.core.counters.ended[reason.number()].add(1);
        self.driver.refuse(socket, self.when_full.message());
    }

    /// Turns a connection away that has a slot already. Its handler never hears of it.
    fn refuse_begun(&mut self, slot: u32, peer: SocketAddr) {
        let session = self.core.table.get(slot);
        session.become_(Life::Open);
        session.peer = peer;
        session.end(Reason::PeerLimit);
        let message = self.when_full.message();
        if message.is_empty() {
            self.core.abort(slot);
        } else {
            // What the kernel does not take at once is not sent: see `sent`.
            self.core.send(slot, message);
            self.core.close(slot, Reason::PeerLimit);
        }
    }

    /// Counts a connection of a peer. False where it has as many as one may.
    fn count_peer(&mut self, peer: SocketAddr) -> bool {
        let Some(peers) = &self.peers else { return true };
        let dry = self.core.limits.dry_run.has(Dry::PeerLimit);
        peers.enter(peer, dry) || self.core.is_dry(Dry::PeerLimit)
    }

    /// A connection of a peer, which was counted, has ended.
    pub(super) fn uncount_peer(&self, peer: SocketAddr) {
        if let Some(peers) = &self.peers {
            peers.leave(peer);
        }
    }

    fn accept_succeeded(&mut self, handed: bool) {
        let acceptor = self.acceptor.as_mut().expect("only the acceptor accepts");
        if acceptor.succeed(handed, self.core.now) {
            self.core.is_dry(Dry::AcceptRate);
        }
    }

    fn accept_failed(&mut self, handed: bool, failure: Failure) {
        self.gauge.note(failure.fault, self.core.now);
        let acceptor = self.acceptor.as_mut().expect("only the acceptor accepts");
        let was_short = acceptor.is_short_of_files();
        if acceptor.fail(handed, failure.fault, self.core.now) {
            tracing::warn!(%failure, "accepts fail; trying again after a pause, or when one of ours ends");
        }
        // Once: a session that ends after this must not be forgotten when the next accept fails.
        if acceptor.is_short_of_files() && !was_short {
            self.ledger.watch();
        }
        if failure.fault != crate::driver::Fault::Cancelled {
            self.core.counters.accept_errors.add(1);
        }
        if matches!(failure.fault, crate::driver::Fault::Aborted | crate::driver::Fault::Reset) {
            self.core.counters.dead_in_backlog.add(1);
        }
    }

    /// Tells the other shards when nobody is accepted for them any more: they may end then.
    pub(super) fn close_ledger(&mut self) {
        let over = self.core.draining
            && self.acceptor.as_ref().is_some_and(|acceptor| acceptor.in_flight() == 0);
        if over && !self.ledger.is_closed() {
            self.ledger.close();
            self.links.iter().for_each(|link| link.mailbox.ring());
        }
    }

    /// Takes in the connections that the acceptor has handed to this shard. While adopting is paused,
    /// they wait.
    pub(super) fn adopt_handed(&mut self) {
        let mut arrived = std::mem::take(&mut self.arrived);
        while !self.adopting_is_paused() {
            if arrived.is_empty() {
                self.links[self.core.shard as usize].handed.take(&mut arrived);
                // Who came first is the last, and so the first to be taken.
                arrived.reverse();
            }
            let Some(handed) = arrived.pop() else { break };
            let peer = handed.peer;
            let adopted = !self.core.draining && self.adopt(handed);
            if !adopted {
                self.uncount_peer(peer);
                self.ledger.release(self.core.shard);
            }
            self.settle();
        }
        self.arrived = arrived;
    }

    /// Whether those who were handed to this shard have to wait; nobody does once it drains.
    fn adopting_is_paused(&mut self) -> bool {
        let until = &mut self.adopt_pause.until;
        *until = until.filter(|until| *until > self.core.now && !self.core.draining);
        until.is_some()
    }

    fn adopt(&mut self, handed: Handed<D::Socket>) -> bool {
        let Some(slot) = self.core.table.take() else { return false };
        if let Err(failure) = self.driver.adopt(slot, handed.socket) {
            self.core.table.release(slot);
            self.adopt_failed(failure);
            return false;
        }
        self.begin(slot, handed.peer);
        true
    }

    /// Posts the connects that the handler asked for.
    pub(super) fn post_connects(&mut self) {
        while let Some(Connect { slot, source }) = self.core.connects.pop() {
            let token = self.begin_operation(Kind::Connect, slot);
            let remote = self.core.table.get(slot).peer;
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
                self.call(slot, "on_disconnect", |handler, cx| handler.on_disconnect(cx, reason));
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
        self.core.open_high_water = self.core.open_high_water.max(self.core.open);
        let session = self.core.table.get(slot);
        if !session.marks.outgoing {
            self.core.counters.accepted.add(1);
            self.join_service(slot);
        }
        self.shedding.note_birth(slot);
        self.core.touch(slot);
        if self.call(slot, "on_connect", H::on_connect) == Some(false) {
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
