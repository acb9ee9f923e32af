//! A client's lanes: each is one of the connections asked for, and stays what it is when its
//! connection ends and another takes its place. Which lanes are to be connected, and when, is
//! decided here.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use plimsoll::SessionId;
use plimsoll::driver::Nanos;

use super::conversation::{Conversation, Remains};

/// Connects in flight at once: less than any accept queue that is worth loading.
const CONNECTING: usize = 100;
/// Connects begun in one turn, at most. On loopback a connect does the server's part of the
/// handshake as well, and some take milliseconds: all of them at once would stall the client.
const CONNECTS_PER_TURN: u32 = 8;
/// A turn in which connects were begun should not take longer.
const TURN: Duration = Duration::from_millis(5);
/// Time between the attempts of one lane: doubled with each failure, from the first to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));
/// A lane is given up that never had a whole reply, after so many connections on which it asked for
/// one.
const FRUITLESS_MOST: u32 = 3;

/// Whether a lane has a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Link<S> {
    /// It is to be connected, or will be after a while.
    #[default]
    Down,
    Connecting,
    Open(S),
    /// It is given up.
    Dead,
}

/// One lane. Its connections have names of type `S`.
#[derive(Debug)]
pub(super) struct Lane<S = SessionId> {
    pub(super) link: Link<S>,
    pub(super) conversation: Conversation,
    /// Its place among the lanes of the run.
    pub(super) place: u64,
    /// Open loop: how many of its messages have been taken from the schedule.
    pub(super) taken: u64,
    /// It is in the list of lanes that have something to send.
    pub(super) is_listed: bool,
    /// Connections made so far.
    pub(super) connected: u32,
    /// Attempts in a row that failed, or whose connection gave no whole reply.
    failed: u32,
    /// Of its connections that gave no whole reply, those on which something was asked.
    fruitless: u32,
    had_reply: bool,
}

impl<S: Copy> Lane<S> {
    fn new() -> Self {
        Self {
            link: Link::Down,
            conversation: Conversation::default(),
            place: 0,
            taken: 0,
            is_listed: false,
            connected: 0,
            failed: 0,
            fruitless: 0,
            had_reply: false,
        }
    }

    pub(super) fn session(&self) -> Option<S> {
        match self.link {
            Link::Open(session) => Some(session),
            Link::Down | Link::Connecting | Link::Dead => None,
        }
    }
}

/// All lanes of a client.
#[derive(Debug)]
pub(super) struct Lanes<S = SessionId> {
    all: Vec<Lane<S>>,
    /// Lanes to be connected now.
    down: VecDeque<u32>,
    /// Lanes to be connected later, and when.
    later: BinaryHeap<Reverse<(Nanos, u32)>>,
    /// Connects in flight: since when, and for which lane.
    connecting: Vec<(S, Nanos, u32)>,
    open: u64,
    dead: u64,
    /// Since when no lane has been open, where one was before.
    pub(super) down_since: Option<Nanos>,
    /// Connects that may be begun in a turn, and when the last were begun.
    share: u32,
    begun: Option<Nanos>,
}

impl<S: Copy + PartialEq> Lanes<S> {
    pub(super) fn new(count: u32) -> Self {
        Self {
            all: (0..count).map(|_| Lane::new()).collect(),
            down: (0..count).collect(),
            later: BinaryHeap::new(),
            connecting: Vec::with_capacity(CONNECTING),
            open: 0,
            dead: 0,
            down_since: None,
            share: 1,
            begun: None,
        }
    }

    pub(super) fn get(&mut self, number: u32) -> &mut Lane<S> {
        &mut self.all[number as usize]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Lane<S>> {
        self.all.iter()
    }

    /// Numbers of the lanes that are open.
    pub(super) fn open_numbers(&self) -> Vec<u32> {
        let open = |(number, lane): (usize, &Lane<S>)| lane.session().map(|_| number as u32);
        self.all.iter().enumerate().filter_map(open).collect()
    }

    pub(super) fn open(&self) -> u64 {
        self.open
    }

    /// Whether all lanes are given up.
    pub(super) fn are_dead(&self) -> bool {
        self.dead == self.all.len() as u64
    }

    /// Whether each lane is open or given up.
    pub(super) fn are_settled(&self) -> bool {
        self.open + self.dead == self.all.len() as u64
    }

    /// Lanes that are neither open nor given up.
    pub(super) fn unsettled(&self) -> u64 {
        self.all.len() as u64 - self.open - self.dead
    }

    /// Begins connects with `connect`, as many as this turn may; it returns `None` where no more can
    /// be begun now. Returns when to come again, where connects are left.
    pub(super) fn connect(
        &mut self,
        now: Nanos,
        mut connect: impl FnMut(u32) -> Option<S>,
    ) -> Option<Nanos> {
        while let Some(&Reverse((when, number))) = self.later.peek()
            && when <= now
        {
            self.later.pop();
            self.down.push_back(number);
        }
        if self.down.is_empty() {
            self.begun = None;
            return self.later.peek().map(|Reverse((when, _))| *when);
        }
        // How long the connects of the turn before took is known now.
        self.share = match self.begun.take() {
            Some(begun) if now.since(begun) > TURN => (self.share / 2).max(1),
            Some(_) => (self.share * 2).min(CONNECTS_PER_TURN),
            None => self.share,
        };
        for _ in 0..self.share {
            if self.connecting.len() >= CONNECTING {
                break;
            }
            let Some(&number) = self.down.front() else { break };
            let Some(session) = connect(number) else {
                // A slot is free again as soon as a connection that ended is closed.
                return Some(now.after(BACK_OFF.0));
            };
            self.down.pop_front();
            self.all[number as usize].link = Link::Connecting;
            self.connecting.push((session, now, number));
            self.begun = Some(now);
        }
        if self.connecting.len() < CONNECTING && !self.down.is_empty() {
            return Some(now);
        }
        self.later.peek().map(|Reverse((when, _))| *when)
    }

    /// A connection is there. Returns its lane, or `None` where it is not wanted any more.
    pub(super) fn connected(&mut self, session: S) -> Option<u32> {
        let number = self.take_connecting(session)?;
        let lane = &mut self.all[number as usize];
        lane.link = Link::Open(session);
        lane.connected += 1;
        self.open += 1;
        self.down_since = None;
        Some(number)
    }

    /// A connect has failed; the lane is tried again later. Returns the lane.
    pub(super) fn failed(&mut self, session: S, now: Nanos) -> Option<u32> {
        let number = self.take_connecting(session)?;
        self.retry_later(number, now);
        Some(number)
    }

    /// Gives up connects that have been in flight for longer than `timeout`; they are tried again
    /// later. Returns how many.
    pub(super) fn give_up_connects(&mut self, now: Nanos, timeout: Duration) -> u64 {
        if self.connecting.iter().all(|(_, since, _)| now.since(*since) <= timeout) {
            return 0;
        }
        let (over, still): (Vec<_>, Vec<_>) =
            self.connecting.drain(..).partition(|(_, since, _)| now.since(*since) > timeout);
        self.connecting.extend(still);
        for (_, _, number) in &over {
            self.retry_later(*number, now);
        }
        over.len() as u64
    }

    /// A lane's connection has ended, and left this. It is to be connected again: at once, or where the
    /// connection gave no whole reply, after a while.
    pub(super) fn ended(&mut self, number: u32, remains: &Remains, now: Nanos) {
        let lane = &mut self.all[number as usize];
        debug_assert!(lane.session().is_some(), "only an open lane's connection ends");
        self.open -= 1;
        if self.open == 0 {
            self.down_since = Some(now);
        }
        lane.link = Link::Down;
        if !remains.mute {
            lane.had_reply = true;
            lane.failed = 0;
            self.down.push_back(number);
            return;
        }
        lane.fruitless += u32::from(!remains.hopeless.is_empty());
        if !lane.had_reply && lane.fruitless >= FRUITLESS_MOST {
            self.give_up(number);
        } else {
            self.retry_later(number, now);
        }
    }

    /// Gives a lane up that is not open.
    pub(super) fn give_up(&mut self, number: u32) {
        let lane = &mut self.all[number as usize];
        debug_assert!(lane.session().is_none(), "an open lane's connection ends first");
        if lane.link != Link::Dead {
            lane.link = Link::Dead;
            self.dead += 1;
        }
        self.down.retain(|other| *other != number);
        self.later.retain(|Reverse((_, other))| *other != number);
    }

    /// Gives up all lanes that are not open, and the connects in flight. Returns how many.
    pub(super) fn give_up_the_rest(&mut self) -> u64 {
        let missing = self.unsettled();
        self.down.clear();
        self.later.clear();
        self.connecting.clear();
        for lane in &mut self.all {
            if matches!(lane.link, Link::Down | Link::Connecting) {
                lane.link = Link::Dead;
            }
        }
        self.dead += missing;
        missing
    }

    fn take_connecting(&mut self, session: S) -> Option<u32> {
        let at = self.connecting.iter().position(|(other, ..)| *other == session)?;
        Some(self.connecting.swap_remove(at).2)
    }

    fn retry_later(&mut self, number: u32, now: Nanos) {
        let lane = &mut self.all[number as usize];
        lane.link = Link::Down;
        let failures = lane.failed.min(16);
        lane.failed = lane.failed.saturating_add(1);
        let wait = (BACK_OFF.0 * (1 << failures)).min(BACK_OFF.1);
        self.later.push(Reverse((now.after(wait), number)));
    }
}

#[cfg(test)]
mod tests;
