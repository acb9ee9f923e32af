//! The embedded server: `plimsoll serve` as a child process, so that its memory and its descriptors
//! are its own.

mod figures;

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::sys::{Interrupt, ask_to_end, tie_to_parent};
use crate::{Error, Lab, Result};

/// How long it may take to listen.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to drain when asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Lines of its stderr that are kept, to be quoted when it fails.
const LINES_KEPT: usize = 20;

/// How the embedded server is to run. What is `None` is left to the server's own default.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where to listen; `None` is `127.0.0.1:0`.
    pub listen: Option<SocketAddr>,
    /// `connections` or `throughput`.
    pub profile: Option<String>,
    /// `auto`, `uring`, `ready`.
    pub driver: Option<String>,
    /// How many shards.
    pub shards: Option<usize>,
    /// The limit on connections.
    pub max_connections: Option<u64>,
    /// Whether it recycles what it can.
    pub pool: Option<bool>,
    /// It closes each connection once it has sent back so many bytes; `None`: the clients close.
    pub close_after: Option<u64>,
    /// Whether it can be asked for its [`figures`](Embedded::figures).
    pub metrics: bool,
    /// Further arguments of `plimsoll serve`, as they are.
    pub arguments: Vec<OsString>,
}

impl Options {
    fn arguments(&self) -> Vec<OsString> {
        let listen = self.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut all: Vec<OsString> =
            vec!["serve".into(), "--listen".into(), listen.to_string().into()];
        let mut flag = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                all.push(name.into());
                all.push(value.into());
            }
        };
        flag("--profile", self.profile.clone());
        flag("--driver", self.driver.clone());
        flag("--shards", self.shards.map(|n| n.to_string()));
        flag("--max-connections", self.max_connections.map(|n| n.to_string()));
        flag("--pool", self.pool.map(|on| if on { "on" } else { "off" }.to_owned()));
        flag("--close-after", self.close_after.map(|n| n.to_string()));
        flag("--metrics", self.metrics.then(|| "127.0.0.1:0".to_owned()));
        all.extend(self.arguments.iter().cloned());
        all
    }
}

/// A running server. Dropping it ends it.
///
/// It is killed when the thread that started it ends. It has a process group of its own, so that
/// Ctrl-C reaches the lab only, which then stops it.
pub struct Embedded {
    child: Child,
    address: SocketAddr,
    metrics: Option<SocketAddr>,
    last_lines: Arc<Mutex<VecDeque<String>>>,
}

impl Embedded {
    /// Starts it, and waits for the line `listening ADDRESS` on its stdout, and for `metrics ADDRESS`
    /// where they were asked for. Its soft limit on descriptors is raised to the hard one.
    ///
    /// # Errors
    /// [`Error::Machine`] when it cannot be started, ends, or does not listen within 20 s, with the
    /// last lines it wrote to stderr; [`Error::Usage`] when it ended with exit code 2.
    pub fn start(lab: &Lab, options: &Options) -> Result<Self> {
        let mut command = Command::new(&lab.executable);
        command.args(options.arguments()).stdout(Stdio::piped()).stderr(Stdio::piped());
        tie_to_parent(&mut command, Interrupt::OwnGroup);
        let mut child = command.spawn().map_err(|error| {
            Error::machine(
                format!("cannot start the embedded server {}: {error}", lab.executable.display()),
                "check that the file is there and may be run, and the limit on processes (`ulimit -u`)",
            )
        })?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            unreachable!("both were asked for as pipes, and nobody else takes them");
        };
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&last_lines);
        std::thread::spawn(move || keep_lines(stderr, &kept));
        let said = lines_of(stdout);
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut server = Self { child, address: unspecified, metrics: None, last_lines };
        // Where its stdout ended or stayed silent it has failed, or will not listen.
        let deadline = Instant::now() + START_PATIENCE;
        match address_in(&said, "listening ", deadline) {
            Some(address) => server.address = address,
            None => return Err(server.failed()),
        }
        if options.metrics {
            server.metrics = address_in(&said, "metrics ", deadline);
            if server.metrics.is_none() {
                return Err(server.failed());
            }
        }
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it says of itself, by name (`accepted`, `slot_hits`, …); a figure by reason or the like
    /// is left out. Costs one HTTP request. `None` where it was started without
    /// [`Options::metrics`], or does not answer within 2 s.
    pub fn figures(&self) -> Option<BTreeMap<String, u64>> {
        figures::read(self.metrics?).ok()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The last lines it wrote to stderr, oldest first; at most 20.
    pub fn last_lines(&self) -> Vec<String> {
        self.last_lines.lock().map(|lines| lines.iter().cloned().collect()).unwrap_or_default()
    }

    /// Asks it to drain and end (SIGTERM; the end of its stdin on Windows); kills it if that takes more than 10 s. Returns its exit
    /// status, `None` if it had to be killed.
    pub fn stop(mut self) -> Option<ExitStatus> {
        self.end()
    }

    fn end(&mut self) -> Option<ExitStatus> {
        if let Some(status) = self.ended() {
            return Some(status);
        }
        ask_to_end(&mut self.child);
        let deadline = Instant::now() + STOP_PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }

    fn failed(mut self) -> Error {
        // Its stdout has ended before it has: a moment for the exit code.
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = self.ended();
        let how = match status {
            Some(status) => format!("ended with {status}"),
            None => format!("did not listen within {} s", START_PATIENCE.as_secs()),
        };
        let lines = self.last_lines().join("\n  ");
        let cause = format!("the embedded server {how} before it listened:\n  {lines}");
        let cure = "see what it says above; `plimsoll serve` alone shows the same";
        match status.and_then(|status| status.code()) {
            Some(2) => Error::usage(cause, cure),
            _ => Error::machine(cause, cure),
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.end();
    }
}

/// The lines of a server's stdout, which is read to its end so that it never blocks there.
fn lines_of(stdout: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, said) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
            // Nobody waits any more once it has started.
            let _ = sender.send(line);
        }
    });
    said
}

/// The address in the next line that begins so.
fn address_in(said: &Receiver<String>, prefix: &str, deadline: Instant) -> Option<SocketAddr> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = said.recv_timeout(left).ok()?;
        let address = line.strip_prefix(prefix).and_then(|rest| rest.trim().parse().ok());
        if address.is_some() {
            return address;
        }
    }
}

fn keep_lines(stderr: impl Read, kept: &Mutex<VecDeque<String>>) {
    for line in BufReader::new(stderr).lines().map_while(std::result::Result::ok) {
        let Ok(mut lines) = kept.lock() else { return };
        if lines.len() == LINES_KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}
