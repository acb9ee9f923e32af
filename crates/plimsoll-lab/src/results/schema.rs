//! The JSON Schema of every document, made from the types of [`crate::results`].
//!
//! It is kept in the repository as `docs/schema.json`, so that other tools can
//! check what they read; a test keeps it current.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};

use crate::checks::compare::Comparison;
use crate::results::{
    Accept, Backlog, Capacity, Churn, Doctor, Document, Explain, Load, Plan, SCHEMA, Survey,
};

/// The schema (draft 2020-12) of whatever a command prints with `--json`: one alternative per
/// command, told apart by the field `command`.
pub fn schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let alternatives = [
        alternative::<Survey>(&mut generator, "survey"),
        alternative::<Backlog>(&mut generator, "backlog"),
        alternative::<Accept>(&mut generator, "accept"),
        alternative::<Capacity>(&mut generator, "capacity"),
        alternative::<Load>(&mut generator, "load"),
        alternative::<Churn>(&mut generator, "churn"),
        alternative::<Plan>(&mut generator, "plan"),
        alternative::<Doctor>(&mut generator, "doctor"),
        alternative::<Explain>(&mut generator, "explain"),
        alternative::<Comparison>(&mut generator, "compare"),
    ];
    let mut definitions = generator.take_definitions(true);
    definitions.values_mut().for_each(close);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": SCHEMA,
        "description": "One document of the plimsoll command. Sizes are in bytes and times in \
                        seconds unless the name says otherwise; what could not be known is null.",
        "oneOf": alternatives,
        "$defs": definitions,
    })
}

/// Forbids fields that a type does not have, in a schema and all within it: a document with a
/// misspelt field is no document of this version. (A reader who accepts later versions, in which
/// fields are added, leaves `additionalProperties` out.)
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(close);
            // An object called `properties` is a table of fields where it holds schemas.
            if fields.get("properties").is_some_and(Value::is_object)
                && fields.get("type").is_some_and(|kind| kind == "object")
            {
                fields.entry("additionalProperties").or_insert(Value::Bool(false));
            }
        }
        Value::Array(parts) => parts.iter_mut().for_each(close),
        _ => {}
    }
}

/// The schema as it is kept in the repository: indented, with a newline at its end.
pub fn schema_text() -> String {
    let mut text = format!("{:#}", schema());
    text.push('\n');
    text
}

/// A document whose `command` is `command` and whose result is a `T`.
fn alternative<T: JsonSchema>(generator: &mut SchemaGenerator, command: &str) -> Schema {
    let document = generator.subschema_for::<Document<T>>();
    schemars::json_schema!({
        "allOf": [document, { "properties": { "command": { "const": command } } }]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With `PLIMSOLL_BLESS=1` in the environment it writes the file instead.
    #[test]
    fn committed_schema_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/schema.json");
        if std::env::var_os("PLIMSOLL_BLESS").is_some() {
            std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs")).unwrap();
            std::fs::write(path, schema_text()).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            kept == schema_text(),
            "docs/schema.json is not what the types say; write it anew with \
             `PLIMSOLL_BLESS=1 cargo test -p plimsoll-lab committed_schema`"
        );
    }

    #[test]
    fn each_command_has_an_alternative() {
        let schema = schema();
        let commands: Vec<_> = schema["oneOf"]
            .as_array()
            .expect("a list of alternatives")
            .iter()
            .map(|one| one["allOf"][1]["properties"]["command"]["const"].as_str().unwrap())
            .collect();
        assert!(commands.contains(&"survey") && commands.contains(&"explain"), "{commands:?}");
    }
}
