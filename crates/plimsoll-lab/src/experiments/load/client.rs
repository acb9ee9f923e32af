//! The client: a handler of the engine that connects, sends, verifies and counts. One for each
//! shard.

mod sending;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use plimsoll::driver::Nanos;
use plimsoll::{Context, Handler, Reason, SessionId, ShardContext};

use super::account::{Account, Schedule};
use super::conversation::{Event, Heard};
use super::keystream::Random;
use super::lanes::Lanes;
use super::shared::{Cut, Outcome, Part, Shared};
use super::{Options, Pace};
use crate::observe::threads::Usage;
use crate::worker::exchange::Exchange;

/// The client looks at the clock at least so often.
const TICK: Duration = Duration::from_millis(10);
/// What is kept of a text that a server said, and how many texts that differ.
const TEXT_BYTES: usize = 200;
const TEXTS: usize = 32;

/// A session's lane.
#[derive(Debug, Default)]
pub(super) struct Place {
    lane: u32,
}

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Connections are being made; since when none has been.
    Connecting(Nanos),
    /// Its connections are there, or given up.
    Waiting,
    /// Messages are sent and counted.
    Running,
    /// The measured time is over: replies are waited for.
    Finishing,
    Done,
}

/// What a client measures, from the start on.
struct Run {
    start: Nanos,
    account: Account,
    /// The open loop's messages.
    schedule: Option<Schedule>,
    /// The lanes that were open at the start.
    lanes: Vec<u32>,
    /// Messages of the schedule whose time has come.
    paced: u64,
    /// Messages of the closed loop.
    queued: u64,
    usage: Usage,
}

impl Run {
    /// Messages that are due.
    fn due(&self) -> u64 {
        self.schedule.map_or(self.queued, Schedule::due)
    }

    /// Whether a reply is still waited for.
    fn is_complete(&self) -> bool {
        self.account.total() + self.account.given_up() >= self.due()
    }
}

/// The handler.
pub(super) struct Client {
    number: u32,
    options: Arc<Options>,
    shared: Arc<Shared>,
    phase: Phase,
    lanes: Lanes,
    /// Lanes that may have something to send, and had no turn yet.
    listed: std::collections::VecDeque<u32>,
    run: Option<Run>,
    /// Messages and bytes that may still be sent in this turn.
    budget: sending::Budget,
    /// Most bytes in one lane's outbox, where it holds more than one message.
    outbox_bytes: usize,
    random: Random,
    message: Vec<u8>,
    outcome: Outcome,
}

impl Client {
    /// Client `number`, with so many connections, each of which may queue so many bytes.
    pub(super) fn new(
        number: u32,
        connections: u32,
        outbox_bytes: usize,
        options: &Arc<Options>,
        shared: Arc<Shared>,
    ) -> Self {
        // Each client draws other sizes and contents.
        let seed = options.seed.wrapping_add(u64::from(number) << 32);
        Self {
            number,
            options: options.clone(),
            shared,
            phase: Phase::Connecting(Nanos(0)),
            lanes: Lanes::new(connections),
            listed: std::collections::VecDeque::with_capacity(connections as usize),
            run: None,
            budget: sending::Budget::default(),
            outbox_bytes,
            random: Random::new(seed),
            message: vec![0; options.size.1 as usize],
            outcome: Outcome { clients: 1, ..Outcome::default() },
        }
    }

    fn error(&mut self, name: &str, count: u64) {
        if let Some(known) = self.outcome.errors.get_mut(name) {
            *known += count;
        } else if count > 0 {
            self.outcome.errors.insert(name.to_owned(), count);
        }
    }

    /// The server said something where another reply was expected.
    fn note_text(&mut self, mut text: Vec<u8>) {
        self.error("unexpected_reply", 1);
        text.truncate(TEXT_BYTES);
        let said = &mut self.outcome.said;
        if said.len() >= TEXTS && !said.contains_key(&text) {
            text = b"(other texts)".to_vec();
        }
        *said.entry(text).or_default() += 1;
    }

    fn note_texts(&mut self, texts: Vec<Vec<u8>>) {
        for text in texts {
            self.note_text(text);
        }
    }

    fn connect_some(&mut self, shard: &mut ShardContext<'_, Place>, now: Nanos) -> Option<Nanos> {
        let options = &self.options;
        let first = self.number as usize * options.connections as usize;
        self.lanes.connect(now, |lane| {
            let source = match options.sources.len() {
                0 => None,
                count => Some(SocketAddr::new(options.sources[(first + lane as usize) % count], 0)),
            };
            shard.connect(options.target, source).ok()
        })
    }

    /// Goes on once all connections are there, or none has come for too long.
    fn settle(&mut self, shard: &mut ShardContext<'_, Place>, since: Nanos) -> Option<Nanos> {
        let now = shard.now();
        let next = self.connect_some(shard, now);
        let waited = now.since(since) > self.options.timeout;
        if !self.lanes.are_settled() && !waited {
            return next;
        }
        let missing = self.lanes.give_up_the_rest();
        self.error("connect_timeout", missing);
        self.phase = Phase::Waiting;
        Some(now)
    }

    /// Starts the measured time when all clients are ready.
    fn start(&mut self, now: Nanos) -> Option<Nanos> {
        let part = self.shared.ready(self.number, self.lanes.open(), now.0)?;
        let start = Nanos(part.start_ns);
        if start > now {
            return Some(start);
        }
        self.outcome.established = self.lanes.open();
        if self.lanes.open() == 0 {
            self.finish();
            return None;
        }
        self.begin(part);
        Some(now)
    }

    fn begin(&mut self, part: Part) {
        let lanes = self.lanes.open_numbers();
        for (place, number) in lanes.iter().enumerate() {
            self.lanes.get(*number).place = place as u64;
        }
        let options = &self.options;
        let schedule = match options.pace {
            Pace::Closed { .. } => None,
            Pace::Open { rate } => {
                Some(Schedule::new(rate, options.duration).of_client(part.place, part.clients))
            }
        };
        if schedule.is_none() {
            // All are to send; how many in one turn, the budget says.
            for number in &lanes {
                self.lanes.get(*number).is_listed = true;
            }
            self.listed.extend(&lanes);
        }
        self.run = Some(Run {
            start: Nanos(part.start_ns),
            account: Account::new(part.start_ns, options.duration, options.timeout),
            schedule,
            lanes,
            paced: 0,
            queued: 0,
            usage: Usage::of_this_thread(),
        });
        self.phase = Phase::Running;
    }

    /// What is to be done in the measured time. Returns when to come again.
    fn go_on(&mut self, shard: &mut ShardContext<'_, Place>, now: Nanos) -> Option<Nanos> {
        if let Some(cut) = self.is_cut(now) {
            self.cut(cut);
            return None;
        }
        // Before the end is looked at: a message may be due just before it.
        let pace = self.pace(shard);
        let end = Nanos(self.run.as_ref()?.account.end_ns());
        if now >= end {
            self.end_measuring(now);
            return Some(now);
        }
        let timed_out = self.lanes.give_up_connects(now, self.options.timeout);
        self.error("connect_timeout", timed_out);
        let connect = self.connect_some(shard, now);
        let more = self.send_listed(shard);
        let answered = self.run.as_ref().map_or(0, |run| run.account.answered);
        self.shared.tell(self.number, self.lanes.open(), answered);
        [connect, pace, more.then_some(now), Some(end)].into_iter().flatten().min()
    }

    /// Whether the run ends before its time.
    fn is_cut(&self, now: Nanos) -> Option<Cut> {
        if self.shared.is_stopped() {
            return Some(Cut::Interrupted);
        }
        let down = self.lanes.down_since.map(|since| now.since(since));
        let gone =
            down.is_some_and(|down| self.shared.has_target_ended() || down > self.options.timeout);
        (gone || self.lanes.are_dead()).then_some(Cut::TargetGone)
    }

    /// Ends the measured time at its planned end.
    fn end_measuring(&mut self, now: Nanos) {
        if let Some(run) = &self.run {
            let usage = Usage::of_this_thread().since(run.usage);
            self.outcome.usage.push(usage);
        }
        self.outcome.down_seconds = self.down_seconds(now);
        self.phase = Phase::Finishing;
    }

    fn down_seconds(&self, now: Nanos) -> Option<f64> {
        self.lanes.down_since.map(|since| now.since(since).as_secs_f64())
    }

    /// Ends the run now: no more replies are waited for.
    fn cut(&mut self, cut: Cut) {
        let now = clock();
        if let Some(run) = &mut self.run {
            run.account.cut_to(now.0);
            let elapsed = now.since(run.start).as_nanos() as u64;
            run.schedule = run.schedule.map(|schedule| schedule.cut_to(elapsed));
        }
        if self.phase == Phase::Running {
            self.end_measuring(now);
        }
        self.outcome.cut = Some(cut);
        self.finish();
    }

    /// Waits for the replies that are outstanding, until the time limit.
    fn wait_for_replies(
        &mut self,
        shard: &mut ShardContext<'_, Place>,
        now: Nanos,
    ) -> Option<Nanos> {
        let run = self.run.as_ref()?;
        let deadline = Nanos(run.account.deadline_ns());
        if run.is_complete() || now >= deadline {
            self.finish();
            return None;
        }
        if let Some(cut) = self.is_cut(now) {
            // The measured time was whole: only the waiting ends.
            if let Some(run) = &mut self.run {
                run.account.cut_to(now.0);
            }
            self.outcome.cut = Some(cut);
            self.finish();
            return None;
        }
        self.lanes.give_up_connects(now, self.options.timeout);
        let connect = self.connect_some(shard, now);
        let more = self.send_listed(shard);
        [connect, more.then_some(now), Some(deadline)].into_iter().flatten().min()
    }

    /// Closes the account, and gives the result to the caller.
    fn finish(&mut self) {
        self.phase = Phase::Done;
        if let Some(mut run) = self.run.take() {
            let start_ns = run.start.0;
            let count = run.lanes.len() as u64;
            let (mut missing, mut overrun, mut unsent) = (Vec::new(), 0, 0);
            for lane in self.lanes.iter() {
                missing.extend(lane.conversation.intended());
            }
            let unanswered = missing.len() as u64;
            if let Some(schedule) = run.schedule {
                for number in &run.lanes {
                    let lane = self.lanes.get(*number);
                    let own = sending::messages_of(lane.place, count, schedule.due());
                    // An open connection had as much outstanding as it may; another had gone.
                    let is_open = lane.session().is_some();
                    *(if is_open { &mut overrun } else { &mut unsent }) += own - lane.taken;
                    missing.extend(
                        (lane.taken..own)
                            .map(|nth| start_ns + schedule.intended_ns(lane.place + nth * count)),
                    );
                }
            }
            run.account.close(missing);
            debug_assert_eq!(run.account.total(), run.due(), "each message is accounted for once");
            self.error("reply_timeout", unanswered);
            self.error("overrun", overrun);
            self.error("not_sent", unsent);
            self.outcome.due = run.due();
            self.outcome.seconds = (run.account.end_ns() - start_ns) as f64 / 1e9;
            self.outcome.account = Some(run.account);
        }
        self.shared.finish(std::mem::take(&mut self.outcome));
    }

    /// A lane's connection has ended. What has no byte of its reply is sent again on the next one.
    /// `name` is the error, where the connection gave no whole reply; `None` where it is counted
    /// already.
    fn lane_ended(&mut self, number: u32, name: Option<&str>, now: Nanos) {
        let remains = self.lanes.get(number).conversation.end();
        if let Some(run) = &mut self.run {
            remains.hopeless.iter().for_each(|intended| run.account.give_up(*intended));
        }
        match name {
            Some(_) if remains.truncated => self.error("truncated_reply", 1),
            Some(name) if remains.mute => self.error(name, 1),
            Some(_) | None => {}
        }
        self.lanes.ended(number, &remains, now);
        if matches!(self.phase, Phase::Connecting(_) | Phase::Waiting) {
            // It said something or closed before anything was asked: it is not tried again.
            self.lanes.give_up(number);
        }
    }

    /// Does what was heard asks for. Returns whether the connection goes on.
    fn obey(&mut self, cx: &mut Context<'_, Place>, lane: u32, heard: Heard, now: Nanos) -> bool {
        match heard {
            Heard::Fine => return true,
            Heard::Closes => {
                self.lane_ended(lane, None, now);
                cx.close();
                return false;
            }
            Heard::Corrupt(bytes) => {
                self.outcome.corrupt += bytes;
                self.error("corrupt", 1);
            }
            Heard::Unasked(bytes) => {
                self.outcome.corrupt += bytes;
                self.error("unasked_bytes", 1);
            }
            Heard::Said(text) => self.note_text(text),
        }
        // What follows cannot be told apart, so the connection is given up. The first message
        // outstanding had this for a reply.
        let hopeless = self.lanes.get(lane).conversation.give_up_front();
        if let (Some(run), Some(intended)) = (&mut self.run, hopeless) {
            run.account.give_up(intended);
        }
        self.lane_ended(lane, None, now);
        cx.abort();
        false
    }

    /// The lane of a session, where the session is the lane's present connection.
    fn lane_of(&mut self, cx: &mut Context<'_, Place>) -> Option<u32> {
        let (number, session) = (cx.state().lane, cx.id());
        let is_present = self.lanes.get(number).session() == Some(session);
        is_present.then_some(number)
    }
}

impl Handler for Client {
    type State = Place;

    fn on_start(&mut self, shard: &mut ShardContext<'_, Place>) {
        #[cfg(not(unix))]
        START.get_or_init(|| (std::time::Instant::now(), shard.now()));
        self.phase = Phase::Connecting(shard.now());
    }

    fn on_connect(&mut self, cx: &mut Context<'_, Place>) -> bool {
        let now = cx.now();
        let session: SessionId = cx.id();
        let Some(number) = self.lanes.connected(session) else { return false };
        cx.state().lane = number;
        if let Phase::Connecting(since) = &mut self.phase {
            *since = now;
            self.shared.tell(self.number, self.lanes.open(), 0);
        }
        let lane = self.lanes.get(number);
        let again = lane.connected > 1;
        let which = u64::from(self.number) << 32 | u64::from(number);
        let seed = self.options.seed.wrapping_mul(0x1_0000_0001).wrapping_add(which);
        // Each connection of a lane has a stream of its own.
        let seed =
            seed.wrapping_add(u64::from(lane.connected - 1).wrapping_mul(0xd134_2543_de82_ef95));
        lane.conversation.begin(seed);
        if again {
            self.outcome.reconnects += 1;
        }
        self.list(number);
        true
    }

    fn on_receive(&mut self, cx: &mut Context<'_, Place>, bytes: &[u8]) -> usize {
        let now = clock();
        let Some(number) = self.lane_of(cx) else { return bytes.len() };
        let mut texts = Vec::new();
        let (run, outcome) = (&mut self.run, &mut self.outcome);
        let event = |event| count(run, outcome, &mut texts, event, now);
        let conversation = &mut self.lanes.get(number).conversation;
        let scripted = self.options.exchange.as_ref().filter(|one| one.request().is_some());
        let heard = match scripted {
            None => conversation.hear_echo(bytes, event),
            Some(exchange) => conversation.hear_reply(exchange, bytes, event),
        };
        self.note_texts(texts);
        if self.obey(cx, number, heard, now) && !self.send(cx, number, now) {
            self.list(number);
        }
        bytes.len()
    }

    fn on_end(&mut self, cx: &mut Context<'_, Place>) {
        let now = clock();
        if let Some(number) = self.lane_of(cx) {
            let last = self.lanes.get(number).conversation.hear_end();
            let mut texts = Vec::new();
            if let Some(last) = last {
                count(&mut self.run, &mut self.outcome, &mut texts, last, now);
            }
            self.note_texts(texts);
            self.lane_ended(number, Some("peer_ended"), now);
        }
        // What is in the outbox would be answered with a reset.
        if cx.outbox_bytes() > 0 { cx.abort() } else { cx.close() }
    }

    fn on_disconnect(&mut self, cx: &mut Context<'_, Place>, reason: Reason) {
        let now = clock();
        if let Reason::ConnectFailed(failure) = reason {
            let session = cx.id();
            if let Some(number) = self.lanes.failed(session, now) {
                self.error(&crate::errno::name(failure.code), 1);
                if matches!(self.phase, Phase::Connecting(_)) {
                    self.lanes.give_up(number);
                }
            }
            return;
        }
        if let Some(number) = self.lane_of(cx) {
            self.lane_ended(number, Some(reason.name()), now);
        }
    }

    fn on_turn(&mut self, shard: &mut ShardContext<'_, Place>) -> Option<Nanos> {
        let now = shard.now();
        self.budget = sending::Budget::default();
        let next = match self.phase {
            Phase::Connecting(_) | Phase::Waiting if self.shared.is_stopped() => {
                self.outcome.established = self.lanes.open();
                self.outcome.cut = Some(Cut::Interrupted);
                self.finish();
                None
            }
            Phase::Connecting(since) => self.settle(shard, since),
            Phase::Waiting => self.start(now),
            Phase::Running => self.go_on(shard, clock()),
            Phase::Finishing => self.wait_for_replies(shard, clock()),
            Phase::Done => return None,
        };
        if self.phase == Phase::Done {
            return None;
        }
        let tick = now.after(TICK);
        Some(next.map_or(tick, |next| next.min(tick)))
    }
}

/// Counts a message's end. What the server said otherwise is added to `texts`.
fn count(
    run: &mut Option<Run>,
    outcome: &mut Outcome,
    texts: &mut Vec<Vec<u8>>,
    event: Event,
    now: Nanos,
) {
    let Some(run) = run else { return };
    match event {
        Event::Answered { intended_ns, sent, received } => {
            if run.account.reply(intended_ns, now.0) {
                outcome.bytes_sent += sent;
                outcome.bytes_received += received;
            }
        }
        Event::Refused { intended_ns, said } => {
            run.account.give_up(intended_ns);
            texts.push(said);
        }
    }
}

/// The request of a load that is no echo.
fn request_of(options: &Options) -> Option<&[u8]> {
    options.exchange.as_ref().and_then(Exchange::request)
}

/// The time now, on the clock that shards use: a turn may take longer than a message.
#[cfg(unix)]
pub(super) fn clock() -> Nanos {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// One moment on both clocks: on other systems shards count from a moment of the process.
#[cfg(not(unix))]
static START: std::sync::OnceLock<(std::time::Instant, Nanos)> = std::sync::OnceLock::new();

/// The time now, on the clock that shards use: as far behind it as the first turn was old when both
/// were read, some microseconds.
#[cfg(not(unix))]
pub(super) fn clock() -> Nanos {
    START.get().map_or(Nanos(0), |(moment, then)| then.after(moment.elapsed()))
}
