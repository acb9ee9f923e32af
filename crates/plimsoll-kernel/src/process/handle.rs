//! A process that is watched for its end, whoever started it.

use crate::{Error, Result};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It ended by itself, with this exit code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

/// What became of a watched process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It has not ended.
    Runs,
    /// It has ended; how is `None` where this kernel does not tell it (before Linux 6.15, or while
    /// another user's process waits for its parent).
    Ended(Option<Exit>),
}

/// A process by a descriptor of it (`pidfd_open(2)`, Linux 5.3): its number may be given to another
/// process after its end, and this still means the first one.
#[derive(Debug)]
pub struct Handle {
    pid: u32,
    #[cfg(target_os = "linux")]
    descriptor: std::os::fd::OwnedFd,
}

impl Handle {
    /// The process that has the number `pid` now. One descriptor as long as it lives.
    ///
    /// # Errors
    /// [`Error::NoProcess`] if it is not there; [`Error::Unknown`] on other systems than Linux.
    #[cfg(target_os = "linux")]
    pub fn open(pid: u32) -> Result<Self> {
        use rustix::process::{Pid, PidfdFlags, pidfd_open};
        let number = Pid::from_raw(pid.cast_signed()).ok_or(Error::NoProcess { pid })?;
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(descriptor) => Ok(Self { pid, descriptor }),
            Err(rustix::io::Errno::SRCH) => Err(Error::NoProcess { pid }),
            Err(cause) => Err(Error::Unreadable {
                path: format!("/proc/{pid}").into(),
                cause: cause.into(),
                cure: "allow more descriptors, or run it on Linux 5.3 or newer",
            }),
        }
    }

    /// The process that has the number `pid` now.
    ///
    /// # Errors
    /// Always [`Error::Unknown`]: this system has no such descriptor.
    #[cfg(not(target_os = "linux"))]
    pub fn open(pid: u32) -> Result<Self> {
        Err(Error::Unknown { what: format!("a descriptor of process {pid}") })
    }

    /// The number that it had when it was opened.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has ended, and how. One or two system calls; does not wait.
    #[cfg(target_os = "linux")]
    pub fn fate(&self) -> Fate {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut polled = [PollFd::new(&self.descriptor, PollFlags::IN)];
        match poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(0) | Err(_) => Fate::Runs,
            Ok(_) => Fate::Ended(
                crate::system::exit_of_reaped(&self.descriptor)
                    .or_else(|| super::Stat::read(self.pid).ok()?.exit())
                    .map(decode),
            ),
        }
    }

    /// Whether it has ended.
    #[cfg(not(target_os = "linux"))]
    pub fn fate(&self) -> Fate {
        Fate::Runs
    }
}

/// Takes a status apart as `wait(2)` reports it: the signal in the low seven bits, else the code in
/// the second byte.
#[cfg(target_os = "linux")]
fn decode(status: i32) -> Exit {
    match status & 0x7f {
        0 => Exit::Code((status >> 8) & 0xff),
        signal => Exit::Signal(signal),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    fn wait_for_end(handle: &Handle) -> Option<Exit> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match handle.fate() {
                Fate::Ended(how) => return how,
                Fate::Runs => assert!(Instant::now() < deadline),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_signal_that_ended_a_process_is_told_before_and_after_its_parent_has_waited() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let handle = Handle::open(child.id()).unwrap();
        assert_eq!(handle.fate(), Fate::Runs);
        child.kill().unwrap();
        assert_eq!(wait_for_end(&handle), Some(Exit::Signal(9)));
        child.wait().unwrap();
        // Kernels before 6.15 do not tell it any more.
        assert!(matches!(handle.fate(), Fate::Ended(None | Some(Exit::Signal(9)))));
        assert!(matches!(Handle::open(child.id()), Err(Error::NoProcess { .. })));
    }

    #[test]
    fn an_exit_code_is_told() {
        let mut command = Command::new("sh");
        let mut child =
            command.args(["-c", "read line; exit 7"]).stdin(Stdio::piped()).spawn().unwrap();
        let handle = Handle::open(child.id()).unwrap();
        drop(child.stdin.take());
        assert_eq!(wait_for_end(&handle), Some(Exit::Code(7)));
        child.wait().unwrap();
    }

    #[test]
    fn a_status_is_taken_apart() {
        assert_eq!(decode(0x0700), Exit::Code(7));
        // With the bit for a core file.
        assert_eq!(decode(0x8b), Exit::Signal(11));
    }
}
