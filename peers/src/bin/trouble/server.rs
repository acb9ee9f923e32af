//! The server that is troubled: a child process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use plimsoll_peers::sys;

use crate::{Options, Result};

/// How long the server may take to answer, to start, or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running server, ended when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddrV4,
    metrics: SocketAddr,
}

impl Server {
    /// Starts it with these limits, and on one CPU where one is given.
    pub(crate) fn start(options: &Options, limits: &[&str], cpu: Option<usize>) -> Result<Self> {
        // Nobody else is here, so that a port that is free now stays free.
        let metrics = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(find(&options.server));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--metrics", &metrics.to_string()])
            .args(limits)
            .args(options.with.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if let Some(cpu) = cpu {
            sys::child::bind_child(&mut command, cpu);
        }
        let mut child = command.spawn().map_err(|error| {
            format!("cannot start {}: {error}; build it, or name it with --server", options.server)
        })?;
        let output = child.stdout.take().expect("piped");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let Some(address) = line.strip_prefix("listening ").and_then(|at| at.trim().parse().ok())
        else {
            let _ = child.kill();
            return Err(format!("the server did not say where it listens, but {line:?}").into());
        };
        Ok(Self { child, address, metrics })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All its figures, as it writes them.
    pub(crate) fn figures(&self) -> Result<Figures> {
        let mut stream = TcpStream::connect(self.metrics)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(Figures(text))
    }

    /// Waits until it has so many sessions; an error if that takes too long.
    pub(crate) fn await_sessions(&self, sessions: u64, patience: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let now = self.figures()?.of("sessions");
            if now == sessions {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > patience {
                let said = format!("{now} sessions after {patience:?}, not {sessions}");
                return Err(said.into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to end, and says how it did.
    pub(crate) fn end(mut self) -> Result<ExitStatus> {
        sys::signal(&self.child, libc::SIGTERM)?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err("the server does not end".into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server counts, in Prometheus' text.
pub(crate) struct Figures(String);

impl Figures {
    /// A figure without labels; 0 where it is not there.
    pub(crate) fn of(&self, name: &str) -> u64 {
        let names = [format!("plimsoll_{name}"), format!("plimsoll_{name}_total")];
        self.lines().find(|(found, _)| names.iter().any(|name| name == found)).map_or(0, |it| it.1)
    }

    /// Why sessions have ended, and how many for each reason.
    pub(crate) fn ended(&self) -> String {
        let ended = self.lines().filter_map(|(name, count)| {
            let (_, reason) = name.strip_prefix("plimsoll_ended")?.split_once("reason=\"")?;
            (count > 0).then(|| format!("{count} {}", reason.trim_end_matches("\"}")))
        });
        ended.collect::<Vec<_>>().join(", ")
    }

    fn lines(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.lines().filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name, value.parse().ok()?))
        })
    }
}

/// A program without a path is looked for beside this one first.
fn find(program: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(program)));
    match beside {
        Some(path) if !program.contains('/') && path.exists() => path,
        _ => PathBuf::from(program),
    }
}
