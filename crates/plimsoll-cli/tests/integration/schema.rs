//! Whether a document is what `docs/schema.json` says: the part of JSON Schema (draft 2020-12) that
//! the file uses. A keyword that is not known here is an error, so that none is passed over.

use std::sync::OnceLock;

use serde_json::{Map, Value};

/// Fails with the place and the reason when a document is not valid.
#[track_caller]
pub(crate) fn assert_valid(document: &Value) {
    if let Err(why) = check(document) {
        panic!("the document is not valid against docs/schema.json: {why}");
    }
}

/// The place at which a document is not valid, and why.
pub(crate) fn check(document: &Value) -> Result<(), String> {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    let schema = SCHEMA.get_or_init(|| {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/schema.json"));
        serde_json::from_str(text).expect("it is JSON")
    });
    // Of the alternatives the one of this command: its reason is of more use than "none of ten".
    let command = document["command"].as_str().unwrap_or_default();
    let alternatives = schema["oneOf"].as_array().expect("a list of alternatives");
    let own = alternatives
        .iter()
        .find(|one| one["allOf"][1]["properties"]["command"]["const"] == command)
        .ok_or_else(|| format!("no alternative has the command `{command}`"))?;
    Checker { schema }.value(own, document, "$")?;
    Checker { schema }.value(schema, document, "$")
}

struct Checker<'a> {
    schema: &'a Value,
}

impl Checker<'_> {
    fn value(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let rules = match schema {
            Value::Bool(true) => return Ok(()),
            Value::Bool(false) => return Err(format!("{at} must not be there")),
            schema => schema.as_object().ok_or_else(|| format!("{at}: no schema: {schema}"))?,
        };
        rules.iter().try_for_each(|(keyword, rule)| self.rule(keyword, rule, rules, value, at))
    }

    fn rule(
        &self,
        keyword: &str,
        rule: &Value,
        rules: &Map<String, Value>,
        value: &Value,
        at: &str,
    ) -> Result<(), String> {
        let wrong = || Err(format!("{at} is {value}, and {keyword} is {rule}"));
        let number = |rule: &Value| rule.as_f64().expect("a bound is a number");
        let length = |rule: &Value| rule.as_u64().expect("a length is a number") as usize;
        match keyword {
            "$ref" => {
                let pointer = rule.as_str().and_then(|rule| rule.strip_prefix('#'));
                let target = pointer.and_then(|pointer| self.schema.pointer(pointer));
                self.value(target.ok_or_else(|| format!("{rule} leads nowhere"))?, value, at)
            }
            "type" if !is_a(rule, value) => wrong(),
            "const" if rule != value => wrong(),
            "enum" if !list(rule).contains(value) => wrong(),
            "minimum" if value.as_f64().is_some_and(|value| value < number(rule)) => wrong(),
            "maximum" if value.as_f64().is_some_and(|value| value > number(rule)) => wrong(),
            "minItems" if value.as_array().is_some_and(|all| all.len() < length(rule)) => wrong(),
            "maxItems" if value.as_array().is_some_and(|all| all.len() > length(rule)) => wrong(),
            // What a guard above has passed, and what says nothing of validity.
            "type" | "const" | "enum" | "minimum" | "maximum" | "minItems" | "maxItems"
            | "$schema" | "$defs" | "title" | "description" | "format" | "default" => Ok(()),
            "allOf" => list(rule).iter().try_for_each(|one| self.value(one, value, at)),
            "anyOf" | "oneOf" => {
                let tried: Vec<_> =
                    list(rule).iter().map(|one| self.value(one, value, at)).collect();
                match tried.iter().filter(|one| one.is_ok()).count() {
                    1 => Ok(()),
                    0 => {
                        let why: Vec<String> = tried.into_iter().filter_map(Result::err).collect();
                        Err(why.join("; or "))
                    }
                    _ if keyword == "anyOf" => Ok(()),
                    count => Err(format!("{at} fits {count} alternatives, and one is meant")),
                }
            }
            "required" => list(rule).iter().try_for_each(|name| {
                let name = name.as_str().expect("a name is text");
                match value.as_object() {
                    Some(fields) if !fields.contains_key(name) => {
                        Err(format!("{at} has no {name}"))
                    }
                    _ => Ok(()),
                }
            }),
            "properties" => fields(value).try_for_each(|(name, field)| match rule.get(name) {
                Some(schema) => self.value(schema, field, &format!("{at}.{name}")),
                None => Ok(()),
            }),
            "additionalProperties" => {
                let known = rules.get("properties");
                let others = fields(value)
                    .filter(|(name, _)| known.is_none_or(|known| known.get(name).is_none()));
                others
                    .into_iter()
                    .try_for_each(|(name, field)| self.value(rule, field, &format!("{at}.{name}")))
            }
            "prefixItems" => list(rule).iter().zip(elements(value)).enumerate().try_for_each(
                |(n, (one, element))| self.value(one, element, &format!("{at}[{n}]")),
            ),
            "items" => {
                let first = rules.get("prefixItems").map_or(0, |prefix| list(prefix).len());
                elements(value)
                    .iter()
                    .enumerate()
                    .skip(first)
                    .try_for_each(|(n, element)| self.value(rule, element, &format!("{at}[{n}]")))
            }
            other => Err(format!("the schema uses `{other}`, which these tests do not know")),
        }
    }
}

fn is_a(kind: &Value, value: &Value) -> bool {
    match kind {
        Value::Array(kinds) => kinds.iter().any(|kind| is_a(kind, value)),
        kind => match kind.as_str().expect("a type is text") {
            "null" => value.is_null(),
            "boolean" => value.is_boolean(),
            "string" => value.is_string(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            "number" => value.is_number(),
            "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
            other => panic!("a type called {other}"),
        },
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list in the schema")
}

fn elements(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn fields(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, field)| (name.as_str(), field))
}
