//! The connections that a worker holds, and what becomes of them.

use std::io::{self, Read as _};
use std::time::Instant;

use socket2::Socket;

use super::protocol::{Checked, Ended};
use crate::sys::{Fate, Poll};

/// How much of what the other end said before it ended a connection is reported.
const SAID_MAX: usize = 256;

/// Connections, each with the time since which it has been quiet. Nothing watches them: what has
/// become of them is seen when somebody looks.
pub(super) struct Held {
    sockets: Vec<Socket>,
    /// Of each socket, in the same order.
    marks: Vec<Mark>,
    begun: Instant,
    /// When they were last looked at, in milliseconds since `begun`.
    looked_at_ms: u32,
}

/// What is known of one connection; small, since there are millions.
#[derive(Clone, Copy)]
struct Mark {
    /// Since when nothing was sent on it, in milliseconds since [`Held::begun`].
    quiet_since_ms: u32,
    fate: Fate,
}

impl Held {
    pub(super) fn new() -> Self {
        let begun = Instant::now();
        Self { sockets: Vec::new(), marks: Vec::new(), begun, looked_at_ms: 0 }
    }

    /// Milliseconds since the beginning; they last for 49 days.
    fn now_ms(&self) -> u32 {
        self.begun.elapsed().as_millis() as u32
    }

    pub(super) fn len(&self) -> usize {
        self.sockets.len()
    }

    pub(super) fn sockets(&self) -> &[Socket] {
        &self.sockets
    }

    /// Takes a connection that was just made.
    pub(super) fn push(&mut self, socket: Socket) {
        self.marks.push(Mark { quiet_since_ms: self.now_ms(), fate: Fate::Alive });
        self.sockets.push(socket);
    }

    /// Says that something was sent on all of them.
    pub(super) fn have_spoken(&mut self) {
        let now = self.now_ms();
        self.marks.iter_mut().for_each(|mark| mark.quiet_since_ms = now);
    }

    /// Gives all of them away.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Socket> {
        self.marks.clear();
        self.sockets.drain(..)
    }

    /// Looks at all of them: how many are alive, which have ended since the last look, how long those
    /// had been quiet, and what the other end said before. About 0.2 µs each.
    pub(super) fn check(&mut self) -> io::Result<Checked> {
        let now = self.now_ms();
        let mut found = Checked {
            since_last_look_ms: u64::from(now.saturating_sub(self.looked_at_ms)),
            ..Checked::default()
        };
        self.looked_at_ms = now;
        let mut place = 0;
        let (sockets, marks) = (&self.sockets, &mut self.marks);
        Poll::fates(sockets, |fate| {
            let mark = &mut marks[place];
            let quiet_ms = u64::from(now.saturating_sub(mark.quiet_since_ms));
            match fate {
                Fate::Alive => {
                    found.alive += 1;
                    found.longest_quiet_alive_ms = found.longest_quiet_alive_ms.max(Some(quiet_ms));
                }
                Fate::Closed => found.closed += 1,
                Fate::Reset => found.reset += 1,
            }
            if fate != Fate::Alive && mark.fate == Fate::Alive {
                let said = said_before(&sockets[place]);
                found.ended.add_one(quiet_ms, said);
            }
            mark.fate = fate;
            place += 1;
        })?;
        Ok(found)
    }
}

impl Ended {
    fn add_one(&mut self, quiet_ms: u64, said: Vec<u8>) {
        self.count += 1;
        self.shortest_quiet_ms =
            Some(self.shortest_quiet_ms.map_or(quiet_ms, |one| one.min(quiet_ms)));
        self.longest_quiet_ms = self.longest_quiet_ms.max(Some(quiet_ms));
        if !said.is_empty() {
            self.with_words += 1;
            if self.said.is_empty() {
                self.said = said;
            }
        }
    }
}

/// What the other end sent and nobody has read, the beginning of it; it is taken out of the socket. Empty
/// where there is nothing.
fn said_before(mut socket: &Socket) -> Vec<u8> {
    let mut buffer = vec![0; SAID_MAX];
    let read = socket.read(&mut buffer).unwrap_or(0);
    buffer.truncate(read);
    buffer
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use std::time::Duration;

    use super::*;

    /// Pairs of ends: ours are held, the others are returned.
    fn held(count: usize) -> (Held, Vec<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut held = Held::new();
        let others = (0..count).map(|_| {
            let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            socket.set_nonblocking(true).unwrap();
            held.push(socket.into());
            listener.accept().unwrap().0
        });
        let others = others.collect();
        (held, others)
    }

    fn check_until(held: &mut Held, so: impl Fn(&Checked) -> bool) -> Checked {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let found = held.check().unwrap();
            if so(&found) {
                return found;
            }
            assert!(Instant::now() < deadline, "{found:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[cfg_attr(windows, ignore = "there, bytes that wait to be read hide the end behind them")]
    #[test]
    fn an_end_is_reported_once_with_its_quiet_time_and_with_what_was_said() {
        let (mut held, mut others) = held(3);
        let begun = Instant::now();
        // So that a quiet time is not 0.
        while begun.elapsed() < Duration::from_millis(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(held.check().unwrap().ended, Ended::default());
        others[0].write_all(b"-ERR max number of clients reached\r\n").unwrap();
        drop(others.remove(0));
        let found = check_until(&mut held, |found| found.closed == 1);
        assert_eq!((found.alive, found.reset, found.ended.count), (2, 0, 1));
        assert_eq!(found.ended.said, b"-ERR max number of clients reached\r\n");
        assert_eq!(found.ended.with_words, 1);
        assert_eq!(found.ended.shortest_quiet_ms, found.ended.longest_quiet_ms);
        assert!(found.ended.longest_quiet_ms >= Some(20), "{found:?}");
        let again = held.check().unwrap();
        assert_eq!((again.closed, again.ended.count), (1, 0));
        drop(others);
        let found = check_until(&mut held, |found| found.alive == 0);
        assert_eq!(found.longest_quiet_alive_ms, None);
    }

    #[test]
    fn who_has_spoken_is_not_quiet() {
        let (mut held, _others) = held(1);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(50) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let before = held.check().unwrap().longest_quiet_alive_ms.unwrap();
        held.have_spoken();
        let after = held.check().unwrap().longest_quiet_alive_ms.unwrap();
        // Of the time before nothing is left.
        assert!(
            before >= 50 && after < begun.elapsed().as_millis() as u64 - 49,
            "{before} {after}"
        );
    }
}
