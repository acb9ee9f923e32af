//! The caller's side of the contract, asserted.
//!
//! What the caller may do depends on what it *knows*: on the completions it was given, not on
//! what the kernel did meanwhile. So this keeps its own view of every slot and block, which moves
//! when an operation is posted and when its completion is given.

use crate::buffer::{Lease, Memory, Span};
use crate::driver::{Completion, Kind, MAX_HANDED, MAX_SPANS, Token};

/// How the caller sees a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    /// Free: only accept, connect and adopt.
    Empty,
    /// An accept or a connect is in flight.
    Opening,
    /// Connected.
    Open,
    /// A close or an abort is in flight, or is done and others still are in flight.
    Closing,
}

/// One slot, as the caller sees it.
#[derive(Debug, Clone)]
struct Slot {
    view: View,
    /// The token of each kind in flight.
    flight: [Option<Token>; Kind::OF_SLOTS],
    /// What the send in flight names.
    sending: [Span; MAX_SPANS],
    spans: u8,
    /// How often it has become empty.
    uses: u32,
}

/// One block, as the caller sees it.
#[derive(Debug, Clone, Copy, Default)]
struct Block {
    /// The driver holds its lease.
    lent: bool,
    /// Sends in flight that name it.
    sends: u32,
}

/// The views of all slots and blocks.
#[derive(Debug)]
pub(super) struct Rules {
    slots: Vec<Slot>,
    blocks: Vec<Block>,
    block_bytes: u32,
    handed: [Option<Token>; MAX_HANDED as usize],
    /// Operations in flight, and how many of them are closes.
    pub(super) in_flight: usize,
    pub(super) closes: usize,
    /// Leases that the driver holds.
    pub(super) lent: usize,
    /// Slots that are not empty.
    pub(super) occupied: usize,
}

const NO_SPAN: Span = Span { block: 0, start: 0, len: 0 };

impl Rules {
    pub(super) fn new(slots: u32, memory: &Memory) -> Self {
        let slot = Slot {
            view: View::Empty,
            flight: [None; Kind::OF_SLOTS],
            sending: [NO_SPAN; MAX_SPANS],
            spans: 0,
            uses: 0,
        };
        Self {
            slots: vec![slot; slots as usize],
            blocks: vec![Block::default(); memory.blocks() as usize],
            block_bytes: memory.block_bytes() as u32,
            handed: [None; MAX_HANDED as usize],
            in_flight: 0,
            closes: 0,
            lent: 0,
            occupied: 0,
        }
    }

    fn slot(&mut self, token: Token) -> &mut Slot {
        let count = self.slots.len();
        self.slots
            .get_mut(token.slot() as usize)
            .unwrap_or_else(|| panic!("{token:?} names no slot: there are {count}"))
    }

    /// An operation of a kind is posted, on a slot in one of these states.
    fn post(&mut self, token: Token, kind: Kind, what: &str, allowed: &[View]) {
        assert_eq!(token.kind(), kind, "{what}: {token:?} is a token of another kind");
        let slot = self.slot(token);
        let at = kind as usize - 1;
        if let Some(other) = slot.flight[at] {
            panic!("{what}: {token:?} is posted while {other:?} is in flight (rule 2)");
        }
        assert!(
            allowed.contains(&slot.view),
            "{what}: {token:?} on a slot that is {:?}, with {:?} in flight (rule 5)",
            slot.view,
            slot.flight.iter().flatten().collect::<Vec<_>>()
        );
        if let Some(other) =
            slot.flight.iter().flatten().find(|other| other.generation() != token.generation())
        {
            panic!("{what}: {token:?} while {other:?}, of another use of the slot, is in flight");
        }
        slot.flight[at] = Some(token);
        self.in_flight += 1;
    }

    pub(super) fn accept(&mut self, token: Token) {
        self.post(token, Kind::Accept, "accept", &[View::Empty]);
        self.slot(token).view = View::Opening;
        self.occupied += 1;
    }

    pub(super) fn accept_handed(&mut self, token: Token) {
        assert_eq!(token.kind(), Kind::HandOver, "{token:?} is a token of another kind");
        let number = token.slot();
        assert!(number < MAX_HANDED, "{token:?}: its number is not below {MAX_HANDED}");
        if let Some(other) = self.handed[number as usize] {
            panic!("accept: {token:?} is posted while {other:?} is in flight (rule 2)");
        }
        self.handed[number as usize] = Some(token);
        self.in_flight += 1;
    }

    pub(super) fn adopt(&mut self, slot: u32, adopted: bool) {
        let count = self.slots.len();
        let view = self.slots.get(slot as usize).map(|slot| slot.view);
        assert!(
            view == Some(View::Empty),
            "adopt: slot {slot} of {count} is {view:?}, not empty (rule 5)"
        );
        if adopted {
            self.slots[slot as usize].view = View::Open;
            self.occupied += 1;
        }
    }

    pub(super) fn connect(&mut self, token: Token) {
        self.post(token, Kind::Connect, "connect", &[View::Empty]);
        self.slot(token).view = View::Opening;
        self.occupied += 1;
    }

    pub(super) fn park(&mut self, token: Token) {
        self.post(token, Kind::Park, "park", &[View::Open]);
    }

    pub(super) fn receive(&mut self, token: Token, lease: &Lease, start: u32) {
        assert!(start < self.block_bytes, "{token:?}: nothing fits from byte {start} of a block");
        self.post(token, Kind::Receive, "receive", &[View::Open]);
        self.lend(lease, Some(token));
    }

    pub(super) fn stream(&mut self, token: Token) {
        self.post(token, Kind::Receive, "stream", &[View::Open]);
    }

    pub(super) fn stop(&mut self, token: Token) {
        assert!(
            matches!(token.kind(), Kind::Park | Kind::Receive),
            "stop: {token:?} is neither a receive nor a park"
        );
        let _ = self.slot(token);
    }

    pub(super) fn provide(&mut self, lease: &Lease) {
        self.lend(lease, None);
    }

    fn lend(&mut self, lease: &Lease, token: Option<Token>) {
        let block = lease.block();
        let count = self.blocks.len();
        let Some(known) = self.blocks.get_mut(block as usize) else {
            panic!("{token:?}: block {block} of {count}: a lease of another arena");
        };
        assert!(!known.lent, "{token:?}: the lease of block {block} was given already");
        assert!(
            known.sends == 0,
            "{token:?}: block {block} would be written while it is being sent"
        );
        known.lent = true;
        self.lent += 1;
    }

    pub(super) fn send(&mut self, token: Token, spans: &[Span]) {
        assert!(spans.len() <= MAX_SPANS, "{token:?}: {} spans", spans.len());
        assert!(spans.iter().any(|span| span.len > 0), "{token:?}: a send of no bytes");
        for span in spans {
            let inside = u64::from(span.start) + u64::from(span.len) <= u64::from(self.block_bytes);
            let Some(block) = self.blocks.get_mut(span.block as usize).filter(|_| inside) else {
                panic!("{token:?}: {span:?} is not inside a block");
            };
            assert!(!block.lent, "{token:?}: {span:?} is of a block whose lease was given away");
            block.sends += 1;
        }
        self.post(token, Kind::Send, "send", &[View::Open]);
        let slot = self.slot(token);
        slot.sending[..spans.len()].copy_from_slice(spans);
        slot.spans = spans.len() as u8;
    }

    pub(super) fn half_close(&mut self, token: Token) {
        self.post(token, Kind::HalfClose, "half_close", &[View::Open]);
    }

    pub(super) fn close(&mut self, token: Token) {
        let accept = self.slot(token).flight[Kind::Accept as usize - 1];
        if let Some(accept) = accept {
            panic!("close: {token:?} while {accept:?} is in flight: only close_listener ends that");
        }
        self.post(token, Kind::Close, "close", &[View::Open, View::Opening]);
        self.slot(token).view = View::Closing;
        self.closes += 1;
    }

    /// A block comes back otherwise than in the completion of an operation in flight.
    pub(super) fn reclaimed(&mut self, lease: &Lease) {
        self.returned(lease);
    }

    fn returned(&mut self, lease: &Lease) {
        let block = &mut self.blocks[lease.block() as usize];
        assert!(block.lent, "the simulation gives back block {}, which it has not", lease.block());
        block.lent = false;
        self.lent -= 1;
    }

    /// Whether a stream is in flight: blocks are not to be reclaimed then. O(slots).
    pub(super) fn receiving(&self) -> impl Iterator<Item = Token> {
        self.slots.iter().filter_map(|slot| slot.flight[Kind::Receive as usize - 1])
    }

    /// How often a slot has become empty: another number, and operations from before are stale.
    pub(super) fn uses(&self, slot: u32) -> u32 {
        self.slots[slot as usize].uses
    }

    /// A completion is given. Asserts what the simulation itself owes: each operation once.
    /// Returns whether its slot has become empty by it.
    pub(super) fn give(&mut self, completion: &Completion) -> bool {
        let token = completion.token;
        if let Some(lease) = &completion.lease {
            self.returned(lease);
        }
        if completion.more {
            assert_eq!(token.kind(), Kind::Receive, "{completion:?}: only a stream has more");
            return false;
        }
        self.in_flight -= 1;
        self.closes -= usize::from(token.kind() == Kind::Close);
        if token.kind() == Kind::HandOver {
            let own = self.handed[token.slot() as usize].take();
            assert_eq!(own, Some(token), "an accept completed that is not in flight");
            return false;
        }
        let slot = &mut self.slots[token.slot() as usize];
        let own = slot.flight[token.kind() as usize - 1].take();
        assert_eq!(own, Some(token), "an operation completed that is not in flight (rule 1)");
        let idle = slot.flight.iter().all(Option::is_none);
        slot.view = match (slot.view, completion.result.is_ok()) {
            (View::Closing, _) if idle => View::Empty,
            (View::Closing, _) => View::Closing,
            (View::Opening, true) => View::Open,
            (View::Opening, false) => View::Empty,
            (view, _) => view,
        };
        let emptied = slot.view == View::Empty;
        if emptied {
            slot.uses += 1;
            self.occupied -= 1;
        }
        if token.kind() == Kind::Send {
            for span in &slot.sending[..usize::from(std::mem::take(&mut slot.spans))] {
                self.blocks[span.block as usize].sends -= 1;
            }
        }
        emptied
    }
}
