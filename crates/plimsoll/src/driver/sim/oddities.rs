//! What drivers should not do and kernels do: completions that come twice, and sockets that keep
//! the key of an earlier use.

use std::collections::VecDeque;

use super::driver::{Posted, SimDriver};
use super::faults::{errno, failure};
use super::kernel::Kernel;
use super::peer::SimSocket;
use super::resources::Opened;
use super::socket::Owner;
use crate::buffer::Lease;
use crate::driver::{Completion, Kind, Token};

/// The most stale completions that wait for their slot to be used otherwise.
const GHOSTS: usize = 16;

/// Completions that will be told a second time, when their slot stands for something else.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    /// Each with how often its slot had been empty then.
    waiting: Vec<(Token, u32)>,
    /// What stale completions of hand-overs brought, until it is discarded.
    strays: Vec<(Token, SimSocket)>,
    /// To be told by the next wait, whatever they are.
    injected: Vec<Completion>,
}

impl Ghosts {
    /// What a stale completion brought is not wanted.
    pub(super) fn forget(&mut self, token: Token) {
        self.strays.retain(|(stray, _)| *stray != token);
    }

    /// The contract: what a stale completion brought is discarded before the next wait.
    pub(super) fn assert_forgotten(&self) {
        assert!(self.strays.is_empty(), "discard was not called for {:?}", self.strays);
    }
}

/// Under which keys completions arrive.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// The keys of the sockets that wait to be used again, the one that waits longest first.
    pool: VecDeque<Token>,
    /// Of the last wait.
    given: Vec<(Token, Token)>,
}

impl Keys {
    pub(super) fn begin_wait(&mut self) {
        self.given.clear();
    }
}

impl SimDriver {
    /// Has the next wait bring a completion that belongs to nothing: one whose session has gone.
    /// A lease in it comes to whoever takes the completion.
    pub fn inject(&mut self, completion: Completion) {
        self.ghosts.injected.push(completion);
    }

    /// The completions of the last wait, each with the key that its socket was first associated
    /// with: the operation, of whichever session, that the socket was first used for. Only where
    /// the system [reuses sockets](super::SimSystem::reuses_sockets).
    pub fn keys(&self) -> &[(Token, Token)] {
        &self.keys.given
    }

    /// A socket has its key from the first operation that it is used for, and keeps it.
    pub(super) fn associate(&mut self, posted: &Posted) {
        use crate::driver::Into;
        let (Posted::Accept(token, Into::Slot)
        | Posted::Connect(token, ..)
        | Posted::Park(token)
        | Posted::Receive(token)
        | Posted::Send(token)) = *posted
        else {
            return;
        };
        let slot = &mut self.slots[token.slot() as usize];
        if slot.key.is_none() {
            slot.key = Some(self.keys.pool.pop_front().unwrap_or(token));
        }
    }

    /// A completion is given: under which key, and whether it will come again.
    pub(super) fn note_given(&mut self, kernel: &mut Kernel, given: &Completion, emptied: bool) {
        let token = given.token;
        if token.kind() == Kind::HandOver {
            return self.note_handed(kernel, token);
        }
        let slot = &mut self.slots[token.slot() as usize];
        if let Some(key) = slot.key {
            self.keys.given.push((token, key));
        }
        if emptied {
            let discarded = std::mem::take(&mut slot.discarded);
            self.keys.pool.extend(slot.key.take().filter(|_| !discarded));
        }
        let stale = kernel.options.stale_per_million;
        if !given.more && kernel.random.chance(stale) && self.ghosts.waiting.len() < GHOSTS {
            let uses = self.rules.uses(token.slot()) - u32::from(emptied);
            self.ghosts.waiting.push((token, uses));
        }
    }

    /// A hand-over has completed, and so its number stands for it no more, whatever it is used for
    /// next.
    fn note_handed(&mut self, kernel: &mut Kernel, token: Token) {
        let stale = kernel.options.stale_per_million;
        if kernel.random.chance(stale) && self.ghosts.waiting.len() < GHOSTS {
            self.ghosts.waiting.push((token, 0));
        }
    }

    /// Tells some of what is stale, behind the others.
    pub(super) fn haunt(&mut self, kernel: &mut Kernel, out: &mut Vec<Completion>, room: usize) {
        out.append(&mut self.ghosts.injected);
        let mut at = 0;
        while at < self.ghosts.waiting.len() && out.len() < room {
            let (token, uses) = self.ghosts.waiting[at];
            let hands = token.kind() == Kind::HandOver;
            let current = !hands && self.rules.uses(token.slot()) == uses;
            if current || kernel.random.chance(500_000) {
                at += 1;
                continue;
            }
            self.ghosts.waiting.swap_remove(at);
            let lease = if token.kind() == Kind::Receive { self.stray_block() } else { None };
            let result = match kernel.random.below(3) {
                0 => Ok(kernel.random.below(100) as u32),
                1 => Err(failure(errno::ECANCELED)),
                _ => Err(failure(errno::ECONNRESET)),
            };
            if hands && result.is_ok() {
                self.bring_stray(kernel, token);
            }
            kernel.stale_completions += 1;
            let completion = Completion { token, result, lease, more: false };
            kernel.trace.add(kernel.now, self.id, &completion);
            out.push(completion);
        }
    }

    /// The same, now: for a completion that a test makes up.
    #[cfg(test)]
    pub(crate) fn bring_stray_under(&mut self, token: Token) {
        let shared = self.kernel.clone();
        self.bring_stray(&mut shared.borrow_mut(), token);
    }

    /// A stale hand-over's completion brings somebody who waits in the backlog, if anybody does.
    fn bring_stray(&mut self, kernel: &mut Kernel, token: Token) {
        let Some(listener) = self.listener.and_then(|at| kernel.listeners[at].as_mut()) else {
            return;
        };
        let Some(id) = listener.queue.pop_front() else { return };
        kernel.open_file(id, Opened::ByDriver);
        if let Some(socket) = kernel.sockets.find(id) {
            socket.owner = Owner::Nobody;
        }
        self.ghosts.strays.push((token, SimSocket::new(id, kernel.dropped.clone())));
    }

    /// A block that was provided: a stream's stale completion may bring one.
    fn stray_block(&mut self) -> Option<Lease> {
        let lease = self.provided.pop_front()?;
        self.rules.reclaimed(&lease);
        Some(lease)
    }
}
