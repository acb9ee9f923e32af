//! The client: a handler of the engine that connects, sends, verifies and counts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use plimsoll::driver::Nanos;
use plimsoll::{Context, Handler, Reason, SessionId, ShardContext};

use super::conversation::{Conversation, Heard};
use super::histogram::Latencies;
use super::keystream::Random;
use super::{Options, Pace};
use crate::worker::exchange::Exchange;

/// Connects in flight at once: less than any accept queue that is worth loading.
const CONNECTING: u32 = 100;
/// Messages that one connection may have outstanding in the open loop: beyond, the server is
/// further behind than a person would wait, and each is counted as `overrun`.
const MOST_OUTSTANDING: usize = 4096;
/// How often the timeline is sampled.
const SAMPLE: Duration = Duration::from_millis(100);

/// What the client and the waiting caller share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    outcome: Mutex<Option<Outcome>>,
    ended: Condvar,
    done: AtomicBool,
    stop: AtomicBool,
    established: AtomicU64,
    messages: AtomicU64,
    running_ns: AtomicU64,
}

/// How far a load is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) established: u64,
    pub(super) messages: u64,
    pub(super) seconds: f64,
}

impl Shared {
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Has the client end now, with what it has.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Waits until the client is done, or for this long.
    pub(super) fn wait(&self, most: Duration) {
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        if outcome.is_none() {
            drop(self.ended.wait_timeout(outcome, most));
        }
    }

    pub(super) fn take(&self) -> Option<Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            established: self.established.load(Ordering::Relaxed),
            messages: self.messages.load(Ordering::Relaxed),
            seconds: self.running_ns.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }

    fn finish(&self, outcome: Outcome) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.done.store(true, Ordering::Release);
        self.ended.notify_all();
    }
}

/// What a load found.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) established: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) corrupt: u64,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) seconds: f64,
    pub(super) server_cpu: Option<Duration>,
    pub(super) latencies: Latencies,
    /// Seconds since the start, and messages per second since the sample before.
    pub(super) timeline: Vec<(f64, f64)>,
}

/// Where a load is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Connections are being made; since when none has been.
    Connecting(Nanos),
    /// Messages are sent and counted.
    Running {
        start: Nanos,
        cpu: Option<Duration>,
    },
    /// Replies outstanding are still verified, until then.
    Finishing(Nanos),
    Done,
}

/// The handler.
pub(super) struct Client {
    options: Options,
    shared: Arc<Shared>,
    phase: Phase,
    to_connect: u32,
    connecting: u32,
    /// Sessions that are connected; one that has gone leaves its place to the last.
    sessions: Vec<SessionId>,
    random: Random,
    message: Vec<u8>,
    /// Messages sent by the clock, in the open loop.
    paced: u64,
    turn: usize,
    sampled: (Nanos, u64),
    outcome: Outcome,
}

impl Client {
    pub(super) fn new(options: &Options, shared: Arc<Shared>) -> Self {
        Self {
            shared,
            phase: Phase::Connecting(Nanos(0)),
            to_connect: options.connections,
            connecting: 0,
            sessions: Vec::with_capacity(options.connections as usize),
            random: Random::new(options.seed),
            message: vec![0; options.size.1 as usize],
            paced: 0,
            turn: 0,
            sampled: (Nanos(0), 0),
            outcome: Outcome::default(),
            options: options.clone(),
        }
    }

    fn error(&mut self, name: &str, count: u64) {
        if let Some(known) = self.outcome.errors.get_mut(name) {
            *known += count;
        } else {
            self.outcome.errors.insert(name.to_owned(), count);
        }
    }

    fn connect_more(&mut self, shard: &mut ShardContext<'_, Conversation>) {
        while self.to_connect > 0 && self.connecting < CONNECTING {
            let number = self.options.connections - self.to_connect;
            let source = match self.options.sources.len() {
                0 => None,
                count => Some(SocketAddr::new(self.options.sources[number as usize % count], 0)),
            };
            if shard.connect(self.options.target, source).is_none() {
                return;
            }
            self.to_connect -= 1;
            self.connecting += 1;
        }
    }

    /// Starts the measured time, once all connections are there or none has come for too long.
    fn start_when_connected(&mut self, shard: &mut ShardContext<'_, Conversation>, since: Nanos) {
        self.connect_more(shard);
        let now = shard.now();
        let waited = now.since(since) > self.options.timeout;
        if self.connecting > 0 && !waited {
            return;
        }
        let missing = u64::from(self.connecting + self.to_connect);
        if missing > 0 {
            self.error("connect_timeout", missing);
        }
        self.to_connect = 0;
        self.outcome.established = self.sessions.len() as u64;
        if self.sessions.is_empty() {
            return self.finish();
        }
        self.phase = Phase::Running { start: now, cpu: self.server_cpu() };
        self.sampled = (now, 0);
        if let Pace::Closed { depth } = self.options.pace {
            for session in self.sessions.clone() {
                let Some(mut cx) = shard.session(session) else { continue };
                (0..depth).for_each(|_| self.send(&mut cx, now));
            }
        }
    }

    /// Sends one message.
    fn send(&mut self, cx: &mut Context<'_, Conversation>, intended: Nanos) {
        if let Some(request) = self.options.exchange.as_ref().and_then(Exchange::request) {
            cx.state().next_request(intended);
            cx.send(request);
            return;
        }
        let (least, most) = self.options.size;
        let size = self.random.between(least, most) as usize;
        let message = &mut self.message[..size];
        cx.state().next_echo(message, intended);
        cx.send(message);
    }

    /// Sends what is due by the clock. Returns when the next is.
    fn pace(
        &mut self,
        shard: &mut ShardContext<'_, Conversation>,
        start: Nanos,
        rate: f64,
    ) -> Nanos {
        let now = clock();
        let due = (now.since(start).as_secs_f64() * rate) as u64;
        while self.paced < due && !self.sessions.is_empty() {
            let intended = start.after(Duration::from_secs_f64(self.paced as f64 / rate));
            self.paced += 1;
            self.turn = (self.turn + 1) % self.sessions.len();
            let Some(mut cx) = shard.session(self.sessions[self.turn]) else { continue };
            if cx.state().outstanding() >= MOST_OUTSTANDING {
                self.error("overrun", 1);
            } else {
                self.send(&mut cx, intended);
            }
        }
        start.after(Duration::from_secs_f64((self.paced + 1) as f64 / rate))
    }

    fn server_cpu(&self) -> Option<Duration> {
        crate::observe::family::cpu_time(self.options.server_pid?)
    }

    fn sample(&mut self, now: Nanos, start: Nanos) {
        let (then, messages) = self.sampled;
        let passed = now.since(then);
        if passed >= SAMPLE {
            let rate = (self.outcome.messages - messages) as f64 / passed.as_secs_f64();
            self.outcome.timeline.push((now.since(start).as_secs_f64(), rate));
            self.sampled = (now, self.outcome.messages);
            self.shared.messages.store(self.outcome.messages, Ordering::Relaxed);
            self.shared.running_ns.store(now.0 - start.0, Ordering::Relaxed);
        }
    }

    /// Ends the measured time.
    fn end_measuring(&mut self, now: Nanos, start: Nanos, cpu: Option<Duration>) {
        self.outcome.seconds = now.since(start).as_secs_f64();
        self.outcome.server_cpu = match (cpu, self.server_cpu()) {
            (Some(before), Some(after)) => Some(after.saturating_sub(before)),
            _ => None,
        };
        self.phase = Phase::Finishing(now.after(self.options.timeout));
    }

    /// Ends once no reply is outstanding, or none comes.
    fn finish_when_quiet(&mut self, shard: &mut ShardContext<'_, Conversation>, until: Nanos) {
        let mut outstanding = 0;
        shard.each_session(|cx| outstanding += cx.state().outstanding() as u64);
        if outstanding == 0 || shard.now() >= until || self.shared.stop.load(Ordering::Acquire) {
            if outstanding > 0 {
                self.error("reply_timeout", outstanding);
            }
            self.finish();
        }
    }

    fn finish(&mut self) {
        self.phase = Phase::Done;
        self.shared.finish(std::mem::take(&mut self.outcome));
    }

    /// Counts what was heard. False ends the session.
    fn count(&mut self, heard: &Heard) -> bool {
        let wrong = heard.wrong + heard.unasked;
        if wrong == 0 {
            return true;
        }
        self.outcome.corrupt += wrong;
        self.error(if heard.wrong > 0 { "corrupt" } else { "unasked_bytes" }, 1);
        false
    }
}

impl Handler for Client {
    type State = Conversation;

    fn on_start(&mut self, shard: &mut ShardContext<'_, Conversation>) {
        #[cfg(not(unix))]
        START.get_or_init(|| (std::time::Instant::now(), shard.now()));
        self.phase = Phase::Connecting(shard.now());
        self.connect_more(shard);
    }

    fn on_connect(&mut self, cx: &mut Context<'_, Conversation>) -> bool {
        self.connecting -= 1;
        let Phase::Connecting(since) = &mut self.phase else { return false };
        *since = cx.now();
        let number = self.sessions.len() as u32;
        let id = cx.id();
        self.sessions.push(id);
        self.shared.established.store(u64::from(number) + 1, Ordering::Relaxed);
        let seed = self.options.seed.wrapping_mul(0x1_0000_0001).wrapping_add(u64::from(number));
        cx.state().begin(seed, number);
        true
    }

    fn on_receive(&mut self, cx: &mut Context<'_, Conversation>, bytes: &[u8]) -> usize {
        let now = clock();
        let conversation = cx.state();
        if conversation.lost {
            return bytes.len();
        }
        let mut replies = 0;
        let running = matches!(self.phase, Phase::Running { .. });
        let latencies = &mut self.outcome.latencies;
        let done = |intended: Nanos| {
            replies += 1;
            if running {
                latencies.record(now.since(intended));
            }
        };
        let scripted = self.options.exchange.as_ref().filter(|one| one.request().is_some());
        let heard = match scripted {
            None => conversation.hear_echo(bytes, done),
            Some(exchange) => conversation.hear_reply(exchange, bytes, done),
        };
        if !self.count(&heard) {
            cx.state().lost = true;
            cx.abort();
            return bytes.len();
        }
        if running {
            self.outcome.messages += replies;
            self.outcome.bytes += bytes.len() as u64;
            if matches!(self.options.pace, Pace::Closed { .. }) {
                (0..replies).for_each(|_| self.send(cx, now));
            }
        }
        bytes.len()
    }

    fn on_disconnect(&mut self, cx: &mut Context<'_, Conversation>, reason: Reason) {
        if let Reason::ConnectFailed(failure) = reason {
            self.connecting = self.connecting.saturating_sub(1);
            let name = crate::errno::name(failure.code);
            return self.error(&name, 1);
        }
        let number = cx.state().number as usize;
        let own = cx.id();
        if self.sessions.get(number) == Some(&own) {
            self.sessions.swap_remove(number);
            let moved = self.sessions.get(number).copied();
            if let Some(mut moved) = moved.and_then(|moved| cx.session(moved)) {
                moved.state().number = number as u32;
            }
        }
        if matches!(self.phase, Phase::Connecting(_) | Phase::Running { .. }) && !cx.state().lost {
            let name = match reason {
                Reason::IdleTimeout => "reply_timeout",
                other => other.name(),
            };
            self.error(name, 1);
        }
    }

    fn on_turn(&mut self, shard: &mut ShardContext<'_, Conversation>) -> Option<Nanos> {
        let now = shard.now();
        let stop = self.shared.stop.load(Ordering::Acquire);
        match self.phase {
            Phase::Connecting(_) if stop => {
                self.outcome.established = self.sessions.len() as u64;
                self.finish();
            }
            Phase::Connecting(since) => self.start_when_connected(shard, since),
            Phase::Running { start, cpu } => {
                self.sample(now, start);
                let over = now.since(start) >= self.options.duration;
                if over || stop || self.sessions.is_empty() {
                    self.end_measuring(now, start, cpu);
                } else if let Pace::Open { rate } = self.options.pace {
                    return Some(self.pace(shard, start, rate));
                }
            }
            Phase::Finishing(until) => self.finish_when_quiet(shard, until),
            Phase::Done => return None,
        }
        Some(now.after(Duration::from_millis(10)))
    }
}

/// The time now, on the clock that shards use: a turn may take longer than a message.
#[cfg(unix)]
fn clock() -> Nanos {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// One moment on both clocks: on other systems shards count from a moment of the process.
#[cfg(not(unix))]
static START: std::sync::OnceLock<(std::time::Instant, Nanos)> = std::sync::OnceLock::new();

/// The time now, on the clock that shards use: as far behind it as the first turn was old when both
/// were read, some microseconds.
#[cfg(not(unix))]
fn clock() -> Nanos {
    START.get().map_or(Nanos(0), |(moment, then)| then.after(moment.elapsed()))
}
