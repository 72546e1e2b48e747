//! The four kinds of patches.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

/// A field: keys from the root; a list whose elements are told apart by a key has `key=value` for an element.
pub(super) type Path = Vec<String>;

/// Who owns which field of an object; one map for the object, one for each subresource.
pub(super) type Owners = BTreeMap<String, BTreeSet<Path>>;

/// RFC 7386.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let object = target.as_object_mut().expect("made one above");
    for (key, value) in patch {
        if value.is_null() {
            object.remove(key);
        } else {
            merge(object.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// As merge, but lists that have a merge key are merged by it: conditions by `type`. Others, taints among them, are one
/// value.
pub(super) fn strategic(target: &mut Value, patch: &Value, at: &str) {
    match (target, patch) {
        (Value::Array(target), Value::Array(patch)) if merge_key(at).is_some() => {
            let key = merge_key(at).expect("asked above");
            for item in patch {
                match target.iter_mut().find(|known| known[key] == item[key]) {
                    Some(known) => strategic(known, item, ""),
                    None => target.push(item.clone()),
                }
            }
        }
        (target, Value::Object(patch)) => {
            if !target.is_object() {
                *target = json!({});
            }
            let object = target.as_object_mut().expect("made one above");
            for (key, value) in patch {
                if value.is_null() {
                    object.remove(key);
                } else {
                    strategic(object.entry(key.clone()).or_insert(Value::Null), value, key);
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn merge_key(list: &str) -> Option<&'static str> {
    (list == "conditions").then_some("type")
}

/// RFC 6902; the error is the server's message.
pub(super) fn json_patch(target: &mut Value, patch: &Value) -> Result<(), String> {
    let patch: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|error| format!("not a JSON patch: {error}"))?;
    json_patch::patch(target, &patch).map_err(|error| format!("the server rejected our request: {error}"))
}

/// The leaves of a document, below `metadata` only what a manager may own. Lists are one value.
fn leaves(value: &Value, path: &mut Path, found: &mut BTreeMap<Path, Value>) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (key, value) in object {
                let skipped = path.is_empty() && matches!(key.as_str(), "apiVersion" | "kind");
                let of_server = path.len() == 1
                    && path[0] == "metadata"
                    && !matches!(key.as_str(), "labels" | "annotations" | "ownerReferences" | "finalizers");
                if !skipped && !of_server {
                    path.push(key.clone());
                    leaves(value, path, found);
                    path.pop();
                }
            }
        }
        _ if path.is_empty() => {}
        _ => {
            found.insert(path.clone(), value.clone());
        }
    }
}

pub(super) fn leaves_of(value: &Value) -> BTreeMap<Path, Value> {
    let mut found = BTreeMap::new();
    leaves(value, &mut Vec::new(), &mut found);
    found
}

fn set(target: &mut Value, path: &[String], value: Value) {
    let Some((first, rest)) = path.split_first() else {
        // An empty map says nothing of what others have in it.
        if !(target.is_object() && value.as_object().is_some_and(serde_json::Map::is_empty)) {
            *target = value;
        }
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    set(&mut target[first.as_str()], rest, value);
}

fn unset(target: &mut Value, path: &[String]) {
    match path {
        [] => {}
        [last] => {
            if let Some(object) = target.as_object_mut() {
                object.remove(last);
            }
        }
        [first, rest @ ..] => {
            if let Some(below) = target.get_mut(first) {
                unset(below, rest);
            }
        }
    }
}

/// Server-side apply. The error lists the fields that others own with another value: manager and path.
pub(super) fn apply(
    target: &mut Value,
    patch: &Value,
    manager: &str,
    force: bool,
    owners: &mut Owners,
) -> Result<(), Vec<(String, String)>> {
    let wanted = leaves_of(patch);
    let present = leaves_of(target);
    let mut conflicts = Vec::new();
    for (path, value) in &wanted {
        let differs = present.get(path).is_some_and(|now| now != value);
        for (other, fields) in owners.iter() {
            if other != manager && fields.contains(path) && differs {
                conflicts.push((other.clone(), format!(".{}", path.join("."))));
            }
        }
    }
    if !conflicts.is_empty() && !force {
        return Err(conflicts);
    }
    let before = owners.remove(manager).unwrap_or_default();
    for fields in owners.values_mut() {
        fields.retain(|path| !wanted.get(path).is_some_and(|value| present.get(path) != Some(value)));
    }
    for path in before.iter().filter(|path| !wanted.contains_key(*path)) {
        if !owners.values().any(|fields| fields.contains(path)) {
            unset(target, path);
        }
    }
    for (path, value) in &wanted {
        set(target, path, value.clone());
    }
    owners.insert(manager.to_owned(), wanted.into_keys().collect());
    Ok(())
}

/// A write that is no apply owns what it changed.
pub(super) fn own_changes(before: &Value, after: &Value, manager: &str, owners: &mut Owners) {
    let before = leaves_of(before);
    let changed: Vec<_> = leaves_of(after)
        .into_iter()
        .filter(|(path, value)| before.get(path) != Some(value))
        .map(|(path, _)| path)
        .collect();
    for fields in owners.values_mut() {
        fields.retain(|path| !changed.contains(path));
    }
    owners.entry(manager.to_owned()).or_default().extend(changed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_one_value_under_a_strategic_merge_and_conditions_are_merged() {
        let mut node = json!({"spec": {"taints": [{"key": "a"}]}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        strategic(&mut node, &json!({"spec": {"taints": [{"key": "b"}]}}), "");
        assert_eq!(node["spec"]["taints"], json!([{"key": "b"}]));
        strategic(
            &mut node,
            &json!({"status": {"conditions": [{"type": "X", "status": "True"}, {"type": "Ready", "status": "False"}]}}),
            "",
        );
        assert_eq!(
            node["status"]["conditions"],
            json!([{"type": "Ready", "status": "False"}, {"type": "X", "status": "True"}])
        );
    }

    #[test]
    fn an_apply_over_anothers_field_conflicts_and_what_is_no_longer_applied_goes() {
        let (mut object, mut owners) = (json!({}), Owners::new());
        apply(&mut object, &json!({"spec": {"a": 1, "b": 1}}), "one", false, &mut owners).unwrap();
        let conflict = apply(&mut object, &json!({"spec": {"a": 2}}), "two", false, &mut owners).unwrap_err();
        assert_eq!(conflict, [("one".to_owned(), ".spec.a".to_owned())]);
        apply(&mut object, &json!({"spec": {"a": 2}}), "two", true, &mut owners).unwrap();
        apply(&mut object, &json!({"spec": {}}), "one", false, &mut owners).unwrap();
        assert_eq!(object, json!({"spec": {"a": 2}}), "the field that changed hands stays");
        apply(&mut object, &json!({"spec": {"a": 2}}), "three", false, &mut owners).unwrap();
        apply(&mut object, &json!({"spec": {}}), "two", false, &mut owners).unwrap();
        assert_eq!(object, json!({"spec": {"a": 2}}), "shared with three");
    }
}
