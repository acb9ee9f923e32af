//! What drivers should not do and kernels do: completions that come twice, and sockets that keep
//! the key of an earlier use.

use std::collections::VecDeque;

use super::driver::{Posted, SimDriver};
use super::faults::{errno, failure};
use super::kernel::Kernel;
use crate::buffer::Lease;
use crate::driver::{Completion, Kind, Token};

/// The most stale completions that wait for their slot to be used otherwise.
const GHOSTS: usize = 16;

/// Completions that will be told a second time, when their slot stands for something else.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    /// Each with how often its slot had been empty then.
    waiting: Vec<(Token, u32)>,
    /// To be told by the next wait, whatever they are.
    injected: Vec<Completion>,
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

    /// Tells some of what is stale, behind the others.
    pub(super) fn haunt(&mut self, kernel: &mut Kernel, out: &mut Vec<Completion>, room: usize) {
        out.append(&mut self.ghosts.injected);
        let mut at = 0;
        while at < self.ghosts.waiting.len() && out.len() < room {
            let (token, uses) = self.ghosts.waiting[at];
            if self.rules.uses(token.slot()) == uses || kernel.random.chance(500_000) {
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
            kernel.stale_completions += 1;
            let completion = Completion { token, result, lease, more: false };
            kernel.trace.add(kernel.now, self.id, &completion);
            out.push(completion);
        }
    }

    /// A block that was provided: a stream's stale completion may bring one.
    fn stray_block(&mut self) -> Option<Lease> {
        let lease = self.provided.pop_front()?;
        self.rules.reclaimed(&lease);
        Some(lease)
    }
}
