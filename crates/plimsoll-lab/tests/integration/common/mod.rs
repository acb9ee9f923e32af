//! What the lab's tests share.

#![allow(dead_code, reason = "each system uses a part of it")]

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plimsoll_lab::{Lab, Quiet};

/// A lab whose executable is the worker alone.
pub(crate) fn lab() -> Lab {
    Lab {
        progress: Arc::new(Quiet),
        interrupted: Arc::default(),
        executable: env!("CARGO_BIN_EXE_lab-worker").into(),
    }
}

/// The module whose tests run, and how many of them do.
static RUNNING: Mutex<(&str, u32)> = Mutex::new(("", 0));
static TURN_ENDED: Condvar = Condvar::new();

/// The right of one module's tests to run. It ends when the last of them drops its own.
pub(crate) struct Turn;

fn running() -> MutexGuard<'static, (&'static str, u32)> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until no test of another module runs. Tests of one module run beside each other.
///
/// An experiment reads counters of the whole network namespace (overflows) and of the whole machine
/// (slabs). Experiments of another kind at the same time would change them. The test runner starts
/// tests in the order of their modules, so few tests wait.
pub(crate) fn turn(module: &'static str) -> Turn {
    let mut running = running();
    while running.1 > 0 && running.0 != module {
        running = TURN_ENDED.wait(running).unwrap_or_else(PoisonError::into_inner);
    }
    *running = (module, running.1 + 1);
    Turn
}

impl Drop for Turn {
    fn drop(&mut self) {
        running().1 -= 1;
        TURN_ENDED.notify_all();
    }
}

/// Waits until something is so; fails after 20 s.
pub(crate) fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(Instant::now() < deadline, "waited 20 s until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a process runs (one that has ended and is not waited for does not).
pub(crate) fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

/// Runs the named test of this very program in a network namespace of its own, which ends with it.
/// `None`: this is the inner run. `Some(true)`: it was run and passed. `Some(false)`: skipped.
#[cfg(target_os = "linux")]
pub(crate) fn in_namespace(test: &str) -> Option<bool> {
    const INSIDE: &str = "PLIMSOLL_TEST_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped {test}: a network namespace needs root");
        return Some(false);
    }
    let here = std::env::current_exe().expect("a test program has a path");
    let run = std::process::Command::new("unshare")
        .args(["--net", "--"])
        .arg(here)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output();
    match run {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "in the namespace:\n{said}\n{errors}");
            assert!(said.contains("1 passed"), "{test} is not the name of a test:\n{said}");
            Some(true)
        }
        Err(error) => {
            eprintln!("skipped {test}: unshare(1) cannot be run: {error}");
            Some(false)
        }
    }
}

/// Inside a namespace: loopback up, and settings of it.
pub(crate) fn set_up_namespace(settings: &[(&str, &str)]) {
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.is_ok_and(|status| status.success()), "ip(8) brings loopback up");
    for (name, value) in settings {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}
