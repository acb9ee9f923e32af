//! The backlog experiment against the real kernel.

#![cfg(target_os = "linux")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{in_namespace, lab, set_up_namespace};
use plimsoll_lab::experiments::backlog::{Options, run};
use plimsoll_lab::results::{Side, StoppedBy};
use plimsoll_lab::worker::Keep;
use plimsoll_lab::{Lab, Progress};

#[test]
fn a_full_queue_holds_one_more_than_granted() {
    let options = Options { backlogs: vec![Some(128), None, Some(0)], ..Options::default() };
    let (result, partial) = run(&lab(), &options).unwrap();
    assert!(!partial);
    assert_eq!(result.queued_max, 129);
    // Rust's standard library listens with 128.
    for (run, granted) in result.runs.iter().zip([128, 128, 0]) {
        assert_eq!(run.granted, Some(granted));
        assert_eq!(run.queued, Some(granted + 1));
        assert_eq!((run.stopped_by, run.stopped_side), (StoppedBy::QueueFull, Some(Side::Server)));
        assert!(run.overflows.is_some_and(|count| count > 0), "{run:?}");
        assert!(run.evidence.contains("ListenOverflows +"), "{}", run.evidence);
        assert!(run.connects_ok > granted, "{run:?}");
        assert_eq!(run.rotten, Some(0));
        assert!(run.errors.is_empty(), "{:?}", run.errors);
    }
}

#[test]
fn what_was_asked_for_is_enough() {
    let options = Options { backlogs: vec![Some(128)], stop_at: Some(50), ..Options::default() };
    let run = run(&lab(), &options).unwrap().0.runs.remove(0);
    assert_eq!((run.stopped_by, run.connects_ok), (StoppedBy::Limit, 50));
    assert_eq!((run.queued, run.overflows.is_some()), (Some(50), true));
}

#[test]
fn entries_whose_client_is_gone_are_counted() {
    for keep in [Keep::Reset, Keep::Close] {
        let options = Options { backlogs: vec![Some(100)], keep, ..Options::default() };
        let run = run(&lab(), &options).unwrap().0.runs.remove(0);
        assert_eq!(run.stopped_by, StoppedBy::QueueFull, "{run:?}");
        assert_eq!(run.queued, Some(101), "{run:?}");
        assert_eq!(run.rotten, Some(101), "{run:?}");
    }
}

#[test]
fn one_source_address_ends_at_its_ports() {
    match in_namespace("one_source_address_ends_at_its_ports") {
        None => set_up_namespace(&[
            ("net.core.somaxconn", "5000"),
            ("net.ipv4.ip_local_port_range", "40000 41999"),
        ]),
        Some(_) => return,
    }
    let options = Options {
        backlogs: vec![Some(5000)],
        sources: Some("127.0.0.1".parse().unwrap()),
        ..Options::default()
    };
    let one = run(&lab(), &options).unwrap().0.runs.remove(0);
    assert_eq!(
        (one.stopped_by, one.stopped_side),
        (StoppedBy::Ports, Some(Side::Client)),
        "{one:?}"
    );
    assert_eq!((one.queued, one.connects_ok), (Some(2000), 2000));
    assert!(one.evidence.contains("40000–41999 gives 2000 ports"), "{}", one.evidence);
    assert!(one.errors.contains_key("EADDRNOTAVAIL"), "{:?}", one.errors);

    // One port serves many destinations: two of them (a block's ends are left out) hold twice as many.
    let block = Options { destinations: Some("127.0.0.4/30".parse().unwrap()), ..options.clone() };
    let two = run(&lab(), &block).unwrap().0.runs.remove(0);
    assert_eq!((two.stopped_by, two.queued), (StoppedBy::Ports, Some(4000)), "{two:?}");
    assert_eq!((two.source_addresses, two.destination_addresses), (1, 2));

    // The counter-proof: with more addresses the queue is the limit.
    let options = Options { sources: None, ..options };
    let all = run(&lab(), &options).unwrap().0.runs.remove(0);
    assert_eq!((all.stopped_by, all.queued), (StoppedBy::QueueFull, Some(5001)), "{all:?}");
    assert!(all.source_addresses >= 3, "{all:?}");
    let bytes = all.kernel_bytes_per_queued.expect("root reads /proc/slabinfo");
    assert!((2_500.0..3_200.0).contains(&bytes), "{bytes} in {:?}", all.kernel_objects);
}

#[test]
fn ipv6_works_too() {
    let options =
        Options { backlogs: vec![Some(20)], address: "::1".parse().unwrap(), ..Options::default() };
    let run = run(&lab(), &options).unwrap().0.runs.remove(0);
    assert_eq!((run.stopped_by, run.queued), (StoppedBy::QueueFull, Some(21)), "{run:?}");
}

#[test]
fn what_cannot_be_is_refused() {
    let too_large = Options { backlogs: vec![Some(1 << 40)], ..Options::default() };
    assert_eq!(run(&lab(), &too_large).unwrap_err().exit_code(), 2);
    let mixed = Options { sources: Some("::1".parse().unwrap()), ..Options::default() };
    assert_eq!(run(&lab(), &mixed).unwrap_err().exit_code(), 2);
    // TEST-NET-1 (RFC 5737): an address that this machine does not have.
    let elsewhere = Options { address: "192.0.2.1".parse().unwrap(), ..Options::default() };
    assert_eq!(run(&lab(), &elsewhere).unwrap_err().exit_code(), 3);
    let nowhere = Lab { executable: "/nonexistent".into(), ..lab() };
    assert_eq!(run(&nowhere, &Options::default()).unwrap_err().exit_code(), 3);
}

/// Interrupts at the first sign of progress.
struct Impatient(Arc<AtomicBool>);

impl Progress for Impatient {
    fn step(&self, _done: u64, _total: Option<u64>, _line: &str) {
        self.0.store(true, Ordering::Relaxed);
    }
    fn warn(&self, _line: &str) {}
}

#[test]
fn an_interrupt_leaves_what_was_measured() {
    let mut lab = lab();
    lab.progress = Arc::new(Impatient(Arc::clone(&lab.interrupted)));
    let (result, partial) = run(&lab, &Options::default()).unwrap();
    assert!(partial);
    assert_eq!(result.runs.len(), 1);
}
