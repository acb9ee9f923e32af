//! One line of progress for a whole survey: each experiment's progress is a part of it, it never goes
//! back, and it says how much time is left.
//!
//! The survey knows its experiments beforehand, and about how long each takes on a quiet machine. An
//! experiment that has begun counts those before it as done, whether they were run, skipped or failed.
//! The time left is that of what is not done, multiplied by how much slower than expected this machine
//! was so far.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Progress, units};

/// What the line counts: thousandths of the expected time.
const WHOLE: u64 = 1000;
/// Seconds, measured or not, that are taken to have passed as expected: so the first second of a survey
/// does not decide what is said of its end.
const EXPECTED_SO_FAR: f64 = 2.0;

/// An experiment of the plan.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Planned {
    /// Its name.
    pub(super) name: String,
    /// About how long it takes.
    pub(super) seconds: f64,
}

impl Planned {
    pub(super) fn new(name: impl Into<String>, seconds: f64) -> Self {
        Self { name: name.into(), seconds: seconds.max(0.01) }
    }
}

/// How far a survey is: pure arithmetic, told what happens.
#[derive(Debug, Clone)]
struct Course {
    plan: Vec<Planned>,
    /// Expected seconds of what is over for certain.
    before: f64,
    /// Expected seconds of the experiment that runs.
    current: f64,
    /// The largest share that was told.
    share: f64,
}

impl Course {
    fn new(plan: Vec<Planned>) -> Self {
        Self { plan, before: 0.0, current: 0.0, share: 0.0 }
    }

    fn total(&self) -> f64 {
        self.plan.iter().map(|planned| planned.seconds).sum()
    }

    /// An experiment begins. One that is not in the plan takes no part of the line.
    fn begin(&mut self, name: &str) {
        let Some(at) = self.plan.iter().position(|planned| planned.name == name) else { return };
        self.before = self.plan[..at].iter().map(|planned| planned.seconds).sum();
        self.current = self.plan[at].seconds;
    }

    /// The running experiment is at `done` of `total`. Returns the share of the whole survey, which
    /// never falls and never passes 1.
    fn step(&mut self, done: u64, total: Option<u64>) -> f64 {
        let within = match total {
            Some(total) if total > 0 => done.min(total) as f64 / total as f64,
            _ => 0.0,
        };
        let share = (self.before + self.current * within) / self.total().max(f64::MIN_POSITIVE);
        self.share = self.share.max(share.clamp(0.0, 1.0));
        self.share
    }

    /// About how many seconds are left after `elapsed` of them.
    fn left(&self, elapsed: f64) -> f64 {
        let done = self.share * self.total();
        let slower = (elapsed + EXPECTED_SO_FAR) / (done + EXPECTED_SO_FAR);
        (self.total() - done) * slower
    }
}

/// The survey's progress line.
pub(super) struct Whole {
    inner: Arc<dyn Progress>,
    started: Instant,
    course: Mutex<Course>,
}

impl Whole {
    pub(super) fn new(inner: Arc<dyn Progress>, plan: Vec<Planned>) -> Self {
        Self { inner, started: Instant::now(), course: Mutex::new(Course::new(plan)) }
    }

    /// An experiment begins.
    pub(super) fn begin(&self, name: &str) {
        // A panic of another thread leaves numbers that are still numbers.
        self.course.lock().unwrap_or_else(PoisonError::into_inner).begin(name);
        self.step(0, None, &format!("{name}: begins"));
    }
}

impl Progress for Whole {
    fn step(&self, done: u64, total: Option<u64>, line: &str) {
        let elapsed = self.started.elapsed().as_secs_f64();
        let (share, left) = {
            let mut course = self.course.lock().unwrap_or_else(PoisonError::into_inner);
            (course.step(done, total), course.left(elapsed))
        };
        let line = format!("{line}; {} so far, {}", seconds(elapsed), about(left));
        self.inner.step((share * WHOLE as f64) as u64, Some(WHOLE), &line);
    }

    fn warn(&self, line: &str) {
        self.inner.warn(line);
    }
}

fn seconds(seconds: f64) -> String {
    match seconds.round() as u64 {
        0 => "0 s".to_owned(),
        whole => units::duration(Duration::from_secs(whole)),
    }
}

/// The time left, no finer than it is known.
fn about(left: f64) -> String {
    match left {
        left if left < 1.0 => "almost done".to_owned(),
        left if left < 20.0 => format!("about {} left", seconds(left)),
        left => format!("about {} left", seconds((left / 5.0).round() * 5.0)),
    }
}

/// Puts an experiment's name before its progress.
pub(super) struct Named {
    name: String,
    inner: Arc<dyn Progress>,
}

impl Named {
    pub(super) fn new(name: &str, inner: Arc<dyn Progress>) -> Self {
        Self { name: name.to_owned(), inner }
    }

    /// The line with the name before it, unless it says it itself.
    fn line(&self, line: &str) -> String {
        let named = line.strip_prefix(&self.name).is_some_and(|rest| rest.starts_with(':'));
        if named { line.to_owned() } else { format!("{}: {line}", self.name) }
    }
}

impl Progress for Named {
    fn step(&self, done: u64, total: Option<u64>, line: &str) {
        self.inner.step(done, total, &self.line(line));
    }

    fn warn(&self, line: &str) {
        self.inner.warn(&self.line(line));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(seconds: &[f64]) -> Vec<Planned> {
        let planned = |(at, seconds): (usize, &f64)| Planned::new(at.to_string(), *seconds);
        seconds.iter().enumerate().map(planned).collect()
    }

    #[test]
    fn an_experiment_has_the_share_of_its_expected_time() {
        let mut course = Course::new(plan(&[3.0, 1.0, 6.0]));
        course.begin("0");
        assert!((course.step(50, Some(100)) - 0.15).abs() < 1e-9);
        course.begin("1");
        assert!((course.step(0, Some(100)) - 0.3).abs() < 1e-9, "what did not end is over");
        course.begin("2");
        assert!((course.step(1, Some(2)) - 0.7).abs() < 1e-9);
        assert!((course.step(0, Some(2)) - 0.7).abs() < 1e-9, "a sweep that starts again");
        assert!((course.step(9, Some(2)) - 1.0).abs() < 1e-9);
        assert!(course.left(20.0) < 1e-9);
    }

    #[test]
    fn a_slow_machine_is_given_more_time() {
        let mut course = Course::new(plan(&[10.0, 10.0]));
        course.begin("1");
        course.step(0, None);
        assert!((course.left(10.0) - 10.0).abs() < 1e-9, "as expected so far");
        assert!((course.left(22.0) - 20.0).abs() < 1e-9, "(22 + 2) / (10 + 2) times as slow");
    }

    #[test]
    fn the_rest_is_said_no_finer_than_it_is_known() {
        assert_eq!(about(0.4), "almost done");
        assert_eq!(about(7.3), "about 7 s left");
        assert_eq!(about(38.0), "about 40 s left");
        assert_eq!(about(94.0), "about 1 min 35 s left");
    }

    proptest! {
        /// Whatever experiments report, in whatever order they begin: the line stays between 0 and 1
        /// and never goes back, and the time left is a finite number.
        #[test]
        fn the_line_never_goes_back(
            seconds in prop::collection::vec(0.0..1e6_f64, 0..8),
            events in prop::collection::vec(
                (prop::option::of(0..10_usize), any::<u64>(), prop::option::of(any::<u64>())), 0..60),
            elapsed in 0.0..1e9_f64,
        ) {
            let mut course = Course::new(plan(&seconds));
            let mut last = 0.0;
            for (begins, done, total) in events {
                if let Some(name) = begins {
                    course.begin(&name.to_string());
                }
                let share = course.step(done, total);
                prop_assert!((0.0..=1.0).contains(&share) && share >= last, "{last} then {share}");
                last = share;
                let left = course.left(elapsed);
                prop_assert!(left.is_finite() && left >= -1e-6, "{left}");
            }
        }
    }
}
