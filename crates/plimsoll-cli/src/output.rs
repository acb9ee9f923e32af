//! What leaves the program: the result on stdout, files, verdicts, errors.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use plimsoll_lab::checks::assertion::Verdict;
use plimsoll_lab::{Error, Result};

/// A file that will be written at the end of an experiment, and was tried before its start.
#[derive(Debug)]
pub(crate) struct Destination {
    path: PathBuf,
    /// What stands there is no regular file (a pipe, a terminal, `/dev/null`): it is written to, and
    /// never replaced.
    special: bool,
}

impl Destination {
    /// Checks that the file can be written, without touching what stands there.
    ///
    /// # Errors
    /// [`Error::Machine`] with the reason.
    pub(crate) fn check(path: &Path) -> Result<Self> {
        let special = match fs::metadata(path) {
            Ok(there) if there.is_dir() => {
                return Err(unwritable(path, "it is a folder", "give the name of a file"));
            }
            Ok(there) => !there.is_file(),
            Err(_) => false,
        };
        let destination = Self { path: path.to_owned(), special };
        if !special {
            let temporary = destination.temporary();
            fs::write(&temporary, b"").map_err(|error| cannot_write(path, &error))?;
            fs::remove_file(&temporary).map_err(|error| cannot_write(path, &error))?;
        }
        Ok(destination)
    }

    /// Writes the file: whoever reads it sees the old one or the whole new one.
    pub(crate) fn write(&self, text: &str) -> Result<()> {
        let failed = |error: io::Error| cannot_write(&self.path, &error);
        if self.special {
            return fs::write(&self.path, text).map_err(failed);
        }
        let temporary = self.temporary();
        let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &self.path));
        written.map_err(|error| {
            // What is left of a failed attempt helps nobody; it may not be there at all.
            let _ = fs::remove_file(&temporary);
            failed(error)
        })
    }

    /// A name beside the file's: a rename stays within one file system.
    fn temporary(&self) -> PathBuf {
        let mut name = std::ffi::OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(format!(".{}.tmp", std::process::id()));
        self.path.with_file_name(name)
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Error {
    unwritable(
        path,
        &error.to_string(),
        "give a file in a folder that exists and that you may write to",
    )
}

fn unwritable(path: &Path, why: &str, cure: &str) -> Error {
    Error::machine(format!("cannot write {}: {why}", path.display()), cure)
}

/// Prints the result. A reader that has gone (`| head`) is no error.
pub(crate) fn result(text: &str) -> Result<()> {
    let mut out = anstream::stdout().lock();
    let ended = if text.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{text}{ended}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::machine(
            format!("cannot write to stdout: {error}"),
            "check where stdout goes; --output FILE writes the result to a file as well",
        )),
        _ => Ok(()),
    }
}

/// Prints one assertion's verdict: after the result in text, on stderr beside JSON.
pub(crate) fn verdict(verdict: &Verdict, json: bool) {
    let (sign, colour) = if verdict.holds {
        ("holds", anstyle::AnsiColor::Green.on_default())
    } else {
        ("FAILS", anstyle::AnsiColor::Red.on_default().bold())
    };
    let line = format!("{colour}{sign}{colour:#}  {}  (is {})\n", verdict.text, verdict.actual);
    // As with the result, a reader that has gone is no error.
    let _ = if json {
        anstream::stderr().write_all(line.as_bytes())
    } else {
        anstream::stdout().write_all(line.as_bytes())
    };
}

/// Prints an error: its cause, and on a line of its own the cure.
pub(crate) fn error(error: &Error) {
    let red = anstyle::AnsiColor::Red.on_default().bold();
    let _ = writeln!(anstream::stderr(), "{red}error:{red:#} {error}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        fs::write(&path, "old").unwrap();
        let destination = Destination::check(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old", "checking leaves the file alone");
        destination.write("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_written_to_and_not_replaced() {
        let destination = Destination::check(Path::new("/dev/null")).unwrap();
        destination.write("text").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn what_cannot_be_written_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [folder.path().to_owned(), file.join("below"), folder.path().join("no/such")] {
            let error = Destination::check(&path).expect_err("it cannot be written");
            assert_eq!(error.exit_code(), 3);
        }
    }
}
