//! Load: what holds it back, and the account of its messages.

use std::time::Duration;

use crate::case::{Case, Event, Kind};
use crate::judge::Check::{
    self, AccountAddsUp, AtLeast, Between, DueByRate, Exit, Partial, Says, Stopped,
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "load-client-cpu",
        provokes: "batches of 256 tiny messages: the generator's core is full",
        command: &[
            "load",
            "--connections",
            "20",
            "--depth",
            "256",
            "--size",
            "16",
            "--duration",
            "1s",
        ],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("cpu", Some("client"))]),
            AtLeast("/client_cpu_us_per_message", 0.001),
            AccountAddsUp,
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "load-server-cpu",
        provokes: "200 µs of CPU per message: the server's core is full",
        server: Some(&["--reply-cpu", "200us", "--message-bytes", "64"]),
        command: &["load", "--connections", "20", "--duration", "1s"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("cpu", Some("server"))]),
            Says(&["cpu", "processor", "core"]),
            Between("/server_cpu_us_per_message", 190.0, 400.0),
            AccountAddsUp,
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "load-server-cpu-open",
        provokes: "200 µs of CPU per message, at twice the rate that this allows",
        kind: Kind::Long,
        server: Some(&["--reply-cpu", "200us", "--message-bytes", "64"]),
        command: &[
            "load",
            "--connections",
            "20",
            "--rate",
            "10000",
            "--duration",
            "2s",
            "--timeout",
            "10s",
        ],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("cpu", Some("server"))]),
            Between("/due", 20_000.0, 20_000.0),
            AccountAddsUp,
            Between("/lost", 0.0, 0.0),
            Between("/late", 1.0, 20_000.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "load-killed",
        provokes: "server killed 1 s into a load of 3 s, closed loop",
        command: &["load", "--connections", "20", "--duration", "3s", "--timeout", "1s"],
        event: Some(KILL_LATER),
        expected: &[&[
            Exit(&[5]),
            Stopped(&[("server_ended", Some("server"))]),
            AtLeast("/messages", 1.0),
            AccountAddsUp,
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "load-killed-open",
        provokes: "server killed 1 s into a load of 3 s, 1,000/s",
        command: &[
            "load",
            "--connections",
            "20",
            "--rate",
            "1000",
            "--duration",
            "3s",
            "--timeout",
            "1s",
        ],
        event: Some(KILL_LATER),
        expected: &[
            // It goes on to the end: everything that falls due after the kill is lost.
            &[
                Exit(&[5]),
                Stopped(&[("server_ended", Some("server"))]),
                Between("/due", 3000.0, 3000.0),
                Between("/answered", 300.0, 2500.0),
                Between("/lost", 500.0, 2700.0),
                AccountAddsUp,
            ],
            // It ends with the server, and says how long it measured.
            &[
                Exit(&[5]),
                Stopped(&[("server_ended", Some("server"))]),
                DueByRate,
                Between("/answered", 300.0, 2500.0),
                AtLeast("/lost", 1.0),
                AccountAddsUp,
            ],
        ],
        ..Case::PLAIN
    },
    Case {
        name: "load-keepalive",
        provokes: "server closes each connection after 100 replies",
        server: Some(&["--close-after-replies", "100"]),
        command: &["load", "--connections", "20", "--duration", "1s"],
        expected: &[&[
            Exit(&[0]),
            AtLeast("/reconnects", 10.0),
            Between("/duration", 0.95, 2.0),
            Between("/corrupt", 0.0, 0.0),
            Between("/lost", 0.0, 0.0),
            AccountAddsUp,
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "load-keepalive-open",
        provokes: "server closes after 100 replies, at a rate of 2,000/s",
        server: Some(&["--close-after-replies", "100"]),
        command: &["load", "--connections", "5", "--rate", "2000", "--duration", "1s"],
        expected: &[&[
            Exit(&[0]),
            AtLeast("/reconnects", 10.0),
            Between("/due", 2000.0, 2000.0),
            Between("/lost", 0.0, 0.0),
            AccountAddsUp,
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "load-stall",
        provokes: "server stalls from 1 s for 10 s; 1,000/s for 3 s, --timeout 1s",
        server: Some(&["--stall", "1s:10s"]),
        command: &["load", "--rate", "1000", "--duration", "3s", "--timeout", "1s"],
        expected: &[&[
            Exit(&[5]),
            Between("/due", 3000.0, 3000.0),
            Between("/answered", 300.0, 1500.0),
            Between("/lost", 1500.0, 2700.0),
            AccountAddsUp,
            // Two thirds of the messages were waited for in vain, for 1 s at least.
            AtLeast("/latency_us/p50", 990_000.0),
            AtLeast("/latency_us/p99", 2_500_000.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "load-pauses",
        provokes: "server pauses 300 ms in each second; 1,000/s for 3 s",
        kind: Kind::Long,
        server: Some(&["--pause-every", "700ms:300ms"]),
        command: &["load", "--rate", "1000", "--duration", "3s"],
        expected: &[&[
            Exit(&[0]),
            Between("/due", 3000.0, 3000.0),
            Between("/lost", 0.0, 0.0),
            AccountAddsUp,
            Between("/latency_us/max", 270_000.0, 900_000.0),
            Between("/latency_us/p90", 100_000.0, 900_000.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "load-sigstop-start",
        provokes: "server stopped for 300 ms soon after the start of 3 s of 1,000/s",
        kind: Kind::Long,
        command: LOAD_1000,
        event: Some(stop(200, Some(300))),
        expected: STOPPED_300,
        ..Case::PLAIN
    },
    Case {
        name: "load-sigstop-middle",
        provokes: "server stopped for 300 ms in the middle of 3 s of 1,000/s",
        kind: Kind::Long,
        command: LOAD_1000,
        event: Some(stop(1500, Some(300))),
        expected: STOPPED_300,
        ..Case::PLAIN
    },
    Case {
        name: "load-sigstop-end",
        provokes: "server stopped for 300 ms from shortly before the end of 3 s of 1,000/s",
        kind: Kind::Long,
        command: LOAD_1000,
        event: Some(stop(2850, Some(300))),
        expected: &[&[
            Exit(&[0]),
            Between("/due", 3000.0, 3000.0),
            Between("/late", 1.0, 300.0),
            Between("/lost", 0.0, 0.0),
            AccountAddsUp,
            Between("/latency_us/max", 285_000.0, 345_000.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "load-sigstop-2s",
        provokes: "server stopped for 2 s after 0.5 s of 3 s of 1,000/s",
        kind: Kind::Long,
        command: LOAD_1000,
        event: Some(stop(500, Some(2000))),
        expected: &[&[
            Exit(&[0]),
            Between("/due", 3000.0, 3000.0),
            Between("/lost", 0.0, 0.0),
            AccountAddsUp,
            Between("/latency_us/max", 1_900_000.0, 2_100_000.0),
            Between("/latency_us/p999", 1_890_000.0, 2_100_000.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "load-sigstop-to-the-end",
        provokes: "server stopped for good after 1 s of 3 s of 1,000/s, --timeout 2s",
        kind: Kind::Long,
        command: &["load", "--rate", "1000", "--duration", "3s", "--timeout", "2s"],
        event: Some(stop(1000, None)),
        expected: &[&[
            Exit(&[5]),
            Between("/due", 3000.0, 3000.0),
            Between("/lost", 1500.0, 2500.0),
            Between("/late", 0.0, 0.0),
            AccountAddsUp,
            // The first message that was lost was waited for from 1 s to 5 s.
            Between("/latency_us/max", 3_500_000.0, 4_500_000.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "load-overrun",
        provokes: "server answers 1,500/s, 3,000/s asked for 2 s",
        kind: Kind::Long,
        server: Some(&["--rate", "1500", "--message-bytes", "64"]),
        command: &["load", "--rate", "3000", "--duration", "2s", "--timeout", "10s"],
        expected: &[&[
            Exit(&[0]),
            Between("/due", 6000.0, 6000.0),
            Between("/answered", 2000.0, 3300.0),
            Between("/late", 2700.0, 4000.0),
            Between("/lost", 0.0, 0.0),
            AccountAddsUp,
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "load-open-loop",
        provokes: "20/s against a server that answers at once",
        command: &["load", "--rate", "20", "--duration", "1s", "--connections", "5"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("limit", None)]),
            Between("/due", 20.0, 20.0),
            Between("/answered", 19.0, 20.0),
            AccountAddsUp,
            // The distance between two messages is 50 ms.
            Between("/latency_us/p50", 1.0, 10_000.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "load-interrupted",
        provokes: "plimsoll interrupted 1 s into a load of 10 s",
        command: &["load", "--connections", "20", "--duration", "10s"],
        event: Some(Event::InterruptPlimsoll(Duration::from_secs(1))),
        expected: &[&[
            Exit(&[130]),
            Partial,
            Stopped(&[("interrupted", None)]),
            AtLeast("/messages", 1.0),
        ]],
        ..Case::PLAIN
    },
];

const LOAD_1000: &[&str] = &["load", "--rate", "1000", "--duration", "3s"];

/// Some 300 of 3,000 messages waited, the first of them for 300 ms.
const STOPPED_300: &[&[Check]] = &[&[
    Exit(&[0]),
    Between("/due", 3000.0, 3000.0),
    Between("/lost", 0.0, 0.0),
    AccountAddsUp,
    Between("/latency_us/max", 285_000.0, 345_000.0),
    Between("/latency_us/p999", 280_000.0, 345_000.0),
]];

/// The server is stopped so many milliseconds after most of 50 connections are there.
const fn stop(after_ms: u64, length_ms: Option<u64>) -> Event {
    let length = match length_ms {
        Some(length) => Some(Duration::from_millis(length)),
        None => None,
    };
    Event::StopServer { descriptors: 45, delay: Duration::from_millis(after_ms), length }
}

/// Listener, epoll, three standard streams, and most of 20 connections.
const KILL_LATER: Event = Event::KillServer { descriptors: 15, delay: Duration::from_secs(1) };
