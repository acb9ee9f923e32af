//! Asking the kernel, and what its events mean.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::time::Duration;

use mio::event::Event;
use mio::{Interest, Token as Name, Waker};

use super::Ready;
use super::slots::{DOUBTFUL, FULL, READABLE, Slot, UNPROVABLE};
use crate::driver::doorbell::Bell;
use crate::driver::{Completion, Driver, Nanos};

/// Events taken from the kernel at once: few, so that the blocks and sessions that they touch stay in
/// the cache until the answers are sent. With 256 instead of 32, a message of 64 bytes on 1,000
/// connections cost 8 % more, and 17 % more with streams (blocks of 16 KiB share their cache sets).
pub(super) const BATCH: usize = 32;

/// Waits in a row that do not ask the kernel because there is enough to do. A message takes three
/// waits (something is there, it was received, the answer was sent), of which one asks.
const UNASKED: u32 = 2;

/// An event's name is a slot's number in the low half, an incarnation in the high one.
const HALF: u32 = usize::BITS / 2;
const LOW: usize = usize::MAX >> HALF;

/// The most slots: the number in which all bits are set names none.
pub(super) const MAX_SLOTS: usize = LOW;

/// The listener.
pub(super) const LISTENER: Name = Name(usize::MAX);
/// The doorbell: nothing is to be done but to look around.
pub(super) const DOORBELL: Name = Name(LOW);

/// An eventfd, or a user event of the kqueue.
impl Bell for Waker {
    fn ring(&self) {
        let _ = self.wake();
    }
}

/// What is asked of every connection. Urgent data is of no interest, but it cuts receives short.
#[cfg(target_os = "linux")]
pub(super) const READING: Interest = Interest::READABLE.add(Interest::PRIORITY);
/// What is asked of every connection.
#[cfg(not(target_os = "linux"))]
pub(super) const READING: Interest = Interest::READABLE;

/// The name of a slot's connection.
#[inline]
pub(super) fn name(number: u32, incarnation: u32) -> Name {
    Name((incarnation as usize) << HALF | number as usize)
}

impl Ready {
    /// See [`Driver::wait`].
    pub(super) fn turn(
        &mut self,
        until: Option<Nanos>,
        out: &mut Vec<Completion>,
    ) -> io::Result<()> {
        // Room for one at least, or nothing would ever get on.
        let limit = out.capacity().max(out.len() + 1);
        let first = out.len();
        // A connection with much to say must not keep the kernel's news from us.
        let asked = self.has_work() && (self.left_over || self.unasked >= UNASKED);
        if asked {
            self.ask(Some(Duration::ZERO))?;
        }
        self.carry_out(out, limit);
        if asked || out.len() > first {
            self.unasked = if asked { 0 } else { self.unasked + 1 };
            return Ok(());
        }
        self.unasked = 0;
        self.sleep(until)?;
        self.carry_out(out, limit);
        Ok(())
    }

    /// Nothing is there: sleeps until something is.
    fn sleep(&mut self, until: Option<Nanos>) -> io::Result<()> {
        let timeout = until.map(|until| until.since(self.now()));
        if timeout == Some(Duration::ZERO) || !self.doorbell.fall_asleep() {
            return self.ask(Some(Duration::ZERO));
        }
        let slept = self.ask(timeout);
        self.doorbell.get_up();
        slept
    }

    /// Takes the kernel's news.
    fn ask(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            // A signal: there is no news, and the caller looks around.
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        for event in &self.events {
            match event.token() {
                LISTENER => self.knocked = self.listener.is_some(),
                DOORBELL => {}
                name => note(name, event, &mut self.slots, &mut self.queue),
            }
        }
        Ok(())
    }
}

/// Remembers what an event says of a connection, and has it looked at if somebody waits.
#[inline]
fn note(name: Name, event: &Event, slots: &mut [Slot], queue: &mut VecDeque<u32>) {
    let number = (name.0 & LOW) as u32;
    let Some(slot) = slots.get_mut(number as usize) else { return };
    if self::name(number, slot.incarnation) != name || slot.socket.is_none() {
        // Of a connection that has been closed: its descriptor may be kept open by a child of
        // this process.
        return;
    }
    let failed = event.is_error();
    let ended = event.is_read_closed() || failed;
    let urgent = event.is_priority();
    if event.is_readable() || ended {
        slot.set(READABLE);
        // An event of urgent data alone is readable to mio, though a receive finds nothing.
        slot.put(DOUBTFUL, urgent && !ended);
    }
    if ended || urgent {
        slot.set(UNPROVABLE);
    }
    if event.is_writable() || event.is_write_closed() || failed {
        slot.unset(FULL);
    }
    if slot.is_busy() {
        slot.enqueue(number, queue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_apart() {
        let last = (MAX_SLOTS - 1) as u32;
        for (number, incarnation) in [(0, 0), (0, 1), (last, 0), (last, u32::MAX)] {
            let name = name(number, incarnation);
            assert_eq!(name.0 & LOW, number as usize);
            assert!(name != LISTENER && name != DOORBELL);
        }
        assert_ne!(name(5, 0), name(5, 1));
        assert_ne!(LISTENER, DOORBELL);
    }
}
