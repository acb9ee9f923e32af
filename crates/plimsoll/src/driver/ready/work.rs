//! Carrying out what was posted, as far as the kernel is ready for it.

use super::slots::{AT_ONCE, DOUBTFUL, FULL, READABLE};
use super::{Brought, Ready, STREAM_QUOTA, completion, system};
use crate::driver::errno::NO_BLOCK;
use crate::driver::{Completion, Into, Kind, monotonic};

impl Ready {
    /// Whether there may be something to do without news from the kernel.
    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.accepts.is_empty() && self.answers_accepts()
    }

    /// Whether accepts can end now: in a connection, or because nobody listens.
    fn answers_accepts(&self) -> bool {
        self.knocked || self.deaf != 0 || self.listener.is_none()
    }

    /// Carries out what can be, and says what is over, up to `limit` completions in `out`.
    pub(super) fn carry_out(&mut self, out: &mut Vec<Completion>, limit: usize) {
        self.left_over = false;
        self.accept_all(out, limit);
        // Those that are put in meanwhile have had their share: they are left for the next wait.
        for _ in 0..self.queue.len() {
            if out.len() >= limit {
                break;
            }
            let Some(number) = self.queue.pop_front() else { break };
            self.slots[number as usize].dequeued();
            self.attend(number, out, limit);
        }
        if self.queue.is_empty() {
            // Begins at the front again, so that a queue that is seldom used touches few pages.
            self.queue.clear();
        } else {
            self.left_over = true;
        }
    }

    /// Does what there is to do for one slot.
    fn attend(&mut self, number: u32, out: &mut Vec<Completion>, limit: usize) {
        let mut quota = STREAM_QUOTA;
        while let Some(completion) = self.next(number, &mut quota) {
            out.push(completion);
            if out.len() >= limit {
                // There may be more.
                return self.enqueue(number);
            }
        }
    }

    /// The next operation of a slot that is over now, if there is any; the close last.
    #[inline]
    fn next(&mut self, number: u32, quota: &mut u32) -> Option<Completion> {
        let slot = &mut self.slots[number as usize];
        if let Some(kind) = slot.cancelled() {
            slot.end(kind);
            let lease = if kind == Kind::Receive { slot.lease.take() } else { None };
            return Some(completion(slot.token(kind, number), -libc::ECANCELED, lease, false));
        }
        if let Some((kind, result)) = slot.finished() {
            slot.end(kind);
            return Some(completion(slot.token(kind, number), result, None, false));
        }
        if slot.is_in_flight(Kind::Receive)
            && slot.has(READABLE | AT_ONCE)
            && let Some(completion) = self.receive_now(number, quota)
        {
            return Some(completion);
        }
        let slot = &mut self.slots[number as usize];
        if slot.is_in_flight(Kind::Park)
            && slot.has(READABLE)
            && let Some(result) = self.look(number)
        {
            return Some(self.ended(Kind::Park, number, result));
        }
        self.next_outgoing(number)
    }

    /// The same, of the operations that are less frequent.
    fn next_outgoing(&mut self, number: u32) -> Option<Completion> {
        let slot = &mut self.slots[number as usize];
        if slot.is_in_flight(Kind::Connect) && !slot.has(FULL) {
            return self.try_connected(number);
        }
        if slot.is_in_flight(Kind::Send) {
            if slot.has(FULL) {
                return None;
            }
            let span = slot.outgoing;
            let result = self.send_now(number, &[span], false)?;
            return Some(self.ended(Kind::Send, number, result));
        }
        if slot.is_in_flight(Kind::HalfClose) {
            let result = match &slot.socket {
                Some(socket) => system::end_stream(socket),
                None => -libc::ENOTCONN,
            };
            return Some(self.ended(Kind::HalfClose, number, result));
        }
        slot.is_over().then(|| self.ended(Kind::Close, number, 0))
    }

    fn ended(&mut self, kind: Kind, number: u32, result: i32) -> Completion {
        let slot = &mut self.slots[number as usize];
        slot.end(kind);
        completion(slot.token(kind, number), result, None, false)
    }

    /// Whether there is something to read: `Some(0)` if so, or a failure; `None` if not.
    fn look(&mut self, number: u32) -> Option<i32> {
        let slot = &mut self.slots[number as usize];
        if !slot.has(DOUBTFUL) {
            return Some(0);
        }
        let Some(socket) = &slot.socket else { return Some(-libc::ENOTCONN) };
        match system::peek(socket) {
            Ok(()) => {
                slot.unset(DOUBTFUL);
                Some(0)
            }
            Err(libc::EAGAIN) => {
                slot.unset(READABLE | DOUBTFUL);
                None
            }
            // Asking has used it up: the next receive would see an end where there was an error.
            Err(code) => Some(-code),
        }
    }

    /// Receives into the lease that was given, or into a provided block.
    fn receive_now(&mut self, number: u32, quota: &mut u32) -> Option<Completion> {
        let slot = &mut self.slots[number as usize];
        let (mut lease, start, streams) = match slot.lease.take() {
            Some(lease) => (lease, slot.start as usize, false),
            None if *quota == 0 => {
                self.enqueue(number);
                return None;
            }
            None => match self.provided.pop() {
                Some(lease) => (lease, 0, true),
                None => return self.without_block(number),
            },
        };
        let room = &mut lease.bytes_mut(&self.memory)[start..];
        let most = room.len();
        let received = match &slot.socket {
            Some(socket) => system::receive(socket, room),
            None => Err(libc::ENOTCONN),
        };
        let token = slot.token(Kind::Receive, number);
        match received {
            Err(libc::EAGAIN) => {
                slot.unset(READABLE | DOUBTFUL);
                if slot.has(AT_ONCE) {
                    slot.end(Kind::Receive);
                    return Some(completion(token, -libc::EAGAIN, Some(lease), false));
                }
                if streams {
                    self.provided.push(lease);
                } else {
                    slot.lease = Some(lease);
                }
                None
            }
            Ok(count) if streams && count > 0 => {
                slot.was_read(count < most);
                *quota -= 1;
                Some(completion(token, count as i32, Some(lease), true))
            }
            received => {
                slot.end(Kind::Receive);
                let result = match received {
                    Ok(0) => 0,
                    Ok(count) => {
                        slot.was_read(count < most);
                        count as i32
                    }
                    Err(code) => -code,
                };
                let lease = if streams {
                    self.provided.push(lease);
                    None
                } else {
                    Some(lease)
                };
                Some(completion(token, result, lease, false))
            }
        }
    }

    /// A stream for which there is no block: over, if there is something for it to bring.
    fn without_block(&mut self, number: u32) -> Option<Completion> {
        let looked = self.look(number)?;
        let mut ended = self.ended(Kind::Receive, number, looked);
        if ended.result.is_ok() {
            ended.result = Err(NO_BLOCK);
        }
        Some(ended)
    }

    /// A socket that connects is writable, or has failed. An event alone is no proof.
    fn try_connected(&mut self, number: u32) -> Option<Completion> {
        let slot = &mut self.slots[number as usize];
        let outcome = match &slot.socket {
            Some(socket) => system::connected(socket),
            None => Some(-libc::ENOTCONN),
        };
        match outcome {
            None => {
                slot.set(FULL);
                None
            }
            Some(result) => {
                if result < 0 {
                    // Closed before the caller hears of it, so that the slot is free then.
                    drop(slot.remove());
                }
                Some(self.ended(Kind::Connect, number, result))
            }
        }
    }

    /// Takes connections from the backlog for the accepts that wait.
    fn accept_all(&mut self, out: &mut Vec<Completion>, limit: usize) {
        while out.len() < limit && self.answers_accepts() {
            if self.brought.len() == self.brought.capacity() {
                // Nobody has asked yet for those that came before.
                return;
            }
            let Some((token, into)) = self.accepts.pop() else { return };
            let result = match (&self.listener, self.deaf) {
                (None, _) => -libc::ECANCELED,
                (Some(_), code @ 1..) => -code,
                (Some(listener), _) => match system::accept(listener) {
                    Ok((socket, _))
                        if self.backlog.is_doubtful(monotonic) && !system::has_peer(&socket) =>
                    {
                        -libc::ECONNABORTED
                    }
                    Ok((socket, peer)) => {
                        let socket = match into {
                            Into::Slot => self.install(token.slot(), socket, None).map(|()| None),
                            Into::Socket => Ok(Some(socket)),
                        };
                        match socket {
                            Ok(socket) => {
                                self.brought.push_back(Brought { token, peer, socket });
                                0
                            }
                            Err(code) => -code,
                        }
                    }
                    Err(libc::EAGAIN) => {
                        self.knocked = false;
                        return self.accepts.push((token, into));
                    }
                    Err(code) => -code,
                },
            };
            if into == Into::Slot {
                self.slots[token.slot() as usize].end(Kind::Accept);
            }
            out.push(completion(token, result, None, false));
        }
    }
}
