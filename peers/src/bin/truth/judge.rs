//! What is right to say: checks of one run's document, exit code and messages. Pure.

use serde_json::Value;

use crate::case::named;

/// What one run of `plimsoll` ended with.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Its exit code; `None` when it was killed.
    pub(crate) exit: Option<i32>,
    /// The JSON object that it printed, if it did.
    pub(crate) document: Option<Value>,
    /// What it printed on standard error.
    pub(crate) messages: String,
    /// How long it ran.
    pub(crate) seconds: f64,
}

/// Something that must hold. Paths are JSON pointers below `result`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Check {
    /// The exit code is one of these.
    Exit(&'static [i32]),
    /// `stopped_by` is one of these, with this `stopped_side`; `None`: any or no side.
    Stopped(&'static [(&'static str, Option<&'static str>)]),
    /// The evidence (without a document: the messages) holds one of these words, whatever
    /// their case.
    Says(&'static [&'static str]),
    /// The evidence gives a time between these, in seconds.
    SaysSeconds(f64, f64),
    /// The document or the messages hold this text.
    Quotes(&'static str),
    /// Is there, and null.
    Null(&'static str),
    /// A list of which each element has this field, and has it null.
    NullInEach(&'static str, &'static str),
    /// A number between these, both allowed.
    Between(&'static str, f64, f64),
    /// A number that is not smaller than this.
    AtLeast(&'static str, f64),
    /// The run took no longer than this, in seconds: nothing was waited for one by one.
    Within(f64),
    /// The document is marked as partial.
    Partial,
    /// `due` = `answered` + `late` + `lost`.
    AccountAddsUp,
    /// `due` = `rate` × `duration`, give or take what falls due in 20 ms and one message.
    DueByRate,
    /// There is no document: nothing could be measured.
    NoDocument,
}

impl Outcome {
    fn result(&self) -> Option<&Value> {
        self.document.as_ref()?.get("result")
    }

    fn at(&self, path: &str) -> Option<&Value> {
        self.result()?.pointer(path)
    }

    /// Where `stopped_by` stands: in the result, or in the first run of it (`backlog`).
    fn stop(&self) -> Option<&Value> {
        let result = self.result()?;
        if result.get("stopped_by").is_some() { Some(result) } else { result.pointer("/runs/0") }
    }

    fn stopped(&self, field: &str) -> Option<&str> {
        self.stop()?.get(field)?.as_str()
    }

    /// The evidence of the verdict.
    pub(crate) fn evidence(&self) -> Option<&str> {
        self.stopped("evidence")
    }

    /// The evidence, or, where there is no document, the messages.
    fn words(&self) -> &str {
        match &self.document {
            Some(_) => self.evidence().unwrap_or_default(),
            None => &self.messages,
        }
    }

    /// The verdict in words: `cpu / server, exit 0`.
    pub(crate) fn verdict(&self) -> String {
        let exit = match self.exit {
            Some(code) => format!("exit {code}"),
            None => "killed".to_owned(),
        };
        let Some(by) = self.stopped("stopped_by") else {
            let what = if self.document.is_some() { "no stopped_by" } else { "no document" };
            return format!("{what}, {exit}");
        };
        format!("{}, {exit}", named(by, self.stopped("stopped_side")))
    }

    /// What is wrong, a sentence each; empty where it is right by one of the lists. Where it
    /// is right by none, the complaints are those of the list that it comes closest to.
    pub(crate) fn complaints(&self, expected: &[&[Check]]) -> Vec<String> {
        let mut complaints = expected
            .iter()
            .map(|checks| checks.iter().filter_map(|check| self.complaint(check)).collect())
            .min_by_key(Vec::len)
            .unwrap_or_default();
        self.claims_longer_than_it_ran(&mut complaints);
        complaints
    }

    fn complaint(&self, check: &Check) -> Option<String> {
        match check {
            Check::Exit(codes) => {
                let is_right = self.exit.is_some_and(|code| codes.contains(&code));
                (!is_right)
                    .then(|| format!("the exit code is {:?}, not one of {codes:?}", self.exit))
            }
            Check::Stopped(stops) => self.wrong_stop(stops),
            Check::Says(words) => {
                let said = self.words().to_lowercase();
                let is_said = words.iter().any(|word| said.contains(&word.to_lowercase()));
                (!is_said).then(|| format!("it says none of: {}", words.join(", ")))
            }
            Check::SaysSeconds(least, most) => {
                let is_said =
                    times(self.words()).iter().any(|(_, time)| (*least..=*most).contains(time));
                (!is_said).then(|| format!("it names no time of {least} to {most} s"))
            }
            Check::Quotes(text) => {
                // As a JSON string has it: what is quoted may be escaped once.
                let document = self.document.as_ref().map(Value::to_string).unwrap_or_default();
                let is_quoted = document.contains(text) || self.messages.contains(text);
                (!is_quoted).then(|| format!("`{text}` is not quoted"))
            }
            Check::Null(path) => match self.at(path) {
                Some(Value::Null) => None,
                Some(value) => Some(format!("{path} is {value}, not null")),
                None => Some(format!("{path} is missing")),
            },
            Check::NullInEach(path, field) => self.not_null_in_each(path, field),
            Check::Between(path, least, most) => match self.at(path).and_then(Value::as_f64) {
                Some(value) if (*least..=*most).contains(&value) => None,
                Some(value) => Some(format!("{path} is {value}, not {least} to {most}")),
                None => Some(format!("{path} is missing or no number")),
            },
            Check::AtLeast(path, least) => match self.at(path).and_then(Value::as_f64) {
                Some(value) if value >= *least => None,
                Some(value) => Some(format!("{path} is {value}, less than {least}")),
                None => Some(format!("{path} is missing or no number")),
            },
            Check::Within(seconds) => (self.seconds > *seconds)
                .then(|| format!("it took {:.1} s, more than {seconds} s", self.seconds)),
            Check::Partial => {
                let partial = self.document.as_ref().and_then(|document| document.get("partial"));
                (partial != Some(&Value::Bool(true))).then(|| "it is not marked partial".to_owned())
            }
            Check::AccountAddsUp => self.wrong_account(),
            Check::DueByRate => self.wrong_due(),
            Check::NoDocument => self.document.as_ref().map(|_| "it printed a document".to_owned()),
        }
    }

    fn wrong_stop(&self, stops: &[(&str, Option<&str>)]) -> Option<String> {
        let Some(by) = self.stopped("stopped_by") else {
            return Some("it gives no stopped_by".to_owned());
        };
        let side = self.stopped("stopped_side");
        let is_right =
            stops.iter().any(|(right, at)| *right == by && at.is_none_or(|at| side == Some(at)));
        (!is_right).then(|| format!("stopped by {}", named(by, side)))
    }

    fn not_null_in_each(&self, path: &str, field: &str) -> Option<String> {
        let Some(list) = self.at(path).and_then(Value::as_array) else {
            return Some(format!("{path} is no list"));
        };
        let wrong = list.iter().filter(|one| one.get(field) != Some(&Value::Null)).count();
        match (list.len(), wrong) {
            (0, _) => Some(format!("{path} is empty")),
            (_, 0) => None,
            (all, wrong) => Some(format!("{field} is not null in {wrong} of {all} of {path}")),
        }
    }

    fn wrong_account(&self) -> Option<String> {
        let count = |name: &str| self.at(name).and_then(Value::as_u64);
        let (due, answered) = (count("/due"), count("/answered"));
        let (late, lost) = (count("/late"), count("/lost"));
        let (Some(due), Some(answered), Some(late), Some(lost)) = (due, answered, late, lost)
        else {
            return Some(format!(
                "the account is not whole: due {due:?}, answered {answered:?}, late {late:?}, \
                 lost {lost:?}"
            ));
        };
        (due != answered + late + lost)
            .then(|| format!("due {due} is not answered {answered} + late {late} + lost {lost}"))
    }

    fn wrong_due(&self) -> Option<String> {
        let number = |path: &str| self.at(path).and_then(Value::as_f64);
        let (Some(due), Some(rate), Some(duration)) =
            (number("/due"), number("/rate"), number("/duration"))
        else {
            return Some("due, rate or duration is missing".to_owned());
        };
        ((due - rate * duration).abs() > rate * 0.02 + 1.0)
            .then(|| format!("due {due} is not rate {rate} × duration {duration}"))
    }

    /// "For 5.0 s" in a run of 0.3 s was not measured.
    fn claims_longer_than_it_ran(&self, complaints: &mut Vec<String>) {
        let Some(evidence) = self.evidence() else { return };
        for (before, time) in times(evidence) {
            if before.ends_with("for ") && time > self.seconds * 1.05 + 0.1 {
                complaints.push(format!(
                    "it says that something went on for {time} s; the whole run took {:.2} s",
                    self.seconds
                ));
            }
        }
    }
}

/// The times in a text: what stands before each, and its length in seconds.
fn times(text: &str) -> Vec<(&str, f64)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(start) = text[from..].find(|letter: char| letter.is_ascii_digit()) {
        let start = from + start;
        let rest = &text[start..];
        let end = rest
            .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
            .unwrap_or(rest.len());
        let unit = rest[end..].trim_start_matches([' ', '\u{a0}']);
        let unit_end = unit.find(|letter: char| !letter.is_alphabetic()).unwrap_or(unit.len());
        let seconds_per_unit = match &unit[..unit_end] {
            "s" | "second" | "seconds" => Some(1.0),
            "ms" => Some(1e-3),
            "µs" | "us" => Some(1e-6),
            "min" => Some(60.0),
            _ => None,
        };
        let number = rest[..end].trim_end_matches('.').parse::<f64>();
        if let (Some(factor), Ok(number)) = (seconds_per_unit, number) {
            found.push((&text[..start], number * factor));
        }
        from = start + end;
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn outcome(result: &Value) -> Outcome {
        Outcome {
            exit: Some(0),
            document: Some(json!({ "result": result })),
            seconds: 0.3,
            ..Outcome::default()
        }
    }

    #[test]
    fn a_right_verdict_has_no_complaints() {
        let outcome = outcome(&json!({
            "stopped_by": "idle_timeout", "stopped_side": "server",
            "evidence": "it closes whoever is silent for 200 ms", "alive": 12, "queued": null,
            "due": 6, "answered": 3, "late": 2, "lost": 1, "rate": 3.0, "duration": 2.0,
            "samples": [{ "queued": null }],
        }));
        let complaints = outcome.complaints(&[
            &[Check::Stopped(&[("limit", None)])],
            &[
                Check::Exit(&[0]),
                Check::Stopped(&[("idle_timeout", Some("server"))]),
                Check::Says(&["CLOSES"]),
                Check::SaysSeconds(0.1, 0.3),
                Check::Quotes("silent"),
                Check::Null("/queued"),
                Check::NullInEach("/samples", "queued"),
                Check::Between("/alive", 12.0, 12.0),
                Check::AtLeast("/alive", 12.0),
                Check::Within(0.3),
                Check::AccountAddsUp,
                Check::DueByRate,
            ],
        ]);
        assert_eq!(complaints, Vec::<String>::new());
    }

    #[test]
    fn each_check_can_fail() {
        let outcome = outcome(&json!({
            "stopped_by": "limit", "stopped_side": "client", "evidence": "",
            "alive": 12, "due": 6, "answered": 3, "late": 2, "lost": 0, "rate": 3.0, "duration": 3.0,
            "samples": [{ "queued": 3 }],
        }));
        for check in [
            Check::Exit(&[4]),
            Check::Stopped(&[("limit", Some("server")), ("cpu", None)]),
            Check::Says(&["word"]),
            Check::SaysSeconds(0.1, 0.3),
            Check::Quotes("word"),
            Check::Null("/alive"),
            Check::Null("/absent"),
            Check::NullInEach("/samples", "queued"),
            Check::NullInEach("/absent", "queued"),
            Check::Between("/alive", 13.0, 20.0),
            Check::Between("/absent", 13.0, 20.0),
            Check::AtLeast("/alive", 13.0),
            Check::AtLeast("/absent", 13.0),
            Check::Within(0.2),
            Check::Partial,
            Check::AccountAddsUp,
            Check::DueByRate,
            Check::NoDocument,
        ] {
            assert_eq!(outcome.complaints(&[&[check]]).len(), 1, "{check:?}");
        }
    }

    #[test]
    fn a_time_longer_than_the_run_is_a_complaint() {
        let outcome = outcome(&json!({
            "stopped_by": "timeout", "stopped_side": "server",
            "evidence": "no connect was answered for 5.0 s (0 SYNs sent again)",
        }));
        let complaints = outcome.complaints(&[&[Check::Stopped(&[("timeout", None)])]]);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
    }

    #[test]
    fn times_in_a_text() {
        let text = "closed 200 ms after, not 1.5 s, of 20 SYNs in 3.";
        let found: Vec<f64> = times(text).iter().map(|(_, time)| *time).collect();
        assert_eq!(found, [0.2, 1.5]);
    }
}
