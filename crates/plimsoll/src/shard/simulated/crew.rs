//! The crew: a handler with moods.

use std::any::Any;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::time::Duration;

use super::client::CHATTER;
use crate::driver::Nanos;
use crate::driver::sim::random::Random;
use crate::handler::{Context, Handler, ShardContext};
use crate::mailbox::Remote;
use crate::reason::Reason;
use crate::session::SessionId;

/// Sessions that handlers remember, dead or alive.
const KNOWN: usize = 16;

/// What the handlers of all shards know together.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// Accepted sessions that have begun and not ended, and the most at once.
    pub(super) aboard: u32,
    pub(super) most_aboard: u32,
    /// The same of those that handlers connected.
    pub(super) outgoing: u32,
    /// The last sessions that began, on whichever shard.
    pub(super) known: Vec<SessionId>,
}

impl Census {
    fn begin(&mut self, id: SessionId, outgoing: bool, at: usize) {
        if outgoing {
            self.outgoing += 1;
        } else {
            self.aboard += 1;
            self.most_aboard = self.most_aboard.max(self.aboard);
        }
        if self.known.len() < KNOWN {
            self.known.push(id);
        } else {
            self.known[at] = id;
        }
    }

    /// One of the last sessions.
    pub(super) fn any(&self, random: &mut Random) -> Option<SessionId> {
        let count = self.known.len() as u64;
        (count > 0).then(|| self.known[random.below(count) as usize])
    }
}

/// What a handler keeps for a session.
#[derive(Debug, Default)]
pub(super) struct Ticket {
    aboard: bool,
    /// To be closed when the timer fires.
    leaves: bool,
}

/// Echoes in every way there is: whole, in part, from the block, from a copy; and sometimes sends to
/// others, connects, pauses, refuses, closes, aborts or panics.
pub(super) struct Moody {
    pub(super) random: Random,
    pub(super) census: Rc<RefCell<Census>>,
    pub(super) calm: bool,
    pub(super) chatty: bool,
    pub(super) remote: Remote,
    /// Where its own connections go.
    pub(super) target: SocketAddr,
}

/// A panic that no hook hears of: there are many of them.
fn panic_in_a_mood() -> ! {
    resume_unwind(Box::new("a mood"))
}

impl Moody {
    fn is_one_in(&mut self, count: u64) -> bool {
        !self.calm && self.random.below(count) == 0
    }

    /// Echoes so many of the bytes, in one of the ways there are.
    fn echo(&mut self, cx: &mut Context<'_, Ticket>, bytes: &[u8]) {
        match self.random.below(4) {
            0 => {
                let mut copy = [0; 4096];
                copy[..bytes.len()].copy_from_slice(bytes);
                cx.send(&copy[..bytes.len()]);
            }
            1 => {
                let (first, second) = bytes.split_at(bytes.len() / 2);
                cx.send(first);
                cx.send(second);
            }
            _ => _ = cx.send(bytes),
        }
    }

    /// Says something to others.
    fn chat(&mut self, cx: &mut Context<'_, Ticket>) {
        let other = self.census.borrow().any(&mut self.random);
        let Some(other) = other else { return };
        match self.random.below(16) {
            0..8 => _ = cx.session(other).map(|mut other| other.send(&CHATTER)),
            8..12 => _ = self.remote.send(other, &CHATTER[..]),
            12 => _ = self.remote.broadcast(&CHATTER[..]),
            13 => cx.shard().each_session(|other| _ = other.send(&CHATTER)),
            14 => _ = self.remote.message(other.shard, Box::new(other)),
            _ => _ = cx.send(&CHATTER),
        }
    }

    /// Does something that is not an echo. It may end the session.
    fn give_in(&mut self, cx: &mut Context<'_, Ticket>) {
        let other = self.census.borrow().any(&mut self.random);
        match self.random.below(12) {
            0 => cx.close(),
            1 => cx.abort(),
            2 => panic_in_a_mood(),
            3 => cx.half_close(),
            4 => _ = other.map(|other| self.remote.disconnect(other)),
            5 => _ = other.and_then(|other| cx.session(other).map(|mut other| other.abort())),
            6 => {
                cx.state().leaves = true;
                cx.set_timer(Duration::from_millis(self.random.below(200)));
            }
            7 => cx.clear_timer(),
            _ => {
                let begun = cx.shard().connect(self.target, None);
                if let Ok(id) = begun
                    && self.is_one_in(4)
                {
                    assert!(cx.shard().disconnect(id), "it is being connected");
                }
            }
        }
    }
}

impl Handler for Moody {
    type State = Ticket;

    fn on_start(&mut self, shard: &mut ShardContext<'_, Ticket>) {
        _ = shard.connect(self.target, None);
    }

    fn on_connect(&mut self, cx: &mut Context<'_, Ticket>) -> bool {
        assert!(!cx.state().aboard, "a state of an earlier session");
        cx.state().aboard = true;
        let (id, outgoing) = (cx.id(), cx.is_outgoing());
        let at = self.random.below(KNOWN as u64) as usize;
        self.census.borrow_mut().begin(id, outgoing, at);
        if self.is_one_in(64) {
            panic_in_a_mood();
        }
        !self.is_one_in(32)
    }

    fn on_receive(&mut self, cx: &mut Context<'_, Ticket>, bytes: &[u8]) -> usize {
        assert!(cx.state().aboard, "bytes for a session that has not begun, or is over");
        if self.is_one_in(64) {
            // It waits for more.
            return 0;
        }
        let whole = self.random.below(2) == 0;
        let count = bytes.len();
        let count = if whole { count } else { self.random.within(1, count as u64) as usize };
        self.echo(cx, &bytes[..count]);
        if self.chatty && self.random.below(4) == 0 {
            self.chat(cx);
        }
        if self.random.below(8) == 0 {
            cx.pause();
            cx.set_timer(Duration::from_millis(self.random.below(100)));
        }
        if self.is_one_in(32) {
            self.give_in(cx);
        }
        if self.is_one_in(128) {
            cx.half_close();
        }
        count
    }

    fn on_writable(&mut self, cx: &mut Context<'_, Ticket>) {
        if self.chatty && self.is_one_in(4) {
            self.chat(cx);
        }
        if self.is_one_in(64) {
            panic_in_a_mood();
        }
    }

    fn on_end(&mut self, cx: &mut Context<'_, Ticket>) {
        if self.is_one_in(8) {
            return self.give_in(cx);
        }
        cx.close();
    }

    fn on_drain(&mut self, cx: &mut Context<'_, Ticket>) {
        match self.random.below(4) {
            0 if !self.calm => {
                cx.state().leaves = true;
                cx.set_timer(Duration::from_millis(self.random.below(1000)));
            }
            1 if !self.calm => panic_in_a_mood(),
            _ => cx.close(),
        }
    }

    fn on_timer(&mut self, cx: &mut Context<'_, Ticket>) {
        assert!(cx.state().aboard, "a timer of a session that has not begun, or is over");
        if cx.state().leaves {
            return cx.close();
        }
        cx.resume();
        if self.is_one_in(32) {
            self.give_in(cx);
        }
    }

    fn on_message(&mut self, shard: &mut ShardContext<'_, Ticket>, message: Box<dyn Any + Send>) {
        if self.is_one_in(16) {
            panic_in_a_mood();
        }
        match message.downcast::<SessionId>() {
            Ok(id) => _ = shard.session(*id).map(|mut cx| cx.send(&CHATTER)),
            Err(_) => _ = shard.connect(self.target, None),
        }
    }

    fn on_disconnect(&mut self, cx: &mut Context<'_, Ticket>, reason: Reason) {
        let outgoing = cx.is_outgoing();
        let aboard = std::mem::take(&mut cx.state().aboard);
        assert!(aboard || outgoing, "a second end, or one without a beginning: {reason}");
        let mut census = self.census.borrow_mut();
        if aboard {
            let count = if outgoing { &mut census.outgoing } else { &mut census.aboard };
            *count -= 1;
        }
        drop(census);
        if self.is_one_in(64) {
            panic_in_a_mood();
        }
    }

    fn on_turn(&mut self, shard: &mut ShardContext<'_, Ticket>) -> Option<Nanos> {
        if self.random.below(64) > 0 {
            return None;
        }
        if self.is_one_in(4) {
            panic_in_a_mood();
        }
        Some(shard.now().after(Duration::from_micros(self.random.below(5000))))
    }
}
