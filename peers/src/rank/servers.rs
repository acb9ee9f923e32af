//! Starting the servers that are compared, and ending them.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::Failure;
use crate::sys;

/// How long a server may take until it can be connected to.
const START: Duration = Duration::from_secs(10);

/// How long a server may take to end after SIGTERM.
const END: Duration = Duration::from_secs(2);

/// Ports are taken from here: below the range of ephemeral ports, where some
/// client's address might hold the number already.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Lines of a server's output that are kept, to be shown when it fails.
const LINES_KEPT: usize = 10;

/// The peers of this package, without `peer-`.
const PEERS: [&str; 3] = ["epoll", "ring", "tokio"];

/// The peers that `peers/more/build` puts beside this executable, without `peer-`.
const MORE_PEERS: [&str; 4] = ["mio", "monoio", "compio", "go"];

/// A server to compare: `NAME=COMMAND`, or the name of a built-in peer.
///
/// The command is split at white space. Its first word is a built-in peer
/// (`epoll`, `ring`, `tokio`; those of `peers/more`: `mio`, `monoio`, `compio`,
/// `go`), a program beside this executable, or a program on the `PATH`. `{listen}` stands for the address to listen on, and is added
/// as `--listen {listen}` to built-in peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Name in the table; one word.
    pub name: String,
    /// Program and arguments, before substitution.
    pub command: Vec<String>,
    /// The first word names one of our own peers.
    pub built_in: bool,
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, command) = text.split_once('=').unwrap_or((text, text));
        let mut command: Vec<String> = command.split_whitespace().map(String::from).collect();
        if name.is_empty() || name.contains(char::is_whitespace) || command.is_empty() {
            return Err(format!("expected NAME=COMMAND, or one of {}", peers().join(", ")));
        }
        let built_in = peers().contains(&command[0].as_str());
        if built_in {
            command[0] = format!("peer-{}", command[0]);
            command.extend(["--listen".into(), "{listen}".into()]);
        } else if !text.contains('=') {
            let peers = peers().join(", ");
            return Err(format!("no built-in peer {name:?}: {peers}, or NAME=COMMAND"));
        }
        Ok(Self { name: name.into(), command, built_in })
    }
}

fn peers() -> Vec<&'static str> {
    [&PEERS[..], &MORE_PEERS[..]].concat()
}

/// A running server; ended when dropped.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) address: SocketAddrV4,
    child: Child,
    output: Arc<Mutex<VecDeque<String>>>,
}

impl Server {
    /// Starts a server on one CPU and waits until it accepts connections.
    pub(super) fn start(spec: &Spec, extra: &[String], cpu: usize) -> Result<Self, Failure> {
        let name = &spec.name;
        let chosen = free_port()?;
        let listen = chosen.to_string();
        let mut arguments =
            spec.command.iter().chain(extra).map(|word| word.replace("{listen}", &listen));
        let program = find(&arguments.next().unwrap_or_default());
        let mut command = Command::new(&program);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::child::bind_child(&mut command, cpu);
        let mut child = command.spawn().map_err(|error| {
            let hint = if spec.built_in && error.kind() == std::io::ErrorKind::NotFound {
                ", which has not been built; see \"Ranking\" in peers/README.md"
            } else {
                ""
            };
            Failure::Server(format!("{name}: cannot start {}: {error}{hint}", program.display()))
        })?;
        let (sender, announced) = mpsc::channel();
        let output = Arc::new(Mutex::new(VecDeque::new()));
        read_lines(child.stdout.take(), sender.clone(), Arc::clone(&output));
        read_lines(child.stderr.take(), sender, Arc::clone(&output));
        let mut server = Self { name: name.clone(), address: chosen, child, output };
        server.await_listening(&announced)?;
        Ok(server)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Takes the address that the server prints, if it prints one, and tries
    /// to connect until that works.
    fn await_listening(&mut self, announced: &Receiver<SocketAddrV4>) -> Result<(), Failure> {
        let deadline = Instant::now() + START;
        loop {
            if let Ok(address) = announced.try_recv() {
                self.address = address;
            }
            // Not the server of another runner, which took the port first: ours is alive.
            let answers = TcpStream::connect(self.address).is_ok();
            if answers && !self.ended() {
                return Ok(());
            }
            if self.ended() {
                return Err(self.explain(Failure::Server(format!("{}: ended at once", self.name))));
            }
            if Instant::now() >= deadline {
                return Err(Failure::Server(format!(
                    "{}: does not accept connections on {} within {START:?}",
                    self.name, self.address
                )));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Adds to a failure that this server has ended, if it has, and its last words.
    pub(super) fn explain(&mut self, failure: Failure) -> Failure {
        // A process that is ending closes its sockets before it can be waited
        // for, and its last words may still be in the pipe.
        thread::sleep(Duration::from_millis(100));
        match (failure, self.child.try_wait()) {
            (Failure::Server(why), Ok(Some(status))) => {
                // Whoever panicked with the lock held has only been pushing lines.
                let lines = self.output.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let said: Vec<&str> = lines.iter().map(String::as_str).collect();
                let said = said.join("\n  ");
                Failure::Server(format!("{why}; the server has ended ({status}):\n  {said}"))
            }
            (failure, _) => failure,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Errors here mean that it is gone already.
        let _ = sys::signal(&self.child, libc::SIGTERM);
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a pipe to its end, so that the server never blocks on it; reports an
/// address that follows the word `listening`.
fn read_lines(
    pipe: Option<impl Read + Send + 'static>,
    sender: Sender<SocketAddrV4>,
    output: Arc<Mutex<VecDeque<String>>>,
) {
    let Some(pipe) = pipe else { return };
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let after = line.split_once("listening").map_or("", |(_, after)| after);
            let address = after.split_whitespace().find_map(|word| word.parse().ok());
            if let Some(SocketAddr::V4(address)) = address {
                // The receiver is gone once the server is up.
                let _ = sender.send(address);
            }
            let mut kept = output.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if kept.len() == LINES_KEPT {
                kept.pop_front();
            }
            kept.push_back(line);
        }
    });
}

/// A program without a path is looked for beside this executable first.
fn find(program: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(program)));
    match beside {
        Some(path) if !program.contains('/') && path.exists() => path,
        _ => PathBuf::from(program),
    }
}

/// An address on which nobody listens at this moment.
fn free_port() -> Result<SocketAddrV4, Failure> {
    // Starting points of runners that are started together are further apart than they have
    // servers: a port is only free until somebody else asks.
    let offset = (std::process::id().wrapping_mul(64) % u32::from(PORTS.end - PORTS.start)) as u16;
    PORTS
        .map(|port| PORTS.start + (port - PORTS.start + offset) % (PORTS.end - PORTS.start))
        .map(|port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
        .find(|address| TcpListener::bind(address).is_ok())
        .ok_or_else(|| Failure::Machine(format!("no free port in {PORTS:?} on 127.0.0.1")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_parse() {
        let spec: Spec = "epoll".parse().unwrap();
        assert_eq!(spec.command, ["peer-epoll", "--listen", "{listen}"]);
        let spec: Spec = "small=ring --buffers 64".parse().unwrap();
        assert_eq!(spec.name, "small");
        assert_eq!(spec.command, ["peer-ring", "--buffers", "64", "--listen", "{listen}"]);
        let spec: Spec = "go".parse().unwrap();
        assert_eq!(spec.command, ["peer-go", "--listen", "{listen}"]);
        let spec: Spec = "c=x serve --limit=3".parse().unwrap();
        assert_eq!(spec.command, ["x", "serve", "--limit=3"]);
        assert!(!spec.built_in);
        for wrong in ["", "=x", "name=", "nginx", "two words=x"] {
            assert!(wrong.parse::<Spec>().is_err(), "{wrong:?}");
        }
    }
}
