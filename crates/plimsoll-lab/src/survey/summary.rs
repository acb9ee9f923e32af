//! What a survey says: the load line, sentences, what breaks first, and all of it as text.

use std::fmt::Write as _;

use super::headline::{deepest, failures, headline};
use super::{fix::fix, target};
use crate::results::{Compared, Doctor, Finding, LoadLine, StoppedBy, Survey, SurveyedServer};
use crate::units;
use crate::units::wrap;

/// Columns of the text.
const WIDTH: usize = 92;

/// Fills in the load line, the sentences, the findings and the headline from the experiments' results.
/// `doctor` knows this machine's limits, and the commands that raise them.
pub(super) fn summarise(survey: &mut Survey, doctor: &Doctor) {
    survey.load_line = load_line(survey);
    let reasons = unmeasured(survey);
    survey.skipped.extend(reasons);
    survey.summary = sentences(survey);
    survey.breaks_first = findings(survey, doctor);
    survey.headline = headline(survey);
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

/// Figures of experiments that were run, and yet are not known: by name, with the reason.
fn unmeasured(survey: &Survey) -> Vec<(String, String)> {
    let Some(held) = &survey.capacity else { return Vec::new() };
    let reasons = [
        ("user_bytes_per_connection", &held.user_bytes_reason),
        ("kernel_bytes_per_connection", &held.kernel_bytes_reason),
    ];
    let known = |(name, why): (&str, &Option<String>)| Some((name.to_owned(), why.clone()?));
    reasons.into_iter().filter_map(known).collect()
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
        StoppedBy::Interrupted => "; then the survey was interrupted".to_owned(),
        stopped => format!("; {} stopped it", stopped.name().replace('_', " ")),
    };
    let made = if held.alive == held.established { "held at once" } else { "established" };
    let connections = units::connections_were(held.established);
    Some(format!("{connections} {made}, {alive}{end}."))
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
        "At most {} wait unaccepted on one listener{drained}.",
        units::connections(deepest)
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
        "{} messages/s go through {}{tail}{cpu}.",
        units::number(load.messages_per_second.round()),
        units::connections(load.established)
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
    Some(format!("{} would take {memory}; {end}.", units::connections(plan.connections)))
}

fn findings(survey: &Survey, doctor: &Doctor) -> Vec<Finding> {
    let mut found: Vec<Finding> = [
        backlog_finding(survey, doctor),
        capacity_finding(survey, doctor),
        accept_finding(survey),
        load_finding(survey, doctor),
        churn_finding(survey),
        plan_finding(survey),
    ]
    .into_iter()
    .flatten()
    .collect();
    // What was cut short shows nothing of a limit.
    let cut = survey.interrupted.as_deref().unwrap_or("");
    for finding in found.iter_mut().filter(|finding| begins_with_word(cut, &finding.experiment)) {
        finding.stopped_by = Some(StoppedBy::Interrupted);
        finding.fix = None;
    }
    found
}

/// Whether an experiment's name is the first word of a text: `load` of `load, 10 connections`.
fn begins_with_word(text: &str, name: &str) -> bool {
    text.strip_prefix(name).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
}

/// Of the runs, the one that went deepest and was ended by something.
fn backlog_finding(survey: &Survey, doctor: &Doctor) -> Option<Finding> {
    let deepest = deepest(survey.backlog.as_ref()?)?;
    let fix = fix(deepest.stopped_by, deepest.stopped_side, None, doctor);
    // The application asked for no more than it got: the kernel is not in the way.
    let own = deepest.granted.map(|granted| granted as i64) == deepest.requested;
    let fix = match deepest.stopped_by {
        StoppedBy::QueueFull if own => Some(format!(
            "listen(fd, N) with a larger N; above {}: {}",
            units::count(deepest.granted?),
            fix?
        )),
        _ => fix,
    };
    Some(Finding {
        experiment: "backlog".to_owned(),
        stopped_by: Some(deepest.stopped_by),
        evidence: sentence(&deepest.evidence),
        fix,
    })
}

fn capacity_finding(survey: &Survey, doctor: &Doctor) -> Option<Finding> {
    let held = survey.capacity.as_ref()?;
    let side = held.stopped_side;
    Some(Finding {
        experiment: "capacity".to_owned(),
        stopped_by: Some(held.stopped_by),
        evidence: sentence(&held.evidence),
        fix: fix(held.stopped_by, side, survey.server.as_ref(), doctor),
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

/// What a load shows: whether more connections bring more messages, what held the best one back, and
/// what failed at which number.
fn load_finding(survey: &Survey, doctor: &Doctor) -> Option<Finding> {
    let best = survey.load.as_ref()?;
    let more = survey.load_curve.iter().any(|load| load.established > best.established);
    let more = if more { "more connections brought less" } else { "more were not tried" };
    let busy = best.server_cpu_us_per_message.map(|us| us * best.messages_per_second / 1e6);
    let cpu = busy.map_or_else(String::new, |processors| {
        format!(" The server kept {} busy.", busy_processors(processors))
    });
    let held_back = if best.evidence.is_empty() {
        String::new()
    } else {
        format!(" {}", sentence(&best.evidence))
    };
    let failed: Vec<String> = survey
        .load_curve
        .iter()
        .filter(|load| load.lost > 0 || load.errors.values().any(|count| *count > 0))
        .map(|load| format!("at {} {}", units::connections(load.asked), failures(load)))
        .collect();
    let failed = match failed.as_slice() {
        [] => String::new(),
        failed => format!(" Failed: {}.", failed.join("; ")),
    };
    let side = best.stopped_side;
    Some(Finding {
        experiment: "load".to_owned(),
        stopped_by: best.stopped_by,
        evidence: format!(
            "The most, {} messages/s, went through {}; {more}.{cpu}{held_back}{failed}",
            units::number(best.messages_per_second.round()),
            units::connections(best.established)
        ),
        fix: best.stopped_by.and_then(|by| fix(by, side, survey.server.as_ref(), doctor)),
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

/// The first limit in the way of ten times as many connections. Of a target it is none of what breaks:
/// nothing of it was reached.
fn plan_finding(survey: &Survey) -> Option<Finding> {
    let plan = survey.plan.as_ref().filter(|_| survey.server.is_none())?;
    let limit = plan.limits.iter().find(|limit| !limit.ok)?;
    let available = limit.available.map_or("less".to_owned(), units::count);
    Some(Finding {
        experiment: "plan".to_owned(),
        stopped_by: None,
        evidence: format!(
            "{} need {} of {}; there is {available}.",
            units::connections(plan.connections),
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

/// The summary for a person, at most 92 columns wide. Its first line says what gives way first.
pub fn render_text(survey: &Survey) -> String {
    let mut out = String::new();
    indented(&mut out, "", &survey.headline);
    // Writing to a String cannot fail.
    let _ = writeln!(out, "\nThe load line of {}\n", name(survey));
    for (value, what) in load_line_rows(survey) {
        let _ = writeln!(out, "  {value:>10}  {what}");
    }
    if let Some(server) = &survey.server {
        let _ = writeln!(out, "\nThe server, as it was found");
        for line in server_lines(server) {
            indented(&mut out, "  - ", &line);
        }
    }
    if !survey.summary.is_empty() {
        let _ = writeln!(out, "\nIn short");
        for sentence in &survey.summary {
            indented(&mut out, "  - ", sentence);
        }
    }
    render_findings(&survey.breaks_first, &mut out);
    if !survey.skipped.is_empty() {
        let _ = writeln!(out, "\nNot measured");
        for (name, why) in &survey.skipped {
            indented(&mut out, &format!("  {name}: "), why);
        }
    }
    out
}

/// What was surveyed, in words.
fn name(survey: &Survey) -> String {
    let process = |server: &SurveyedServer| {
        let pid = server.pid.map_or_else(String::new, |pid| format!(", process {pid}"));
        Some(format!(" ({}{pid})", target::name(server)?))
    };
    match survey.target.as_str() {
        "embedded" => "the embedded engine, on this machine".to_owned(),
        target => {
            let process = survey.server.as_ref().and_then(process);
            format!("{target}{}", process.unwrap_or_default())
        }
    }
}

/// The load line's figures, those that were measured.
fn load_line_rows(survey: &Survey) -> Vec<(String, &'static str)> {
    let line = &survey.load_line;
    let whole = |value: Option<u64>| value.map(units::count);
    let round = |value: Option<f64>| value.map(|value| units::number(value.round()));
    let rows = [
        (whole(line.connections), "connections held at once, alive"),
        (round(line.messages_per_second), messages_compared(survey.compared)),
        (round(line.accepts_per_second), "accepts/s by one acceptor"),
        (whole(line.queued), "connections queued unaccepted on one listener"),
        (round(line.user_bytes_per_connection), "bytes per connection in the server itself"),
        (round(line.kernel_bytes_per_connection), "bytes per connection in the kernel, one end"),
    ];
    rows.into_iter().filter_map(|(value, what)| Some((value?, what))).collect()
}

/// What was compared of the messages, as it stands behind their rate.
fn messages_compared(compared: Option<Compared>) -> &'static str {
    match compared {
        Some(Compared::EveryByte) => "messages/s, every byte verified",
        Some(Compared::WholeReply) => "messages/s, replies that were whole as expected",
        Some(Compared::Beginning) => "messages/s, replies whose beginning matched",
        Some(Compared::Status) => "messages/s, HTTP replies with a status of success",
        Some(Compared::Nothing) => "messages/s, replies that were not compared",
        None => "messages/s",
    }
}

/// What is known of a target, a line each.
pub(crate) fn server_lines(server: &SurveyedServer) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(says) = &server.says {
        lines.push(format!("its replies say: {says}"));
    }
    if let (Some(process), Some(pid)) = (&server.process, server.pid) {
        let more = server.processes.filter(|count| *count > 1);
        let more =
            more.map_or_else(String::new, |count| format!(", {} in all", units::count(count)));
        lines.push(format!("process {process} ({pid}{more})"));
    }
    if let Some(granted) = target::granted(server) {
        let depth = server.depth.map_or_else(String::new, |depth| {
            format!("; {} waited in it before the survey", units::count(depth))
        });
        lines.push(format!("its accept queue: {granted}{depth}"));
    }
    if let (Some(open), Some(limit)) = (server.descriptors, server.descriptors_limit) {
        lines.push(format!(
            "descriptors: {} open before the survey, of {} that it may have",
            units::count(open),
            units::count(limit)
        ));
    }
    if let Some(limit) = server.group_memory_limit_bytes {
        lines.push(format!("its control group may have {} of memory", units::bytes(limit as f64)));
    }
    if let Some(limit) = server.group_pids_limit {
        lines.push(format!(
            "its control group may have {} processes and threads",
            units::count(limit)
        ));
    }
    match server.shares_processors {
        Some(true) => lines.push(
            "it shares this machine's processors with the survey's clients: what they use, it lacks"
                .to_owned(),
        ),
        Some(false) => lines.push("it runs on other processors than the survey's clients".to_owned()),
        None => {}
    }
    lines
}

/// What ended an experiment, in a few words; `None` where it has no end of that kind.
pub(crate) fn stopped(finding: &Finding) -> Option<String> {
    Some(match finding.stopped_by? {
        StoppedBy::Limit => "reached what was asked".to_owned(),
        // A closed loop is always held back by something.
        StoppedBy::Unknown if finding.experiment == "load" => {
            "at no limit that was seen".to_owned()
        }
        stopped => stopped.name().replace('_', " "),
    })
}

fn render_findings(findings: &[Finding], out: &mut String) {
    if findings.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nWhat breaks first, by experiment");
    for finding in findings {
        let line = format!("  {:<9} {}", finding.experiment, stopped(finding).unwrap_or_default());
        let _ = writeln!(out, "{}", line.trim_end());
        indented(out, "            ", &finding.evidence);
        if let Some(fix) = &finding.fix {
            indented(out, "            raise it: ", fix);
        }
    }
}

/// Writes text after `first`, with its further lines below the first one's text. Lines that the text
/// has (a cause and its cure) stay lines.
fn indented(out: &mut String, first: &str, text: &str) {
    let width = first.chars().count();
    let lines = text.lines().flat_map(|line| wrap(line, WIDTH.saturating_sub(width).max(20)));
    for (index, line) in lines.enumerate() {
        let lead = if index == 0 { first.to_owned() } else { " ".repeat(width) };
        let _ = writeln!(out, "{lead}{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    fn summarised(mut survey: Survey) -> Survey {
        let doctor = survey.doctor.clone().unwrap_or_default();
        summarise(&mut survey, &doctor);
        survey
    }

    #[test]
    fn a_survey_is_summed_up_from_its_experiments() {
        let survey = summarised(fixture::survey().result);
        assert_eq!(survey.load_line.connections, Some(15_000));
        assert_eq!(survey.load_line.queued, Some(4097));
        assert!(survey.summary[0].starts_with("15,000 connections were held at once"));
        let backlog = &survey.breaks_first[0];
        assert_eq!(backlog.stopped_by, Some(StoppedBy::QueueFull));
        let cure = if cfg!(windows) { "SOMAXCONN_HINT" } else { "net.core.somaxconn" };
        assert!(backlog.fix.as_deref().is_some_and(|fix| fix.contains(cure)));
        let plan = survey.breaks_first.last().unwrap();
        assert!(plan.evidence.contains("RLIMIT_NOFILE") && plan.fix.is_some());
        let text = render_text(&survey);
        let first = text.lines().next().expect("it has lines");
        assert!(first.starts_with("The accept queue gives way first, at 4,097"), "{text}");
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
        let survey = summarised(survey);
        assert!(survey.summary[0].starts_with("7 bytes came back wrong"));
        assert!(!super::super::is_whole(&survey));
    }

    #[test]
    fn nothing_measured_is_said_so() {
        let mut survey = Survey { target: "127.0.0.1:80".to_owned(), ..Survey::default() };
        let reason = "no echo\n  cure: see --send".to_owned();
        survey.skipped.insert("load".to_owned(), reason);
        let text = render_text(&summarised(survey));
        assert!(text.starts_with("Nothing was measured."), "{text}");
        assert!(!text.contains("connections held"), "{text}");
        assert!(text.contains("load: no echo\n        cure: see --send\n"), "not glued: {text}");
    }

    /// A target's survey has its own figures only, and the reason for each that it lacks.
    #[test]
    fn of_a_target_nothing_is_said_that_was_not_measured_on_it() {
        let mut survey = fixture::target().result;
        let held = survey.capacity.as_mut().unwrap();
        (held.kernel_bytes_per_connection, held.user_bytes_per_connection) = (None, None);
        held.kernel_bytes_reason = Some("the memory of 10 connections".to_owned());
        held.user_bytes_reason = held.kernel_bytes_reason.clone();
        let survey = summarised(survey);
        assert_eq!((survey.load_line.queued, survey.load_line.accepts_per_second), (None, None));
        for name in ["user_bytes_per_connection", "kernel_bytes_per_connection"] {
            assert!(survey.skipped[name].contains("memory of 10 connections"), "{name}");
        }
        let text = render_text(&survey);
        assert!(text.contains("granted 511 (its own listen(2)"), "{text}");
        for never in
            ["accepts/s", "queued unaccepted", "somaxconn=", "every byte", "bytes per conn"]
        {
            assert!(!text.contains(never), "`{never}` in: {text}");
        }
        assert!(text.contains("replies whose beginning matched"), "{text}");
        assert!(survey.breaks_first.iter().all(|finding| finding.fix.is_none()));
    }

    #[test]
    fn what_was_interrupted_is_no_finding_of_a_limit() {
        let mut survey = fixture::survey().result;
        survey.interrupted = Some("load, 10 connections".to_owned());
        let survey = summarised(survey);
        let load = survey.breaks_first.iter().find(|one| one.experiment == "load").unwrap();
        assert_eq!((load.stopped_by, &load.fix), (Some(StoppedBy::Interrupted), &None));
        assert!(begins_with_word("backlog", "backlog") && !begins_with_word("loads", "load"));
    }

    #[test]
    fn the_text_fits_a_terminal() {
        for survey in [fixture::survey().result, fixture::target().result] {
            let text = render_text(&summarised(survey));
            assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        }
    }
}
