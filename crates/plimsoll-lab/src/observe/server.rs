//! The server under test, as far as it can be seen from outside: its process, its accept queue, its
//! control groups, and how it ended.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use plimsoll_kernel::cgroup::Groups;
use plimsoll_kernel::diag;
use plimsoll_kernel::process::{self, Exit, Fate, Figures, Handle};

use super::family;
use super::snapshot::{Depth, ProcessFamily, Queue, Snapshot};
use crate::embedded::Embedded;
use crate::{Error, Result};

/// Processes of one server that are watched for their end: each takes a descriptor.
const WATCHED_MAX: usize = 64;

/// A server: the embedded one, one whose process was named, one whose process was found by its
/// listening socket, or one of which nothing is seen but its answers.
pub struct Server {
    embedded: Option<Embedded>,
    address: SocketAddr,
    main: Option<u32>,
    /// Further processes that hold the listening socket.
    others: Vec<u32>,
    name: Option<String>,
    groups: Option<Groups>,
    /// `oom_kill` of its groups when it was first looked at.
    oom_kills: Option<u64>,
    watched: Vec<Handle>,
    /// Whether the address is one of this machine in this network namespace, so that its accept queue
    /// can be looked at.
    here: bool,
}

/// How a server ended, or one of its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The process.
    pub pid: u32,
    /// Its name, where it was known.
    pub name: Option<String>,
    /// Whether it is the process that all others descend from, or the only one.
    pub is_main: bool,
    /// What ended it; `None` where nobody tells.
    pub how: Option<How>,
    /// Processes that were killed in its control group for want of memory since it was first looked
    /// at; `None` where that is not counted.
    pub oom_kills: Option<u64>,
    /// The last line that the embedded server wrote to stderr.
    pub last_line: Option<String>,
}

/// What ended a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It ended by itself, with this exit code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl Server {
    /// The embedded server.
    pub fn embedded(server: Embedded) -> Self {
        let (address, pid) = (server.address(), server.pid());
        let mut it = Self::of(address, Some(pid), Vec::new());
        it.embedded = Some(server);
        it
    }

    /// A server that runs at `address`. Its process is `pid`, or else the owner of the listening
    /// socket, where it listens on this machine in this network namespace and the owner may be seen
    /// (as root, or as the owner's user). The search walks the descriptors of all processes, some
    /// 2 µs each: once, before connections are made.
    ///
    /// # Errors
    /// [`Error::Usage`] when `pid` was given and cannot be looked at.
    pub fn running(address: SocketAddr, pid: Option<u32>) -> Result<Self> {
        if let Some(pid) = pid {
            process::rss(pid).map_err(|error| {
                Error::usage(
                    format!("process {pid} cannot be looked at: {error}"),
                    "give the server's process with --server-pid, as its user or as root",
                )
            })?;
            return Ok(Self::of(address, Some(pid), Vec::new()));
        }
        let holders = if is_here(address.ip()) { holders_of_listener(address) } else { Vec::new() };
        let main = family::main_of(
            &holders,
            |pid| process::parent(pid).ok(),
            |one, other| match (process::executable(one), process::executable(other)) {
                (Ok(one), Ok(other)) => one == other,
                _ => false,
            },
        );
        let others = holders.into_iter().filter(|pid| Some(*pid) != main).collect();
        Ok(Self::of(address, main, others))
    }

    fn of(address: SocketAddr, main: Option<u32>, others: Vec<u32>) -> Self {
        let groups = main.and_then(|pid| Groups::of(pid).ok());
        let mut it = Self {
            embedded: None,
            address,
            main,
            name: main.and_then(|pid| process::name(pid).ok()),
            oom_kills: groups.as_ref().and_then(|groups| groups.read().oom_kills),
            groups,
            watched: Vec::new(),
            here: is_here(address.ip()),
            others,
        };
        it.watch();
        it
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process, the one that all others of it descend from; `None` when it is not known.
    pub fn pid(&self) -> Option<u32> {
        self.main
    }

    /// The short name of its process.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether it is the embedded one.
    pub fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// What the embedded server says of itself: see [`Embedded::figures`]. `None` of any other.
    pub fn figures(&self) -> Option<std::collections::BTreeMap<String, u64>> {
        self.embedded.as_ref()?.figures()
    }

    /// Stops it if it is the embedded one.
    pub fn end(self) {
        if let Some(server) = self.embedded {
            server.stop();
        }
    }

    /// The accept queue; `None` when it is not on this machine, or in another network namespace. About
    /// 50 µs.
    pub fn queue(&self) -> Option<Queue> {
        if !self.here {
            return None;
        }
        let found = diag::listeners_at(self.address).ok().filter(|found| !found.is_empty())?;
        let sum = |of: fn(&diag::Listener) -> u32| found.iter().map(|one| u64::from(of(one))).sum();
        Some(Queue {
            depth: sum(|one| one.depth),
            granted: sum(|one| one.limit),
            listeners: found.len() as u64,
            full: found.iter().any(|one| one.depth > one.limit),
        })
    }

    /// All counters of this moment, the server's among them.
    pub fn snapshot(&self, depth: Depth) -> Snapshot {
        let mut now = Snapshot::read(depth);
        now.listener = self.queue();
        now.server_group = self.groups.as_ref().map(Groups::read);
        now.server = self.family(depth);
        now
    }

    /// Its processes; `None` when they are not known, or the first is not there any more.
    pub fn family(&self, depth: Depth) -> Option<ProcessFamily> {
        let main = self.main?;
        let members = family::descendants(main, &self.others);
        let processes: Vec<Figures> = members
            .into_iter()
            .filter_map(|pid| {
                let mut figures = Figures::of(pid).ok()?;
                if depth == Depth::Full {
                    figures.rss = process::rss(pid).ok();
                }
                Some(figures)
            })
            .collect();
        processes.first().is_some_and(|one| one.pid == main).then_some(ProcessFamily { processes })
    }

    /// Starts to watch processes that have appeared since, so that their end is told by
    /// [`ended`](Self::ended); at most 64 in all.
    pub fn watch(&mut self) {
        let Some(main) = self.main else { return };
        for pid in family::descendants(main, &self.others) {
            if self.watched.len() >= WATCHED_MAX {
                return;
            }
            if self.watched.iter().all(|known| known.pid() != pid) {
                self.watched.extend(Handle::open(pid));
            }
        }
    }

    /// How it ended, if it has. While the first process runs, and a signal has ended another one of it,
    /// that one: a master may start a new worker in place of one that crashed. `None` while all run,
    /// or where its processes are not known.
    pub fn ended(&mut self) -> Option<Ended> {
        let main = self.main?;
        if let Some(server) = &mut self.embedded {
            let status = server.ended()?;
            let last_line = server.last_lines().pop();
            return Some(self.describe(main, how_of(status), last_line));
        }
        let gone = self.watched.iter().filter_map(|one| match one.fate() {
            Fate::Runs => None,
            Fate::Ended(how) => Some((one.pid(), how)),
        });
        let gone: Vec<(u32, Option<Exit>)> = gone.collect();
        // Workers end in order too; only a signal tells of a crash.
        let crashed = || gone.iter().find(|(_, how)| matches!(how, Some(Exit::Signal(_))));
        let first = gone.iter().find(|(pid, _)| *pid == main).or_else(crashed);
        if let Some((pid, how)) = first {
            return Some(self.describe(*pid, how.map(How::from), None));
        }
        // Where no descriptor of it could be had.
        let watched = self.watched.iter().any(|one| one.pid() == main);
        let is_gone =
            || matches!(process::rss(main), Err(plimsoll_kernel::Error::NoProcess { .. }));
        (!watched && is_gone()).then(|| self.describe(main, None, None))
    }

    fn describe(&self, pid: u32, how: Option<How>, last_line: Option<String>) -> Ended {
        let now = self.groups.as_ref().and_then(|groups| groups.read().oom_kills);
        Ended {
            pid,
            name: self.name.clone(),
            is_main: Some(pid) == self.main,
            how,
            oom_kills: now.zip(self.oom_kills).map(|(now, before)| now.saturating_sub(before)),
            last_line,
        }
    }
}

impl From<Exit> for How {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Code(code) => Self::Code(code),
            Exit::Signal(signal) => Self::Signal(signal),
        }
    }
}

fn how_of(status: std::process::ExitStatus) -> Option<How> {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return Some(How::Signal(signal));
    }
    status.code().map(How::Code)
}

/// Whether an address is one of this machine in this network namespace: only such an address can be
/// bound to. A wildcard listener of this namespace would otherwise be taken for one of another
/// machine.
fn is_here(address: IpAddr) -> bool {
    address.to_canonical().is_loopback() || UdpSocket::bind((address, 0)).is_ok()
}

/// The processes that hold a listening socket at the address, ascending; of those that may be seen.
fn holders_of_listener(address: SocketAddr) -> Vec<u32> {
    let listeners = diag::listeners_at(address).unwrap_or_default();
    let inodes: BTreeSet<u64> =
        listeners.iter().map(|one| u64::from(one.inode)).filter(|inode| *inode != 0).collect();
    if inodes.is_empty() {
        return Vec::new();
    }
    process::holders_of(&inodes).unwrap_or_default()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use plimsoll_kernel::process::State;

    use super::*;

    /// A server in a process of its own, by std's sockets: this test program, which runs
    /// [`serve_in_a_process`] only.
    struct Listening {
        child: Child,
        address: SocketAddr,
    }

    impl Listening {
        fn start() -> Self {
            let here = std::env::current_exe().expect("a test program has a path");
            let mut child = Command::new(here)
                .args([
                    "--ignored",
                    "--exact",
                    "observe::server::tests::serve_in_a_process",
                    "--nocapture",
                ])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("this program starts");
            let stdout = child.stdout.take().expect("it is a pipe");
            let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
            let address = lines.find_map(|line| line.strip_prefix("at ")?.parse().ok());
            std::thread::spawn(move || lines.for_each(drop));
            Self { child, address: address.expect("it tells where it listens") }
        }

        fn signal(&self, signal: rustix::process::Signal) {
            let pid = rustix::process::Pid::from_raw(self.child.id() as i32).expect("not 0");
            rustix::process::kill_process(pid, signal).expect("it is a child of ours");
        }
    }

    impl Drop for Listening {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    #[ignore = "what `Listening` runs in a process of its own"]
    fn serve_in_a_process() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        println!("\nat {}", listener.local_addr().expect("it is bound"));
        // Until the parent ends or kills it.
        let _ = std::io::stdin().read_line(&mut String::new());
    }

    fn until<T>(what: &str, mut so: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(value) = so() {
                return value;
            }
            assert!(Instant::now() < deadline, "waited 30 s until {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn the_owner_of_a_listening_socket_is_found_and_its_end_is_told() {
        let listening = Listening::start();
        let mut server = Server::running(listening.address, None).expect("nothing was asked");
        assert_eq!(server.pid(), Some(listening.child.id()));
        assert!(server.name().is_some() && !server.is_embedded());
        let queue = server.queue().expect("it listens here");
        assert_eq!((queue.depth, queue.listeners, queue.full), (0, 1, false));
        let now = server.snapshot(Depth::Full);
        let main = now.server.as_ref().and_then(ProcessFamily::main).copied().expect("it runs");
        assert!(main.rss.is_some() && main.descriptors_limit.is_some(), "{main:?}");
        assert_eq!(server.ended(), None);

        listening.signal(rustix::process::Signal::STOP);
        until("it is seen stopped", || {
            let family = server.family(Depth::Quick)?;
            (family.main()?.state == Some(State::Stopped)).then_some(())
        });
        assert_eq!(server.ended(), None, "a pause is no end");
        listening.signal(rustix::process::Signal::KILL);
        let ended = until("its end is seen", || server.ended());
        assert_eq!((ended.pid, ended.is_main), (listening.child.id(), true));
        assert_eq!(ended.how, Some(How::Signal(9)));
    }

    #[test]
    fn what_cannot_be_seen_is_not_made_up() {
        // TEST-NET-1 (RFC 5737): an address that this machine does not have.
        let address = SocketAddr::from(([192, 0, 2, 1], 80));
        let mut server = Server::running(address, None).expect("nothing was asked");
        assert_eq!((server.pid(), server.queue(), server.ended()), (None, None, None));
        let now = server.snapshot(Depth::Quick);
        assert!(now.server.is_none() && now.server_group.is_none() && now.listener.is_none());
        let error = Server::running(address, Some(u32::MAX / 2)).err().expect("there is none");
        assert_eq!(error.exit_code(), 2);
    }
}
