//! What held a load back.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use plimsoll_kernel::limits::Triple;

use super::server::how_it_ended;
use super::{Stop, words};
use crate::observe::Ended;
use crate::results::{Side, StoppedBy, UnexpectedReply};
use crate::units;

/// From this share on a core counts as full: what is left goes to the kernel's own threads and to
/// the moments between two wake-ups.
const FULL: f64 = 0.9;
/// From this share on the time that a thread waited for a core is worth a word.
const WAITED: f64 = 0.1;
/// An open loop has kept its rate where no more than this share of its messages was answered after
/// the end, however fast the others were.
const ON_THEIR_WAY: f64 = 0.01;
/// A server that keeps the rate has as many messages on their way at the end as in the middle: the
/// rate times its latency (Little's law). One that falls behind evenly, however fast, has twice as
/// many at the end.
const STEADY: f64 = 1.5;

/// A share of one core: what the busiest thread of a side used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Core {
    /// On a processor.
    pub(crate) used: f64,
    /// Ready to run, with all processors busy with others; `None` where the system does not tell.
    pub(crate) waited: Option<f64>,
}

impl Core {
    /// Whether the thread could not have done more: it ran, or wanted to, nearly all the time.
    fn is_full(self) -> bool {
        self.used + self.waited.unwrap_or(0.0) >= FULL
    }
}

/// What the kernel counted in the measured time; `None` where it cannot be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// `RetransSegs`.
    pub(crate) retransmitted: Option<u64>,
    /// `TCPMemoryPressures`.
    pub(crate) memory_pressures: Option<u64>,
    /// `PruneCalled`.
    pub(crate) pruned: Option<u64>,
    /// `ListenOverflows`, from the first connect on.
    pub(crate) listen_overflows: Option<u64>,
    /// The most pages that TCP's memory had.
    pub(crate) tcp_pages: Option<u64>,
    /// `net.ipv4.tcp_mem`.
    pub(crate) tcp_mem: Option<Triple>,
}

/// A server of which a process was seen stopped, by a signal or a debugger (state T).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Paused {
    /// For so long, as far as it was looked at; 0 where it was not.
    pub(crate) seconds: f64,
    /// It still was when the last reply was waited for.
    pub(crate) to_the_end: bool,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum End {
    /// When its time was over.
    #[default]
    Planned,
    /// Somebody asked for it.
    Interrupted,
    /// No connection was open, and none was to be had.
    TargetGone,
}

/// What the experiment saw.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Facts {
    /// Connections asked for, and those that were open at the start.
    pub(crate) asked: u64,
    pub(crate) established: u64,
    /// The open loop's rate.
    pub(crate) rate: Option<f64>,
    /// The closed loop's messages outstanding on each connection.
    pub(crate) depth: u64,
    /// The account.
    pub(crate) due: u64,
    pub(crate) answered: u64,
    pub(crate) late: u64,
    pub(crate) lost: u64,
    /// The measured time, and the time that was to be measured.
    pub(crate) seconds: f64,
    pub(crate) seconds_asked: f64,
    /// The time limit of a reply.
    pub(crate) timeout_seconds: f64,
    /// Messages that were due in the middle of the measured time, and had no reply by then.
    pub(crate) at_middle: u64,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) said: Vec<UnexpectedReply>,
    pub(crate) end: End,
    /// No connection had been open for so long when it ended.
    pub(crate) down_seconds: Option<f64>,
    /// How the server's process ended, or one of its processes, where one did.
    pub(crate) server_ended: Option<Ended>,
    pub(crate) server_paused: Paused,
    /// The client's busiest thread; `None` where the client never sleeps: its share of a core says
    /// nothing then.
    pub(crate) client: Option<Core>,
    /// The server's busiest thread; `None` where its process is not known.
    pub(crate) server: Option<Core>,
    /// Processors that all of the server's threads used, on average.
    pub(crate) server_cores: Option<f64>,
    pub(crate) counted: Counted,
}

/// What held the load back: the first of these that its facts prove.
pub(crate) fn judge(facts: &Facts) -> Stop {
    interrupted(facts)
        .or_else(|| server_ended(facts))
        .or_else(|| paused(facts))
        .or_else(|| missing_connections(facts))
        .or_else(|| turned_away(facts))
        .or_else(|| kept_its_rate(facts))
        .or_else(|| tcp_memory(facts))
        .or_else(|| processor(facts))
        .or_else(|| was_paused(facts))
        .or_else(|| unanswered(facts))
        .unwrap_or_else(|| {
            let text =
                format!("{}; {}: none of these was at a limit", account(facts), figures(facts));
            Stop::new(StoppedBy::Unknown, None, text)
        })
}

fn interrupted(facts: &Facts) -> Option<Stop> {
    (facts.end == End::Interrupted).then(|| {
        let text = format!(
            "it was interrupted after {} of {}; {}",
            seconds(facts.seconds),
            seconds(facts.seconds_asked),
            account(facts)
        );
        Stop::new(StoppedBy::Interrupted, None, text)
    })
}

fn server_ended(facts: &Facts) -> Option<Stop> {
    let missed = facts.lost > 0 || facts.down_seconds.is_some();
    let cut = facts.end == End::TargetGone;
    if !(cut || (facts.server_ended.is_some() && missed)) {
        return None;
    }
    let when = if cut {
        format!("after {} of {}", seconds(facts.seconds), seconds(facts.seconds_asked))
    } else {
        "by the end of the run".to_owned()
    };
    let mut text = match &facts.server_ended {
        Some(ended) => format!("{when} {}", how_it_ended(ended)),
        None => match facts.down_seconds {
            Some(down) => {
                format!("{when} no connection had been open for {}", seconds(down))
            }
            None => format!("{when} no connection was open"),
        },
    };
    let refused = count_of(facts, crate::errno::REFUSED);
    if refused > 0 {
        let _ = write!(text, ", and {} connects were refused", units::count(refused));
    }
    let _ = write!(text, " ({}); {}", errors(facts), account(facts));
    // Without a refusal or an end that was seen, the server may be there, and close what it accepts.
    if facts.server_ended.is_none() && refused == 0 {
        add_said(&mut text, facts);
        let by = if facts.said.is_empty() { StoppedBy::Unknown } else { StoppedBy::ServerLimit };
        return Some(Stop::new(by, Side::Server, text));
    }
    Some(Stop::new(StoppedBy::ServerEnded, Side::Server, text))
}

/// The server was stopped until its replies were not waited for any more.
fn paused(facts: &Facts) -> Option<Stop> {
    (facts.server_paused.to_the_end && facts.lost > 0).then(|| {
        let text = format!(
            "the server's process is stopped (state T), and has been for {}; {}, waited for until {} \
             after the end",
            seconds(facts.server_paused.seconds),
            account(facts),
            seconds(facts.timeout_seconds)
        );
        Stop::new(StoppedBy::Timeout, Side::Server, text)
    })
}

/// The server was stopped for a while, and an open loop could not catch up before its end.
fn was_paused(facts: &Facts) -> Option<Stop> {
    (facts.server_paused.seconds > 0.0).then(|| {
        let text = format!("{}; {}", account(facts), figures(facts));
        Stop::new(StoppedBy::Unknown, Side::Server, text)
    })
}

/// Fewer connections were there at the start than were asked for.
fn missing_connections(facts: &Facts) -> Option<Stop> {
    let missing = facts.asked.saturating_sub(facts.established);
    if missing == 0 {
        return None;
    }
    let mut text = format!(
        "{} of {} connections were open at the start: {}",
        units::count(facts.established),
        units::count(facts.asked),
        errors(facts)
    );
    add_said(&mut text, facts);
    let has = |name: &str| count_of(facts, name) > 0;
    let closes = has("peer_ended") || has("peer_reset") || has("failed");
    let overflows = facts.counted.listen_overflows.unwrap_or(0);
    let (by, side) = if has("EMFILE") {
        (StoppedBy::Descriptors, Some(Side::Client))
    } else if has("ENFILE") {
        (StoppedBy::Descriptors, Some(Side::Both))
    } else if crate::errno::NO_PORT.iter().any(|name| has(name)) {
        (StoppedBy::Ports, Some(Side::Client))
    } else if !facts.said.is_empty() || closes {
        (StoppedBy::ServerLimit, Some(Side::Server))
    } else if has(crate::errno::REFUSED) {
        (StoppedBy::Refused, Some(Side::Server))
    } else if overflows > 0 {
        let _ = write!(text, "; ListenOverflows +{overflows}");
        (StoppedBy::QueueFull, Some(Side::Server))
    } else if has("connect_timeout") || has(crate::errno::TIMED_OUT) {
        (StoppedBy::Timeout, None)
    } else {
        (StoppedBy::Unknown, None)
    };
    Some(Stop::new(by, side, text))
}

/// The server said in HTTP that it takes no more: 503 (Service Unavailable) or 429 (Too Many
/// Requests).
fn turned_away(facts: &Facts) -> Option<Stop> {
    let busy = |text: &str| {
        let status = text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
        matches!(status, Some("503" | "429"))
    };
    facts.said.iter().any(|said| busy(&said.text)).then(|| {
        let mut text = account(facts);
        add_said(&mut text, facts);
        Stop::new(StoppedBy::ServerLimit, Side::Server, text)
    })
}

fn kept_its_rate(facts: &Facts) -> Option<Stop> {
    let rate = facts.rate?;
    let on_their_way = STEADY * facts.at_middle as f64;
    let most_late = (facts.due as f64 * ON_THEIR_WAY).max(on_their_way).max(1.0);
    let kept = facts.lost == 0 && facts.late as f64 <= most_late && facts.due > 0;
    kept.then(|| {
        let mut text = format!("it kept its rate of {}: {}", units::rate(rate), account(facts));
        if facts.late > 0 {
            let _ = write!(
                text,
                " ({} were on their way in the middle of the time)",
                units::count(facts.at_middle)
            );
        }
        let _ = write!(text, "; {}", figures(facts));
        Stop::new(StoppedBy::Limit, None, text)
    })
}

fn tcp_memory(facts: &Facts) -> Option<Stop> {
    let counted = &facts.counted;
    let tcp_mem = counted.tcp_mem?;
    let pressures = counted.memory_pressures.unwrap_or(0);
    let over = counted.tcp_pages.is_some_and(|pages| pages >= tcp_mem.default);
    (pressures > 0 || over).then(|| {
        let text = format!(
            "TCP's memory was short: up to {} pages in use, of net.ipv4.tcp_mem {} {} {} \
             (TCPMemoryPressures +{}, PruneCalled +{}, {} segments sent again); {}",
            words(counted.tcp_pages),
            tcp_mem.min,
            tcp_mem.default,
            tcp_mem.max,
            words(counted.memory_pressures),
            words(counted.pruned),
            words(counted.retransmitted),
            account(facts)
        );
        Stop::new(StoppedBy::TcpMem, Side::Both, text)
    })
}

fn processor(facts: &Facts) -> Option<Stop> {
    let client = facts.client.is_some_and(Core::is_full);
    let server = facts.server.is_some_and(Core::is_full);
    let (side, whose) = match (client, server) {
        (true, true) => (Side::Both, "both sides had no processor time left"),
        (true, false) => (
            Side::Client,
            "the client had no processor time left: this is what the client can do, and the server may \
             be able to do more",
        ),
        (false, true) => (Side::Server, "the server had no processor time left"),
        (false, false) => return None,
    };
    let text = format!("{whose}: {}; {}", figures(facts), account(facts));
    Some(Stop::new(StoppedBy::Cpu, side, text))
}

fn unanswered(facts: &Facts) -> Option<Stop> {
    (facts.lost > 0).then(|| {
        let mut text = format!(
            "{}, waited for until {} after the end ({}); {}",
            account(facts),
            seconds(facts.timeout_seconds),
            errors(facts),
            figures(facts)
        );
        add_said(&mut text, facts);
        let silent = count_of(facts, "reply_timeout") + count_of(facts, "overrun") > 0;
        let by = if silent { StoppedBy::Timeout } else { StoppedBy::Unknown };
        Stop::new(by, Side::Server, text)
    })
}

/// What became of the messages.
fn account(facts: &Facts) -> String {
    let mut text = format!(
        "{} of {} messages were answered before the end",
        units::count(facts.answered),
        units::count(facts.due)
    );
    if facts.late > 0 {
        let _ = write!(text, ", {} late", units::count(facts.late));
    }
    if facts.lost > 0 {
        let _ = write!(text, ", {} never", units::count(facts.lost));
    }
    text
}

/// What was read of both sides' processors and of the network.
fn figures(facts: &Facts) -> String {
    let core = |core: Core| {
        let mut text = format!("{:.0} % of a core", core.used * 100.0);
        if let Some(waited) = core.waited.filter(|waited| *waited >= WAITED) {
            let _ = write!(text, " and waited for one {:.0} % of the time", waited * 100.0);
        }
        text
    };
    let mut text = match facts.client {
        None => "the client never slept (--spin)".to_owned(),
        Some(client) => format!("the client's busiest thread used {}", core(client)),
    };
    match facts.server {
        Some(server) => {
            let _ = write!(text, ", the server's {}", core(server));
        }
        None => text.push_str(", the server's is not known"),
    }
    if let Some(cores) = facts.server_cores {
        let _ = write!(text, ", all of the server's threads {cores:.2} cores");
    }
    if facts.server_paused.seconds > 0.0 {
        let stopped = seconds(facts.server_paused.seconds);
        let _ = write!(text, ", a process of the server was stopped (state T) for {stopped}");
    }
    if let Some(count) = facts.counted.retransmitted {
        let _ = write!(text, ", {} segments were sent again", units::count(count));
    }
    text
}

fn add_said(text: &mut String, facts: &Facts) {
    for said in facts.said.iter().take(3) {
        let _ = write!(text, "; the server said \"{}\" × {}", said.text, units::count(said.count));
    }
}

fn errors(facts: &Facts) -> String {
    if facts.errors.is_empty() {
        return "no error".to_owned();
    }
    let one = |(name, count): (&String, &u64)| format!("{name} × {}", units::count(*count));
    facts.errors.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn count_of(facts: &Facts, name: &str) -> u64 {
    facts.errors.get(name).copied().unwrap_or(0)
}

fn seconds(value: f64) -> String {
    units::micros(value * 1e6)
}

#[cfg(test)]
mod tests;
