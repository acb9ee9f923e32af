//! The table of a ranking, and what has to be said about it.

use std::fmt;

use super::LATE_PERCENT_MAX;
use super::schedule::Schedule;
use super::table::{Dropped, Ranking, Row, placement};

/// Part of the rate that a server must answer at least, in the median slice, to be said to keep it.
const KEEPS_RATE: f64 = 0.95;

/// A line that names the scenario, the heads, a row for each server, and notes.
impl fmt::Display for Ranking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title())?;
        let columns = self.columns();
        let width = self.names().map(str::len).max().unwrap_or(0).max("server".len());
        write!(f, "{:width$}", "server")?;
        for column in &columns {
            write!(f, "  {:>1$}", column.head, column.width)?;
        }
        writeln!(f)?;
        let rows = self.rows();
        for row in &rows {
            write!(f, "{:width$}", row.name)?;
            for column in &columns {
                write!(f, "  {:>1$}", (column.cell)(row), column.width)?;
            }
            writeln!(f)?;
        }
        self.notes(&rows).iter().try_for_each(|note| writeln!(f, "# {note}"))?;
        self.options.against.iter().try_for_each(|name| self.write_against(f, name, width))
    }
}

/// Right-aligned.
struct Column {
    head: String,
    width: usize,
    cell: fn(&Row) -> String,
}

fn column(head: impl Into<String>, width: usize, cell: fn(&Row) -> String) -> Column {
    Column { head: head.into(), width, cell }
}

impl Ranking {
    /// The ratios to one more server.
    fn write_against(&self, f: &mut fmt::Formatter<'_>, name: &str, width: usize) -> fmt::Result {
        let open = self.options.scenario.rate.is_some();
        writeln!(f, "# divided by {name}, in the same sweeps")?;
        write!(f, "{:width$}  {:>9}  {:>6}  {:>6}", "server", "ratio", "q1", "q3")?;
        if open {
            write!(f, "  {:>9}  {:>6}  {:>6}", "p99 ratio", "q1", "q3")?;
        }
        writeln!(f)?;
        for (server, ratios) in self.names().zip(self.against(name)) {
            write!(f, "{server:width$}")?;
            let shown =
                if open { vec![ratios.server_ns, ratios.p99] } else { vec![ratios.server_ns] };
            for values in shown {
                let [q1, median, q3] = [0, 1, 2].map(|at| number(values.map(|all| all[at]), 3));
                write!(f, "  {median:>9}  {q1:>6}  {q3:>6}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn title(&self) -> String {
        let (options, scenario) = (&self.options, &self.options.scenario);
        let load = match scenario.rate {
            Some(rate) => format!("{rate} messages/s"),
            None => format!("depth {}", scenario.depth),
        };
        let churn = scenario.churn.map_or_else(String::new, |closes| {
            format!(", churn: {} closes", format!("{closes:?}").to_lowercase())
        });
        format!(
            "# {} connections, {} B, {load}, {}{churn}; {} sweeps of {} ms slices",
            scenario.connections,
            scenario.size,
            placement(scenario.placement),
            options.sweeps,
            options.slice
        )
    }

    fn columns(&self) -> Vec<Column> {
        let unit = self.unit();
        let open = self.options.scenario.rate.is_some();
        let mut columns = vec![
            column(format!("ns/{unit}"), 10, |row| number(row.server_ns, 0)),
            column("ratio", 6, |row| number(row.ratios.server_ns.map(|[_, median, _]| median), 3)),
            column("q1", 6, |row| number(row.ratios.server_ns.map(|[q1, _, _]| q1), 3)),
            column("q3", 6, |row| number(row.ratios.server_ns.map(|[_, _, q3]| q3), 3)),
        ];
        if open {
            columns.extend([
                column("p50 us", 8, |row| number(row.latency_us.map(|[p50, _]| p50), 1)),
                column("p99 us", 8, |row| number(row.latency_us.map(|[_, p99]| p99), 1)),
                column("p99 ratio", 9, |row| {
                    number(row.ratios.p99.map(|[_, median, _]| median), 3)
                }),
                column("q1", 6, |row| number(row.ratios.p99.map(|[q1, _, _]| q1), 3)),
                column("q3", 6, |row| number(row.ratios.p99.map(|[_, _, q3]| q3), 3)),
            ]);
        }
        columns.extend([
            column(format!("{unit}s/s"), 10, |row| number(row.per_second, 0)),
            column("softirq ns", 10, |row| number(row.soft_ns, 0)),
            column("kept", 5, |row| row.kept.to_string()),
            column("dropped", 7, |row| row.dropped.to_string()),
        ]);
        if open {
            columns.push(column("late", 5, |row| row.late.to_string()));
        }
        columns
    }

    /// What a reader of the rows must know.
    fn notes(&self, rows: &[Row]) -> Vec<String> {
        let Some(rate) = self.options.scenario.rate else { return Vec::new() };
        let mut notes = Vec::new();
        for (row, slices) in rows.iter().zip(&self.slices) {
            let name = &row.name;
            let late = slices.iter().filter(|slice| slice.dropped == Some(Dropped::Late));
            if let Some(most) = late.filter_map(|slice| slice.late_percent).reduce(f64::max) {
                notes.push(format!(
                    "{name}: the generator did not keep the rate in {} of {} slices, which are \
                     dropped: more than {LATE_PERCENT_MAX} % of the messages (at most {most:.1} %) \
                     were sent {} us or more after they were due",
                    row.late,
                    slices.len(),
                    Schedule::late_ns(rate) / 1000
                ));
            }
            if let Some(answered) =
                row.per_second.filter(|per_second| *per_second < KEEPS_RATE * rate as f64)
            {
                notes.push(format!(
                    "{name}: the server did not keep the rate: it answered {answered:.0} of \
                     {rate} messages/s"
                ));
            }
        }
        if self.slices.iter().flatten().any(|slice| slice.foreign_percent.is_none()) {
            notes.push(
                "how long other processes ran is unknown, and no slice was dropped for it: without \
                 the control group cpuacct (version 1), only --placement two-cores shows it"
                    .into(),
            );
        }
        notes
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;
    use hdrhistogram::Histogram;

    use super::super::{Options, Slice};
    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    /// The options of these servers and flags.
    pub(in super::super) fn options(flags: &[&str]) -> Options {
        let servers = flags.iter().filter(|flag| !flag.contains("--"));
        let all = ["rank"].into_iter().chain(servers.flat_map(|name| ["--server", name]));
        let flags = flags.iter().copied().filter(|flag| flag.contains("--"));
        Cli::try_parse_from(all.chain(flags)).expect("good flags").options
    }

    const GOOD: Slice = Slice {
        sweep: 1,
        units: 300,
        seconds: 0.15,
        server_ns: 5000.0,
        soft_ns: 0.0,
        foreign_percent: Some(0.5),
        late_percent: Some(0.0),
        p50_us: Some(20.0),
        p99_us: Some(80.0),
        dropped: None,
    };

    /// Latencies of one slice, all the same.
    fn latency(nanoseconds: u64) -> Histogram<u64> {
        let mut latency = Histogram::new_with_bounds(1, 1_000_000_000, 3).expect("good bounds");
        latency.record_n(nanoseconds, 300).expect("within the bounds");
        latency
    }

    #[test]
    fn an_open_loop_shows_latencies_beside_costs() {
        let mut ranking = Ranking::new(&options(&["epoll", "tokio", "--rate=2000"]));
        ranking.add(0, GOOD, Some(&latency(20_000)));
        let other = Slice { server_ns: 6000.0, p99_us: Some(120.0), ..GOOD };
        ranking.add(1, other, Some(&latency(40_000)));
        let table = ranking.to_string();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines[0],
            "# 50 connections, 64 B, 2000 messages/s, one core; 15 sweeps of 150 ms slices"
        );
        let cells: Vec<&str> = lines[3].split_whitespace().collect();
        let figures =
            ["6000", "1.200", "1.200", "1.200", "40.0", "40.0", "1.500", "1.500", "1.500"];
        assert_eq!(cells[0], "tokio");
        assert_eq!(cells[1..10], figures, "{table}");
        assert_eq!(cells[10..], ["2000", "0", "1", "0", "0"], "{table}");
        assert_eq!(lines.len(), 4, "nothing to note: {table}");
    }

    #[test]
    fn servers_are_divided_by_further_ones() {
        let mut ranking =
            Ranking::new(&options(&["epoll", "ring", "--rate=2000", "--against=ring"]));
        ranking.add(0, GOOD, Some(&latency(20_000)));
        let ring = Slice { server_ns: 4000.0, p99_us: Some(100.0), ..GOOD };
        ranking.add(1, ring, Some(&latency(20_000)));
        let table = ranking.to_string();
        let lines: Vec<&str> = table.lines().skip(4).collect();
        assert_eq!(lines[0], "# divided by ring, in the same sweeps", "{table}");
        let cells: Vec<&str> = lines[2].split_whitespace().collect();
        assert_eq!(cells, ["epoll", "1.250", "1.250", "1.250", "0.800", "0.800", "0.800"]);
        let json = ranking.json();
        assert_eq!(json["against"]["ring"][0]["ratio"], 1.25, "{json:#}");
        assert_eq!(json["servers"][1]["ratio"], 0.8, "{json:#}");
    }

    #[test]
    fn a_closed_loop_shows_no_latencies() {
        let mut ranking = Ranking::new(&options(&["epoll"]));
        let slice = Slice { late_percent: None, p50_us: None, p99_us: None, ..GOOD };
        ranking.add(0, slice, None);
        let table = ranking.to_string();
        assert!(!table.contains("p99") && !table.contains("late"), "{table}");
        assert!(table.contains("depth 1"), "{table}");
        assert_eq!(table.lines().nth(2).expect("a row").split_whitespace().count(), 9, "{table}");
    }

    #[test]
    fn a_rate_that_was_not_kept_is_said_with_the_one_who_did_not_keep_it() {
        let mut ranking = Ranking::new(&options(&["epoll", "tokio", "--rate=2000"]));
        let late =
            |percent| Slice { late_percent: Some(percent), dropped: Some(Dropped::Late), ..GOOD };
        ranking.add(0, late(7.25), Some(&latency(20_000)));
        ranking.add(0, late(3.0), Some(&latency(20_000)));
        ranking.add(0, GOOD, Some(&latency(20_000)));
        ranking.add(1, Slice { seconds: 0.3, ..GOOD }, Some(&latency(20_000)));
        let table = ranking.to_string();
        let notes: Vec<&str> = table.lines().skip(4).collect();
        assert_eq!(notes.len(), 2, "{table}");
        assert!(notes[0].contains("epoll: the generator") && notes[0].contains("2 of 3 slices"));
        assert!(notes[0].contains("7.2 %") && notes[0].contains("250 us"), "{table}");
        assert!(notes[1].contains("tokio: the server") && notes[1].contains("1000 of 2000"));
    }

    #[test]
    fn unknown_company_is_said() {
        let mut ranking = Ranking::new(&options(&["epoll", "--rate=2000"]));
        ranking.add(0, Slice { foreign_percent: None, ..GOOD }, Some(&latency(20_000)));
        assert!(ranking.to_string().contains("other processes ran is unknown"));
    }
}
