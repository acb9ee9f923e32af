//! What is said on one connection after another of a client: an echo of a keystream, or any request
//! and its reply.

use std::collections::VecDeque;

use super::keystream::Keystream;
use crate::worker::exchange::{Exchange, Reply, Taken};

/// The fewest bytes that are taken for text in place of an echo: fewer may be corrupt bytes that
/// happen to be printable.
const TEXT_MIN: usize = 4;

/// A message whose reply is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    intended_ns: u64,
    /// Bytes of the request.
    bytes: u32,
    /// Where its echo ends in the stream of the present connection.
    echo_end: u64,
}

/// The messages of one client, and how far the replies of its present connection are.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    stream: Keystream,
    sent: u64,
    received: u64,
    /// Messages whose reply is not there, oldest first.
    outstanding: VecDeque<Message>,
    /// How many of them have been sent on the present connection: the first ones.
    sent_count: usize,
    reply: Reply,
    /// Bytes of the present reply.
    reply_bytes: u64,
    /// Whole replies on the present connection.
    replies: u64,
}

/// A message's end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Its reply is whole, and right.
    Answered {
        /// When it was to be sent.
        intended_ns: u64,
        /// Bytes of the request.
        sent: u64,
        /// Bytes of the reply.
        received: u64,
    },
    /// The server said something else.
    Refused {
        /// When it was to be sent.
        intended_ns: u64,
        /// What the server said.
        said: Vec<u8>,
    },
}

/// What a piece of received bytes means for the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It goes on.
    Fine,
    /// The server closes it after the last reply, as it said.
    Closes,
    /// So many echoed bytes were not those that were sent.
    Corrupt(u64),
    /// So many bytes came that nobody had asked for, and they are no text.
    Unasked(u64),
    /// The server said this where no reply, or another one, was expected; what follows cannot be
    /// told apart.
    Said(Vec<u8>),
}

/// What a connection's end left.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Remains {
    /// Messages that are not sent again, by when they were intended: a part of their reply came, or
    /// their connection gave no whole reply at all.
    pub(super) hopeless: Vec<u64>,
    /// The connection ended within a reply.
    pub(super) truncated: bool,
    /// The connection gave no whole reply.
    pub(super) mute: bool,
}

impl Conversation {
    /// A new connection: its stream begins anew, and what is outstanding is to be sent again.
    pub(super) fn begin(&mut self, seed: u64) {
        *self = Self {
            stream: Keystream::new(seed),
            outstanding: std::mem::take(&mut self.outstanding),
            ..Self::default()
        };
    }

    /// Messages whose reply is not there.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Whether one of them has been sent: its reply will come, or its connection will end.
    pub(super) fn awaits_reply(&self) -> bool {
        self.sent_count > 0
    }

    /// When they were intended.
    pub(super) fn intended(&self) -> impl Iterator<Item = u64> {
        self.outstanding.iter().map(|message| message.intended_ns)
    }

    /// A message is to be sent.
    pub(super) fn queue(&mut self, intended_ns: u64, bytes: u32) {
        self.outstanding.push_back(Message { intended_ns, bytes, echo_end: 0 });
    }

    /// Bytes of the next message that has not been sent on this connection.
    pub(super) fn next_bytes(&self) -> Option<u32> {
        self.outstanding.get(self.sent_count).map(|message| message.bytes)
    }

    /// Notes that the next message is sent.
    pub(super) fn mark_sent(&mut self) {
        let message = &mut self.outstanding[self.sent_count];
        self.sent += u64::from(message.bytes);
        message.echo_end = self.sent;
        self.sent_count += 1;
    }

    /// Writes the next message of an echo into `buffer`, which has its length.
    pub(super) fn write_echo(&self, buffer: &mut [u8]) {
        self.stream.fill(self.sent, buffer);
    }

    /// Verifies echoed bytes, and tells `event` of each message that is whole now.
    pub(super) fn hear_echo(&mut self, bytes: &[u8], mut event: impl FnMut(Event)) -> Heard {
        let asked = usize::try_from(self.sent - self.received).unwrap_or(usize::MAX);
        let wrong = self.stream.wrong(self.received, &bytes[..bytes.len().min(asked)]);
        let between = self.reply_bytes == 0;
        if (wrong > 0 || asked == 0) && between && is_text(bytes) {
            return Heard::Said(bytes.to_vec());
        }
        self.received += bytes.len() as u64;
        self.reply_bytes += bytes.len() as u64;
        if wrong > 0 {
            return Heard::Corrupt(wrong);
        }
        if bytes.len() > asked {
            return Heard::Unasked((bytes.len() - asked) as u64);
        }
        while self.sent_count > 0 && self.outstanding[0].echo_end <= self.received {
            let bytes = u64::from(self.outstanding[0].bytes);
            self.reply_bytes -= bytes;
            event(self.answered(bytes));
        }
        Heard::Fine
    }

    /// Checks bytes of replies, and tells `event` of each message that has its reply now.
    pub(super) fn hear_reply(
        &mut self,
        exchange: &Exchange,
        mut bytes: &[u8],
        mut event: impl FnMut(Event),
    ) -> Heard {
        let expected = exchange.expected();
        while !bytes.is_empty() {
            if self.sent_count == 0 {
                return Heard::Said(bytes.to_vec());
            }
            match self.reply.take(expected, &exchange.end, bytes) {
                Taken::All => {
                    self.reply_bytes += bytes.len() as u64;
                    return Heard::Fine;
                }
                Taken::Wrong => return Heard::Said(self.reply.said(expected, bytes)),
                Taken::Whole(count) => {
                    let received = self.reply_bytes + count as u64;
                    event(self.answered(received));
                    bytes = &bytes[count..];
                }
                Taken::Other(count) => {
                    let said = self.reply.said(expected, bytes);
                    let message = self.next_done();
                    event(Event::Refused { intended_ns: message.intended_ns, said });
                    bytes = &bytes[count..];
                }
            }
            let reply = std::mem::take(&mut self.reply);
            self.reply_bytes = 0;
            if reply.closes() {
                return Heard::Closes;
            }
        }
        Heard::Fine
    }

    /// The server has ended its stream: a reply may be whole with that.
    pub(super) fn hear_end(&mut self) -> Option<Event> {
        let wanted = self.reply.end().filter(|_| self.sent_count > 0)?;
        let received = std::mem::take(&mut self.reply_bytes);
        let reply = std::mem::take(&mut self.reply);
        if wanted {
            return Some(self.answered(received));
        }
        let said = reply.said(&[], &[]);
        Some(Event::Refused { intended_ns: self.next_done().intended_ns, said })
    }

    /// The connection has ended. What is outstanding afterwards is to be sent again, on another.
    pub(super) fn end(&mut self) -> Remains {
        let sent = std::mem::take(&mut self.sent_count);
        let truncated = self.reply_bytes > 0 && sent > 0;
        let mute = self.replies == 0;
        let hopeless = if mute { sent } else { usize::from(truncated) };
        let hopeless = self.outstanding.drain(..hopeless).map(|message| message.intended_ns);
        let remains = Remains { hopeless: hopeless.collect(), truncated, mute };
        (self.reply, self.reply_bytes, self.replies) = (Reply::default(), 0, 0);
        remains
    }

    /// The front message's reply is something else, and its connection is given up for that.
    pub(super) fn give_up_front(&mut self) -> Option<u64> {
        if self.sent_count == 0 {
            return None;
        }
        self.reply_bytes = 0;
        self.sent_count -= 1;
        self.outstanding.pop_front().map(|message| message.intended_ns)
    }

    fn answered(&mut self, received: u64) -> Event {
        let message = self.next_done();
        Event::Answered {
            intended_ns: message.intended_ns,
            sent: u64::from(message.bytes),
            received,
        }
    }

    /// The front message has a whole reply.
    fn next_done(&mut self) -> Message {
        self.sent_count -= 1;
        self.replies += 1;
        self.outstanding.pop_front().expect("a message was sent whose reply is whole")
    }
}

/// Whether these bytes are something that a server says to people: printable characters and ends of
/// lines.
fn is_text(bytes: &[u8]) -> bool {
    let printable = |byte: &u8| matches!(byte, b' '..=b'~' | b'\r' | b'\n' | b'\t');
    bytes.len() >= TEXT_MIN && bytes.iter().all(printable)
}

#[cfg(test)]
mod tests;
