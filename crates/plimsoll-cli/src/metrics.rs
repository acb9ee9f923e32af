//! `serve --metrics`: the server's figures over HTTP, in Prometheus' text format.
//!
//! One thread serves all scrapers, so that figures are there whatever the engine's shards are at.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

use plimsoll::{DryRun, Observer, Pressure, Reason, TURN_TIMES};
use plimsoll_lab::{Error, Result};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

mod http;

/// What `text::encode` writes, and what Prometheus asks for.
const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Figures that go up and down; all others only rise.
const GAUGES: [&str; 10] = [
    "sessions",
    "sessions_high_water",
    "blocks",
    "blocks_high_water",
    "operations",
    "operations_high_water",
    "sockets_idle",
    "sockets_high_water",
    "sockets_in_limbo",
    "sockets_in_limbo_high_water",
];

/// Serves the figures from now on, as long as the process runs. Returns where.
///
/// # Errors
/// [`Error::Usage`] where the address is none, [`Error::Machine`] where nothing can listen there.
pub(crate) fn serve(at: &str, observer: Observer) -> Result<SocketAddr> {
    let wrong = |error: io::Error| {
        Error::usage(
            format!("`{at}` is no address for metrics: {error}"),
            "give one such as 127.0.0.1:9100",
        )
    };
    let addresses: Vec<SocketAddr> = at.to_socket_addrs().map_err(wrong)?.collect();
    let (listener, address) = listen(&addresses).map_err(|error| {
        Error::machine(
            format!("cannot serve metrics at {at}: {error}"),
            "choose another address with --metrics",
        )
    })?;
    let mut registry = Registry::with_prefix("plimsoll");
    registry.register_collector(Box::new(Figures(observer)));
    std::thread::Builder::new()
        .name("metrics".into())
        .spawn(move || http::serve(listener, |head| answer(head, &registry)))
        .map_err(|error| {
            Error::machine(format!("cannot start a thread: {error}"), "raise `ulimit -u`")
        })?;
    Ok(address)
}

/// A listener that does not block, and where it listens.
fn listen(addresses: &[SocketAddr]) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(addresses)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// The response to a request with this head.
fn answer(head: &str, registry: &Registry) -> Vec<u8> {
    let mut words = head.split(' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some(path)) if path.split('?').next() == Some("/metrics") => {
            let mut body = String::new();
            match text::encode(&mut body, registry) {
                Ok(()) => ("200 OK", body),
                Err(error) => ("500 Internal Server Error", format!("{error}\n")),
            }
        }
        (Some("GET"), _) => ("404 Not Found", "the figures are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "GET /metrics\n".to_owned()),
    };
    let length = body.len();
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {CONTENT}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    response.into_bytes()
}

/// The server's figures, read when they are asked for.
#[derive(Debug)]
struct Figures(Observer);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let metrics = self.0.metrics();
        for (name, value) in metrics.figures() {
            let help = name.replace('_', " ");
            if GAUGES.contains(&name) {
                let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
                let encoder = encoder.encode_descriptor(name, &help, None, gauge.metric_type())?;
                gauge.encode(encoder)?;
            } else {
                let counter = ConstCounter::new(value);
                let encoder =
                    encoder.encode_descriptor(name, &help, None, counter.metric_type())?;
                counter.encode(encoder)?;
            }
        }
        let help = "sessions that ended or were refused";
        family(&mut encoder, ("ended", help), "reason", Reason::names(), &metrics.ended)?;
        let help = "what limits in dry run would have done";
        family(&mut encoder, ("dry_run", help), "limit", &DryRun::NAMES, &metrics.dry_run)?;
        let level = match self.0.pressure().0 {
            Pressure::Calm => 0,
            Pressure::Braking => 1,
            Pressure::Shedding => 2,
        };
        let gauge = ConstGauge::new(level);
        let help = "0 calm, 1 braking, 2 shedding";
        let pressure = encoder.encode_descriptor("pressure", help, None, gauge.metric_type())?;
        gauge.encode(pressure)?;
        let mut turns = encoder.encode_descriptor(
            "turn_seconds",
            "how long turns of the shards took",
            None,
            MetricType::Histogram,
        )?;
        let buckets: Vec<(f64, u64)> =
            (0..TURN_TIMES).map(|place| bucket(place, &metrics)).collect();
        let count = metrics.turn_times.iter().sum();
        let seconds = metrics.turn_nanos as f64 / 1e9;
        turns.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
    }
}

fn bucket(place: usize, metrics: &plimsoll::Metrics) -> (f64, u64) {
    let last = place + 1 == TURN_TIMES;
    let bound = if last { f64::MAX } else { (1_u64 << place) as f64 / 1e6 };
    (bound, metrics.turn_times[place])
}

/// A counter for each value of a label.
fn family(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    label: &'static str,
    values: &[&'static str],
    counts: &[u64],
) -> std::fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (value, count) in values.iter().zip(counts) {
        let labels = [(label, *value)];
        ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
