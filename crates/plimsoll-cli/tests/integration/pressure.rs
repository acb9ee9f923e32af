//! A server in a memory control group with little room: it brakes, sheds, and comes back to calm;
//! it is never killed. Needs root and the memory controller, and says so where it skips.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Serve};

const LIMIT: u64 = 64 << 20;

/// A control group of the test's own, removed at its end.
struct Group {
    folder: PathBuf,
    limit: &'static str,
}

impl Group {
    /// `None` where there is none to be had, with the reason printed.
    fn new() -> Option<Self> {
        for (root, limit) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let folder = Path::new(root).join(format!("plimsoll-test-{}", std::process::id()));
            let group = Self { folder, limit };
            if Path::new(root).join("cgroup.procs").exists()
                && fs::create_dir(&group.folder).is_ok()
                && group.set_limit(LIMIT).is_ok()
            {
                return Some(group);
            }
        }
        eprintln!("skipped: no memory control group can be made here (it needs root and cgroupfs)");
        None
    }

    fn set_limit(&self, bytes: u64) -> std::io::Result<()> {
        fs::write(self.folder.join(self.limit), bytes.to_string())
    }

    /// A command that joins the group before it becomes `program`.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let procs = self.folder.join("cgroup.procs");
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("echo $$ > {} && exec \"$0\" \"$@\"", procs.display()), program])
            .args(arguments)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last of its processes may be a moment from its end.
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&self.folder).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Holds memory of the group; ends with the test.
struct Eater(Child);

impl Eater {
    /// Some 1 MiB, 2 MiB with the shell.
    fn new(group: &Group) -> Self {
        let script = "x=$(head -c 1000000 /dev/zero | tr '\\0' x); echo full; read -r end";
        let mut command = group.command("sh", &["-c", script]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("a shell starts");
        let mut said = [0; 4];
        child.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("it is full");
        Self(child)
    }
}

impl Drop for Eater {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One figure of the server.
fn figure(metrics: SocketAddr, name: &str) -> f64 {
    let mut stream = TcpStream::connect(metrics).expect("metrics are served");
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect(name)
}

#[track_caller]
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_server_in_a_small_control_group_brakes_sheds_and_is_calm_again() {
    let Some(group) = Group::new() else { return };
    let path = assert_cmd::cargo::cargo_bin("plimsoll");
    let program = path.to_str().expect("a path in UTF-8");
    let mut server = Serve::of(&mut group.command(
        program,
        &[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--buffer-bytes",
            "1MiB",
            "--metrics",
            "127.0.0.1:0",
            "--max-connections",
            "15000",
            "--shards",
            "1",
        ],
    ));
    let metrics: SocketAddr = server.line("metrics ").parse().expect("an address");
    let clients: Vec<_> = (0..200).map(|_| TcpStream::connect(server.address)).collect();
    until("all are in", || figure(metrics, "plimsoll_sessions") > 199.5);
    // Something else in the group takes its memory, 1.5 % of the limit at a time.
    let mut eaters = Vec::new();
    let mut eat_until = |name: &str| {
        until(name, || {
            let reached = figure(metrics, name) > 0.5;
            if !reached && eaters.len() < 100 {
                eaters.push(Eater::new(&group));
                // The server looks once a second while it is far from a mark: no more than a sixth of
                // the group may go meanwhile, or its end comes before the look.
                std::thread::sleep(Duration::from_millis(100));
            }
            reached
        });
    };
    eat_until("plimsoll_braked_total");
    assert!(figure(metrics, "plimsoll_shed_total") < 0.5, "it brakes before it sheds");
    eat_until("plimsoll_ended_total{reason=\"shed\"}");
    let shed = figure(metrics, "plimsoll_ended_total{reason=\"shed\"}");
    // Room comes back: it is calm, and serves again.
    drop(eaters);
    drop(clients);
    until("it is calm", || figure(metrics, "plimsoll_pressure") < 0.5);
    let mut next = TcpStream::connect(server.address).expect("it listens");
    next.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    next.write_all(b"x").expect("it reads");
    next.read_exact(&mut [0]).expect("it echoes");
    drop(next);
    println!("braked, shed {shed}, and calm again");
    server.process.signal("TERM");
    assert_eq!(server.process.ended().code(), Some(0), "it drains");
}
