//! The server's limits, from flags and from a TOML file: the same names, with underscores there.

use std::path::Path;
use std::time::Duration;

use clap::Args;
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
    /// Throughput profile: sessions that are read at a time, the others wait their turn
    /// [default: 100]
    #[arg(long, value_name = "N", value_parser = crate::args::count)]
    pub(crate) service_set: Option<u64>,
    /// Throughput profile: how long a session is read before the next has its turn
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
    /// Memory of all shards that may be pinned [default: what the system allows]
    #[arg(long, value_name = "BYTES", value_parser = crate::args::size)]
    #[serde(deserialize_with = "size")]
    pub(crate) pinned_bytes: Option<u64>,
    /// How long an accepted connection may say nothing [default: no bound]
    #[arg(long, value_name = "T", value_parser = crate::args::duration)]
    #[serde(deserialize_with = "time")]
    pub(crate) first_byte_timeout: Option<Duration>,
    /// How long a session may neither send nor receive [default: no bound]
    #[arg(long, value_name = "T", value_parser = crate::args::duration)]
    #[serde(deserialize_with = "time")]
    pub(crate) idle_timeout: Option<Duration>,
    /// Bytes per second that a peer with a full outbox must acknowledge [default: no bound]
    #[arg(long, value_name = "BYTES", value_parser = crate::args::size)]
    #[serde(deserialize_with = "size")]
    pub(crate) drain_rate: Option<u64>,
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
            first_byte_timeout: self.first_byte_timeout.or(file.first_byte_timeout),
            idle_timeout: self.idle_timeout.or(file.idle_timeout),
            drain_rate: self.drain_rate.or(file.drain_rate),
            drain_deadline: self.drain_deadline.or(file.drain_deadline),
        }
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
