//! What the engine's tests share.

#![allow(dead_code, reason = "each program and system uses a part of it")]

use plimsoll::{Choice, Profile};

pub(crate) mod log;
pub(crate) mod own_process;

/// The drivers of this system.
pub(crate) fn drivers() -> Vec<Choice> {
    if cfg!(target_os = "linux") {
        vec![Choice::Uring, Choice::Ready]
    } else if cfg!(windows) {
        vec![Choice::Iocp]
    } else {
        vec![Choice::Ready]
    }
}

/// A driver and a profile: how a server works.
pub(crate) type Way = (Choice, Profile);

/// Runs a test in every way. What it runs on is printed, for a test that fails.
pub(crate) fn each_way(test: impl Fn(Way)) {
    for driver in drivers() {
        for profile in [Profile::Connections, Profile::Throughput] {
            println!("on {driver:?}, {profile:?}");
            test((driver, profile));
        }
    }
}
