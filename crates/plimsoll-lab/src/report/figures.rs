//! The report's figures: what each draws, what it says in a sentence, and the table behind it.

use std::collections::BTreeMap;

use super::chart::{Axis, COLOURS, Chart, Mark, Unit};
use super::text;
use crate::results::{Backlog, BacklogRun, Capacity, Churn, Load};
use crate::statistics::median;

/// A chart with its sentence, legend and table.
#[derive(Debug, Clone)]
pub(super) struct Figure {
    /// Unique on the page.
    pub(super) id: &'static str,
    /// Its heading.
    pub(super) title: String,
    /// What a person should see in it.
    pub(super) says: String,
    /// The drawing for a wide page.
    pub(super) wide: String,
    /// The drawing for a narrow page.
    pub(super) narrow: String,
    /// Colour and name of each series.
    pub(super) legend: Vec<(usize, String)>,
    /// All of its figures.
    pub(super) table: Table,
}

/// A table: the first column names the row, the others are figures.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    /// What it holds.
    pub(super) caption: String,
    /// Headings.
    pub(super) head: Vec<String>,
    /// Rows, each as long as `head`.
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    fn new(caption: &str, head: &[&str]) -> Self {
        Self {
            caption: caption.to_owned(),
            head: head.iter().map(|&name| name.to_owned()).collect(),
            rows: Vec::new(),
        }
    }
}

/// Layers of the capacity chart before the rest is summed up.
const LAYERS: usize = COLOURS - 2;
/// Rows of a table that follows time: more are thinned.
const ROWS: usize = 40;

/// Connections against memory: kernel objects stacked, the server's own memory beside them.
pub(super) fn capacity(result: &Capacity) -> Option<Figure> {
    let samples = &result.samples;
    if samples.len() < 2 {
        return None;
    }
    let layers = layers(result);
    let x: Vec<f64> = samples.iter().map(|sample| sample.connections as f64).collect();
    let mut marks = Vec::new();
    let mut legend = Vec::new();
    let mut lower = vec![0.0; samples.len()];
    for (colour, (name, values)) in layers.iter().enumerate() {
        let upper: Vec<f64> = lower.iter().zip(values).map(|(low, value)| low + value).collect();
        marks.push(Mark::area(colour, &x, &lower, &upper));
        legend.push((colour, name.clone()));
        lower = upper;
    }
    // The last colour is the server's own memory: a line, on no stack.
    let grown = rss_growth(result);
    if grown.iter().any(|(_, value)| *value > 0.0) {
        marks.push(Mark::line(COLOURS - 1, grown.clone()));
        legend.push((COLOURS - 1, "the server's own memory (line)".to_owned()));
    }
    let most = lower.iter().copied().chain(grown.iter().map(|point| point.1)).fold(0.0, f64::max);
    let last = x.iter().copied().fold(0.0, f64::max);
    let says = format!(
        "{} connections took {} of kernel objects on both ends{}.",
        text::count(result.established),
        text::bytes(lower.last().copied().unwrap_or_default()),
        grown.last().map_or_else(String::new, |(_, value)| format!(
            ", and {} more memory in the server itself",
            text::bytes(*value)
        )),
    );
    let mut table = Table::new(
        "Memory over connections: bytes more than at the start",
        &["connections", "seconds", "kernel objects", "server's growth", "memory left", "queued"],
    );
    let names: Vec<&str> = layers.iter().map(|(name, _)| name.as_str()).collect();
    table.head.extend(names.iter().map(|&name| name.to_owned()));
    for index in thinned(samples.len()) {
        let sample = &samples[index];
        let mut row = vec![
            text::count(sample.connections),
            text::number(sample.seconds),
            text::bytes(lower[index]),
            grown.get(index).map_or_else(|| "–".to_owned(), |point| text::bytes(point.1)),
            text::known(sample.available_bytes, |value| text::bytes(value as f64)),
            text::known(sample.queued, text::count),
        ];
        row.extend(layers.iter().map(|(_, values)| text::bytes(values[index])));
        table.rows.push(row);
    }
    Some(figure(
        Chart {
            id: "capacity",
            title: "Connections against memory".to_owned(),
            description: says.clone(),
            x: Axis::linear("connections held", Unit::Count, last),
            y: Axis::linear("memory, both ends, more than at the start", Unit::Bytes, most),
            marks,
        },
        says,
        legend,
        table,
    ))
}

/// Bytes by kernel object over the samples, the largest first, what is small summed up.
fn layers(result: &Capacity) -> Vec<(String, Vec<f64>)> {
    let mut by_name: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (index, sample) in result.samples.iter().enumerate() {
        for (name, bytes) in &sample.kernel_bytes {
            by_name.entry(name).or_insert_with(|| vec![0.0; result.samples.len()])[index] =
                (*bytes).max(0) as f64;
        }
    }
    let largest = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let mut layers: Vec<_> =
        by_name.into_iter().map(|(name, values)| (name.to_owned(), values)).collect();
    layers.retain(|(_, values)| largest(values) > 0.0);
    layers.sort_by(|a, b| largest(&b.1).total_cmp(&largest(&a.1)));
    if layers.len() > LAYERS {
        let rest = layers.split_off(LAYERS);
        let mut sum = vec![0.0; result.samples.len()];
        for (_, values) in rest {
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        layers.push(("other objects".to_owned(), sum));
    }
    layers
}

/// The server's resident memory over connections, less what it had at the first sample.
fn rss_growth(result: &Capacity) -> Vec<(f64, f64)> {
    let known: Option<Vec<u64>> =
        result.samples.iter().map(|sample| sample.server_rss_bytes).collect();
    let Some(known) = known else { return Vec::new() };
    let first = known.first().copied().unwrap_or_default();
    result
        .samples
        .iter()
        .zip(known)
        .map(|(sample, bytes)| (sample.connections as f64, bytes.saturating_sub(first) as f64))
        .collect()
}

/// Backlog asked for, granted by the kernel, really queued: one row per run.
pub(super) fn backlog(result: &Backlog) -> Option<Figure> {
    let runs = &result.runs;
    if runs.is_empty() {
        return None;
    }
    let mark = |value: fn(&BacklogRun) -> Option<f64>| -> Vec<(f64, f64)> {
        let at = |(row, run): (usize, &BacklogRun)| Some((value(run)?, row as f64));
        runs.iter().enumerate().filter_map(at).collect()
    };
    let asked = mark(|run| run.requested.filter(|asked| *asked > 0).map(|asked| asked as f64));
    let granted = mark(|run| run.granted.map(|granted| granted as f64));
    let queued = mark(|run| run.queued.map(|queued| queued as f64));
    let values = || asked.iter().chain(&granted).chain(&queued).map(|point| point.0);
    let most = values().fold(1.0, f64::max);
    let least = values().fold(most, f64::min);
    let says = format!(
        "At most {} connections waited unaccepted on one listener; what ended each run is in the \
         table.",
        text::count(result.queued_max)
    );
    let mut table = Table::new(
        "Backlog: asked, granted, queued",
        &[
            "asked",
            "granted",
            "queued",
            "connected",
            "stopped by",
            "overflows",
            "rotten",
            "connects/s",
            "kernel per queued",
        ],
    );
    for run in runs {
        table.rows.push(vec![
            requested(run),
            text::known(run.granted, text::count),
            text::known(run.queued, text::count),
            text::count(run.connects_ok),
            run.stopped_by.name().replace('_', " "),
            text::known(run.overflows, text::count),
            text::known(run.rotten, text::count),
            text::number(run.connects_per_second),
            text::known(run.kernel_bytes_per_queued, text::bytes),
        ]);
    }
    Some(figure(
        Chart {
            id: "backlog",
            title: "Backlog: asked, granted, queued".to_owned(),
            description: says.clone(),
            x: Axis::log("connections, logarithmic", Unit::Count, least, most),
            y: Axis::rows("backlog asked for", runs.iter().map(requested).collect()),
            marks: vec![Mark::rings(1, asked), Mark::strokes(2, granted), Mark::dots(0, queued)],
        },
        says,
        vec![
            (1, "asked (ring)".to_owned()),
            (2, "granted (stroke)".to_owned()),
            (0, "really queued (dot)".to_owned()),
        ],
        table,
    ))
}

/// What a run asked for, as its row is called.
fn requested(run: &BacklogRun) -> String {
    match run.requested {
        None => "default".to_owned(),
        Some(asked) if asked < 0 => format!("−{}", text::count(asked.unsigned_abs())),
        Some(asked) => text::count(asked as u64),
    }
}

/// The latency distribution, each further nine as wide as the last.
pub(super) fn latency(result: &Load) -> Option<Figure> {
    let points: Vec<(f64, f64)> = result
        .distribution
        .iter()
        .map(|(micros, share)| (*share, *micros))
        .filter(|(share, micros)| *micros > 0.0 && (0.0..=1.0).contains(share))
        .collect();
    let latency = result.latency_us?;
    if points.len() < 2 {
        return None;
    }
    // As many nines as there are messages to speak for them.
    let nines = (result.messages.max(10) as f64).log10().floor().min(5.0) as u32;
    let low = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|point| point.1).fold(0.0, f64::max);
    let says = format!(
        "With {} connections half of the replies came within {}, 99 of 100 within {}, the slowest \
         took {}.",
        text::count(result.established),
        text::micros(latency.p50),
        text::micros(latency.p99),
        text::micros(latency.max),
    );
    let mut table = Table::new("Latency distribution", &["share of messages", "at most"]);
    for index in thinned(points.len()) {
        let (share, micros) = points[index];
        table.rows.push(vec![
            format!("{}\u{202f}%", text::trimmed(share * 100.0, 4)),
            text::micros(micros),
        ]);
    }
    Some(figure(
        Chart {
            id: "latency",
            title: "Latency distribution".to_owned(),
            description: says.clone(),
            x: Axis::percentile("share of messages answered", nines),
            y: Axis::log("time to the whole reply", Unit::Micros, low, high),
            marks: vec![Mark::line(0, points)],
        },
        says,
        Vec::new(),
        table,
    ))
}

/// The runs of one point of a load curve: how many, and their median, lowest and highest rate.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    connections: f64,
    pub(super) runs: usize,
    median: f64,
    low: f64,
    high: f64,
}

/// A load curve by its points: runs with as many connections are one, and so are a run's repeats.
pub(super) fn points(curve: &[Load]) -> Vec<Point> {
    let mut rates: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for load in curve {
        let repeats = load.repeats.iter().map(|repeat| repeat.messages_per_second);
        let own = load.repeats.is_empty().then_some(load.messages_per_second);
        rates.entry(load.established).or_default().extend(repeats.chain(own));
    }
    let point = |(connections, rates): (u64, Vec<f64>)| {
        Some(Point {
            connections: connections as f64,
            runs: rates.len(),
            median: median(&rates)?,
            low: rates.iter().copied().fold(f64::INFINITY, f64::min),
            high: rates.iter().copied().fold(0.0, f64::max),
        })
    };
    rates.into_iter().filter_map(point).collect()
}

/// Messages per second over connections; where a point was measured several times, with its spread.
pub(super) fn throughput(curve: &[Load]) -> Option<Figure> {
    let measured = points(curve);
    let best = measured.iter().max_by(|a, b| a.median.total_cmp(&b.median))?;
    if measured.len() < 2 {
        return None;
    }
    let line: Vec<(f64, f64)> = measured.iter().map(|one| (one.connections, one.median)).collect();
    let spreads: Vec<(f64, f64, f64)> = measured
        .iter()
        .filter(|one| one.runs > 1)
        .map(|one| (one.connections, one.low, one.high))
        .collect();
    let says = format!(
        "The most, {} messages/s, went through {} connections.{}",
        text::number(best.median),
        text::number(best.connections),
        if spreads.is_empty() {
            " Each point was measured once."
        } else {
            " Points are medians; the bars go from the lowest run to the highest."
        }
    );
    let mut table = Table::new(
        "Throughput over connections",
        &[
            "connections",
            "messages/s",
            "bytes/s",
            "p50",
            "p99",
            "p99.9",
            "slowest",
            "server CPU",
            "wrong",
            "errors",
        ],
    );
    for load in curve {
        let latency = |pick: fn(&crate::results::Latency) -> f64| {
            text::known(load.latency_us.as_ref().map(pick), text::micros)
        };
        table.rows.push(vec![
            text::count(load.established),
            text::number(load.messages_per_second),
            format!("{}/s", text::bytes(load.bytes_per_second)),
            latency(|us| us.p50),
            latency(|us| us.p99),
            latency(|us| us.p999),
            latency(|us| us.max),
            text::known(load.server_cpu_us_per_message, text::micros),
            text::count(load.corrupt),
            text::count(load.errors.values().sum()),
        ]);
    }
    let (low, high) = ends(&line);
    let most = measured.iter().map(|one| one.high).fold(0.0, f64::max);
    Some(figure(
        Chart {
            id: "throughput",
            title: "Throughput over connections".to_owned(),
            description: says.clone(),
            x: Axis::log("connections, logarithmic", Unit::Count, low, high),
            y: Axis::linear("messages per second", Unit::Rate, most),
            marks: vec![
                Mark::line(0, line.clone()),
                Mark::spreads(6, &spreads),
                Mark::dots(0, line),
            ],
        },
        says,
        Vec::new(),
        table,
    ))
}

/// Median and 99th percentile over connections; of several runs of one point the median of each.
pub(super) fn latency_curve(curve: &[Load]) -> Option<Figure> {
    let line = |pick: fn(&crate::results::Latency) -> f64| -> Vec<(f64, f64)> {
        let mut runs: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for load in curve {
            let micros = load.latency_us.as_ref().map(pick).filter(|micros| *micros > 0.0);
            runs.entry(load.established).or_default().extend(micros);
        }
        let middle = |(connections, runs): (u64, Vec<f64>)| {
            Some((connections as f64, crate::statistics::median(&runs)?))
        };
        runs.into_iter().filter_map(middle).collect()
    };
    let (median, tail) = (line(|us| us.p50), line(|us| us.p99));
    let worst = tail.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1))?;
    if median.len() < 2 {
        return None;
    }
    let says = format!(
        "At {} connections one reply in a hundred takes longer than {}.",
        text::number(worst.0),
        text::micros(worst.1)
    );
    let low = median.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let mut table =
        Table::new("Latency over connections", &["connections", "median", "99th percentile"]);
    for (at, (connections, micros)) in median.iter().enumerate() {
        table.rows.push(vec![
            text::number(*connections),
            text::micros(*micros),
            tail.get(at).map_or_else(String::new, |point| text::micros(point.1)),
        ]);
    }
    let (first, last) = ends(&median);
    Some(figure(
        Chart {
            id: "latency-curve",
            title: "Latency over connections".to_owned(),
            description: says.clone(),
            x: Axis::log("connections, logarithmic", Unit::Count, first, last),
            y: Axis::log("time to the whole reply", Unit::Micros, low, worst.1),
            marks: vec![
                Mark::line(0, median.clone()),
                Mark::dots(0, median),
                Mark::line(1, tail.clone()),
                Mark::dots(1, tail),
            ],
        },
        says,
        vec![(0, "median".to_owned()), (1, "99th percentile".to_owned())],
        table,
    ))
}

/// `TIME_WAIT` over time, by variant and end.
pub(super) fn time_wait(result: &Churn) -> Option<Figure> {
    let mut marks = Vec::new();
    let mut legend = Vec::new();
    let (mut longest, mut most) = (0.0_f64, 0_u64);
    for variant in &result.variants {
        for (end, pick) in [("server's end", 1), ("client's end", 2)] {
            let points: Vec<(f64, f64)> = variant
                .time_wait_samples
                .iter()
                .map(|sample| (sample.0, if pick == 1 { sample.1 } else { sample.2 } as f64))
                .collect();
            let peak = points.iter().map(|point| point.1 as u64).max().unwrap_or(0);
            longest = points.iter().map(|point| point.0).fold(longest, f64::max);
            // Of the server's pool alone the client is that without a pool: the same line.
            if peak == 0 || legend.len() >= COLOURS || variant.pool == "server" {
                continue;
            }
            most = most.max(peak);
            let colour = legend.len();
            marks.push(Mark::line(colour, points));
            let pool = match variant.pool.as_str() {
                "on" if cfg!(windows) => "the server's pool",
                "on" => "reused sockets",
                _ => "new sockets",
            };
            legend.push((colour, format!("{pool}, {} closes: {end}", variant.closes)));
        }
    }
    if longest <= 0.0 {
        return None;
    }
    let says = if most == 0 {
        "No socket stayed in TIME_WAIT on either end.".to_owned()
    } else {
        format!(
            "At most {} sockets stood in TIME_WAIT, at the end that closes first.",
            text::count(most)
        )
    };
    Some(figure(
        Chart {
            id: "time-wait",
            title: "TIME_WAIT over time".to_owned(),
            description: says.clone(),
            x: Axis::linear("time since the variant's start", Unit::Seconds, longest),
            y: Axis::linear("sockets in TIME_WAIT", Unit::Count, most as f64),
            marks,
        },
        says,
        legend,
        churn_table(result),
    ))
}

/// Every variant of churn with its figures.
fn churn_table(result: &Churn) -> Table {
    let mut table = Table::new(
        "Connect, echo, disconnect: by pool and by who closes first",
        &[
            "variant",
            "cycles/s",
            "server CPU per cycle",
            "client CPU per cycle",
            "TIME_WAIT, server",
            "TIME_WAIT, client",
            "client's pool: hits",
            "misses",
            "server's pools: hits",
            "misses",
            "errors",
        ],
    );
    for variant in &result.variants {
        table.rows.push(vec![
            format!("pool {}, {} closes", variant.pool, variant.closes),
            text::number(variant.cycles_per_second),
            text::known(variant.server_cpu_us_per_cycle, text::micros),
            text::known(variant.client_cpu_us_per_cycle, text::micros),
            text::known(variant.time_wait_server, text::count),
            text::known(variant.time_wait_client, text::count),
            text::count(variant.pool_hits),
            text::count(variant.pool_misses),
            text::known(variant.server_pool_hits, text::count),
            text::known(variant.server_pool_misses, text::count),
            text::count(variant.errors.values().sum()),
        ]);
    }
    table
}

/// Draws the chart and puts the figure together.
fn figure(chart: Chart, says: String, legend: Vec<(usize, String)>, table: Table) -> Figure {
    let (wide, narrow) = chart.svg();
    Figure { id: chart.id, title: chart.title, says, wide, narrow, legend, table }
}

/// The smallest and the largest `x`.
fn ends(points: &[(f64, f64)]) -> (f64, f64) {
    let low = points.iter().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|point| point.0).fold(0.0, f64::max);
    (low, high)
}

/// Indices of at most [`ROWS`] rows out of `length`, the first and the last among them.
fn thinned(length: usize) -> Vec<usize> {
    let stride = length.div_ceil(ROWS).max(1);
    let mut indices: Vec<usize> = (0..length).step_by(stride).collect();
    if indices.last().is_some_and(|last| *last + 1 != length) {
        indices.push(length - 1);
    }
    indices
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use crate::results::LoadRepeat;

    #[test]
    fn runs_of_one_point_are_its_spread() {
        let mut curve = fixture::survey().result.load_curve;
        assert!(points(&curve).iter().all(|one| one.runs == 1));
        assert!(!throughput(&curve).expect("a figure").wide.contains("class=\"s-6\""));
        for rate in [250_000.0, 290_000.0] {
            curve.push(Load { messages_per_second: rate, ..curve[2].clone() });
        }
        let point = points(&curve).into_iter().find(|one| one.runs == 3).expect("three runs");
        assert_eq!((point.low, point.median, point.high), (250_000.0, 271_300.0, 290_000.0));
        let figure = throughput(&curve).expect("a figure");
        // A bar and its two caps.
        assert_eq!(figure.wide.matches("class=\"s-6\"").count(), 3, "{}", figure.wide);
        assert!(figure.says.contains("lowest run to the highest"), "{}", figure.says);
        assert_eq!(figure.table.rows.len(), 7, "every run has its row");
        let repeat = |rate| LoadRepeat { messages_per_second: rate, ..LoadRepeat::default() };
        curve[0].repeats = [20_000.0, 24_000.0, 25_000.0].map(repeat).to_vec();
        let first = points(&curve).into_iter().next().expect("a point");
        assert_eq!((first.runs, first.low, first.median), (3, 20_000.0, 24_000.0));
        let latency = latency_curve(&curve).expect("a figure");
        assert_eq!(latency.table.rows.len(), 5, "one for each number of connections");
    }
}
