//! One piece of a load, and what several of them are together.

use super::histogram::Latencies;
use crate::results::{Load, LoadRepeat, Side, StoppedBy};

/// What was measured on one target without interruption, or several such pieces joined.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) load: Load,
    /// All latencies: percentiles of several pieces are those of all their messages. `None` where no
    /// connection was there to send on.
    latencies: Option<Latencies>,
    /// Processor time of the server and of the client.
    server: Cpu,
    client: Cpu,
    /// What held back each single piece.
    verdicts: Vec<Verdict>,
}

/// Processor time, of the pieces in which it was read: on a busy machine a short one can be over
/// before it is.
#[derive(Debug, Clone, Copy)]
struct Cpu {
    us: f64,
    messages: u64,
}

impl Cpu {
    fn of(us_per_message: Option<f64>, messages: u64) -> Self {
        us_per_message
            .map_or(Self { us: 0.0, messages: 0 }, |us| Self { us: us * messages as f64, messages })
    }

    fn join(&mut self, other: Self) {
        self.us += other.us;
        self.messages += other.messages;
    }

    fn us_per_message(self) -> Option<f64> {
        (self.messages > 0).then(|| self.us / self.messages as f64)
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Verdict {
    by: Option<StoppedBy>,
    side: Option<Side>,
    evidence: String,
}

impl Piece {
    /// A single piece.
    pub(super) fn new(load: Load, latencies: Option<Latencies>) -> Self {
        let verdict = Verdict {
            by: load.stopped_by,
            side: load.stopped_side,
            evidence: load.evidence.clone(),
        };
        let (server, client) = (load.server_cpu_us_per_message, load.client_cpu_us_per_message);
        Self {
            server: Cpu::of(server, load.messages),
            client: Cpu::of(client, load.messages),
            load,
            latencies,
            verdicts: vec![verdict],
        }
    }

    /// The same, with the speed of the machine right before.
    pub(super) fn on_machine(mut self, machine_us: Option<f64>) -> Self {
        self.load.machine_us = machine_us;
        self
    }

    /// Adds another piece of the same target. Counts, errors and latencies are exact sums; rates,
    /// shares and times per message are those of the whole measured time; of the connections the
    /// fewest count. Processor time a message is that of the pieces in which it was read.
    pub(super) fn join(&mut self, other: Self) {
        join_rates(&mut self.load, &other.load);
        join_counts(&mut self.load, &other.load);
        self.server.join(other.server);
        self.client.join(other.client);
        self.load.server_cpu_us_per_message = self.server.us_per_message();
        self.load.client_cpu_us_per_message = self.client.us_per_message();
        self.latencies = match (self.latencies.take(), other.latencies) {
            (Some(mut one), Some(two)) => {
                one.join(&two);
                Some(one)
            }
            (one, two) => one.or(two),
        };
        let latencies = self.latencies.as_ref();
        self.load.latency_us = latencies.and_then(Latencies::summary);
        self.load.distribution = latencies.map(Latencies::distribution).unwrap_or_default();
        self.verdicts.extend(other.verdicts);
        self.join_verdicts();
    }

    /// An end that came early is the verdict of all; else the most frequent one is.
    fn join_verdicts(&mut self) {
        let Some(last) = self.verdicts.last() else { return };
        let ends = matches!(last.by, Some(StoppedBy::Interrupted | StoppedBy::ServerEnded));
        let count = |one: &Verdict| {
            self.verdicts
                .iter()
                .filter(|other| (other.by, other.side) == (one.by, one.side))
                .count()
        };
        let Some(chosen) =
            (if ends { Some(last) } else { self.verdicts.iter().max_by_key(|one| count(one)) })
        else {
            return;
        };
        self.load.stopped_by = chosen.by;
        self.load.stopped_side = chosen.side;
        self.load.evidence = format!(
            "in {} of {} slices; in one of them: {}",
            count(chosen),
            self.verdicts.len(),
            chosen.evidence
        );
    }

    /// Its figures as those of a repeat.
    pub(super) fn repeat(&self) -> LoadRepeat {
        repeat(&self.load)
    }
}

/// Rates and shares. Before the counts, since they are weighted with the time.
fn join_rates(a: &mut Load, b: &Load) {
    let seconds = (a.duration, b.duration);
    let mean = |(one, two): (f64, f64), (weight, other): (f64, f64)| {
        let all = weight + other;
        if all > 0.0 { (one * weight + two * other) / all } else { 0.0 }
    };
    let over_time = |one: f64, two: f64| mean((one, two), seconds);
    a.server_core_share =
        a.server_core_share.zip(b.server_core_share).map(|(one, two)| over_time(one, two));
    a.client_core_share =
        a.client_core_share.zip(b.client_core_share).map(|(one, two)| over_time(one, two));
    a.machine_us = a.machine_us.zip(b.machine_us).map(|(one, two)| over_time(one, two));
    a.messages_per_second = over_time(a.messages_per_second, b.messages_per_second);
    a.bytes_per_second = over_time(a.bytes_per_second, b.bytes_per_second);
    a.bytes_sent_per_second = over_time(a.bytes_sent_per_second, b.bytes_sent_per_second);
    a.bytes_received_per_second =
        over_time(a.bytes_received_per_second, b.bytes_received_per_second);
}

fn join_counts(a: &mut Load, b: &Load) {
    a.established = a.established.min(b.established);
    a.due += b.due;
    a.answered += b.answered;
    a.late += b.late;
    a.lost += b.lost;
    a.messages += b.messages;
    a.bytes += b.bytes;
    a.corrupt += b.corrupt;
    a.reconnects += b.reconnects;
    for (name, count) in &b.errors {
        *a.errors.entry(name.clone()).or_default() += count;
    }
    for said in &b.unexpected_replies {
        match a.unexpected_replies.iter_mut().find(|known| known.text == said.text) {
            Some(known) => known.count += said.count,
            None => a.unexpected_replies.push(said.clone()),
        }
    }
    let before = a.duration;
    a.timeline.extend(b.timeline.iter().map(|(at, rate)| (before + at, *rate)));
    a.duration += b.duration;
    a.duration_asked += b.duration_asked;
    a.complete &= b.complete;
}

/// The figures of a load as those of a repeat.
pub(super) fn repeat(load: &Load) -> LoadRepeat {
    LoadRepeat {
        messages: load.messages,
        duration: load.duration,
        messages_per_second: load.messages_per_second,
        latency_us: load.latency_us,
        server_cpu_us_per_message: load.server_cpu_us_per_message,
        client_cpu_us_per_message: load.client_cpu_us_per_message,
        machine_us: load.machine_us,
    }
}

/// Joins pieces in their order; `None` of none.
pub(super) fn joined(pieces: impl IntoIterator<Item = Piece>) -> Option<Piece> {
    pieces.into_iter().reduce(|mut whole, piece| {
        whole.join(piece);
        whole
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::results::UnexpectedReply;

    /// A piece of `messages` in `seconds`, each of which took `us`, and the server `cpu`.
    fn piece(messages: u64, seconds: f64, us: u64, cpu: Option<f64>, by: StoppedBy) -> Piece {
        let mut latencies = Latencies::up_to(Duration::from_secs(1));
        (0..messages).for_each(|_| latencies.record(us * 1000));
        let load = Load {
            established: 50 - messages % 7,
            due: messages + 1,
            answered: messages,
            lost: 1,
            messages,
            messages_per_second: messages as f64 / seconds,
            duration: seconds,
            duration_asked: seconds,
            server_cpu_us_per_message: cpu,
            errors: [("peer_closed".to_owned(), 2)].into(),
            unexpected_replies: vec![UnexpectedReply { text: "no".into(), count: 3 }],
            timeline: vec![(0.1, 5.0)],
            stopped_by: Some(by),
            evidence: format!("{messages}"),
            complete: true,
            ..Load::default()
        };
        Piece::new(load, Some(latencies))
    }

    #[test]
    fn counts_are_sums_and_percentiles_are_of_all_messages() {
        let pieces = [
            piece(300, 1.0, 10, Some(4.0), StoppedBy::Cpu),
            piece(100, 1.0, 1000, Some(8.0), StoppedBy::Limit),
            piece(600, 2.0, 10, Some(4.0), StoppedBy::Cpu),
        ];
        let load = joined(pieces).unwrap().load;
        assert_eq!((load.messages, load.due, load.answered, load.lost), (1000, 1003, 1000, 3));
        assert_eq!(load.due, load.answered + load.late + load.lost);
        assert_eq!((load.errors["peer_closed"], load.unexpected_replies[0].count), (6, 9));
        assert!(
            (load.duration - 4.0).abs() < 1e-9 && (load.messages_per_second - 250.0).abs() < 1e-9
        );
        assert!((load.server_cpu_us_per_message.unwrap() - 4.4).abs() < 1e-9);
        assert_eq!(load.timeline.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0.1, 1.1, 2.1]);
        let latency = load.latency_us.unwrap();
        assert!((latency.p90 / 10.0 - 1.0).abs() < 0.01, "{latency:?}");
        assert!((latency.p99 / 1000.0 - 1.0).abs() < 0.01, "a tenth took 1 ms: {latency:?}");
        assert_eq!(load.stopped_by, Some(StoppedBy::Cpu));
        assert!(load.evidence.starts_with("in 2 of 3 slices"), "{}", load.evidence);
    }

    #[test]
    fn unread_processor_time_has_no_weight_and_an_end_is_the_verdict() {
        let pieces = [
            piece(1, 1.0, 10, Some(4.0), StoppedBy::Limit),
            piece(100, 1.0, 10, None, StoppedBy::Limit),
            piece(3, 1.0, 10, Some(8.0), StoppedBy::ServerEnded),
        ];
        let load = joined(pieces).unwrap().load;
        assert_eq!(load.server_cpu_us_per_message, Some(7.0), "(1 × 4 + 3 × 8) / 4");
        assert_eq!(load.client_cpu_us_per_message, None, "it was read in none");
        assert_eq!(load.stopped_by, Some(StoppedBy::ServerEnded));
        assert!(joined([]).is_none());
    }
}
