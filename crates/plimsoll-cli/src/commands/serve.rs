//! `plimsoll serve`.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::ValueEnum;
use plimsoll::{Choice, Context, Handler, Limits, Profile, Server};
use plimsoll_lab::{Error, Result};

use crate::args::OutputArgs;
use crate::config::{Config, LimitArgs};
use crate::{interrupt, output};

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
    #[command(flatten)]
    limits: LimitArgs,
}

/// The kernel's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DriverArg {
    /// The best that works here
    Auto,
    /// `io_uring`: Linux 6.1 or newer, where it is allowed
    Uring,
    /// epoll or kqueue
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
    refuse_unsupported(args, &limits, file.metrics.is_some())?;
    let mut builder = Server::builder()
        .listen(listen)
        .driver(match chosen(args.driver, file.driver.as_deref(), "driver")? {
            Some(DriverArg::Uring) => Choice::Uring,
            None | Some(DriverArg::Auto) => Choice::Auto,
            Some(driver @ (DriverArg::Ready | DriverArg::Iocp)) => return Err(no_driver(driver)),
        })
        .profile(match chosen(args.profile, file.profile.as_deref(), "profile")? {
            Some(ProfileArg::Throughput) => Profile::Throughput,
            None | Some(ProfileArg::Connections) => Profile::Connections,
        })
        .limits(engine_limits(&limits)?)
        .spin(args.spin);
    if let Some(shards) = args.shards.or(file.shards) {
        builder = builder.shards(shards);
    }
    let interrupted = interrupt::flag()?;
    let running = builder.start(|_shard| Echo).map_err(|error| of_engine(&error))?;
    if let Some(address) = running.local_addr() {
        output::result(&format!("listening {address}"))?;
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

fn no_driver(driver: DriverArg) -> Error {
    let (name, where_to) = match driver {
        DriverArg::Iocp => ("iocp", "completion ports are Windows' own"),
        _ => ("ready", "this version drives io_uring only"),
    };
    Error::machine(
        format!("there is no driver `{name}` here: {where_to}"),
        "--driver uring or auto",
    )
}

/// Refuses what this engine does not do: a limit that is taken and not kept is worse than none.
fn refuse_unsupported(args: &Args, limits: &LimitArgs, metrics: bool) -> Result<()> {
    let asked = [
        ("--max-per-peer", limits.max_per_peer.is_some()),
        ("--max-accept-rate", limits.max_accept_rate.is_some()),
        ("--service-set", limits.service_set.is_some()),
        ("--service-time", limits.service_time.is_some()),
        ("--pinned-bytes", limits.pinned_bytes.is_some()),
        ("--drain-rate", limits.drain_rate.is_some()),
        ("--pool off", args.pool == Some(Switch::Off)),
        ("--metrics", metrics || args.metrics.is_some()),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((name, _)) => Err(Error::usage(
            format!("this version of the engine does not have {name} yet"),
            "leave it out",
        )),
        None => Ok(()),
    }
}

/// The engine's limits: its defaults, and what was asked for.
fn engine_limits(asked: &LimitArgs) -> Result<Limits> {
    fn narrow<T: TryFrom<u64>>(name: &str, value: u64) -> Result<T> {
        T::try_from(value).map_err(|_| {
            Error::usage(
                format!("{name} {value} is more than the engine can count"),
                "ask for less",
            )
        })
    }
    let mut limits = Limits::default();
    let narrow32 = |name, value: Option<u64>, default| {
        value.map_or(Ok(default), |value| narrow::<u32>(name, value))
    };
    limits.max_connections =
        narrow32("--max-connections", asked.max_connections, limits.max_connections)?;
    limits.outbox_low = narrow32("--outbox-low", asked.outbox_low, limits.outbox_low)?;
    limits.outbox_high = narrow32("--outbox-high", asked.outbox_high, limits.outbox_high)?;
    limits.outbox_hard = narrow32("--outbox-hard", asked.outbox_hard, limits.outbox_hard)?;
    if let Some(bytes) = asked.buffer_bytes {
        limits.buffer_bytes = narrow("--buffer-bytes", bytes)?;
    }
    let size =
        |name, value: Option<u64>| value.map(|value| narrow::<usize>(name, value)).transpose();
    limits.kernel_send = size("--kernel-send", asked.kernel_send)?;
    limits.kernel_receive = size("--kernel-receive", asked.kernel_receive)?;
    limits.first_byte_timeout = asked.first_byte_timeout;
    limits.idle_timeout = asked.idle_timeout;
    Ok(limits)
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
