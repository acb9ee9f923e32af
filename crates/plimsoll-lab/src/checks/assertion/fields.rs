//! Whether an assertion's path can lead anywhere, told from the types of the results and not from a
//! result: a wrong field is noticed before the experiment runs.
//!
//! The types are read as their JSON Schema (see [`schema`](crate::results::schema)). The rules are
//! those by which [`Assertion::evaluate`] walks a document: a field of an object or of a map, an
//! element of an array by position, or those that have given fields.

use serde_json::{Map, Value};

use super::{Assertion, Operator, Step, Wanted};
use crate::results::schema;
use crate::{Error, Result};

impl Assertion {
    /// Checks the path against the types of what `command` returns; a `compare` may be asked about
    /// any command, since it judges the second of its documents. Some milliseconds.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the first part that does not exist, and the parts that do.
    pub fn check(&self, command: &str) -> Result<()> {
        let types = Types { schema: schema::schema() };
        types.check(self, command).map_err(|why| {
            Error::usage(
                format!("the assertion `{}` can never hold: {why}", self.text),
                "see docs/schema.json for every field of every result",
            )
        })
    }
}

/// The schema of all documents.
struct Types {
    schema: Value,
}

impl Types {
    fn check(&self, assertion: &Assertion, command: &str) -> Result<(), String> {
        let name = assertion.command();
        let mut at = self.root(name, command)?;
        let mut walked = name.to_owned();
        for step in &assertion.steps[1..] {
            at = self.take(&at, step, &walked)?;
            walked.push_str(&step.to_string());
        }
        Self::check_end(&at, assertion, &walked)
    }

    /// Where the path begins: at the command's own result, or at an experiment of a survey's.
    fn root(&self, name: &str, command: &str) -> Result<Vec<&Value>, String> {
        if (name == command || command == "compare")
            && let Some(result) = self.result(name)
        {
            return Ok(self.resolve(result));
        }
        let survey = self.resolve(self.result("survey").ok_or("there are no types")?);
        if matches!(command, "survey" | "compare") {
            if let Ok(found) = self.take(&survey, &Step::Field(name.to_owned()), "survey") {
                return Ok(found);
            }
            return Err(format!(
                "a survey has no `{name}`; it has {}",
                list(fields(&survey).into_iter().chain(["survey"]))
            ));
        }
        Err(format!("it is about `{name}`, and this is `{command}`"))
    }

    /// The schema of a command's result.
    fn result(&self, command: &str) -> Option<&Value> {
        let alternatives = self.schema.get("oneOf")?.as_array()?;
        let document = alternatives.iter().find_map(|one| {
            let parts = one.get("allOf")?;
            let named = parts.get(1)?.pointer("/properties/command/const")?;
            (named == command).then(|| parts.get(0)).flatten()
        })?;
        self.resolve(document).first()?.pointer("/properties/result")
    }

    /// The schemas that a value may follow, references followed and `null` left out.
    fn resolve<'a>(&'a self, schema: &'a Value) -> Vec<&'a Value> {
        if let Some(Value::String(reference)) = schema.get("$ref") {
            let target = reference.strip_prefix('#').and_then(|at| self.schema.pointer(at));
            return target.map_or_else(Vec::new, |target| self.resolve(target));
        }
        for choice in ["anyOf", "oneOf", "allOf"] {
            if let Some(Value::Array(parts)) = schema.get(choice) {
                return parts.iter().flat_map(|part| self.resolve(part)).collect();
            }
        }
        if schema.get("type").is_some_and(|kind| kind == "null") { vec![] } else { vec![schema] }
    }

    /// One step further; an error in words where no value of these types has such a part.
    fn take<'a>(
        &'a self,
        at: &[&'a Value],
        step: &Step,
        walked: &str,
    ) -> Result<Vec<&'a Value>, String> {
        let next: Vec<&Value> = match step {
            Step::Field(name) => at.iter().filter_map(|one| field(one, name)).collect(),
            Step::Index(index) => at.iter().filter_map(|one| element(one, *index)).collect(),
            Step::Select(pairs) => at.iter().flat_map(|one| self.selected(one, pairs)).collect(),
        };
        let next: Vec<&Value> = next.into_iter().flat_map(|one| self.resolve(one)).collect();
        if next.is_empty() { Err(self.nothing(at, step, walked)) } else { Ok(next) }
    }

    /// What a selector can choose: the elements of an array, an element that was selected already,
    /// or the elements of those of an object's arrays that have the fields.
    fn selected<'a>(&'a self, one: &'a Value, pairs: &[(String, String)]) -> Vec<&'a Value> {
        let has = |schema: &&Value| pairs.iter().all(|(key, _)| field(schema, key).is_some());
        if let Some(items) = one.get("items") {
            return self.resolve(items).into_iter().filter(has).collect();
        }
        if has(&one) {
            return vec![one];
        }
        let arrays = self.arrays(one).into_iter();
        arrays.flat_map(|(_, items)| items).filter(has).collect()
    }

    /// An object's arrays by name, with the types of their elements.
    fn arrays<'a>(&'a self, one: &'a Value) -> Vec<(&'a str, Vec<&'a Value>)> {
        let Some(Value::Object(properties)) = one.get("properties") else { return Vec::new() };
        let array = |(name, schema): (&'a String, &'a Value)| {
            let items = self.resolve(schema).into_iter().find_map(|one| one.get("items"))?;
            Some((name.as_str(), self.resolve(items)))
        };
        properties.iter().filter_map(array).collect()
    }

    /// Why a step leads nowhere, and which steps would not.
    fn nothing(&self, at: &[&Value], step: &Step, walked: &str) -> String {
        match step {
            Step::Field(name) => match (fields(at), elements(at)) {
                (names, _) if !names.is_empty() => {
                    format!("`{walked}` has no field `{name}`; it has {}", list(names))
                }
                (_, true) => format!(
                    "`{walked}` is a list: choose from it with {walked}[0] or {walked}[FIELD=VALUE]"
                ),
                _ => format!("`{walked}` has no fields, so no `{name}`"),
            },
            Step::Index(index) if elements(at) => {
                format!("`{walked}` has no element {index}")
            }
            Step::Index(_) => format!("`{walked}` is not a list"),
            Step::Select(pairs) => {
                let wrong = pairs.iter().map(|(key, _)| key.as_str());
                let rows = at.iter().flat_map(|one| match one.get("items") {
                    Some(items) => vec![("", self.resolve(items))],
                    None => self.arrays(one),
                });
                let lists: Vec<String> = rows
                    .filter(|(_, items)| !fields(items).is_empty())
                    .map(|(name, items)| {
                        let of =
                            if name.is_empty() { "they".to_owned() } else { format!("`{name}`") };
                        format!("{of} have {}", list(fields(&items)))
                    })
                    .collect();
                let lists =
                    if lists.is_empty() { "it holds no rows".into() } else { lists.join("; ") };
                format!("no rows of `{walked}` have {}: {lists}", list(wrong))
            }
        }
    }

    /// At its end a path must lead to one value, and to one that can be what is wanted.
    fn check_end(at: &[&Value], assertion: &Assertion, walked: &str) -> Result<(), String> {
        let names = fields(at);
        if !names.is_empty() {
            return Err(format!("`{walked}` is not one value; it has {}", list(names)));
        }
        if elements(at) {
            return Err(format!("`{walked}` is a list, not one value"));
        }
        let words: Vec<&str> = at.iter().filter_map(|one| one.get("const")?.as_str()).collect();
        match &assertion.wanted {
            Wanted::Text(text)
                if words.len() == at.len()
                    && !words.contains(&text.as_str())
                    && assertion.operator == Operator::Equal =>
            {
                Err(format!("`{walked}` is never `{text}`; it is one of {}", list(words)))
            }
            _ => Ok(()),
        }
    }
}

/// The schema of a field: of an object, or of any name of a map.
fn field<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    match schema.get("properties") {
        Some(properties) => properties.get(name),
        None => schema.get("additionalProperties").filter(|any| any.is_object()),
    }
}

/// The schema of an element at a position.
fn element(schema: &Value, index: usize) -> Option<&Value> {
    match schema.get("prefixItems") {
        Some(items) => items.get(index),
        None => schema.get("items"),
    }
}

/// Whether one of the types is a list.
fn elements(at: &[&Value]) -> bool {
    at.iter().any(|one| one.get("items").is_some() || one.get("prefixItems").is_some())
}

/// The names of the fields that objects of these types have.
fn fields<'a>(at: &[&'a Value]) -> Vec<&'a str> {
    let properties = at.iter().filter_map(|one| one.get("properties")?.as_object());
    properties.flat_map(Map::keys).map(String::as_str).collect()
}

fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, command: &str) -> Result<()> {
        text.parse::<Assertion>().expect("it is an assertion").check(command)
    }

    #[test]
    fn paths_that_can_lead_somewhere_pass() {
        for (text, command) in [
            ("backlog.queued_max >= 4097", "backlog"),
            ("backlog[requested=4096].queued>=4096", "backlog"),
            ("backlog.runs[requested=128].queued==129", "backlog"),
            ("backlog.runs[1].queued==4097", "backlog"),
            ("backlog[queued=129][requested=128].stopped_by==queue_full", "backlog"),
            ("backlog[requested=16].errors.econnrefused<=1", "backlog"),
            ("capacity.alive>=15000", "survey"),
            ("survey.load_line.connections==7", "survey"),
            ("load_line.connections==7", "survey"),
            ("load_curve[established=100].latency_us.p99<=2ms", "survey"),
            ("load.latency_us.p99<=2ms", "load"),
            ("load.size[0]>=64", "load"),
            ("churn[pool=on,closes=client-reset].cycles>=1", "churn"),
            ("doctor.checks[name=CPUs].ok==true", "doctor"),
            ("compare[path=churn[pool=on,closes=client].cycles].ratio>=0.95", "compare"),
            ("load.messages_per_second>=200000", "compare"),
            ("capacity.stopped_by!=ports", "capacity"),
            ("capacity.evidence!=nothing", "capacity"),
        ] {
            check(text, command).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }

    #[test]
    fn the_wrong_part_is_named_with_those_that_exist() {
        for (text, command, parts) in [
            ("capacity.alife>=1", "capacity", &["`capacity` has no field `alife`", "`alive`"][..]),
            ("capacity.samples.queued>=1", "capacity", &["is a list", "capacity.samples[0]"]),
            ("capacity.alive.count>=1", "capacity", &["`capacity.alive` has no fields"]),
            ("backlog.runs>=0", "backlog", &["is a list, not one value"]),
            ("backlog[requested=1]>=0", "backlog", &["is not one value", "`queued`"]),
            (
                "backlog[asked=4096].queued>=1",
                "backlog",
                &["have `asked`", "`runs` have `requested`"],
            ),
            ("backlog.runs[asked=4096].queued>=1", "backlog", &["have `asked`", "`requested`"]),
            ("backlog.queued_max[0]>=1", "backlog", &["is not a list"]),
            ("load.size[2]>=1", "load", &["no element 2"]),
            ("load.latency_us.p95<=2ms", "survey", &["no field `p95`", "`p90`"]),
            ("loud.messages>=1", "survey", &["a survey has no `loud`", "`load`"]),
            ("survey.headlines==x", "survey", &["no field `headlines`", "`load_line`"]),
            ("load.messages>=1", "capacity", &["this is `capacity`"]),
            ("capacity.stopped_by==limt", "capacity", &["never `limt`", "`limit`"]),
        ] {
            let error = check(text, command).expect_err(text);
            assert_eq!(error.exit_code(), 2, "{text}");
            for part in parts {
                assert!(error.to_string().contains(part), "{text}: no `{part}` in: {error}");
            }
        }
    }

    /// What the schema allows and what a document of that type holds must not come apart.
    #[test]
    fn every_field_of_a_survey_passes() {
        let document = serde_json::to_value(crate::report::fixture::survey()).expect("it is JSON");
        let mut paths = Vec::new();
        walk(&document["result"], "survey", &mut paths);
        assert!(paths.len() > 300, "{}", paths.len());
        let types = Types { schema: schema::schema() };
        for path in paths {
            let assertion: Assertion = format!("{path}!=x").parse().expect("it is a path");
            types.check(&assertion, "survey").unwrap_or_else(|why| panic!("{path}: {why}"));
        }
    }

    /// The paths of all values below one, as an assertion writes them.
    fn walk(value: &Value, path: &str, paths: &mut Vec<String>) {
        match value {
            // A map's keys may hold what a path gives a meaning to.
            Value::Object(fields) => fields
                .iter()
                .filter(|(name, _)| !name.contains(['.', ' ', '-']))
                .for_each(|(name, value)| walk(value, &format!("{path}.{name}"), paths)),
            Value::Array(elements) => elements
                .iter()
                .enumerate()
                .for_each(|(index, value)| walk(value, &format!("{path}[{index}]"), paths)),
            Value::Null => {}
            _ => paths.push(path.to_owned()),
        }
    }
}
