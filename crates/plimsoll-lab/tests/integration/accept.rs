//! `accept` against the real kernel.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use plimsoll_lab::experiments::accept::{self, Options};
use plimsoll_lab::{Lab, Quiet};

use crate::common::{Turn, turn};

/// One at a time: overflows are counted for the whole network namespace.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> (Turn, MutexGuard<'static, ()>) {
    (turn(module_path!()), ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

fn lab() -> Lab {
    Lab {
        progress: Arc::new(Quiet),
        interrupted: Arc::new(AtomicBool::new(false)),
        executable: PathBuf::new(),
    }
}

#[test]
fn a_run_without_arrivals_gives_rates() {
    let _alone = alone();
    let options = Options { repetitions: 2, ..Options::default() };
    let (result, partial) = accept::run(&lab(), &options).unwrap();
    assert!(!partial);
    println!("{}", accept::render_text(&result));
    assert_eq!(result.rates.len(), 4);
    for row in &result.rates {
        assert_eq!(row.repetitions.len(), 2);
        assert!(row.accepts_per_second > 1000.0, "{row:?}");
    }
    assert!(result.accepts_per_second > 10_000.0);
    assert!(result.connects_per_second.unwrap() > 1000.0);
    assert!(result.cpu_us_per_accept.unwrap() > 0.0);
    assert_eq!((result.backlog_needed, result.verified, result.arrivals), (None, None, 0));
    assert!(accept::render_text(&result).lines().all(|line| line.chars().count() <= 100));
}

#[test]
fn a_paced_run_needs_a_backlog() {
    let _alone = alone();
    let options = Options {
        rate: Some(2000.0),
        burst: Some(100),
        duration: Duration::from_millis(400),
        repetitions: 1,
        ..Options::default()
    };
    let (result, _) = accept::run(&lab(), &options).unwrap();
    println!("{}", accept::render_text(&result));
    assert!(result.arrivals >= 300 + 400, "{}", result.arrivals);
    assert!(result.backlog_needed.unwrap() >= 1);
    assert!(result.queued_max.is_some());
    assert!(result.longest_stall_us.unwrap() > 0.0);
    assert!(result.verified.is_some());
    assert!(!result.samples.is_empty() && !result.reasoning.is_empty());
    let text = accept::render_text(&result);
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn a_backlog_too_small_overflows_and_is_counted() {
    let _alone = alone();
    let options = Options {
        burst: Some(3000),
        backlog: Some(1),
        duration: Duration::from_millis(200),
        repetitions: 1,
        ..Options::default()
    };
    let (result, _) = accept::run(&lab(), &options).unwrap();
    println!("{}", accept::render_text(&result));
    assert_eq!(result.backlog, Some(1));
    assert!(result.overflows.unwrap() > 0);
    assert!(result.unanswered > 0);
}

#[test]
fn an_interrupted_run_returns_what_it_has() {
    let _alone = alone();
    let lab = lab();
    lab.interrupted.store(true, Ordering::Relaxed);
    let (result, partial) = accept::run(&lab, &Options::default()).unwrap();
    assert!(partial);
    assert!(result.rates.iter().all(|row| row.repetitions.is_empty()));
}
