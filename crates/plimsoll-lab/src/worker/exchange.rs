//! A request, and how to know its reply: what a connection is asked to prove that it is served.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::http::HttpReply;

/// A request, and the reply by which a connection proves that somebody serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// What is sent.
    pub send: Payload,
    /// What the reply must begin with; `None` for nothing in particular. For [`Payload::Random`] the
    /// reply is the payload itself.
    pub expect: Option<Vec<u8>>,
    /// Where the reply ends.
    pub end: ReplyEnd,
    /// How long one reply to a probe may take; a load has a time limit of its own.
    pub timeout_ms: u64,
}

/// What a request consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// So many random bytes, others on each connection, to be echoed. A load chooses their number
    /// itself.
    Random(usize),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// How the end of a reply is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplyEnd {
    /// With the last byte of what is expected; where nothing is, with whatever comes first.
    Expectation,
    /// After so many bytes.
    Bytes(usize),
    /// With the first occurrence of these bytes, which may be in what is expected.
    Until(Vec<u8>),
    /// As HTTP/1 says: `Content-Length`, chunks, or the end of the connection.
    Http,
}

impl Exchange {
    /// An echo of 16 random bytes.
    pub fn echo(timeout: Duration) -> Self {
        Self {
            send: Payload::Random(16),
            expect: None,
            end: ReplyEnd::Expectation,
            timeout_ms: timeout.as_millis() as u64,
        }
    }

    /// `GET path` over HTTP/1.1, on a connection that is kept. The reply must have a status of
    /// success (2xx).
    pub fn http(path: &str, host: &str, timeout: Duration) -> Self {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: plimsoll/{}\r\nAccept: */*\r\n\
             Connection: keep-alive\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        );
        Self {
            send: Payload::Bytes(request.into_bytes()),
            expect: None,
            end: ReplyEnd::Http,
            timeout_ms: timeout.as_millis() as u64,
        }
    }

    /// Whether the whole reply is compared, and not only its beginning or its status.
    pub(crate) fn compares_whole_replies(&self) -> bool {
        match (&self.send, &self.end) {
            (Payload::Random(_), _) => true,
            (_, ReplyEnd::Expectation) => !self.expected().is_empty(),
            (_, ReplyEnd::Bytes(count)) => *count == self.expected().len(),
            (_, ReplyEnd::Until(_) | ReplyEnd::Http) => false,
        }
    }

    /// The bytes that are sent; `None` for an echo, whose bytes are made up as it goes.
    pub fn request(&self) -> Option<&[u8]> {
        match &self.send {
            Payload::Bytes(bytes) => Some(bytes),
            Payload::Random(_) => None,
        }
    }

    /// What the reply must begin with; empty for nothing in particular.
    pub(crate) fn expected(&self) -> &[u8] {
        self.expect.as_deref().unwrap_or_default()
    }
}

/// How much of one reply is there. Each byte is looked at once, however the reply is cut.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// Bytes so far.
    pub(crate) seen: u64,
    matched_end: usize,
    http: Option<Box<HttpReply>>,
}

/// What became of bytes offered to a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// All are part of it, and it goes on.
    All,
    /// It is whole after this many.
    Whole(usize),
    /// It is whole after this many, and is another one than was asked for: an HTTP status other than
    /// success. The connection can go on.
    Other(usize),
    /// It does not begin as it should, and nothing tells where it ends.
    Wrong,
}

impl Reply {
    /// Takes the next bytes of a reply that must begin with `expected` and ends as `end` says.
    pub(crate) fn take(&mut self, expected: &[u8], end: &ReplyEnd, bytes: &[u8]) -> Taken {
        if *end == ReplyEnd::Http {
            return self.take_http(bytes);
        }
        let expected = &expected[(self.seen as usize).min(expected.len())..];
        let common = expected.len().min(bytes.len());
        if expected[..common] != bytes[..common] {
            return Taken::Wrong;
        }
        let whole = match end {
            ReplyEnd::Until(mark) if !mark.is_empty() => self.find_end(mark, bytes),
            ReplyEnd::Bytes(count) => {
                let rest = (*count as u64).saturating_sub(self.seen);
                (rest <= bytes.len() as u64).then_some(rest as usize)
            }
            // Nothing in particular: whatever came is the reply.
            ReplyEnd::Expectation | ReplyEnd::Until(_) if self.seen == 0 && expected.is_empty() => {
                (!bytes.is_empty()).then_some(bytes.len())
            }
            ReplyEnd::Expectation | ReplyEnd::Until(_) => {
                (common == expected.len()).then_some(common)
            }
            ReplyEnd::Http => unreachable!("it was taken above"),
        };
        self.seen += bytes.len() as u64;
        whole.map_or(Taken::All, Taken::Whole)
    }

    fn take_http(&mut self, bytes: &[u8]) -> Taken {
        self.seen += bytes.len() as u64;
        let reply = self.http.get_or_insert_default();
        match reply.take(bytes) {
            Ok(None) => Taken::All,
            Ok(Some(count)) if reply.is_success() => Taken::Whole(count),
            Ok(Some(count)) => Taken::Other(count),
            Err(_) => Taken::Wrong,
        }
    }

    /// The connection has ended. Whether the reply is whole with that: `Some(true)` where it is the
    /// one that was asked for.
    pub(crate) fn end(&self) -> Option<bool> {
        let reply = self.http.as_ref().filter(|reply| reply.end())?;
        Some(reply.is_success())
    }

    /// Whether the server closes the connection after this reply, as it said itself.
    pub(crate) fn closes(&self) -> bool {
        self.http.as_ref().is_some_and(|reply| reply.closes())
    }

    /// What the server said instead of the expected reply, `bytes` being the last that were taken of
    /// it: an HTTP reply's first line, or the bytes from the reply's beginning.
    pub(crate) fn said(&self, expected: &[u8], bytes: &[u8]) -> Vec<u8> {
        match &self.http {
            Some(reply) => reply.first_line().to_vec(),
            // What was taken before was as expected.
            None => [&expected[..(self.seen as usize).min(expected.len())], bytes].concat(),
        }
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

    fn took(expected: &[u8], end: &ReplyEnd, pieces: &[&[u8]]) -> Taken {
        let mut reply = Reply::default();
        let mut last = Taken::All;
        for piece in pieces {
            last = reply.take(expected, end, piece);
        }
        last
    }

    #[test]
    fn a_reply_ends_with_the_expectation_or_with_whatever_comes() {
        let end = ReplyEnd::Expectation;
        assert_eq!(took(b"+PONG", &end, &[b"+PO"]), Taken::All);
        assert_eq!(took(b"+PONG", &end, &[b"+PO", b"NG\r\n"]), Taken::Whole(2));
        assert_eq!(took(b"+PONG", &end, &[b"+PO", b"X"]), Taken::Wrong);
        assert_eq!(took(b"", &end, &[b"anything"]), Taken::Whole(8));
        assert_eq!(took(b"", &ReplyEnd::Until(Vec::new()), &[b"x"]), Taken::Whole(1));
    }

    #[test]
    fn an_http_reply_ends_by_its_head_and_says_its_status() {
        let mut reply = Reply::default();
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP";
        assert_eq!(reply.take(b"", &ReplyEnd::Http, ok), Taken::Whole(ok.len() - 4));
        assert!(!reply.closes());
        let mut reply = Reply::default();
        let busy = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert_eq!(reply.take(b"", &ReplyEnd::Http, busy), Taken::Other(busy.len()));
        assert!(reply.closes());
        assert_eq!(reply.said(b"", b""), b"HTTP/1.1 503 Busy");
        let mut reply = Reply::default();
        assert_eq!(reply.take(b"", &ReplyEnd::Http, b"HTTP/1.0 200 OK\r\n\r\nhi"), Taken::All);
        assert_eq!(reply.end(), Some(true));
        assert_eq!(Reply::default().end(), None);
    }

    #[test]
    fn what_was_said_instead_is_whole() {
        let mut reply = Reply::default();
        assert_eq!(reply.take(b"+PONG", &ReplyEnd::Expectation, b"+P"), Taken::All);
        assert_eq!(reply.take(b"+PONG", &ReplyEnd::Expectation, b"ANIC"), Taken::Wrong);
        assert_eq!(reply.said(b"+PONG", b"ANIC"), b"+PANIC");
    }

    #[test]
    fn a_reply_ends_after_bytes_or_with_a_mark_across_pieces() {
        assert_eq!(took(b"+", &ReplyEnd::Bytes(7), &[b"+PONG", b"\r\n+"]), Taken::Whole(2));
        let mark = ReplyEnd::Until(b"\r\n".to_vec());
        assert_eq!(took(b"+", &mark, &[b"+PONG\r", b"\n"]), Taken::Whole(1));
        assert_eq!(took(b"+", &mark, &[b"-ERR\r\n"]), Taken::Wrong);
    }
}
