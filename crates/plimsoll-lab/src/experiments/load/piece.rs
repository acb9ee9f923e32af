//! One piece of a load, and what several of them are together.

use super::histogram::Latencies;
use crate::results::{Load, LoadRepeat};

/// What was measured on one target without interruption, or several such pieces joined.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) load: Load,
    /// All latencies: percentiles of several pieces are those of all their messages.
    pub(super) latencies: Latencies,
}

impl Piece {
    /// Adds another piece of the same target. Counts, errors and latencies are exact sums; rates
    /// and times per message are those of the whole measured time; of the connections the fewest
    /// count. What is not known of one piece is not known of both.
    pub(super) fn join(&mut self, other: Self) {
        let (a, b) = (&mut self.load, other.load);
        let per_message = |one: Option<f64>, two: Option<f64>| {
            let sum = one? * a.messages as f64 + two? * b.messages as f64;
            Some(sum / (a.messages + b.messages) as f64)
        };
        a.server_cpu_us_per_message =
            per_message(a.server_cpu_us_per_message, b.server_cpu_us_per_message);
        let before = a.duration;
        let per_second = |one: f64, two: f64| {
            (one * before + two * b.duration) / (before + b.duration).max(f64::MIN_POSITIVE)
        };
        a.bytes_per_second = per_second(a.bytes_per_second, b.bytes_per_second);
        a.established = a.established.min(b.established);
        a.messages += b.messages;
        a.bytes += b.bytes;
        a.corrupt += b.corrupt;
        for (name, count) in b.errors {
            *a.errors.entry(name).or_default() += count;
        }
        a.timeline.extend(b.timeline.into_iter().map(|(at, rate)| (before + at, rate)));
        a.duration += b.duration;
        a.messages_per_second = if a.duration > 0.0 { a.messages as f64 / a.duration } else { 0.0 };
        self.latencies.join(&other.latencies);
        a.latency_us = self.latencies.summary();
        a.distribution = self.latencies.distribution();
    }

    /// Its figures as those of a repeat.
    pub(super) fn repeat(&self) -> LoadRepeat {
        repeat(&self.load)
    }
}

/// The figures of a load as those of a repeat.
pub(super) fn repeat(load: &Load) -> LoadRepeat {
    LoadRepeat {
        messages: load.messages,
        duration: load.duration,
        messages_per_second: load.messages_per_second,
        latency_us: load.latency_us,
        server_cpu_us_per_message: load.server_cpu_us_per_message,
        client_cpu_us_per_message: None,
    }
}

/// Joins pieces in their order; `None` of none.
pub(super) fn joined(pieces: impl IntoIterator<Item = Piece>) -> Option<Piece> {
    pieces.into_iter().reduce(|mut whole, piece| {
        whole.join(piece);
        whole
    })
}
