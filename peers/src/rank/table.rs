//! From slices to medians, and the table.

use std::fmt;

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
    /// CPU time of other processes, in percent of `seconds`.
    pub foreign_percent: f64,
    /// Few enough others ran.
    pub kept: bool,
}

/// All slices of all servers.
#[derive(Clone, Debug)]
pub struct Ranking {
    options: Options,
    /// By server, in the order of the options.
    slices: Vec<Vec<Slice>>,
}

/// One server's line; `None` where no slice was kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The server's name.
    pub name: String,
    /// CPU time for each unit in nanoseconds: median over kept slices.
    pub server_ns: Option<f64>,
    /// CPU time ÷ the baseline's of the same sweep: lower quartile, median,
    /// upper quartile over the sweeps in which both were kept.
    pub ratio: Option<[f64; 3]>,
    /// Units a second: median over kept slices.
    pub per_second: Option<f64>,
    /// CPU time of the soft-interrupt threads for each unit: median.
    pub soft_ns: Option<f64>,
    /// Slices kept.
    pub kept: usize,
    /// Slices dropped because others ran.
    pub dropped: usize,
}

impl Ranking {
    pub(super) fn new(options: &Options) -> Self {
        let slices = vec![Vec::new(); options.servers.len()];
        Self { options: options.clone(), slices }
    }

    pub(super) fn add(&mut self, server: usize, slice: Slice) {
        self.slices[server].push(slice);
    }

    /// One row for each server, in the order in which they were named.
    pub fn rows(&self) -> Vec<Row> {
        let baseline = self.names().position(|name| name == self.options.baseline);
        self.names()
            .zip(&self.slices)
            .map(|(name, slices)| {
                let median = |of: fn(&Slice) -> f64| quartiles(kept(slices).map(of).collect());
                Row {
                    name: name.to_owned(),
                    server_ns: median(|slice| slice.server_ns).map(|[_, median, _]| median),
                    ratio: baseline.and_then(|at| ratios(slices, &self.slices[at])),
                    per_second: median(|slice| slice.units as f64 / slice.seconds)
                        .map(|[_, median, _]| median),
                    soft_ns: median(|slice| slice.soft_ns).map(|[_, median, _]| median),
                    kept: kept(slices).count(),
                    dropped: slices.len() - kept(slices).count(),
                }
            })
            .collect()
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
                json!({
                    "name": row.name,
                    "command": spec.command.join(" "),
                    "server_ns": row.server_ns,
                    "ratio_q1": row.ratio.map(|[q1, _, _]| q1),
                    "ratio": row.ratio.map(|[_, median, _]| median),
                    "ratio_q3": row.ratio.map(|[_, _, q3]| q3),
                    "per_second": row.per_second,
                    "soft_ns": row.soft_ns,
                    "kept": row.kept,
                    "dropped": row.dropped,
                    "slices": slices.iter().map(slice_json).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "baseline": self.options.baseline,
            "unit": self.unit(),
            "connections": scenario.connections,
            "size": scenario.size,
            "depth": scenario.depth,
            "placement": placement(scenario.placement),
            "churn": scenario.churn.map(|closes| format!("{closes:?}").to_lowercase()),
            "sweeps": self.options.sweeps,
            "slice_ms": self.options.slice,
            "foreign_percent_max": self.options.foreign,
            "seed": self.options.seed,
            "servers": servers,
        })
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.options.servers.iter().map(|spec| spec.name.as_str())
    }

    fn unit(&self) -> &'static str {
        if self.options.scenario.churn.is_some() { "cycle" } else { "message" }
    }
}

/// The table: a line that names the scenario, the heads, a row for each server.
impl fmt::Display for Ranking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scenario, unit) = (&self.options.scenario, self.unit());
        write!(
            f,
            "# {} connections, {} B, depth {}, {}",
            scenario.connections,
            scenario.size,
            scenario.depth,
            placement(scenario.placement)
        )?;
        if let Some(closes) = scenario.churn {
            write!(f, ", churn: {} closes", format!("{closes:?}").to_lowercase())?;
        }
        writeln!(f, "; {} sweeps of {} ms slices", self.options.sweeps, self.options.slice)?;
        let width = self.names().map(str::len).max().unwrap_or(0).max("server".len());
        writeln!(
            f,
            "{:width$}  {:>10}  {:>6}  {:>6}  {:>6}  {:>10}  {:>10}  {:>5}  {:>7}",
            "server",
            format!("ns/{unit}"),
            "ratio",
            "q1",
            "q3",
            format!("{unit}s/s"),
            "softirq ns",
            "kept",
            "dropped"
        )?;
        for row in self.rows() {
            let number = |value: Option<f64>, digits: usize| match value {
                Some(value) => format!("{value:.digits$}"),
                None => "-".to_owned(),
            };
            let [q1, median, q3] = [0, 1, 2].map(|at| number(row.ratio.map(|ratio| ratio[at]), 3));
            writeln!(
                f,
                "{:width$}  {:>10}  {median:>6}  {q1:>6}  {q3:>6}  {:>10}  {:>10}  {:>5}  {:>7}",
                row.name,
                number(row.server_ns, 0),
                number(row.per_second, 0),
                number(row.soft_ns, 0),
                row.kept,
                row.dropped
            )?;
        }
        Ok(())
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
        "kept": slice.kept,
    })
}

fn placement(placement: Placement) -> &'static str {
    match placement {
        Placement::OneCore => "one core",
        Placement::TwoCores => "two cores",
    }
}

fn kept(slices: &[Slice]) -> impl Iterator<Item = &Slice> {
    slices.iter().filter(|slice| slice.kept)
}

/// Quartiles of the ratios within the sweeps in which both were kept.
fn ratios(slices: &[Slice], baseline: &[Slice]) -> Option<[f64; 3]> {
    let ratios = kept(slices).filter_map(|slice| {
        let same = kept(baseline).find(|other| other.sweep == slice.sweep)?;
        Some(slice.server_ns / same.server_ns)
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
    use super::*;

    fn slice(sweep: u32, server_ns: f64, kept: bool) -> Slice {
        let (units, seconds, soft_ns, foreign_percent) = (1, 1.0, 0.0, 0.0);
        Slice { sweep, units, seconds, server_ns, soft_ns, foreign_percent, kept }
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
        let baseline = [slice(1, 10.0, true), slice(2, 100.0, true), slice(3, 1.0, false)];
        let rival = [
            slice(1, 500.0, false),
            slice(1, 5.0, true),
            slice(2, 50.0, true),
            slice(3, 50.0, true),
        ];
        assert_eq!(ratios(&rival, &baseline), Some([0.5; 3]));
    }
}
