//! `plimsoll serve`.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use plimsoll::{Choice, Context, DRAIN_WINDOW, Handler, Profile, Server};
use plimsoll_lab::{Error, Result};

use crate::args::{self, OutputArgs};
use crate::config::{Config, LimitArgs};
use crate::{interrupt, metrics, output};

/// The example that ends the help.
const EXAMPLES: &str = "\
Prints `listening ADDRESS` on stdout once it listens. SIGTERM or SIGINT: accepts no more, lets \
sessions end, cuts what is left at the deadline, exits 0; a second one ends it at once.

Examples:
  plimsoll serve
  plimsoll serve --listen [::]:7000 --profile throughput --max-connections 1000
  plimsoll serve --config server.toml
        listen = \"127.0.0.1:7000\"
        [limits]
        max_connections = 15000
        idle_timeout = \"5min\"";

/// How long sessions may take to end when the server is asked to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Run the engine as an echo server
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The address to listen on; port 0 takes a free one, [::] takes IPv4 too
    /// [default: 127.0.0.1:7000]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// The kernel's interface [default: auto]
    #[arg(long, value_enum)]
    driver: Option<DriverArg>,
    /// As many connections as possible, or few served fast [default: connections]
    #[arg(long, value_enum)]
    profile: Option<ProfileArg>,
    /// Shards, one thread each [default: the processors, more where the limits ask for them]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    shards: Option<u32>,
    /// Reuse slots and sockets [default: on]
    #[arg(long, value_enum)]
    pool: Option<Switch>,
    /// Read the settings from a TOML file; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Serve metrics as Prometheus text over HTTP at ADDR, path /metrics [default: none]
    #[arg(long, value_name = "ADDR")]
    metrics: Option<String>,
    /// Never sleep: lowest latency, for a whole processor per shard
    #[arg(long)]
    spin: bool,
    /// Close each connection once it has been sent back so many bytes: the server closes first
    /// [default: the client closes]
    #[arg(long, value_name = "BYTES", value_parser = args::size)]
    close_after: Option<u64>,
    /// Drain and end when stdin ends, as on SIGTERM: for a parent process
    #[arg(long)]
    until_eof: bool,
    #[command(flatten)]
    limits: LimitArgs,
}

/// The kernel's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DriverArg {
    /// `io_uring` where it works, else epoll or kqueue, with one line that says why
    Auto,
    /// `io_uring` or nothing: Linux 6.1 or newer, where it is allowed
    Uring,
    /// epoll or kqueue: each connection is a descriptor, which `ulimit -n` bounds
    Ready,
    /// Completion ports: Windows
    Iocp,
}

/// What the server is tuned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProfileArg {
    /// As many connections as possible, each costing as little as possible
    Connections,
    /// Few connections, each served as fast as possible
    Throughput,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// Reuse
    On,
    /// A new one each time
    Off,
}

/// Sends back what it receives.
struct Echo;

impl Handler for Echo {
    type State = ();

    fn on_receive(&mut self, cx: &mut Context<'_, ()>, bytes: &[u8]) -> usize {
        cx.send(bytes);
        bytes.len()
    }
}

/// Sends back so many bytes of what it receives, and closes then.
struct EchoThenClose(u64);

/// Bytes sent back on one connection.
#[derive(Debug, Default)]
struct Echoed(u64);

impl Handler for EchoThenClose {
    type State = Echoed;

    fn on_receive(&mut self, cx: &mut Context<'_, Echoed>, bytes: &[u8]) -> usize {
        let left = self.0.saturating_sub(cx.state().0);
        let part = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        cx.state().0 += part as u64;
        cx.send(&bytes[..part]);
        if part as u64 == left {
            cx.close();
        }
        bytes.len()
    }
}

pub(crate) fn run(args: &Args, output: &OutputArgs) -> Result<u8> {
    if output.json || output.output.is_some() || !output.assertions.is_empty() {
        return Err(Error::usage(
            "a server has no result to print, write or judge",
            "leave out --json, --output and --assert; measure it with `plimsoll load` or `survey`",
        ));
    }
    let file = args.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
    let listen = args.listen.clone().or(file.listen).unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let limits = args.limits.clone().or(&file.limits);
    let engine = limits.of_engine()?;
    let mut builder = Server::builder()
        .listen(listen)
        .driver(match chosen(args.driver, file.driver.as_deref(), "driver")? {
            Some(DriverArg::Uring) => Choice::Uring,
            Some(DriverArg::Ready) => Choice::Ready,
            None | Some(DriverArg::Auto) => Choice::Auto,
            Some(DriverArg::Iocp) if cfg!(windows) => Choice::Iocp,
            Some(DriverArg::Iocp) => {
                return Err(Error::machine(
                    "there is no driver `iocp` here: completion ports are Windows' own",
                    "--driver auto, uring or ready",
                ));
            }
        })
        .profile(match chosen(args.profile, file.profile.as_deref(), "profile")? {
            Some(ProfileArg::Throughput) => Profile::Throughput,
            None | Some(ProfileArg::Connections) => Profile::Connections,
        })
        .limits(engine.clone())
        .pool(chosen(args.pool, file.pool.as_deref(), "pool")? != Some(Switch::Off))
        .spin(args.spin);
    if let Some(shards) = args.shards.or(file.shards) {
        builder = builder.shards(shards);
    }
    // Each connection is a descriptor on epoll, and login shells allow 1,024 by default.
    plimsoll_lab::raise_descriptor_limit();
    let interrupted = interrupt::flag()?;
    if args.until_eof {
        end_with_stdin(&interrupted)?;
    }
    let running = match args.close_after {
        None => builder.start(|_shard| Echo),
        Some(bytes) => builder.start(move |_shard| EchoThenClose(bytes)),
    }
    .map_err(|error| of_engine(&error))?;
    if let Some(address) = running.local_addr() {
        output::result(&format!("listening {address}"))?;
    }
    let window = engine.drain_window();
    if window > DRAIN_WINDOW {
        tracing::warn!(
            ?window,
            "drain_rate judges a slow peer only after this time, since the kernel's send buffer holds so \
             much; --kernel-send makes it shorter"
        );
    }
    if let Some(at) = args.metrics.as_ref().or(file.metrics.as_ref()) {
        let address = metrics::serve(at, running.observer())?;
        output::result(&format!("metrics {address}"))?;
    }
    while !interrupted.load(Ordering::Relaxed) && !running.has_ended() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let within = limits.drain_deadline.unwrap_or(DRAIN);
    let report = running.drain(within).map_err(|error| of_engine(&error))?;
    if !output.quiet {
        tracing::info!(ended = report.ended, cut = report.cut, "drained");
    }
    Ok(super::OK)
}

/// Sets the flag once stdin has ended.
fn end_with_stdin(interrupted: &Arc<AtomicBool>) -> Result<()> {
    let interrupted = Arc::clone(interrupted);
    let wait = move || {
        // An error is an end too.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        interrupted.store(true, Ordering::Relaxed);
    };
    std::thread::Builder::new().name("stdin".into()).spawn(wait).map(drop).map_err(|error| {
        Error::machine(format!("cannot start a thread: {error}"), "raise `ulimit -u`")
    })
}

/// A flag, or the file's word for it.
fn chosen<T: ValueEnum>(flag: Option<T>, word: Option<&str>, name: &str) -> Result<Option<T>> {
    match (flag, word) {
        (Some(value), _) => Ok(Some(value)),
        (None, None) => Ok(None),
        (None, Some(word)) => T::from_str(word, false).map(Some).map_err(|_| {
            let known: Vec<String> = T::value_variants()
                .iter()
                .filter_map(|value| Some(value.to_possible_value()?.get_name().to_owned()))
                .collect();
            Error::usage(
                format!("`{word}` in the configuration is no {name}"),
                format!("one of: {}", known.join(", ")),
            )
        }),
    }
}

/// The engine's error with the exit code of its kind; its text holds the cure.
fn of_engine(error: &plimsoll::Error) -> Error {
    let text = error.to_string();
    let (cause, cure) = match text.split_once("; ").or_else(|| text.split_once(": ")) {
        Some((cause, cure)) => (cause.to_owned(), cure.to_owned()),
        None => (text, "see `plimsoll doctor`".to_owned()),
    };
    match error {
        plimsoll::Error::Address { .. } | plimsoll::Error::Limits(_) => Error::usage(cause, cure),
        _ => Error::machine(cause, cure),
    }
}
