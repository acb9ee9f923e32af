//! `plimsoll serve` where `io_uring` is forbidden, as containers often have it, and where descriptors are
//! few.
#![allow(unsafe_code, reason = "a seccomp filter is installed between fork and exec")]

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use plimsoll_peers::verifier::{self, Plan};

use crate::common::{PATIENCE, Process, Serve, command, plimsoll, result, text};

/// Has `io_uring_setup` fail with `EPERM` in the command that will be started, as the default
/// filters of container engines do.
fn forbid_io_uring(command: &mut Command) -> &mut Command {
    let statement = |code: u32, jumps: (u8, u8), k: u32| libc::sock_filter {
        code: code as u16,
        jt: jumps.0,
        jf: jumps.1,
        k,
    };
    let mut filter = [
        // The number of the system call is the first word of `seccomp_data`.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), 0),
        statement(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            (0, 1),
            libc::SYS_io_uring_setup as u32,
        ),
        statement(
            libc::BPF_RET | libc::BPF_K,
            (0, 0),
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
        statement(libc::BPF_RET | libc::BPF_K, (0, 0), libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
        // SAFETY: `prctl` with these requests reads integers and the program, which outlives the
        // call; it is async-signal-safe.
        let codes = unsafe {
            [
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
                libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program),
            ]
        };
        if codes == [0, 0] { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it allocates nothing and takes no lock: two system calls.
    unsafe { command.pre_exec(install) }
}

fn serve(arguments: &[&str]) -> Command {
    let mut command = command(&["serve", "--listen", "127.0.0.1:0"]);
    command.args(arguments).stderr(Stdio::piped());
    command
}

#[test]
fn without_io_uring_it_serves_on_epoll_and_says_why_in_one_line() {
    for profile in ["connections", "throughput"] {
        let mut server = Serve::of(forbid_io_uring(&mut serve(&["--profile", profile])));
        let plan =
            Plan { seed: 9, bytes: 4 << 20, connections: 20, stall: PATIENCE, ..Plan::default() };
        let report = verifier::verify(server.address, &plan);
        assert_eq!((report.faults, report.verified), (vec![], 4 << 20));
        let target = server.address.to_string();
        let load =
            result(&["load", "--target", &target, "--connections", "50", "--duration", "1s"]);
        assert_eq!((&load["established"], &load["corrupt"]), (&50.into(), &0.into()), "{load}");
        assert_eq!(load["errors"], serde_json::json!({}), "{load}");
        server.process.signal("TERM");
        assert_eq!(server.process.ended().code(), Some(0));
        let warnings = warnings(&mut server.process);
        let [line] = &warnings[..] else { panic!("{warnings:#?}") };
        for word in ["epoll", "io_uring", "seccomp", "allow io_uring_setup"] {
            assert!(line.contains(word), "no `{word}` in: {line}");
        }
    }
}

/// The lines that warn, of a server that has ended.
fn warnings(process: &mut Process) -> Vec<String> {
    let mut log = String::new();
    process.0.stderr.take().expect("stderr is a pipe").read_to_string(&mut log).unwrap();
    log.lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect()
}

#[test]
fn asked_for_io_uring_it_does_without_nothing() {
    let output = forbid_io_uring(&mut serve(&["--driver", "uring"])).output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("seccomp") && message.contains("cure"), "{message}");
}

/// `serve` with this limit on descriptors.
fn with_descriptors(most: u32, arguments: &str) -> Command {
    let mut shell = Command::new("sh");
    let serve = "serve --listen 127.0.0.1:0 --driver ready --shards 2";
    let program = env!("CARGO_BIN_EXE_plimsoll");
    shell
        .args(["-c", &format!("ulimit -n {most} && exec {program} {serve} {arguments}")])
        .env("NO_COLOR", "1")
        .stdin(Stdio::null());
    shell
}

/// What does not fit the process' descriptors is refused at start; the number that is said to fit
/// does, with every connection served.
#[test]
fn descriptors_of_the_process_bound_the_connections() {
    let output = with_descriptors(300, "--max-connections 301").output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("RLIMIT_NOFILE") && message.contains("ulimit -n"), "{message}");
    let fits = message.split_once("allows ").expect("the number that fits").1;
    let fits = fits.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse::<u32>().ok());
    let fits = fits.expect("a number");
    assert!((200..300).contains(&fits), "{message}");

    let server = Serve::of(&mut with_descriptors(300, &format!("--max-connections {fits}")));
    let mut clients: Vec<TcpStream> =
        (0..fits).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    for client in &mut clients {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"here").unwrap();
        client.read_exact(&mut [0; 4]).expect("it is served");
    }
    // One more waits for room, and gets it.
    let mut next = TcpStream::connect(server.address).unwrap();
    next.write_all(b"next").unwrap();
    next.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(next.read(&mut [0; 4]).is_err(), "there is no room");
    drop(clients.pop());
    next.set_read_timeout(Some(PATIENCE)).unwrap();
    next.read_exact(&mut [0; 4]).expect("it is served");
}

#[test]
fn the_help_says_what_the_drivers_are() {
    let help = text(&plimsoll(&["serve", "--help"]).stdout);
    for word in ["auto", "uring", "ready", "epoll or kqueue", "ulimit -n"] {
        assert!(help.contains(word), "no `{word}` in: {help}");
    }
}
