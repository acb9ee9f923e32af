//! The server's limits, from flags and from a TOML file: the same names, with underscores there.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use plimsoll::{DryRun, Limits, Shed, WhenFull};
use plimsoll_lab::{Error, Result, units};
use serde::{Deserialize, Deserializer};

/// A configuration file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Where to listen.
    pub(crate) listen: Option<String>,
    /// `auto`, `uring`, `ready` or `iocp`.
    pub(crate) driver: Option<String>,
    /// `connections` or `throughput`.
    pub(crate) profile: Option<String>,
    /// Shards.
    pub(crate) shards: Option<u32>,
    /// `on` or `off`.
    pub(crate) pool: Option<String>,
    /// Where metrics are served.
    pub(crate) metrics: Option<String>,
    /// The limits.
    pub(crate) limits: LimitArgs,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Usage`] where it is not there or does not parse, with the line.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::usage(
                format!("cannot read the configuration {}: {error}", path.display()),
                "give a TOML file that is there and can be read",
            )
        })?;
        toml::from_str(&text).map_err(|error| {
            Error::usage(
                format!("the configuration {} does not parse: {error}", path.display()),
                "its keys are those of `plimsoll serve --help`, with underscores, limits under [limits]",
            )
        })
    }
}

/// The limits. What is not given is the engine's default.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[command(next_help_heading = "Limits")]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LimitArgs {
    /// Connections at once; the rest wait in the backlog [default: 10000]
    #[arg(long, value_name = "N", value_parser = crate::args::count)]
    pub(crate) max_connections: Option<u64>,
    /// Connections at once from one peer address (IPv6: one /64) [default: no bound]
    #[arg(long, value_name = "N", value_parser = crate::args::count)]
    pub(crate) max_per_peer: Option<u64>,
    /// Connections accepted per second [default: no bound]
    #[arg(long, value_name = "N", value_parser = crate::args::count)]
    pub(crate) max_accept_rate: Option<u64>,
    /// What becomes of who comes to a full server, or with too many connections from one peer:
    /// `wait` in the backlog, `reset`, or `tell:TEXT` (C escapes) [default: wait]
    #[arg(long, value_name = "WHAT")]
    pub(crate) when_full: Option<String>,
    /// Throughput profile: sessions that are read at a time, the others wait their turn
    /// [default: all are read]
    #[arg(long, value_name = "N", value_parser = crate::args::count)]
    pub(crate) service_set: Option<u64>,
    /// Throughput profile: how long a session is read before the next has its turn [default: 2s]
    #[arg(long, value_name = "T", value_parser = crate::args::duration)]
    #[serde(deserialize_with = "time")]
    pub(crate) service_time: Option<Duration>,
    /// An outbox below this many bytes lets its session be read again [default: 16KiB]
    #[arg(long, value_name = "BYTES", value_parser = crate::args::size)]
    #[serde(deserialize_with = "size")]
    pub(crate) outbox_low: Option<u64>,
    /// At this many bytes in its outbox a session is read no more [default: 64KiB]
    #[arg(long, value_name = "BYTES", value_parser = crate::args::size)]
    #[serde(deserialize_with = "size")]
    pub(crate) outbox_high: Option<u64>,
    /// Past this many bytes in its outbox a session is aborted [default: 1MiB]
    #[arg(long, value_name = "BYTES", value_parser = crate::args::size)]
    #[serde(deserialize_with = "size")]
    pub(crate) outbox_hard: Option<u64>,
    /// The kernel's send buffer of each connection, SO_SNDBUF [default: the system's]
    #[arg(long, value_name = "BYTES", value_parser = crate::args::size)]
    #[serde(deserialize_with = "size")]
    pub(crate) kernel_send: Option<u64>,
    /// The kernel's receive buffer of each connection, SO_RCVBUF [default: the system's]
    #[arg(long, value_name = "BYTES", value_parser = crate::args::size)]
    #[serde(deserialize_with = "size")]
    pub(crate) kernel_receive: Option<u64>,
    /// Buffers of each shard, for received bytes and outboxes together [default: 64MiB]
    #[arg(long, value_name = "BYTES", value_parser = crate::args::size)]
    #[serde(deserialize_with = "size")]
    pub(crate) buffer_bytes: Option<u64>,
    /// Connections that are made ready for at start: their slots and buffers [default: 0]
    #[arg(long, value_name = "N", value_parser = crate::args::count)]
    pub(crate) warm_up: Option<u64>,
    /// Buffers of all shards that may be posted to the kernel, and pinned by it, at once
    /// [default: all of them]
    #[arg(long, value_name = "BYTES", value_parser = crate::args::size)]
    #[serde(deserialize_with = "size")]
    pub(crate) pinned_bytes: Option<u64>,
    /// Operations of the kernel in flight at once: one for each connection, and what is sent; who
    /// finds no place waits to send [default: no bound]
    #[arg(long, value_name = "N", value_parser = crate::args::count)]
    pub(crate) max_operations: Option<u64>,
    /// How long an accepted connection may say nothing [default: no bound]
    #[arg(long, value_name = "T", value_parser = crate::args::duration)]
    #[serde(deserialize_with = "time")]
    pub(crate) first_byte_timeout: Option<Duration>,
    /// How long a session may neither send nor receive [default: no bound]
    #[arg(long, value_name = "T", value_parser = crate::args::duration)]
    #[serde(deserialize_with = "time")]
    pub(crate) idle_timeout: Option<Duration>,
    /// How long the rest of a message may take, once its handler was shown the beginning; bytes now
    /// and then do not put it off [default: no bound]
    #[arg(long, value_name = "T", value_parser = crate::args::duration)]
    #[serde(deserialize_with = "time")]
    pub(crate) message_timeout: Option<Duration>,
    /// Bytes per second that a peer must acknowledge while its outbox is blocked, over 5 s, or over as
    /// long as two thirds of the kernel's send buffer take at that rate, which the log tells at start;
    /// --kernel-send makes it shorter [default: no bound]
    #[arg(long, value_name = "BYTES", value_parser = crate::args::size)]
    #[serde(deserialize_with = "size")]
    pub(crate) drain_rate: Option<u64>,
    /// After how long a silence the kernel asks whether a peer is still there; it is given up
    /// within twice this time [default: never asked]
    #[arg(long, value_name = "T", value_parser = crate::args::duration)]
    #[serde(deserialize_with = "time")]
    pub(crate) keep_alive: Option<Duration>,
    /// How long sent bytes may stay unacknowledged, TCP_USER_TIMEOUT [default: the system's]
    #[arg(long, value_name = "T", value_parser = crate::args::duration)]
    #[serde(deserialize_with = "time")]
    pub(crate) user_timeout: Option<Duration>,
    /// Whom to give up first when the machine runs out of memory: `longest-idle`,
    /// `slowest-reader` or `newest` [default: longest-idle]
    #[arg(long, value_name = "WHOM")]
    pub(crate) shed: Option<String>,
    /// Limits that are counted and not kept: accept_rate, first_byte_timeout, idle_timeout,
    /// message_timeout, outbox_hard, peer_limit, service_set, shed, slow_reader [default: none]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) dry_run: Vec<String>,
    /// The backlog asked of listen(2); net.core.somaxconn caps it [default: 4096]
    #[arg(long, value_name = "N", value_parser = crate::args::count)]
    pub(crate) backlog: Option<u64>,
    /// How long sessions may take to end when the server is asked to stop [default: 10s]
    #[arg(long, value_name = "T", value_parser = crate::args::duration)]
    #[serde(deserialize_with = "time")]
    pub(crate) drain_deadline: Option<Duration>,
}

impl LimitArgs {
    /// These, and where they say nothing those of `file`.
    pub(crate) fn or(self, file: &Self) -> Self {
        Self {
            max_connections: self.max_connections.or(file.max_connections),
            max_per_peer: self.max_per_peer.or(file.max_per_peer),
            max_accept_rate: self.max_accept_rate.or(file.max_accept_rate),
            service_set: self.service_set.or(file.service_set),
            service_time: self.service_time.or(file.service_time),
            outbox_low: self.outbox_low.or(file.outbox_low),
            outbox_high: self.outbox_high.or(file.outbox_high),
            outbox_hard: self.outbox_hard.or(file.outbox_hard),
            kernel_send: self.kernel_send.or(file.kernel_send),
            kernel_receive: self.kernel_receive.or(file.kernel_receive),
            buffer_bytes: self.buffer_bytes.or(file.buffer_bytes),
            pinned_bytes: self.pinned_bytes.or(file.pinned_bytes),
            max_operations: self.max_operations.or(file.max_operations),
            first_byte_timeout: self.first_byte_timeout.or(file.first_byte_timeout),
            idle_timeout: self.idle_timeout.or(file.idle_timeout),
            message_timeout: self.message_timeout.or(file.message_timeout),
            drain_rate: self.drain_rate.or(file.drain_rate),
            when_full: self.when_full.or_else(|| file.when_full.clone()),
            keep_alive: self.keep_alive.or(file.keep_alive),
            user_timeout: self.user_timeout.or(file.user_timeout),
            shed: self.shed.or_else(|| file.shed.clone()),
            dry_run: if self.dry_run.is_empty() { file.dry_run.clone() } else { self.dry_run },
            backlog: self.backlog.or(file.backlog),
            warm_up: self.warm_up.or(file.warm_up),
            drain_deadline: self.drain_deadline.or(file.drain_deadline),
        }
    }
}

impl LimitArgs {
    /// The engine's limits: its defaults, and what was asked for.
    ///
    /// # Errors
    /// [`Error::Usage`] where a value is none that the engine knows, or more than it can count.
    pub(crate) fn of_engine(&self) -> Result<Limits> {
        let mut limits = Limits::default();
        let set = |name, value: Option<u64>, limit: &mut u32| {
            value.map(|value| narrow(name, value).map(|value| *limit = value)).transpose()
        };
        set("--max-connections", self.max_connections, &mut limits.max_connections)?;
        set("--outbox-low", self.outbox_low, &mut limits.outbox_low)?;
        set("--outbox-high", self.outbox_high, &mut limits.outbox_high)?;
        set("--outbox-hard", self.outbox_hard, &mut limits.outbox_hard)?;
        set("--warm-up", self.warm_up, &mut limits.warm_up)?;
        set("--backlog", self.backlog, &mut limits.backlog)?;
        let cap = |name, value: Option<u64>| value.map(|value| narrow(name, value)).transpose();
        limits.max_per_peer = cap("--max-per-peer", self.max_per_peer)?;
        limits.max_accept_rate = cap("--max-accept-rate", self.max_accept_rate)?;
        limits.service_set = cap("--service-set", self.service_set)?;
        limits.max_operations = cap("--max-operations", self.max_operations)?;
        limits.drain_rate = cap("--drain-rate", self.drain_rate)?;
        let size = |name, value: Option<u64>| value.map(|value| narrow(name, value)).transpose();
        limits.kernel_send = size("--kernel-send", self.kernel_send)?;
        limits.kernel_receive = size("--kernel-receive", self.kernel_receive)?;
        limits.pinned_bytes = size("--pinned-bytes", self.pinned_bytes)?;
        limits.buffer_bytes =
            size("--buffer-bytes", self.buffer_bytes)?.unwrap_or(limits.buffer_bytes);
        limits.service_time = self.service_time.unwrap_or(limits.service_time);
        limits.first_byte_timeout = self.first_byte_timeout;
        limits.idle_timeout = self.idle_timeout;
        limits.message_timeout = self.message_timeout;
        limits.keep_alive = self.keep_alive;
        limits.user_timeout = self.user_timeout;
        limits.when_full = self.when_full.as_deref().map_or(Ok(WhenFull::Wait), when_full)?;
        limits.shed = self.shed.as_deref().map_or(Ok(Shed::default()), shed)?;
        for name in &self.dry_run {
            if !limits.dry_run.add(name) {
                let known = DryRun::NAMES.join(", ");
                return Err(Error::usage(
                    format!("`{name}` is no limit that can be in dry run"),
                    format!("one of: {known}"),
                ));
            }
        }
        Ok(limits)
    }
}

fn narrow<T: TryFrom<u64>>(name: &str, value: u64) -> Result<T> {
    T::try_from(value).map_err(|_| {
        Error::usage(format!("{name} {value} is more than the engine can count"), "ask for less")
    })
}

fn when_full(text: &str) -> Result<WhenFull> {
    match text.split_once(':') {
        None if text == "wait" => Ok(WhenFull::Wait),
        None if text == "reset" => Ok(WhenFull::Reset),
        Some(("tell", message)) if !message.is_empty() => {
            let message = crate::args::unescape(message)
                .map_err(|cause| Error::usage(cause, "write a message with C escapes"))?;
            Ok(WhenFull::Tell(message.0))
        }
        _ => Err(Error::usage(
            format!("`{text}` is no way to treat who finds a full server"),
            "one of: wait, reset, tell:TEXT",
        )),
    }
}

fn shed(text: &str) -> Result<Shed> {
    match text {
        "longest-idle" => Ok(Shed::LongestIdle),
        "slowest-reader" => Ok(Shed::SlowestReader),
        "newest" => Ok(Shed::Newest),
        _ => Err(Error::usage(
            format!("`{text}` is no way to choose whom to give up"),
            "one of: longest-idle, slowest-reader, newest",
        )),
    }
}

/// A number, or text with a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Quantity {
    Whole(u64),
    Broken(f64),
    Text(String),
}

impl Quantity {
    fn text(self) -> String {
        match self {
            Self::Whole(number) => number.to_string(),
            Self::Broken(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

/// A size in bytes, or as `"64KiB"`.
fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = Quantity::deserialize(from)?.text();
    units::parse_size(&text).map(Some).map_err(serde::de::Error::custom)
}

/// A time in seconds, or as `"150ms"`.
fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = Quantity::deserialize(from)?.text();
    crate::args::duration(&text).map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_takes_units_and_flags_win() {
        let file: Config = toml::from_str(
            "listen = \"[::1]:7000\"\n[limits]\nmax_connections = 5\noutbox_high = \"64KiB\"\n\
             idle_timeout = 2\nservice_time = \"150ms\"\n",
        )
        .unwrap();
        assert_eq!(file.listen.as_deref(), Some("[::1]:7000"));
        assert_eq!(file.limits.outbox_high, Some(65_536));
        assert_eq!(file.limits.idle_timeout, Some(Duration::from_secs(2)));
        let flags = LimitArgs { max_connections: Some(9), ..LimitArgs::default() };
        let both = flags.or(&file.limits);
        assert_eq!(both.max_connections, Some(9));
        assert_eq!(both.service_time, Some(Duration::from_millis(150)));
    }

    #[test]
    fn every_limit_reaches_the_engine() {
        let file: Config = toml::from_str(
            "[limits]\nmax_per_peer = 3\nmax_accept_rate = 40\nwhen_full = \"tell:busy\\\\n\"\n\
             service_set = 100\nservice_time = \"1s\"\npinned_bytes = \"1MiB\"\ndrain_rate = 500\n\
             keep_alive = 30\nuser_timeout = \"5s\"\nshed = \"newest\"\nbacklog = 9\nwarm_up = 7\n\
             dry_run = [\"idle_timeout\"]\nmessage_timeout = \"3s\"\nmax_operations = 20_000\n",
        )
        .unwrap();
        let limits = file.limits.of_engine().unwrap();
        assert_eq!((limits.max_per_peer, limits.max_accept_rate), (Some(3), Some(40)));
        assert_eq!(limits.when_full, WhenFull::Tell(b"busy\n".to_vec()));
        assert_eq!((limits.service_set, limits.service_time.as_secs()), (Some(100), 1));
        assert_eq!((limits.pinned_bytes, limits.drain_rate), (Some(1 << 20), Some(500)));
        assert_eq!(limits.keep_alive, Some(Duration::from_secs(30)));
        assert_eq!(limits.user_timeout, Some(Duration::from_secs(5)));
        assert_eq!((limits.shed, limits.backlog, limits.warm_up), (Shed::Newest, 9, 7));
        assert_eq!(limits.message_timeout, Some(Duration::from_secs(3)));
        assert_eq!(limits.max_operations, Some(20_000));
        assert_ne!(limits.dry_run, DryRun::default());
        for (wrong, name) in [
            (LimitArgs { when_full: Some("tell:".into()), ..LimitArgs::default() }, "tell:"),
            (LimitArgs { shed: Some("oldest".into()), ..LimitArgs::default() }, "oldest"),
            (LimitArgs { dry_run: vec!["closed".into()], ..LimitArgs::default() }, "closed"),
            (LimitArgs { max_per_peer: Some(1 << 40), ..LimitArgs::default() }, "--max-per-peer"),
        ] {
            let error = wrong.of_engine().expect_err(name);
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for wrong in
            ["lissten = 1", "[limits]\nmax_conections = 5", "[limits]\nidle_timeout = \"x\""]
        {
            assert!(toml::from_str::<Config>(wrong).is_err(), "{wrong}");
        }
        let error = Config::read(Path::new("/no/such/file.toml")).expect_err("it is not there");
        assert_eq!(error.exit_code(), 2);
    }
}
