//! Processor time of threads, and how long they waited for a processor.

use std::fs;
use std::time::Duration;

use plimsoll_kernel::process::Schedstat;

/// What a thread used, or what it used between two moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Time on a processor.
    pub(crate) cpu: Duration,
    /// Time ready to run, with every processor it may use busy with others; `None` where the system
    /// does not tell (`/proc/…/schedstat`).
    pub(crate) waited: Option<Duration>,
}

impl Usage {
    /// Of the calling thread, so far. Some 2 µs.
    pub(crate) fn of_this_thread() -> Self {
        // The processor's own clock is exact for a thread that runs at this moment.
        let waited = Schedstat::of_this_thread().map(|times| times.waited);
        Self { cpu: crate::sys::thread_cpu(), waited }
    }

    /// What was used since an earlier moment.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            waited: self.waited.zip(earlier.waited).map(|(now, before)| now.saturating_sub(before)),
        }
    }
}

/// Each thread of these processes, by its number, with what it has used so far. Some 10 µs a thread;
/// empty where the system does not tell.
pub(crate) fn of_processes(pids: impl Iterator<Item = u32>) -> Vec<(u32, Usage)> {
    let threads = pids.flat_map(|pid| {
        let folder = fs::read_dir(format!("/proc/{pid}/task")).ok();
        folder.into_iter().flatten().flatten()
    });
    threads
        .filter_map(|thread| {
            let number = thread.file_name().to_str()?.parse().ok()?;
            let times = Schedstat::of(&thread.path())?;
            Some((number, Usage { cpu: times.cpu, waited: Some(times.waited) }))
        })
        .collect()
}

/// Of the threads that are in both lists, the one that was on a processor or ready to run for
/// longest between them.
pub(crate) fn busiest(before: &[(u32, Usage)], after: &[(u32, Usage)]) -> Option<Usage> {
    let then = |number: u32| before.iter().find(|(other, _)| *other == number);
    after
        .iter()
        .filter_map(|(number, now)| Some(now.since(then(*number)?.1)))
        .max_by_key(|usage| usage.cpu + usage.waited.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_thread_is_found_by_what_was_added() {
        let ms = Duration::from_millis;
        let usage = |cpu, waited| Usage { cpu: ms(cpu), waited: Some(ms(waited)) };
        let before = [(1, usage(1000, 0)), (2, usage(0, 0))];
        let after = [(1, usage(1010, 0)), (2, usage(300, 100)), (3, usage(5000, 0))];
        assert_eq!(
            busiest(&before, &after),
            Some(usage(300, 100)),
            "thread 3 was not there before"
        );
        assert_eq!(busiest(&[], &after), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_that_computes_is_charged() {
        let own = std::process::id();
        let (before, threads) = (Usage::of_this_thread(), of_processes(std::iter::once(own)));
        while Usage::of_this_thread().since(before).cpu < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let busiest = busiest(&threads, &of_processes(std::iter::once(own))).expect("ourselves");
        assert!(busiest.cpu >= Duration::from_millis(10), "{busiest:?}");
    }
}
