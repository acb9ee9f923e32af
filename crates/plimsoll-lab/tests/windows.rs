//! The experiments that need no engine, on Windows or what stands for it.

#![cfg(windows)]

mod common;

use std::time::Duration;

use common::lab;
use plimsoll_lab::advice::doctor::{self, Facts};
use plimsoll_lab::experiments::accept;
use plimsoll_lab::experiments::backlog::{self, Options};
use plimsoll_lab::results::document;
use plimsoll_lab::results::{Side, StoppedBy};
use plimsoll_lab::worker::Keep;

/// A short run of one backlog.
fn one(requested: i64, options: Options) -> plimsoll_lab::results::BacklogRun {
    let options =
        Options { backlogs: vec![Some(requested)], timeout: Duration::from_secs(2), ..options };
    let (mut result, partial) = backlog::run(&lab(), &options).unwrap();
    assert!(!partial);
    result.runs.remove(0)
}

#[test]
fn a_full_queue_is_found_by_experiment() {
    let run = one(20, Options::default());
    assert_eq!((run.requested, run.granted), (Some(20), None), "what is granted is not told");
    // Windows may give more than was asked for, and Linux under Wine gives one more.
    assert!(run.queued.is_some_and(|queued| (20..=400).contains(&queued)), "{run:?}");
    assert_eq!((run.stopped_by, run.stopped_side), (StoppedBy::QueueFull, Some(Side::Server)));
    assert!(run.evidence.contains("counter-proof: with 8 accepted"), "{}", run.evidence);
    assert_eq!((run.overflows, run.drops, run.rotten), (None, None, None));
}

#[test]
fn what_was_asked_for_is_enough() {
    for keep in [Keep::Open, Keep::Close] {
        let run = one(100, Options { stop_at: Some(50), keep, ..Options::default() });
        assert_eq!((run.stopped_by, run.connects_ok), (StoppedBy::Limit, 50), "{run:?}");
    }
}

#[test]
fn the_acceptor_is_timed_and_the_depth_is_refused() {
    let options = accept::Options { repetitions: 1, ..accept::Options::default() };
    let (result, _) = accept::run(&lab(), &options).unwrap();
    assert!(result.accepts_per_second > 0.0, "{result:?}");
    let paced = accept::Options { burst: Some(10), ..options };
    assert_eq!(accept::run(&lab(), &paced).unwrap_err().exit_code(), 3);
}

#[test]
fn the_machine_says_what_it_is() {
    let doctor = doctor::examine(&Facts::read(), None);
    for name in
        ["dynamic port range (tcp)", "TcpTimedWaitDelay", "memory available", "non-paged pool"]
    {
        assert!(doctor.checks.iter().any(|check| check.name == name), "{name}");
    }
    let machine = document::machine();
    assert_eq!(machine.os, "windows");
    assert!(machine.memory_bytes.is_some_and(|bytes| bytes > 0) && !machine.kernel.is_empty());
}
