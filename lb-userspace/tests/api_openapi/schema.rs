//! As much of JSON Schema as the API's description uses. A word that is not known here ends the test.

use serde_json::{Map, Value};

/// What is wrong with `value`; nothing when it is what `schema` says.
pub fn faults(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(document, schema, value, "answer", &mut found);
    if let (Some(known), Some(object)) = (properties(document, schema, value), value.as_object()) {
        unknown(&known, object, "answer", &mut found);
    }
    found
}

fn resolve<'d>(document: &'d Value, schema: &'d Value) -> &'d Value {
    match schema["$ref"].as_str() {
        Some(reference) => {
            let pointer = reference.strip_prefix('#').expect("a local reference");
            resolve(document, document.pointer(pointer).unwrap_or_else(|| panic!("no {reference}")))
        }
        None => schema,
    }
}

fn check(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let schema = resolve(document, schema);
    for (word, rule) in schema.as_object().expect("a schema is an object") {
        match word.as_str() {
            "type" => {
                let types: Vec<&str> = match rule {
                    Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
                    one => vec![one.as_str().expect("a type is a word")],
                };
                if !types.iter().any(|name| is(name, value)) {
                    found.push(format!("{at} is {value}, not {}", types.join(" or ")));
                }
            }
            "enum" => {
                if !rule.as_array().expect("a list").contains(value) {
                    found.push(format!("{at} is {value}, not one of {rule}"));
                }
            }
            "minimum" => {
                if value.as_f64().is_some_and(|number| number < rule.as_f64().expect("a number")) {
                    found.push(format!("{at} is {value}, less than {rule}"));
                }
            }
            "required" => {
                for name in rule.as_array().expect("a list").iter().filter_map(Value::as_str) {
                    if value.is_object() && value.get(name).is_none() {
                        found.push(format!("{at} has no {name}"));
                    }
                }
            }
            "properties" => {
                for (name, inner) in rule.as_object().expect("an object") {
                    if let Some(field) = value.get(name) {
                        deep(document, inner, field, &format!("{at}.{name}"), found);
                    }
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    deep(document, rule, item, &format!("{at}[{index}]"), found);
                }
            }
            "additionalProperties" => {
                for (name, field) in value.as_object().into_iter().flatten() {
                    deep(document, rule, field, &format!("{at}.{name}"), found);
                }
            }
            "allOf" => {
                for part in rule.as_array().expect("a list") {
                    check(document, part, value, at, found);
                }
            }
            "oneOf" => {
                let fits = |part: &&Value| {
                    let mut faults = Vec::new();
                    check(document, part, value, at, &mut faults);
                    faults.is_empty()
                };
                let fitting = rule.as_array().expect("a list").iter().filter(fits).count();
                if fitting != 1 {
                    found.push(format!("{at} is {value}, which is {fitting} of the kinds it may be"));
                }
            }
            "description" | "format" | "propertyNames" => {}
            other => panic!("no test for the word {other} of a schema"),
        }
    }
}

/// Inside, also what the description does not know is a fault.
fn deep(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    check(document, schema, value, at, found);
    if let (Some(known), Some(object)) = (properties(document, schema, value), value.as_object()) {
        unknown(&known, object, at, found);
    }
}

fn unknown(known: &[String], object: &Map<String, Value>, at: &str, found: &mut Vec<String>) {
    for name in object.keys().filter(|name| !known.contains(name)) {
        found.push(format!("{at}.{name} is not described"));
    }
}

/// The fields that an object may have; `None` where any will do.
fn properties(document: &Value, schema: &Value, value: &Value) -> Option<Vec<String>> {
    let schema = resolve(document, schema);
    if schema.get("additionalProperties").is_some() || schema.as_object()?.is_empty() {
        return None;
    }
    let mut names: Vec<String> =
        schema["properties"].as_object().into_iter().flat_map(|fields| fields.keys().cloned()).collect();
    for part in schema["allOf"].as_array().into_iter().flatten() {
        names.extend(properties(document, part, value)?);
    }
    for part in schema["oneOf"].as_array().into_iter().flatten() {
        let mut faults = Vec::new();
        check(document, part, value, "", &mut faults);
        if faults.is_empty() {
            names.extend(properties(document, part, value)?);
        }
    }
    Some(names)
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("no type {other}"),
    }
}

#[test]
fn the_judge_finds_faults() {
    use serde_json::json;

    let document = json!({"components": {"schemas": {
        "Kind": {"oneOf": [
            {"type": "object", "required": ["by"], "properties": {"by": {"type": "string", "enum": ["a"]}}},
            {"type": "object", "required": ["by", "n"],
                "properties": {"by": {"type": "string", "enum": ["b"]}, "n": {"type": "integer", "minimum": 0}}},
        ]},
        "Line": {"allOf": [{"$ref": "#/components/schemas/Kind"},
            {"type": "object", "required": ["time"], "properties": {"time": {"type": ["number", "null"]}}}]},
    }}});
    let schema = json!({"$ref": "#/components/schemas/Line"});
    let faults = |value: Value| faults(&document, &schema, &value);
    assert_eq!(faults(json!({"by": "a", "time": 1.5})), [""; 0]);
    assert_eq!(faults(json!({"by": "b", "n": 1, "time": null})), [""; 0]);
    for (value, says) in [
        (json!({"by": "a"}), "has no time"),
        (json!({"by": "c", "time": 1}), "0 of the kinds"),
        (json!({"by": "b", "n": -1, "time": 1}), "0 of the kinds"),
        (json!({"by": "a", "time": "now"}), "not number or null"),
        (json!({"by": "a", "time": 1, "colour": "red"}), "answer.colour is not described"),
        (json!([]), "not object"),
    ] {
        let found = faults(value).join("; ");
        assert!(found.contains(says), "{found:?} does not say {says:?}");
    }
}
