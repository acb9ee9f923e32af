//! The table of slots: one session each, reused last in, first out.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::chain::Chain;
use super::life::{InFlight, Life, Reading, Writing};
use super::wheel::{NONE, Node, Nodes, Tick};
use crate::driver::Token;
use crate::reason::Reason;

/// What a session is marked with between two looks of the shard at it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Marks {
    /// It is in the list of touched slots.
    pub touched: bool,
    /// It is to be closed once its outbox is empty.
    pub close: bool,
    /// It is to be aborted.
    pub abort: bool,
    /// Our end of stream is to be sent once the outbox is empty.
    pub half_close: bool,
    /// The handler wants nothing to read for now.
    pub held_by_handler: bool,
    /// Its outbox passed the high mark, and `on_writable` is owed when it falls below the low one.
    pub over_high: bool,
    /// We connected it.
    pub outgoing: bool,
    /// The handler knows it: `on_connect` was called, and so `on_disconnect` is owed.
    pub known: bool,
    /// Something was received.
    pub heard: bool,
    /// The peer has ended its stream, and `on_end` is owed.
    pub end_owed: bool,
    /// The kernel did not take all of the last send: the next one waits until it does.
    pub blocked: bool,
    /// It is not of the service set now: nothing is read until its turn comes.
    pub unserved: bool,
    /// It holds a place of the service set.
    pub placed: bool,
    /// The kernel was short of something for it: nothing is posted until the pause is over.
    pub short: bool,
    /// It waits for its turn to post a send.
    pub waits_to_send: bool,
    /// The handler consumed nothing of what is held: it is shown again with more behind it, or
    /// when the handler resumes.
    pub wants_more: bool,
}

impl Marks {
    /// Whether something is to be done when the outbox has shrunk.
    pub(crate) fn ask_for_more(self) -> bool {
        self.close || self.abort || self.half_close || self.over_high
    }
}

/// One session: what the shard keeps while it lives.
///
/// What a message touches comes first, and is one line of the cache: the fields' order counts.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Session<S> {
    pub generation: u64,
    pub life: Life,
    pub reading: Reading,
    pub writing: Writing,
    pub in_flight: InFlight,
    pub marks: Marks,
    /// Received, and not consumed by the handler.
    pub inbox: Chain,
    /// To be sent.
    pub outbox: Chain,
    /// When something was last received or sent.
    pub active: Tick,
    /// When the handler's own timer fires.
    pub timer: Option<Tick>,
    pub node: Node,
    /// The next in the list that it is in: free slots, or those that wait for a block.
    pub next: u32,
    pub peer: SocketAddr,
    /// Why it ends; set once.
    pub reason: Option<Reason>,
    pub state: S,
}

impl<S: Default> Session<S> {
    fn new() -> Self {
        Self {
            generation: 0,
            life: Life::Free,
            reading: Reading::Paused,
            writing: Writing::Idle,
            in_flight: InFlight::default(),
            marks: Marks::default(),
            inbox: Chain::default(),
            outbox: Chain::default(),
            active: Tick::default(),
            timer: None,
            node: Node::default(),
            next: NONE,
            peer: NOBODY,
            reason: None,
            state: S::default(),
        }
    }
}

impl<S> Session<S> {
    /// Moves it along in its life.
    pub(crate) fn become_(&mut self, next: Life) {
        debug_assert!(self.life.may_become(next), "{:?} → {next:?}", self.life);
        self.life = next;
    }

    /// Whether it is served: open, or sending the rest.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.life, Life::Open | Life::Draining)
    }

    /// Whether its slot may be freed.
    pub(crate) fn is_over(&self) -> bool {
        self.life == Life::Recycling && self.in_flight.is_empty()
    }

    /// Keeps the first reason given.
    pub(crate) fn end(&mut self, reason: Reason) {
        self.reason.get_or_insert(reason);
    }
}

const NOBODY: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));

/// The slots of one shard. Memory is taken when a slot is first used, and kept.
#[derive(Debug)]
pub(crate) struct Table<S> {
    slots: Vec<Session<S>>,
    free: u32,
    used: u32,
    most: u32,
    /// Slots taken, ever: those that were there before, and those that were made for it.
    hits: u64,
    misses: u64,
}

impl<S: Default> Table<S> {
    /// A table that will hold at most `slots` sessions.
    pub(crate) fn new(slots: u32) -> Self {
        Self {
            slots: Vec::with_capacity(slots as usize),
            free: NONE,
            used: 0,
            most: slots,
            hits: 0,
            misses: 0,
        }
    }

    /// Takes a free slot, and counts its generation up. `None` where all are used.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let slot = if self.free == NONE {
            if self.slots.len() as u32 == self.most {
                return None;
            }
            self.misses += 1;
            self.make()
        } else {
            self.hits += 1;
            let slot = self.free;
            self.free = self.slots[slot as usize].next;
            slot
        };
        let session = &mut self.slots[slot as usize];
        session.next = NONE;
        session.generation += 1;
        self.used += 1;
        Some(slot)
    }

    /// Makes so many slots ahead, as many as there may be at most.
    pub(crate) fn warm_up(&mut self, slots: u32) {
        for _ in self.slots.len() as u32..slots.min(self.most) {
            let slot = self.make();
            self.slots[slot as usize].next = self.free;
            self.free = slot;
        }
    }

    /// Makes a slot, within the capacity reserved by `new`: no allocation.
    fn make(&mut self) -> u32 {
        self.slots.push(Session::new());
        self.slots.len() as u32 - 1
    }

    /// Gives a slot back. Its chains must be empty, its node out of the wheel.
    pub(crate) fn release(&mut self, slot: u32) {
        let free = self.free;
        let session = &mut self.slots[slot as usize];
        debug_assert!(session.in_flight.is_empty() && session.node.due().is_none());
        debug_assert!(session.inbox.is_empty() && session.outbox.is_empty());
        let generation = session.generation;
        *session = Session { generation, next: free, ..Session::new() };
        self.free = slot;
        self.used -= 1;
    }
}

impl<S> Table<S> {
    /// Slots in use.
    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// Slots taken that were there before, ever.
    pub(crate) fn hits(&self) -> u64 {
        self.hits
    }

    /// Slots that were made when they were taken, ever.
    pub(crate) fn misses(&self) -> u64 {
        self.misses
    }

    /// Slots that were ever made: `0..touched()` may be looked at.
    pub(crate) fn touched(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The session of a slot that was ever used.
    pub(crate) fn get(&mut self, slot: u32) -> &mut Session<S> {
        &mut self.slots[slot as usize]
    }

    /// The session that a token belongs to; `None` where the token is stale.
    pub(crate) fn of(&mut self, token: Token) -> Option<&mut Session<S>> {
        let session = self.slots.get_mut(token.slot() as usize)?;
        (session.life != Life::Free && token.is_of(session.generation)).then_some(session)
    }
}

impl<S> Nodes for Table<S> {
    fn node(&mut self, slot: u32) -> &mut Node {
        &mut self.slots[slot as usize].node
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Kind;

    #[test]
    fn a_session_without_state_is_small() {
        assert_eq!(size_of::<Session<()>>(), 128);
        assert!(std::mem::offset_of!(Session<()>, timer) <= 64, "a message touches one line");
    }

    #[test]
    fn slots_come_back_with_a_new_generation() {
        let mut table = Table::<()>::new(2);
        let a = table.take().unwrap();
        let b = table.take().unwrap();
        assert_eq!(table.take(), None);
        let old = Token::new(Kind::Send, table.get(a).generation, a);
        table.release(a);
        assert_eq!(table.take(), Some(a));
        table.get(a).become_(Life::Open);
        assert!(table.of(old).is_none());
        assert_eq!(table.used(), 2);
        assert_ne!(a, b);
    }

    #[test]
    fn slots_made_ahead_are_hits() {
        let mut table = Table::<()>::new(3);
        table.warm_up(2);
        for _ in 0..3 {
            assert!(table.take().is_some());
        }
        assert_eq!((table.hits(), table.misses()), (2, 1));
        table.warm_up(9);
        assert_eq!((table.touched(), table.take()), (3, None));
    }

    #[test]
    fn a_generation_whose_low_bits_are_zero_is_one_like_any_other() {
        let mut table = Table::<()>::new(1);
        let slot = table.take().unwrap();
        table.get(slot).generation = u64::from(Token::GENERATIONS) - 1;
        let old = Token::new(Kind::Accept, table.get(slot).generation, slot);
        table.release(slot);
        let slot = table.take().unwrap();
        table.get(slot).become_(Life::Waiting);
        let token = Token::new(Kind::Accept, table.get(slot).generation, slot);
        assert_eq!(token.generation(), 0);
        assert!(table.of(token).is_some() && table.of(old).is_none());
    }
}
