//! What every experiment is given: where progress goes, whether it was interrupted,
//! and the executable that plays the embedded server and the workers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where an experiment says how far it is. Called at most a few times a second.
pub trait Progress: Send + Sync {
    /// `done` of `total` (of whatever the experiment counts; `None` when the end is not known), and
    /// one line for a person.
    fn step(&self, done: u64, total: Option<u64>, line: &str);

    /// Something a person should know that does not end the experiment.
    fn warn(&self, line: &str);
}

/// Shows nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Quiet;

impl Progress for Quiet {
    fn step(&self, _done: u64, _total: Option<u64>, _line: &str) {}
    fn warn(&self, _line: &str) {}
}

/// The surroundings of an experiment.
#[derive(Clone)]
pub struct Lab {
    /// Where progress goes.
    pub progress: Arc<dyn Progress>,
    /// Set from outside (Ctrl-C): the experiment stops at the next step, and returns what it has
    /// with `partial` set.
    pub interrupted: Arc<AtomicBool>,
    /// The `plimsoll` executable: started as `plimsoll serve …` for the embedded server, and as
    /// `plimsoll worker` for the client side's worker processes.
    pub executable: PathBuf,
}

impl Lab {
    /// Whether somebody asked the experiment to stop.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}
