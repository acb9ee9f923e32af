//! The accept queue: full, and emptied slowly.

use crate::case::{Case, Kind, Place};
use crate::judge::Check::{self, Between, Exit, Says, Stopped};

/// The server is slow, but everybody gets in: a finding, not a limit.
const SLOW_BUT_ALL: &[Check] = &[
    Exit(&[0]),
    Stopped(&[("limit", None)]),
    Between("/alive", 200.0, 200.0),
    Says(&["accept"]),
    Says(&["/s", "per second", "a second"]),
];

pub(super) const CASES: &[Case] = &[
    Case {
        name: "backlog-full",
        provokes: "a listener with a backlog of 64 that never accepts",
        server: None,
        command: &["backlog", "--backlog", "64", "--timeout", "1s"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("queue_full", Some("server"))]),
            Between("/runs/0/queued", 65.0, 65.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "slow-accept-delay",
        provokes: "5 ms sleep per accept, backlog 64: all get in",
        server: Some(&["--accept-delay", "5ms", "--backlog", "64"]),
        command: &["capacity", "--connections", "200"],
        expected: &[SLOW_BUT_ALL],
        ..Case::PLAIN
    },
    Case {
        name: "slow-accept-cpu",
        provokes: "5 ms of CPU per accept, backlog 64: all get in",
        kind: Kind::Long,
        server: Some(&["--accept-cpu", "5ms", "--backlog", "64"]),
        command: &["capacity", "--connections", "200"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("limit", None)]),
            Between("/alive", 200.0, 200.0),
            Says(&["accept"]),
            Says(&["cpu", "processor", "core"]),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "slow-accept-delay-full",
        provokes: "300 ms sleep per accept, backlog 8, --timeout 1s",
        kind: Kind::Long,
        server: Some(&["--accept-delay", "300ms", "--backlog", "8"]),
        command: &["capacity", "--connections", "40", "--timeout", "1s", "--step", "20"],
        expected: &[
            &[Exit(&[0]), Stopped(&[("queue_full", Some("server"))])],
            // Whoever never fills the queue gets everybody in, and says how slowly.
            &[
                Exit(&[0]),
                Stopped(&[("limit", None)]),
                Between("/alive", 40.0, 40.0),
                Says(&["accept"]),
                Says(&["/s", "per second", "a second"]),
            ],
        ],
        ..Case::PLAIN
    },
    Case {
        name: "slow-accept-cpu-timeout",
        provokes: "1.5 s of CPU per accept, backlog 8, --timeout 1s",
        kind: Kind::Long,
        server: Some(&["--accept-cpu", "1.5s", "--backlog", "8"]),
        command: &["capacity", "--connections", "100", "--timeout", "1s", "--step", "50"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("cpu", Some("server")), ("queue_full", Some("server"))]),
            Says(&["cpu", "processor", "core"]),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "slow-accept-cpu-given-pid",
        provokes: "1.5 s of CPU per accept, backlog 8, its process given",
        kind: Kind::Long,
        places: &[Place::GivenPid],
        server: Some(&["--accept-cpu", "1.5s", "--backlog", "8"]),
        command: &["capacity", "--connections", "100", "--timeout", "1s", "--step", "50"],
        expected: &[&[
            Exit(&[0]),
            Stopped(&[("cpu", Some("server")), ("queue_full", Some("server"))]),
            Says(&["cpu", "processor", "core"]),
        ]],
        ..Case::PLAIN
    },
];
