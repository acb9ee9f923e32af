//! A request and a reply on every held connection: proof that each is served.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use socket2::Socket;

use super::connect::{error_name, wait};
use super::protocol::{Exchange, Payload, Probed, ReplyEnd};

/// Connections asked at once: few enough not to flood a server, many enough to keep it busy.
const AT_ONCE: usize = 128;
/// A reply without an end is given up after so many bytes.
const REPLY_MAX: usize = 16 << 20;

/// One connection's exchange.
struct Asked<'a> {
    socket: &'a Socket,
    request: Vec<u8>,
    sent: usize,
    reply: Vec<u8>,
    deadline: Instant,
}

/// Asks all sockets, [`AT_ONCE`] at a time. The next are asked as answers come in, so that one slow
/// answer holds nobody up.
pub(super) fn run(sockets: &[Socket], exchange: &Exchange) -> io::Result<Probed> {
    let mut probed = Probed::default();
    let mut dice = Dice::new();
    let mut waiting = sockets.iter();
    let mut asked: Vec<Asked<'_>> = Vec::with_capacity(AT_ONCE);
    loop {
        while asked.len() < AT_ONCE {
            let Some(socket) = waiting.next() else { break };
            asked.push(Asked {
                socket,
                request: request(exchange, &mut dice),
                sent: 0,
                reply: Vec::new(),
                deadline: Instant::now() + Duration::from_millis(exchange.timeout_ms),
            });
        }
        if asked.is_empty() {
            return Ok(probed);
        }
        let mut still = Vec::with_capacity(AT_ONCE);
        for mut one in asked.drain(..) {
            match one.advance(exchange) {
                Some(Ok(())) => probed.alive += 1,
                Some(Err(name)) => *probed.errors.entry(name).or_default() += 1,
                None => still.push(one),
            }
        }
        asked = still;
        let mut fds: Vec<PollFd<'_>> = asked.iter().map(Asked::interest).collect();
        if !fds.is_empty() {
            let first = asked.iter().map(|one| one.deadline).min().unwrap_or_else(Instant::now);
            wait(&mut fds, first.saturating_duration_since(Instant::now()))?;
        }
    }
}

impl Asked<'_> {
    fn interest(&self) -> PollFd<'_> {
        let writing =
            if self.sent < self.request.len() { PollFlags::OUT } else { PollFlags::empty() };
        PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN | writing)
    }

    /// Writes and reads what can be; `Some` when it is over: answered, or the error's name.
    fn advance(&mut self, exchange: &Exchange) -> Option<Result<(), String>> {
        while self.sent < self.request.len() {
            match (&mut &*self.socket).write(&self.request[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Some(Err(error_name(&error))),
            }
        }
        let mut buffer = [0_u8; 16 << 10];
        loop {
            match (&mut &*self.socket).read(&mut buffer) {
                Ok(0) => return Some(Err("closed".to_owned())),
                Ok(read) => {
                    self.reply.extend_from_slice(&buffer[..read]);
                    if let Some(verdict) = verdict(exchange, &self.request, &self.reply) {
                        return Some(verdict);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Some(Err(error_name(&error))),
            }
        }
        (Instant::now() >= self.deadline).then(|| Err("no_reply".to_owned()))
    }
}

/// Whether the reply so far is whole and right, or wrong already.
fn verdict(exchange: &Exchange, request: &[u8], reply: &[u8]) -> Option<Result<(), String>> {
    let expected: &[u8] = match (&exchange.expect, &exchange.send) {
        (Some(expected), _) => expected,
        (None, Payload::Random(_)) => request,
        // Nothing expected of a fixed request: any reply will do.
        (None, Payload::Bytes(_)) => &[],
    };
    let common = expected.len().min(reply.len());
    if expected[..common] != reply[..common] {
        return Some(Err("wrong_reply".to_owned()));
    }
    let whole = match &exchange.end {
        ReplyEnd::Expectation => !reply.is_empty() && reply.len() >= expected.len(),
        ReplyEnd::Bytes(bytes) => reply.len() >= *bytes.max(&expected.len()),
        ReplyEnd::Until(mark) => {
            reply.len() >= expected.len()
                && (mark.is_empty() || reply.windows(mark.len()).any(|part| part == mark))
        }
    };
    if whole {
        return Some(Ok(()));
    }
    (reply.len() > REPLY_MAX).then(|| Err("endless_reply".to_owned()))
}

fn request(exchange: &Exchange, dice: &mut Dice) -> Vec<u8> {
    match &exchange.send {
        Payload::Bytes(bytes) => bytes.clone(),
        Payload::Random(length) => (0..*length).map(|_| dice.byte()).collect(),
    }
}

/// Bytes that differ between connections and runs (xorshift64*): to tell one echo from another, no
/// more.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        use std::hash::{BuildHasher as _, RandomState};
        Self(RandomState::new().hash_one(std::process::id()) | 1)
    }

    fn byte(&mut self) -> u8 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(send: Payload, expect: Option<&[u8]>, end: ReplyEnd) -> Exchange {
        Exchange { send, expect: expect.map(<[u8]>::to_vec), end, timeout_ms: 1000 }
    }

    #[test]
    fn an_echo_is_whole_with_its_last_byte() {
        let echo = Exchange::echo(Duration::from_secs(1));
        assert_eq!(verdict(&echo, b"abcd", b"ab"), None);
        assert_eq!(verdict(&echo, b"abcd", b"abcd"), Some(Ok(())));
        assert!(matches!(verdict(&echo, b"abcd", b"abX"), Some(Err(_))));
    }

    #[test]
    fn replies_end_as_they_are_told_to() {
        let ping = Payload::Bytes(b"PING\r\n".to_vec());
        let expected = exchange(ping.clone(), Some(b"+PONG"), ReplyEnd::Expectation);
        assert_eq!(verdict(&expected, b"", b"+PO"), None);
        assert_eq!(verdict(&expected, b"", b"+PONG\r\n"), Some(Ok(())));
        assert!(matches!(verdict(&expected, b"", b"-ERR"), Some(Err(_))));
        let until = exchange(ping.clone(), Some(b"+"), ReplyEnd::Until(b"\r\n".to_vec()));
        assert_eq!(verdict(&until, b"", b"+PONG"), None);
        assert_eq!(verdict(&until, b"", b"+PONG\r\n"), Some(Ok(())));
        let bytes = exchange(ping, None, ReplyEnd::Bytes(7));
        assert_eq!(verdict(&bytes, b"", b"+PONG\r"), None);
        assert_eq!(verdict(&bytes, b"", b"+PONG\r\n"), Some(Ok(())));
    }
}
