//! A shard's part of the service set ([`crate::acceptor::service`]): which of its sessions are
//! members, and since when. A member leaves when it ends, or when it has been read for its time and
//! somebody waits: then it goes to the end of the line, so that one who says nothing keeps nobody
//! out.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Shard;
use crate::acceptor::service::{Joined, ServiceSet};
use crate::budget::Dry;
use crate::driver::{Driver, Nanos};
use crate::handler::Handler;
use crate::session::life::Life;
use crate::session::table::Table;
use crate::session::wheel::Tick;

/// A member by slot and generation, and since when it is read.
#[derive(Debug, Clone, Copy)]
struct Member {
    slot: u32,
    generation: u64,
    since: Nanos,
}

/// The members, in the order of their coming. One that has ended leaves its entry behind, which is
/// passed over.
pub(super) struct Service {
    set: Arc<ServiceSet>,
    members: VecDeque<Member>,
    given: Vec<(u32, u64)>,
    /// Since when each slot's session waits, where it does.
    waits_since: Box<[Tick]>,
    /// When the next member's time is over, while somebody waits.
    next: Option<Nanos>,
}

impl Service {
    /// The part of a shard with so many slots: all memory is taken here.
    pub(super) fn new(set: Arc<ServiceSet>, slots: u32) -> Self {
        let slots = slots as usize;
        let members = VecDeque::with_capacity(slots * 2);
        let waits_since = vec![Tick::default(); slots].into();
        Self { set, members, given: Vec::with_capacity(slots), waits_since, next: None }
    }

    /// When to look again.
    pub(super) fn next(&self) -> Option<Nanos> {
        self.next
    }

    /// Counts a session as read from now on.
    fn enter<S>(&mut self, table: &mut Table<S>, slot: u32, now: Nanos) {
        if self.members.len() == self.members.capacity() {
            self.members.retain(|member| is_read(table, member));
        }
        let session = table.get(slot);
        session.marks.placed = true;
        let generation = session.generation;
        self.members.push_back(Member { slot, generation, since: now });
    }

    /// Counts a session as waiting from now on.
    fn wait<S>(&mut self, table: &mut Table<S>, slot: u32, now: Nanos) {
        table.get(slot).marks.unserved = true;
        self.waits_since[slot as usize] = Tick::at(now);
    }
}

/// Whether a member is still one.
fn is_read<S>(table: &mut Table<S>, member: &Member) -> bool {
    let session = table.get(member.slot);
    session.generation == member.generation && session.life == Life::Open && !session.marks.unserved
}

impl<D: Driver, H: Handler> Shard<D, H> {
    /// A session that was accepted joins the set, or the line. Called before it is read.
    pub(super) fn join_service(&mut self, slot: u32) {
        let Some(service) = &mut self.service else { return };
        let session = self.core.table.get(slot);
        let joined = service.set.join(self.core.shard, slot, session.generation);
        if joined == Joined::Waits {
            service.wait(&mut self.core.table, slot, self.core.now);
            self.core.counters.queued_for_service.add(1);
            return;
        }
        service.enter(&mut self.core.table, slot, self.core.now);
        if joined == Joined::WouldWait {
            self.core.is_dry(Dry::ServiceSet);
        }
    }

    /// A session reads no more, since it drains or ends: its place is free, or it waits no more.
    pub(super) fn leave_service(&mut self, slot: u32) {
        let Some(service) = &mut self.service else { return };
        let session = self.core.table.get(slot);
        let marks = &mut session.marks;
        if std::mem::take(&mut marks.placed) {
            service.set.leave();
        } else if std::mem::take(&mut marks.unserved) {
            // What it did not say while it waited is not held against it.
            session.active = Tick::not_before(self.core.now);
            // When all are cut nobody has a turn any more, and the line need not be right.
            if !self.was_cut {
                service.set.give_up(self.core.shard, slot, session.generation);
            }
            self.core.rearm(slot);
        }
    }

    /// Serves those who were given a place, and takes those of members whose time is over.
    pub(super) fn rotate_service(&mut self) {
        if self.service.is_some() {
            self.begin_turns();
            // After: the time of those who have just begun counts from now.
            self.end_turns();
            self.settle();
        }
    }

    fn begin_turns(&mut self) {
        let Some(service) = &mut self.service else { return };
        let mut given = std::mem::take(&mut service.given);
        service.set.take_given(self.core.shard, &mut given);
        for (slot, generation) in given.drain(..) {
            let session = self.core.table.get(slot);
            let waits = session.generation == generation
                && session.life == Life::Open
                && session.marks.unserved;
            if !waits {
                // It ended meanwhile: the place goes on to the next.
                service.set.leave();
                continue;
            }
            session.marks.unserved = false;
            // It could not be heard meanwhile.
            let waited = Tick::at(self.core.now).since(service.waits_since[slot as usize]);
            session.active = session.active.later(waited);
            if let Some(Some(since)) = self.core.unfinished.get_mut(slot as usize) {
                *since = since.later(waited);
            }
            service.enter(&mut self.core.table, slot, self.core.now);
            self.core.rearm(slot);
            self.core.touch(slot);
        }
        service.given = given;
    }

    fn end_turns(&mut self) {
        let Some(service) = &mut self.service else { return };
        service.next = None;
        while service.set.has_waiting() {
            let Some(&oldest) = service.members.front() else { return };
            if !is_read(&mut self.core.table, &oldest) {
                service.members.pop_front();
                continue;
            }
            let over = oldest.since.after(service.set.time());
            if over > self.core.now {
                return service.next = Some(over);
            }
            let Member { slot, generation, .. } = oldest;
            if !service.set.rejoin(self.core.shard, slot, generation) {
                return;
            }
            service.members.pop_front();
            self.core.table.get(slot).marks.placed = false;
            service.wait(&mut self.core.table, slot, self.core.now);
            self.core.touch(slot);
        }
    }
}
