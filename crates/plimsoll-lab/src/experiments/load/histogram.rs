//! Latencies, in a histogram of fixed size: three digits, from 1 ns to the longest time that a
//! message of the run can be waited for.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::results::Latency;

/// The histogram reaches a minute at least, and what a run is longer than its time limits by: a
/// client that is stopped for some time records it in full.
const SPARE: Duration = Duration::from_secs(60);

/// Latencies of a load.
#[derive(Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    /// A histogram for latencies up to this one, and a minute more. Some 0.5 MB.
    pub(super) fn up_to(longest: Duration) -> Self {
        let most = u64::try_from(longest.saturating_add(SPARE).as_nanos()).unwrap_or(u64::MAX / 2);
        let histogram = Histogram::new_with_bounds(1, most.min(u64::MAX / 2), 3);
        // The crate accepts bounds where 1 ≤ low, high ≥ 2 low, and digits ≤ 5.
        Self(histogram.expect("the bounds are valid"))
    }

    /// Counts one, in nanoseconds. O(1), no allocation.
    pub(super) fn record(&mut self, latency_ns: u64) {
        self.0.saturating_record(latency_ns.max(1));
    }

    /// Adds another histogram's counts.
    pub(super) fn join(&mut self, other: &Self) {
        // It fails only where the other reaches further; all clients of a run have the same bounds.
        self.0.add(&other.0).expect("histograms of one run have the same bounds");
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
        let mut latencies = Latencies::up_to(Duration::from_secs(1));
        assert_eq!(latencies.summary(), None);
        for us in 1..=1000 {
            latencies.record(us * 1000);
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
