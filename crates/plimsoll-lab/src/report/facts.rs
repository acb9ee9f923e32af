//! What a reader needs to judge the figures: how they were made, of what, how often, on whose
//! processors, and what failed on the way.

use std::collections::BTreeMap;

use super::figures::{self, Point};
use super::text;
use crate::results::{Compared, Document, Survey};
use crate::units;

/// Facts about the measurement, by name, in the order in which they are shown.
pub(super) fn facts(document: &Document<Survey>) -> Vec<(&'static str, String)> {
    let survey = &document.result;
    let mut facts = Vec::new();
    if !document.arguments.is_empty() {
        facts.push(("command", command_line(&document.arguments)));
    }
    facts.push(("server", server(document)));
    facts.push(("replies", compared(survey.compared).to_owned()));
    if let Some(shared) = processors(document) {
        facts.push(("processors", shared));
    }
    if let Some(runs) = repeats(survey) {
        facts.push(("repeats", runs));
    }
    let failed: u64 = errors(survey).iter().map(|row| row.count).sum();
    facts.push((
        "errors",
        match failed {
            0 => "none: no connect and no reply failed".to_owned(),
            failed => format!("{} (by name below)", text::count(failed)),
        },
    ));
    facts
}

/// The command line as it can be pasted into a shell.
pub(super) fn command_line(arguments: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+[]".contains(c);
    let quoted = |argument: &String| match argument {
        text if !text.is_empty() && text.chars().all(plain) => text.clone(),
        text => format!("'{}'", text.replace('\'', r"'\''")),
    };
    let words: Vec<String> = arguments.iter().map(quoted).collect();
    format!("plimsoll {}", words.join(" "))
}

/// What was surveyed: its name where it tells it, its process where that is known.
fn server(document: &Document<Survey>) -> String {
    let Some(server) = &document.result.server else {
        return format!("the embedded Plimsoll engine {}", document.version);
    };
    let process = server.process.as_ref().map(|name| match server.pid {
        Some(pid) => format!("{name}, process {pid}"),
        None => name.clone(),
    });
    let says = server.says.as_ref().map(|says| format!("its replies say {says}"));
    let known: Vec<String> = process.into_iter().chain(says).collect();
    match known.as_slice() {
        [] => format!("{}; it does not say what it is", server.address),
        known => format!("{}: {}", server.address, known.join("; ")),
    }
}

fn compared(compared: Option<Compared>) -> &'static str {
    match compared {
        Some(Compared::EveryByte) => "an echo: every byte was compared with the one that was sent",
        Some(Compared::WholeReply) => "whole replies were compared with what was expected",
        Some(Compared::Beginning) => "only the beginning of replies was compared",
        Some(Compared::Status) => "HTTP replies had to have a status of success",
        Some(Compared::Nothing) => "replies were counted and not compared",
        None => "it is not known how they were compared",
    }
}

/// Whether clients and server took processor time from each other; `None` where nobody knows.
fn processors(document: &Document<Survey>) -> Option<String> {
    let of = match document.machine.cpus {
        1 => "one processor".to_owned(),
        count => format!("{count} processors"),
    };
    let shared = match &document.result.server {
        // It is a child of the process that measures.
        None => true,
        Some(server) => server.shares_processors?,
    };
    Some(if shared {
        format!(
            "client and server shared the {of} of this machine: what one used, the other lacked"
        )
    } else {
        "client and server ran on this machine, on different processors".to_owned()
    })
}

/// How often each point of the load curve was measured.
fn repeats(survey: &Survey) -> Option<String> {
    let runs: Vec<usize> =
        figures::points(&survey.load_curve).iter().map(|point: &Point| point.runs).collect();
    let (least, most) = (runs.iter().min()?, runs.iter().max()?);
    Some(match (*least, *most) {
        (1, 1) => "each load was measured once: how much it differs from run to run is not known"
            .to_owned(),
        (least, most) if least == most => {
            format!("each load was measured {most} times; bars show the lowest and the highest")
        }
        (least, most) => format!("each load was measured {least} to {most} times"),
    })
}

/// Errors of one name in one experiment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ErrorRow {
    pub(super) experiment: String,
    pub(super) name: String,
    pub(super) count: u64,
}

/// Every error of every experiment, by name.
pub(super) fn errors(survey: &Survey) -> Vec<ErrorRow> {
    let mut rows = Vec::new();
    let mut of = |experiment: &str, errors: &BTreeMap<String, u64>| {
        for (name, count) in errors.iter().filter(|(_, count)| **count > 0) {
            let (experiment, name) = (experiment.to_owned(), name.clone());
            rows.push(ErrorRow { experiment, name, count: *count });
        }
    };
    if let Some(held) = &survey.capacity {
        of("capacity", &held.errors);
    }
    for load in &survey.load_curve {
        let name = format!("load, {}", units::connections(load.asked));
        of(&name, &load.errors);
        of(&name, &BTreeMap::from([("lost messages".to_owned(), load.lost)]));
    }
    for variant in survey.churn.iter().flat_map(|churn| &churn.variants) {
        let name = format!("churn, pool {}, {} closes", variant.pool, variant.closes);
        of(&name, &variant.errors);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    fn fact(document: &Document<Survey>, name: &str) -> String {
        let facts = facts(document);
        facts.into_iter().find(|fact| fact.0 == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    #[test]
    fn a_command_line_can_be_pasted() {
        let line = |words: &[&str]| {
            command_line(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(line(&["load", "--rate", "50k"]), "plimsoll load --rate 50k");
        assert_eq!(line(&["--send", r"PING\r\n", ""]), r"plimsoll --send 'PING\r\n' ''");
        assert_eq!(line(&["it's"]), r"plimsoll 'it'\''s'");
    }

    #[test]
    fn what_made_the_figures_is_told() {
        let target = fixture::target();
        assert!(fact(&target, "command").starts_with("plimsoll survey --target 127.0.0.1:6379"));
        assert_eq!(fact(&target, "server"), "127.0.0.1:6379: redis-server, process 4711");
        assert!(fact(&target, "processors").contains("shared the 2 processors"));
        assert!(fact(&target, "replies").contains("only the beginning"));
        assert!(fact(&target, "repeats").contains("measured once"));
        assert!(fact(&target, "errors").starts_with("none"));
        let mut remote = target;
        let server = remote.result.server.as_mut().expect("a target");
        (server.shares_processors, server.process, server.pid) = (None, None, None);
        assert!(facts(&remote).iter().all(|fact| fact.0 != "processors"), "nobody knows");
        assert!(fact(&remote, "server").ends_with("it does not say what it is"));
        server_says(&mut remote, "nginx/1.22.1");
        assert_eq!(fact(&remote, "server"), "127.0.0.1:6379: its replies say nginx/1.22.1");
    }

    fn server_says(document: &mut Document<Survey>, says: &str) {
        document.result.server.as_mut().expect("a target").says = Some(says.to_owned());
    }

    #[test]
    fn errors_are_told_by_name_and_experiment() {
        let mut document = fixture::survey();
        assert_eq!(errors(&document.result), []);
        let load = &mut document.result.load_curve[3];
        load.errors.insert("reply_timeout".to_owned(), 12);
        load.errors.insert("peer_reset".to_owned(), 0);
        let rows = errors(&document.result);
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert!(rows[0].experiment.starts_with("load, 1") && rows[0].name == "reply_timeout");
        assert!(fact(&document, "errors").starts_with("12 "));
    }
}
