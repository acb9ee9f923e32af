//! From what the clients counted to the result.

use std::fmt::Write as _;
use std::time::Duration;

use super::server::{self, Watched};
use super::shared::{Cut, Outcome};
use super::{Options, Pace, Watch, repeat};
use crate::observe::threads::Usage;
use crate::results::{Load, UnexpectedReply, Verified};
use crate::units;
use crate::verdict::load::{Core, End, Facts, Paused, judge};
use crate::worker::exchange::{Exchange, ReplyEnd};

/// The result of a load.
pub(super) fn load(options: &Options, outcome: &Outcome, watched: &Watched, watch: &Watch) -> Load {
    let seconds = outcome.seconds;
    let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let (loop_kind, rate, depth) = match options.pace {
        Pace::Closed { depth } => ("closed", None, u64::from(depth)),
        Pace::Open { rate } => ("open", Some(rate), 1),
    };
    let facts = facts(options, outcome, watched, watch);
    let verdict = judge(&facts);
    let answered = facts.answered;
    let per_message = |seconds: f64| (answered > 0).then(|| seconds * 1e6 / answered as f64);
    let client_cpu: Duration = outcome.usage.iter().map(|usage| usage.cpu).sum();
    let latencies = outcome.account.as_ref().map(|account| &account.latencies);
    Load {
        asked: facts.asked,
        established: facts.established,
        due: facts.due,
        answered,
        late: facts.late,
        lost: facts.lost,
        messages: answered,
        messages_per_second: per_second(answered),
        bytes_per_second: per_second(outcome.bytes_received),
        bytes_sent_per_second: per_second(outcome.bytes_sent),
        bytes_received_per_second: per_second(outcome.bytes_received),
        bytes: outcome.bytes_received,
        verified: verified(options.exchange.as_ref()),
        corrupt: outcome.corrupt,
        errors: outcome.errors.clone(),
        unexpected_replies: facts.said.clone(),
        reconnects: outcome.reconnects,
        latency_us: latencies.and_then(super::histogram::Latencies::summary),
        server_cpu_us_per_message: facts
            .server_cores
            .and_then(|cores| per_message(cores * seconds)),
        client_cpu_us_per_message: per_message(client_cpu.as_secs_f64()),
        server_core_share: facts.server.map(|core| core.used),
        client_core_share: facts.client.map(|core| core.used),
        threads: outcome.clients,
        loop_kind: loop_kind.into(),
        rate,
        size: size(options),
        depth,
        duration: seconds,
        duration_asked: facts.seconds_asked,
        complete: outcome.cut.is_none() && facts.lost == 0,
        stopped_by: Some(verdict.by),
        stopped_side: verdict.side,
        evidence: verdict.evidence,
        distribution: latencies.map(super::histogram::Latencies::distribution).unwrap_or_default(),
        timeline: watch.timeline.clone(),
        ..Load::default()
    }
}

/// What the verdict is made of.
fn facts(options: &Options, outcome: &Outcome, watched: &Watched, watch: &Watch) -> Facts {
    let account = outcome.account.as_ref();
    let (rate, depth) = match options.pace {
        Pace::Closed { depth } => (None, u64::from(depth)),
        Pace::Open { rate } => (Some(rate), 0),
    };
    let said = |(text, count): (&Vec<u8>, &u64)| UnexpectedReply {
        text: text.escape_ascii().to_string(),
        count: *count,
    };
    Facts {
        asked: u64::from(options.connections),
        established: outcome.established,
        rate,
        depth,
        due: outcome.due,
        answered: account.map_or(0, |account| account.answered),
        late: account.map_or(0, |account| account.late),
        lost: account.map_or(0, |account| account.lost),
        seconds: outcome.seconds,
        seconds_asked: options.duration.as_secs_f64(),
        timeout_seconds: options.timeout.as_secs_f64(),
        at_middle: account.map_or(0, |account| account.at_middle),
        errors: outcome.errors.clone(),
        said: outcome.said.iter().map(said).collect(),
        end: match (watch.interrupted, outcome.cut) {
            (true, _) | (_, Some(Cut::Interrupted)) => End::Interrupted,
            (false, Some(Cut::TargetGone)) => End::TargetGone,
            (false, None) => End::Planned,
        },
        down_seconds: outcome.down_seconds,
        server_ended: watch.server_ended.clone(),
        server_paused: Paused { seconds: watch.paused_seconds, to_the_end: watch.is_paused },
        client: (!options.spin).then(|| busiest(&outcome.usage, outcome.seconds)).flatten(),
        server: watched.core(),
        server_cores: watched.cores(),
        counted: watched.counted(),
    }
}

/// The client that used most of its core, or waited for one.
fn busiest(clients: &[Usage], seconds: f64) -> Option<Core> {
    let busy = |usage: &&Usage| usage.cpu + usage.waited.unwrap_or_default();
    clients.iter().max_by_key(busy).map(|usage| server::core(*usage, seconds))
}

fn verified(exchange: Option<&Exchange>) -> Verified {
    match exchange {
        None => Verified::EveryByte,
        Some(exchange) if exchange.compares_whole_replies() => Verified::EveryByte,
        Some(exchange) if exchange.end == ReplyEnd::Http => Verified::Status,
        Some(_) => Verified::Beginning,
    }
}

/// Bytes of a message: those of the request, where it is no echo.
fn size(options: &Options) -> (u64, u64) {
    match options.exchange.as_ref().and_then(Exchange::request) {
        Some(request) => (request.len() as u64, request.len() as u64),
        None => (options.size.0.into(), options.size.1.into()),
    }
}

/// The result for a person: of each target, and what the targets differ in.
pub fn render_text(load: &Load) -> String {
    if load.targets.is_empty() {
        return render_one(load);
    }
    let mut out = String::new();
    for target in &load.targets {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}\n{}", target.address, render_one(&target.load));
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
        "{} of {} connections, {} loop, {} measured{}",
        units::count(load.established),
        units::count(load.asked),
        load.loop_kind,
        units::micros(load.duration * 1e6),
        if load.duration_asked > load.duration {
            format!(" of {} asked for", units::micros(load.duration_asked * 1e6))
        } else {
            String::new()
        }
    );
    render_account(&mut out, load);
    render_latency(&mut out, load);
    for (side, micros, share) in [
        ("client", load.client_cpu_us_per_message, load.client_core_share),
        ("server", load.server_cpu_us_per_message, load.server_core_share),
    ] {
        if micros.is_none() && share.is_none() {
            let _ = writeln!(out, "{side}: its processor time is not known");
            continue;
        }
        let micros =
            micros.map(|micros| format!("{} of processor time a message", units::micros(micros)));
        let share =
            share.map(|share| format!("its busiest thread used {:.0} % of a core", share * 100.0));
        let parts: Vec<String> = micros.into_iter().chain(share).collect();
        let _ = writeln!(out, "{side}: {}", parts.join("; "));
    }
    if let Some(by) = load.stopped_by {
        let side = match load.stopped_side {
            Some(side) => format!(" ({})", side.name()),
            None => String::new(),
        };
        let _ = writeln!(out, "held back by: {}{side}: {}", by.name(), load.evidence);
    }
    if load.reconnects > 0 {
        let _ = writeln!(
            out,
            "reconnects: {} connections ended after whole replies, and were made anew",
            units::count(load.reconnects)
        );
    }
    for said in &load.unexpected_replies {
        let _ = writeln!(out, "the server said: \"{}\" × {}", said.text, units::count(said.count));
    }
    for (name, count) in &load.errors {
        let _ = writeln!(out, "error: {name} × {}", units::count(*count));
    }
    out.push_str(&repeat::render_spread(load));
    out
}

/// How many messages, and what became of them.
fn render_account(out: &mut String, load: &Load) {
    let (sent, received) = (load.bytes_sent_per_second, load.bytes_received_per_second);
    let per_second = |bytes: f64| format!("{}/s", units::bytes(bytes));
    let bytes = if sent.to_bits() == received.to_bits() {
        format!("{} each way", per_second(sent))
    } else {
        format!("{} sent, {} received", per_second(sent), per_second(received))
    };
    let verified = match load.verified {
        Verified::EveryByte => "every byte of their replies verified",
        Verified::Beginning => "the beginning of each reply verified",
        Verified::Status => "the status of each reply verified",
    };
    let due = match load.rate {
        Some(rate) => format!("messages due, at {}", units::rate(rate)),
        None => "messages due: sent, each when the reply before was there".to_owned(),
    };
    let mut rows = vec![
        (units::number(load.messages_per_second), format!("messages/s, {bytes}")),
        (units::count(load.due), due),
        (units::count(load.answered), format!("answered before the end, {verified}")),
        (units::count(load.late), "late: answered after the end".to_owned()),
        (units::count(load.lost), "lost: never answered".to_owned()),
    ];
    if load.verified == Verified::EveryByte || load.corrupt > 0 {
        rows.push((units::count(load.corrupt), "bytes that were wrong".to_owned()));
    }
    for (value, what) in rows {
        let _ = writeln!(out, "  {value:>12}  {what}");
    }
}

fn render_latency(out: &mut String, load: &Load) {
    let Some(latency) = load.latency_us else {
        out.push_str("latency: no message was due\n");
        return;
    };
    let _ = writeln!(
        out,
        "latency of all messages due: median {}, 90 % within {}, 99 % {}, 99.9 % {}, slowest {}",
        units::micros(latency.p50),
        units::micros(latency.p90),
        units::micros(latency.p99),
        units::micros(latency.p999),
        units::micros(latency.max)
    );
}
