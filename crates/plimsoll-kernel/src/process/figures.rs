//! What changes in a process from moment to moment.

use std::fs;
use std::time::Duration;

use super::{Schedstat, Stat, cpu_time, descriptors};
use crate::limits;
use crate::source;
use crate::{Error, Result};

/// Whether a process runs, waits, is stopped, or has ended: the letter of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// `R`: it runs, or is ready to run and waits for a CPU.
    Running,
    /// `S` and `I`: it waits for an event.
    Sleeping,
    /// `D`: it waits for the kernel, usually for a disk, and takes no signal.
    Blocked,
    /// `T`: it was stopped by a signal (SIGSTOP, SIGTSTP).
    Stopped,
    /// `t`: a debugger has stopped it.
    Traced,
    /// `Z` and `X`: it has ended.
    Ended,
    /// Another letter, of a kernel that is newer than this program.
    Other(char),
}

impl State {
    pub(super) fn of(letter: char) -> Self {
        match letter {
            'R' => Self::Running,
            'S' | 'I' => Self::Sleeping,
            'D' => Self::Blocked,
            'T' => Self::Stopped,
            't' => Self::Traced,
            'Z' | 'X' | 'x' => Self::Ended,
            other => Self::Other(other),
        }
    }

    /// The letter that `ps` shows.
    pub fn letter(self) -> char {
        match self {
            Self::Running => 'R',
            Self::Sleeping => 'S',
            Self::Blocked => 'D',
            Self::Stopped => 'T',
            Self::Traced => 't',
            Self::Ended => 'Z',
            Self::Other(letter) => letter,
        }
    }

    /// Whether it is stopped by a signal or by a debugger: it does nothing until it is continued.
    pub fn is_paused(self) -> bool {
        matches!(self, Self::Stopped | Self::Traced)
    }
}

/// The figures of one process at one moment. What is hidden from the caller, or not known on this
/// system, is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Its number.
    pub pid: u32,
    /// What it does now; of the thread that started it.
    pub state: Option<State>,
    /// When it was started, in ticks of the kernel since boot. With the number it names one process
    /// for ever.
    pub started: Option<u64>,
    /// Threads alive.
    pub threads: Option<u64>,
    /// CPU time so far: see [`cpu_time`](super::cpu_time).
    pub cpu: Option<Duration>,
    /// Time that its threads, those alive, have been ready to run and waited for a CPU.
    pub run_delay: Option<Duration>,
    /// Open descriptors: see [`descriptors`](super::descriptors).
    pub descriptors: Option<u64>,
    /// How many it may open: its soft `RLIMIT_NOFILE`.
    pub descriptors_limit: Option<u64>,
    /// Resident memory in bytes. [`Figures::of`] leaves it out: exact figures cost up to
    /// milliseconds, see [`rss`](super::rss).
    pub rss: Option<u64>,
}

impl Figures {
    /// Looks at process `pid`; some 15 µs, and 5 µs for each thread.
    ///
    /// # Errors
    /// [`Error::NoProcess`] if it is not there. A process that has ended and was not waited for is
    /// there, in the state [`State::Ended`].
    pub fn of(pid: u32) -> Result<Self> {
        if cfg!(windows) {
            let cpu = Some(cpu_time(pid)?);
            return Ok(Self { pid, cpu, descriptors: descriptors(pid).ok(), ..Self::default() });
        }
        let stat = Stat::read(pid)?;
        Ok(Self {
            pid,
            state: Some(State::of(stat.state)),
            started: Some(stat.started),
            threads: Some(stat.threads),
            cpu: cpu_time(pid).ok(),
            run_delay: run_delay(pid),
            descriptors: descriptors(pid).ok(),
            descriptors_limit: limits::nofile_of(pid).map(|limit| limit.soft),
            rss: None,
        })
    }
}

/// For how long all threads together were ready to run and had no CPU. `None` where the kernel does
/// not count it (`CONFIG_SCHED_INFO`).
fn run_delay(pid: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    // A thread that has ended meanwhile has no file any more.
    let waited = threads.filter_map(|thread| Some(Schedstat::of(&thread.path())?.waited));
    waited.reduce(|sum, one| sum + one)
}

/// The process that started `pid`.
///
/// # Errors
/// [`Error::NoProcess`] if `pid` is not there; [`Error::Unknown`] on other systems than Linux.
pub fn parent(pid: u32) -> Result<u32> {
    Ok(Stat::read(pid)?.parent)
}

/// The short name of a process, at most 15 bytes.
///
/// # Errors
/// [`Error::NoProcess`] if it is not there; [`Error::Unknown`] on other systems than Linux.
pub fn name(pid: u32) -> Result<String> {
    Ok(source::read_process(pid, "comm")?.trim_end().to_owned())
}

/// The file that a process executes.
///
/// # Errors
/// [`Error::Unreadable`] if it belongs to another user, is a thread of the kernel, or has ended.
pub fn executable(pid: u32) -> Result<std::path::PathBuf> {
    let path = format!("/proc/{pid}/exe");
    fs::read_link(&path).map_err(|cause| Error::Unreadable {
        path: path.into(),
        cause,
        cure: "run this as root or as the process's owner",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_keeps_its_letter() {
        for letter in ['R', 'S', 'D', 'T', 't', 'Z', 'P'] {
            assert_eq!(State::of(letter).letter(), letter);
        }
        assert!(State::of('T').is_paused() && State::of('t').is_paused());
        assert!(!State::of('S').is_paused());
        assert_eq!(State::of('X'), State::Ended);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_stopped_child_is_seen_stopped_and_then_ended() {
        use std::time::Instant;
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let signal = |signal| {
            let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
            rustix::process::kill_process(pid, signal).unwrap();
        };
        let wait_for = |state| {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let seen = Figures::of(child.id()).unwrap();
                if seen.state == Some(state) {
                    return seen;
                }
                assert!(Instant::now() < deadline, "{seen:?}");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        signal(rustix::process::Signal::STOP);
        let stopped = wait_for(State::Stopped);
        assert!(stopped.descriptors_limit.is_some_and(|limit| limit > 0), "{stopped:?}");
        assert!(stopped.run_delay.is_some() && stopped.cpu.is_some(), "{stopped:?}");
        signal(rustix::process::Signal::KILL);
        let ended = wait_for(State::Ended);
        assert_eq!(ended.started, stopped.started);
        child.wait().unwrap();
        assert!(matches!(Figures::of(child.id()), Err(Error::NoProcess { .. })));
    }
}
