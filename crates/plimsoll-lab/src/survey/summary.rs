//! What a survey says: the load line, sentences, what breaks first, and all of it as text.

use std::fmt::Write as _;

use crate::results::{BacklogRun, Doctor, Finding, LoadLine, StoppedBy, Survey};
use crate::units;
use crate::units::wrap;

/// Columns of the text.
const WIDTH: usize = 92;

/// Fills in the load line, the sentences and the findings from the experiments' results.
pub(super) fn summarise(survey: &mut Survey) {
    survey.load_line = load_line(survey);
    survey.summary = sentences(survey);
    survey.breaks_first = findings(survey);
}

fn load_line(survey: &Survey) -> LoadLine {
    let capacity = survey.capacity.as_ref();
    LoadLine {
        connections: capacity.map(|capacity| capacity.alive),
        messages_per_second: survey.load.as_ref().map(|load| load.messages_per_second),
        accepts_per_second: survey.accept.as_ref().map(|accept| accept.accepts_per_second),
        queued: survey.backlog.as_ref().map(|backlog| backlog.queued_max),
        user_bytes_per_connection: capacity.and_then(|held| held.user_bytes_per_connection),
        kernel_bytes_per_connection: capacity.and_then(|held| held.kernel_bytes_per_connection),
    }
}

fn sentences(survey: &Survey) -> Vec<String> {
    [
        corruption(survey),
        connections(survey),
        queue(survey),
        messages(survey),
        churn(survey),
        plan(survey),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn corruption(survey: &Survey) -> Option<String> {
    let wrong: u64 = survey.load_curve.iter().map(|load| load.corrupt).sum();
    (wrong > 0).then(|| {
        format!(
            "{} bytes came back wrong: nothing else here matters until that is mended.",
            units::count(wrong)
        )
    })
}

fn connections(survey: &Survey) -> Option<String> {
    let held = survey.capacity.as_ref()?;
    let alive = if held.alive == held.established {
        "each of which answered at the end".to_owned()
    } else {
        format!("of which {} answered at the end", units::count(held.alive))
    };
    let end = match held.stopped_by {
        StoppedBy::Limit => "; the survey asked for no more".to_owned(),
        stopped => format!("; {} stopped it", stopped.name().replace('_', " ")),
    };
    Some(format!("{} connections were held at once, {alive}{end}.", units::count(held.established)))
}

fn queue(survey: &Survey) -> Option<String> {
    let deepest = survey.backlog.as_ref()?.queued_max;
    let accepts = survey.accept.as_ref().map(|accept| accept.accepts_per_second);
    let drained = accepts.filter(|rate| *rate > 0.0).map_or_else(String::new, |rate| {
        format!(
            "; one acceptor takes {}, and so empties it in {}",
            units::rate(rate),
            units::micros(deepest as f64 / rate * 1e6)
        )
    });
    Some(format!(
        "At most {} connections wait unaccepted on one listener{drained}.",
        units::count(deepest)
    ))
}

fn messages(survey: &Survey) -> Option<String> {
    let load = survey.load.as_ref()?;
    let tail = load.latency_us.map_or_else(String::new, |latency| {
        format!(", 99 of 100 answered within {}", units::micros(latency.p99))
    });
    let cpu = load.server_cpu_us_per_message.map_or_else(String::new, |micros| {
        format!("; each takes {} of the server's processor time", units::micros(micros))
    });
    Some(format!(
        "{} messages/s go through {} connections{tail}{cpu}.",
        units::number(load.messages_per_second.round()),
        units::count(load.established)
    ))
}

fn churn(survey: &Survey) -> Option<String> {
    let variants = &survey.churn.as_ref()?.variants;
    let best =
        variants.iter().max_by(|a, b| a.cycles_per_second.total_cmp(&b.cycles_per_second))?;
    let worst =
        variants.iter().min_by(|a, b| a.cycles_per_second.total_cmp(&b.cycles_per_second))?;
    let name = |pool: &str, closes: &str| {
        let sockets = match pool {
            // The client's sockets are new there in any case.
            "on" if cfg!(windows) => "the server's pool, new",
            "on" => "reused",
            "server" => "the server's pool, new",
            _ => "new",
        };
        match closes {
            "client-reset" => format!("{sockets} sockets, the client resets"),
            _ => format!("{sockets} sockets, the {closes} closes first"),
        }
    };
    Some(format!(
        "Connect, echo, disconnect: from {} ({}) to {} ({}).",
        units::rate(worst.cycles_per_second),
        name(&worst.pool, &worst.closes),
        units::rate(best.cycles_per_second),
        name(&best.pool, &best.closes)
    ))
}

fn plan(survey: &Survey) -> Option<String> {
    let plan = survey.plan.as_ref()?;
    let memory = units::bytes((plan.kernel_bytes + plan.user_bytes) as f64);
    let missing: Vec<&str> =
        plan.limits.iter().filter(|limit| !limit.ok).map(|limit| limit.name.as_str()).collect();
    let end = if missing.is_empty() {
        "this machine holds that as it is set now".to_owned()
    } else {
        format!("in the way stands {}", missing.join(", "))
    };
    Some(format!("{} connections would take {memory}; {end}.", units::count(plan.connections)))
}

fn findings(survey: &Survey) -> Vec<Finding> {
    [
        backlog_finding(survey),
        capacity_finding(survey),
        accept_finding(survey),
        load_finding(survey),
        churn_finding(survey),
        plan_finding(survey),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Of the runs, the one that went deepest and was ended by something.
fn backlog_finding(survey: &Survey) -> Option<Finding> {
    let runs = &survey.backlog.as_ref()?.runs;
    let asked = |run: &&BacklogRun| (run.queued, run.requested);
    let deepest = runs.iter().max_by_key(asked)?;
    let fix = match deepest.stopped_by {
        // The application asked for no more than it got: the kernel is not in the way.
        StoppedBy::QueueFull
            if deepest.granted.map(|granted| granted as i64) == deepest.requested =>
        {
            let cap = fix(StoppedBy::QueueFull, survey.doctor.as_ref())?;
            Some(format!(
                "listen(fd, N) with a larger N; above {}: {cap}",
                units::count(deepest.granted?)
            ))
        }
        stopped => fix(stopped, survey.doctor.as_ref()),
    };
    Some(Finding {
        experiment: "backlog".to_owned(),
        stopped_by: Some(deepest.stopped_by),
        evidence: sentence(&deepest.evidence),
        fix,
    })
}

fn capacity_finding(survey: &Survey) -> Option<Finding> {
    let held = survey.capacity.as_ref()?;
    Some(Finding {
        experiment: "capacity".to_owned(),
        stopped_by: Some(held.stopped_by),
        evidence: sentence(&held.evidence),
        fix: fix(held.stopped_by, survey.doctor.as_ref()),
    })
}

fn accept_finding(survey: &Survey) -> Option<Finding> {
    let accept = survey.accept.as_ref()?;
    let cpu = accept.cpu_us_per_accept.map_or_else(String::new, |micros| {
        format!(", {} of processor time each", units::micros(micros))
    });
    Some(Finding {
        experiment: "accept".to_owned(),
        stopped_by: None,
        evidence: format!(
            "One dedicated acceptor took {} connections/s from a full queue{cpu}.",
            units::number(accept.accepts_per_second)
        ),
        fix: None,
    })
}

/// A load has no break; what it shows is whether more connections bring more messages.
fn load_finding(survey: &Survey) -> Option<Finding> {
    let best = survey.load.as_ref()?;
    let more = survey.load_curve.iter().any(|load| load.established > best.established);
    let more = if more { "more connections brought less" } else { "more were not tried" };
    let busy = best.server_cpu_us_per_message.map(|us| us * best.messages_per_second / 1e6);
    let cpu = busy.map_or_else(String::new, |processors| {
        format!(" The server kept {} busy.", busy_processors(processors))
    });
    Some(Finding {
        experiment: "load".to_owned(),
        stopped_by: None,
        evidence: format!(
            "The most, {} messages/s, went through {} connections; {more}.{cpu}",
            units::number(best.messages_per_second.round()),
            units::count(best.established)
        ),
        fix: None,
    })
}

/// A number of processors, as it stands in a sentence.
fn busy_processors(processors: f64) -> String {
    match (processors * 100.0).round() as u64 {
        100 => "one processor".to_owned(),
        percent @ 0..100 => format!("{percent} % of one processor"),
        _ => format!("{} processors", units::number((processors * 100.0).round() / 100.0)),
    }
}

fn churn_finding(survey: &Survey) -> Option<Finding> {
    let churn = survey.churn.as_ref()?;
    Some(Finding {
        experiment: "churn".to_owned(),
        stopped_by: None,
        evidence: sentence(churn.explanation.first()?),
        fix: None,
    })
}

/// The first limit in the way of ten times as many connections.
fn plan_finding(survey: &Survey) -> Option<Finding> {
    let plan = survey.plan.as_ref()?;
    let limit = plan.limits.iter().find(|limit| !limit.ok)?;
    let available = limit.available.map_or("less".to_owned(), units::count);
    Some(Finding {
        experiment: "plan".to_owned(),
        stopped_by: None,
        evidence: format!(
            "{} connections need {} of {}; there is {available}.",
            units::count(plan.connections),
            units::count(limit.needed),
            limit.name
        ),
        fix: limit.fix.clone(),
    })
}

/// Text with a capital letter and a full stop, as it stands among other sentences.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    let end = if text.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{first}{}{end}", letters.as_str())
}

/// The command that raises the limit that stopped an experiment: the doctor's, which knows this
/// machine's values, or else the usual one.
fn fix(stopped: StoppedBy, doctor: Option<&Doctor>) -> Option<String> {
    let (name, usual) = match stopped {
        StoppedBy::QueueFull if cfg!(windows) => {
            return Some("listen with a larger hint: SOMAXCONN_HINT(N), 200 to 65535".to_owned());
        }
        StoppedBy::Ports if cfg!(windows) => {
            ("dynamic port range", "netsh int ipv4 set dynamicport tcp start=1025 num=64511")
        }
        StoppedBy::QueueFull => ("net.core.somaxconn", "sysctl -w net.core.somaxconn=65535"),
        StoppedBy::Ports => {
            ("ip_local_port_range", "sysctl -w net.ipv4.ip_local_port_range='1024 65535'")
        }
        StoppedBy::Descriptors => ("nofile (hard)", "ulimit -n 1000000"),
        StoppedBy::TcpMem => ("tcp_mem", "sysctl -w net.ipv4.tcp_mem='… … …' (in pages)"),
        StoppedBy::LockedPages => ("memlock", "ulimit -l unlimited"),
        StoppedBy::Conntrack => {
            ("nf_conntrack_max", "sysctl -w net.netfilter.nf_conntrack_max=1048576")
        }
        StoppedBy::Cgroup => ("cgroup memory", "raise memory.max of the control group"),
        StoppedBy::Memory => {
            return Some("more memory, or less of it in other processes".to_owned());
        }
        StoppedBy::ServerLimit | StoppedBy::Refused => {
            return Some("raise the server's own limit on connections".to_owned());
        }
        StoppedBy::Pids => ("pids", "raise pids.max of the control group, or `ulimit -u`"),
        StoppedBy::IdleTimeout => {
            return Some("raise the server's time limit for idle connections".to_owned());
        }
        StoppedBy::Cpu
        | StoppedBy::ServerEnded
        | StoppedBy::Timeout
        | StoppedBy::Limit
        | StoppedBy::Interrupted
        | StoppedBy::Unknown => return None,
    };
    let known =
        doctor.and_then(|doctor| doctor.checks.iter().find(|check| check.name.contains(name)));
    Some(known.and_then(|check| check.fix.clone()).unwrap_or_else(|| usual.to_owned()))
}

/// The summary for a person, at most 92 columns wide.
pub fn render_text(survey: &Survey) -> String {
    let mut out = String::new();
    let name = match survey.target.as_str() {
        "embedded" => "the embedded engine, on this machine",
        target => target,
    };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "The load line of {name}\n");
    let line = &survey.load_line;
    let whole = |value: Option<u64>| value.map_or("?".to_owned(), units::count);
    let round =
        |value: Option<f64>| value.map_or("?".to_owned(), |value| units::number(value.round()));
    for (value, what) in [
        (whole(line.connections), "connections held at once, alive"),
        (round(line.messages_per_second), "messages/s, every byte verified"),
        (round(line.accepts_per_second), "accepts/s by one acceptor"),
        (whole(line.queued), "connections queued unaccepted on one listener"),
        (round(line.user_bytes_per_connection), "bytes per connection in the server itself"),
        (round(line.kernel_bytes_per_connection), "bytes per connection in the kernel, one end"),
    ] {
        let _ = writeln!(out, "  {value:>10}  {what}");
    }
    if !survey.summary.is_empty() {
        let _ = writeln!(out, "\nIn short");
        for sentence in &survey.summary {
            indented(&mut out, "  - ", sentence);
        }
    }
    if !survey.breaks_first.is_empty() {
        let _ = writeln!(out, "\nWhat breaks first");
        for finding in &survey.breaks_first {
            let stopped = match finding.stopped_by {
                Some(StoppedBy::Limit) => "reached what was asked".to_owned(),
                Some(stopped) => stopped.name().replace('_', " "),
                None => String::new(),
            };
            let line = format!("  {:<9} {stopped}", finding.experiment);
            let _ = writeln!(out, "{}", line.trim_end());
            indented(&mut out, "            ", &finding.evidence);
            if let Some(fix) = &finding.fix {
                indented(&mut out, "            raise it: ", fix);
            }
        }
    }
    if !survey.skipped.is_empty() {
        let _ = writeln!(out, "\nNot run");
        for (name, why) in &survey.skipped {
            indented(&mut out, &format!("  {name}: "), why);
        }
    }
    out
}

/// Writes text after `first`, with its further lines below the first one's text.
fn indented(out: &mut String, first: &str, text: &str) {
    let width = first.chars().count();
    for (index, line) in wrap(text, WIDTH.saturating_sub(width).max(20)).iter().enumerate() {
        let lead = if index == 0 { first.to_owned() } else { " ".repeat(width) };
        let _ = writeln!(out, "{lead}{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    #[test]
    fn a_survey_is_summed_up_from_its_experiments() {
        let mut survey = fixture::survey().result;
        summarise(&mut survey);
        assert_eq!(survey.load_line.connections, Some(15_000));
        assert_eq!(survey.load_line.queued, Some(4097));
        assert!(survey.summary[0].starts_with("15,000 connections were held at once"));
        let backlog = &survey.breaks_first[0];
        assert_eq!(backlog.stopped_by, Some(StoppedBy::QueueFull));
        let cure = if cfg!(windows) { "SOMAXCONN_HINT" } else { "net.core.somaxconn" };
        assert!(backlog.fix.as_deref().is_some_and(|fix| fix.contains(cure)));
        let plan = survey.breaks_first.last().unwrap();
        assert!(plan.evidence.contains("RLIMIT_NOFILE") && plan.fix.is_some());
    }

    #[test]
    fn processors_are_counted_as_one_speaks() {
        assert_eq!(busy_processors(0.0), "0 % of one processor");
        assert_eq!(busy_processors(0.8149), "81 % of one processor");
        assert_eq!(busy_processors(1.001), "one processor");
        assert_eq!(busy_processors(1.5), "1.5 processors");
    }

    #[test]
    fn wrong_bytes_come_first() {
        let mut survey = fixture::survey().result;
        survey.load_curve[1].corrupt = 7;
        summarise(&mut survey);
        assert!(survey.summary[0].starts_with("7 bytes came back wrong"));
        assert!(!super::super::is_whole(&survey));
    }

    #[test]
    fn nothing_measured_is_said_so() {
        let mut survey = Survey { target: "127.0.0.1:80".to_owned(), ..Survey::default() };
        survey.skipped.insert("load".to_owned(), "no echo".to_owned());
        summarise(&mut survey);
        let text = render_text(&survey);
        assert!(text.contains("?  connections held") && text.contains("load: no echo"), "{text}");
    }

    #[test]
    fn the_text_fits_a_terminal() {
        let mut survey = fixture::survey().result;
        summarise(&mut survey);
        let text = render_text(&survey);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
}
