//! From what the client counted to the result.

use std::fmt::Write as _;

use super::client::Outcome;
use super::{Options, Pace, repeat};
use crate::results::Load;
use crate::units;

/// The result of a load.
pub(super) fn load(options: &Options, outcome: &Outcome) -> Load {
    let seconds = outcome.seconds;
    let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let (loop_kind, rate, depth) = match options.pace {
        Pace::Closed { depth } => ("closed", None, u64::from(depth)),
        Pace::Open { rate } => ("open", Some(rate), 1),
    };
    let cpu = outcome.server_cpu.filter(|_| outcome.messages > 0);
    Load {
        asked: u64::from(options.connections),
        established: outcome.established,
        messages: outcome.messages,
        messages_per_second: per_second(outcome.messages),
        bytes_per_second: per_second(outcome.bytes),
        bytes: outcome.bytes,
        corrupt: outcome.corrupt,
        errors: outcome.errors.clone(),
        latency_us: outcome.latencies.summary(),
        server_cpu_us_per_message: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / outcome.messages as f64),
        loop_kind: loop_kind.into(),
        rate,
        size: (u64::from(options.size.0), u64::from(options.size.1)),
        depth,
        duration: seconds,
        distribution: outcome.latencies.distribution(),
        timeline: outcome.timeline.clone(),
        repeats: Vec::new(),
        spread: Vec::new(),
        targets: Vec::new(),
        comparison: None,
    }
}

/// The result for a person: of each target, and what the targets differ in.
pub fn render_text(load: &Load) -> String {
    if load.targets.is_empty() {
        return render_one(load);
    }
    let mut out = String::new();
    for target in &load.targets {
        out.push_str(&format!("{}\n{}\n", target.address, render_one(&target.load)));
    }
    out.push_str(&load.comparison.as_ref().map_or_else(String::new, repeat::render_comparison));
    out
}

/// The result of one target.
fn render_one(load: &Load) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{} of {} connections, {} loop, {} measured",
        units::count(load.established),
        units::count(load.asked),
        load.loop_kind,
        units::micros(load.duration * 1e6)
    );
    let bytes = units::bytes(load.bytes_per_second);
    for (value, what) in [
        (units::number(load.messages_per_second), format!("messages/s, {bytes}/s each way")),
        (units::count(load.messages), "messages, every byte verified".to_owned()),
        (units::count(load.corrupt), "bytes or replies that were wrong".to_owned()),
    ] {
        let _ = writeln!(out, "  {value:>12}  {what}");
    }
    match load.latency_us {
        Some(latency) => {
            let _ = writeln!(
                out,
                "latency: median {}, 90 % within {}, 99 % {}, 99.9 % {}, slowest {}",
                units::micros(latency.p50),
                units::micros(latency.p90),
                units::micros(latency.p99),
                units::micros(latency.p999),
                units::micros(latency.max)
            );
        }
        None => out.push_str("latency: no message came back\n"),
    }
    if let Some(micros) = load.server_cpu_us_per_message {
        let _ = writeln!(out, "server: {} of processor time a message", units::micros(micros));
    }
    for (name, count) in &load.errors {
        let _ = writeln!(out, "error: {name} × {}", units::count(*count));
    }
    out.push_str(&repeat::render_spread(load));
    out
}
