//! Out of descriptors while clients wait: nothing burns, nobody who is in notices, and who waits is
//! served as soon as there is one.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use plimsoll::{Choice, Profile, Reason};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Socket, Type};

use super::test_server::{Echo, PATIENCE, TestServer, answers, eventually, eventually_is, small};
use crate::common::log;
use crate::common::own_process::alone;

/// Connections at once, a half on each of two shards.
const MOST: usize = 300;
const WAITING: usize = 150;
const INSIDE: usize = 20;
/// Sessions where the first shard's half is full, and the second has its half of those inside.
const FULL_TABLE: u64 = (MOST / 2 + INSIDE / 2) as u64;
const SHORT_FOR: Duration = Duration::from_secs(5);

#[test]
fn on_ready() {
    if alone("misbehaving::descriptors::on_ready") {
        return;
    }
    run_out(Choice::Ready, 1, true);
}

/// Shard 0 accepts into its ring's own table, and goes on; what goes to shard 1 is a descriptor for a
/// moment, and waits.
#[test]
fn on_uring_for_another_shard() {
    if alone("misbehaving::descriptors::on_uring_for_another_shard") {
        return;
    }
    run_out(Choice::Uring, 2, true);
}

/// Without a table each connection is a descriptor, its own shard's and others'.
#[test]
fn on_uring_with_plain_descriptors() {
    if alone("misbehaving::descriptors::on_uring_with_plain_descriptors") {
        return;
    }
    run_out(Choice::Uring, 2, false);
}

fn run_out(driver: Choice, shards: u32, pool: bool) {
    log::listen();
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(700), maximum: most }).unwrap();
    let mut limits = small();
    limits.max_connections = MOST as u32;
    let server = TestServer::pooled((driver, Profile::Connections), limits, shards, pool, Echo);
    let table = driver == Choice::Uring && pool;
    let mut inside: Vec<_> = (0..INSIDE).map(|_| server.connect()).collect();
    assert!(inside.iter_mut().all(answers));
    // Their descriptors are there before all others are used up.
    let sockets: Vec<_> =
        (0..WAITING).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).collect();
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    let mut waiting = wait_in_line(&server, sockets);
    if table {
        // The first shard needs no descriptor, and has room for half of all.
        eventually_is("its slots are full", &FULL_TABLE, || server.metrics().sessions);
    }
    stay_short(&server, &mut inside);
    if table {
        let metrics = server.metrics();
        assert_eq!(metrics.sessions, FULL_TABLE, "{metrics:?}");
    } else {
        free_one_at_a_time(&server, inside.split_off(INSIDE / 2), &mut waiting);
    }
    // Room for all: none of them was lost.
    drop(files);
    let begun = Instant::now();
    for stream in &mut waiting {
        stream.read_exact(&mut [0]).unwrap();
    }
    println!("all others served {:?} after the files were closed", begun.elapsed());
    assert!(inside.iter_mut().chain(&mut waiting).all(answers));
    server.finish();
}

/// They connect, which the backlog does, and say a byte.
fn wait_in_line(server: &TestServer, sockets: Vec<Socket>) -> Vec<TcpStream> {
    let wait = |socket: Socket| {
        socket.connect(&server.address.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"x").unwrap();
        stream
    };
    sockets.into_iter().map(wait).collect()
}

/// Short of descriptors for a while, in which those who are in are served.
fn stay_short(server: &TestServer, inside: &mut [TcpStream]) {
    log::take();
    let (begun, used) = (Instant::now(), cpu_time());
    let mut slowest = Duration::ZERO;
    while begun.elapsed() < SHORT_FOR {
        for stream in &mut *inside {
            let asked = Instant::now();
            assert!(answers(stream));
            slowest = slowest.max(asked.elapsed());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let share = cpu_time().saturating_sub(used).as_secs_f64() / begun.elapsed().as_secs_f64();
    let lines = log::take().len() as u64;
    let metrics = server.metrics();
    println!(
        "short for {:?}: {:.2} % of a CPU, {lines} log lines, {} accepts failed, {} sessions, \
         slowest answer {slowest:?}",
        begun.elapsed(),
        share * 100.0,
        metrics.accept_errors,
        metrics.sessions
    );
    assert!(metrics.accept_errors > 0, "descriptors were not short");
    assert!(share < 0.02, "{share}");
    assert!(lines <= begun.elapsed().as_secs() + 1, "{lines} lines");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

/// Each session that ends makes room for exactly one who waits: its client keeps its own descriptor.
fn free_one_at_a_time(server: &TestServer, leaving: Vec<TcpStream>, waiting: &mut Vec<TcpStream>) {
    let mut times = Vec::new();
    let mut gone = Vec::new();
    for stream in leaving {
        stream.shutdown(Shutdown::Both).unwrap();
        let begun = Instant::now();
        waiting[0].read_exact(&mut [0]).unwrap();
        times.push(begun.elapsed());
        assert_eq!(server.ends(), Reason::PeerEnded);
        gone.push((stream, waiting.remove(0)));
        // The next accept fails, and the pause begins.
        let errors = server.metrics().accept_errors;
        eventually("short again", || server.metrics().accept_errors > errors);
    }
    times.sort();
    println!("the next client served after one of ours had ended: {times:?}");
    // Without a word from the session that ends, the pause would be half over on average: 50 ms.
    assert!(times[times.len() / 2] < Duration::from_millis(25), "{times:?}");
}

/// CPU time of this process so far. Needs no descriptor.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
