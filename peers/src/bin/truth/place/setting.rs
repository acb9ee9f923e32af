//! A limit of the whole machine that is changed for a while, and restored whatever happens.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::{Halt, Result};

/// Restores the old value once its standard input ends: when the setting is dropped, and when
/// this program has ended in any other way, killed included.
const KEEPER: &str = r#"trap "" INT TERM HUP; cat >/dev/null; printf %s "$1" >"$2""#;

/// A changed setting.
#[derive(Debug)]
pub(crate) struct Setting {
    path: PathBuf,
    before: String,
    keeper: Child,
}

impl Setting {
    /// Changes it: a path below `/proc/sys`.
    pub(crate) fn change(path: &str, value: &str) -> Result<Self> {
        let path = PathBuf::from("/proc/sys").join(path);
        let failed = |error| Halt::skip(format!("{}: {error}", path.display()));
        let before = fs::read_to_string(&path).map_err(failed)?.trim_end().to_owned();
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "keeper", &before]).arg(&path);
        // A group of its own: Ctrl-C is not for it.
        keeper.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let keeper = keeper.spawn().map_err(failed)?;
        // From here on it is restored, even if the next line fails.
        let setting = Self { path: path.clone(), before, keeper };
        fs::write(&path, value).map_err(failed)?;
        Ok(setting)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.before) {
            eprintln!("cannot restore {} to {}: {error}", self.path.display(), self.before);
        }
        drop(self.keeper.stdin.take());
        // It has nothing left to do but to write the same value again.
        let _ = self.keeper.wait();
    }
}
