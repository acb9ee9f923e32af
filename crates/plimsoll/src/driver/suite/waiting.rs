//! Waiting: deadlines, wakes, the clock.

use std::time::Duration;

use super::harness::Harness;
use super::{Plan, World};
use crate::driver::{Driver, Nanos};

/// Long, but not for ever: a wait that is not ended shows as a failure.
const LONG: Duration = Duration::from_secs(10);

/// One wait; nothing completes.
fn wait<W: World>(harness: &mut Harness<W>, until: Option<Nanos>) -> Nanos {
    let mut out = Vec::with_capacity(8);
    let now = harness.driver().wait(until, &mut out).expect("the driver goes on");
    assert!(out.is_empty(), "nothing was posted: {out:?}");
    now
}

/// How many waits it takes until the deadline.
fn waits_until<W: World>(harness: &mut Harness<W>, deadline: Nanos) -> u32 {
    let mut waits = 1;
    while wait(harness, Some(deadline)) < deadline {
        waits += 1;
    }
    waits
}

pub(in crate::driver) fn wait_until_a_deadline_returns<W: World>() {
    let mut harness = Harness::<W>::idle(Plan::default());
    let start = harness.driver().now();
    let deadline = start.after(Duration::from_millis(20));
    // A wait may return early, with nothing; but not for ever.
    let waits = waits_until(&mut harness, deadline);
    assert!(waits <= 10, "{waits} waits for one deadline");
    assert!(harness.driver().now().since(start) < LONG);
    harness.end();
}

pub(in crate::driver) fn wait_in_the_past_does_not_block<W: World>() {
    let mut harness = Harness::<W>::listening(Plan::default());
    let peer = harness.open(0);
    let start = harness.driver().now();
    for _ in 0..10 {
        wait(&mut harness, Some(Nanos(0)));
        wait(&mut harness, Some(start));
    }
    assert!(harness.driver().now().since(start) < LONG);
    drop(peer);
    harness.close(0);
    harness.end();
}

pub(in crate::driver) fn the_clock_goes_forward<W: World>() {
    let mut harness = Harness::<W>::idle(Plan::default());
    let mut last = harness.driver().now();
    for step in 0..20 {
        let after = wait(&mut harness, Some(last.after(Duration::from_micros(step * 50))));
        assert!(after >= last, "{after:?} after {last:?}");
        assert!(harness.driver().now() >= after);
        last = after;
    }
    harness.end();
}

pub(in crate::driver) fn a_wake_ends_a_wait<W: World>() {
    let mut harness = Harness::<W>::idle(Plan::default());
    let start = harness.driver().now();
    let wake = Duration::from_millis(20);
    harness.world.wake_later(wake);
    let (mut now, mut waits) = (start, 0);
    while now.since(start) < wake {
        now = wait(&mut harness, Some(start.after(LONG)));
        waits += 1;
        assert!(waits <= 10, "{waits} waits for one wake");
    }
    assert!(now.since(start) < LONG / 2, "the wake came after {:?}", now.since(start));
    harness.end();
}

pub(in crate::driver) fn a_wake_ends_a_wait_for_ever<W: World>() {
    let mut harness = Harness::<W>::idle(Plan::default());
    let start = harness.driver().now();
    harness.world.wake_later(Duration::from_millis(5));
    let _ = wait(&mut harness, None);
    assert!(harness.driver().now().since(start) < LONG);
    // Whatever ended that wait, the wake is used up before the world goes.
    harness.linger(Duration::from_millis(10));
    harness.end();
}

pub(in crate::driver) fn a_wake_before_the_wait_ends_it<W: World>() {
    let mut harness = Harness::<W>::idle(Plan::default());
    let start = harness.driver().now();
    harness.driver().waker().wake();
    let now = wait(&mut harness, Some(start.after(LONG)));
    assert!(now.since(start) < LONG / 2, "the wake was lost");
    harness.end();
}

pub(in crate::driver) fn many_wakes_are_one<W: World>() {
    let mut harness = Harness::<W>::idle(Plan::default());
    let waker = harness.driver().waker();
    let start = harness.driver().now();
    for _ in 0..1000 {
        waker.wake();
    }
    let now = wait(&mut harness, Some(start.after(LONG)));
    assert!(now.since(start) < LONG / 2, "the wakes were lost");
    let deadline = now.after(Duration::from_millis(20));
    let waits = waits_until(&mut harness, deadline);
    assert!(waits <= 4, "{waits} waits: old wakes still end new ones");
    harness.end();
}

pub(in crate::driver) fn a_waker_outlives_its_driver<W: World>() {
    let mut harness = Harness::<W>::idle(Plan::default());
    let waker = harness.driver().waker();
    harness.end();
    waker.wake();
}
