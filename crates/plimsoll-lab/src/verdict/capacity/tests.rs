//! Every verdict of a ramp, on invented servers and machines; and limits that do not bind, which are
//! never named.

use std::path::PathBuf;

use plimsoll_kernel::cgroup::{Bound, GroupFigures};
use plimsoll_kernel::limits::{Files, Limits, Rlimit, Triple};
use plimsoll_kernel::process::State;
use plimsoll_kernel::sockstat::Sockstat;

use super::*;
use crate::observe::{How, Memory, Process, ProcessFamily, Queue};
use crate::verdict::machine::Guard;

/// A machine with a server on it, at a moment: nothing is short.
fn machine(seconds: u64) -> Snapshot {
    let counters = [("ListenOverflows", 0), ("TCPSynRetrans", 0), ("TCPAbortOnMemory", 0)];
    Snapshot {
        at: Duration::from_secs(seconds),
        netstat: Some(counters.into_iter().collect()),
        sockstat: Some(sockets(100)),
        memory: Some(Memory { total: 1 << 34, available: 1 << 33 }),
        limits: Limits {
            nofile: Some(Rlimit { soft: 1024, hard: 1024 }),
            files: Some(Files { allocated: 5_000, max: 2_000_000 }),
            tcp_mem: Some(Triple { min: 1_000, default: 2_000, max: 3_000 }),
            nf_conntrack_count: Some(10),
            nf_conntrack_max: Some(1_000),
            local_ports: Some((40_000, 40_999)),
            ..Limits::default()
        },
        client_group: Some(group(64 << 20, 1 << 30)),
        server_group: Some(group(32 << 20, 64 << 20)),
        server: Some(family(State::Sleeping, 510, 1_024, 0)),
        listener: Some(Queue { depth: 0, granted: 128, listeners: 1, full: false }),
        ..Snapshot::default()
    }
}

fn sockets(pages: u64) -> Sockstat {
    Sockstat {
        sockets_used: 0,
        tcp_inuse: 0,
        tcp6_inuse: None,
        orphans: 0,
        time_wait: 0,
        allocated: 0,
        memory_pages: pages,
    }
}

fn group(current: u64, limit: u64) -> GroupFigures {
    let bound =
        |limit, current| Bound { limit: Some(limit), current, group: PathBuf::from("/box") };
    GroupFigures {
        memory: Some(bound(limit, current)),
        memory_reclaimable: Some(0),
        memory_limit_hits: Some(4),
        oom_kills: Some(1),
        under_oom: Some(false),
        pids: Some(bound(200, 20)),
        pids_refused: Some(3),
        ..GroupFigures::default()
    }
}

fn family(state: State, descriptors: u64, limit: u64, cpu_ms: u64) -> ProcessFamily {
    let process = Process {
        pid: 42,
        state: Some(state),
        descriptors: Some(descriptors),
        descriptors_limit: Some(limit),
        cpu: Some(Duration::from_millis(cpu_ms)),
        run_delay: Some(Duration::ZERO),
        ..Process::default()
    };
    ProcessFamily { processes: vec![process] }
}

fn counters(now: &mut Snapshot, overflows: u64, again: u64) {
    let counters = [("ListenOverflows", overflows), ("TCPSynRetrans", again)];
    now.netstat = Some(counters.into_iter().collect());
}

/// A run to be changed by a test: 500 connections after 10 s, 50 of them in the last step, of 1,000.
struct Run {
    before: Snapshot,
    step_began: Snapshot,
    now: Snapshot,
    step: Step,
    errors: BTreeMap<String, u64>,
    held: Checked,
    waited: Option<Ended>,
    ended: Option<observe::Ended>,
    stuck: Option<Stuck>,
    own: Option<Own>,
    asked: Option<u64>,
    interrupted: bool,
    slowness: Slowness,
}

impl Run {
    fn new() -> Self {
        Self {
            before: machine(0),
            step_began: machine(8),
            now: machine(10),
            step: Step::More,
            errors: BTreeMap::new(),
            held: Checked {
                alive: 500,
                longest_quiet_alive_ms: Some(10_000),
                since_last_look_ms: 100,
                ..Checked::default()
            },
            waited: None,
            ended: None,
            stuck: None,
            own: None,
            asked: Some(1_000),
            interrupted: false,
            slowness: Slowness::default(),
        }
    }

    fn stuck(depth: u64) -> Self {
        let mut run = Self::new();
        run.stuck = Some(Stuck { depth, still: Duration::from_millis(1_003) });
        run.now.listener = Some(Queue { depth, granted: 128, listeners: 1, full: false });
        run
    }

    fn failing(error: &str) -> Self {
        let mut run = Self::new();
        run.step = Step::Met(Why::Failing);
        run.errors = BTreeMap::from([(error.to_owned(), 16)]);
        run
    }

    /// The server ended `count` connections, which had been quiet for so long.
    fn lost(count: u64, quiet_ms: (u64, u64), said: &[u8]) -> Self {
        let mut run = Self::new();
        run.held.alive = 500 - count;
        run.held.closed = count;
        run.held.ended = Ended {
            count,
            shortest_quiet_ms: Some(quiet_ms.0),
            longest_quiet_ms: Some(quiet_ms.1),
            with_words: if said.is_empty() { 0 } else { count },
            said: said.to_vec(),
        };
        run
    }

    fn verdict(&self) -> Option<Stop> {
        after(&Facts {
            before: &self.before,
            step_began: &self.step_began,
            now: &self.now,
            interrupted: self.interrupted,
            asked: self.asked,
            established: 500,
            made: 50,
            step: &self.step,
            errors: &self.errors,
            unanswered: Duration::from_millis(1_004),
            sources: ("127.0.0.1", 1),
            target: "127.0.0.1:7000".parse().expect("an address"),
            ended: self.ended.as_ref(),
            held: &self.held,
            waited: self.waited.as_ref(),
            stuck: self.stuck,
            own: self.own,
            slowness: self.slowness,
        })
    }

    #[track_caller]
    fn is(&self, by: StoppedBy, side: impl Into<Option<Side>>, words: &[&str]) {
        let stop = self.verdict().expect("something ends it");
        assert_eq!((stop.by, stop.side), (by, side.into()), "{}", stop.evidence);
        for word in words {
            assert!(stop.evidence.contains(word), "no `{word}` in: {}", stop.evidence);
        }
    }
}

#[test]
fn a_ramp_that_nothing_ends_goes_on() {
    assert_eq!(Run::new().verdict(), None);
    // A few connections that end do not end a ramp.
    assert_eq!(Run::lost(10, (30, 40), b"").verdict(), None);
    assert_eq!(Guard::default().check(&machine(0)), None);
    // A helper of the server that crashed, while nothing is wrong with connections.
    let mut run = Run::new();
    run.ended = Some(end(false, Some(How::Signal(11))));
    assert_eq!(run.verdict(), None);
}

#[test]
fn what_was_asked_for_and_an_interrupt_have_no_side() {
    let mut run = Run::new();
    run.asked = Some(500);
    run.is(StoppedBy::Limit, None, &["500 connections were asked for"]);
    let evidence = run.verdict().expect("it is reached").evidence;
    assert!(!evidence.contains(';'), "nothing was slow: {evidence}");
    run.interrupted = true;
    run.is(StoppedBy::Interrupted, None, &["interrupted after 500"]);
}

#[test]
fn reached_slowly_is_said_with_what_was_seen() {
    let mut run = Run::new();
    run.asked = Some(500);
    run.slowness = Slowness { waited: Duration::from_millis(9_500), deepest: 50, granted: 128 };
    run.now.server = Some(family(State::Running, 510, 1_024, 9_800));
    let words = ["accepted 499 in 10.0 s", "49.9/s", "9.5 s were spent", "50 of 128", "0.98"];
    run.is(StoppedBy::Limit, None, &words);
    let mut run = Run::new();
    run.asked = Some(500);
    counters(&mut run.now, 0, 77);
    run.is(StoppedBy::Limit, None, &["77 SYNs were sent again"]);
    // A server whose side cannot be seen.
    run.now.listener = None;
    run.now.server = None;
    run.is(StoppedBy::Limit, None, &["77 SYNs"]);
}

fn end(is_main: bool, how: Option<How>) -> observe::Ended {
    observe::Ended {
        pid: 42,
        name: Some("faulty".to_owned()),
        is_main,
        how,
        oom_kills: Some(0),
        last_line: None,
    }
}

#[test]
fn a_server_that_ended_is_named_with_its_signal_or_code() {
    for (how, word) in [
        (Some(How::Signal(9)), "SIGKILL (signal 9)"),
        (Some(How::Signal(34)), "by signal 34"),
        (Some(How::Code(1)), "exit code 1"),
        (None, "is gone"),
    ] {
        let mut run = Run::new();
        run.ended = Some(end(true, how));
        run.is(StoppedBy::ServerEnded, Side::Server, &[word, "(faulty)", "after 500"]);
        let evidence = run.verdict().expect("it has ended").evidence;
        assert!(!evidence.contains("oom"), "{evidence}");
    }
    let mut run = Run::lost(400, (30, 9_000), b"");
    run.ended = Some(observe::Ended { oom_kills: Some(1), ..end(false, Some(How::Signal(9))) });
    run.is(StoppedBy::ServerEnded, Side::Server, &["process 42 of the server", "oom_kill +1"]);
    // Behind a namespace: its process is not seen, but all have ended and nothing listens.
    let mut run = Run::lost(500, (30, 10_000), b"");
    run.held.longest_quiet_alive_ms = None;
    run.errors = BTreeMap::from([(errno::REFUSED.to_owned(), 16)]);
    run.step = Step::Met(Why::Failing);
    (run.now.server, run.now.listener) = (None, None);
    run.is(StoppedBy::ServerEnded, Side::Server, &["nothing listens any more"]);
    // The same, and something listens: nobody knows.
    let mut run = Run::lost(500, (30, 10_000), b"");
    run.held.longest_quiet_alive_ms = None;
    run.is(StoppedBy::Unknown, Side::Server, &["ended 500 connections"]);
}

#[test]
fn a_paused_server_is_a_time_out_with_its_state() {
    for mut run in [Run::stuck(40), Run::failing(errno::TIMED_OUT)] {
        run.now.server = Some(family(State::Stopped, 510, 1_024, 0));
        run.is(StoppedBy::Timeout, Side::Server, &["state T", "process 42"]);
    }
    // A pause that has nothing to do with what is wrong.
    let mut run = Run::lost(50, (20, 40), b"");
    run.now.server = Some(family(State::Stopped, 510, 1_024, 0));
    run.is(StoppedBy::ServerLimit, Side::Server, &["ended 50 connections while 50 were made"]);
}

#[test]
fn the_server_s_control_group_is_named_where_it_binds() {
    let mut run = Run::stuck(40);
    let limit = 64 << 20;
    run.now.server_group =
        Some(GroupFigures { memory_limit_hits: Some(99), ..group(limit, limit) });
    run.is(
        StoppedBy::Cgroup,
        Side::Server,
        &["/box", "64 of its 64 MiB", "met that limit 95 times"],
    );
    run.now.server_group = Some(GroupFigures { under_oom: Some(true), ..group(limit, limit) });
    run.is(StoppedBy::Cgroup, Side::Server, &["under_oom"]);
    run.now.server_group = Some(GroupFigures { oom_kills: Some(2), ..group(limit / 2, limit) });
    run.is(StoppedBy::Cgroup, Side::Server, &["oom_kill +1"]);
    let mut run = Run::lost(50, (20, 40), b"");
    let full = Bound { limit: Some(200), current: 200, group: PathBuf::from("/box") };
    run.now.server_group =
        Some(GroupFigures { pids: Some(full), pids_refused: Some(53), ..group(32 << 20, limit) });
    run.is(StoppedBy::Pids, Side::Server, &["200 of pids.max 200", "refused 50 more"]);
    // A group at its limit with cached files only, that met it meanwhile: nothing is short.
    let mut run = Run::stuck(40);
    run.now.server_group = Some(GroupFigures {
        memory_reclaimable: Some(32 << 20),
        memory_limit_hits: Some(99),
        ..group(limit, limit)
    });
    run.is(StoppedBy::ServerLimit, Side::Server, &["a limit of its own"]);
}

#[test]
fn descriptors_are_the_server_s_the_machine_s_or_the_clients() {
    let mut run = Run::stuck(40);
    run.now.server = Some(family(State::Sleeping, 512, 512, 0));
    run.is(StoppedBy::Descriptors, Side::Server, &["512 descriptors open of RLIMIT_NOFILE 512"]);
    let mut run = Run::new();
    run.step = Step::Met(Why::Files);
    run.is(StoppedBy::Descriptors, Side::Both, &["5000 of fs.file-max 2000000"]);
    run.step = Step::NoWorkers(NoMoreWorkers::Descriptors { used: 1_010, room: 992, workers: 490 });
    run.is(StoppedBy::Descriptors, Side::Client, &["1010 descriptors", "1024", "490 processes"]);
    let mut near = machine(0);
    near.limits.files = Some(Files { allocated: 90, max: 100 });
    let stop = Guard::default().check(&near).expect("10 % are left");
    assert_eq!((stop.by, stop.side), (StoppedBy::Descriptors, Some(Side::Both)));
}

#[test]
fn a_refused_client_process_is_told_from_its_control_group() {
    let refused = NoMoreWorkers::Refused { error: "EAGAIN".to_owned(), workers: 7 };
    let mut run = Run::new();
    run.step = Step::NoWorkers(refused);
    run.is(StoppedBy::Unknown, Side::Client, &["EAGAIN", "7 processes"]);
    run.now.client_group = Some(GroupFigures { pids_refused: Some(4), ..group(64 << 20, 1 << 30) });
    run.is(StoppedBy::Pids, Side::Client, &["pids.events max +1", "pids.max 200"]);
}

#[test]
fn memory_is_the_machine_s_the_group_s_or_a_socket_s() {
    let guard = Guard { memory_percent: 90.0 };
    let mut full = machine(0);
    full.memory = Some(Memory { total: 1000 << 20, available: 80 << 20 });
    let stop = guard.check(&full).expect("92 % are in use");
    assert_eq!((stop.by, stop.side), (StoppedBy::Memory, Some(Side::Both)));
    assert!(stop.evidence.contains("92.0 %"), "{}", stop.evidence);
    let mut full = machine(0);
    full.client_group = Some(group(60 << 20, 64 << 20));
    let stop = guard.check(&full).expect("the clients' group is near its limit");
    assert_eq!((stop.by, stop.side), (StoppedBy::Cgroup, Some(Side::Both)));
    let mut run = Run::new();
    run.step = Step::Met(Why::Memory);
    run.errors = BTreeMap::from([("ENOBUFS".to_owned(), 1)]);
    run.is(StoppedBy::Memory, Side::Client, &["ENOBUFS × 1"]);
}

#[test]
fn tcp_s_memory_and_the_tracking_table_bind_both_sides() {
    for mut run in [Run::stuck(40), Run::failing(errno::TIMED_OUT)] {
        run.now.sockstat = Some(sockets(3_000));
        run.is(StoppedBy::TcpMem, Side::Both, &["3000 pages", "tcp_mem allows 3000"]);
        run.now.sockstat = Some(sockets(2_900));
        run.now.limits.nf_conntrack_count = Some(1_000);
        run.is(StoppedBy::Conntrack, Side::Both, &["1000 of nf_conntrack_max 1000"]);
    }
    let mut full = machine(0);
    full.limits.nf_conntrack_count = Some(1_000);
    let stop = Guard::default().check(&full).expect("the table is full");
    assert_eq!(stop.by, StoppedBy::Conntrack);
}

#[test]
fn ports_are_the_clients() {
    let mut run = Run::new();
    run.step = Step::NoPorts;
    run.is(StoppedBy::Ports, Side::Client, &["500 connections from 127.0.0.1", "1000 ports"]);
}

#[test]
fn refusals_resets_and_silence_are_told_apart() {
    let run = Run::failing(errno::REFUSED);
    run.is(StoppedBy::Refused, Side::Server, &["after 500 connections", errno::REFUSED]);
    let run = Run::failing("ECONNRESET");
    run.is(StoppedBy::ServerLimit, Side::Server, &["ECONNRESET × 16"]);
    let evidence = run.verdict().expect("it fails").evidence;
    assert!(!evidence.contains("answered for"), "nothing was waited for: {evidence}");
    let mut run = Run::failing(errno::TIMED_OUT);
    counters(&mut run.now, 0, 48);
    run.is(StoppedBy::Timeout, None, &["none was answered for 1.0 s", "48 SYNs were sent again"]);
    Run::failing("EHOSTUNREACH").is(StoppedBy::Unknown, None, &["EHOSTUNREACH × 16"]);
}

#[test]
fn a_queue_that_is_emptied_too_slowly_is_told_from_a_full_processor() {
    // 3 accepts in 10 s, and 1 s without one: nothing unusual.
    let slow = || {
        let mut run = Run::failing(errno::TIMED_OUT);
        counters(&mut run.now, 12, 30);
        run.now.listener = Some(Queue { depth: 496, granted: 495, listeners: 1, full: true });
        run.stuck = Some(Stuck { depth: 496, still: Duration::from_secs(1) });
        run
    };
    let words = ["more slowly than clients arrive", "ListenOverflows +12", "496 of 495"];
    slow().is(StoppedBy::QueueFull, Side::Server, &words);
    let mut busy = slow();
    busy.now.server = Some(family(State::Running, 10, 1_024, 1_980));
    busy.is(StoppedBy::Cpu, Side::Server, &["process 42 used 0.99 of a core", "ListenOverflows"]);
    // A core that others have taken from it is full, too.
    let mut crowded = slow();
    let mut family = family(State::Running, 10, 1_024, 1_200);
    family.processes[0].run_delay = Some(Duration::from_millis(700));
    crowded.now.server = Some(family);
    crowded.is(StoppedBy::Cpu, Side::Server, &["0.60 of a core and waited for one 0.35"]);
}

#[test]
fn a_server_that_accepts_no_more_has_a_limit_of_its_own() {
    let run = Run::stuck(40);
    let words = ["leaves 40 connections", "for 1.0 s", "510 of 1024 descriptors", "its own"];
    run.is(StoppedBy::ServerLimit, Side::Server, &words);
    // Its process is not seen.
    let mut run = Run::stuck(40);
    (run.now.server, run.now.server_group) = (None, None);
    run.is(StoppedBy::ServerLimit, Side::Server, &["leaves 40 connections"]);
}

#[test]
fn what_the_server_says_beyond_its_limit_is_quoted() {
    let run = Run::lost(50, (20, 40), b"-ERR max number of clients reached\r\n");
    let words = ["told 50 of them \"-ERR max number of clients reached\\r\\n\"", "of its own"];
    run.is(StoppedBy::ServerLimit, Side::Server, &words);
}

#[test]
fn the_oldest_that_end_by_time_alone_are_an_idle_time_out() {
    let mut run = Run::lost(50, (1_010, 1_090), b"");
    run.held.longest_quiet_alive_ms = Some(1_000);
    run.waited = Some(Ended {
        count: 9,
        shortest_quiet_ms: Some(1_003),
        longest_quiet_ms: Some(1_020),
        ..Ended::default()
    });
    run.is(StoppedBy::IdleTimeout, Side::Server, &["the oldest ones", "1.00 to 1.02 s"]);
    // With no more made, none followed: the server ends its oldest where it has too many.
    run.waited = Some(Ended::default());
    run.is(StoppedBy::ServerLimit, Side::Server, &["ended 50 connections"]);
    // The newest ended.
    let mut run = Run::lost(50, (10, 60), b"");
    run.waited = Some(Ended { count: 9, shortest_quiet_ms: Some(20), ..Ended::default() });
    run.is(StoppedBy::ServerLimit, Side::Server, &["ended 50 connections"]);
}

#[test]
fn the_tool_s_own_limit_is_named_as_ours() {
    let mut run = Run::stuck(40);
    run.own = Some(Own { limit: 460, pressure: Some(0) });
    run.is(StoppedBy::ServerLimit, Side::Server, &["460", "this tool", "--connections N"]);
    run.own = Some(Own { limit: 10_000, pressure: Some(1) });
    run.is(StoppedBy::ServerLimit, Side::Server, &["engine itself brakes"]);
    run.own = Some(Own { limit: 10_000, pressure: Some(0) });
    run.is(StoppedBy::ServerLimit, Side::Server, &["a limit of its own"]);
}

#[test]
fn what_the_clients_cannot_see_is_said() {
    let mut stop = Stop::new(StoppedBy::Limit, None, "reached");
    mention(&mut stop, 500, 500, Some(0));
    assert_eq!(stop.evidence, "reached");
    mention(&mut stop, 500, 460, Some(40));
    assert!(stop.evidence.contains("40 still wait") && stop.evidence.contains("460 are alive"));
}
