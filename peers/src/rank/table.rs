//! From slices to medians.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::{Options, Placement};

/// One slice of one server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slice {
    /// From 1; sweep 0 is not counted.
    pub sweep: u32,
    /// Messages echoed, or cycles completed.
    pub units: u64,
    /// How long it took, the wait for the last replies included.
    pub seconds: f64,
    /// CPU time of the server for each unit, in nanoseconds.
    pub server_ns: f64,
    /// CPU time of the soft-interrupt threads for each unit, in nanoseconds.
    pub soft_ns: f64,
    /// CPU time of other processes, in percent of `seconds`; `None` where the kernel does not say.
    pub foreign_percent: Option<f64>,
    /// Of an open loop: messages that were sent late, in percent.
    pub late_percent: Option<f64>,
    /// Of an open loop: median of the latencies, in microseconds after a message was due.
    pub p50_us: Option<f64>,
    /// Of an open loop: 99th percentile of the same.
    pub p99_us: Option<f64>,
    /// Why the slice is in no median.
    pub dropped: Option<Dropped>,
}

/// Why a slice is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Other processes ran for too long, or the server was not seen to run.
    Disturbed,
    /// The generator did not keep the rate: too many messages were sent late.
    Late,
}

/// All slices of all servers.
#[derive(Clone, Debug)]
pub struct Ranking {
    pub(super) options: Options,
    /// By server, in the order of the options.
    pub(super) slices: Vec<Vec<Slice>>,
    /// By server: the latencies of its kept slices, in nanoseconds.
    latencies: Vec<Option<Histogram<u64>>>,
}

/// A server's figures ÷ those of another in the same sweeps: lower quartile, median, upper quartile
/// over the sweeps in which both were kept; `None` where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ratios {
    /// Of the CPU time for each unit.
    pub server_ns: Option<[f64; 3]>,
    /// Of the 99th percentiles of the latency; of an open loop only.
    pub p99: Option<[f64; 3]>,
}

/// One server's line; `None` where no slice was kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The server's name.
    pub name: String,
    /// CPU time for each unit in nanoseconds: median over kept slices.
    pub server_ns: Option<f64>,
    /// To the baseline.
    pub ratios: Ratios,
    /// Of an open loop: median and 99th percentile of the latencies in kept slices, in microseconds
    /// after a message was due.
    pub latency_us: Option<[f64; 2]>,
    /// Units a second: median over kept slices.
    pub per_second: Option<f64>,
    /// CPU time of the soft-interrupt threads for each unit: median.
    pub soft_ns: Option<f64>,
    /// Slices kept.
    pub kept: usize,
    /// Slices dropped because others ran.
    pub dropped: usize,
    /// Slices dropped because the generator did not keep the rate.
    pub late: usize,
}

impl Ranking {
    pub(super) fn new(options: &Options) -> Self {
        let slices = vec![Vec::new(); options.servers.len()];
        let latencies = vec![None; options.servers.len()];
        Self { options: options.clone(), slices, latencies }
    }

    pub(super) fn add(&mut self, server: usize, slice: Slice, latency: Option<&Histogram<u64>>) {
        self.slices[server].push(slice);
        let (None, Some(latency)) = (slice.dropped, latency) else { return };
        match &mut self.latencies[server] {
            Some(sum) => sum.add(latency).expect("histograms of the same bounds"),
            empty => *empty = Some(latency.clone()),
        }
    }

    /// One row for each server, in the order in which they were named.
    pub fn rows(&self) -> Vec<Row> {
        let ratios = self.against(&self.options.baseline);
        self.names()
            .zip(&self.slices)
            .zip(&self.latencies)
            .zip(ratios)
            .map(|(((name, slices), latency), ratios)| {
                let median = |of: fn(&Slice) -> f64| {
                    quartiles(kept(slices).map(of).collect()).map(|[_, median, _]| median)
                };
                let dropped =
                    |why| slices.iter().filter(|slice| slice.dropped == Some(why)).count();
                Row {
                    name: name.to_owned(),
                    server_ns: median(|slice| slice.server_ns),
                    ratios,
                    latency_us: latency.as_ref().map(|all| {
                        [0.5, 0.99].map(|part| all.value_at_quantile(part) as f64 / 1000.0)
                    }),
                    per_second: median(|slice| slice.units as f64 / slice.seconds),
                    soft_ns: median(|slice| slice.soft_ns),
                    kept: kept(slices).count(),
                    dropped: dropped(Dropped::Disturbed),
                    late: dropped(Dropped::Late),
                }
            })
            .collect()
    }

    /// All servers' ratios to one of them, in the order in which they were named.
    pub fn against(&self, name: &str) -> Vec<Ratios> {
        let Some(at) = self.names().position(|other| other == name) else {
            return vec![Ratios::default(); self.slices.len()];
        };
        let baseline = &self.slices[at];
        let to_baseline = |slices: &Vec<Slice>| Ratios {
            server_ns: ratios(slices, baseline, |slice| Some(slice.server_ns)),
            p99: ratios(slices, baseline, |slice| slice.p99_us),
        };
        self.slices.iter().map(to_baseline).collect()
    }

    /// The rows, every slice, and what was asked for.
    pub fn json(&self) -> Value {
        let scenario = &self.options.scenario;
        let servers: Vec<Value> = self
            .rows()
            .iter()
            .zip(&self.options.servers)
            .zip(&self.slices)
            .map(|((row, spec), slices)| {
                let mut server = json!({
                    "name": row.name,
                    "command": spec.command.join(" "),
                    "server_ns": row.server_ns,
                    "p50_us": row.latency_us.map(|[p50, _]| p50),
                    "p99_us": row.latency_us.map(|[_, p99]| p99),
                    "per_second": row.per_second,
                    "soft_ns": row.soft_ns,
                    "kept": row.kept,
                    "dropped": row.dropped,
                    "late": row.late,
                    "slices": slices.iter().map(slice_json).collect::<Vec<_>>(),
                });
                add_ratios(&mut server, row.ratios);
                server
            })
            .collect();
        let against: serde_json::Map<String, Value> = self
            .options
            .against
            .iter()
            .map(|name| (name.clone(), self.against_json(name)))
            .collect();
        json!({
            "baseline": self.options.baseline,
            "unit": self.unit(),
            "connections": scenario.connections,
            "size": scenario.size,
            "depth": if scenario.rate.is_none() { Some(scenario.depth) } else { None },
            "rate": scenario.rate,
            "placement": placement(scenario.placement),
            "churn": scenario.churn.map(|closes| format!("{closes:?}").to_lowercase()),
            "sweeps": self.options.sweeps,
            "slice_ms": self.options.slice,
            "foreign_percent_max": self.options.foreign,
            "seed": self.options.seed,
            "servers": servers,
            "against": against,
        })
    }

    fn against_json(&self, name: &str) -> Value {
        let ratios = self.names().zip(self.against(name)).map(|(name, ratios)| {
            let mut server = json!({ "name": name });
            add_ratios(&mut server, ratios);
            server
        });
        ratios.collect()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.options.servers.iter().map(|spec| spec.name.as_str())
    }

    pub(super) fn unit(&self) -> &'static str {
        if self.options.scenario.churn.is_some() { "cycle" } else { "message" }
    }
}

fn add_ratios(server: &mut Value, ratios: Ratios) {
    for (name, values) in [("ratio", ratios.server_ns), ("p99_ratio", ratios.p99)] {
        for (at, suffix) in ["_q1", "", "_q3"].into_iter().enumerate() {
            server[format!("{name}{suffix}")] = json!(values.map(|values| values[at]));
        }
    }
}

fn slice_json(slice: &Slice) -> Value {
    json!({
        "sweep": slice.sweep,
        "units": slice.units,
        "seconds": slice.seconds,
        "server_ns": slice.server_ns,
        "soft_ns": slice.soft_ns,
        "foreign_percent": slice.foreign_percent,
        "late_percent": slice.late_percent,
        "p50_us": slice.p50_us,
        "p99_us": slice.p99_us,
        "kept": slice.dropped.is_none(),
    })
}

pub(super) fn placement(placement: Placement) -> &'static str {
    match placement {
        Placement::OneCore => "one core",
        Placement::TwoCores => "two cores",
    }
}

fn kept(slices: &[Slice]) -> impl Iterator<Item = &Slice> {
    slices.iter().filter(|slice| slice.dropped.is_none())
}

/// Quartiles of the ratios of a figure within the sweeps in which both were kept.
fn ratios(slices: &[Slice], baseline: &[Slice], of: fn(&Slice) -> Option<f64>) -> Option<[f64; 3]> {
    let ratios = kept(slices).filter_map(|slice| {
        let same = kept(baseline).find(|other| other.sweep == slice.sweep)?;
        Some(of(slice)? / of(same)?)
    });
    quartiles(ratios.collect())
}

/// Lower quartile, median, upper quartile, interpolated between the two
/// nearest values; `None` of nothing.
fn quartiles(mut values: Vec<f64>) -> Option<[f64; 3]> {
    if values.is_empty() {
        return None;
    }
    values.sort_by(f64::total_cmp);
    Some([0.25, 0.5, 0.75].map(|part| {
        let at = part * (values.len() - 1) as f64;
        let (below, above) = (values[at.floor() as usize], values[at.ceil() as usize]);
        below + (above - below) * at.fract()
    }))
}

#[cfg(test)]
mod tests {
    use super::super::print::tests::options;
    use super::*;

    fn slice(sweep: u32, server_ns: f64, dropped: Option<Dropped>) -> Slice {
        Slice {
            sweep,
            units: 1,
            seconds: 1.0,
            server_ns,
            soft_ns: 0.0,
            foreign_percent: Some(0.0),
            late_percent: None,
            p50_us: None,
            p99_us: None,
            dropped,
        }
    }

    #[test]
    fn quartiles_interpolate() {
        assert_eq!(quartiles(vec![]), None);
        assert_eq!(quartiles(vec![7.0]), Some([7.0; 3]));
        assert_eq!(quartiles(vec![5.0, 1.0, 4.0, 2.0, 3.0]), Some([2.0, 3.0, 4.0]));
        assert_eq!(quartiles(vec![1.0, 2.0]), Some([1.25, 1.5, 1.75]));
    }

    #[test]
    fn ratios_are_within_a_sweep_and_leave_dropped_slices_out() {
        let (disturbed, late) = (Some(Dropped::Disturbed), Some(Dropped::Late));
        let baseline = [slice(1, 10.0, None), slice(2, 100.0, None), slice(3, 1.0, disturbed)];
        let rival = [
            slice(1, 500.0, disturbed),
            slice(1, 400.0, late),
            slice(1, 5.0, None),
            slice(2, 50.0, None),
            slice(3, 50.0, None),
        ];
        assert_eq!(ratios(&rival, &baseline, |slice| Some(slice.server_ns)), Some([0.5; 3]));
        assert_eq!(ratios(&rival, &baseline, |slice| slice.p99_us), None);
    }

    #[test]
    fn latencies_are_those_of_all_messages_in_kept_slices() {
        let mut ranking = Ranking::new(&options(&["epoll"]));
        for (value, count, dropped) in
            [(1000, 98, None), (50_000, 2, None), (9_000_000, 100, Some(Dropped::Late))]
        {
            let mut latency = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
            latency.record_n(value, count).unwrap();
            ranking.add(0, slice(1, 1.0, dropped), Some(&latency));
        }
        let row = &ranking.rows()[0];
        let [p50, p99] = row.latency_us.expect("latencies");
        assert!((p50 - 1.0).abs() < 0.01 && (p99 - 50.0).abs() < 0.1, "{p50} {p99}");
        assert_eq!((row.kept, row.dropped, row.late), (2, 0, 1));
    }
}
