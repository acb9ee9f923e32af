//! `report.html`: one file that a person reads, with nothing to fetch and no script to run.
//!
//! Verdicts come first (the load line, what breaks first and the command that
//! raises it), then the curves with a table behind each, then the machine, and
//! at the end the document itself as JSON. Colours follow the reader's light or
//! dark scheme; on a phone each chart is drawn for its width; on paper a
//! table is there if it was open, and colours are those of the light scheme.

mod chart;
mod facts;
mod figures;
#[cfg(test)]
pub(crate) mod fixture;
mod text;

use askama::Template;

use crate::advice::plan::amounts;
use crate::results::{Check, Compared, Document, Finding, LoadLine, PlanLimit, StoppedBy, Survey};
use crate::survey::{server_lines, stopped};
use figures::Figure;

/// The page.
#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    target: String,
    verdict: &'a str,
    facts: Vec<(&'static str, String)>,
    errors: Vec<facts::ErrorRow>,
    server: Vec<String>,
    started: &'a str,
    took: String,
    version: &'a str,
    partial: bool,
    headline: Vec<Headline>,
    memory: Vec<Headline>,
    summary: &'a [String],
    findings: Vec<FindingView<'a>>,
    figures: Vec<Figure>,
    explanations: &'a [String],
    churn: Vec<Bar>,
    checks: &'a [Check],
    plan: Option<PlanView<'a>>,
    skipped: Vec<(&'a str, &'a str)>,
    machine: Vec<(String, String)>,
    limits: Vec<(&'a str, &'a str)>,
    json: String,
}

/// One big figure.
struct Headline {
    value: String,
    unit: &'static str,
    name: &'static str,
}

/// One row of "what breaks first".
struct FindingView<'a> {
    experiment: &'a str,
    stopped: String,
    at_limit: bool,
    evidence: &'a str,
    fix: Option<&'a str>,
}

/// One bar of a bar list.
struct Bar {
    name: String,
    value: String,
    /// From the lowest turn to the highest, where there were several.
    spread: Option<String>,
    percent: u32,
}

/// The plan's figures.
struct PlanView<'a> {
    says: String,
    fits: bool,
    limits: Vec<LimitView<'a>>,
}

/// One row of the plan's limits.
struct LimitView<'a> {
    name: &'a str,
    needed: String,
    available: String,
    ok: bool,
    fix: &'a str,
    note: &'a str,
}

/// Renders a survey as one self-contained HTML page.
///
/// Takes a few milliseconds; the size is that of the document's JSON and about 100 KB more.
pub fn render(document: &Document<Survey>) -> String {
    let survey = &document.result;
    let page = Page {
        target: target(survey),
        verdict: &survey.headline,
        facts: facts::facts(document),
        errors: facts::errors(survey),
        server: survey.server.as_ref().map(server_lines).unwrap_or_default(),
        started: &document.started,
        took: text::micros(document.seconds * 1e6),
        version: &document.version,
        partial: document.partial,
        headline: headline(&survey.load_line, survey.compared),
        memory: memory(&survey.load_line),
        summary: &survey.summary,
        findings: survey.breaks_first.iter().map(finding).collect(),
        figures: all_figures(survey),
        explanations: survey.churn.as_ref().map_or(&[], |churn| &churn.explanation),
        churn: churn_bars(survey),
        checks: survey.doctor.as_ref().map_or(&[], |doctor| &doctor.checks),
        plan: plan(survey),
        skipped: survey.skipped.iter().map(|(name, why)| (name.as_str(), why.as_str())).collect(),
        machine: machine(document),
        limits: pairs(&document.machine.limits),
        // A document of these types always serialises: its keys are strings.
        json: serde_json::to_string_pretty(document).unwrap_or_default(),
    };
    // The template is checked when this is compiled, and writing to a string cannot fail.
    page.render().unwrap_or_default()
}

/// What was surveyed, in words.
fn target(survey: &Survey) -> String {
    match survey.target.as_str() {
        "" | "embedded" => "the Plimsoll engine on this machine".to_owned(),
        target => target.to_owned(),
    }
}

/// The load line's figures, those that were measured.
fn headline(line: &LoadLine, compared: Option<Compared>) -> Vec<Headline> {
    let messages = match compared {
        Some(Compared::EveryByte) => "echoed, every byte verified",
        Some(Compared::WholeReply) => "answered as expected",
        Some(Compared::Beginning) => "replies whose beginning matched",
        Some(Compared::Status) => "HTTP replies with a status of success",
        Some(Compared::Nothing) => "replies, not compared",
        None => "answered",
    };
    let rate = |rate: f64| text::number(rate.round());
    measured([
        (line.connections.map(text::count), "connections", "held at once, alive"),
        (line.messages_per_second.map(rate), "messages/s", messages),
        (line.accepts_per_second.map(rate), "accepts/s", "by one acceptor"),
        (line.queued.map(text::count), "queued", "unaccepted on one listener"),
    ])
}

fn memory(line: &LoadLine) -> Vec<Headline> {
    let unit = "bytes per connection";
    measured([
        (line.user_bytes_per_connection.map(text::number), unit, "in the server itself"),
        (line.kernel_bytes_per_connection.map(text::number), unit, "in the kernel, one end"),
    ])
}

fn measured<const N: usize>(
    figures: [(Option<String>, &'static str, &'static str); N],
) -> Vec<Headline> {
    let known = |(value, unit, name)| Some(Headline { value: value?, unit, name });
    figures.into_iter().filter_map(known).collect()
}

fn finding(finding: &Finding) -> FindingView<'_> {
    let calm = [None, Some(StoppedBy::Limit), Some(StoppedBy::Unknown)];
    FindingView {
        experiment: &finding.experiment,
        stopped: stopped(finding).unwrap_or_else(|| "measured".to_owned()),
        at_limit: !calm.contains(&finding.stopped_by),
        evidence: &finding.evidence,
        fix: finding.fix.as_deref(),
    }
}

fn all_figures(survey: &Survey) -> Vec<Figure> {
    [
        survey.capacity.as_ref().and_then(figures::capacity),
        survey.backlog.as_ref().and_then(figures::backlog),
        figures::throughput(&survey.load_curve),
        survey.load.as_ref().and_then(figures::latency),
        figures::latency_curve(&survey.load_curve),
        survey.churn.as_ref().and_then(figures::time_wait),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Cycles per second of each variant, as bars against the fastest.
fn churn_bars(survey: &Survey) -> Vec<Bar> {
    let variants = survey.churn.as_ref().map_or(&[][..], |churn| &churn.variants);
    let fastest = variants.iter().map(|variant| variant.cycles_per_second).fold(0.0, f64::max);
    let percent =
        |rate: f64| if fastest > 0.0 { (rate / fastest * 100.0).round() as u32 } else { 0 };
    variants
        .iter()
        .map(|variant| Bar {
            name: format!("pool {}, {} closes", variant.pool, variant.closes),
            value: text::number(variant.cycles_per_second),
            spread: spread(&variant.turns),
            percent: percent(variant.cycles_per_second),
        })
        .collect()
}

/// The lowest and the highest of several values.
fn spread(values: &[f64]) -> Option<String> {
    let (low, high) = (
        values.iter().copied().fold(f64::INFINITY, f64::min),
        values.iter().copied().fold(0.0, f64::max),
    );
    (values.len() > 1).then(|| format!("{} to {}", text::number(low), text::number(high)))
}

fn plan(survey: &Survey) -> Option<PlanView<'_>> {
    let plan = survey.plan.as_ref()?;
    let says = format!(
        "{} connections would take {} in the kernel and {} in the server, {} descriptors, and \
         clients on {} source addresses.",
        text::count(plan.connections),
        text::bytes(plan.kernel_bytes as f64),
        text::bytes(plan.user_bytes as f64),
        text::count(plan.descriptors),
        text::count(plan.source_addresses),
    );
    let limit = |limit: &'_ PlanLimit| -> (String, String) {
        let (needed, available, unit) = amounts(limit);
        let with_unit = |amount: String| text::thin(format!("{amount} {unit}").trim_end());
        let available = if limit.available.is_some() { with_unit(available) } else { available };
        (with_unit(needed), available)
    };
    let limits = plan
        .limits
        .iter()
        .map(|row| {
            let (needed, available) = limit(row);
            let fix = row.fix.as_deref().unwrap_or_default();
            let note = row.note.as_deref().unwrap_or_default();
            LimitView { name: &row.name, needed, available, ok: row.ok, fix, note }
        })
        .collect();
    Some(PlanView { says, fits: plan.fits, limits })
}

fn machine(document: &Document<Survey>) -> Vec<(String, String)> {
    let machine = &document.machine;
    let virtualised = match machine.virtualised {
        Some(true) => "yes",
        Some(false) => "no",
        None => "not known",
    };
    [
        ("system", format!("{} {}, {}", machine.os, machine.kernel, machine.architecture)),
        ("processor", machine.cpu.clone().unwrap_or_else(|| "not known".to_owned())),
        ("processors used", machine.cpus.to_string()),
        ("memory", text::known(machine.memory_bytes, |bytes| text::bytes(bytes as f64))),
        ("page", text::bytes(machine.page_bytes as f64)),
        ("virtual machine", virtualised.to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn pairs(map: &std::collections::BTreeMap<String, String>) -> Vec<(&str, &str)> {
    map.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What must not be in a page that fetches nothing and runs nothing.
    fn assert_self_contained(page: &str) {
        for foreign in ["<script", "<link", "<img", "<iframe", "src=", "@import", "url("] {
            assert!(!page.contains(foreign), "the page contains {foreign}");
        }
    }

    #[test]
    fn a_whole_survey_renders() {
        let page = render(&fixture::survey());
        if let Some(path) = std::env::var_os("PLIMSOLL_REPORT_SAMPLE") {
            std::fs::write(path, &page).unwrap();
        }
        assert_self_contained(&page);
        assert_eq!(page.matches("<figure").count(), 6);
        assert_eq!(page.matches("<svg class=\"wide\"").count(), 6);
        assert!(page.contains("15\u{202f}000"), "the load line is formatted for people");
        assert!(page.contains("sysctl -w net.core.somaxconn=65535"));
        assert!(page.contains("prefers-color-scheme: dark") && page.contains("@media print"));
        assert!(page.contains("name=\"viewport\""));
    }

    #[test]
    fn an_empty_survey_renders() {
        let mut document = fixture::survey();
        document.result = Survey::default();
        document.partial = true;
        let page = render(&document);
        assert_self_contained(&page);
        assert!(page.contains("interrupted"));
        assert!(!page.contains("class=\"value\""), "no figure that was not measured");
        assert_eq!(page.matches("<figure").count(), 0);
    }

    #[test]
    fn a_survey_of_a_target_shows_its_own_figures_only() {
        let document = fixture::target();
        let page = render(&document);
        if let Some(path) = std::env::var_os("PLIMSOLL_REPORT_SAMPLE_TARGET") {
            std::fs::write(path, &page).unwrap();
        }
        assert_self_contained(&page);
        let verdict = page.find(&document.result.headline).expect("the verdict is there");
        assert!(verdict < page.find("<dl class=\"loadline").expect("the figures are there"));
        for part in ["granted 511", "redis-server", "replies whose beginning matched", "--target"] {
            assert!(page.contains(part), "no `{part}`");
        }
        let (shown, _) = page.split_once("<pre id=\"json\">").expect("the document is embedded");
        for never in ["accepts/s", "unaccepted on one", "every byte", "Ten times", "cycles/s"] {
            assert!(!shown.contains(never), "`{never}` was not measured on the target");
        }
    }

    #[test]
    fn hostile_text_stays_text() {
        const HOSTILE: &str = "</script></pre></style><script>alert(1)</script>\" onload='x' &amp;";
        let mut document = fixture::survey();
        let survey = &mut document.result;
        survey.target = HOSTILE.to_owned();
        survey.headline = HOSTILE.to_owned();
        survey.server = Some(crate::results::SurveyedServer {
            says: Some(HOSTILE.to_owned()),
            process: Some(HOSTILE.to_owned()),
            pid: Some(1),
            ..Default::default()
        });
        survey.load_curve[0].errors.insert(HOSTILE.to_owned(), 1);
        survey.summary.push(HOSTILE.to_owned());
        survey.skipped.insert(HOSTILE.to_owned(), HOSTILE.to_owned());
        survey.breaks_first[0].evidence = HOSTILE.to_owned();
        survey.breaks_first[0].fix = Some(HOSTILE.to_owned());
        let capacity = survey.capacity.as_mut().unwrap();
        for sample in &mut capacity.samples {
            sample.kernel_bytes.insert(HOSTILE.to_owned(), 9_000_000);
        }
        survey.churn.as_mut().unwrap().variants[0].closes = HOSTILE.to_owned();
        document.arguments.push(HOSTILE.to_owned());
        document.machine.limits.insert(HOSTILE.to_owned(), HOSTILE.to_owned());
        document.machine.cpu = Some(HOSTILE.to_owned());
        let page = render(&document);
        assert_self_contained(&page);
        assert!(!page.contains("</script>") && !page.contains("onload='"));
        assert_eq!(page.matches("</style>").count(), 1);
    }

    #[test]
    fn embedded_json_is_the_document() {
        let document = fixture::survey();
        let page = render(&document);
        let (_, json) = page.split_once("<pre id=\"json\">").expect("the document is embedded");
        let (json, _) = json.split_once("</pre>").expect("the document ends");
        let json = json
            .replace("&#60;", "<")
            .replace("&#62;", ">")
            .replace("&#34;", "\"")
            .replace("&#39;", "'")
            .replace("&#38;", "&");
        let read: Document<Survey> = serde_json::from_str(&json).expect("it is JSON");
        assert_eq!(read.result.load_line, document.result.load_line);
    }
}
