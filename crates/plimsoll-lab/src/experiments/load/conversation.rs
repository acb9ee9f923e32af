//! What is said on one connection: an echo of a keystream, or any request and its reply.

use std::collections::VecDeque;

use plimsoll::driver::Nanos;

use super::keystream::Keystream;
use crate::worker::exchange::{Exchange, Reply, Taken};

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
            match self.reply.take(exchange.expected(), &exchange.end, bytes) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::exchange::{Payload, ReplyEnd};

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
        let send = Payload::Bytes(b"x".into());
        Exchange { send, expect: Some(expect.into()), end, timeout_ms: 1000 }
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
