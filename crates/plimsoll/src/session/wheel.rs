//! The wheel of deadlines: one node per session, linked through the slot table.
//!
//! A hashed wheel (Varghese and Lauck, 1987, scheme 6): 1,024 buckets of one tick each, 2^24 ns
//! (16.8 ms), so one turn of the wheel is 17 s. A deadline further off stays in its bucket and is
//! passed over until its turn comes. Arming, disarming: O(1). A deadline fires at its tick or up
//! to one tick late, never early.

use crate::driver::Nanos;

/// Nanoseconds in a tick, as a power of two.
const TICK_SHIFT: u32 = 24;
const BUCKETS: usize = 1024;
/// No slot: the end of a list.
pub(crate) const NONE: u32 = u32::MAX;

/// A point in time in ticks: it wraps after 2.3 years, and comparisons are good for half of that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tick(u32);

impl Tick {
    /// The tick that has come by `now`.
    pub(crate) fn at(now: Nanos) -> Self {
        Self((now.0 >> TICK_SHIFT) as u32)
    }

    /// The first tick that is no earlier than `now`.
    pub(crate) fn not_before(now: Nanos) -> Self {
        Self((now.0.saturating_add((1 << TICK_SHIFT) - 1) >> TICK_SHIFT) as u32)
    }

    /// This many ticks later than `self`, from a duration rounded up.
    pub(crate) fn after(self, duration: std::time::Duration) -> Self {
        let ticks = duration.as_nanos().div_ceil(1 << TICK_SHIFT).min(u128::from(u32::MAX >> 1));
        Self(self.0.wrapping_add(ticks as u32))
    }

    /// So many ticks later; earlier where they are negative.
    pub(crate) fn later(self, ticks: i64) -> Self {
        Self(self.0.wrapping_add(ticks as u32))
    }

    /// Ticks from `earlier` to this; negative where that is later.
    pub(crate) fn since(self, earlier: Self) -> i64 {
        i64::from(self.0.wrapping_sub(earlier.0) as i32)
    }

    /// Whether `self` is later than `other`.
    pub(crate) fn is_after(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) > 0
    }

    /// The earlier of two.
    pub(crate) fn earlier(self, other: Self) -> Self {
        if self.is_after(other) { other } else { self }
    }

    fn bucket(self) -> usize {
        self.0 as usize % BUCKETS
    }
}

/// A session's place in the wheel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    next: u32,
    previous: u32,
    due: Tick,
    armed: bool,
}

impl Default for Node {
    fn default() -> Self {
        Self { next: NONE, previous: NONE, due: Tick(0), armed: false }
    }
}

impl Node {
    /// When it fires; `None` where it is not armed.
    pub(crate) fn due(&self) -> Option<Tick> {
        self.armed.then_some(self.due)
    }
}

/// Where the nodes are: the slot table.
pub(crate) trait Nodes {
    /// The node of a slot.
    fn node(&mut self, slot: u32) -> &mut Node;
}

/// The buckets.
#[derive(Debug)]
pub(crate) struct Wheel {
    heads: Box<[u32; BUCKETS]>,
    occupied: [u64; BUCKETS / 64],
    now: Tick,
    /// The time of the last look, in ticks that do not wrap.
    clock: u64,
    armed: usize,
}

impl Wheel {
    /// A wheel that stands at `now`.
    pub(crate) fn new(now: Nanos) -> Self {
        Self {
            heads: Box::new([NONE; BUCKETS]),
            occupied: [0; BUCKETS / 64],
            now: Tick::at(now),
            clock: now.0 >> TICK_SHIFT,
            armed: 0,
        }
    }

    /// Arms a slot's node, or moves it. A deadline that has passed fires at the next tick.
    pub(crate) fn arm(&mut self, nodes: &mut impl Nodes, slot: u32, due: Tick) {
        self.disarm(nodes, slot);
        let due = if due.is_after(self.now) { due } else { Tick(self.now.0.wrapping_add(1)) };
        let bucket = due.bucket();
        let head = self.heads[bucket];
        *nodes.node(slot) = Node { next: head, previous: NONE, due, armed: true };
        if head != NONE {
            nodes.node(head).previous = slot;
        }
        self.heads[bucket] = slot;
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
        self.armed += 1;
    }

    /// Takes a slot's node out, if it is in.
    pub(crate) fn disarm(&mut self, nodes: &mut impl Nodes, slot: u32) {
        let node = *nodes.node(slot);
        if !node.armed {
            return;
        }
        let bucket = node.due.bucket();
        match node.previous {
            NONE => self.heads[bucket] = node.next,
            previous => nodes.node(previous).next = node.next,
        }
        if node.next != NONE {
            nodes.node(node.next).previous = node.previous;
        }
        if self.heads[bucket] == NONE {
            self.occupied[bucket / 64] &= !(1 << (bucket % 64));
        }
        *nodes.node(slot) = Node::default();
        self.armed -= 1;
    }

    /// Turns the wheel to `now`, takes out at most `most` nodes that are due, and puts their slots
    /// into `due`. Call again while it fills.
    pub(crate) fn advance(
        &mut self,
        nodes: &mut impl Nodes,
        now: Nanos,
        due: &mut Vec<u32>,
        most: usize,
    ) {
        let target = Tick::at(now);
        self.clock = now.0 >> TICK_SHIFT;
        if self.armed == 0 {
            self.now = target;
            return;
        }
        let behind = target.0.wrapping_sub(self.now.0);
        // Further behind than a whole turn, each bucket still needs only one look.
        let first = if behind as usize > BUCKETS {
            target.0.wrapping_sub(BUCKETS as u32 - 1)
        } else {
            self.now.0.wrapping_add(1)
        };
        let mut tick = first;
        while tick != target.0.wrapping_add(1) {
            if !self.take_due(nodes, Tick(tick).bucket(), target, due, most) {
                return;
            }
            self.now = Tick(tick);
            tick = tick.wrapping_add(1);
        }
        self.now = target;
    }

    /// Takes what is due out of one bucket; false when `due` is full.
    fn take_due(
        &mut self,
        nodes: &mut impl Nodes,
        bucket: usize,
        target: Tick,
        due: &mut Vec<u32>,
        most: usize,
    ) -> bool {
        let mut slot = self.heads[bucket];
        while slot != NONE {
            let node = *nodes.node(slot);
            if !node.due.is_after(target) {
                if due.len() >= most {
                    return false;
                }
                self.disarm(nodes, slot);
                due.push(slot);
            }
            slot = node.next;
        }
        true
    }

    /// When the next bucket with something in it comes; `None` where the wheel is empty.
    pub(crate) fn next(&self) -> Option<Nanos> {
        if self.armed == 0 {
            return None;
        }
        let start = self.now.0.wrapping_add(1);
        let ahead = (0..BUCKETS as u32)
            .find(|ahead| {
                let bucket = Tick(start.wrapping_add(*ahead)).bucket();
                self.occupied[bucket / 64] >> (bucket % 64) & 1 == 1
            })
            .unwrap_or(0);
        let from_clock = start.wrapping_add(ahead).wrapping_sub(self.clock as u32) as i32;
        Some(Nanos(self.clock.saturating_add_signed(from_clock.into()) << TICK_SHIFT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    impl Nodes for Vec<Node> {
        fn node(&mut self, slot: u32) -> &mut Node {
            &mut self[slot as usize]
        }
    }

    const TICK: u64 = 1 << TICK_SHIFT;

    #[test]
    fn deadlines_fire_in_their_tick_never_early() {
        let mut nodes = vec![Node::default(); 4];
        let mut wheel = Wheel::new(Nanos(0));
        wheel.arm(&mut nodes, 0, Tick(3));
        wheel.arm(&mut nodes, 1, Tick(3));
        wheel.arm(&mut nodes, 2, Tick(3 + BUCKETS as u32));
        assert_eq!(wheel.next(), Some(Nanos(3 * TICK)));
        let mut due = Vec::new();
        wheel.advance(&mut nodes, Nanos(3 * TICK - 1), &mut due, 10);
        assert_eq!(due, []);
        wheel.advance(&mut nodes, Nanos(3 * TICK), &mut due, 10);
        due.sort_unstable();
        assert_eq!(due, [0, 1]);
        due.clear();
        wheel.advance(&mut nodes, Nanos((3 + BUCKETS as u64) * TICK), &mut due, 10);
        assert_eq!(due, [2]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_long_sleep_misses_nothing_and_a_full_list_goes_on() {
        let mut nodes = vec![Node::default(); 3000];
        let mut wheel = Wheel::new(Nanos(0));
        for slot in 0..3000 {
            wheel.arm(&mut nodes, slot, Tick(1 + slot));
        }
        wheel.disarm(&mut nodes, 5);
        let mut fired = Vec::new();
        loop {
            let mut due = Vec::new();
            wheel.advance(&mut nodes, Nanos(5000 * TICK), &mut due, 100);
            if due.is_empty() {
                break;
            }
            fired.extend(due);
        }
        fired.sort_unstable();
        assert_eq!(fired, (0..3000).filter(|slot| *slot != 5).collect::<Vec<_>>());
    }

    #[test]
    fn a_machine_that_has_been_up_for_years_sleeps_as_well() {
        let up = (7 << 32) - 2;
        let mut nodes = vec![Node::default(); 1];
        let mut wheel = Wheel::new(Nanos(up * TICK));
        wheel.arm(&mut nodes, 0, Tick::at(Nanos((up + 5) * TICK)));
        assert_eq!(wheel.next(), Some(Nanos((up + 5) * TICK)));
        let mut due = Vec::new();
        wheel.advance(&mut nodes, Nanos((up + 4) * TICK), &mut due, 1);
        assert_eq!((wheel.next(), due.len()), (Some(Nanos((up + 5) * TICK)), 0));
        wheel.advance(&mut nodes, Nanos((up + 5) * TICK), &mut due, 1);
        assert_eq!(due, [0]);
    }

    #[test]
    fn durations_round_up() {
        assert_eq!(Tick(1).after(Duration::from_nanos(1)), Tick(2));
        assert_eq!(Tick::not_before(Nanos(1)), Tick(1));
        assert_eq!(Tick::not_before(Nanos(TICK)), Tick(1));
        assert!(Tick(0).is_after(Tick(u32::MAX)));
    }
}
