//! What a shard has but for its driver: the table, the buffers, the wheel. Handlers work on this
//! through [`crate::Context`]; what they ask for is marked, and the shard posts it after.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::SessionId;
use super::chain::Links;
use super::life::{Life, Writing};
use super::table::Table;
use super::wheel::{Tick, Wheel};
use crate::budget::{Dry, SessionLimits};
use crate::buffer::{Arena, Span};
use crate::driver::Nanos;
use crate::metrics::Counters;
use crate::reason::Reason;

/// The most bytes in one outbox, whatever the limits say.
const MOST_QUEUED: usize = 1 << 31;
/// The longest time that a handler's timer can be set to.
const LONGEST_TIMER: Duration = Duration::from_secs(365 * 24 * 3600);

/// What became of bytes that were to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// They are queued, and the outbox is below its high mark.
    Below,
    /// They are queued, and the outbox is at or above its high mark: nothing more is received
    /// from this session until it falls below the low mark, when
    /// [`crate::Handler::on_writable`] is called. Who produces for it should stop.
    AboveHigh,
    /// They are not queued: the session is closing, or they would have passed the hard mark or
    /// found no buffer (then the session is aborted).
    Refused,
}

/// The block that a handler is being shown, and which of its bytes it has sent back so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown {
    pub slot: u32,
    pub block: u32,
    pub sent: Option<Span>,
}

/// The handler's callbacks of a turn: for the log, should one of them have blocked the shard.
///
/// None of them is timed, which would cost each message a look at a clock: where there was one, it
/// was that; of several only the last is known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Called {
    pub last: &'static str,
    pub count: u32,
}

impl Called {
    /// A callback is called. `on_turn` ends each turn, and has a name here only where it is the only
    /// one.
    #[inline]
    pub(crate) fn note(&mut self, name: &'static str) {
        if name == "on_turn" {
            if self.count > 0 {
                return;
            }
        } else {
            self.count += 1;
        }
        self.last = name;
    }
}

/// Why no outgoing connection was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotBegun {
    /// The server drains.
    #[error("the server drains: no connection is begun any more")]
    Draining,
    /// The shard has as many outgoing connections as it may.
    #[error(
        "the shard has {most} outgoing connections, the most that it may: raise max_outgoing, which all \
         shards share"
    )]
    Full {
        /// Its share of [`crate::Limits::max_outgoing`].
        most: u32,
    },
}

/// An outgoing connection that is to be posted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connect {
    pub slot: u32,
    pub source: Option<SocketAddr>,
}

/// The state of a shard that handlers may touch.
pub(crate) struct Core<S> {
    pub shard: u32,
    pub now: Nanos,
    pub table: Table<S>,
    /// Sessions whose handler knows them, and that have not ended altogether.
    pub open: u32,
    /// The most of them at once.
    pub open_high_water: u32,
    pub arena: Arena,
    pub links: Links,
    pub wheel: Wheel,
    pub limits: SessionLimits,
    /// Slots that a handler, the mailbox or the wheel did something to.
    pub touched: Vec<u32>,
    pub connects: Vec<Connect>,
    /// How many may be connected, and how many more: the others' slots are for accepts.
    pub outgoing_most: u32,
    pub outgoing_left: u32,
    pub shown: Option<Shown>,
    pub called: Called,
    pub counters: Arc<Counters>,
    pub draining: bool,
    /// Sessions whose outbox is blocked, by slot; empty where no drain rate is asked for.
    pub slow: Vec<Slow>,
    /// Since when each session's handler has waited for the rest of a message, by slot; empty where
    /// it may wait for ever.
    pub unfinished: Vec<Option<Tick>>,
}

/// How a session whose outbox is blocked gets rid of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Slow {
    /// Since when it is watched; `None` where it is not blocked.
    pub since: Option<Tick>,
    /// Bytes that the kernel took since then.
    pub taken: u64,
}

impl<S: Default> Core<S> {
    /// Takes a slot for an outgoing connection.
    pub(crate) fn connect(
        &mut self,
        remote: SocketAddr,
        source: Option<SocketAddr>,
    ) -> Result<SessionId, NotBegun> {
        if self.draining {
            return Err(NotBegun::Draining);
        }
        let full = NotBegun::Full { most: self.outgoing_most };
        if self.outgoing_left == 0 {
            return Err(full);
        }
        let slot = self.table.take().ok_or(full)?;
        self.outgoing_left -= 1;
        let begun = Tick::not_before(self.now);
        let session = self.table.get(slot);
        session.become_(Life::Connecting);
        session.peer = remote;
        session.marks.outgoing = true;
        session.active = begun;
        self.connects.push(Connect { slot, source });
        self.rearm(slot);
        Ok(self.id(slot))
    }
}

impl<S> Core<S> {
    /// The name of the session in a slot.
    pub(crate) fn id(&mut self, slot: u32) -> SessionId {
        let generation = self.table.get(slot).generation;
        SessionId { shard: self.shard, slot, generation }
    }

    /// The slot of a session that is served or being connected; `None` where it has gone.
    pub(crate) fn find_any(&mut self, id: SessionId) -> Option<u32> {
        let is_connecting = id.shard == self.shard && id.slot < self.table.touched() && {
            let session = self.table.get(id.slot);
            session.generation == id.generation && session.life == Life::Connecting
        };
        if is_connecting { Some(id.slot) } else { self.find(id) }
    }

    /// The slot of a session that is served; `None` where it has gone.
    pub(crate) fn find(&mut self, id: SessionId) -> Option<u32> {
        if id.shard != self.shard || id.slot >= self.table.touched() {
            return None;
        }
        let session = self.table.get(id.slot);
        (session.generation == id.generation && session.is_alive()).then_some(id.slot)
    }

    /// Has the shard look at a slot after the callback. O(1), no allocation: each slot is in the
    /// list once.
    pub(crate) fn touch(&mut self, slot: u32) {
        let marks = &mut self.table.get(slot).marks;
        if !marks.touched {
            marks.touched = true;
            self.touched.push(slot);
        }
    }

    /// Queues bytes for a session's peer. Bytes of the block that its handler is being shown are
    /// not copied where they are the first in the outbox, or many.
    pub(crate) fn send(&mut self, slot: u32, bytes: &[u8]) -> Queue {
        let session = self.table.get(slot);
        let marks = session.marks;
        let closing = marks.close || marks.abort || marks.half_close;
        if session.life != Life::Open || closing || session.writing == Writing::Shut {
            return Queue::Refused;
        }
        if bytes.is_empty() {
            return self.level(slot);
        }
        let shown_bytes = self.shown.and_then(|shown| shown.sent).map_or(0, |span| span.len);
        let queued = session.outbox.len() as usize + shown_bytes as usize;
        let past_hard = queued + bytes.len() > self.limits.outbox_hard as usize;
        // Chains count in 32 bits: that is a limit without a dry run.
        let countable = queued + bytes.len() <= MOST_QUEUED;
        if past_hard && !(countable && self.is_dry(Dry::OutboxHard)) {
            let session = self.table.get(slot);
            session.end(Reason::OutboxHard);
            self.abort(slot);
            return Queue::Refused;
        }
        self.touch(slot);
        if self.send_shown(slot, bytes) || self.send_copied(slot, bytes) {
            return self.level(slot);
        }
        self.table.get(slot).end(Reason::NoBuffer);
        self.abort(slot);
        Queue::Refused
    }

    /// Marks bytes of the shown block as sent, without a copy, where they are of it and it pays.
    fn send_shown(&mut self, slot: u32, bytes: &[u8]) -> bool {
        let Some(shown) = self.shown.as_mut().filter(|shown| shown.slot == slot) else {
            return false;
        };
        let memory = self.arena.memory();
        let Some(span) = memory.span_within(shown.block, bytes) else { return false };
        match &mut shown.sent {
            Some(sent) if sent.start + sent.len == span.start => {
                sent.len += span.len;
                true
            }
            Some(_) => false,
            None => {
                let outbox = &self.table.get(slot).outbox;
                let many = bytes.len() * 4 >= memory.block_bytes();
                let pays = outbox.is_empty()
                    || many
                    || !outbox.tail_has_room(&self.links, memory, bytes.len());
                if pays {
                    shown.sent = Some(span);
                }
                pays
            }
        }
    }

    /// Copies bytes to the outbox, behind what the shown block has sent before.
    fn send_copied(&mut self, slot: u32, bytes: &[u8]) -> bool {
        self.copy_shown(slot) && {
            let session = self.table.get(slot);
            let taken = session.outbox.push_bytes(&mut self.links, &mut self.arena, bytes);
            taken == bytes.len()
        }
    }

    /// Copies what was sent of the shown block to the outbox, so that its lease is free for
    /// something else. False where the arena has no block left.
    pub(crate) fn copy_shown(&mut self, slot: u32) -> bool {
        let Some(shown) = self.shown.as_mut().filter(|shown| shown.slot == slot) else {
            return true;
        };
        let Some(span) = shown.sent.take() else { return true };
        let Some(mut lease) = self.arena.lease() else { return false };
        let memory = self.arena.memory();
        memory.copy_span(span, lease.bytes_mut(memory));
        self.table.get(slot).outbox.push_lease(&mut self.links, lease, 0, span.len);
        true
    }

    fn level(&mut self, slot: u32) -> Queue {
        let shown = self.shown.filter(|shown| shown.slot == slot).and_then(|shown| shown.sent);
        let session = self.table.get(slot);
        let queued = session.outbox.len() + shown.map_or(0, |span| span.len);
        if queued < self.limits.outbox_high {
            return Queue::Below;
        }
        if !std::mem::replace(&mut session.marks.over_high, true) {
            self.counters.over_high.add(1);
        }
        Queue::AboveHigh
    }

    /// Whether a limit is in dry run: then what it would have done is counted.
    pub(crate) fn is_dry(&self, limit: Dry) -> bool {
        let dry = self.limits.dry_run.has(limit);
        if dry {
            self.counters.dry_run[limit as usize].add(1);
        }
        dry
    }

    /// Has a session closed once its outbox is empty.
    pub(crate) fn close(&mut self, slot: u32, reason: Reason) {
        let session = self.table.get(slot);
        if matches!(session.life, Life::Open | Life::Connecting) {
            session.end(reason);
            session.marks.close = true;
            self.touch(slot);
        }
    }

    /// Has a session closed once its outbox is empty, or given up where it is being connected. False
    /// where it has gone.
    pub(crate) fn disconnect(&mut self, id: SessionId) -> bool {
        let slot = self.find_any(id);
        if let Some(slot) = slot {
            self.close(slot, Reason::Disconnected);
        }
        slot.is_some()
    }

    /// Has a session aborted. Its reason must have been set.
    pub(crate) fn abort(&mut self, slot: u32) {
        let session = self.table.get(slot);
        if matches!(session.life, Life::Open | Life::Draining | Life::Connecting) {
            session.marks.abort = true;
            self.touch(slot);
        }
    }

    /// Sets or clears the handler's timer.
    pub(crate) fn set_timer(&mut self, slot: u32, after: Option<Duration>) {
        // Ticks compare over half of their range: a year is as good as never.
        let due = after.map(|after| Tick::not_before(self.now.after(after.min(LONGEST_TIMER))));
        self.table.get(slot).timer = due;
        self.rearm(slot);
    }

    /// Puts a session into the wheel at its earliest deadline, or takes it out. Deadlines that
    /// only move away (idle) are looked at when they fire, not here.
    pub(crate) fn rearm(&mut self, slot: u32) {
        match self.deadline(slot) {
            Some(due) => {
                let armed = self.table.get(slot).node.due();
                if armed.is_none_or(|armed| armed.is_after(due)) {
                    self.wheel.arm(&mut self.table, slot, due);
                }
            }
            None => self.wheel.disarm(&mut self.table, slot),
        }
    }

    /// The earliest of a session's deadlines.
    pub(crate) fn deadline(&mut self, slot: u32) -> Option<Tick> {
        let deadlines = [
            self.connect_deadline(slot),
            self.silence_deadline(slot),
            self.message_deadline(slot),
            self.slow_deadline(slot),
            self.table.get(slot).timer,
        ];
        deadlines.into_iter().flatten().reduce(Tick::earlier)
    }

    /// When an outgoing connection will have taken too long.
    pub(crate) fn connect_deadline(&mut self, slot: u32) -> Option<Tick> {
        let allowed = self.limits.connect_timeout?;
        let session = self.table.get(slot);
        (session.life == Life::Connecting).then(|| session.active.after(allowed))
    }

    /// When a session's handler will have waited too long for the rest of a message.
    pub(crate) fn message_deadline(&mut self, slot: u32) -> Option<Tick> {
        let since = (*self.unfinished.get(slot as usize)?)?;
        let allowed = self.limits.message_timeout?;
        (self.table.get(slot).life == Life::Open).then(|| since.after(allowed))
    }

    /// The handler consumed nothing of what is held, and wants more behind it.
    pub(crate) fn want_more(&mut self, slot: u32) {
        self.table.get(slot).marks.wants_more = true;
        if let Some(since @ None) = self.unfinished.get_mut(slot as usize) {
            *since = Some(Tick::not_before(self.now));
            self.rearm(slot);
        }
    }

    /// The handler consumed something: what is left is of another message.
    pub(crate) fn note_progress(&mut self, slot: u32) {
        if let Some(since) = self.unfinished.get_mut(slot as usize) {
            *since = None;
        }
    }

    /// When it is to be judged how fast a session whose outbox is blocked gets rid of it.
    pub(crate) fn slow_deadline(&mut self, slot: u32) -> Option<Tick> {
        let since = self.slow.get(slot as usize)?.since?;
        self.table.get(slot).is_alive().then(|| since.after(self.limits.drain_window))
    }

    /// The kernel took so many bytes of a session's outbox, or would not take any.
    pub(crate) fn watch_drain(&mut self, slot: u32, taken: u32) {
        let Some(watch) = self.slow.get_mut(slot as usize) else { return };
        let blocked = self.table.get(slot).marks.blocked;
        match (blocked, watch.since) {
            (true, Some(_)) => watch.taken += u64::from(taken),
            (true, None) => {
                watch.since = Some(Tick::not_before(self.now));
                self.rearm(slot);
            }
            (false, Some(_)) => *watch = Slow::default(),
            (false, None) => {}
        }
    }

    /// When a session will have been silent too long.
    pub(crate) fn silence_deadline(&mut self, slot: u32) -> Option<Tick> {
        let limits = &self.limits;
        let session = self.table.get(slot);
        if !session.is_alive() || session.marks.unserved {
            // Unserved ones are open: who drains has left the service set.
            return None;
        }
        let allowed =
            match (session.marks.heard || session.marks.outgoing, limits.first_byte_timeout) {
                (false, Some(first_byte)) => Some(first_byte),
                _ => limits.idle_timeout,
            };
        allowed.map(|allowed| session.active.after(allowed))
    }
}
