//! The server of a case: `faulty`, a child process.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use plimsoll_peers::sys::{self, child};

use crate::case::Event;
use crate::place::Surroundings;
use crate::{Halt, Result};

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// What started it, to be typed again.
    pub(crate) line: String,
    ended: Option<ExitStatus>,
    /// The signals that the event sends, in order.
    signals: [Signal; 2],
    was_stopped: bool,
}

/// A signal to the server.
#[derive(Clone, Copy, Default)]
struct Signal {
    /// When what it waits for was seen.
    seen_at: Option<Instant>,
    is_sent: bool,
}

impl Server {
    /// Starts it, and waits until it listens.
    pub(crate) fn start(faulty: &Path, flags: &[&str], around: &Surroundings) -> Result<Self> {
        let listen = around.listen().to_string();
        let mut command = Command::new(faulty);
        command.args(["--listen", &listen]).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        around.prepare_server(&mut command)?;
        child::die_with_parent(&mut command);
        let line = super::client::line(&command);
        let mut child = command
            .spawn()
            .map_err(|error| Halt::skip(format!("{} does not start: {error}", faulty.display())))?;
        let output = child.stdout.take().expect("it is piped");
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        let signals = [Signal::default(); 2];
        let mut server = Self { child, address, line, ended: None, signals, was_stopped: false };
        let mut said = String::new();
        // An error is an empty line, which is no address.
        let _ = BufReader::new(output).read_line(&mut said);
        let address = said.strip_prefix("listening ").and_then(|at| at.trim().parse().ok());
        server.address =
            address.ok_or_else(|| Halt::skip(format!("the server says {said:?}, no address")))?;
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Looks whether it has ended (and waits for it then, as whoever starts a server does),
    /// and has the event happen when its time has come.
    pub(crate) fn attend(&mut self, event: Option<Event>) {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        if self.ended.is_some() {
            return;
        }
        let is_stopped = self.state() == Some('T');
        self.was_stopped |= is_stopped;
        match event {
            Some(Event::ContinueServer(delay)) => {
                self.signal_once(0, is_stopped, delay, libc::SIGCONT);
            }
            Some(Event::KillServer { descriptors, delay }) => {
                let is_seen = self.descriptors() >= descriptors;
                self.signal_once(0, is_seen, delay, libc::SIGKILL);
            }
            Some(Event::StopServer { descriptors, delay, length }) => {
                let is_seen = self.descriptors() >= descriptors;
                self.signal_once(0, is_seen, delay, libc::SIGSTOP);
                if let Some(length) = length {
                    self.signal_once(1, self.signals[0].is_sent, length, libc::SIGCONT);
                }
            }
            Some(Event::InterruptPlimsoll(_)) | None => {}
        }
    }

    /// Sends a signal once, `delay` after `is_seen` was true for the first time. `nth` tells the
    /// signals of one event apart.
    fn signal_once(&mut self, nth: usize, is_seen: bool, delay: Duration, signal: i32) {
        let state = &mut self.signals[nth];
        if is_seen && state.seen_at.is_none() {
            state.seen_at = Some(Instant::now());
        }
        if !state.is_sent && state.seen_at.is_some_and(|at| at.elapsed() >= delay) {
            state.is_sent = true;
            // It may have ended in this moment; the next look will tell.
            let _ = sys::signal(&self.child, signal);
        }
    }

    /// What became of it, to stand beside a wrong verdict.
    pub(crate) fn seen(&self) -> Vec<String> {
        let mut seen = Vec::new();
        if self.was_stopped {
            seen.push("the server was stopped (state T)".to_owned());
        }
        match self.ended {
            Some(status) => seen.push(format!("the server ended: {status}")),
            None => {
                seen.push(format!("the server lives, with {} descriptors", self.descriptors()));
            }
        }
        seen
    }

    /// Its state, from the field behind its name: `R`, `S`, `T`, …
    fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already. A stopped one can be killed, too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
