//! Latencies, in a histogram of fixed size: three digits, from 1 ns to a minute.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::results::Latency;

const LONGEST_NS: u64 = 60_000_000_000;

/// Latencies of a load.
#[derive(Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        // The bounds are constants that the crate accepts: 1 ≤ low, high ≥ 2 low, digits ≤ 5.
        Self(Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("constant, valid bounds"))
    }
}

impl Latencies {
    /// Counts one; longer than a minute counts as a minute.
    pub(super) fn record(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(LONGEST_NS);
        self.0.saturating_record(ns.max(1));
    }

    /// Adds another histogram's counts.
    pub(super) fn join(&mut self, other: &Self) {
        // It fails only where the other reaches further; all have the same bounds.
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    /// The usual percentiles; `None` where nothing was counted.
    pub(super) fn summary(&self) -> Option<Latency> {
        let us = |quantile: f64| self.0.value_at_quantile(quantile) as f64 / 1000.0;
        (!self.0.is_empty()).then(|| Latency {
            p50: us(0.5),
            p90: us(0.9),
            p99: us(0.99),
            p999: us(0.999),
            max: self.0.max() as f64 / 1000.0,
        })
    }

    /// The distribution: value in µs, and the share of messages at or below it.
    pub(super) fn distribution(&self) -> Vec<(f64, f64)> {
        let mut last = -1.0;
        self.0
            .iter_quantiles(2)
            .map(|step| (step.value_iterated_to() as f64 / 1000.0, step.quantile_iterated_to()))
            .filter(|(value, _)| std::mem::replace(&mut last, *value) < *value)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_counted() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.summary(), None);
        for us in 1..=1000 {
            latencies.record(Duration::from_micros(us));
        }
        let summary = latencies.summary().unwrap();
        for (got, expected) in [(summary.p50, 500.0), (summary.p99, 990.0), (summary.max, 1000.0)] {
            assert!((got / expected - 1.0_f64).abs() < 0.002, "{got} for {expected}");
        }
        let distribution = latencies.distribution();
        assert!(
            distribution.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1)
        );
    }
}
