//! Every verdict of a backlog run, on invented counters.

use plimsoll_kernel::limits::{Limits, Triple};
use plimsoll_kernel::sockstat::Sockstat;

use super::*;
use crate::observe::Memory;

fn counted(overflows: u64, again: u64) -> Snapshot {
    let counters =
        [("ListenOverflows", overflows), ("ListenDrops", overflows), ("TCPSynRetrans", again)];
    Snapshot {
        netstat: Some(counters.into_iter().collect()),
        limits: Limits { local_ports: Some((40_000, 40_999)), ..Limits::default() },
        ..Snapshot::default()
    }
}

fn errors(name: &str, count: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([(name.to_owned(), count)])
}

/// A run that goes on: nothing has ended it yet.
fn facts<'a>(
    before: &'a Snapshot,
    now: &'a Snapshot,
    errors: &'a BTreeMap<String, u64>,
) -> Facts<'a> {
    Facts {
        before,
        now,
        interrupted: false,
        stop_at: None,
        granted: Some(128),
        depth: Some(50),
        deepest: Some(50),
        established: 50,
        errors,
        met: None,
        still: Duration::from_millis(100),
        patience: Duration::from_secs(6),
        no_sources: None,
    }
}

#[track_caller]
fn stops(facts: &Facts<'_>, by: StoppedBy, side: Option<Side>, words: &[&str]) {
    let stop = after(facts).expect("something ends it");
    assert_eq!((stop.by, stop.side), (by, side), "{}", stop.evidence);
    for word in words {
        assert!(stop.evidence.contains(word), "no `{word}` in: {}", stop.evidence);
    }
}

#[test]
fn a_run_that_nothing_ends_goes_on() {
    let (before, now) = (counted(0, 0), counted(0, 0));
    let none = BTreeMap::new();
    assert_eq!(after(&facts(&before, &now, &none)), None);
    // An overflow of another listener of this namespace, while there is room in ours.
    let others = counted(9, 3);
    assert_eq!(after(&facts(&before, &others, &none)), None);
    // A limit of the machine that is far away is not named.
    let mut wide = counted(0, 0);
    wide.memory = Some(Memory { total: 1 << 34, available: 1 << 33 });
    wide.limits.nf_conntrack_count = Some(10);
    wide.limits.nf_conntrack_max = Some(100_000);
    assert_eq!(guard(&wide), None);
    assert_eq!(after(&facts(&before, &wide, &none)), None);
}

#[test]
fn a_full_queue_is_named_with_its_counters() {
    let (before, now) = (counted(3, 0), counted(10, 0));
    let none = BTreeMap::new();
    let full = Facts {
        depth: Some(129),
        deepest: Some(129),
        established: 131,
        ..facts(&before, &now, &none)
    };
    let words = ["held 129", "granted 128", "one more", "ListenOverflows +7", "2 more clients see"];
    stops(&full, StoppedBy::QueueFull, Some(Side::Server), &words);
    assert!(!queue_full(&full).evidence.contains("somaxconn"), "it does not bind");
    let mut other = now.clone();
    other.limits.somaxconn = Some(128);
    let capped = Facts { now: &other, ..full };
    assert!(queue_full(&capped).evidence.contains("net.core.somaxconn (128)"));
}

#[test]
fn what_was_asked_for_and_an_interrupt_have_no_side() {
    let (before, now) = (counted(0, 0), counted(0, 0));
    let none = BTreeMap::new();
    let reached = Facts { stop_at: Some(50), ..facts(&before, &now, &none) };
    stops(&reached, StoppedBy::Limit, None, &["50 connections"]);
    let interrupted = Facts { interrupted: true, ..reached };
    stops(&interrupted, StoppedBy::Interrupted, None, &["interrupted after 50"]);
}

#[test]
fn what_a_worker_meets_is_named() {
    let (before, now) = (counted(0, 0), counted(0, 5));
    let (refused, late) = (errors(errno::REFUSED, 16), errors(errno::TIMED_OUT, 16));
    let (none, other) = (errors("ENOBUFS", 1), errors("EHOSTUNREACH", 16));
    for (why, errors, by, side, word) in [
        (Why::Failing, &refused, StoppedBy::Refused, Some(Side::Server), errno::REFUSED),
        (Why::Failing, &late, StoppedBy::Timeout, None, "5 SYNs were sent again"),
        (Why::Failing, &other, StoppedBy::Unknown, None, "EHOSTUNREACH × 16"),
        (Why::Memory, &none, StoppedBy::Memory, Some(Side::Client), "ENOBUFS"),
        (Why::Files, &none, StoppedBy::Descriptors, Some(Side::Both), "no file is left"),
    ] {
        let met = Facts { met: Some(why), ..facts(&before, &now, errors) };
        stops(&met, by, side, &[word]);
    }
}

#[test]
fn limits_of_the_machine_are_named_where_nothing_is_answered() {
    let (before, now) = (counted(0, 0), counted(0, 4));
    let late = errors(errno::TIMED_OUT, 16);
    let silent = |now| Facts { still: Duration::from_millis(6_250), ..facts(&before, now, &late) };
    stops(&silent(&now), StoppedBy::Timeout, None, &["for 6.2 s", "4 SYNs"]);
    let mut tracked = now.clone();
    tracked.limits.nf_conntrack_count = Some(1_000);
    tracked.limits.nf_conntrack_max = Some(1_000);
    stops(&silent(&tracked), StoppedBy::Conntrack, Some(Side::Both), &["nf_conntrack_max 1000"]);
    let mut paged = now.clone();
    paged.limits.tcp_mem = Some(Triple { min: 1, default: 2, max: 3_000 });
    paged.sockstat = Some(Sockstat {
        sockets_used: 0,
        tcp_inuse: 0,
        tcp6_inuse: None,
        orphans: 0,
        time_wait: 0,
        allocated: 0,
        memory_pages: 3_000,
    });
    stops(&silent(&paged), StoppedBy::TcpMem, Some(Side::Both), &["3000 pages", "tcp_mem"]);
    let failing = Facts { met: Some(Why::Failing), ..facts(&before, &paged, &late) };
    stops(&failing, StoppedBy::TcpMem, Some(Side::Both), &["tcp_mem"]);
}

#[test]
fn sources_without_ports_are_the_clients_side() {
    let (before, now) = (counted(0, 0), counted(0, 0));
    let none = BTreeMap::new();
    let sources = Sources {
        named: "127.0.0.1",
        used: 1,
        destination: "127.0.0.1:7000".parse().expect("an address"),
        destinations: 2,
        barren: Some(8),
    };
    let out = Facts { no_sources: Some(sources), established: 998, ..facts(&before, &now, &none) };
    let words = ["998 connections", "gives 1000 ports", "other 2 are taken", "2 destinations", "8"];
    stops(&out, StoppedBy::Ports, Some(Side::Client), &words);
}

#[test]
fn a_refusal_is_the_queue_when_room_in_it_helps() {
    let nothing = Snapshot::default();
    let refusals = errors(errno::REFUSED, 16);
    let facts = Facts {
        granted: None,
        depth: Some(200),
        deepest: Some(200),
        established: 200,
        met: Some(Why::Failing),
        ..facts(&nothing, &nothing, &refusals)
    };
    let refused = after(&facts).expect("a worker has met something");
    assert_eq!(refused.by, StoppedBy::Refused);
    let proof = Proof { moved: true, says: "the next client connected".to_owned() };
    let full = proven(refused.clone(), &facts, &proof);
    assert_eq!((full.by, full.side), (StoppedBy::QueueFull, Some(Side::Server)));
    for part in ["full", errno::REFUSED, "200 connections stood", "next client connected"] {
        assert!(full.evidence.contains(part), "{part}: {}", full.evidence);
    }
    let proof = Proof { moved: false, says: "the next client failed still".to_owned() };
    let not = proven(refused, &facts, &proof);
    assert_eq!(not.by, StoppedBy::Refused);
    assert!(not.evidence.contains("failed still"), "{}", not.evidence);
}
