//! What the suite cannot ask of every driver.

use crate::driver::iocp::{Config, Iocp};
use crate::driver::loopback::real::{self, Bench};

fn bench(slots: u32) -> Bench<Iocp> {
    Bench::new(slots, |memory| Iocp::new(&Config::new(slots), memory).unwrap())
}

#[test]
fn what_works_here_is_told() {
    let bench = bench(1);
    let features = crate::driver::Driver::features(&bench.driver);
    assert_eq!(features.name, "iocp");
    println!("{}", features.notes.join("\n"));
}

#[test]
fn a_park_after_a_full_block_waits() {
    real::a_park_after_a_full_block_waits(bench(2));
}

#[test]
fn a_spinning_caller_is_served() {
    real::a_spinning_caller_is_served(bench(2));
}

#[test]
fn closing_completes_every_combination_once_and_the_close_last() {
    let driver = real::closing_completes_every_combination(bench(4));
    assert_eq!(driver.in_flight(), 0);
}
