//! A turn of the ring: entering the kernel, and what its completions mean.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use io_uring::cqueue;

use super::ring::BATCH;
use super::slots::{CLOSED, CLOSING, HALF_CLOSE_WAITS};
use super::{BELL, OTHERWISE, QUIET, Uring, ops};
use crate::buffer::Lease;
use crate::driver::errno::{NO_BLOCK, outcome};
use crate::driver::{Completion, Driver, Kind, Nanos, Token, monotonic};

/// Completions copied out of the queue at once: 1 KiB of stack.
const CHUNK: usize = 64;

impl Uring {
    /// See [`Driver::wait`].
    pub(super) fn turn(
        &mut self,
        until: Option<Nanos>,
        out: &mut Vec<Completion>,
    ) -> io::Result<()> {
        if !self.bell_armed && !self.leaving {
            self.arm_doorbell();
        }
        let waiting = self.ring.waiting();
        self.show_buffers(waiting);
        // Room for one at least, or nothing would ever get on.
        let limit = out.capacity().max(out.len() + 1);
        let first = out.len();
        if waiting >= limit - first {
            // Enough is there: more work would only fill the kernel's queue.
            self.ring.submit();
        } else if waiting > 0 || self.ring.is_certain() || !self.ready.is_empty() {
            self.ring.turn()?;
        } else {
            self.sleep(until)?;
        }
        self.reuse_copied();
        self.reap(out, limit);
        // The kernel runs 20 pieces of work an enter if it is not told to wait for more.
        // Its flag for that may stay up with nothing behind it (Linux 6.18: work that queued
        // itself again and was run from the retry list), so a turn that brings nothing ends this.
        while out.len() < limit && out.len() - first < BATCH as usize && self.ring.has_work() {
            let before = out.len();
            self.ring.turn()?;
            self.reap(out, limit);
            if out.len() == before {
                break;
            }
        }
        Ok(())
    }

    fn show_buffers(&mut self, waiting: usize) {
        let shared = &mut *self.shared;
        if let Some(buffers) = &mut shared.buffers {
            // Nobody knows how many did not fit the queue.
            let unknown = self.ring.has_overflowed();
            buffers.show(&shared.memory, if unknown { u32::MAX } else { waiting as u32 });
        }
    }

    /// Nothing is there: sleeps until something is.
    fn sleep(&mut self, until: Option<Nanos>) -> io::Result<()> {
        let now = if until.is_some() { self.now() } else { Nanos(0) };
        if until.is_none_or(|until| until > now) && self.doorbell.fall_asleep() {
            let slept = self.ring.sleep(now, until);
            self.doorbell.get_up();
            return slept;
        }
        // A caller that spins: no system call when there is nothing to do.
        if self.ring.is_idle() { Ok(()) } else { self.ring.turn() }
    }

    fn reap(&mut self, out: &mut Vec<Completion>, limit: usize) {
        while out.len() < limit {
            let Some((token, result)) = self.ready.pop_front() else { break };
            match token.kind() {
                Kind::HandOver => out.push(completion(token, result, None, false)),
                _ => self.ended(token, result, None, out),
            }
        }
        if self.ready.is_empty() {
            // Begins at the front again, so that a queue that is seldom used touches few pages.
            self.ready.clear();
        }
        let mut chunk = [const { MaybeUninit::<cqueue::Entry>::uninit() }; CHUNK];
        while out.len() < limit {
            let most = CHUNK.min(limit - out.len());
            let entries = self.ring.reap(&mut chunk[..most]);
            let count = entries.len();
            for entry in entries {
                self.complete(entry, out);
            }
            if let Some(buffers) = &mut self.shared.buffers {
                buffers.reaped(count as u32);
            }
            if count < most {
                break;
            }
        }
    }

    /// Sorts a completion by its user data.
    #[inline]
    fn complete(&mut self, entry: &cqueue::Entry, out: &mut Vec<Completion>) {
        let (user, result) = (entry.user_data(), entry.result());
        let Some(token) = Token::from_bits(user) else {
            return self.complete_private(user, result, out);
        };
        match token.kind() {
            Kind::Receive => self.received(token, entry, out),
            Kind::Accept => self.accept_ended(token, result, out),
            Kind::HandOver => self.handed_over(token, result, out),
            Kind::Connect if result < 0 => self.connect_failed_into(token, -result, out),
            Kind::Send => self.sent(token, result, out),
            Kind::Close => self.closed(token, out),
            // The poll's result is a mask of events; nothing is counted.
            Kind::Park | Kind::Connect | Kind::HalfClose => {
                self.ended(token, result.min(0), None, out);
            }
        }
    }

    /// A completion that belongs to no token as it is.
    fn complete_private(&mut self, user: u64, result: i32, out: &mut Vec<Completion>) {
        match (user, Token::from_bits(user & !OTHERWISE)) {
            // What was to be cancelled had completed, or the reset had nobody to go to.
            (QUIET, _) => {}
            (BELL, _) => self.bell_armed = false,
            (_, Some(token)) if token.kind() == Kind::Accept => self.looked_at(token, result, out),
            (_, Some(token)) if token.kind() == Kind::Close => {
                let place = self.slots[token.slot() as usize].extra;
                self.shared.addresses.give_back(place);
                self.ended(token.with(Kind::Accept), -libc::ECONNABORTED, None, out);
            }
            // A connect that failed has been tidied up.
            (_, Some(token)) if token.kind() == Kind::Connect => {
                let code = i32::from(self.slot(token).extra);
                self.ended(token, -code, None, out);
            }
            _ => debug_assert!(false, "a completion of nothing: {user:x}"),
        }
    }

    /// An operation of a slot is over.
    #[inline]
    fn ended(
        &mut self,
        token: Token,
        result: i32,
        lease: Option<Lease>,
        out: &mut Vec<Completion>,
    ) {
        self.conclude(completion(token, result, lease, false), out);
    }

    #[inline]
    fn conclude(&mut self, completion: Completion, out: &mut Vec<Completion>) {
        let token = completion.token;
        let slot = self.slot(token);
        slot.end(token.kind());
        let over = slot.is_over();
        out.push(completion);
        if over {
            self.closed_at_last(token.with(Kind::Close), out);
        }
    }

    fn received(&mut self, token: Token, entry: &cqueue::Entry, out: &mut Vec<Completion>) {
        let (result, flags) = (entry.result(), entry.flags());
        let slot = self.slot(token);
        if let Some(lease) = slot.lease.take() {
            return self.ended(token, result, Some(lease), out);
        }
        let mut lease = None;
        if let Some(id) = cqueue::buffer_select(flags)
            && let Some(buffers) = &mut self.shared.buffers
        {
            lease = buffers.take(id);
            if result <= 0
                && let Some(unused) = lease.take()
            {
                buffers.provide(unused);
            }
        }
        if cqueue::more(flags) {
            return out.push(completion(token, result, lease, true));
        }
        if result == -libc::ENOBUFS
            && let Some(buffers) = &mut self.shared.buffers
            && buffers.had_none()
        {
            // Not posted again here: the caller may want to stop, once it has seen what came.
            buffers.widen();
            let result = Err(NO_BLOCK);
            return self.conclude(Completion { token, result, lease, more: false }, out);
        }
        self.ended(token, result, lease, out);
    }

    fn sent(&mut self, token: Token, result: i32, out: &mut Vec<Completion>) {
        self.ended(token, result, None, out);
        let slot = self.slot(token);
        if slot.has(HALF_CLOSE_WAITS) {
            slot.unset(HALF_CLOSE_WAITS);
            self.post_half_close(token.with(Kind::HalfClose));
        }
    }

    fn accept_ended(&mut self, token: Token, result: i32, out: &mut Vec<Completion>) {
        let number = token.slot() as usize;
        self.accepts -= 1;
        if result >= 0 {
            // A direct accept gives 0, a plain one the descriptor.
            let doubtful = self.backlog.is_doubtful(monotonic);
            let Some(fd) = self.plain.get_mut(number) else {
                if doubtful {
                    return self.look_at_accepted(token);
                }
                return self.ended(token, 0, None, out);
            };
            *fd = result;
            if doubtful && !is_alive(result) {
                return self.close_dead(token);
            }
            return self.ended(token, 0, None, out);
        }
        let place = self.slots[number].extra;
        self.shared.addresses.give_back(place);
        let result = self.of_accept(result);
        self.ended(token, result, None, out);
    }

    fn handed_over(&mut self, token: Token, result: i32, out: &mut Vec<Completion>) {
        self.accepts -= 1;
        let doubtful = result >= 0 && self.backlog.is_doubtful(monotonic);
        let handed = &mut self.handed[token.slot() as usize];
        if result >= 0 && (!doubtful || is_alive(result)) {
            handed.fd = result;
            return out.push(completion(token, 0, None, false));
        }
        handed.token = 0;
        self.shared.addresses.give_back(handed.place);
        let result = if result >= 0 {
            // SAFETY: the kernel gave us this descriptor, and nobody else knows it.
            drop(unsafe { OwnedFd::from_raw_fd(result) });
            -libc::ECONNABORTED
        } else {
            self.of_accept(result)
        };
        out.push(completion(token, result, None, false));
    }

    /// A direct descriptor was accepted: asks whether its peer is still there, with a send of
    /// nothing, which fails on a connection that was reset (`tcp_sendmsg_locked`,
    /// `net/ipv4/tcp.c`).
    fn look_at_accepted(&mut self, token: Token) {
        self.ring.count_certain();
        self.ring.push(ops::touch(self.target(token.slot()), token.bits() | OTHERWISE));
    }

    /// The answer: the accept has succeeded, or brought somebody who had gone.
    fn looked_at(&mut self, token: Token, result: i32, out: &mut Vec<Completion>) {
        match -result {
            libc::ECONNRESET | libc::EPIPE | libc::ENOTCONN | libc::ETIMEDOUT => {
                self.close_dead(token);
            }
            _ => self.ended(token, 0, None, out),
        }
    }

    /// Closes a connection that was gone when it was accepted. The accept fails when that is done,
    /// so that the slot is free then.
    fn close_dead(&mut self, token: Token) {
        let target = self.target(token.slot());
        self.ring.push_certain(ops::close(target, token.with(Kind::Close).bits() | OTHERWISE));
        if let Some(fd) = self.plain.get_mut(token.slot() as usize) {
            *fd = -1;
        }
    }

    /// What a failed accept means: without a listener, that it was cancelled.
    fn of_accept(&self, result: i32) -> i32 {
        // EINVAL: it does not listen any more; EBADF: the accept came after the close.
        match -result {
            libc::EINVAL | libc::EBADF if self.listener.is_none() => -libc::ECANCELED,
            _ => result,
        }
    }

    /// A connect failed before it was posted.
    pub(super) fn connect_failed(&mut self, token: Token, code: i32) {
        self.slot(token).extra = code as u16;
        let target = self.target(token.slot());
        self.ring.push(ops::close(target, token.bits() | OTHERWISE));
        if let Some(fd) = self.plain.get_mut(token.slot() as usize) {
            *fd = -1;
        }
    }

    /// A connect failed: its socket is closed before the caller hears of it, so that the slot is
    /// free then.
    fn connect_failed_into(&mut self, token: Token, code: i32, out: &mut Vec<Completion>) {
        if self.slot(token).has(CLOSING) {
            // The close has done that, or will; and an abort's reset is no news about the peer.
            return self.ended(token, -libc::ECANCELED, None, out);
        }
        self.connect_failed(token, code);
    }

    /// The kernel has closed the slot's connection: said when all else has been.
    fn closed(&mut self, token: Token, out: &mut Vec<Completion>) {
        // Its result is of no interest: EBADF when a failed connect had been tidied up before.
        let slot = self.slot(token);
        slot.set(CLOSED);
        if slot.is_over() {
            self.closed_at_last(token, out);
        }
    }

    fn closed_at_last(&mut self, token: Token, out: &mut Vec<Completion>) {
        self.slot(token).recycle();
        out.push(completion(token, 0, None, false));
    }
}

/// Whether a connection that was just accepted has a peer: one that was reset in the accept queue
/// has none (`inet_getname`, `net/ipv4/af_inet.c`).
fn is_alive(fd: RawFd) -> bool {
    // SAFETY: open, and it stays so for the call: the kernel gave it to us, and we have not told
    // anybody.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::net::getpeername(socket) != Err(rustix::io::Errno::NOTCONN)
}

#[inline]
fn completion(token: Token, result: i32, lease: Option<Lease>, more: bool) -> Completion {
    Completion { token, result: outcome(result), lease, more }
}
