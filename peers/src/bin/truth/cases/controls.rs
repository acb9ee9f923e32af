//! Negative controls: a limit that is present and does not bind is never named.

use crate::case::{Case, Kind, OnLimit, Place};
use crate::judge::Check::{self, AccountAddsUp, Between, Exit, NoDocument, Says, Stopped};

const ASK_1000: &[&str] = &["capacity", "--connections", "1000", "--timeout", "5s"];
const PROBE_1000: &[&str] = &["capacity", "--connections", "1000", "--timeout", "5s", "--probe"];

const LIMIT: &[&[Check]] = &[&[
    Exit(&[0]),
    Stopped(&[("limit", None)]),
    Between("/established", 1000.0, 1000.0),
    Between("/alive", 1000.0, 1000.0),
]];

/// 100,000 SYNs at once are allowed.
const WIDE: &[&str] = &[
    "add table inet truth",
    "add chain inet truth input { type filter hook input priority 0 ; }",
    "add rule inet truth input tcp dport {port} tcp flags & (syn | ack) == syn \
     limit rate over 1/hour burst 100000 packets drop",
    "add rule inet truth input ct state new counter accept",
];

pub(super) const CASES: &[Case] = &[
    Case {
        name: "control-none",
        provokes: "nothing: 1,000 of 1,000 connections, probed",
        command: PROBE_1000,
        expected: LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "control-max-connections",
        provokes: "a limit of 5,000 connections, 1,000 asked",
        server: Some(&["--max-connections", "5000"]),
        command: ASK_1000,
        expected: LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "control-just-enough",
        provokes: "a limit of exactly the 1,000 connections asked for",
        server: Some(&["--max-connections", "1000"]),
        command: ASK_1000,
        expected: LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "control-descriptors",
        provokes: "an RLIMIT_NOFILE of 5,000, 1,000 asked",
        places: &[Place::GivenPid],
        server: Some(&["--descriptors", "5000"]),
        command: ASK_1000,
        expected: LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "control-descriptors-near",
        provokes: "an RLIMIT_NOFILE of 1,010, 1,000 asked",
        server: Some(&["--descriptors", "1010"]),
        command: ASK_1000,
        expected: LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "control-idle",
        provokes: "an idle time-out of 60 s",
        server: Some(&["--idle", "60s"]),
        command: PROBE_1000,
        expected: LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "control-cgroup",
        provokes: "a control group of 2 GiB and one of 4,000 tasks",
        places: &[Place::ServerMemory(2 << 30, OnLimit::Kill), Place::ServerTasks(4000)],
        server: Some(&["--thread-per-connection", "--memory-per-connection", "16KiB"]),
        command: ASK_1000,
        expected: LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "control-cgroup-binds-not",
        provokes: "500 connections, in a control group that is far from full",
        places: &[Place::ServerMemory(2 << 30, OnLimit::Kill), Place::ServerTasks(4000)],
        server: Some(&["--max-connections", "500"]),
        command: ASK_1000,
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("server_limit", Some("server"))]),
            Between("/alive", 490.0, 500.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "control-firewall",
        provokes: "a firewall that drops beyond 100,000 SYNs, and tracks",
        places: &[Place::Namespace, Place::Firewall(WIDE)],
        command: ASK_1000,
        expected: LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "control-backlog",
        provokes: "a backlog of 8, emptied at once",
        server: Some(&["--backlog", "8"]),
        command: ASK_1000,
        expected: LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "control-ports",
        provokes: "1,200 local ports, one source address, 1,000 asked",
        places: &[
            Place::Namespace,
            Place::NamespaceSetting("net/ipv4/ip_local_port_range", "20000 21199"),
        ],
        command: &["capacity", "--connections", "1000", "--sources", "127.0.0.1/32"],
        expected: LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "control-closes-at-once",
        provokes: "a server that takes no connection at all: nothing can be measured",
        server: Some(&["--max-connections", "0", "--beyond", "close"]),
        command: ASK_1000,
        expected: &[&[Exit(&[4]), NoDocument, Says(&["close"])]],
        ..Case::PLAIN
    },
    Case {
        name: "control-never-answers",
        provokes: "a server that accepts and answers nothing, probed",
        server: Some(&["--stall", "0:60s"]),
        command: &["capacity", "--connections", "1000", "--timeout", "1s", "--probe"],
        expected: &[&[Exit(&[4]), NoDocument, Says(&["answer"])]],
        ..Case::PLAIN
    },
    Case {
        name: "control-many",
        provokes: "nothing: 10,000 of 10,000 connections",
        kind: Kind::Long,
        command: &["capacity", "--connections", "10000", "--probe"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("limit", None)]),
            Between("/alive", 10_000.0, 10_000.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "control-load",
        provokes: "nothing: 500/s for 1 s",
        command: &["load", "--rate", "500", "--duration", "1s", "--connections", "20"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("limit", None)]),
            Between("/due", 500.0, 500.0),
            Between("/answered", 490.0, 500.0),
            Between("/reconnects", 0.0, 0.0),
            AccountAddsUp,
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "control-load-latency",
        provokes: "replies after 200 ms, 500/s for 1 s: the last 100 come late",
        server: Some(&["--reply-delay", "200ms", "--message-bytes", "64"]),
        command: &["load", "--rate", "500", "--duration", "1s", "--connections", "20"],
        expected: &[&[
            Exit(&[0]),
            // Every message was sent in time and answered as fast as all others.
            Stopped(&[("limit", None)]),
            Between("/due", 500.0, 500.0),
            Between("/lost", 0.0, 0.0),
            AccountAddsUp,
            Between("/latency_us/p50", 200_000.0, 230_000.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "control-load-delay",
        provokes: "replies after 50 ms, a closed loop of 20 connections",
        kind: Kind::Long,
        server: Some(&["--reply-delay", "50ms"]),
        command: &["load", "--duration", "2s", "--connections", "20"],
        expected: &[&[
            Exit(&[0]),
            // Neither side's core is full: time passes in the server.
            Stopped(&[("limit", None), ("unknown", None)]),
            Between("/latency_us/p50", 50_000.0, 70_000.0),
            Between("/lost", 0.0, 0.0),
            AccountAddsUp,
        ]],
        ..Case::PLAIN
    },
];
