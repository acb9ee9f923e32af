//! Who comes out of the accept queue, and may be gone already.
//!
//! A client that has reset its connection keeps its place in Linux' accept queue, and is brought by
//! `accept(2)` like any other. Asking of each whether it is still there costs 2 to 6 % of an accept and
//! a close on io_uring (0.1 to 0.4 µs of 4 to 8, plain or direct; Linux 6.18); so only those are asked about
//! that may have waited for long: who comes within [`SOON`] of the last time that the queue was seen
//! empty has not.

use std::time::Duration;

use super::Nanos;

/// Who is accepted within this time is not asked about: a reset that soon could as well have come
/// after the accept.
const SOON: Duration = Duration::from_millis(10);

/// What a driver knows of its accept queue.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// When it was last seen empty.
    empty_at: Option<Nanos>,
    /// Whether those who are accepted in the present wait are to be asked about, once that is known.
    doubtful: Option<bool>,
}

impl Backlog {
    /// A wait is over; the queue was seen empty in it, or was not.
    pub(super) fn end_wait(&mut self, now: Nanos, empty: bool) {
        self.doubtful = None;
        if empty {
            self.empty_at = Some(now);
        }
    }

    /// Whether somebody who was accepted just now may have waited for long. Reads the clock at most
    /// once a wait.
    pub(super) fn is_doubtful(&mut self, now: impl FnOnce() -> Nanos) -> bool {
        let empty_at = self.empty_at;
        *self.doubtful.get_or_insert_with(|| empty_at.is_none_or(|at| now().since(at) > SOON))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_soon_after_an_empty_queue_is_not_asked_about() {
        let mut backlog = Backlog::default();
        let at = |micros: u64| Nanos(micros * 1000);
        assert!(backlog.is_doubtful(|| at(1)), "nothing is known");
        backlog.end_wait(at(2), true);
        assert!(!backlog.is_doubtful(|| at(9_000)));
        backlog.end_wait(at(9_000), false);
        assert!(backlog.is_doubtful(|| at(11_000)));
        assert!(backlog.is_doubtful(|| at(0)), "asked once a wait");
        backlog.end_wait(at(12_000), true);
        assert!(!backlog.is_doubtful(|| at(12_001)));
    }
}
