//! The first sentence of a survey: what gives way first, at what load, and what raises it.
//!
//! # The ranking
//!
//! Each experiment drives one load up until something ends it. What ended it is a *break* if it kept
//! clients from being served; that as much was reached as was asked for (`limit`), or that somebody
//! interrupted it, is none. Breaks are ranked
//!
//! 1. by what they mean: wrong bytes, then a server that ended, then clients that were not served
//!    (whatever limit it was), then throughput that more connections did not raise any more, by which
//!    everybody is still served;
//! 2. among equals by the number of connections at which they happened, the smallest first: held at
//!    once (`capacity`), waiting unaccepted (`backlog`), carrying messages (`load`). A break that was
//!    not counted in connections (`churn`) comes after those that were.
//!
//! Where nothing broke, the sentence names what was reached.

use super::{CURVE, load_name};
use crate::results::{Backlog, BacklogRun, Capacity, Load, Side, StoppedBy, Survey};
use crate::units;

/// What a break means for clients, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Meaning {
    WrongBytes,
    ServerEnded,
    NotServed,
    Saturated,
}

/// Something that gave way.
#[derive(Debug, Clone, PartialEq)]
struct Break {
    meaning: Meaning,
    /// Connections at which it happened; `u64::MAX` where it was not counted in connections.
    load: u64,
    /// The beginning of the sentence, up to the load and with it.
    says: String,
    /// What raises it, where that is known.
    raise: Option<String>,
}

/// The sentence. Reads the experiments' results and, for what raises a limit, the findings.
pub(super) fn headline(survey: &Survey) -> String {
    let first = breaks(survey).into_iter().min_by_key(|one| (one.meaning, one.load));
    let is_served = first.as_ref().is_none_or(|first| first.meaning == Meaning::Saturated);
    let unknown = not_tried(survey).filter(|_| is_served);
    let sentence = match first {
        _ if unknown.is_some() => unknown.unwrap_or_default(),
        Some(first) => match &first.raise {
            Some(raise) => format!("{}; what raises it: {}", first.says, in_short(raise)),
            None => first.says,
        },
        None => nothing_gave_way(survey),
    };
    let interrupted = survey.interrupted.as_ref().map_or_else(String::new, |experiment| {
        format!(" (interrupted during `{experiment}`: what comes after it was not tried)")
    });
    format!("{sentence}{interrupted}.")
}

fn breaks(survey: &Survey) -> Vec<Break> {
    let mut found: Vec<Break> =
        [wrong_bytes(survey), capacity(survey), backlog(survey), churn(survey), saturated(survey)]
            .into_iter()
            .flatten()
            .collect();
    found.extend(lost_replies(survey));
    found.extend(failed_load(survey));
    found
}

/// Without `capacity` nobody knows what more connections would have met.
fn not_tried(survey: &Survey) -> Option<String> {
    let why = survey.skipped.get("capacity").filter(|_| survey.interrupted.is_none())?;
    Some(format!(
        "What gives way first is not known, since `capacity` was not done: {}",
        first_line(why)
    ))
}

/// The cause without its cure, as a part of a sentence.
fn first_line(why: &str) -> &str {
    why.lines().next().unwrap_or_default().trim_end_matches('.')
}

fn wrong_bytes(survey: &Survey) -> Option<Break> {
    let wrong = survey.load_curve.iter().filter(|load| load.corrupt > 0);
    let first = wrong.min_by_key(|load| load.established)?;
    Some(Break {
        meaning: Meaning::WrongBytes,
        load: first.established,
        says: format!(
            "Wrong bytes come first: at {} so many as {} came back wrong, and until that is mended \
             nothing else here matters",
            units::connections(first.established),
            units::count(first.corrupt)
        ),
        raise: None,
    })
}

fn capacity(survey: &Survey) -> Option<Break> {
    let held = survey.capacity.as_ref()?;
    if held.stopped_by == StoppedBy::Limit && held.alive < held.established {
        return Some(unanswered(held));
    }
    let (gives, meaning) = gives_way(held.stopped_by, held.stopped_side)?;
    // Of those that were established some may never have been served.
    let load = if held.alive > 0 { held.alive } else { held.established };
    Some(Break {
        meaning,
        load,
        says: format!("{gives} first, at {} held at once", units::connections(load)),
        raise: raise(survey, "capacity"),
    })
}

/// As many connections as were asked for, of which not all answered at the end.
fn unanswered(held: &Capacity) -> Break {
    let errors = Some(errors(&held.errors)).filter(|errors| !errors.is_empty());
    Break {
        meaning: Meaning::NotServed,
        load: held.alive,
        says: format!(
            "The server's replies fail first: of {} {} answered at the end{}",
            units::connections(held.established),
            units::count(held.alive),
            errors.map_or_else(String::new, |errors| format!(" ({errors})"))
        ),
        raise: None,
    }
}

fn backlog(survey: &Survey) -> Option<Break> {
    let deepest = deepest(survey.backlog.as_ref()?)?;
    let (gives, meaning) = gives_way(deepest.stopped_by, deepest.stopped_side)?;
    let load = deepest.queued.unwrap_or(deepest.connects_ok);
    Some(Break {
        meaning,
        load,
        says: format!(
            "{gives} first, at {} waiting unaccepted on one listener",
            units::connections(load)
        ),
        raise: raise(survey, "backlog"),
    })
}

/// Of the runs, the one that went deepest.
pub(super) fn deepest(backlog: &Backlog) -> Option<&BacklogRun> {
    backlog.runs.iter().max_by_key(|run| (run.queued, run.requested))
}

/// Loads in which connects or replies failed.
fn lost_replies(survey: &Survey) -> Option<Break> {
    let any = |load: &&Load| load.lost > 0 || load.errors.values().any(|count| *count > 0);
    let first = survey.load_curve.iter().filter(any).min_by_key(|load| load.asked)?;
    let at = format!("at {} carrying messages", units::connections(first.asked));
    // A processor that is full loses nothing by itself, and what no counter names has a name here.
    let named = match first.stopped_by {
        None | Some(StoppedBy::Cpu | StoppedBy::Timeout | StoppedBy::Unknown) => None,
        Some(stopped) => gives_way(stopped, first.stopped_side),
    };
    let (gives, meaning) = named.unwrap_or_else(|| ("Replies fail".to_owned(), Meaning::NotServed));
    Some(Break {
        meaning,
        load: first.asked,
        says: format!("{gives} first, {at} ({})", failures(first)),
        raise: None,
    })
}

/// What failed in a load, by name and count.
pub(super) fn failures(load: &Load) -> String {
    let lost = format!("{} of {} messages lost", units::count(load.lost), units::count(load.due));
    let lost = (load.lost > 0).then_some(lost);
    let named = Some(errors(&load.errors)).filter(|named| !named.is_empty());
    lost.into_iter().chain(named).collect::<Vec<_>>().join(", ")
}

/// A point of the load curve that gave no result.
fn failed_load(survey: &Survey) -> Option<Break> {
    let failed = |connections: &u32| survey.skipped.get(&load_name(*connections));
    let interrupted = survey.interrupted.is_some();
    let first = CURVE.into_iter().filter(|_| !interrupted).find(|one| failed(one).is_some())?;
    Some(Break {
        meaning: Meaning::NotServed,
        load: first.into(),
        says: format!(
            "Messages fail first, at {}: {}",
            units::connections(first.into()),
            first_line(failed(&first)?)
        ),
        raise: None,
    })
}

fn churn(survey: &Survey) -> Option<Break> {
    let variants = &survey.churn.as_ref()?.variants;
    let errors_of = |errors: &std::collections::BTreeMap<String, u64>| errors.values().sum::<u64>();
    let worst = variants.iter().max_by_key(|variant| errors_of(&variant.errors))?;
    (errors_of(&worst.errors) > 0).then(|| Break {
        meaning: Meaning::NotServed,
        load: u64::MAX,
        says: format!(
            "Connecting and disconnecting fails first, at {} cycles/s: {}",
            units::number(worst.cycles_per_second),
            errors(&worst.errors)
        ),
        raise: None,
    })
}

/// More connections that brought fewer messages.
fn saturated(survey: &Survey) -> Option<Break> {
    let best = survey.load.as_ref()?;
    let most = survey.load_curve.iter().map(|load| load.established).max()?;
    (most > best.established).then(|| Break {
        meaning: Meaning::Saturated,
        load: best.established,
        says: format!(
            "Nobody was turned away{}; throughput stops growing first, at {}: {} messages/s, and {} \
             brought no more{}",
            reached(survey).map_or_else(String::new, |reached| format!(" ({reached})")),
            units::connections(best.established),
            units::number(best.messages_per_second.round()),
            units::connections(most),
            match (best.stopped_by, best.stopped_side) {
                (Some(StoppedBy::Cpu), Some(Side::Client)) =>
                    "; the client's processor was full, so that the figure is the client's",
                (Some(StoppedBy::Cpu), Some(Side::Server)) => "; the server's processor was full",
                _ => "",
            }
        ),
        raise: None,
    })
}

fn nothing_gave_way(survey: &Survey) -> String {
    let messages = survey.load.as_ref().map(|load| {
        format!(
            "{} messages/s went through {}",
            units::number(load.messages_per_second.round()),
            units::connections(load.established)
        )
    });
    let parts: Vec<String> = reached(survey).into_iter().chain(messages).collect();
    if parts.is_empty() {
        "Nothing was measured".to_owned()
    } else {
        format!("Nothing gave way: {}", parts.join(", and "))
    }
}

/// What `capacity` reached of what it was asked for.
fn reached(survey: &Survey) -> Option<String> {
    let ends = [StoppedBy::Limit, StoppedBy::Interrupted];
    let reached = |held: &&Capacity| ends.contains(&held.stopped_by);
    let held = survey.capacity.as_ref().filter(reached)?;
    let all = held.asked.is_some_and(|asked| held.established >= asked);
    let all = if all { ", as many as were asked for" } else { "" };
    Some(format!("{} held at once{all}", units::connections_were(held.established)))
}

/// What raises the limit that an experiment met, as its finding says.
fn raise(survey: &Survey, experiment: &str) -> Option<String> {
    survey.breaks_first.iter().find(|finding| finding.experiment == experiment)?.fix.clone()
}

/// A command without what makes it last: the card below has all of it.
fn in_short(fix: &str) -> &str {
    fix.split("; to keep it").next().unwrap_or(fix)
}

/// Errors by name and count.
fn errors(errors: &std::collections::BTreeMap<String, u64>) -> String {
    let one = |(name, count): (&String, &u64)| format!("{name} × {}", units::count(*count));
    errors.iter().filter(|(_, count)| **count > 0).map(one).collect::<Vec<_>>().join(", ")
}

/// Subject and verb for what ended an experiment, and what it means; `None` where it is no break.
fn gives_way(stopped: StoppedBy, side: Option<Side>) -> Option<(String, Meaning)> {
    let meaning = match stopped {
        StoppedBy::Limit | StoppedBy::Interrupted => return None,
        StoppedBy::ServerEnded => Meaning::ServerEnded,
        _ => Meaning::NotServed,
    };
    let says = match stopped {
        StoppedBy::Ports => "The clients' ports give way".to_owned(),
        StoppedBy::Refused => "The server refuses connections".to_owned(),
        StoppedBy::Timeout | StoppedBy::Unknown => {
            "Something gives way that no counter names".to_owned()
        }
        stopped => format!("{} gives way", subject(stopped, side)),
    };
    Some((says, meaning))
}

/// What gave way, as the subject of a sentence.
fn subject(stopped: StoppedBy, side: Option<Side>) -> String {
    let of = match side {
        Some(Side::Client) => "The clients'",
        Some(Side::Server) => "The server's",
        Some(Side::Both) | None => "The machine's",
    };
    match stopped {
        StoppedBy::Descriptors => format!("{of} limit on descriptors"),
        StoppedBy::Cgroup => format!("{of} control group's limit on memory"),
        StoppedBy::Pids => format!("{of} limit on processes and threads"),
        StoppedBy::Cpu => format!("{of} processor time"),
        StoppedBy::QueueFull => "The accept queue".to_owned(),
        StoppedBy::Memory => "The machine's memory".to_owned(),
        StoppedBy::TcpMem => "The kernel's budget for TCP memory (tcp_mem)".to_owned(),
        StoppedBy::LockedPages => "The limit on locked memory".to_owned(),
        StoppedBy::Conntrack => "The connection tracking table".to_owned(),
        StoppedBy::ServerEnded => "The server itself".to_owned(),
        StoppedBy::ServerLimit => "The server's own limit on connections".to_owned(),
        StoppedBy::IdleTimeout => "The server's time limit for idle connections".to_owned(),
        // These have sentences of their own.
        other => format!("`{}`", other.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    fn survey() -> Survey {
        fixture::survey().result
    }

    /// A change of the sample survey, and what its first sentence must say, and must not.
    struct Case {
        name: &'static str,
        change: fn(&mut Survey),
        says: &'static [&'static str],
        never: &'static [&'static str],
    }

    fn capacity_stops(survey: &mut Survey, by: StoppedBy, side: Side, at: u64) {
        let held = survey.capacity.as_mut().expect("the sample has it");
        (held.stopped_by, held.stopped_side, held.established) = (by, Some(side), at);
        held.alive = at;
        let finding = survey.breaks_first.iter_mut().find(|one| one.experiment == "capacity");
        finding.expect("the sample has it").fix = Some("the cure".to_owned());
    }

    /// Nothing breaks in it.
    fn calm(survey: &mut Survey) {
        survey.backlog = None;
        survey.load_curve.truncate(3);
    }

    const CASES: &[Case] = &[
        Case {
            name: "the smallest load among limits",
            change: |survey| capacity_stops(survey, StoppedBy::Descriptors, Side::Server, 15_000),
            says: &["The accept queue gives way first, at 4,097 connections", "somaxconn=65535"],
            never: &["15,000", "descriptors"],
        },
        Case {
            name: "and the other way round",
            change: |survey| capacity_stops(survey, StoppedBy::Descriptors, Side::Server, 4000),
            says: &[
                "The server's limit on descriptors gives way first, at 4,000 connections held",
                "what raises it: the cure",
            ],
            never: &["queue"],
        },
        Case {
            name: "what was asked for is no break",
            change: |survey| survey.backlog = None,
            says: &[
                "Nobody was turned away (15,000 connections were held at once, as many as were asked for);",
                "throughput stops growing first, at 100 connections: 271,300 messages/s",
            ],
            never: &["gives way", "what raises"],
        },
        Case {
            name: "whose processor was full",
            change: |survey| {
                survey.backlog = None;
                let best = survey.load.as_mut().expect("the sample has it");
                (best.stopped_by, best.stopped_side) = (Some(StoppedBy::Cpu), Some(Side::Client));
            },
            says: &["brought no more; the client's processor was full, so that the figure is the"],
            never: &["what raises"],
        },
        Case {
            name: "a load that its verdict explains",
            change: |survey| {
                let load = &mut survey.load_curve[0];
                (load.lost, load.due) = (9, 10);
                (load.stopped_by, load.stopped_side) =
                    (Some(StoppedBy::ServerEnded), Some(Side::Server));
            },
            says: &[
                "The server itself gives way first, at 1 connection carrying messages (9 of 10",
            ],
            never: &["queue"],
        },
        Case {
            name: "nothing gave way",
            change: calm,
            says: &[
                "Nothing gave way: 15,000 connections were held at once, as many as were asked for, and",
                "and 271,300 messages/s went through 100 connections",
            ],
            never: &["first"],
        },
        Case {
            name: "lost replies before saturation",
            change: |survey| {
                calm(survey);
                survey.load_curve[1].errors.insert("reply_timeout".to_owned(), 3);
            },
            says: &["Replies fail first, at 10 connections", "reply_timeout × 3"],
            never: &["Nothing"],
        },
        Case {
            name: "a server that ended before any limit",
            change: |survey| capacity_stops(survey, StoppedBy::ServerEnded, Side::Server, 9000),
            says: &["The server itself gives way first, at 9,000 connections"],
            never: &["queue"],
        },
        Case {
            name: "wrong bytes before everything",
            change: |survey| {
                capacity_stops(survey, StoppedBy::ServerEnded, Side::Server, 5);
                survey.load_curve[4].corrupt = 7;
            },
            says: &["Wrong bytes come first: at 10,000 connections", "so many as 7 came back"],
            never: &["gives way"],
        },
        Case {
            name: "nothing that a counter names",
            change: |survey| {
                calm(survey);
                capacity_stops(survey, StoppedBy::Timeout, Side::Server, 1);
                survey.breaks_first[1].fix = None;
            },
            says: &[
                "Something gives way that no counter names first, at 1 connection held at once.",
            ],
            never: &["what raises", "1 connections"],
        },
        Case {
            name: "the load is what was served",
            change: |survey| {
                calm(survey);
                capacity_stops(survey, StoppedBy::ServerLimit, Side::Server, 151);
                survey.capacity.as_mut().expect("the sample has it").alive = 100;
            },
            says: &["The server's own limit on connections gives way first, at 100 connections"],
            never: &["151"],
        },
        Case {
            name: "held, and yet not served",
            change: |survey| {
                calm(survey);
                let held = survey.capacity.as_mut().expect("the sample has it");
                held.alive = 97;
                held.errors.insert("wrong_reply".to_owned(), 14_903);
            },
            says: &["of 15,000 connections 97 answered at the end (wrong_reply × 14,903)"],
            never: &["Nothing gave way"],
        },
        Case {
            name: "a load that gave no result",
            change: |survey| {
                survey.load_curve.truncate(3);
                let why = "127.0.0.1:1 accepts and never answers\n  cure: look".to_owned();
                survey.skipped.insert(load_name(1000), why);
            },
            says: &["Messages fail first, at 1,000 connections: 127.0.0.1:1 accepts and never"],
            never: &["queue", "cure"],
        },
        Case {
            name: "without capacity nothing is known",
            change: |survey| {
                calm(survey);
                survey.capacity = None;
                survey.skipped.insert("capacity".to_owned(), "no worker\n  cure: x".to_owned());
            },
            says: &["What gives way first is not known, since `capacity` was not done: no worker."],
            never: &["Nothing gave way", "cure"],
        },
        Case {
            name: "an interruption is no break, and is said",
            change: |survey| {
                calm(survey);
                capacity_stops(survey, StoppedBy::Interrupted, Side::Server, 700);
                survey.load = None;
                survey.interrupted = Some("capacity".to_owned());
            },
            says: &[
                "Nothing gave way: 700 connections were held at once (interrupted during `capacity`",
            ],
            never: &["gives way"],
        },
        Case {
            name: "errors of churn come after those counted in connections",
            change: |survey| {
                let churn = survey.churn.as_mut().expect("the sample has it");
                churn.variants[0].errors.insert("econnreset".to_owned(), 2);
            },
            says: &["The accept queue gives way first"],
            never: &["econnreset"],
        },
        Case {
            name: "and before saturation",
            change: |survey| {
                survey.backlog = None;
                let churn = survey.churn.as_mut().expect("the sample has it");
                churn.variants[0].errors.insert("econnreset".to_owned(), 2);
            },
            says: &["Connecting and disconnecting fails first", "econnreset × 2"],
            never: &["throughput"],
        },
    ];

    #[test]
    fn the_first_break_is_named_with_its_load_and_its_cure() {
        for case in CASES {
            let mut survey = survey();
            (case.change)(&mut survey);
            let says = headline(&survey);
            for part in case.says {
                assert!(says.contains(part), "{}: no `{part}` in: {says}", case.name);
            }
            for part in case.never {
                assert!(!says.contains(part), "{}: `{part}` in: {says}", case.name);
            }
            assert!(
                says.ends_with('.') && !says.contains(". "),
                "{}: one sentence: {says}",
                case.name
            );
        }
    }

    #[test]
    fn every_word_for_an_end_has_its_sentence() {
        use StoppedBy as By;
        let all = [
            By::QueueFull,
            By::Ports,
            By::Descriptors,
            By::Memory,
            By::TcpMem,
            By::Cgroup,
            By::Pids,
            By::LockedPages,
            By::Conntrack,
            By::Cpu,
            By::Refused,
            By::ServerLimit,
            By::ServerEnded,
            By::IdleTimeout,
            By::Timeout,
            By::Unknown,
        ];
        for stopped in all {
            for side in [None, Some(Side::Client), Some(Side::Server), Some(Side::Both)] {
                let (gives, _) = gives_way(stopped, side).expect("it is a break");
                let verb = gives.contains(" give") || gives.contains(" refuses");
                assert!(verb, "{stopped:?} {side:?}: {gives}");
            }
        }
        assert_eq!(gives_way(By::Limit, None), None);
        assert_eq!(gives_way(By::Interrupted, Some(Side::Client)), None);
    }

    #[test]
    fn an_empty_survey_says_so() {
        assert_eq!(headline(&Survey::default()), "Nothing was measured.");
    }
}
