//! A request and a reply on every held connection: proof that each is served.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::protocol::Probed;
use crate::errno::name_of;
use crate::sys::{Poll, Wanted};
use crate::worker::exchange::{Exchange, Payload, Reply, Taken};

/// Connections asked at once: few enough not to flood a server, many enough to keep it busy. Once one
/// has not answered in time, all that are left are asked: otherwise a server that answers nobody would
/// take one time limit for each 128.
const AT_ONCE: usize = 128;
/// How much of a wrong reply is reported.
const SAID_MAX: usize = 256;
/// The name of an answer that did not come in time.
pub(super) const NO_REPLY: &str = "no_reply";
/// The name of an answer that was other than expected.
const WRONG_REPLY: &str = "wrong_reply";
/// How long to wait for answers: bounds how late a request to stop is seen.
const PATIENCE: Duration = Duration::from_millis(20);
/// A reply without an end is given up after so many bytes.
const REPLY_MAX: u64 = 16 << 20;

/// One connection's exchange.
struct Asked<'a> {
    socket: &'a Socket,
    request: Vec<u8>,
    sent: usize,
    reply: Reply,
    /// The beginning of what came.
    said: Vec<u8>,
    deadline: Instant,
}

/// Asks all sockets, [`AT_ONCE`] at a time. The next are asked as answers come in, so that one slow
/// answer does not hold up the others. `stop` is asked often; then those not answered yet are left out.
pub(super) fn run(
    sockets: &[Socket],
    exchange: &Exchange,
    mut stop: impl FnMut() -> bool,
) -> io::Result<Probed> {
    let mut probed = Probed::default();
    let mut dice = Dice::new();
    let mut waiting = sockets.iter();
    let mut asked: Vec<Asked<'_>> = Vec::with_capacity(AT_ONCE);
    loop {
        let at_once = if probed.errors.contains_key(NO_REPLY) { usize::MAX } else { AT_ONCE };
        while asked.len() < at_once {
            let Some(socket) = waiting.next() else { break };
            asked.push(Asked {
                socket,
                request: request(exchange, &mut dice),
                sent: 0,
                reply: Reply::default(),
                said: Vec::new(),
                deadline: Instant::now() + Duration::from_millis(exchange.timeout_ms),
            });
        }
        if asked.is_empty() || stop() {
            return Ok(probed);
        }
        let mut still = Vec::with_capacity(AT_ONCE);
        for mut one in asked.drain(..) {
            match one.advance(exchange) {
                Some(Ok(())) => probed.alive += 1,
                Some(Err(name)) => {
                    if name == WRONG_REPLY && probed.wrong_reply.is_empty() {
                        probed.wrong_reply = one.said;
                    }
                    *probed.errors.entry(name).or_default() += 1;
                }
                None => still.push(one),
            }
        }
        asked = still;
        if let Some(first) = asked.iter().map(|one| one.deadline).min() {
            let mut poll = Poll::new(asked.len());
            for one in &asked {
                poll.watch(one.socket, one.wanted());
            }
            poll.wait(first.saturating_duration_since(Instant::now()).min(PATIENCE))?;
        }
    }
}

impl Asked<'_> {
    fn wanted(&self) -> Wanted {
        if self.sent < self.request.len() { Wanted::Both } else { Wanted::Read }
    }

    /// Writes and reads what can be; `Some` when it is over: answered, or the error's name.
    fn advance(&mut self, exchange: &Exchange) -> Option<Result<(), String>> {
        while self.sent < self.request.len() {
            match (&mut &*self.socket).write(&self.request[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Some(Err(name_of(&error))),
            }
        }
        let mut buffer = [0_u8; 16 << 10];
        loop {
            match (&mut &*self.socket).read(&mut buffer) {
                Ok(0) if self.reply.end() == Some(true) => return Some(Ok(())),
                Ok(0) => return Some(Err("closed".to_owned())),
                Ok(read) => {
                    if let Some(verdict) = self.hear(exchange, &buffer[..read]) {
                        return Some(verdict);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Some(Err(name_of(&error))),
            }
        }
        (Instant::now() >= self.deadline).then(|| Err(NO_REPLY.to_owned()))
    }

    /// Whether the reply is whole and right with these bytes, or wrong.
    fn hear(&mut self, exchange: &Exchange, bytes: &[u8]) -> Option<Result<(), String>> {
        let room = SAID_MAX.saturating_sub(self.said.len());
        self.said.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let expected = match exchange.send {
            Payload::Random(_) => &self.request,
            Payload::Bytes(_) => exchange.expected(),
        };
        match self.reply.take(expected, &exchange.end, bytes) {
            Taken::Whole(_) => Some(Ok(())),
            Taken::Wrong | Taken::Other(_) => Some(Err(WRONG_REPLY.to_owned())),
            Taken::All if self.reply.seen > REPLY_MAX => Some(Err("endless_reply".to_owned())),
            Taken::All => None,
        }
    }
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_whole_with_its_last_byte() {
        let echo = Exchange::echo(Duration::from_secs(1));
        let (socket, _other) = Socket::pair(socket2::Domain::UNIX, socket2::Type::STREAM, None)
            .expect("a pair of sockets");
        let heard = |pieces: &[&[u8]]| {
            let mut asked = Asked {
                socket: &socket,
                request: b"abcd".to_vec(),
                sent: 4,
                reply: Reply::default(),
                said: Vec::new(),
                deadline: Instant::now(),
            };
            let mut verdict = None;
            for piece in pieces {
                verdict = asked.hear(&echo, piece);
            }
            verdict
        };
        assert_eq!(heard(&[b"ab"]), None);
        assert_eq!(heard(&[b"ab", b"cd"]), Some(Ok(())));
        assert!(matches!(heard(&[b"ab", b"X"]), Some(Err(_))));
    }
}
