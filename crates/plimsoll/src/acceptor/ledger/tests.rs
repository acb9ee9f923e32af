//! The ledger on real threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Ledger;
use crate::driver::Wake;

#[derive(Default)]
struct Wakes(AtomicU32);

impl Wake for Wakes {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn permits_go_to_the_least_loaded_and_end() {
    let wakes = Arc::new(Wakes::default());
    let ledger = Ledger::new(3, 2, wakes.clone());
    assert_eq!([ledger.take(), ledger.take(), ledger.take()], [Some(0), Some(1), Some(0)]);
    assert_eq!(ledger.take(), None);
    ledger.release(0);
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    ledger.release(0);
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "woken once");
    assert_eq!(ledger.take(), Some(0));
    assert_eq!(ledger.taken(), 2);
}

#[test]
fn a_permit_that_is_put_back_is_no_end_of_a_session() {
    let wakes = Arc::new(Wakes::default());
    let ledger = Ledger::new(2, 1, wakes.clone());
    assert_eq!([ledger.take(), ledger.take()], [Some(0), Some(0)]);
    ledger.watch();
    ledger.put_back(0);
    assert!(ledger.is_watched() && wakes.0.load(Ordering::Relaxed) == 0);
    assert_eq!(ledger.taken(), 1);
    ledger.release(0);
    assert!(!ledger.is_watched() && wakes.0.load(Ordering::Relaxed) == 1);
}

#[test]
fn the_limit_holds_under_a_race() {
    let ledger = Ledger::new(10, 4, Arc::new(Wakes::default()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    if let Some(shard) = ledger.take() {
                        assert!(ledger.taken() <= 10);
                        ledger.release(shard);
                    }
                }
            });
        }
    });
    assert_eq!(ledger.taken(), 0);
}
