//! An echo server with faults on purpose, to see whether a measuring tool finds them.
//!
//! It is written on standard sockets and epoll, and shares no code with the engine. One
//! thread serves all connections; 15,000 are fine. Every fault is a flag ([`options`]):
//! limits that are reached, slowness of several kinds, connections or a process that end,
//! replies that are wrong.
//!
//! A fault that blocks a real server blocks this one, too: `--accept-delay`, `--stall` and
//! `--pause-every` put the only thread to sleep, `--accept-cpu` and `--reply-cpu` keep it
//! busy. `--reply-delay` and `--rate` let other connections go on.

mod connection;
mod options;
mod reply;
mod schedule;
mod server;

use clap::Parser as _;
use plimsoll_peers::peer;

fn main() -> std::process::ExitCode {
    let options = options::Options::parse();
    peer::exit(server::Server::start(options).and_then(server::Server::run))
}
