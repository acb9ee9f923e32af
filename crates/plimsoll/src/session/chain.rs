//! Chains of blocks: what a session has still to send (its outbox), or has received and its
//! handler has not consumed (its inbox).
//!
//! A chain is twelve bytes; its links are kept once per block of the arena, in [`Links`], so that
//! a session with nothing to send costs nothing more. A received block becomes a link as it is,
//! without a copy, where its bytes are sent back.

use crate::buffer::{Arena, Lease, Memory, Span};
use crate::driver::MAX_SPANS;

/// No block: the end of a chain.
const NONE: u32 = u32::MAX;

/// One block in a chain: its bytes `start..end` belong to the chain.
#[derive(Debug)]
struct Link {
    lease: Option<Lease>,
    start: u32,
    end: u32,
    next: u32,
}

/// The links of all blocks of one arena. A block is in one chain at most, since its lease is.
#[derive(Debug)]
pub(crate) struct Links(Box<[Link]>);

impl Links {
    /// Links for the blocks of `arena`.
    pub(crate) fn new(arena: &Arena) -> Self {
        let blocks = arena.memory().blocks();
        Self((0..blocks).map(|_| Link { lease: None, start: 0, end: 0, next: NONE }).collect())
    }

    fn put(&mut self, lease: Lease, start: u32, end: u32) -> u32 {
        let block = lease.block();
        let link = &mut self.0[block as usize];
        debug_assert!(link.lease.is_none(), "block {block} is in a chain already");
        *link = Link { lease: Some(lease), start, end, next: NONE };
        block
    }
}

/// A first-in, first-out queue of bytes in blocks.
#[derive(Debug)]
pub(crate) struct Chain {
    head: u32,
    tail: u32,
    bytes: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, bytes: 0 }
    }
}

impl Chain {
    /// Bytes in the chain.
    pub(crate) fn len(&self) -> u32 {
        self.bytes
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Counts its blocks, and checks that their bytes are as many as it says. O(blocks).
    ///
    /// # Errors
    ///
    /// What does not agree.
    pub(crate) fn audit(&self, links: &Links) -> Result<u32, String> {
        let (mut blocks, mut bytes, mut at) = (0, 0, self.head);
        while at != NONE {
            let link = &links.0[at as usize];
            if link.lease.as_ref().is_none_or(|lease| lease.block() != at) {
                return Err(format!("block {at} is in a chain without its lease"));
            }
            blocks += 1;
            bytes += link.end - link.start;
            at = link.next;
        }
        if bytes != self.bytes {
            return Err(format!("a chain of {bytes} bytes says {}", self.bytes));
        }
        Ok(blocks)
    }

    /// Appends a block whose bytes `start..end` are the chain's, without a copy. O(1).
    pub(crate) fn push_lease(&mut self, links: &mut Links, lease: Lease, start: u32, end: u32) {
        debug_assert!(start < end, "an empty link would never be consumed");
        let block = links.put(lease, start, end);
        match self.tail {
            NONE => self.head = block,
            tail => links.0[tail as usize].next = block,
        }
        self.tail = block;
        self.bytes += end - start;
    }

    /// Appends a copy of `bytes`: into the room of the last block, then into new ones. Returns how
    /// many were taken: fewer when the arena has no block left.
    pub(crate) fn push_bytes(
        &mut self,
        links: &mut Links,
        arena: &mut Arena,
        bytes: &[u8],
    ) -> usize {
        let memory = arena.memory().clone();
        let mut rest = bytes;
        rest = &rest[self.fill_tail(links, &memory, rest)..];
        while !rest.is_empty() {
            let Some(mut lease) = arena.lease() else { break };
            let count = rest.len().min(memory.block_bytes());
            lease.bytes_mut(&memory)[..count].copy_from_slice(&rest[..count]);
            self.push_lease(links, lease, 0, count as u32);
            rest = &rest[count..];
        }
        bytes.len() - rest.len()
    }

    /// Copies as many of `bytes` as the last block has room for, and returns how many.
    pub(crate) fn fill_tail(&mut self, links: &mut Links, memory: &Memory, bytes: &[u8]) -> usize {
        if self.tail == NONE {
            return 0;
        }
        let link = &mut links.0[self.tail as usize];
        let lease = link.lease.as_mut().expect("a block in a chain has its lease");
        let room = &mut lease.bytes_mut(memory)[link.end as usize..];
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        link.end += count as u32;
        self.bytes += count as u32;
        count
    }

    /// Whether `count` bytes fit behind the last block's.
    pub(crate) fn tail_has_room(&self, links: &Links, memory: &Memory, count: usize) -> bool {
        self.tail != NONE
            && links.0[self.tail as usize].end as usize + count <= memory.block_bytes()
    }

    /// The first parts, as a driver sends them. At most [`MAX_SPANS`]; returns how many.
    pub(crate) fn spans(&self, links: &Links, into: &mut [Span; MAX_SPANS]) -> usize {
        let mut block = self.head;
        let mut count = 0;
        while block != NONE && count < MAX_SPANS {
            let link = &links.0[block as usize];
            into[count] = Span { block, start: link.start, len: link.end - link.start };
            count += 1;
            block = link.next;
        }
        count
    }

    /// Takes the first block out: its lease, and which of its bytes are the chain's.
    pub(crate) fn pop_front(&mut self, links: &mut Links) -> Option<(Lease, u32, u32)> {
        if self.head == NONE {
            return None;
        }
        let link = &mut links.0[self.head as usize];
        let lease = link.lease.take().expect("a block in a chain has its lease");
        let (start, end) = (link.start, link.end);
        self.head = link.next;
        if self.head == NONE {
            self.tail = NONE;
        }
        self.bytes -= end - start;
        Some((lease, start, end))
    }

    /// Puts a block before all others: what [`Chain::pop_front`] took out and is not used up.
    pub(crate) fn push_front(&mut self, links: &mut Links, lease: Lease, start: u32, end: u32) {
        debug_assert!(start < end, "an empty link would never be consumed");
        let block = links.put(lease, start, end);
        links.0[block as usize].next = self.head;
        if self.head == NONE {
            self.tail = block;
        }
        self.head = block;
        self.bytes += end - start;
    }

    /// Drops the first `count` bytes, and gives the blocks that this empties to `arena`.
    pub(crate) fn consume(&mut self, links: &mut Links, arena: &mut Arena, count: u32) {
        debug_assert!(count <= self.bytes, "{count} of {}", self.bytes);
        let mut rest = count;
        while rest > 0 && self.head != NONE {
            let link = &mut links.0[self.head as usize];
            let there = link.end - link.start;
            if rest < there {
                link.start += rest;
                self.bytes -= rest;
                return;
            }
            rest -= there;
            if let Some((lease, ..)) = self.pop_front(links) {
                arena.give_back(lease);
            }
        }
    }

    /// Gives all blocks to `arena`.
    pub(crate) fn clear(&mut self, links: &mut Links, arena: &mut Arena) {
        while let Some((lease, ..)) = self.pop_front(links) {
            arena.give_back(lease);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::page_bytes;

    fn contents(chain: &Chain, links: &Links, memory: &Memory) -> Vec<u8> {
        let mut spans = [Span { block: 0, start: 0, len: 0 }; MAX_SPANS];
        let count = chain.spans(links, &mut spans);
        let mut out = Vec::new();
        for span in &spans[..count] {
            memory.copy_out(*span, &mut out);
        }
        out
    }

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut arena = Arena::new(8, page_bytes()).unwrap();
        let mut links = Links::new(&arena);
        let mut chain = Chain::default();
        let bytes: Vec<u8> = (0..page_bytes() * 3 + 100).map(|n| (n % 251) as u8).collect();
        for part in bytes.chunks(777) {
            assert_eq!(chain.push_bytes(&mut links, &mut arena, part), part.len());
        }
        let memory = arena.memory().clone();
        assert_eq!(contents(&chain, &links, &memory), bytes);
        assert_eq!(arena.outstanding(), 4);
        chain.consume(&mut links, &mut arena, page_bytes() as u32 + 1);
        assert_eq!(contents(&chain, &links, &memory), bytes[page_bytes() + 1..]);
        assert_eq!(arena.outstanding(), 3);
        chain.clear(&mut links, &mut arena);
        assert_eq!((chain.len(), arena.outstanding()), (0, 0));
    }

    #[test]
    fn a_dry_arena_takes_what_fits() {
        let mut arena = Arena::new(2, page_bytes()).unwrap();
        let mut links = Links::new(&arena);
        let mut chain = Chain::default();
        let bytes = vec![7; page_bytes() * 3];
        assert_eq!(chain.push_bytes(&mut links, &mut arena, &bytes), page_bytes() * 2);
        chain.clear(&mut links, &mut arena);
        assert_eq!(arena.outstanding(), 0);
    }

    #[test]
    fn a_lease_goes_in_whole_and_its_room_is_used() {
        let mut arena = Arena::new(4, page_bytes()).unwrap();
        let memory = arena.memory().clone();
        let mut links = Links::new(&arena);
        let mut chain = Chain::default();
        let mut lease = arena.lease().unwrap();
        lease.bytes_mut(&memory)[..5].copy_from_slice(b"hello");
        chain.push_lease(&mut links, lease, 1, 5);
        assert!(chain.tail_has_room(&links, &memory, page_bytes() - 5));
        assert!(!chain.tail_has_room(&links, &memory, page_bytes() - 4));
        chain.push_bytes(&mut links, &mut arena, b" world");
        assert_eq!(contents(&chain, &links, &memory), b"ello world");
        let (lease, start, end) = chain.pop_front(&mut links).unwrap();
        assert!(chain.is_empty());
        chain.push_front(&mut links, lease, start + 5, end);
        assert_eq!(contents(&chain, &links, &memory), b"world");
        chain.consume(&mut links, &mut arena, 5);
        assert_eq!(arena.outstanding(), 0);
    }
}
