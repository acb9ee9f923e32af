//! What is said on one connection: an echo of a keystream, or any request and its reply.

use std::collections::VecDeque;

use plimsoll::driver::Nanos;

use super::keystream::Keystream;

/// A request, and how to know its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The bytes to send.
    pub send: Vec<u8>,
    /// What the reply must begin with.
    pub expect: Vec<u8>,
    /// Where the reply ends.
    pub end: ReplyEnd,
}

/// Where a reply ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyEnd {
    /// With the expectation itself.
    Expectation,
    /// After this many bytes.
    Bytes(u64),
    /// After the first occurrence of these bytes, which may be in the expectation.
    Until(Vec<u8>),
}

/// One connection's side of it.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    stream: Keystream,
    sent: u64,
    received: u64,
    /// For each message outstanding: the offset at which its reply ends (an echo), and when it
    /// was to be sent.
    outstanding: VecDeque<(u64, Nanos)>,
    reply: Reply,
    /// The place in the client's list of sessions.
    pub(super) number: u32,
    /// A reply was wrong: what follows cannot be told apart, and is not counted again.
    pub(super) lost: bool,
}

/// How much of the current reply is there.
#[derive(Debug, Default)]
struct Reply {
    seen: u64,
    matched_end: usize,
}

/// What a piece of received bytes brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Bytes that were not what they should be, or replies that did not match.
    pub(super) wrong: u64,
    /// Replies that came that nobody had asked for.
    pub(super) unasked: u64,
}

impl Conversation {
    /// A conversation with its own keystream.
    pub(super) fn begin(&mut self, seed: u64, number: u32) {
        *self = Self { stream: Keystream::new(seed), number, ..Self::default() };
    }

    /// Messages whose reply is not there.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Writes the next message of an echo into `buffer`.
    pub(super) fn next_echo(&mut self, buffer: &mut [u8], intended: Nanos) {
        self.stream.fill(self.sent, buffer);
        self.sent += buffer.len() as u64;
        self.outstanding.push_back((self.sent, intended));
    }

    /// Notes that a request was sent.
    pub(super) fn next_request(&mut self, intended: Nanos) {
        self.outstanding.push_back((0, intended));
    }

    /// Verifies echoed bytes, and calls `done` for each message that is whole now.
    pub(super) fn hear_echo(&mut self, bytes: &[u8], mut done: impl FnMut(Nanos)) -> Heard {
        let mut heard = Heard { wrong: self.stream.wrong(self.received, bytes), unasked: 0 };
        self.received += bytes.len() as u64;
        heard.unasked = self.received.saturating_sub(self.sent);
        while let Some((end, intended)) = self.outstanding.front().copied() {
            if end > self.received {
                break;
            }
            self.outstanding.pop_front();
            done(intended);
        }
        heard
    }

    /// Checks bytes of replies, and calls `done` for each reply that is whole now.
    pub(super) fn hear_reply(
        &mut self,
        exchange: &Exchange,
        mut bytes: &[u8],
        mut done: impl FnMut(Nanos),
    ) -> Heard {
        let mut heard = Heard::default();
        while !bytes.is_empty() {
            let Some(&(_, intended)) = self.outstanding.front() else {
                heard.unasked += bytes.len() as u64;
                return heard;
            };
            match self.reply.take(exchange, bytes) {
                Taken::All => return heard,
                Taken::Wrong => {
                    heard.wrong += 1;
                    return heard;
                }
                Taken::Whole(count) => {
                    self.outstanding.pop_front();
                    self.reply = Reply::default();
                    bytes = &bytes[count..];
                    done(intended);
                }
            }
        }
        heard
    }
}

/// What became of bytes offered to a reply.
enum Taken {
    /// All are part of it, and it goes on.
    All,
    /// It is whole after this many.
    Whole(usize),
    /// It does not begin as it should.
    Wrong,
}

impl Reply {
    fn take(&mut self, exchange: &Exchange, bytes: &[u8]) -> Taken {
        let expected = &exchange.expect[(self.seen as usize).min(exchange.expect.len())..];
        let common = expected.len().min(bytes.len());
        if expected[..common] != bytes[..common] {
            return Taken::Wrong;
        }
        let whole = match &exchange.end {
            ReplyEnd::Expectation => (common == expected.len()).then_some(common),
            ReplyEnd::Bytes(count) => {
                let rest = count.saturating_sub(self.seen);
                (rest <= bytes.len() as u64).then_some(rest as usize)
            }
            ReplyEnd::Until(end) => self.find_end(end, bytes),
        };
        self.seen += bytes.len() as u64;
        whole.map_or(Taken::All, Taken::Whole)
    }

    /// Goes on looking for `end`, of which `matched_end` bytes were the last seen. Falls back as
    /// Knuth, Morris and Pratt do, by trying each shorter beginning.
    fn find_end(&mut self, end: &[u8], bytes: &[u8]) -> Option<usize> {
        for (at, &byte) in bytes.iter().enumerate() {
            while self.matched_end > 0 && end[self.matched_end] != byte {
                self.matched_end = shorter(end, self.matched_end);
            }
            if end[self.matched_end] == byte {
                self.matched_end += 1;
            }
            if self.matched_end == end.len() {
                return Some(at + 1);
            }
        }
        None
    }
}

/// The longest beginning of `end` that is also an ending of its first `matched` bytes, and shorter.
fn shorter(end: &[u8], matched: usize) -> usize {
    (0..matched).rev().find(|&count| end[..count] == end[matched - count..matched]).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(exchange: &Exchange, asked: usize, pieces: &[&[u8]]) -> (usize, Heard) {
        let mut conversation = Conversation::default();
        (0..asked).for_each(|_| conversation.next_request(Nanos(0)));
        let mut done = 0;
        let mut last = Heard::default();
        for piece in pieces {
            last = conversation.hear_reply(exchange, piece, |_| done += 1);
        }
        (done, last)
    }

    fn exchange(expect: &str, end: ReplyEnd) -> Exchange {
        Exchange { send: b"x".into(), expect: expect.into(), end }
    }

    #[test]
    fn replies_end_with_the_expectation() {
        let pong = exchange("+PONG\r\n", ReplyEnd::Expectation);
        assert_eq!(replies(&pong, 2, &[b"+PONG\r\n+PO", b"NG\r\n"]), (2, Heard::default()));
        assert_eq!(replies(&pong, 1, &[b"-ERR"]).1.wrong, 1);
        assert_eq!(replies(&pong, 1, &[b"+PONG\r\n+PONG\r\n"]).1.unasked, 7);
    }

    #[test]
    fn replies_end_after_bytes() {
        let eight = exchange("ab", ReplyEnd::Bytes(8));
        assert_eq!(replies(&eight, 2, &[b"ab345678ab", b"3456", b"78"]).0, 2);
    }

    #[test]
    fn replies_end_with_a_text_that_may_begin_twice() {
        let until = exchange("HTTP", ReplyEnd::Until(b"aab".into()));
        assert_eq!(replies(&until, 1, &[b"HTTP xa", b"a", b"aab"]).0, 1);
        assert_eq!(replies(&until, 2, &[b"HTTP aabHT", b"TP aaa", b"ab"]).0, 2);
    }

    #[test]
    fn an_echo_is_checked_byte_by_byte() {
        let mut conversation = Conversation::default();
        conversation.begin(3, 0);
        let mut message = [0; 10];
        conversation.next_echo(&mut message, Nanos(5));
        let mut done = Vec::new();
        assert_eq!(conversation.hear_echo(&message[..4], |at| done.push(at)), Heard::default());
        assert_eq!(done, []);
        message[9] ^= 1;
        assert_eq!(conversation.hear_echo(&message[4..], |at| done.push(at)).wrong, 1);
        assert_eq!(done, [Nanos(5)]);
        assert_eq!(conversation.hear_echo(b"z", |_| ()).unasked, 1);
    }
}
