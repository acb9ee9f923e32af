//! The command line: its commands, the flags that several of them share, and how values are read.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use plimsoll_lab::checks::assertion::Assertion;
use plimsoll_lab::results::TargetServer;
use plimsoll_lab::worker::exchange::{Exchange, Payload, ReplyEnd};
use plimsoll_lab::{Error, Result, units};

use crate::commands;

const ABOUT: &str = "Find what a TCP server can take on this machine, and what breaks first";

const AFTER_HELP: &str = "\
Sizes take B, KiB, MiB, GiB, kB, MB, GB (a bare number is bytes); times take ns, us, ms, s, min, h \
(a bare number is seconds); counts take k, M, G or an exponent (1e6).

Exit codes:
  0    done, and all that was asserted holds
  1    an assertion failed, a goal given to doctor or plan is not met, or a byte came back wrong
  2    wrong usage or configuration
  3    this machine cannot run it: a limit, a port in use, a folder that cannot be written
  4    the target cannot be reached, closes at once, or never answers
  5    incomplete: messages were lost, the target went away, or a part of the result is missing
  130  interrupted; what was measured so far is written, and marked \"partial\": true

Examples:
  plimsoll survey
        what this machine can take, in under 90 s; writes plimsoll-report/report.html
  plimsoll survey --target 127.0.0.1:6379 --send 'PING\\r\\n' --expect '+PONG\\r\\n'
        the same for a running server that speaks no echo
  plimsoll doctor --connections 100k
        which limits stand in the way of 100,000 connections, and the commands that raise them
  plimsoll capacity --connections 15000 --assert 'capacity.alive>=15000'
        a check for continuous integration: exit code 1 where it does not hold";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "plimsoll",
    version,
    about = ABOUT,
    after_help = AFTER_HELP,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    /// Where results and messages go.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run all experiments, print a summary, write report.html and results.json
    Survey(Box<commands::survey::Args>),
    /// Run the engine as an echo server
    Serve(Box<commands::serve::Args>),
    /// Find how many connections can wait unaccepted on one listener
    Backlog(commands::backlog::Args),
    /// Measure the accept rate, and the backlog that given arrivals need
    Accept(commands::accept::Args),
    /// Find how many connections can be held, what they cost, and what stops them
    Capacity(commands::capacity::Args),
    /// Measure messages per second and latency; every message is accounted for
    Load(commands::load::Args),
    /// Measure connect, echo, disconnect, with and without reuse of sockets
    Churn(commands::churn::Args),
    /// Say what a number of connections will need, from measured costs
    Plan(commands::plan::Args),
    /// List every limit of this machine that matters, and the command that raises it
    Doctor(commands::doctor::Args),
    /// Write the invoice of a running server: listeners, connections, kernel memory
    Explain(commands::explain::Args),
    /// Put two results side by side
    Compare(commands::compare::Args),
    /// Print the script that completes this command in a shell
    Completions(commands::completions::Args),
    /// Hold connections for another plimsoll process: requests on stdin, reports on stdout
    #[command(hide = true)]
    Worker,
}

/// Where results and messages go: the same for every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// Print one JSON object on stdout instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Write the JSON object to FILE as well (through a temporary file and a rename, which replaces a
    /// symbolic link)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Say nothing on stderr but errors
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more on stderr; the environment variable PLIMSOLL_LOG takes finer filters
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,
    /// Judge the result, for example 'backlog[requested=4096].queued>=4096'; may be repeated
    #[arg(long = "assert", global = true, value_name = "EXPR")]
    pub(crate) assertions: Vec<Assertion>,
}

/// A server to measure.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Target")]
pub(crate) struct TargetArgs {
    /// Measure the server at ADDR (host:port) instead of the embedded engine
    #[arg(long, value_name = "ADDR")]
    pub(crate) target: Option<String>,
    /// The server's process, for its memory, processor time and limits
    /// [default: the process that holds the listening socket, where it can be seen]
    #[arg(long, value_name = "PID", requires = "target")]
    pub(crate) server_pid: Option<u32>,
    /// Allow a target that is not on loopback: only for servers that are yours to load
    #[arg(long)]
    pub(crate) allow_remote: bool,
}

impl TargetArgs {
    /// The target's address; `None` for the embedded engine.
    pub(crate) fn address(&self) -> Result<Option<SocketAddr>> {
        self.target.as_deref().map(|text| resolve(text, self.allow_remote)).transpose()
    }

    /// The target as a document names it; `None` for the embedded engine.
    pub(crate) fn server(&self) -> Result<Option<TargetServer>> {
        Ok(self.address()?.map(|address| TargetServer::new(address, self.server_pid)))
    }
}

/// Servers to measure: one, or several in turns.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Target")]
pub(crate) struct TargetsArgs {
    /// Measure the server at ADDR (host:port) instead of the embedded engine. Given several times,
    /// the servers are loaded in turns, and compared with the first
    #[arg(long, value_name = "ADDR")]
    pub(crate) target: Vec<String>,
    /// The server's process, for its memory, processor time and limits; given as often as --target,
    /// in the same order
    /// [default: the process that holds the listening socket, where it can be seen]
    #[arg(long, value_name = "PID", requires = "target")]
    pub(crate) server_pid: Vec<u32>,
    /// Allow a target that is not on loopback: only for servers that are yours to load
    #[arg(long)]
    pub(crate) allow_remote: bool,
}

impl TargetsArgs {
    /// Each target's address, and its process where that was given; none for the embedded engine.
    pub(crate) fn addresses(&self) -> Result<Vec<(SocketAddr, Option<u32>)>> {
        let (targets, pids) = (self.target.len(), self.server_pid.len());
        if pids != 0 && pids != targets {
            return Err(Error::usage(
                format!("{targets} × --target and {pids} × --server-pid"),
                "give --server-pid once for each --target, in the same order, or not at all",
            ));
        }
        let mut found = Vec::with_capacity(targets);
        for (index, text) in self.target.iter().enumerate() {
            let address = resolve(text, self.allow_remote)?;
            if found.iter().any(|(known, _)| *known == address) {
                return Err(Error::usage(
                    format!("the target {address} is given twice"),
                    "to see how much two equal servers differ, start two of them",
                ));
            }
            found.push((address, self.server_pid.get(index).copied()));
        }
        Ok(found)
    }

    /// The first target as a document names it; `None` for the embedded engine. The others are in
    /// the result.
    pub(crate) fn server(&self) -> Result<Option<TargetServer>> {
        let first = self.addresses()?.first().copied();
        Ok(first.map(|(address, pid)| TargetServer::new(address, pid)))
    }
}

/// Resolves `host:port`. A name that resolves to several addresses gives the first loopback one, or
/// the first.
fn resolve(text: &str, allow_remote: bool) -> Result<SocketAddr> {
    let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_none_or(|port| port == 0) {
        return Err(Error::usage(
            format!("`{text}` is not an address with a port"),
            "give host:port, such as 127.0.0.1:7000 or [::1]:7000",
        ));
    }
    let addresses: Vec<SocketAddr> = text
        .to_socket_addrs()
        .map_err(|error| {
            Error::target(
                format!("the name in `{text}` cannot be resolved: {error}"),
                "check the name, or give the IP address (IPv6 in brackets: [::1]:7000)",
            )
        })?
        .collect();
    let local = addresses.iter().find(|address| address.ip().to_canonical().is_loopback());
    match (local, addresses.first()) {
        (Some(address), _) => Ok(*address),
        (None, Some(address)) if allow_remote => Ok(*address),
        (None, Some(address)) => Err(Error::usage(
            format!("{address} is not on loopback, and an experiment can take a server down"),
            "add --allow-remote if that server is yours to load",
        )),
        (None, None) => Err(Error::target(
            format!("the name in `{text}` has no address"),
            "check the name, or give the IP address",
        )),
    }
}

/// What is sent and what must come back, where the target is no echo server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Request and reply (default: echo)")]
pub(crate) struct ExchangeArgs {
    /// Send TEXT instead of bytes to be echoed; C escapes: \r \n \t \0 \\ \xHH
    #[arg(long, value_name = "TEXT", value_parser = unescape)]
    pub(crate) send: Option<Text>,
    /// What the reply must begin with; C escapes
    #[arg(long, value_name = "TEXT", value_parser = unescape, requires = "send")]
    pub(crate) expect: Option<Text>,
    /// The reply ends after N bytes [default: with what is expected]
    #[arg(long, value_name = "N", value_parser = size, requires = "send",
          conflicts_with = "reply_until")]
    pub(crate) reply_bytes: Option<u64>,
    /// The reply ends with the first TEXT; C escapes
    #[arg(long, value_name = "TEXT", value_parser = unescape, requires = "send")]
    pub(crate) reply_until: Option<Text>,
    /// Send GET PATH over HTTP/1.1, and expect a status of success; connections are kept where the
    /// server keeps them
    #[arg(long, value_name = "PATH", value_parser = http_path, conflicts_with = "send")]
    pub(crate) http: Option<String>,
}

/// The largest reply that is waited for.
const REPLY_MAX: u64 = 64 << 20;

impl ExchangeArgs {
    /// The exchange with this target, at its address (`host:port`); `None` for echo.
    pub(crate) fn exchange(
        &self,
        target: Option<&str>,
        timeout: Duration,
    ) -> Result<Option<Exchange>> {
        if let Some(path) = &self.http {
            let Some(host) = target else {
                return Err(Error::usage(
                    "--http needs a web server, and the embedded one is an echo server",
                    "name the web server: --target host:port",
                ));
            };
            return Ok(Some(Exchange::http(path, host, timeout)));
        }
        let Some(send) = &self.send else { return Ok(None) };
        let any = Text(Vec::new());
        let expect = self.expect.as_ref().unwrap_or(&any);
        if send.0.is_empty() || (expect.0.is_empty() && self.reply_bytes.is_none()) {
            return Err(Error::usage(
                "--send needs a text, and --expect or --reply-bytes a reply",
                "say what the server answers with; --reply-bytes N for a reply of any content",
            ));
        }
        let end = match (self.reply_bytes, &self.reply_until) {
            (Some(bytes), _)
                if bytes == 0 || bytes > REPLY_MAX || bytes < expect.0.len() as u64 =>
            {
                return Err(Error::usage(
                    format!("--reply-bytes {bytes} cannot be the length of this reply"),
                    format!(
                        "give a length from that of --expect to {}",
                        units::bytes(REPLY_MAX as f64)
                    ),
                ));
            }
            (Some(bytes), _) => ReplyEnd::Bytes(bytes as usize),
            (None, Some(until)) if until.0.is_empty() => {
                return Err(Error::usage("--reply-until is empty", "give the reply's last bytes"));
            }
            (None, Some(until)) => ReplyEnd::Until(until.0.clone()),
            (None, None) => ReplyEnd::Expectation,
        };
        Ok(Some(Exchange {
            send: Payload::Bytes(send.0.clone()),
            expect: Some(expect.0.clone()),
            end,
            timeout_ms: timeout.as_millis() as u64,
        }))
    }
}

/// The time one connect and one reply may take.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct TimeoutArgs {
    /// How long one connect and one reply may take
    #[arg(long, value_name = "T", value_parser = duration, default_value = "5s")]
    pub(crate) timeout: Duration,
}

/// Bytes that were written with C escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) Vec<u8>);

/// Reads C escapes; anything else stands for itself.
pub(crate) fn unescape(text: &str) -> Result<Text, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        if character != '\\' {
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        out.push(match rest.next() {
            Some('r') => b'\r',
            Some('n') => b'\n',
            Some('t') => b'\t',
            Some('0') => 0,
            Some('\\') => b'\\',
            Some('x') => {
                let digits: String = rest.by_ref().take(2).collect();
                match u8::from_str_radix(&digits, 16) {
                    Ok(byte) if digits.len() == 2 => byte,
                    _ => return Err(format!("`\\x{digits}` is not \\x and two hex digits")),
                }
            }
            Some(other) => {
                return Err(format!("`\\{other}` is not one of \\r \\n \\t \\0 \\\\ \\xHH"));
            }
            None => return Err("it ends in a single backslash".to_owned()),
        });
    }
    Ok(Text(out))
}

/// The path of an HTTP request, with its query: visible ASCII that begins with a slash.
pub(crate) fn http_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("`{text}` does not begin with /"));
    }
    match text.chars().find(|character| !character.is_ascii_graphic()) {
        Some(other) => Err(format!("{other:?} cannot stand in a path: write it as %XX")),
        None => Ok(text.to_owned()),
    }
}

/// A size in bytes.
pub(crate) fn size(text: &str) -> Result<u64, units::BadUnit> {
    units::parse_size(text)
}

/// A size in bytes, or a range of sizes.
pub(crate) fn size_range(text: &str) -> Result<(u64, u64), units::BadUnit> {
    units::parse_size_range(text)
}

/// A time that is more than nothing.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text).map_err(|error| error.to_string())? {
        Duration::ZERO => Err(format!("`{text}` is no time at all")),
        time => Ok(time),
    }
}

/// A count of at least one.
pub(crate) fn count(text: &str) -> Result<u64, String> {
    match units::parse_count(text).map_err(|error| error.to_string())? {
        0 => Err(format!("`{text}` is less than 1")),
        count => Ok(count),
    }
}

/// A rate per second.
pub(crate) fn rate(text: &str) -> Result<f64, units::BadUnit> {
    units::parse_rate(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape("PING\\r\\n"), Ok(Text(b"PING\r\n".to_vec())));
        assert_eq!(unescape("\\x00\\xff\\\\é"), Ok(Text(b"\x00\xff\\\xc3\xa9".to_vec())));
        for wrong in ["\\", "\\q", "\\x", "\\x1", "\\xzz"] {
            assert!(unescape(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_path_is_one_word_that_begins_with_a_slash() {
        assert_eq!(http_path("/a?b=%20"), Ok("/a?b=%20".to_owned()));
        for wrong in ["", "a", "/a b", "/\r\n", "/é"] {
            assert!(http_path(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_loopback_without_leave() {
        assert!(resolve("127.0.0.1:80", false).is_ok());
        assert!(resolve("[::1]:80", false).is_ok());
        assert!(resolve("[::ffff:127.0.0.1]:80", false).is_ok());
        assert!(resolve("192.0.2.1:80", true).is_ok());
        for wrong in ["192.0.2.1:80", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", ""] {
            assert_eq!(resolve(wrong, false).expect_err(wrong).exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn every_visible_command_and_flag_has_a_help_text() {
        let cli = Cli::command();
        for command in cli.get_subcommands() {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments() {
                let name = argument.get_id();
                assert!(argument.get_help().is_some(), "{} {name} has no help", command.get_name());
            }
        }
    }
}
