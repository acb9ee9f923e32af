//! The ledger under `shuttle`: in thousands of orders of its threads' steps, at random and with few
//! changes of priority (PCT), no limit is passed, no permit is lost, and an acceptor that found
//! none is woken.
//!
//! `permits.rs` is built here a second time, on shuttle's atomics, which only work inside of a run.

use std::sync::Arc;

use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;

use self::permits::Ledger;
use crate::driver::Wake;

#[allow(dead_code, reason = "the engine calls more of it than these tests")]
#[allow(clippy::duplicate_mod, reason = "on other atomics")]
#[path = "permits.rs"]
mod permits;

mod sync {
    pub(super) use shuttle::sync::atomic::{AtomicBool, AtomicU32, Ordering};
}

/// Random schedules, and as many with priorities.
const SCHEDULES: usize = 10_000;
/// Changes of priority in one schedule (Burckhardt et al., "A randomized scheduler with
/// probabilistic guarantees of finding bugs", 2010): a lost wake-up needs two.
const DEPTH: usize = 3;

/// A driver that sleeps: wakes are kept until it waits.
#[derive(Default)]
struct Doorbell {
    rung: Mutex<bool>,
    bell: Condvar,
}

impl Wake for Doorbell {
    fn wake(&self) {
        *self.rung.lock().unwrap() = true;
        self.bell.notify_one();
    }
}

impl Doorbell {
    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.bell.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// Runs it in all the schedules. A deadlock is a failure, and shuttle prints the schedule.
fn in_every_order(run: fn()) {
    shuttle::check_random(run, SCHEDULES);
    shuttle::check_pct(run, SCHEDULES, DEPTH);
}

/// An acceptor that sleeps whenever there is no permit, and two shards whose connections end. A
/// wake-up that is lost leaves it asleep, with nobody to wake it.
#[test]
#[ignore = "long: cargo test --profile simulation -p plimsoll --lib -- --ignored"]
fn a_starved_acceptor_is_woken() {
    in_every_order(|| {
        const CONNECTIONS: usize = 5;
        let doorbell = Arc::new(Doorbell::default());
        let ledger = Arc::new(Ledger::new(2, 2, doorbell.clone()));
        let mut closers = Vec::new();
        for _ in 0..CONNECTIONS {
            let shard = loop {
                match ledger.take() {
                    Some(shard) => break shard,
                    None => doorbell.wait(),
                }
            };
            assert!(ledger.taken() <= 2);
            let ledger = ledger.clone();
            closers.push(thread::spawn(move || ledger.release(shard)));
        }
        for closer in closers {
            closer.join().unwrap();
        }
        assert_eq!((ledger.taken(), ledger.loads()), (0, 0));
    });
}

/// An acceptor that is short of descriptors goes on as soon as a connection has ended.
#[test]
#[ignore = "long: cargo test --profile simulation -p plimsoll --lib -- --ignored"]
fn a_watching_acceptor_hears_of_the_next_release() {
    in_every_order(|| {
        let doorbell = Arc::new(Doorbell::default());
        let ledger = Arc::new(Ledger::new(4, 1, doorbell.clone()));
        let held: Vec<u32> = (0..2).map(|_| ledger.take().expect("four are free")).collect();
        ledger.watch();
        let closer = {
            let ledger = ledger.clone();
            thread::spawn(move || held.into_iter().for_each(|shard| ledger.release(shard)))
        };
        while ledger.is_watched() {
            doorbell.wait();
        }
        assert!(ledger.taken() < 2);
        closer.join().unwrap();
        assert_eq!((ledger.taken(), ledger.loads()), (0, 0));
    });
}

/// Even where several threads take, no more are out than there are, and none is lost.
#[test]
#[ignore = "long: cargo test --profile simulation -p plimsoll --lib -- --ignored"]
fn the_limit_is_never_passed() {
    in_every_order(|| {
        let ledger = Arc::new(Ledger::new(2, 3, Arc::new(Doorbell::default())));
        let out = Arc::new(Mutex::new(0));
        let takers: Vec<_> = (0..3)
            .map(|_| {
                let (ledger, out) = (ledger.clone(), out.clone());
                thread::spawn(move || {
                    for _ in 0..2 {
                        let Some(shard) = ledger.take() else { continue };
                        let now = {
                            let mut out = out.lock().unwrap();
                            *out += 1;
                            *out
                        };
                        assert!(now <= 2 && ledger.taken() <= 2, "{now} of 2 permits");
                        *out.lock().unwrap() -= 1;
                        ledger.release(shard);
                    }
                })
            })
            .collect();
        for taker in takers {
            taker.join().unwrap();
        }
        assert_eq!((ledger.taken(), ledger.loads()), (0, 0));
    });
}
