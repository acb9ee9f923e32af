//! Each word that a load's verdict can be, from the facts that prove it.

use super::*;
use crate::observe::How;

/// A closed loop of 50 connections in which nothing is at a limit.
fn quiet() -> Facts {
    Facts {
        asked: 50,
        established: 50,
        depth: 1,
        due: 10_000,
        answered: 10_000,
        seconds: 2.0,
        seconds_asked: 2.0,
        timeout_seconds: 5.0,
        client: Some(Core { used: 0.3, waited: Some(0.01) }),
        server: Some(Core { used: 0.2, waited: Some(0.0) }),
        server_cores: Some(0.25),
        counted: Counted {
            retransmitted: Some(0),
            memory_pressures: Some(0),
            pruned: Some(0),
            listen_overflows: Some(0),
            tcp_pages: Some(100),
            tcp_mem: Some(Triple { min: 1000, default: 2000, max: 4000 }),
        },
        ..Facts::default()
    }
}

fn open() -> Facts {
    Facts { rate: Some(5000.0), depth: 0, ..quiet() }
}

fn errors_of<const N: usize>(errors: [(&str, u64); N]) -> BTreeMap<String, u64> {
    errors.map(|(name, count)| (name.to_owned(), count)).into()
}

fn said(text: &str) -> Vec<UnexpectedReply> {
    vec![UnexpectedReply { text: text.into(), count: 10 }]
}

fn ended(how: Option<How>) -> Ended {
    let name = Some("redis".into());
    Ended { pid: 42, name, is_main: true, how, oom_kills: Some(0), last_line: None }
}

#[track_caller]
fn is(facts: &Facts, by: StoppedBy, side: impl Into<Option<Side>>, words: &[&str]) {
    let verdict = judge(facts);
    assert_eq!((verdict.by, verdict.side), (by, side.into()), "{}", verdict.evidence);
    for word in words {
        assert!(verdict.evidence.contains(word), "no `{word}` in: {}", verdict.evidence);
    }
}

#[test]
fn an_open_loop_that_kept_its_rate_is_at_its_limit() {
    is(&open(), StoppedBy::Limit, None, &["kept its rate of 5,000/s", "30 % of a core"]);
    // What was on its way at the end is late, and no sign of anything.
    let facts = Facts { answered: 9950, late: 50, ..open() };
    is(&facts, StoppedBy::Limit, None, &["50 late"]);
    // A full core does not matter where the rate was kept; nor does memory pressure.
    let facts = Facts { client: Some(Core { used: 1.0, waited: None }), ..open() };
    is(&facts, StoppedBy::Limit, None, &[]);
    let facts = Facts { answered: 9000, late: 1000, ..open() };
    is(&facts, StoppedBy::Unknown, None, &["1,000 late"]);
    // Replies that take 200 ms are on their way at the end, 1,000 of them at 5,000 a second.
    let slow = Facts { at_middle: 1000, ..facts };
    is(&slow, StoppedBy::Limit, None, &["1,000 late (1,000 were on their way in the middle"]);
    // A server that falls behind has half of what is late in the end behind it in the middle.
    let behind = Facts { at_middle: 500, ..slow };
    is(&behind, StoppedBy::Unknown, None, &["1,000 late"]);
}

#[test]
fn nothing_at_a_limit_is_unknown_with_all_figures() {
    let words =
        ["10,000 of 10,000", "30 % of a core", "the server's 20 %", "0.25 cores", "none of these"];
    is(&quiet(), StoppedBy::Unknown, None, &words);
    let facts = Facts { server: None, ..quiet() };
    is(&facts, StoppedBy::Unknown, None, &["the server's is not known"]);
}

#[test]
fn a_full_core_is_the_side_s_whose_it_is() {
    let full = Core { used: 0.97, waited: Some(0.0) };
    let words = ["what the client can do", "97 % of a core"];
    is(&Facts { client: Some(full), ..quiet() }, StoppedBy::Cpu, Side::Client, &words);
    let facts = Facts { server: Some(full), ..quiet() };
    is(&facts, StoppedBy::Cpu, Side::Server, &["the server had no processor time left"]);
    let facts = Facts { client: Some(full), server: Some(full), ..quiet() };
    is(&facts, StoppedBy::Cpu, Side::Both, &[]);
    // A thread that waits for a core cannot do more either.
    let starved = Core { used: 0.5, waited: Some(0.45) };
    let facts = Facts { server: Some(starved), ..quiet() };
    is(&facts, StoppedBy::Cpu, Side::Server, &["waited for one 45 % of the time"]);
    // A client that never sleeps is no sign of anything.
    let facts = Facts { client: None, ..quiet() };
    is(&facts, StoppedBy::Unknown, None, &["--spin"]);
}

#[test]
fn memory_of_tcp_is_named_where_the_kernel_says_so() {
    let full = Some(Core { used: 1.0, waited: None });
    let mut facts = Facts { client: full, ..quiet() };
    facts.counted.memory_pressures = Some(3);
    facts.counted.pruned = Some(70);
    let words = ["TCPMemoryPressures +3", "PruneCalled +70", "1000 2000 4000"];
    is(&facts, StoppedBy::TcpMem, Side::Both, &words);
    facts.counted.memory_pressures = Some(0);
    facts.counted.tcp_pages = Some(2000);
    is(&facts, StoppedBy::TcpMem, Side::Both, &["up to 2000 pages"]);
    facts.counted.tcp_pages = Some(1999);
    is(&facts, StoppedBy::Cpu, Side::Client, &[]);
    facts.counted.tcp_mem = None;
    is(&facts, StoppedBy::Cpu, Side::Client, &[]);
}

#[test]
fn a_server_that_ended_is_named_before_anything_else() {
    let gone = Facts {
        seconds: 1.5,
        end: End::TargetGone,
        lost: 50,
        due: 10_050,
        down_seconds: Some(0.25),
        server_ended: Some(ended(Some(How::Signal(9)))),
        errors: errors_of([(crate::errno::REFUSED, 7)]),
        client: Some(Core { used: 1.0, waited: None }),
        ..quiet()
    };
    let words = [
        "after 1.5 s of 2 s",
        "process 42 (redis)",
        "signal 9",
        "7 connects were refused",
        "50 never",
    ];
    is(&gone, StoppedBy::ServerEnded, Side::Server, &words);
    let killed = Ended { oom_kills: Some(1), ..ended(None) };
    let oom = Facts { server_ended: Some(killed), ..gone.clone() };
    is(&oom, StoppedBy::ServerEnded, Side::Server, &["42 (redis) is gone", "oom_kill +1"]);
    // A worker that crashed and was replaced did no harm.
    let worker = Ended { is_main: false, ..ended(Some(How::Signal(11))) };
    let replaced = Facts { server_ended: Some(worker), ..open() };
    is(&replaced, StoppedBy::Limit, None, &[]);
    let unseen = Facts { server_ended: None, ..gone.clone() };
    is(&unseen, StoppedBy::ServerEnded, Side::Server, &["had been open for 250 ms"]);
    // Nobody refused, and no end was seen: the server closes what it accepts.
    let closes = Facts { errors: errors_of([("peer_ended", 9)]), ..unseen.clone() };
    is(&closes, StoppedBy::Unknown, Side::Server, &["peer_ended × 9"]);
    let full = Facts { said: said("busy"), ..closes };
    is(&full, StoppedBy::ServerLimit, Side::Server, &["\"busy\" × 10"]);
}

#[test]
fn interruption_comes_before_all() {
    let facts = Facts { end: End::Interrupted, seconds: 0.5, lost: 1, ..open() };
    is(&facts, StoppedBy::Interrupted, None, &["after 500 ms of 2 s"]);
}

#[test]
fn a_pause_to_the_end_is_a_timeout_with_the_state() {
    let to_the_end = Paused { seconds: 1.5, to_the_end: true };
    let facts = Facts { server_paused: to_the_end, answered: 4000, lost: 6000, ..open() };
    is(&facts, StoppedBy::Timeout, Side::Server, &["state T", "for 1.5 s", "6,000 never"]);
    // One that was over in time is told, and is no timeout.
    let over = Paused { seconds: 0.3, to_the_end: false };
    let facts = Facts { server_paused: over, ..open() };
    is(&facts, StoppedBy::Limit, None, &["state T) for 300 ms"]);
    let facts = Facts { server_paused: over, answered: 9000, late: 1000, ..open() };
    is(&facts, StoppedBy::Unknown, Side::Server, &["state T) for 300 ms", "1,000 late"]);
}

#[test]
fn replies_that_never_came_are_a_timeout() {
    let errors = errors_of([("reply_timeout", 6000)]);
    let facts = Facts { answered: 4000, lost: 6000, errors, ..open() };
    is(&facts, StoppedBy::Timeout, Side::Server, &["6,000 never", "reply_timeout"]);
    let errors = errors_of([("truncated_reply", 2)]);
    let facts = Facts { answered: 9998, lost: 2, errors, ..open() };
    is(&facts, StoppedBy::Unknown, Side::Server, &["truncated_reply × 2"]);
}

#[test]
fn connections_that_are_missing_say_why() {
    let missing = |errors: BTreeMap<String, u64>| Facts { established: 40, errors, ..quiet() };
    let full = Facts {
        said: said("-ERR max number of clients reached\\r\\n"),
        ..missing(errors_of([("unexpected_reply", 10)]))
    };
    let words = ["40 of 50", "max number of clients reached"];
    is(&full, StoppedBy::ServerLimit, Side::Server, &words);
    let closes = missing(errors_of([("peer_ended", 10)]));
    is(&closes, StoppedBy::ServerLimit, Side::Server, &["peer_ended × 10"]);
    let refused = missing(errors_of([(crate::errno::REFUSED, 10)]));
    is(&refused, StoppedBy::Refused, Side::Server, &[]);
    let silent = missing(errors_of([("connect_timeout", 10)]));
    is(&silent, StoppedBy::Timeout, None, &[]);
    let mut queue = silent;
    queue.counted.listen_overflows = Some(17);
    is(&queue, StoppedBy::QueueFull, Side::Server, &["ListenOverflows +17"]);
    let ports = missing(errors_of([(crate::errno::NO_PORT[0], 10)]));
    is(&ports, StoppedBy::Ports, Side::Client, &[]);
    is(&missing(errors_of([("EMFILE", 10)])), StoppedBy::Descriptors, Side::Client, &[]);
    is(&missing(errors_of([("ENFILE", 10)])), StoppedBy::Descriptors, Side::Both, &[]);
    is(&missing(BTreeMap::new()), StoppedBy::Unknown, None, &[]);
}

#[test]
fn a_server_that_says_it_is_busy_is_at_its_limit() {
    let busy = Facts { said: said("HTTP/1.1 503 Service Unavailable"), lost: 10, ..open() };
    is(&busy, StoppedBy::ServerLimit, Side::Server, &["503"]);
    let many = Facts { said: said("HTTP/1.1 429 Too Many Requests"), lost: 10, ..open() };
    is(&many, StoppedBy::ServerLimit, Side::Server, &["429"]);
    let missing = Facts { said: said("HTTP/1.1 404 Not Found"), lost: 10, ..open() };
    is(&missing, StoppedBy::Unknown, Side::Server, &["404"]);
}
