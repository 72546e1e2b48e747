//! Structural schemas of custom kinds: defaults, pruning, validation. Patterns are matched by `regex`; rules in CEL are
//! the real server's to check.

use serde_json::{Map, Value};

/// Fills defaults in, drops what the schema does not know, and says what it refuses: path and problem.
pub(super) fn admit(schema: &Value, value: &mut Value) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    if let Some(object) = value.as_object_mut() {
        let properties = schema["properties"].as_object().cloned().unwrap_or_default();
        object.retain(|key, _| {
            matches!(key.as_str(), "apiVersion" | "kind" | "metadata") || properties.contains_key(key)
        });
        for (key, part) in
            object.iter_mut().filter(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata"))
        {
            visit(&properties[key], part, key, &mut problems);
        }
        for required in texts(&schema["required"]) {
            if !object.contains_key(&required) {
                problems.push((required, "Required value".to_owned()));
            }
        }
    }
    problems
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

fn visit(schema: &Value, value: &mut Value, path: &str, problems: &mut Vec<(String, String)>) {
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    let mut wrong = |problem: String| problems.push((path.to_owned(), problem));
    if schema["x-kubernetes-int-or-string"] == true {
        return;
    }
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        _ => true,
    };
    if !fits {
        return wrong(format!("Invalid value: must be of type {}", schema["type"]));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        wrong(format!("Unsupported value: {value}: supported values: {}", schema["enum"]));
    }
    if let Some(number) = value.as_f64() {
        if schema["minimum"].as_f64().is_some_and(|least| number < least) {
            wrong(format!("Invalid value: should be greater than or equal to {}", schema["minimum"]));
        }
        if schema["maximum"].as_f64().is_some_and(|most| number > most) {
            wrong(format!("Invalid value: should be less than or equal to {}", schema["maximum"]));
        }
    }
    if let Some(text) = value.as_str() {
        let length = text.chars().count() as u64;
        if schema["minLength"].as_u64().is_some_and(|least| length < least) {
            wrong("Invalid value: too short".to_owned());
        }
        if schema["maxLength"].as_u64().is_some_and(|most| length > most) {
            wrong("Too long".to_owned());
        }
        if let Some(pattern) = schema["pattern"].as_str()
            && !regex::Regex::new(pattern).expect("a definition's patterns are valid").is_match(text)
        {
            wrong(format!("Invalid value: {value}: should match '{pattern}'"));
        }
    }
    match value {
        Value::Object(object) => visit_object(schema, object, path, problems),
        Value::Array(items) => {
            let count = items.len() as u64;
            if schema["minItems"].as_u64().is_some_and(|least| count < least) {
                problems.push((path.to_owned(), "Invalid value: should have more items".to_owned()));
            }
            if schema["maxItems"].as_u64().is_some_and(|most| count > most) {
                problems.push((path.to_owned(), "Too many".to_owned()));
            }
            for (at, item) in items.iter_mut().enumerate() {
                visit(&schema["items"], item, &format!("{path}[{at}]"), problems);
            }
        }
        _ => {}
    }
}

fn visit_object(
    schema: &Value,
    object: &mut Map<String, Value>,
    path: &str,
    problems: &mut Vec<(String, String)>,
) {
    let below = |key: &str| format!("{path}.{key}");
    if let Some(properties) = schema["properties"].as_object() {
        if schema["x-kubernetes-preserve-unknown-fields"] != true {
            object.retain(|key, _| properties.contains_key(key));
        }
        for (key, part) in properties {
            if let Some(default) = part.get("default")
                && !object.contains_key(key)
            {
                object.insert(key.clone(), default.clone());
            }
        }
        for (key, value) in object.iter_mut() {
            visit(&properties[key], value, &below(key), problems);
        }
    } else if schema["additionalProperties"].is_object() {
        for (key, value) in object.iter_mut() {
            visit(&schema["additionalProperties"], value, &below(key), problems);
        }
    }
    for required in texts(&schema["required"]) {
        if !object.contains_key(&required) {
            problems.push((below(&required), "Required value".to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_come_in_unknown_fields_go_and_wrong_values_are_named() {
        let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {
        "type": "object", "required": ["images"], "properties": {
            "images": {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^a+$"}},
            "pin": {"type": "boolean", "default": true},
            "policy": {"type": "string", "enum": ["A", "B"]},
        }}}});
        let mut good =
            json!({"kind": "X", "metadata": {}, "spec": {"images": ["aa"], "other": 1}, "more": 2});
        assert!(admit(&schema, &mut good).is_empty());
        assert_eq!(good, json!({"kind": "X", "metadata": {}, "spec": {"images": ["aa"], "pin": true}}));
        for (spec, path) in [
            (json!({"images": []}), "spec.images"),
            (json!({"images": ["b"]}), "spec.images[0]"),
            (json!({"images": [1]}), "spec.images[0]"),
            (json!({"images": ["a"], "policy": "C"}), "spec.policy"),
            (json!({}), "spec.images"),
        ] {
            let problems = admit(&schema, &mut json!({"spec": spec}));
            assert_eq!(problems.first().map(|(path, _)| path.as_str()), Some(path), "{spec}");
        }
    }
}
