//! What is replied to what was received: an echo, an HTTP reply, an error; right or wrong.

use std::fmt::Write as _;

use crate::options::{HttpBody, Replies};

/// Turns received bytes into replies.
#[derive(Debug)]
pub(crate) struct Replier {
    options: Replies,
    close_after: Option<u64>,
    /// Bytes echoed on all connections, for the choice of the wrong ones.
    echoed: u64,
    /// Replies on all connections, for the choice of the errors.
    replied: u64,
}

/// A request of HTTP ends so; requests with a body are not understood.
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

impl Replier {
    pub(crate) fn new(options: Replies, close_after: Option<u64>) -> Self {
        Self { options, close_after, echoed: 0, replied: 0 }
    }

    /// Takes the messages that are whole out of `received`, in order.
    pub(crate) fn take_messages(&self, received: &mut Vec<u8>) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        loop {
            let length = if self.options.http.is_some() {
                received.windows(4).position(|four| four == END_OF_HEAD).map(|at| at + 4)
            } else if let Some(bytes) = self.options.message_bytes {
                Some(bytes as usize).filter(|bytes| *bytes <= received.len())
            } else {
                Some(received.len()).filter(|bytes| *bytes > 0)
            };
            let Some(length) = length else { return messages };
            let rest = received.split_off(length);
            messages.push(std::mem::replace(received, rest));
        }
    }

    /// The reply to a message, which is the `nth` on its connection, from 1.
    pub(crate) fn reply(&mut self, message: Vec<u8>, nth: u64) -> Vec<u8> {
        self.replied += 1;
        let mut reply = match (&self.options.http, &self.options.redis_error) {
            (Some(body), _) => self.http(*body, self.is_last(nth)),
            (None, Some(text)) if self.replied.is_multiple_of(self.options.error_every) => {
                format!("-{text}\r\n").into_bytes()
            }
            _ => self.echo(message),
        };
        if self.options.wrong_prefix {
            reply[0] = !reply[0];
        }
        reply
    }

    /// Whether a connection is closed after its `nth` reply.
    pub(crate) fn is_last(&self, nth: u64) -> bool {
        self.close_after.is_some_and(|last| nth >= last)
    }

    fn echo(&mut self, mut message: Vec<u8>) -> Vec<u8> {
        if let Some(every) = self.options.wrong_byte_every {
            // The first wrong one is the byte number `every`.
            let first = every - 1 - self.echoed % every;
            message.iter_mut().skip(first as usize).step_by(every as usize).for_each(|byte| {
                *byte = !*byte;
            });
        }
        self.echoed += message.len() as u64;
        message
    }

    fn http(&self, body: HttpBody, last: bool) -> Vec<u8> {
        let status = self.options.http_status;
        let reason = match status {
            200 => "OK",
            404 => "Not Found",
            503 => "Service Unavailable",
            _ => "Status",
        };
        let content = "x".repeat(self.options.body_bytes);
        let mut text = format!("HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\n");
        if last {
            text.push_str("Connection: close\r\n");
        }
        // Writing to a String cannot fail.
        let _ = match body {
            HttpBody::Length => write!(text, "Content-Length: {}\r\n\r\n{content}", content.len()),
            HttpBody::Chunked => {
                text.push_str("Transfer-Encoding: chunked\r\n\r\n");
                let (first, second) = content.split_at(content.len() / 2);
                [first, second].iter().filter(|chunk| !chunk.is_empty()).for_each(|chunk| {
                    let _ = write!(text, "{:x}\r\n{chunk}\r\n", chunk.len());
                });
                write!(text, "0\r\n\r\n")
            }
        };
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::options::Options;

    fn replier(flags: &[&str]) -> Replier {
        let options = Options::parse_from([&["faulty"], flags].concat());
        Replier::new(options.replies, options.ends.close_after_replies)
    }

    #[test]
    fn every_nth_byte_is_wrong_across_messages() {
        let mut replier = replier(&["--wrong-byte-every", "5"]);
        assert_eq!(replier.reply(vec![0; 4], 1), [0, 0, 0, 0]);
        assert_eq!(replier.reply(vec![0; 7], 2), [255, 0, 0, 0, 0, 255, 0]);
        assert_eq!(replier.reply(vec![0; 4], 3), [0, 0, 0, 255]);
    }

    #[test]
    fn messages_of_a_fixed_size() {
        let replier = replier(&["--message-bytes", "3"]);
        let mut received = b"abcdefgh".to_vec();
        assert_eq!(replier.take_messages(&mut received), [b"abc", b"def"]);
        assert_eq!(received, b"gh");
    }

    #[test]
    fn http_replies_say_their_length_and_their_end() {
        let mut replier = replier(&[
            "--http",
            "chunked",
            "--body-bytes",
            "5",
            "--http-status",
            "503",
            "--close-after-replies",
            "2",
        ]);
        let mut received = b"GET / HTTP/1.1\r\n\r\nGET / HT".to_vec();
        assert_eq!(replier.take_messages(&mut received).len(), 1);
        assert_eq!(received, b"GET / HT");
        let text = String::from_utf8(replier.reply(Vec::new(), 1)).expect("text");
        assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\n2\r\nxx\r\n3\r\nxxx\r\n0\r\n\r\n"), "{text}");
        assert!(!text.contains("Connection: close"), "{text}");
        let text = String::from_utf8(replier.reply(Vec::new(), 2)).expect("text");
        assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
    }

    #[test]
    fn errors_come_as_often_as_asked() {
        let mut replier = replier(&["--redis-error", "ERR full", "--error-every", "2"]);
        assert_eq!(replier.reply(b"a".to_vec(), 1), b"a");
        assert_eq!(replier.reply(b"a".to_vec(), 2), b"-ERR full\r\n");
    }
}
