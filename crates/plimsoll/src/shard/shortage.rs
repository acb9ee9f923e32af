//! What is done when the kernel has no memory for an operation of a session (ENOBUFS, ENOMEM,
//! WSAENOBUFS): nothing is lost and nothing is posted for it until a pause is over, which all shards
//! share ([`Gauge::note`](crate::monitor::Gauge::note)). The same for a connection that cannot be adopted.
//! And what is done with a peer that takes too little.

use std::time::Duration;

use super::Shard;
use crate::budget::Dry;
use crate::driver::{Driver, Failure, Fault, Nanos};
use crate::handler::Handler;
use crate::reason::Reason;
use crate::session::wheel::Tick;

/// Sessions that wait for the pause to be over.
#[derive(Debug)]
pub(super) struct Shortage {
    /// Slot and generation of each; a session is here once, which its mark says.
    waiting: Vec<(u32, u64)>,
    until: Option<Nanos>,
}

impl Shortage {
    /// For a shard of so many slots: all memory is taken here.
    pub(super) fn new(slots: u32) -> Self {
        // A slot may be used again while its last session's entry is still there.
        Self { waiting: Vec::with_capacity(slots as usize * 2), until: None }
    }

    /// When the pause is over.
    pub(super) fn next(&self) -> Option<Nanos> {
        self.until
    }
}

/// Time between two log lines of a shard about connections that cannot be adopted.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// A shard that can adopt no connection.
#[derive(Debug, Default)]
pub(super) struct AdoptPause {
    /// When it tries again.
    pub(super) until: Option<Nanos>,
    logged_at: Option<Nanos>,
}

/// Whether a fault says that the kernel is short of memory, or of what it allows, which may pass.
pub(super) fn is_shortage(fault: Fault) -> bool {
    matches!(fault, Fault::Buffers | Fault::Memory | Fault::Watches)
}

impl<D: Driver, H: Handler> Shard<D, H> {
    /// The kernel was short of memory for an operation of a session, which is posted again after a
    /// pause.
    pub(super) fn back_off(&mut self, slot: u32, fault: Fault) {
        self.core.counters.shortages.add(1);
        let until = self.gauge.note(fault, self.core.now);
        let shortage = &mut self.shortage;
        shortage.until = shortage.until.max(until);
        let session = self.core.table.get(slot);
        if !std::mem::replace(&mut session.marks.short, true) {
            if shortage.waiting.len() == shortage.waiting.capacity() {
                let table = &mut self.core.table;
                shortage.waiting.retain(|&(slot, generation)| {
                    let session = table.get(slot);
                    session.generation == generation && session.marks.short
                });
            }
            let generation = self.core.table.get(slot).generation;
            shortage.waiting.push((slot, generation));
        }
    }

    /// A connection could not be adopted, and is lost. Unless its peer had gone, all shards brake for a
    /// while, and the connections that wait to be adopted go on waiting until this shard tries again.
    pub(super) fn adopt_failed(&mut self, failure: Failure) {
        let (fault, now) = (failure.fault, self.core.now);
        self.core.counters.accept_errors.add(1);
        if matches!(fault, Fault::Reset | Fault::Aborted) {
            self.core.counters.dead_in_backlog.add(1);
            return;
        }
        let noted = self.gauge.note(fault, now);
        if noted.is_some() {
            self.core.counters.shortages.add(1);
        }
        let pause = &mut self.adopt_pause;
        pause.until = Some(noted.unwrap_or_else(|| self.gauge.brake(now)));
        if pause.logged_at.is_none_or(|at| now.since(at) >= LOG_EVERY) {
            pause.logged_at = Some(now);
            tracing::warn!(
                %failure,
                shard = self.core.shard,
                "a connection could not be adopted; trying the next one after a pause"
            );
        }
    }

    /// When the pause is over: all who waited go on.
    pub(super) fn end_shortage(&mut self) {
        if self.shortage.until.is_none_or(|until| until > self.core.now) {
            return;
        }
        self.shortage.until = None;
        let mut waiting = std::mem::take(&mut self.shortage.waiting);
        for (slot, generation) in waiting.drain(..) {
            let session = self.core.table.get(slot);
            if session.generation == generation {
                session.marks.short = false;
                self.core.touch(slot);
            }
        }
        self.shortage.waiting = waiting;
        self.settle();
    }

    /// A session's outbox has been blocked for as long as a slow peer is watched.
    pub(super) fn judge_drain_rate(&mut self, slot: u32) {
        let Some(rate) = self.core.limits.drain_rate else { return };
        let window = self.core.limits.drain_window;
        let least = (f64::from(rate) * window.as_secs_f64()) as u64;
        let Some(watch) = self.core.slow.get_mut(slot as usize) else { return };
        let taken = std::mem::take(&mut watch.taken);
        watch.since = Some(Tick::not_before(self.core.now));
        if taken < least && !self.core.is_dry(Dry::SlowReader) {
            self.core.table.get(slot).end(Reason::SlowReader);
            self.core.abort(slot);
        }
    }
}
