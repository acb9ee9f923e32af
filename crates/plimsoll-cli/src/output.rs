//! What leaves the program: the result on stdout, files, verdicts, errors.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use plimsoll_lab::checks::assertion::Verdict;
use plimsoll_lab::{Error, Result};
use tempfile::NamedTempFile;

/// A file that will be written at the end of an experiment, and was tried before its start.
#[derive(Debug)]
pub(crate) struct Destination {
    path: PathBuf,
    place: Place,
}

/// What stands at a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing, a regular file, or a symbolic link: it is replaced. A link is never followed, since
    /// whoever can make one in that folder would choose which file is overwritten.
    Replaced,
    /// A pipe, a terminal, a device, or a link of the system's own such as `/dev/stdout`: it is written
    /// to, and never replaced.
    WrittenTo,
}

impl Destination {
    /// Checks that the file can be written, without touching what stands there.
    ///
    /// # Errors
    /// [`Error::Machine`] with the reason.
    pub(crate) fn check(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Err(unwritable(path, "it is a folder", "give the name of a file"));
        }
        let place = match fs::symlink_metadata(path) {
            Ok(_) if is_of_the_system(folder(path)) => Place::WrittenTo,
            Ok(there) if there.is_file() || there.is_symlink() => Place::Replaced,
            Ok(_) => Place::WrittenTo,
            Err(_) => Place::Replaced,
        };
        let destination = Self { path: path.to_owned(), place };
        if place == Place::Replaced {
            let temporary = destination.temporary().map_err(|error| cannot_write(path, &error))?;
            temporary.close().map_err(|error| cannot_write(path, &error))?;
        }
        Ok(destination)
    }

    /// Writes the file: whoever reads it sees the old one or the whole new one, even after a crash of
    /// the machine.
    pub(crate) fn write(&self, text: &str) -> Result<()> {
        let written = match self.place {
            Place::WrittenTo => fs::write(&self.path, text),
            Place::Replaced => self.replace(text),
        };
        written.map_err(|error| cannot_write(&self.path, &error))
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let mut temporary = self.temporary()?;
        temporary.write_all(text.as_bytes())?;
        // Without this a file system may have the new name before it has the bytes.
        temporary.as_file().sync_all()?;
        temporary.persist(&self.path)?;
        Ok(())
    }

    /// A new file of a random name beside the destination, since a rename stays within one file
    /// system. It is removed when it is dropped.
    fn temporary(&self) -> io::Result<NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        // As any new file, less what the umask takes; without this only its owner could read it.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        builder.prefix(".plimsoll-").suffix(".tmp").tempfile_in(folder(&self.path))
    }
}

/// The folder of a file.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Whether this folder is `/dev` or lies in `/proc`. A name there is a device or an open file of a
/// process: it is written to and never replaced.
fn is_of_the_system(folder: &Path) -> bool {
    fs::canonicalize(folder)
        .is_ok_and(|folder| folder == Path::new("/dev") || folder.starts_with("/proc"))
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
    fn a_link_beside_the_file_is_not_followed() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("other");
        fs::write(&other, "kept").unwrap();
        let expected = format!(".out.json.{}.tmp", std::process::id());
        symlink(&other, folder.path().join(expected)).unwrap();
        let path = folder.path().join("out.json");
        Destination::check(&path).unwrap().write("new").unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "kept");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_files_place_is_replaced() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["out.json", "other"].map(|name| folder.path().join(name));
        fs::write(&other, "kept").unwrap();
        for target in [&*other, Path::new("/dev/null"), Path::new("nothing")] {
            let _ = fs::remove_file(&path);
            symlink(target, &path).unwrap();
            Destination::check(&path).unwrap().write("new").unwrap();
            assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{}", target.display());
            assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        }
        assert_eq!(fs::read_to_string(&other).unwrap(), "kept");
    }

    /// As `/dev/stdout` is, where stdout goes to a file.
    #[cfg(target_os = "linux")]
    #[test]
    fn an_open_file_is_written_to_by_its_descriptor() {
        use std::os::fd::AsRawFd as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        let descriptor = format!("/dev/fd/{}", file.as_file().as_raw_fd());
        Destination::check(Path::new(&descriptor)).unwrap().write("new").unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "new");
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_it_as_they_may_any_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["out.json", "other"].map(|name| folder.path().join(name));
        fs::write(&other, "").unwrap();
        Destination::check(&path).unwrap().write("new").unwrap();
        let permissions = |path| fs::metadata(path).unwrap().permissions();
        assert_eq!(permissions(&path), permissions(&other));
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
