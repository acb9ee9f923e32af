use std::time::Duration;

use super::*;
use crate::worker::exchange::{Payload, ReplyEnd};

fn exchange(expect: &str, end: ReplyEnd) -> Exchange {
    let send = Payload::Bytes(b"x".into());
    Exchange { send, expect: Some(expect.into()), end, timeout_ms: 1000 }
}

/// A conversation in which so many requests of one byte were sent, intended at 0, 1, ….
fn asked(count: u64) -> Conversation {
    let mut conversation = Conversation::default();
    for number in 0..count {
        conversation.queue(number, 1);
        conversation.mark_sent();
    }
    conversation
}

fn replies(exchange: &Exchange, count: u64, pieces: &[&[u8]]) -> (usize, Heard) {
    let mut conversation = asked(count);
    let (mut done, mut last) = (0, Heard::Fine);
    for piece in pieces {
        last = conversation.hear_reply(exchange, piece, |_| done += 1);
    }
    (done, last)
}

#[test]
fn a_message_that_is_not_sent_awaits_no_reply() {
    let pong = exchange("+PONG\r\n", ReplyEnd::Expectation);
    let mut conversation = asked(1);
    conversation.queue(1, 1);
    assert!(conversation.awaits_reply());
    assert_eq!(conversation.hear_reply(&pong, b"+PONG\r\n", |_| ()), Heard::Fine);
    assert_eq!((conversation.outstanding(), conversation.awaits_reply()), (1, false));
}

fn said(text: &str) -> Heard {
    Heard::Said(text.into())
}

#[test]
fn replies_end_with_the_expectation() {
    let pong = exchange("+PONG\r\n", ReplyEnd::Expectation);
    assert_eq!(replies(&pong, 2, &[b"+PONG\r\n+PO", b"NG\r\n"]), (2, Heard::Fine));
    assert_eq!(replies(&pong, 1, &[b"-ERR"]), (0, said("-ERR")));
    assert_eq!(replies(&pong, 1, &[b"+P", b"ANIC"]), (0, said("+PANIC")));
    assert_eq!(replies(&pong, 1, &[b"+PONG\r\n-ERR idle\r\n"]), (1, said("-ERR idle\r\n")));
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
fn a_status_other_than_success_costs_its_message_and_not_the_connection() {
    let get = Exchange::http("/", "x", Duration::from_secs(1));
    let mut conversation = asked(3);
    let mut events = Vec::new();
    let bytes = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n\
        HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
    assert_eq!(conversation.hear_reply(&get, bytes, |one| events.push(one)), Heard::Closes);
    let busy = Event::Refused { intended_ns: 0, said: b"HTTP/1.1 503 Busy".into() };
    let answered = Event::Answered { intended_ns: 1, sent: 1, received: 59 };
    assert_eq!(events, [busy, answered]);
    assert_eq!(conversation.end(), Remains::default(), "the third is sent again");
    assert_eq!(conversation.outstanding(), 1);
}

#[test]
fn a_reply_may_end_with_its_connection() {
    let get = Exchange::http("/", "x", Duration::from_secs(1));
    let mut conversation = asked(1);
    let bytes = b"HTTP/1.0 200 OK\r\n\r\nhi";
    assert_eq!(conversation.hear_reply(&get, bytes, |_| panic!("it goes on")), Heard::Fine);
    let answered = Event::Answered { intended_ns: 0, sent: 1, received: 21 };
    assert_eq!(conversation.hear_end(), Some(answered));
    assert_eq!(conversation.hear_end(), None);
    assert_eq!(conversation.end(), Remains::default());
}

fn echo(sizes: &[u32]) -> (Conversation, Vec<u8>) {
    let mut conversation = Conversation::default();
    conversation.begin(3);
    let mut all = Vec::new();
    for (number, &size) in sizes.iter().enumerate() {
        conversation.queue(number as u64, size);
    }
    while let Some(size) = conversation.next_bytes() {
        let mut message = vec![0; size as usize];
        conversation.write_echo(&mut message);
        conversation.mark_sent();
        all.extend(message);
    }
    (conversation, all)
}

#[test]
fn an_echo_is_checked_byte_by_byte() {
    let (mut conversation, mut bytes) = echo(&[10, 5]);
    let mut done = Vec::new();
    assert_eq!(conversation.hear_echo(&bytes[..4], |one| done.push(one)), Heard::Fine);
    assert_eq!(done, []);
    assert_eq!(conversation.hear_echo(&bytes[4..12], |one| done.push(one)), Heard::Fine);
    assert_eq!(done, [Event::Answered { intended_ns: 0, sent: 10, received: 10 }]);
    bytes[14] ^= 1;
    assert_eq!(conversation.hear_echo(&bytes[12..], |one| done.push(one)), Heard::Corrupt(1));
    let (mut conversation, bytes) = echo(&[3]);
    assert_eq!(conversation.hear_echo(&bytes, |_| ()), Heard::Fine);
    assert_eq!(conversation.hear_echo(b"\0", |_| ()), Heard::Unasked(1));
}

#[test]
fn text_in_place_of_an_echo_is_no_corrupt_echo() {
    let full = b"-ERR max number of clients reached\r\n";
    let (mut conversation, bytes) = echo(&[64]);
    assert_eq!(conversation.hear_echo(full, |_| ()), Heard::Said(full.to_vec()));
    // Within an echo the same bytes are wrong bytes.
    assert_eq!(conversation.hear_echo(&bytes[..8], |_| ()), Heard::Fine);
    assert!(matches!(conversation.hear_echo(full, |_| ()), Heard::Corrupt(_)));
    // Nobody had asked yet.
    let mut unasked = Conversation::default();
    unasked.begin(1);
    assert_eq!(unasked.hear_echo(full, |_| ()), Heard::Said(full.to_vec()));
}

#[test]
fn what_has_no_byte_of_its_reply_is_sent_again() {
    let (mut conversation, bytes) = echo(&[8, 8, 8, 8]);
    let mut done = 0;
    assert_eq!(conversation.hear_echo(&bytes[..8], |_| done += 1), Heard::Fine);
    assert_eq!(conversation.end(), Remains::default());
    conversation.begin(4);
    assert_eq!((done, conversation.outstanding()), (1, 3));
    let mut again = vec![0; 8];
    conversation.write_echo(&mut again);
    conversation.mark_sent();
    assert_ne!(again, bytes[8..16], "the stream begins anew");
    let mut intended = None;
    let heard = conversation.hear_echo(&again, |one| match one {
        Event::Answered { intended_ns, .. } => intended = Some(intended_ns),
        Event::Refused { .. } => panic!("it is an echo"),
    });
    assert_eq!((heard, intended), (Heard::Fine, Some(1)), "its intended time is kept");
}

#[test]
fn a_part_of_a_reply_or_none_at_all_makes_messages_hopeless() {
    let (mut conversation, bytes) = echo(&[8, 8, 8]);
    assert_eq!(conversation.hear_echo(&bytes[..12], |_| ()), Heard::Fine);
    let cut = Remains { hopeless: vec![1], truncated: true, mute: false };
    assert_eq!(conversation.end(), cut);
    assert_eq!(conversation.outstanding(), 1);
    // It was not sent on the connection that ended: it stays.
    conversation.begin(5);
    let mute = Remains { hopeless: vec![], truncated: false, mute: true };
    assert_eq!(conversation.end(), mute);
    assert_eq!(conversation.outstanding(), 1);
    let (mut conversation, _) = echo(&[8, 8]);
    let mute = Remains { hopeless: vec![0, 1], truncated: false, mute: true };
    assert_eq!(conversation.end(), mute);
    assert_eq!(conversation.outstanding(), 0);
}
