//! Limits that are numbers: descriptors, connections, ports.

use crate::case::{Case, Kind, Place};
use crate::judge::Check::{Between, Exit, NoDocument, Quotes, Says, Stopped};

/// 1,000 connections, with little patience for what does not answer.
const ASK_1000: &[&str] = &["capacity", "--connections", "1000", "--timeout", "1s"];

/// The limit was met: done, with a verdict.
const DONE: &[i32] = &[0];

pub(super) const CASES: &[Case] = &[
    Case {
        name: "descriptors-given-pid",
        provokes: "server's RLIMIT_NOFILE 300, its process given",
        places: &[Place::GivenPid],
        server: Some(&["--descriptors", "300"]),
        command: ASK_1000,
        expected: &[&[
            Exit(DONE),
            Stopped(&[("descriptors", Some("server"))]),
            Says(&["300"]),
            Between("/alive", 250.0, 300.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "descriptors-found-pid",
        provokes: "server's RLIMIT_NOFILE 300, its process not given",
        server: Some(&["--descriptors", "300"]),
        command: ASK_1000,
        expected: &[&[
            Exit(DONE),
            Stopped(&[("descriptors", Some("server"))]),
            Says(&["300"]),
            Between("/alive", 250.0, 300.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "file-max",
        provokes: "fs.file-max 2,000 above what is open, server of another user",
        kind: Kind::MachineWide,
        places: &[Place::UnprivilegedServer, Place::FilesLeft(2_000)],
        command: &["capacity", "--connections", "4000", "--timeout", "1s"],
        expected: &[&[Exit(DONE), Stopped(&[("descriptors", Some("both"))]), Says(&["file-max"])]],
        ..Case::PLAIN
    },
    Case {
        name: "client-descriptors-capacity",
        provokes: "client's RLIMIT_NOFILE 64, 1,000 connections asked",
        places: &[Place::ClientDescriptors(64)],
        command: ASK_1000,
        expected: &[
            &[Exit(DONE), Stopped(&[("descriptors", Some("client"))]), Says(&["64"])],
            // With more processes the limit does not bind.
            &[Exit(DONE), Stopped(&[("limit", None)]), Between("/alive", 1000.0, 1000.0)],
            &[Exit(&[3]), NoDocument, Says(&["descriptors", "nofile"])],
        ],
        ..Case::PLAIN
    },
    Case {
        name: "client-descriptors-load",
        provokes: "client's RLIMIT_NOFILE 64, load over 100 connections",
        places: &[Place::ClientDescriptors(64)],
        command: &["load", "--connections", "100", "--duration", "1s"],
        expected: &[
            &[Exit(&[3]), NoDocument, Says(&["descriptors", "nofile"])],
            &[Exit(&[0, 5]), Stopped(&[("descriptors", Some("client"))]), Says(&["64"])],
        ],
        ..Case::PLAIN
    },
    Case {
        name: "client-descriptors-none",
        provokes: "client's RLIMIT_NOFILE 20, load over 100 connections",
        places: &[Place::ClientDescriptors(20)],
        command: &["load", "--connections", "100", "--duration", "1s"],
        expected: &[&[Exit(&[3]), NoDocument, Says(&["descriptors", "nofile"])]],
        ..Case::PLAIN
    },
    Case {
        name: "server-limit-close",
        provokes: "500 connections, further ones are closed",
        server: Some(&["--max-connections", "500", "--beyond", "close"]),
        command: ASK_1000,
        expected: SERVER_LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "server-limit-close-probed",
        provokes: "500 connections, further ones are closed; each probed",
        server: Some(&["--max-connections", "500", "--beyond", "close"]),
        command: &["capacity", "--connections", "1000", "--timeout", "1s", "--probe"],
        expected: SERVER_LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "server-limit-reset",
        provokes: "500 connections, further ones are reset",
        server: Some(&["--max-connections", "500", "--beyond", "reset"]),
        command: ASK_1000,
        expected: SERVER_LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "server-limit-reset-default",
        provokes: "500 connections, further ones are reset; default --timeout",
        server: Some(&["--max-connections", "500", "--beyond", "reset"]),
        command: &["capacity", "--connections", "1000"],
        expected: SERVER_LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "server-limit-text",
        provokes: "500 connections, further ones are told so and closed",
        server: Some(&[
            "--max-connections",
            "500",
            "--beyond",
            "text:-ERR max number of clients reached\\r\\n",
        ]),
        command: ASK_1000,
        expected: &[&[
            Exit(DONE),
            Stopped(&[("server_limit", Some("server"))]),
            Quotes("-ERR max number of clients reached"),
            Between("/alive", 490.0, 500.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "server-limit-silence",
        provokes: "500 connections, further ones are not accepted",
        server: Some(&["--max-connections", "500", "--beyond", "silence"]),
        command: ASK_1000,
        expected: SERVER_LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "two-limits",
        provokes: "500 connections, and an RLIMIT_NOFILE of 900 that does not bind",
        server: Some(&["--max-connections", "500", "--descriptors", "900"]),
        command: ASK_1000,
        expected: SERVER_LIMIT,
        ..Case::PLAIN
    },
    Case {
        name: "own-default",
        provokes: "the tool's own default of the embedded server",
        kind: Kind::Long,
        server: None,
        command: &["capacity", "--timeout", "2s"],
        expected: &[&[
            Exit(DONE),
            Stopped(&[("server_limit", Some("server"))]),
            Says(&["--connections", "--max-connections"]),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "memory-guard",
        provokes: "more memory in use than --stop-before 1 allows",
        command: &["capacity", "--connections", "1000", "--stop-before", "1"],
        expected: &[&[
            Exit(DONE),
            Stopped(&[("memory", Some("both"))]),
            Says(&["memory", "MemAvailable"]),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "ports-capacity",
        provokes: "1,000 local ports, one source address",
        places: PORTS_1000,
        command: &[
            "capacity",
            "--connections",
            "3000",
            "--timeout",
            "1s",
            "--sources",
            "127.0.0.1/32",
        ],
        expected: &[&[
            Exit(DONE),
            Stopped(&[("ports", Some("client"))]),
            Between("/alive", 900.0, 1000.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "ports-backlog",
        provokes: "1,000 local ports, one source address, a backlog of 4,096",
        places: PORTS_1000,
        server: None,
        command: &["backlog", "--backlog", "4096", "--sources", "127.0.0.1/32", "--timeout", "1s"],
        expected: &[&[Exit(DONE), Stopped(&[("ports", Some("client"))])]],
        ..Case::PLAIN
    },
];

const PORTS_1000: &[Place] =
    &[Place::Namespace, Place::NamespaceSetting("net/ipv4/ip_local_port_range", "20000 20999")];

const SERVER_LIMIT: &[&[crate::judge::Check]] =
    &[&[Exit(DONE), Stopped(&[("server_limit", Some("server"))]), Between("/alive", 490.0, 500.0)]];
