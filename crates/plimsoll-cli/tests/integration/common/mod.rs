//! What the command's tests share: the command itself, servers that end with their test, processes
//! found in `/proc`.

#![allow(dead_code, reason = "each program and system uses a part of it")]

#[cfg(target_os = "linux")]
pub(crate) mod servers;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::CommandCargoExt as _;
use serde_json::Value;

/// How long anything may take that ought to take a moment.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// `plimsoll` with these arguments, not started yet.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("plimsoll").expect("the command is built");
    command.args(arguments).env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// Runs `plimsoll` with these arguments to its end.
pub(crate) fn plimsoll(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the command starts")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// It must end with this code, say each of `words` on stderr, and nothing on stdout.
#[track_caller]
pub(crate) fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = plimsoll(arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}: stdout is for results only");
    for word in words {
        assert!(message.contains(word), "{arguments:?}: no `{word}` in: {message}");
    }
}

/// A document as the command wrote it: one JSON object that is valid against the schema.
#[track_caller]
pub(crate) fn document(bytes: &[u8]) -> Value {
    let document = serde_json::from_slice(bytes).expect("one whole JSON object");
    crate::schema::assert_valid(&document);
    document
}

/// Runs it with `--json --quiet`; it must end with 0. Returns the result.
#[track_caller]
pub(crate) fn result(arguments: &[&str]) -> Value {
    let output = plimsoll(&[arguments, &["--json", "--quiet"]].concat());
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {message}");
    let mut document = document(&output.stdout);
    assert_eq!(document["partial"], false, "{arguments:?}");
    document["result"].take()
}

/// A process that ends with the test, whatever its outcome.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends it `INT` or `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let line = format!("kill -{name} {}", self.pid());
        let status = Command::new("sh").args(["-c", &line]).status().expect("there is a shell");
        assert!(status.success(), "{line}");
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the process has ended", || {
            status = self.0.try_wait().expect("it is a child of ours");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Process {
    /// Asked first: a server with workers of its own ends them only when it is not killed.
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let line = format!("kill -TERM {}", self.pid());
            let _ = Command::new("sh").args(["-c", &line]).status();
            let deadline = Instant::now() + Duration::from_secs(5);
            while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running `plimsoll serve`.
pub(crate) struct Serve {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    stdout: BufReader<ChildStdout>,
}

impl Serve {
    /// On a free port of 127.0.0.1.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::listening_on("127.0.0.1:0", arguments)
    }

    pub(crate) fn listening_on(listen: &str, arguments: &[&str]) -> Self {
        Self::of(command(&["serve", "--listen", listen]).args(arguments))
    }

    /// Started by this command.
    pub(crate) fn of(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the server starts");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let process = Process(child);
        let address = SocketAddr::from(([0; 4], 0));
        let mut server = Self { process, address, stdout: BufReader::new(stdout) };
        server.address = server.line("listening ").parse().expect("an address");
        server
    }

    /// The next line of its stdout, which must begin so; without that.
    pub(crate) fn line(&mut self, prefix: &str) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("stdout is open");
        line.strip_prefix(prefix).unwrap_or_else(|| panic!("`{prefix}…`: {line}")).trim().to_owned()
    }
}

/// Waits until something is so; fails after [`PATIENCE`].
#[track_caller]
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process runs (one that has ended and is not waited for does not).
pub(crate) fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

/// All processes that descend from this one, itself left out.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(one) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Some((_, parent)) = stat(one) {
            parents.insert(one, parent);
        }
    }
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| **of == parent).map(|(one, _)| *one));
        next += 1;
    }
    found.split_off(1)
}

/// State and parent, from the fields behind the name, which may hold anything.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// A port that nobody listens on, below those that clients are given: a program that is started with
/// it finds it free, unless another one listens there in this very moment.
pub(crate) fn free_port() -> u16 {
    use std::hash::{BuildHasher as _, RandomState};
    let start = RandomState::new().hash_one(std::process::id()) % 20_000;
    (0..20_000)
        .map(|step| 10_000 + ((start + step) % 20_000) as u16)
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("one of 20,000 ports is free")
}
