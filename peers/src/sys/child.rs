//! What is arranged for a child process between `fork` and `exec`: that it dies with its
//! parent, where it runs, what it may use.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;

use super::{check, pin};

/// Makes the child that this command starts die when the thread that started it dies.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let prepare = move || {
        // SAFETY: takes integers only; no memory of ours is involved.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        // Where the parent died before the line above, the signal never comes.
        if std::os::unix::process::parent_id() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls (prctl, getppid) and builds errors from
    // numbers: nothing that allocates or takes a lock between fork and exec.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Makes the child that this command starts run on one CPU, and die when the
/// thread that started it dies.
pub fn bind_child(command: &mut Command, cpu: usize) {
    die_with_parent(command);
    // SAFETY: the closure makes one system call (sched_setaffinity), on memory of its own
    // stack, and builds errors from numbers.
    unsafe {
        command.pre_exec(move || pin(cpu));
    }
}

/// Makes the child begin with this soft and hard limit of open descriptors.
pub fn limit_descriptors(command: &mut Command, limit: u64) {
    // SAFETY: the closure makes one system call (setrlimit), on memory of its own stack,
    // and builds errors from numbers.
    unsafe {
        command.pre_exec(move || super::lower_descriptor_limit(limit));
    }
}

/// Makes the child join a control group: `procs` is its `cgroup.procs`, open for writing.
pub fn join_cgroup(command: &mut Command, procs: File) {
    let prepare = move || {
        // "0" stands for the process that writes.
        // SAFETY: the kernel reads one byte of a constant; `procs` is owned by this
        // closure, so its descriptor is open.
        let count = unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) };
        if count == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes one system call (write) and builds errors from numbers.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Makes the child run in this network namespace (a descriptor of `/proc/…/ns/net`).
pub fn enter_network(command: &mut Command, namespace: Arc<OwnedFd>) {
    // SAFETY: the closure makes one system call (setns) with a descriptor that it owns a
    // share of, so that it is open, and builds errors from numbers.
    unsafe {
        command.pre_exec(move || {
            check(libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET)).map(drop)
        });
    }
}

/// A new network namespace: without interfaces that are up, and gone when its last process
/// and the last descriptor of it are.
///
/// # Errors
/// `EPERM` without root; what the thread or `/proc` reported.
pub fn new_network() -> io::Result<OwnedFd> {
    // On a thread of its own: the calling thread stays where it is.
    let thread = std::thread::Builder::new().spawn(|| {
        // SAFETY: takes an integer. Only this thread changes its namespace.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
    })?;
    thread.join().expect("the thread does not panic")
}

/// Waits until nobody else holds an exclusive lock of this file, and takes it until the
/// file is closed.
///
/// # Errors
/// What `flock(2)` reported.
pub fn lock(file: &File) -> io::Result<()> {
    // SAFETY: takes two integers; `file` is borrowed, so its descriptor is open.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }).map(drop)
}
