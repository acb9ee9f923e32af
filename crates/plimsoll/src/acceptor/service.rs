//! The service set (throughput profile): so many sessions of the server are read at a time, the
//! others wait in one line for all shards.
//!
//! Behind a lock: only the beginning of a session, its end, and the end of its time touch it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::driver::Wake;

/// A session that waits: its shard, slot and generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waiter {
    shard: u32,
    slot: u32,
    generation: u64,
}

/// How a session comes to the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joined {
    /// It has a place at once.
    Serves,
    /// The same; it would have to wait if the set were not in dry run.
    WouldWait,
    /// It waits, and its shard is given the place later.
    Waits,
}

/// The set's places, and the line before them.
pub(crate) struct ServiceSet {
    most: u32,
    /// Everybody has a place.
    dry: bool,
    time: Duration,
    inner: Mutex<Inner>,
    /// How many wait: looked at without the lock.
    waiting: AtomicUsize,
    shards: Box<[Door]>,
}

struct Inner {
    /// Places taken, those included that were given and not yet picked up.
    serving: u32,
    line: VecDeque<Waiter>,
    /// Places given to sessions of each shard.
    given: Box<[Vec<(u32, u64)>]>,
}

struct Door {
    any: AtomicBool,
    bell: Arc<dyn Wake>,
}

impl ServiceSet {
    /// The same, but that nobody ever waits: it only tells who would.
    pub(crate) fn in_dry_run(self, dry: bool) -> Self {
        Self { dry, ..self }
    }

    /// `most` places, each for `time` while others wait, among shards that `bells` wake, of `slots`
    /// sessions each. All memory is taken here.
    pub(crate) fn new(most: u32, time: Duration, bells: Vec<Arc<dyn Wake>>, slots: u32) -> Self {
        let slots = slots as usize;
        let given = bells.iter().map(|_| Vec::with_capacity(slots)).collect();
        let line = VecDeque::with_capacity(slots * bells.len());
        let shards = bells.into_iter().map(|bell| Door { any: AtomicBool::new(false), bell });
        Self {
            most,
            dry: false,
            time,
            inner: Mutex::new(Inner { serving: 0, line, given }),
            waiting: AtomicUsize::new(0),
            shards: shards.collect(),
        }
    }

    /// How long a session is served while others wait.
    pub(crate) fn time(&self) -> Duration {
        self.time
    }

    /// Whether anybody waits.
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// A session comes.
    pub(crate) fn join(&self, shard: u32, slot: u32, generation: u64) -> Joined {
        let mut inner = self.inner();
        if inner.serving < self.most || self.dry {
            inner.serving += 1;
            return if inner.serving > self.most { Joined::WouldWait } else { Joined::Serves };
        }
        inner.line.push_back(Waiter { shard, slot, generation });
        let first = inner.line.len() == 1;
        self.waiting.store(inner.line.len(), Ordering::SeqCst);
        drop(inner);
        if first {
            // A member's time may be over, on any shard.
            self.shards.iter().for_each(|door| door.bell.wake());
        }
        Joined::Waits
    }

    /// A member leaves: the first who waits has its place.
    pub(crate) fn leave(&self) {
        let mut inner = self.inner();
        self.give_on(&mut inner);
    }

    /// A member's time is over: it goes to the end of the line, and the first has its place. False
    /// where nobody waits: it stays.
    pub(crate) fn rejoin(&self, shard: u32, slot: u32, generation: u64) -> bool {
        let mut inner = self.inner();
        if inner.line.is_empty() {
            return false;
        }
        inner.line.push_back(Waiter { shard, slot, generation });
        self.give_on(&mut inner);
        true
    }

    /// A session that waits has ended. O(those who wait).
    pub(crate) fn give_up(&self, shard: u32, slot: u32, generation: u64) {
        let mut inner = self.inner();
        inner.line.retain(|one| *one != Waiter { shard, slot, generation });
        self.waiting.store(inner.line.len(), Ordering::SeqCst);
    }

    /// Moves the places given to sessions of a shard into `places`. Each is picked up, or left.
    pub(crate) fn take_given(&self, shard: u32, places: &mut Vec<(u32, u64)>) {
        let any = &self.shards[shard as usize].any;
        if any.load(Ordering::Acquire) {
            let mut inner = self.inner();
            any.store(false, Ordering::Release);
            places.append(&mut inner.given[shard as usize]);
        }
    }

    /// Places taken.
    #[cfg(test)]
    pub(crate) fn serving(&self) -> u32 {
        self.inner().serving
    }

    fn give_on(&self, inner: &mut Inner) {
        let Some(first) = inner.line.pop_front() else {
            inner.serving -= 1;
            return;
        };
        self.waiting.store(inner.line.len(), Ordering::SeqCst);
        inner.given[first.shard as usize].push((first.slot, first.generation));
        let door = &self.shards[first.shard as usize];
        door.any.store(true, Ordering::Release);
        door.bell.wake();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing between lock and unlock panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Wake for Nobody {
        fn wake(&self) {}
    }

    fn given(set: &ServiceSet, shard: u32) -> Vec<(u32, u64)> {
        let mut places = Vec::new();
        set.take_given(shard, &mut places);
        places
    }

    #[test]
    fn places_go_to_the_first_in_line_whatever_its_shard() {
        let bells: Vec<Arc<dyn Wake>> = vec![Arc::new(Nobody), Arc::new(Nobody)];
        let set = ServiceSet::new(2, Duration::from_secs(1), bells, 4);
        let join = |shard, slot| set.join(shard, slot, 1);
        assert_eq!([join(0, 0), join(1, 0)], [Joined::Serves; 2]);
        assert_eq!([join(1, 1), join(0, 1), join(0, 2)], [Joined::Waits; 3]);
        set.leave();
        assert_eq!((given(&set, 0), given(&set, 1)), (vec![], vec![(1, 1)]));
        assert!(set.rejoin(1, 1, 1), "the others wait");
        assert_eq!(given(&set, 0), [(1, 1)]);
        set.give_up(0, 2, 1);
        set.leave();
        assert_eq!(given(&set, 1), [(1, 1)], "whoever rejoined is behind the others");
        assert!(!set.has_waiting() && !set.rejoin(1, 1, 1));
        set.leave();
        set.leave();
        assert_eq!(set.serving(), 0);
    }

    #[test]
    fn in_dry_run_nobody_waits() {
        let bells: Vec<Arc<dyn Wake>> = vec![Arc::new(Nobody)];
        let set = ServiceSet::new(1, Duration::from_secs(1), bells, 4).in_dry_run(true);
        assert_eq!([set.join(0, 0, 1), set.join(0, 1, 1)], [Joined::Serves, Joined::WouldWait]);
        assert!(!set.has_waiting());
        set.leave();
        set.leave();
        assert_eq!((set.serving(), set.join(0, 2, 1)), (0, Joined::Serves));
    }
}
