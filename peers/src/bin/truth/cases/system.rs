//! What the kernel between client and server does: firewall, tracking, memory of TCP; and a
//! server whose side cannot be seen.

use crate::case::{Case, Kind, Place};
use crate::judge::Check::{AccountAddsUp, Between, Exit, Null, NullInEach, Says, Stopped, Within};

const TABLE: &str = "add table inet truth";
const CHAIN: &str = "add chain inet truth input { type filter hook input priority 0 ; }";

/// SYNs beyond the first 500 (one more an hour) are dropped.
const DROP: &[&str] = &[
    TABLE,
    CHAIN,
    "add rule inet truth input tcp dport {port} tcp flags & (syn | ack) == syn \
     limit rate over 1/hour burst 500 packets drop",
];
/// They are answered by a reset.
const REJECT: &[&str] = &[
    TABLE,
    CHAIN,
    "add rule inet truth input tcp dport {port} tcp flags & (syn | ack) == syn \
     limit rate over 1/hour burst 500 packets reject with tcp reset",
];
/// SYNs beyond 100 at once and 200 a second are dropped.
const RATE: &[&str] = &[
    TABLE,
    CHAIN,
    "add rule inet truth input tcp dport {port} tcp flags & (syn | ack) == syn \
     limit rate over 200/second burst 100 packets drop",
];
/// Connections are tracked.
const TRACK: &[&str] = &[TABLE, CHAIN, "add rule inet truth input ct state new counter accept"];

pub(super) const CASES: &[Case] = &[
    Case {
        name: "syn-drop",
        provokes: "a firewall drops SYNs beyond the first 500",
        places: &[Place::Namespace, Place::Firewall(DROP)],
        command: &["capacity", "--connections", "1000", "--timeout", "2s"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("timeout", None)]),
            Says(&["retrans", "sent again"]),
            Between("/alive", 450.0, 500.0),
            Within(20.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "syn-reject",
        provokes: "a firewall rejects SYNs beyond the first 500",
        places: &[Place::Namespace, Place::Firewall(REJECT)],
        command: &["capacity", "--connections", "1000", "--timeout", "1s"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("refused", Some("server"))]),
            Between("/alive", 450.0, 500.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "syn-rate",
        provokes: "a firewall lets 200 SYNs a second pass: all get in, slowly",
        kind: Kind::Long,
        places: &[Place::Namespace, Place::Firewall(RATE)],
        command: &["capacity", "--connections", "600", "--timeout", "20s"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("limit", None)]),
            Between("/alive", 600.0, 600.0),
            Says(&["retrans", "sent again"]),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "hidden-capacity",
        provokes: "500 connections, 5 ms away, its process not seen",
        places: &[Place::HiddenServer],
        server: Some(&["--max-connections", "500", "--beyond", "close"]),
        command: &["capacity", "--connections", "1000", "--timeout", "1s"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("server_limit", Some("server"))]),
            Between("/alive", 490.0, 500.0),
            Null("/user_bytes_per_connection"),
            Null("/kernel_bytes_per_connection"),
            NullInEach("/samples", "server_rss_bytes"),
            NullInEach("/samples", "queued"),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "hidden-full",
        provokes: "a server 5 ms away accepts no more than 500, its process not seen",
        kind: Kind::Long,
        places: &[Place::HiddenServer],
        server: Some(&["--max-connections", "500", "--beyond", "silence", "--backlog", "64"]),
        command: &["capacity", "--connections", "1000", "--timeout", "2s"],
        // From outside, connects that nobody answers are all there is to see.
        expected: &[&[
            Exit(&[0]),
            Stopped(&[
                ("timeout", None),
                ("server_limit", Some("server")),
                ("queue_full", Some("server")),
            ]),
            Says(&["retrans", "sent again"]),
            Null("/user_bytes_per_connection"),
            Null("/kernel_bytes_per_connection"),
            NullInEach("/samples", "queued"),
            Within(20.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "hidden-process",
        provokes: "500 connections, its listener seen and its process not",
        places: &[Place::Namespace, Place::HiddenProcess],
        server: Some(&["--max-connections", "500", "--beyond", "silence"]),
        command: &["capacity", "--connections", "1000", "--timeout", "1s"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("server_limit", Some("server"))]),
            Between("/alive", 490.0, 500.0),
            Null("/user_bytes_per_connection"),
            NullInEach("/samples", "server_rss_bytes"),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "hidden-load",
        provokes: "load on a server 5 ms away, its process not seen",
        places: &[Place::HiddenServer],
        command: &["load", "--connections", "20", "--rate", "500", "--duration", "1s"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("limit", None)]),
            Null("/server_cpu_us_per_message"),
            Between("/due", 500.0, 500.0),
            Between("/lost", 0.0, 0.0),
            AccountAddsUp,
            Between("/latency_us/p50", 10_000.0, 30_000.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "conntrack",
        provokes: "nf_conntrack_max 1,000 in a namespace with tracking",
        kind: Kind::MachineWide,
        places: &[
            Place::Namespace,
            Place::Firewall(TRACK),
            Place::MachineSetting("net/netfilter/nf_conntrack_max", "1000"),
        ],
        command: &["capacity", "--connections", "3000", "--timeout", "2s"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("conntrack", Some("both"))]),
            Says(&["nf_conntrack_max"]),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "tcp-mem-capacity",
        // The kernel lets each socket receive a minimum whatever tcp_mem says, so that connects
        // and small replies go on: naming the limit is right, and so is that it did not bind.
        provokes: "tcp_mem of 1,500 pages, unread greetings of 32 KiB",
        kind: Kind::MachineWide,
        places: &[Place::MachineSetting("net/ipv4/tcp_mem", "500 1000 1500")],
        server: Some(&["--greeting", "32KiB"]),
        command: &["capacity", "--connections", "3000", "--timeout", "2s"],
        expected: &[
            &[Exit(&[0]), Stopped(&[("tcp_mem", Some("both"))]), Says(&["tcp_mem"])],
            &[Exit(&[0]), Stopped(&[("limit", None)]), Between("/alive", 3000.0, 3000.0)],
        ],
        ..Case::PLAIN
    },
    Case {
        name: "tcp-mem-load",
        provokes: "tcp_mem of 2,000 pages, 256 KiB messages on 100 connections",
        kind: Kind::MachineWide,
        places: &[Place::MachineSetting("net/ipv4/tcp_mem", "1000 1500 2000")],
        command: &["load", "--connections", "100", "--size", "256KiB", "--duration", "2s"],
        expected: &[&[
            Exit(&[0, 5]),
            Stopped(&[("tcp_mem", Some("both"))]),
            Says(&["tcp_mem", "TCPMemoryPressures", "PruneCalled"]),
        ]],
        ..Case::PLAIN
    },
];
