//! One core's turn: completions → sessions → handler → intents.
//!
//! [`Shard::turn`] is the whole engine in one call, without a thread or a clock of its own: a
//! thread drives it in production ([`crate::server`]), a simulation by hand. Nothing on the path
//! of a message is shared, locked or allocated.

mod accepting;
mod audit;
mod ending;
mod hungry;
mod operations;
mod pressure;
mod reading;
mod service;
mod shortage;
mod writing;

#[cfg(test)]
mod held;
#[cfg(test)]
mod simulated;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use self::hungry::Hungry;
use self::operations::Operations;
use self::pressure::Shedding;
use self::service::Service;
use self::shortage::{AdoptPause, Shortage};
use crate::acceptor::Acceptor;
use crate::acceptor::ledger::Ledger;
use crate::acceptor::peers::Peers;
use crate::acceptor::service::ServiceSet;
use crate::budget::{Dry, Limits, WhenFull};
use crate::buffer::{Arena, Memory, Span};
use crate::deadline::Deadline;
use crate::driver::{Completion, Driver, Kind, MAX_SPANS, Nanos, Token};
use crate::handler::{Context, Handler, ShardContext};
use crate::mailbox::{HandOver, Handed, MAILBOX, Mail, Mailbox};
use crate::metrics::Counters;
use crate::monitor::Gauge;
use crate::reason::Reason;
use crate::session::chain::Links;
use crate::session::core::{Called, Core, Slow};
use crate::session::life::Life;
use crate::session::table::Table;
use crate::session::wheel::{Tick, Wheel};

/// What a server is tuned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// As many connections as possible, each costing as little as possible: an idle one is
    /// parked, and holds no buffer.
    #[default]
    Connections,
    /// Few connections, each served as fast as possible: every one has a receive posted, into
    /// blocks provided ahead.
    Throughput,
}

/// How other shards reach one: its mailbox, and the connections on their way to it.
pub(crate) struct Link<S> {
    pub mailbox: Arc<Mailbox>,
    pub handed: HandOver<S>,
}

/// What a shard is made of, but for its driver, arena and handler.
pub(crate) struct Parts<S> {
    pub number: u32,
    pub profile: Profile,
    pub limits: Limits,
    /// Slots in the table.
    pub slots: u32,
    /// Of these, the most that its handler may connect.
    pub outgoing: u32,
    pub links: Arc<[Link<S>]>,
    pub ledger: Arc<Ledger>,
    /// When what is left is cut, once a drain has been asked for.
    pub deadline: Arc<Deadline>,
    /// Connections by peer, where each may have only so many.
    pub peers: Option<Arc<Peers>>,
    /// Whose turn it is to be read, where not all are read at once.
    pub service: Option<Arc<ServiceSet>>,
    /// How short the machine is of memory and files.
    pub gauge: Arc<Gauge>,
    pub counters: Arc<Counters>,
    /// Whether this shard is the acceptor.
    pub accepts: bool,
}

/// Completions taken from the driver at once.
const BATCH: usize = 1024;
/// Messages taken from the mailbox in one turn: what is left comes in the next.
const MAIL_PER_TURN: usize = 256;
/// Timers fired in one turn.
const TIMERS_PER_TURN: usize = 1024;
/// A handler that asks for a turn in the past has it so much later.
const FOR_THE_PAST: Duration = Duration::from_millis(1);
/// Blocks lent to streams: twice what one wait brings at most, so that the kernel has the next
/// while the last are being sent.
const PROVIDED: u32 = 512;

/// One shard.
pub(crate) struct Shard<D: Driver, H: Handler> {
    driver: D,
    handler: H,
    core: Core<H::State>,
    memory: Arc<Memory>,
    profile: Profile,
    links: Arc<[Link<D::Socket>]>,
    ledger: Arc<Ledger>,
    deadline: Arc<Deadline>,
    peers: Option<Arc<Peers>>,
    when_full: WhenFull,
    acceptor: Option<Acceptor>,
    /// The service set, where not all are served.
    service: Option<Service>,
    /// How short the machine is of memory and files.
    gauge: Arc<Gauge>,
    shedding: Shedding,
    /// Sessions that the kernel was short of something for.
    shortage: Shortage,
    /// Operations in flight, where they are limited.
    operations: Option<Operations>,
    /// Blocks posted to the kernel in single receives and in streams, and the most.
    pinned: u32,
    pinned_most: u32,
    completions: Vec<Completion>,
    /// Connections handed over by the acceptor, the first of them last: emptied in each turn, unless
    /// adopting is paused.
    arrived: Vec<Handed<D::Socket>>,
    adopt_pause: AdoptPause,
    due: Vec<u32>,
    spans: [Span; MAX_SPANS],
    /// Blocks lent to streams, now and at most.
    provided: u32,
    provide: u32,
    /// Blocks lent to streams since one of them last found none.
    lent_since: u32,
    /// When streams that found none look again, even if no block was lent since.
    feed_at: Option<Nanos>,
    /// Sessions that wait for a block, oldest first.
    hungry: Hungry,
    /// Draining: when what is left will be cut.
    cut_at: Option<Nanos>,
    was_cut: bool,
    told_of_the_past: bool,
}

impl<D: Driver, H: Handler> Shard<D, H> {
    /// A shard that has not begun.
    pub(crate) fn new(driver: D, mut arena: Arena, handler: H, parts: Parts<D::Socket>) -> Self {
        let blocks = arena.memory().blocks();
        let streams = parts.profile == Profile::Throughput && driver.features().streams;
        let now = driver.now();
        let links = Links::new(&arena);
        if parts.accepts {
            parts.ledger.open();
        }
        let shards = parts.links.len() as u32;
        let warm = parts.limits.warm_up.div_ceil(shards);
        let mut table = Table::new(parts.slots);
        table.warm_up(warm);
        arena.warm_up(warm);
        let limits = &parts.limits;
        let pinned_most = limits.pinned_blocks(shards);
        let refuses = limits.when_full != WhenFull::Wait;
        Self {
            memory: arena.memory().clone(),
            profile: parts.profile,
            links: parts.links,
            ledger: parts.ledger,
            deadline: parts.deadline,
            acceptor: parts.accepts.then(|| {
                Acceptor::new(limits.max_accept_rate, refuses)
                    .with_dry_rate(limits.dry_run.has(Dry::AcceptRate))
            }),
            peers: parts.peers,
            when_full: limits.when_full.clone(),
            service: parts.service.map(|set| Service::new(set, parts.slots)),
            gauge: parts.gauge,
            shedding: Shedding::new(limits.shed, parts.slots),
            shortage: Shortage::new(parts.slots),
            operations: Operations::new(limits, shards, parts.slots),
            pinned: 0,
            pinned_most,
            completions: Vec::with_capacity(BATCH),
            arrived: Vec::with_capacity(parts.slots as usize),
            adopt_pause: AdoptPause::default(),
            due: Vec::with_capacity(TIMERS_PER_TURN),
            spans: [Span { block: 0, start: 0, len: 0 }; MAX_SPANS],
            provided: 0,
            provide: if streams { stream_blocks(blocks).min(pinned_most) } else { 0 },
            lent_since: 0,
            feed_at: None,
            hungry: Hungry::default(),
            cut_at: None,
            was_cut: false,
            told_of_the_past: false,
            core: Core {
                shard: parts.number,
                now,
                table,
                open: 0,
                open_high_water: 0,
                arena,
                links,
                wheel: Wheel::new(now),
                limits: parts.limits.session(),
                touched: Vec::with_capacity(parts.slots as usize),
                connects: Vec::with_capacity(parts.outgoing as usize),
                outgoing_most: parts.outgoing,
                outgoing_left: parts.outgoing,
                shown: None,
                called: Called::default(),
                counters: parts.counters,
                draining: false,
                slow: match limits.drain_rate {
                    Some(_) => vec![Slow::default(); parts.slots as usize],
                    None => Vec::new(),
                },
                unfinished: match limits.message_timeout {
                    Some(_) => vec![None; parts.slots as usize],
                    None => Vec::new(),
                },
            },
            driver,
            handler,
        }
    }

    /// Waits until there is something to do, or until `until`. Returns the time.
    pub(crate) fn wait(&mut self, until: Option<Nanos>) -> std::io::Result<Nanos> {
        self.driver.wait(until, &mut self.completions)
    }

    /// Has the handler begin. Called once, before the first turn.
    ///
    /// # Errors
    ///
    /// What [`Handler::on_start`] panicked with.
    pub(crate) fn start(&mut self, now: Nanos) -> std::thread::Result<()> {
        self.core.now = now;
        self.top_up();
        self.try_call_shard("on_start", H::on_start)?;
        self.settle();
        Ok(())
    }

    /// Does all that there is to do at `now`, and returns until when to wait at most.
    pub(crate) fn turn(&mut self, now: Nanos) -> Option<Nanos> {
        self.core.now = now;
        self.core.called = Called::default();
        let mut wish = None;
        // Before what completes now: a new shortage does not put off those who waited.
        self.end_shortage();
        self.dispatch_all();
        let more_mail = self.read_mail_and_drain();
        let more_timers = self.fire_timers();
        self.rotate_service();
        self.shed();
        self.refill_accepts();
        self.feed();
        self.top_up();
        self.call_shard("on_turn", |handler, shard| wish = handler.on_turn(shard));
        let wish = wish.map(|wish| self.not_in_the_past(wish));
        self.settle();
        self.cut_when_due();
        if self.operations.is_some() {
            self.serve_senders();
        }
        self.close_ledger();
        self.count();
        let may_feed = !self.hungry.is_empty() && self.may_post() > 0;
        if more_mail || more_timers || may_feed {
            return Some(now);
        }
        let accept = self.acceptor.as_ref().and_then(|acceptor| acceptor.next(now));
        let service = self.service.as_ref().and_then(Service::next);
        let short = self.shortage.next();
        let pressure = self.pressure_deadline();
        let (feed, adopt) = (self.feed_at, self.adopt_pause.until);
        [self.core.wheel.next(), accept, wish, self.cut_at, service, short, pressure, feed, adopt]
            .into_iter()
            .flatten()
            .min()
    }

    /// When to have the next turn, where the handler asked for it at `wish`.
    fn not_in_the_past(&mut self, wish: Nanos) -> Nanos {
        let now = self.core.now;
        if wish >= now {
            return wish;
        }
        self.core.counters.turns_in_the_past.add(1);
        if !std::mem::replace(&mut self.told_of_the_past, true) {
            let (handler, shard) = (std::any::type_name::<H>(), self.core.shard);
            let late = now.since(wish);
            tracing::warn!(%handler, shard, ?late, "on_turn asks for a turn in the past");
        }
        now.after(FOR_THE_PAST)
    }

    /// Whether a drain has ended: no session is left, and nothing is in flight.
    pub(crate) fn is_drained(&self) -> bool {
        // A connection may have been handed over just before the ledger was closed.
        self.core.draining
            && self.core.table.used() == 0
            && self.ledger.is_closed()
            && self.links[self.core.shard as usize].handed.is_empty()
    }

    /// Takes back what was lent to streams, and returns how many blocks are still out: zero when
    /// every account is settled.
    pub(crate) fn settle_accounts(&mut self) -> usize {
        while let Some(lease) = self.driver.reclaim() {
            self.provided -= 1;
            self.core.arena.give_back(lease);
        }
        self.core.arena.outstanding()
    }

    /// The shard's driver: for the server to start listening, for a simulation to look.
    pub(crate) fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    /// What it counts.
    pub(crate) fn counters(&self) -> &Counters {
        &self.core.counters
    }

    /// The handler's callbacks of this turn.
    pub(crate) fn called(&self) -> Called {
        self.core.called
    }

    /// Its number.
    pub(crate) fn number(&self) -> u32 {
        self.core.shard
    }

    fn dispatch_all(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            self.dispatch(completion);
            self.settle();
        }
        self.completions = completions;
    }

    fn dispatch(&mut self, completion: Completion) {
        let token = completion.token;
        if token.kind() == Kind::HandOver {
            return self.handed_over(completion);
        }
        let Some(session) = self.core.table.of(token) else { return self.stale(completion) };
        if !completion.more {
            session.in_flight.complete(token.kind());
            if let Some(operations) = &mut self.operations {
                operations.complete(token.kind(), session.marks.blocked);
            }
        }
        let slot = token.slot();
        match token.kind() {
            Kind::Accept => self.accepted(slot, &completion),
            Kind::Connect => self.connected(slot, completion.result),
            Kind::Park => self.readable(slot, completion.result),
            Kind::Receive => self.received(slot, completion),
            Kind::Send => self.sent(slot, completion.result),
            Kind::HalfClose => self.half_closed(slot, completion.result),
            Kind::Close => self.closed(slot),
            Kind::HandOver => unreachable!("it names no slot, and was told apart above"),
        }
    }

    /// A completion of a session, or of a hand-over, that there is no more: counted, and what it
    /// brought goes home.
    fn stale(&mut self, completion: Completion) {
        self.core.counters.stale.add(1);
        if let Some(lease) = completion.lease {
            // It was the kernel's, whosever it was.
            let account = if self.provide > 0 { &mut self.provided } else { &mut self.pinned };
            *account = account.saturating_sub(1);
            self.core.arena.give_back(lease);
        }
        if completion.token.kind() == Kind::HandOver && completion.result.is_ok() {
            self.driver.discard(completion.token);
        }
    }

    /// Looks at each session that something was done to.
    fn settle(&mut self) {
        self.post_connects();
        while let Some(slot) = self.core.touched.pop() {
            let session = self.core.table.get(slot);
            session.marks.touched = false;
            let marks = session.marks;
            match session.life {
                Life::Open | Life::Draining if marks.abort => self.finish(slot, true),
                Life::Connecting if marks.abort || marks.close => self.finish(slot, true),
                Life::Open | Life::Draining => {
                    if marks.close && session.life == Life::Open {
                        session.become_(Life::Draining);
                        self.leave_service(slot);
                    }
                    self.write(slot);
                    self.read(slot);
                }
                Life::Free | Life::Waiting | Life::Connecting | Life::Closing | Life::Recycling => {
                }
            }
            self.post_connects();
        }
    }

    /// Reads some of the mailbox, and drains where that is asked for. Returns whether there may be
    /// more mail.
    ///
    /// What was put in before the drain was asked for is read before the drain begins: all that the
    /// mailbox holds, in that turn.
    fn read_mail_and_drain(&mut self) -> bool {
        let Some(cut_at) = self.deadline.get() else { return self.read_mail(MAIL_PER_TURN) };
        let more = self.read_mail(if self.core.draining { MAIL_PER_TURN } else { MAILBOX });
        self.drain(cut_at);
        more
    }

    /// Reads so many messages of the mailbox at most. Returns whether there may be more.
    fn read_mail(&mut self, most: usize) -> bool {
        self.adopt_handed();
        for _ in 0..most {
            let Some(mail) = self.links[self.core.shard as usize].mailbox.take() else {
                return false;
            };
            self.read_one(mail);
            self.settle();
        }
        true
    }

    fn read_one(&mut self, mail: Mail) {
        match mail {
            Mail::Send(id, bytes) => match self.core.find(id) {
                // Refused, it ends the session with a reason of its own.
                Some(slot) => _ = self.core.send(slot, &bytes),
                None => self.core.counters.mail_gone.add(1),
            },
            Mail::Disconnect(id) => {
                if !self.core.disconnect(id) {
                    self.core.counters.mail_gone.add(1);
                }
            }
            Mail::Broadcast(bytes) => {
                ShardContext { core: &mut self.core }.each_session(|cx| _ = cx.send(&bytes));
            }
            Mail::Message(message) => {
                let call = |handler: &mut H, shard: &mut ShardContext<'_, _>| {
                    handler.on_message(shard, message);
                };
                self.call_shard("on_message", call);
            }
            Mail::Audit(answer) => _ = answer.send(self.audit()),
        }
    }

    /// Fires what is due. Returns whether there may be more.
    fn fire_timers(&mut self) -> bool {
        let mut due = std::mem::take(&mut self.due);
        self.core.wheel.advance(&mut self.core.table, self.core.now, &mut due, TIMERS_PER_TURN);
        let full = due.len() == TIMERS_PER_TURN;
        for slot in due.drain(..) {
            self.fire(slot);
            self.settle();
        }
        self.due = due;
        full
    }

    fn fire(&mut self, slot: u32) {
        let tick = Tick::at(self.core.now);
        if self.core.connect_deadline(slot).is_some_and(|deadline| !deadline.is_after(tick)) {
            self.core.table.get(slot).end(Reason::ConnectTimeout);
            return self.core.abort(slot);
        }
        let session = self.core.table.get(slot);
        if !session.is_alive() {
            return self.core.rearm(slot);
        }
        if session.timer.is_some_and(|timer| !timer.is_after(tick)) {
            session.timer = None;
            self.call(slot, "on_timer", H::on_timer);
        }
        if self.core.silence_deadline(slot).is_some_and(|deadline| !deadline.is_after(tick)) {
            self.silent_too_long(slot);
        }
        if self.core.message_deadline(slot).is_some_and(|deadline| !deadline.is_after(tick)) {
            self.unfinished_too_long(slot);
        }
        if self.core.slow_deadline(slot).is_some_and(|deadline| !deadline.is_after(tick)) {
            self.judge_drain_rate(slot);
        }
        self.core.rearm(slot);
    }

    /// Calls the handler for a session; a panic costs the session.
    fn call<R>(
        &mut self,
        slot: u32,
        name: &'static str,
        callback: impl FnOnce(&mut H, &mut Context<'_, H::State>) -> R,
    ) -> Option<R> {
        self.core.called.note(name);
        call(&mut self.handler, &mut self.core, slot, callback)
    }

    /// Calls the handler for the shard; a panic costs nothing but a log line.
    fn call_shard(
        &mut self,
        name: &'static str,
        call: impl FnOnce(&mut H, &mut ShardContext<'_, H::State>),
    ) {
        if self.try_call_shard(name, call).is_err() {
            tracing::error!(shard = self.core.shard, "a handler's callback for its shard panicked");
        }
    }

    fn try_call_shard(
        &mut self,
        name: &'static str,
        call: impl FnOnce(&mut H, &mut ShardContext<'_, H::State>),
    ) -> std::thread::Result<()> {
        self.core.called.note(name);
        let handler = &mut self.handler;
        let mut shard = ShardContext { core: &mut self.core };
        catch_unwind(AssertUnwindSafe(|| call(handler, &mut shard)))
    }

    /// The token for an operation of a session.
    fn token(&mut self, kind: Kind, slot: u32) -> Token {
        Token::new(kind, self.core.table.get(slot).generation, slot)
    }

    fn count(&mut self) {
        let counters = &self.core.counters;
        counters.turns.add(1);
        counters.slot_hits.set(self.core.table.hits());
        counters.slot_misses.set(self.core.table.misses());
        counters.sessions_high_water.set(u64::from(self.core.open_high_water));
        counters.block_hits.set(self.core.arena.hits());
        counters.block_misses.set(self.core.arena.misses());
        if let Some(pool) = self.driver.pool() {
            counters.socket_hits.set(pool.hits);
            counters.socket_misses.set(pool.misses);
            counters.sockets_returned.set(pool.returned);
            counters.sockets_expired.set(pool.expired);
            counters.sockets_idle.set(pool.idle);
            counters.sockets_high_water.set(pool.high_water);
            counters.sockets_in_limbo.set(pool.limbo);
            counters.sockets_in_limbo_high_water.set(pool.limbo_high_water);
        }
        if let Some(operations) = &self.operations {
            counters.operations.set(u64::from(operations.count()));
            counters.operations_high_water.set(u64::from(operations.high_water()));
        }
        counters.sessions.set(u64::from(self.core.open));
        counters.blocks.set(self.core.arena.outstanding() as u64);
        counters.blocks_high_water.set(self.core.arena.high_water() as u64);
    }
}

/// Calls a handler for a session; a panic costs the session.
fn call<H: Handler, R>(
    handler: &mut H,
    core: &mut Core<H::State>,
    slot: u32,
    callback: impl FnOnce(&mut H, &mut Context<'_, H::State>) -> R,
) -> Option<R> {
    let mut cx = Context { core, slot };
    // The handler may be left half-way through a change: its own affair, as with a poisoned
    // lock that is used on. The core's own invariants hold between any two of its methods.
    let result = catch_unwind(AssertUnwindSafe(|| callback(handler, &mut cx)));
    result
        .map_err(|_| {
            core.table.get(slot).end(Reason::Panicked);
            core.abort(slot);
        })
        .ok()
}

/// How many blocks of an arena are lent to streams: never more than half, the rest is for
/// outboxes. A power of two, as io_uring's rings want it.
pub(crate) fn stream_blocks(blocks: u32) -> u32 {
    let most = (blocks / 2).min(PROVIDED);
    1 << most.max(1).ilog2()
}
