//! Connections that end, a server that pauses, a server that ends.

use std::time::Duration;

use crate::case::{Case, Event, Kind, OnLimit, Place};
use crate::judge::Check::{self, Between, Exit, Partial, Says, SaysSeconds, Stopped};

const ASK_1000: &[&str] = &["capacity", "--connections", "1000"];

const SERVER_ENDED: &[&[Check]] = &[&[Exit(&[0]), Stopped(&[("server_ended", Some("server"))])]];

pub(super) const CASES: &[Case] = &[
    Case {
        name: "idle-timeout",
        provokes: "connections silent for 1 s are closed; accepts take 2 ms",
        server: Some(&["--idle", "1s", "--accept-delay", "2ms"]),
        command: &["capacity", "--connections", "2000"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("idle_timeout", Some("server"))]),
            SaysSeconds(0.8, 2.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "idle-timeout-step",
        provokes: "connections silent for 1 s are closed; steps of 100",
        kind: Kind::Long,
        server: Some(&["--idle", "1s", "--accept-delay", "2ms"]),
        command: &["capacity", "--connections", "2000", "--step", "100"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("idle_timeout", Some("server"))]),
            SaysSeconds(0.8, 2.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "pause",
        provokes: "server stopped (SIGSTOP) for 2.5 s, within --timeout",
        server: Some(&["--stop-at", "500"]),
        command: ASK_1000,
        event: Some(Event::ContinueServer(Duration::from_millis(2500))),
        expected: &[&[Exit(&[0]), Stopped(&[("limit", None)]), Between("/alive", 1000.0, 1000.0)]],
        ..Case::PLAIN
    },
    Case {
        name: "pause-beyond-timeout",
        provokes: "server stopped (SIGSTOP) for longer than --timeout 1s",
        server: Some(&["--stop-at", "500"]),
        command: &["capacity", "--connections", "1000", "--timeout", "1s"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("timeout", Some("server"))]),
            Says(&["state T", "(T)", "stopped", "SIGSTOP"]),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "pause-beyond-then-on",
        provokes: "server stopped for 6 s, --timeout 2s",
        kind: Kind::Long,
        server: Some(&["--stop-at", "500"]),
        command: &["capacity", "--connections", "1000", "--timeout", "2s"],
        event: Some(Event::ContinueServer(Duration::from_secs(6))),
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("timeout", Some("server"))]),
            Says(&["state T", "(T)", "stopped", "SIGSTOP"]),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "crash-abort",
        provokes: "server aborts at 500 of 1,000 connections",
        server: Some(&["--crash-at", "500"]),
        command: ASK_1000,
        expected: SERVER_ENDED,
        ..Case::PLAIN
    },
    Case {
        name: "crash-kill",
        provokes: "server is killed (SIGKILL) at 500 of 1,000 connections",
        server: Some(&["--crash-at", "500", "--crash-by", "kill"]),
        command: ASK_1000,
        expected: SERVER_ENDED,
        ..Case::PLAIN
    },
    Case {
        name: "crash-kill-given-pid",
        provokes: "server is killed at 500 connections, its process given",
        places: &[Place::GivenPid],
        server: Some(&["--crash-at", "500", "--crash-by", "kill"]),
        command: ASK_1000,
        expected: SERVER_ENDED,
        ..Case::PLAIN
    },
    Case {
        name: "crash-exit",
        provokes: "server exits with 1 at 500 of 1,000 connections",
        server: Some(&["--crash-at", "500", "--crash-by", "exit"]),
        command: ASK_1000,
        expected: SERVER_ENDED,
        ..Case::PLAIN
    },
    Case {
        name: "interrupted",
        provokes: "plimsoll interrupted while accepts take 5 ms each",
        server: Some(&["--accept-delay", "5ms"]),
        command: &["capacity", "--connections", "2000"],
        event: Some(Event::InterruptPlimsoll(Duration::from_millis(1500))),
        expected: &[&[
            Exit(&[130]),
            Partial,
            Stopped(&[("interrupted", None)]),
            Between("/alive", 1.0, 400.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "oom-kill",
        provokes: "control group of 48 MiB, 256 KiB per connection: OOM kill",
        places: &[Place::ServerMemory(48 << 20, OnLimit::Kill)],
        server: Some(&["--memory-per-connection", "256KiB"]),
        command: ASK_1000,
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("server_ended", Some("server"))]),
            Says(&["oom_kill", "oom kill", "out of memory"]),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "cgroup-memory",
        provokes: "control group of 48 MiB reached, no kill (oom_control)",
        places: &[Place::ServerMemory(48 << 20, OnLimit::Wait)],
        server: Some(&["--memory-per-connection", "256KiB"]),
        command: &["capacity", "--connections", "1000", "--timeout", "1s"],
        expected: &[&[Exit(&[0]), Stopped(&[("cgroup", Some("server"))]), Says(&["memory"])]],
        ..Case::PLAIN
    },
    Case {
        name: "cgroup-pids",
        provokes: "control group of 200 tasks, a thread per connection",
        places: &[Place::ServerTasks(200)],
        server: Some(&["--thread-per-connection"]),
        command: &["capacity", "--connections", "1000", "--timeout", "1s"],
        expected: &[&[Exit(&[0]), Stopped(&[("pids", Some("server"))]), Says(&["200"])]],
        ..Case::PLAIN
    },
];
