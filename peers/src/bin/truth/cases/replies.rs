//! Replies: wrong bytes, errors in the server's own words, HTTP.

use crate::case::Case;
use crate::judge::Check::{AccountAddsUp, AtLeast, Between, Exit, Quotes};

const SHORT: &[&str] = &["load", "--connections", "10", "--duration", "1s", "--timeout", "1s"];
const HTTP: &[&str] =
    &["load", "--connections", "10", "--duration", "1s", "--timeout", "1s", "--http", "/"];
const LINES: &[&str] = &[
    "load",
    "--connections",
    "10",
    "--duration",
    "1s",
    "--timeout",
    "1s",
    "--send",
    "+hello\\r\\n",
    "--expect",
    "+hello\\r\\n",
];

pub(super) const CASES: &[Case] = &[
    Case {
        name: "wrong-bytes",
        provokes: "every 10,000th echoed byte is wrong",
        server: Some(&["--wrong-byte-every", "10000"]),
        command: SHORT,
        expected: &[&[Exit(&[1]), AtLeast("/corrupt", 1.0), AtLeast("/messages", 1.0)]],
        ..Case::PLAIN
    },
    Case {
        name: "wrong-prefix",
        provokes: "the first byte of every echo is wrong",
        server: Some(&["--wrong-prefix", "--message-bytes", "64"]),
        command: SHORT,
        expected: &[&[Exit(&[1]), AtLeast("/corrupt", 1.0)]],
        ..Case::PLAIN
    },
    Case {
        name: "error-text",
        provokes: "every 100th reply is an error in redis' form",
        server: Some(&[
            "--redis-error",
            "ERR max number of clients reached",
            "--error-every",
            "100",
        ]),
        command: LINES,
        expected: &[&[
            Quotes("-ERR max number of clients reached"),
            Between("/corrupt", 0.0, 0.0),
            AtLeast("/messages", 1.0),
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "error-text-always",
        provokes: "every reply is an error in redis' form, in a probe",
        server: Some(&["--redis-error", "ERR max number of clients reached"]),
        command: &[
            "capacity",
            "--connections",
            "100",
            "--timeout",
            "1s",
            "--probe",
            "--send",
            "PING\\r\\n",
            "--expect",
            "+PONG\\r\\n",
        ],
        expected: &[&[Exit(&[4]), Quotes("-ERR max number of clients reached")]],
        ..Case::PLAIN
    },
    Case {
        name: "http-length",
        provokes: "HTTP replies with Content-Length",
        server: Some(&["--http", "length"]),
        command: HTTP,
        expected: &[&[
            Exit(&[0]),
            AtLeast("/messages", 1.0),
            Between("/corrupt", 0.0, 0.0),
            AccountAddsUp,
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "http-chunked",
        provokes: "HTTP replies in chunks",
        server: Some(&["--http", "chunked", "--body-bytes", "20KiB"]),
        command: HTTP,
        expected: &[&[
            Exit(&[0]),
            AtLeast("/messages", 1.0),
            Between("/corrupt", 0.0, 0.0),
            AccountAddsUp,
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "http-keepalive",
        provokes: "HTTP with Connection: close on every 100th reply",
        server: Some(&["--http", "length", "--close-after-replies", "100"]),
        command: HTTP,
        expected: &[&[
            Exit(&[0]),
            AtLeast("/reconnects", 10.0),
            Between("/duration", 0.95, 2.0),
            Between("/lost", 0.0, 0.0),
            AccountAddsUp,
        ]],
        ..Case::PLAIN
    },
    Case {
        name: "http-503",
        provokes: "HTTP replies with status 503",
        server: Some(&["--http", "length", "--http-status", "503"]),
        command: HTTP,
        expected: &[&[Exit(&[1, 4, 5]), Quotes("HTTP/1.1 503")]],
        ..Case::PLAIN
    },
];
