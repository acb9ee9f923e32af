//! When the server stalls, when a reply is due, and how processor time is used up.

use std::time::{Duration, Instant};

use plimsoll_peers::sys;

use crate::options::{Slowness, Stall};

/// The times in which the server does nothing, counted from its first connection.
#[derive(Debug)]
pub(crate) struct Stalls {
    once: Option<Stall>,
    every: Option<Stall>,
    /// When the next stall of each kind begins; `None` before the first connection, and
    /// where there is no further one.
    next_once: Option<Instant>,
    next_of_every: Option<Instant>,
}

impl Stalls {
    pub(crate) fn new(slowness: &Slowness) -> Self {
        Self {
            once: slowness.stall,
            every: slowness.pause_every,
            next_once: None,
            next_of_every: None,
        }
    }

    /// The first connection has come.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.next_once = self.once.map(|stall| now + stall.at);
        self.next_of_every = self.every.map(|stall| now + stall.at);
    }

    /// When the next stall begins; `None` where none is ahead.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next_once.into_iter().chain(self.next_of_every).min()
    }

    /// The end of a stall that has begun by `now`; `None` where none has. Each is
    /// returned once.
    pub(crate) fn end_of_current(&mut self, now: Instant) -> Option<Instant> {
        if let (Some(start), Some(stall)) = (self.next_once, self.once)
            && start <= now
        {
            self.next_once = None;
            return Some(start + stall.length);
        }
        if let (Some(start), Some(stall)) = (self.next_of_every, self.every)
            && start <= now
        {
            let end = start + stall.length;
            self.next_of_every = Some(end + stall.at);
            return Some(end);
        }
        None
    }
}

/// Decides when a reply may leave: a delay for each, and a rate for all.
#[derive(Debug)]
pub(crate) struct Pacer {
    delay: Duration,
    interval: Duration,
    /// The rate allows no reply before this.
    free_at: Option<Instant>,
}

impl Pacer {
    pub(crate) fn new(delay: Duration, rate: Option<f64>) -> Self {
        let interval = rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate));
        Self { delay, interval, free_at: None }
    }

    /// Whether every reply leaves at once.
    pub(crate) fn is_idle(&self) -> bool {
        self.delay.is_zero() && self.interval.is_zero()
    }

    /// When the reply to a message that came `now` is due. Never earlier than the one
    /// before, so that replies form a queue.
    pub(crate) fn due(&mut self, now: Instant) -> Instant {
        let at = self.free_at.map_or(now, |free_at| free_at.max(now));
        self.free_at = Some(at + self.interval);
        at + self.delay
    }
}

/// Uses up processor time of the calling thread. Time in which the thread does not run
/// does not count.
pub(crate) fn burn(time: Duration) {
    if time.is_zero() {
        return;
    }
    let end = sys::thread_cpu_time() + time;
    while sys::thread_cpu_time() < end {
        for _ in 0..64 {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_rate_spaces_replies_and_a_delay_shifts_them() {
        let now = Instant::now();
        let mut pacer = Pacer::new(SECOND, Some(2.0));
        let due: Vec<Duration> = (0..3).map(|_| pacer.due(now) - now).collect();
        assert_eq!(due, [SECOND, SECOND * 3 / 2, SECOND * 2]);
        // A pause in which nothing came is not made up for.
        assert_eq!(pacer.due(now + SECOND * 10) - now, SECOND * 11);
    }

    #[test]
    fn stalls_begin_after_the_first_connection_and_are_told_once() {
        let stall = Stall { at: SECOND, length: SECOND * 10 };
        let now = Instant::now();
        let mut stalls =
            Stalls { once: Some(stall), every: None, next_once: None, next_of_every: None };
        assert_eq!(stalls.next(), None);
        stalls.begin(now);
        assert_eq!(stalls.end_of_current(now), None);
        assert_eq!(stalls.next(), Some(now + SECOND));
        assert_eq!(stalls.end_of_current(now + SECOND * 2), Some(now + SECOND * 11));
        assert_eq!(stalls.end_of_current(now + SECOND * 3), None);
    }

    #[test]
    fn pauses_repeat() {
        let stall = Stall { at: SECOND, length: SECOND };
        let now = Instant::now();
        let mut stalls =
            Stalls { once: None, every: Some(stall), next_once: None, next_of_every: None };
        stalls.begin(now);
        assert_eq!(stalls.end_of_current(now + SECOND), Some(now + SECOND * 2));
        assert_eq!(stalls.next(), Some(now + SECOND * 3));
    }
}
