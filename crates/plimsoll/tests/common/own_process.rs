//! Tests that need a process of their own (for its log, its descriptors, or a network namespace): this
//! program runs one of its tests again, alone.

use std::process::Command;

const INSIDE: &str = "PLIMSOLL_TEST_INSIDE";

/// Runs the named test of this very program in a process of its own.
///
/// False: this is the inner run, which does the work. True: it was run and passed, or cannot be
/// run here, which is printed.
pub(crate) fn alone(test: &str) -> bool {
    run(test, None)
}

/// The same, in a network namespace of its own, which ends with it. Its loopback is down at first.
#[cfg(target_os = "linux")]
pub(crate) fn in_namespace(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped {test}: a network namespace needs root");
        return true;
    }
    run(test, Some("unshare"))
}

fn run(test: &str, wrapper: Option<&str>) -> bool {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == test) {
        return false;
    }
    let here = std::env::current_exe().expect("a test program has a path");
    let mut command = match wrapper {
        Some(wrapper) => {
            let mut command = Command::new(wrapper);
            command.args(["--net", "--"]).arg(here);
            command
        }
        None => Command::new(here),
    };
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(INSIDE, test);
    match command.output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "inside:\n{said}\n{errors}");
            assert!(said.contains("1 passed"), "{test} is not the name of a test:\n{said}");
            println!("{said}");
        }
        Err(error) => println!("skipped {test}: it cannot be run in a process of its own: {error}"),
    }
    true
}

/// Brings the namespace's loopback up or down.
#[cfg(target_os = "linux")]
pub(crate) fn set_loopback(state: &str) {
    let set = Command::new("ip").args(["link", "set", "lo", state]).status();
    assert!(set.is_ok_and(|status| status.success()), "ip(8) brings loopback {state}");
}
