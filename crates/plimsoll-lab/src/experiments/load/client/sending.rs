//! What a client sends, and how much in one turn: a turn that sends everything at once is a stall of
//! the client, which would be charged to the server.

use plimsoll::driver::Nanos;
use plimsoll::{Context, ShardContext};

use super::{Client, Place, clock, request_of};
use crate::experiments::load::Pace;

/// Messages that one connection may have outstanding in the open loop. Those that are due beyond are
/// sent when replies have come; those that could not be sent at all are counted as `overrun`.
const MOST_OUTSTANDING: usize = 4096;

/// Messages and bytes that may still be sent in one turn.
#[derive(Debug)]
pub(super) struct Budget {
    messages: u32,
    bytes: usize,
}

impl Default for Budget {
    /// Some milliseconds' work: a message costs 1 to 3 µs, and a MiB is written in 0.5 ms.
    fn default() -> Self {
        Self { messages: 512, bytes: 4 << 20 }
    }
}

impl Budget {
    /// Whether something may still be sent. One message always may, however long it is.
    fn is_left(&self) -> bool {
        self.messages > 0 && self.bytes > 0
    }

    fn spend(&mut self, bytes: usize) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Of so many messages, sent over `lanes` lanes in turn, how many are those of lane `place`.
pub(super) fn messages_of(place: u64, lanes: u64, messages: u64) -> u64 {
    (messages + lanes - 1 - place) / lanes
}

impl Client {
    /// Puts a lane into the list of those that have something to send.
    pub(super) fn list(&mut self, number: u32) {
        let lane = self.lanes.get(number);
        if !std::mem::replace(&mut lane.is_listed, true) {
            self.listed.push_back(number);
        }
    }

    /// Serves the lanes that have something to send, each once. Returns whether some are left.
    pub(super) fn send_listed(&mut self, shard: &mut ShardContext<'_, Place>) -> bool {
        for _ in 0..self.listed.len() {
            if !self.budget.is_left() {
                break;
            }
            let Some(number) = self.listed.pop_front() else { break };
            let lane = self.lanes.get(number);
            lane.is_listed = false;
            let session = lane.session();
            let Some(mut cx) = session.and_then(|session| shard.session(session)) else { continue };
            if !self.send(&mut cx, number, clock()) {
                self.list(number);
            }
        }
        !self.listed.is_empty()
    }

    /// Sends the messages of the open loop whose time has come. Returns when the next one's comes.
    ///
    /// Lane `place` of `n` has the messages `place`, `place + n`, …. What a lane cannot send now
    /// stays in the schedule until it can.
    pub(super) fn pace(&mut self, shard: &mut ShardContext<'_, Place>) -> Option<Nanos> {
        let run = self.run.as_mut()?;
        let schedule = run.schedule?;
        let (start, before) = (run.start, run.paced);
        run.paced = schedule.due_by(clock().since(start).as_nanos() as u64);
        let (paced, count) = (run.paced, run.lanes.len() as u64);
        // A lane with several messages sends them together.
        for message in before..paced.min(before + count) {
            let number = self.run.as_ref()?.lanes[(message % count) as usize];
            let lane = self.lanes.get(number);
            if lane.is_listed {
                continue;
            }
            let session = lane.session();
            let Some(mut cx) = session.and_then(|session| shard.session(session)) else { continue };
            if !self.send(&mut cx, number, clock()) {
                self.list(number);
            }
        }
        (paced < schedule.due()).then(|| Nanos(start.0 + schedule.intended_ns(paced)))
    }

    /// Sends what a lane has to send and its connection has room for. `false` where it is to have
    /// another turn: this one's budget ended before that, or room is about to be made by no reply.
    pub(super) fn send(&mut self, cx: &mut Context<'_, Place>, number: u32, now: Nanos) -> bool {
        loop {
            let bytes = match self.lanes.get(number).conversation.next_bytes() {
                Some(bytes) => bytes as usize,
                None if self.take_message(number, now) => continue,
                None => return true,
            };
            let queued = cx.outbox_bytes();
            if queued > 0 && queued + bytes > self.outbox_bytes {
                // Replies that come make room. Where none is waited for, all that is queued has been
                // answered: the system has sent it, and will say so in a moment.
                return self.lanes.get(number).conversation.awaits_reply();
            }
            if !self.budget.is_left() {
                return false;
            }
            self.budget.spend(bytes);
            if let Some(request) = request_of(&self.options) {
                cx.send(request);
            } else {
                let message = &mut self.message[..bytes];
                self.lanes.get(number).conversation.write_echo(message);
                cx.send(message);
            }
            self.lanes.get(number).conversation.mark_sent();
        }
    }

    /// Takes the next message for a lane, where there is one to be sent now.
    fn take_message(&mut self, number: u32, now: Nanos) -> bool {
        let Some(run) = &mut self.run else { return false };
        let lane = self.lanes.get(number);
        let outstanding = lane.conversation.outstanding();
        let intended_ns = match (self.options.pace, run.schedule) {
            (Pace::Open { .. }, Some(schedule)) => {
                let count = run.lanes.len() as u64;
                let due = messages_of(lane.place, count, run.paced);
                if lane.taken >= due || outstanding >= MOST_OUTSTANDING {
                    return false;
                }
                lane.taken += 1;
                run.start.0 + schedule.intended_ns(lane.place + (lane.taken - 1) * count)
            }
            (Pace::Closed { depth }, _) => {
                if outstanding >= depth as usize || now.0 >= run.account.end_ns() {
                    return false;
                }
                run.queued += 1;
                now.0
            }
            (Pace::Open { .. }, None) => return false,
        };
        let bytes = match request_of(&self.options) {
            Some(request) => request.len() as u32,
            None => self.random.between(self.options.size.0, self.options.size.1),
        };
        lane.conversation.queue(intended_ns, bytes);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_shared_out_to_the_lanes_in_turn() {
        for lanes in 1..6 {
            for messages in 0..40 {
                for place in 0..lanes {
                    let own = (0..messages).filter(|n| n % lanes == place).count() as u64;
                    assert_eq!(messages_of(place, lanes, messages), own);
                }
            }
        }
    }
}
