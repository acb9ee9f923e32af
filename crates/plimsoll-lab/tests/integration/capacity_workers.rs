//! Workers: obedient, deaf to SIGINT, and never orphans.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use plimsoll_lab::Error;
use plimsoll_lab::worker::{Connect, Keep, Report, Request, Why, Workers};
use rustix::process::{Pid, Signal, kill_process};

use crate::common::{lab, runs, turn, wait_until};

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn connect(target: std::net::SocketAddr, count: u64) -> Request {
    Request::Connect(Connect {
        target,
        source: None,
        count,
        keep: Keep::Open,
        in_flight: 8,
        timeout_ms: 60_000,
        failures: 1,
        one_cpu: false,
    })
}

fn next(workers: &mut Workers) -> (usize, Report) {
    loop {
        match workers.next(Duration::from_secs(20)).unwrap() {
            Some((_, Report::Progress(_))) => {}
            Some(report) => return report,
            None => panic!("no report within 20 s"),
        }
    }
}

#[test]
fn they_hold_check_and_release() {
    let _turn = turn(module_path!());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut workers = Workers::spawn(&lab(), 2).unwrap();
    workers.ask(1, &connect(listener.local_addr().unwrap(), 10)).unwrap();
    let (who, Report::Connected(connected)) = next(&mut workers) else { panic!() };
    assert_eq!((who, connected.tally.established, connected.why), (1, 10, Why::Done));
    let mut streams: Vec<_> = (0..10).map(|_| listener.accept().unwrap().0).collect();
    assert_eq!(workers.check().unwrap().alive, 10);
    streams.truncate(7);
    wait_until("three are seen closed", || workers.check().unwrap().closed == 3);
    assert_eq!(workers.release(&Request::Reset).unwrap(), 10);
    assert_eq!(workers.check().unwrap().alive, 0);
}

#[test]
fn they_ignore_an_interrupt() {
    let _turn = turn(module_path!());
    let mut workers = Workers::spawn(&lab(), 1).unwrap();
    signal(workers.pid(0), Signal::INT);
    assert_eq!(workers.check().unwrap().alive, 0);
}

#[test]
fn a_death_in_the_middle_is_incomplete_and_leaves_no_orphan() {
    let _turn = turn(module_path!());
    // One in the queue and one more: the others wait for a SYN-ACK.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(1).unwrap();
    let target = listener.local_addr().unwrap().as_socket().unwrap();
    let mut workers = Workers::spawn(&lab(), 2).unwrap();
    let pids = [workers.pid(0), workers.pid(1)];
    workers.ask_all(&connect(target, 100)).unwrap();
    signal(pids[0], Signal::KILL);
    let error = loop {
        match workers.next(Duration::from_secs(20)) {
            Ok(Some(_)) => {}
            Ok(None) => panic!("its death was not noticed"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.exit_code(), 5);
    assert!(matches!(error, Error::Incomplete { .. }));
    assert!(error.to_string().contains("worker 0"), "{error}");
    drop(workers);
    assert!(pids.iter().all(|pid| !runs(*pid)));
}

#[test]
fn the_end_of_stdin_is_the_end() {
    let _turn = turn(module_path!());
    let mut worker = Command::new(env!("CARGO_BIN_EXE_lab-worker"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    drop(worker.stdin.take());
    wait_until("the worker has ended", || worker.try_wait().unwrap().is_some());
    assert!(worker.wait().unwrap().success());
}

#[test]
fn a_request_that_cannot_be_read_ends_it() {
    let _turn = turn(module_path!());
    let mut worker = Command::new(env!("CARGO_BIN_EXE_lab-worker"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(worker.stdin.as_mut().unwrap(), b"what\n").unwrap();
    wait_until("the worker has ended", || worker.try_wait().unwrap().is_some());
    assert_eq!(worker.wait().unwrap().code(), Some(2));
}

/// What is said of a worker that is this shell script, and whether its process is left.
#[track_caller]
fn error_of(script: &'static str) -> String {
    let (sender, receiver) = channel();
    // A thread of its own: a defect here is a wait without end.
    std::thread::spawn(move || {
        let mut workers = Workers::with_command(move || {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        });
        let worker = workers.add().unwrap();
        let pid = workers.pid(worker);
        let error = workers.check().expect_err("no answer to it can be read");
        assert_eq!(error.exit_code(), 5, "{error}");
        assert!(!runs(pid), "it is waited for");
        sender.send(error.to_string()).unwrap();
    });
    receiver.recv_timeout(Duration::from_secs(60)).expect("the lab does not hang")
}

#[test]
fn what_cannot_be_read_ends_a_worker_and_is_quoted() {
    let _turn = turn(module_path!());
    // It ends with its stdin, as a worker does.
    let error = error_of(
        r#"echo '{"ready":{"room":7}}'; printf 'panic:\033[2J \377'; seq 100000; cat >/dev/null"#,
    );
    for words in ["worker 0", r"panic:\u{1b}[2J \xff1", "exit status: 0"] {
        assert!(error.contains(words), "no {words} in: {error}");
    }
    let error =
        error_of(r#"echo '{"ready":{"room":7}}'; head -c 9000000 /dev/zero; cat >/dev/null"#);
    assert!(error.len() < 2000 && error.contains(r"\u{0}"), "{error}");
}

#[test]
fn a_worker_that_closes_its_stdout_and_lives_on_is_killed() {
    let _turn = turn(module_path!());
    let error = error_of(r#"echo '{"ready":{"room":7}}'; exec sleep 1000 >&-"#);
    assert!(error.contains("worker 0") && error.contains("was killed"), "{error}");
}
