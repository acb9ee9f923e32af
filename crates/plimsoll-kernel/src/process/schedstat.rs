//! What a thread has used of processors: `/proc/PID/task/TID/schedstat`
//! (`Documentation/scheduler/sched-stats.rst`).

use std::path::Path;
use std::time::Duration;

use crate::source;

/// A thread's times since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Schedstat {
    /// On a processor. Of a thread that runs at this moment it is as of its last tick.
    pub cpu: Duration,
    /// Ready to run, with every processor that it may use busy with others.
    pub waited: Duration,
}

impl Schedstat {
    /// Of the calling thread; `None` where the system does not tell. Some 2 to 6 µs.
    pub fn of_this_thread() -> Option<Self> {
        Self::of(Path::new("/proc/thread-self"))
    }

    /// Of the thread with this folder, `/proc/PID/task/TID`; `None` where it has ended, or the system
    /// does not tell.
    pub fn of(thread: &Path) -> Option<Self> {
        Self::parse(&source::read_optional(thread.join("schedstat"))?)
    }

    /// Nanoseconds on a processor, nanoseconds waiting for one, time slices.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_ascii_whitespace().map(str::parse);
        let mut time = || Some(Duration::from_nanos(numbers.next()?.ok()?));
        Some(Self { cpu: time()?, waited: time()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat_is_two_times_and_a_count() {
        let times = Schedstat::parse("1500 2500 7\n").unwrap();
        let expected = (Duration::from_nanos(1500), Duration::from_nanos(2500));
        assert_eq!((times.cpu, times.waited), expected);
        assert_eq!(Schedstat::parse(""), None);
        assert_eq!(Schedstat::parse("1 x 2"), None);
    }
}
