//! The flags: each is one fault.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use plimsoll_peers::units;

/// An echo server with faults on purpose: each flag is one of them
///
/// Without flags it is a plain single-threaded echo server. It prints `listening ADDR`
/// as its first line on standard output.
#[derive(Clone, Debug, Parser)]
pub(crate) struct Options {
    /// Address to listen on; with port 0 the kernel chooses, and the choice is printed
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// The backlog passed to listen(2)
    #[arg(long, value_name = "N", default_value_t = 4096,
          value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) backlog: i32,
    #[command(flatten)]
    pub(crate) limits: Limits,
    #[command(flatten)]
    pub(crate) slowness: Slowness,
    #[command(flatten)]
    pub(crate) ends: Ends,
    #[command(flatten)]
    pub(crate) replies: Replies,
}

/// What the server has only so much of.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct Limits {
    /// Lower this process' limit of open descriptors to N; at the limit, accept no more
    #[arg(long, value_name = "N")]
    pub(crate) descriptors: Option<u64>,
    /// Serve at most N connections at once
    #[arg(long, value_name = "N")]
    pub(crate) max_connections: Option<usize>,
    /// What happens beyond --max-connections: `close` or `reset` what was accepted, send
    /// `text:TEXT` (C escapes) and close, or `silence`: accept no more
    #[arg(long, value_name = "HOW", default_value = "close", requires = "max_connections")]
    pub(crate) beyond: Beyond,
    /// Allocate and touch SIZE bytes for each connection
    #[arg(long, value_name = "SIZE", value_parser = units::size, default_value = "0")]
    pub(crate) memory_per_connection: usize,
    /// Start a thread for each connection; where that fails, close the connection
    #[arg(long)]
    pub(crate) thread_per_connection: bool,
    /// Answer at most N messages per second, evenly spaced; the others wait
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(crate) rate: Option<f64>,
}

/// What the server takes its time for.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Slowness")]
pub(crate) struct Slowness {
    /// Sleep T after each accept; nothing is served meanwhile
    #[arg(long, value_name = "T", value_parser = units::duration, default_value = "0")]
    pub(crate) accept_delay: Duration,
    /// Use T of processor time for each accept
    #[arg(long, value_name = "T", value_parser = units::duration, default_value = "0")]
    pub(crate) accept_cpu: Duration,
    /// Send each reply T after its message; other connections are served meanwhile
    #[arg(long, value_name = "T", value_parser = units::duration, default_value = "0")]
    pub(crate) reply_delay: Duration,
    /// Use T of processor time for each message
    #[arg(long, value_name = "T", value_parser = units::duration, default_value = "0")]
    pub(crate) reply_cpu: Duration,
    /// From AT after the first connection, accept and answer nothing for FOR
    #[arg(long, value_name = "AT:FOR")]
    pub(crate) stall: Option<Stall>,
    /// Each time that EVERY has passed since the first connection, accept and answer nothing for FOR
    #[arg(long, value_name = "EVERY:FOR")]
    pub(crate) pause_every: Option<Stall>,
    /// At N open connections, send SIGSTOP to itself, once; whoever started it may continue it
    #[arg(long, value_name = "N")]
    pub(crate) stop_at: Option<usize>,
}

/// How connections end, and the server itself.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Ends")]
pub(crate) struct Ends {
    /// Close a connection that has said nothing for T
    #[arg(long, value_name = "T", value_parser = units::duration)]
    pub(crate) idle: Option<Duration>,
    /// Close each connection after N replies, as HTTP servers do
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) close_after_replies: Option<u64>,
    /// End the process at N open connections
    #[arg(long, value_name = "N")]
    pub(crate) crash_at: Option<usize>,
    /// How --crash-at ends it
    #[arg(long, value_enum, default_value_t = CrashBy::Abort, requires = "crash_at")]
    pub(crate) crash_by: CrashBy,
}

/// What is replied.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Replies")]
pub(crate) struct Replies {
    /// Echo: a message is N bytes [default: whatever one receive brings]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) message_bytes: Option<u32>,
    /// Echo: invert every Nth byte
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) wrong_byte_every: Option<u64>,
    /// Invert the first byte of every reply
    #[arg(long)]
    pub(crate) wrong_prefix: bool,
    /// Send SIZE bytes as soon as a connection is accepted
    #[arg(long, value_name = "SIZE", value_parser = units::size, default_value = "0")]
    pub(crate) greeting: usize,
    /// Reply to HTTP requests, and frame the body this way
    #[arg(long, value_enum, value_name = "HOW")]
    pub(crate) http: Option<HttpBody>,
    /// The status of HTTP replies
    #[arg(long, value_name = "CODE", default_value_t = 200, requires = "http",
          value_parser = clap::value_parser!(u16).range(200..600))]
    pub(crate) http_status: u16,
    /// The size of an HTTP reply's body
    #[arg(long, value_name = "SIZE", value_parser = units::size, default_value = "64",
          requires = "http")]
    pub(crate) body_bytes: usize,
    /// Reply `-TEXT` and an end of line, as redis reports an error, instead of an echo
    #[arg(long, value_name = "TEXT", conflicts_with = "http")]
    pub(crate) redis_error: Option<String>,
    /// Only every Nth reply is the one of --redis-error; the others are echoes
    #[arg(long, value_name = "N", default_value_t = 1, requires = "redis_error",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) error_every: u64,
}

/// A rate that leaves a time between two messages.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.001..=1e9).contains(rate));
    rate.ok_or_else(|| format!("`{text}`: expected a number from 0.001 to 1e9"))
}

/// How the body of an HTTP reply is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HttpBody {
    /// `Content-Length`
    Length,
    /// `Transfer-Encoding: chunked`, in two chunks
    Chunked,
}

/// How the server ends itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CrashBy {
    /// abort(3): SIGABRT
    Abort,
    /// SIGKILL, sent to itself
    Kill,
    /// exit(3) with code 1
    Exit,
}

/// What happens to a connection beyond the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Beyond {
    /// It is accepted and closed.
    Close,
    /// It is accepted and reset.
    Reset,
    /// It is accepted, told this, and closed.
    Text(Vec<u8>),
    /// It is not accepted until there is room.
    Silence,
}

impl FromStr for Beyond {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "close" => Ok(Self::Close),
            "reset" => Ok(Self::Reset),
            "silence" => Ok(Self::Silence),
            _ => match text.strip_prefix("text:") {
                Some(words) => Ok(Self::Text(units::unescape(words)?)),
                None => Err("expected `close`, `reset`, `silence` or `text:TEXT`".to_owned()),
            },
        }
    }
}

/// A time in which the server does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stall {
    /// When it begins, since the first connection; or how often.
    pub(crate) at: Duration,
    /// How long it lasts.
    pub(crate) length: Duration,
}

impl FromStr for Stall {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (at, length) = text
            .split_once(':')
            .ok_or_else(|| format!("`{text}`: expected two times, `1s:10s`"))?;
        let stall = Self { at: units::duration(at)?, length: units::duration(length)? };
        if stall.length.is_zero() {
            return Err(format!("`{text}`: the second time is zero"));
        }
        Ok(stall)
    }
}
