//! One wait: what is over is told, what completes is taken from the port.

use std::os::windows::io::OwnedSocket;

use windows_sys::Win32::Foundation::{NTSTATUS, STATUS_CANCELLED};
use windows_sys::Win32::Networking::WinSock as ws;
use windows_sys::Win32::System::IO::OVERLAPPED_ENTRY;

use super::operations::Place;
use super::pool::{Returned, Sort};
use super::slots::{ACCEPTED, CONNECTED, V6};
use super::system::{self, Posted};
use super::{Iocp, Recycle, errors};
use crate::driver::{Completion, Driver, Kind, Nanos};

/// Fresh sockets made in one wait at most, when there is nothing else to do.
const STOCKED: u32 = 8;

impl Iocp {
    /// One wait.
    pub(super) fn turn(
        &mut self,
        until: Option<Nanos>,
        out: &mut Vec<Completion>,
    ) -> std::io::Result<()> {
        let (before, limit) = (out.len(), out.capacity().max(out.len() + 1));
        self.post_accepts(out, limit);
        self.carry_out(out, limit);
        let room = (limit - out.len()).min(self.entries.len());
        if room == 0 {
            return Ok(());
        }
        let busy = out.len() > before || !self.queue.is_empty();
        let milliseconds = if busy { 0 } else { self.milliseconds(until) };
        let taken = self.look(room, milliseconds)?;
        for at in 0..taken {
            let entry = self.entries[at];
            self.reap(&entry, out);
        }
        self.post_accepts(out, limit);
        self.carry_out(out, limit);
        Ok(())
    }

    /// How long to sleep, rounded up.
    fn milliseconds(&mut self, until: Option<Nanos>) -> u32 {
        let now = self.now();
        self.expire(now);
        let Some(until) = until.into_iter().chain(self.pool.next()).min() else { return u32::MAX };
        let nanos = until.0.saturating_sub(now.0);
        u32::try_from(nanos.div_ceil(1_000_000)).unwrap_or(u32::MAX - 1).min(u32::MAX - 1)
    }

    /// Asks the port, and sleeps there if nothing has completed.
    fn look(&mut self, room: usize, milliseconds: u32) -> std::io::Result<usize> {
        if milliseconds == 0 {
            return self.port.take(&mut self.entries[..room], 0);
        }
        self.stock(STOCKED);
        if !self.doorbell.fall_asleep() {
            return self.port.take(&mut self.entries[..room], 0);
        }
        let taken = self.port.take(&mut self.entries[..room], milliseconds);
        self.doorbell.get_up();
        taken
    }

    /// Resets what has been in limbo for too long.
    fn expire(&mut self, now: Nanos) {
        while let Some(socket) = self.pool.expired(now) {
            // Closed as it goes out of scope; its disconnect completes by that.
            system::reset_on_close(&socket);
        }
    }

    /// Takes in one completion. Which operation it is of its `OVERLAPPED` tells, and nothing else.
    fn reap(&mut self, entry: &OVERLAPPED_ENTRY, out: &mut Vec<Completion>) {
        // A wake names none.
        if entry.lpOverlapped.is_null() {
            return;
        }
        let Some((place, token)) = self.operations.find(entry.lpOverlapped) else {
            debug_assert!(false, "a completion of an operation that is none of ours");
            return;
        };
        self.in_kernel -= 1;
        // SAFETY: the operation is of the table, and its completion has been taken from the port: the
        // kernel is done with it.
        let status = unsafe { (*entry.lpOverlapped).Internal } as NTSTATUS;
        let moved = entry.dwNumberOfBytesTransferred;
        let result = match status {
            // Part of a send may have gone before it was cancelled.
            STATUS_CANCELLED if moved > 0 => Ok(moved),
            0.. => Ok(moved),
            failed => Err(errors::code_of(failed)),
        };
        match place {
            Place::Slot(number, kind) => {
                debug_assert_eq!(token, self.slots[number as usize].token(kind, number).bits());
                self.slots[number as usize].unpost(kind);
                self.end(number, kind, result);
            }
            Place::Accept(number) => self.complete_accept(number, result.map(drop), out),
            Place::Limbo(place) => self.leave_limbo(place, None, result.is_ok()),
        }
    }

    /// An operation that was posted is over.
    pub(super) fn end(&mut self, number: u32, kind: Kind, result: Result<u32, i32>) {
        let slot = &mut self.slots[number as usize];
        let result = match (kind, result) {
            (Kind::Connect, Ok(_)) => match &slot.socket {
                Some(socket) => {
                    let none: [u8; 0] = [];
                    let (level, name) = (ws::SOL_SOCKET, ws::SO_UPDATE_CONNECT_CONTEXT);
                    system::set(socket, level, name, none).map_or_else(|code| -code, |()| 0)
                }
                // Closed meanwhile.
                None => -ws::WSA_OPERATION_ABORTED,
            },
            (Kind::Park, Ok(_)) => 0,
            (_, Ok(moved)) => moved as i32,
            (_, Err(code)) => -code,
        };
        if kind == Kind::Connect && result < 0 {
            // Closed before the caller hears of it, so that the slot is free then.
            drop(slot.socket.take());
        }
        slot.finish(kind, result);
        slot.enqueue(number, &mut self.queue);
    }

    /// Says what is over, up to `limit` completions in `out`.
    fn carry_out(&mut self, out: &mut Vec<Completion>, limit: usize) {
        while out.len() < limit {
            let Some(number) = self.queue.pop_front() else { return };
            self.slots[number as usize].dequeued();
            while let Some(completion) = self.next(number) {
                out.push(completion);
                if out.len() >= limit {
                    // There may be more.
                    self.slots[number as usize].enqueue(number, &mut self.queue);
                    break;
                }
            }
        }
    }

    /// The next operation of a slot that is over, if there is any; the close last.
    #[inline]
    fn next(&mut self, number: u32) -> Option<Completion> {
        let slot = &mut self.slots[number as usize];
        if let Some((kind, result)) = slot.finished() {
            slot.end(kind);
            let lease = if kind == Kind::Receive { slot.lease.take() } else { None };
            return Some(completion(slot.token(kind, number), result, lease));
        }
        if slot.is_in_flight(Kind::HalfClose) && !slot.is_in_flight(Kind::Send) {
            let result = match &slot.socket {
                Some(socket) => system::end_stream(socket),
                None => -ws::WSAENOTCONN,
            };
            slot.end(Kind::HalfClose);
            return Some(completion(slot.token(Kind::HalfClose, number), result, None));
        }
        if !slot.is_over() {
            return None;
        }
        slot.end(Kind::Close);
        let token = slot.token(Kind::Close, number);
        self.release(number);
        Some(completion(token, 0, None))
    }

    /// Closes what an orderly close has left, or has it disconnected for the next use.
    fn release(&mut self, number: u32) {
        let slot = &mut self.slots[number as usize];
        let Some(socket) = slot.socket.take() else { return };
        let v6 = slot.has(V6);
        let listens = self.listening.as_ref().is_some_and(|listening| listening.v6 == v6);
        let sort = if slot.has(ACCEPTED) && listens {
            Sort::Accepted
        } else if slot.has(ACCEPTED) {
            Sort::Lent { v6 }
        } else if slot.has(CONNECTED) {
            Sort::Connected { v6 }
        } else {
            return;
        };
        let nobodys = matches!(sort, Sort::Lent { .. }) && !self.exchange.wants(self.number, v6);
        if self.recycle == Recycle::Never || nobodys {
            return;
        }
        let Some(place) = self.pool.place(sort) else { return };
        let armed = self.operations.arm(Place::Limbo(place), None);
        // SAFETY: operations are freed after the last completion only, and this place's is not in
        // flight, for it was free.
        let posted =
            unsafe { self.extensions.post_disconnect(&socket, self.recycle, armed, self.skips) };
        match posted {
            Posted::Pending => {
                self.in_kernel += 1;
                let now = self.now();
                self.pool.enter(place, socket, now);
            }
            Posted::Done(_) => self.leave_limbo(place, Some(socket), true),
            // The peer has reset it, say: it is closed.
            Posted::Failed(_) => self.leave_limbo(place, Some(socket), false),
        }
    }

    /// A disconnect is over: its socket is pooled, lent, or closed as it is dropped.
    fn leave_limbo(&mut self, place: u32, socket: Option<OwnedSocket>, succeeded: bool) {
        match self.pool.leave(place, socket, succeeded) {
            Returned::Lent { socket, v6 } => self.exchange.lend(self.number, v6, socket),
            Returned::Pooled | Returned::Closed(_) => {}
        }
    }
}

#[inline]
fn completion(
    token: crate::driver::Token,
    result: i32,
    lease: Option<crate::buffer::Lease>,
) -> Completion {
    Completion { token, result: errors::outcome(result), lease, more: false }
}
