//! Control groups of our own (version 1), removed with their last process.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use plimsoll_peers::sys::child;

use crate::{Halt, Result};

/// How long a group may take to become empty once its processes were killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A control group of one controller, below the group that this program is in.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new one, without limits.
    pub(crate) fn new(controller: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let parent = own(controller)
            .ok_or_else(|| Halt::skip(format!("no controller {controller} of version 1")))?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("plimsoll-truth-{}-{number}", std::process::id()));
        fs::create_dir(&path)
            .map_err(|error| Halt::skip(format!("no group {}: {error}", path.display())))?;
        Ok(Self { path })
    }

    /// Writes one of its files.
    pub(crate) fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value)
            .map_err(|error| Halt::skip(format!("{value} to {}: {error}", path.display())))
    }

    /// The words of one of its files on one line; empty where it is not there.
    pub(crate) fn words(&self, file: &str) -> String {
        let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Makes a child start in it.
    pub(crate) fn enter(&self, command: &mut Command) -> Result<()> {
        let path = self.path.join("cgroup.procs");
        let procs = OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(|error| Halt::skip(format!("{}: {error}", path.display())))?;
        child::join_cgroup(command, procs);
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // The kernel empties a group some time after its last process was waited for.
        while let Err(error) = fs::remove_dir(&self.path) {
            if Instant::now() > deadline {
                eprintln!("cannot remove {}: {error}", self.path.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The folder of the group that this program is in.
fn own(controller: &str) -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let is_it = fields.next()?.split(',').any(|name| name == controller);
        is_it.then(|| fields.next()).flatten()
    })?;
    let folder = Path::new("/sys/fs/cgroup").join(controller).join(group.trim_start_matches('/'));
    folder.join("cgroup.procs").exists().then_some(folder)
}
